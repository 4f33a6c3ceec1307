"""One step of training: from a batch to changed weights, as it is, compiled, or captured as a CUDA graph."""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velodrome.config import TrainSection
from velodrome.data.loader import Epoch, Kind, Loader, Share
from velodrome.data.mixing import main_labels
from velodrome.device import autocast, synchronize
from velodrome.errors import VelodromeWarning
from velodrome.training.freezing import is_frozen
from velodrome.training.optim import decayed_weights, l1_norm, set_lr, skip_step_where
from velodrome.training.state import TrainState
from velodrome.training.undoing import undone

Answer = Callable[[nn.Module, Tensor, Tensor, str, float, Tensor | None], tuple[Tensor, Tensor]]
# Before a graph is captured, libraries must have chosen their kernels.
STEPS_BEFORE_CAPTURE = 3
# Of versions of compiled code that torch keeps, one for each kind of batch, recipe and precision; then it
# gives up.
MOST_COMPILED = 64


def answer(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    precision: str,
    label_smoothing: float,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy () of a batch, and logits (B, classes) without a gradient, both float32."""
    with autocast(images.device, precision):
        logits = model(images).float()
    return mean_cross_entropy(logits, labels, label_smoothing, class_weights), logits.detach()


def mean_cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float, class_weights: Tensor | None
) -> Tensor:
    """Cross-entropy of a batch, () float32: its mean, with class weights the weighted mean.

    Args:
        logits: (B, classes) float32.
        labels: (B,) int64, or (B, classes) float32 shares.
        label_smoothing: share of the target spread over all classes.
        class_weights: (classes,) float32, or None.
    """
    if class_weights is None or labels.ndim == 1:
        return F.cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing)
    # With shares torch divides by the number of images, not by their weights.
    total = F.cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels @ class_weights).sum()


class Step:
    """A step of training, as it is or with a compiled network. Nothing in it waits for the device.

    A step whose loss is not finite changes no weights; that is decided on the device.

    Args:
        state: the network, its optimizer and the meter; changed in place by each step.
        train: label smoothing and the L1 penalty.
        precision: "fp32", "bf16" or "fp16".
        seed: of the run; with the step it fixes dropout.
        compiled: run the network and its loss through torch.compile, once for each kind of batch.
        class_weights: (classes,) float32 on the device, by which the loss of each image is weighed; or None.
    """

    def __init__(
        self,
        state: TrainState,
        train: TrainSection,
        *,
        precision: str,
        seed: int,
        compiled: bool,
        class_weights: Tensor | None = None,
    ) -> None:
        self.state, self.train, self.precision, self.seed = state, train, precision, seed
        self.class_weights = class_weights
        self.device = next(state.model.parameters()).device
        self.compiled = compiled
        self.penalised = decayed_weights(state.model) if train.l1 else []
        # No method of ours, so that a step and all that it holds is gone as soon as nobody uses it.
        self.answer: Answer = torch.compile(answer, dynamic=False) if compiled else answer

    def __call__(self, epoch: Epoch, index: int, lr: float) -> None:
        """Take the step with this index within the epoch."""
        images, labels = epoch[index]
        set_lr(self.state.optimizer, lr)
        seed_step(self.seed, self.state.step, self.device)
        loss, logits = self._learn(images, labels)
        self.state.meter.record(loss, logits, labels)

    def _learn(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Change the weights; loss and logits from before."""
        smoothing = self.train.label_smoothing
        loss, logits = self.answer(
            self.state.model, images, labels, self.precision, smoothing, self.class_weights
        )
        self._differentiate(loss)
        self._change_weights(~loss.detach().isfinite())
        return loss, logits

    def _differentiate(self, loss: Tensor) -> None:
        """The gradients of the loss and the penalty."""
        penalty = self.train.l1 * l1_norm(self.penalised) if self.penalised else 0.0
        self.state.scaler.scale(loss + penalty).backward()  # type: ignore[no-untyped-call, unused-ignore]

    def _change_weights(self, skip: Tensor) -> None:
        """Follow the gradients, unless `skip` () bool is true, and forget them."""
        state = self.state
        skip_step_where(state.optimizer, skip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)

    def warm_up(self, loader: Loader) -> float:
        """Take a step with every kind of batch that is to come, and undo it, so that compiling is over.

        Args:
            loader: whose batches the run has.

        Returns:
            The seconds that it took.
        """
        start_s = time.perf_counter()
        self.state.model.train()
        with undone(self.state), _many_versions() if self.compiled else contextlib.nullcontext():
            epoch = loader.epoch(self.state.epoch)
            for kind, index in loader.kinds(self.state.step).items():
                self._try(epoch, kind, index)
        synchronize(self.device)
        return time.perf_counter() - start_s

    def _try(self, epoch: Epoch, kind: Kind, index: int) -> None:
        """Take a step with a kind of batch, of which the one with this index within an epoch has the size."""
        images, labels = epoch.batch(index, kind.side)
        self._learn(images, labels)


class RankStep(Step):
    """A step that several ranks take together, each with its part of the batch.

    The gradient is that of the mean over the whole batch, however it is shared out, and so are the figures;
    after the step all ranks have the same weights.

    Args:
        state: as for `Step`.
        train: likewise.
        loader: whose batches the run has, and whose ranks.
        precision: as for `Step`.
        seed: with the step and the rank it fixes dropout.
        compiled: as for `Step`.
    """

    def __init__(
        self,
        state: TrainState,
        train: TrainSection,
        loader: Loader,
        *,
        precision: str,
        seed: int,
        compiled: bool,
    ) -> None:
        super().__init__(
            state,
            train,
            precision=precision,
            seed=seed,
            compiled=compiled,
            class_weights=loader.class_weights,
        )
        self.world = loader.world
        self.network = self.world.parallel(state.model)

    def __call__(self, epoch: Epoch, index: int, lr: float) -> None:
        """Take the step with this index within the epoch."""
        images, labels = epoch[index]
        set_lr(self.state.optimizer, lr)
        seed_step(self.seed, self.state.step, self.device, self.world.rank)
        self.state.meter.record_sums(self._learn_part(images, labels, epoch.share(index)))

    def _try(self, epoch: Epoch, kind: Kind, index: int) -> None:
        images, labels = epoch.batch(index, kind.side)
        self._learn_part(images, labels, epoch.share(index))

    def _learn_part(self, images: Tensor, labels: Tensor, share: Share) -> Tensor:
        """Change the weights; losses, right answers and images, summed over the whole batch: (3,) float32."""
        smoothing = self.train.label_smoothing
        loss, logits = self.answer(
            self.network, images, labels, self.precision, smoothing, self.class_weights
        )
        # The ranks get the mean of their gradients, which is to be the sum of their shares.
        self._differentiate(loss * (share.of_loss * self.world.size))
        right = (logits.argmax(1) == main_labels(labels))[: share.images].sum()
        losses = loss.detach() * (share.of_loss * share.batch)
        images_in_part = torch.full_like(losses, share.images)
        sums = self.world.sum(torch.stack((losses, right.float(), images_in_part)))
        self._change_weights(~sums[0].isfinite())
        return sums


class TableStep(Step):
    """A step that finds its batch by an index on the device, in tables of the epoch that lie there.

    So the host has nothing to say in a step but which it is, and all of it can be captured as one CUDA graph
    for each kind of batch, which a GPU then runs without waiting for the host. On other devices it runs as
    it is written. Training is the same but for learning rates, which are float32 here.

    Args:
        state: as for `Step`; without dropout, whose random numbers a graph would repeat, and without gradient
            scaling.
        train: as for `Step`.
        loader: whose batches the run has; without a part for the host in making them.
        precision: as for `Step`.
        seed: likewise.
        compiled: likewise.
    """

    def __init__(
        self,
        state: TrainState,
        train: TrainSection,
        loader: Loader,
        *,
        precision: str,
        seed: int,
        compiled: bool,
    ) -> None:
        super().__init__(
            state,
            train,
            precision=precision,
            seed=seed,
            compiled=compiled,
            class_weights=loader.class_weights,
        )
        self.loader = loader
        # The tensors stay, and hold one epoch after another.
        self.tables, self.tables_of = loader.epoch(state.epoch), state.epoch
        self.rows = torch.arange(loader.batch_size, device=self.device)  # of the tables, from the first
        self.index = torch.zeros((), dtype=torch.long, device=self.device)
        self.graphs: dict[Kind, torch.cuda.CUDAGraph] = {}
        for group in state.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=self.device)
            if "capturable" in group:
                group["capturable"] = self.device.type == "cuda"

    def __call__(self, epoch: Epoch, index: int, lr: float) -> None:
        """Take the step with this index within the epoch."""
        if epoch.number != self.tables_of:
            self.tables.take_over(epoch)
            self.tables_of = epoch.number
        self.index.fill_(index)
        set_lr(self.state.optimizer, lr)
        kind = self.loader.kind(epoch.number, index)
        if kind in self.graphs:
            self.graphs[kind].replay()
        else:
            self._run(kind)
        self.state.meter.done = index + 1

    def _run(self, kind: Kind) -> None:
        """The whole step, without a word from the host."""
        rows = self.index * len(self.rows) + self.rows[: kind.size]
        images, labels = self.tables.batch_of(rows, kind.side)
        loss, logits = self._learn(images, labels)
        self.state.meter.record_at(self.index, loss, logits, labels)

    def warm_up(self, loader: Loader) -> float:
        """As in `Step`; on a GPU, capture every kind of step that is to come."""
        # An old graph that is found and freed while a new one is captured would spoil it.
        gc.collect()
        enabled = gc.isenabled()
        gc.disable()
        try:
            return super().warm_up(loader)
        finally:
            if enabled:
                gc.enable()

    def _try(self, epoch: Epoch, kind: Kind, index: int) -> None:  # noqa: ARG002
        self.index.fill_(index)
        if self.device.type != "cuda":
            self._run(kind)
            return
        # As the notes on CUDA graphs in torch's documentation have it.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call, unused-ignore]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(STEPS_BEFORE_CAPTURE):
                self._run(kind)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values())).pool() if self.graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._run(kind)
        self.graphs[kind] = graph


def make_step(
    state: TrainState, train: TrainSection, loader: Loader, *, precision: str, seed: int, compiled: bool
) -> tuple[Step, float | None]:
    """A step in the fastest form that is safe, warmed up where it is compiled or runs on a GPU.

    Compiled for a GPU, it is captured too, unless there are several ranks, which agree on more than a graph
    can hold, or it has dropout or gradient scaling, the body is frozen, the host has a part in making batches
    (it sorts them for RandAugment, and reads images that do not lie on the GPU), or the capture fails, of
    which a VelodromeWarning tells.

    Args:
        state: as for `Step`.
        train: likewise.
        loader: whose batches the run has.
        precision: as for `Step`.
        seed: likewise.
        compiled: whether to compile at all.

    Returns:
        The step, and the seconds that warming up took, None where it was not needed.
    """
    on_gpu = loader.device.type == "cuda"
    weights = loader.class_weights
    plain = (
        Step(state, train, precision=precision, seed=seed, compiled=compiled, class_weights=weights)
        if loader.world.is_alone
        else RankStep(state, train, loader, precision=precision, seed=seed, compiled=compiled)
    )
    if state.epoch >= train.epochs or not (compiled or on_gpu):
        return plain, None
    if compiled and on_gpu and _can_be_captured(state, loader):
        try:
            captured = TableStep(state, train, loader, precision=precision, seed=seed, compiled=True)
            return captured, captured.warm_up(loader)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            message = f"The steps cannot be captured as CUDA graphs, so they are only compiled: {reason}"
            warnings.warn(message, VelodromeWarning, stacklevel=2)
    return plain, plain.warm_up(loader)


def _can_be_captured(state: TrainState, loader: Loader) -> bool:
    """Whether a step is the same work each time, all of it on the device."""
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in state.model.modules())
    needs_others = loader.needs_host or not loader.world.is_alone
    return not (drops or state.scaler.is_enabled() or needs_others or is_frozen(state.optimizer))


def _many_versions() -> contextlib.AbstractContextManager[None]:
    """Let torch compile more versions of the same code than it would by itself."""
    patched: contextlib.AbstractContextManager[None] = torch._dynamo.config.patch(
        recompile_limit=MOST_COMPILED
    )
    return patched


def seed_step(seed: int, step: int, device: torch.device, rank: int = 0) -> None:
    """Fix what dropout draws in this step on a rank, whether or not the run was resumed before it."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    # Only the generators that this run draws from; torch.manual_seed would seed those of all devices.
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
