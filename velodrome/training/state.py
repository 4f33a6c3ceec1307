"""Everything that a run carries from step to step, and how it is written down and read back."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from velodrome.data.mixing import main_labels
from velodrome.errors import RunError
from velodrome.events import EpochDone


class Clock:
    """Seconds of training: runs while training does, and survives a resume."""

    def __init__(self, elapsed_s: float = 0.0) -> None:
        self._before_s = elapsed_s
        self._started: float | None = None

    def start(self) -> None:
        """Run on; a clock that runs already keeps what it has counted."""
        # perf_counter is monotonic: a system clock that is set back does not make training time negative.
        self._before_s, self._started = self.elapsed_s(), time.perf_counter()

    def stop(self) -> None:
        """Stand still."""
        self._before_s, self._started = self.elapsed_s(), None

    def elapsed_s(self) -> float:
        """Seconds run so far, running or not."""
        running_s = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before_s + running_s


@dataclass(frozen=True)
class Progress:
    """Means over the steps of an epoch so far; `loss` is not finite as soon as one step's was not."""

    loss: float
    accuracy: float
    bad_step: int | None


class Meter:
    """Loss and number of correct answers of each step of an epoch, kept on the device until asked for.

    With several ranks, they are those of all ranks together, so that all of them decide alike.

    Where images are mixed, the correct answer is the class with the larger share.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.loss_sum = torch.zeros(steps, device=device)  # summed over the images of the step
        self.correct = torch.zeros(steps, device=device)
        self.images = torch.zeros(steps, device=device)
        self.done = 0

    def reset(self) -> None:
        """Forget everything, at the start of an epoch."""
        for values in (self.loss_sum, self.correct, self.images):
            values.zero_()
        self.done = 0

    def record(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take note of one step, without waiting for the device.

        Args:
            loss: () float32, mean over the batch.
            logits: (B, classes) float32.
            labels: (B,) int64, or (B, classes) float32 shares.
        """
        self.loss_sum[self.done] = loss.detach() * len(labels)
        self.correct[self.done] = (logits.detach().argmax(1) == main_labels(labels)).sum()
        self.images[self.done] = len(labels)
        self.done += 1

    def record_sums(self, sums: Tensor) -> None:
        """Take note of one step of several ranks, without waiting for the device.

        Args:
            sums: (3,) float32: losses, right answers and number of the images of the whole batch.
        """
        self.loss_sum[self.done], self.correct[self.done], self.images[self.done] = sums.unbind()
        self.done += 1

    def record_at(self, index: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take note of the step whose index () int64 lies on the device; `done` is for the caller to set.

        Args:
            index: of the step within the epoch.
            loss: as for `record`.
            logits: likewise.
            labels: likewise.
        """
        correct = (logits.detach().argmax(1) == main_labels(labels)).sum()
        self.loss_sum.index_copy_(0, index[None], (loss.detach() * len(labels))[None])
        self.correct.index_copy_(0, index[None], correct[None].to(self.correct.dtype))
        self.images.index_fill_(0, index[None], len(labels))

    def read(self) -> Progress:
        """Means over the steps so far. Waits for the device: call it now and then, not in every step."""
        images = float(self.images[: self.done].sum()) or math.nan
        finite = self.loss_sum[: self.done].isfinite()
        bad = None if bool(finite.all()) else int(finite.logical_not().nonzero()[0])
        loss = float(self.loss_sum[: self.done].sum())
        return Progress(loss / images, float(self.correct[: self.done].sum()) / images, bad)

    def step_losses(self) -> tuple[float, ...]:
        """The mean loss of every step so far."""
        return tuple((self.loss_sum[: self.done] / self.images[: self.done]).tolist())


@dataclass(eq=False)
class TrainState:
    """A run between two steps. Nothing else is needed to go on: the rest follows from the config.

    Attributes:
        model: the network, with float32 weights.
        optimizer: with float32 state.
        scaler: gradient scaling, active only in fp16.
        meter: the figures of the current epoch.
        clock: seconds of training.
        epoch: complete epochs.
        step: complete steps over the whole run.
        history: one row for each complete epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    meter: Meter
    clock: Clock = field(default_factory=Clock)
    epoch: int = 0
    step: int = 0
    history: list[EpochDone] = field(default_factory=list)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors, on the CPU and contiguous: "model" and "training", each name -> tensor."""
        training = {
            "meter.loss_sum": self.meter.loss_sum,
            "meter.correct": self.meter.correct,
            "meter.images": self.meter.images,
        }
        for index, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    training[f"optimizer.{index}.{slot}"] = value
        return {"model": _on_cpu(self.model.state_dict()), "training": _on_cpu(training)}

    def numbers(self) -> dict[str, object]:
        """All that is not a tensor, as JSON."""
        columns = [dataclasses.asdict(row) | {"step_losses": (), "step_lrs": ()} for row in self.history]
        return {
            "epoch": self.epoch,
            "step": self.step,
            "steps_into_epoch": self.meter.done,
            "train_s": self.clock.elapsed_s(),
            "scaler": self.scaler.state_dict(),
            "history": columns,
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, object]) -> None:
        """Become the state that was written down.

        Raises:
            RunError: it is the state of another network, optimizer or data set.
        """
        try:
            self.model.load_state_dict(dict(tensors["model"]))
            self._restore_optimizer(tensors["training"])
            for name in ("loss_sum", "correct", "images"):
                getattr(self.meter, name).copy_(tensors["training"][f"meter.{name}"])
            self.epoch, self.step = int(numbers["epoch"]), int(numbers["step"])  # type: ignore[call-overload]
            self.meter.done = int(numbers["steps_into_epoch"])  # type: ignore[call-overload]
            self.clock = Clock(float(numbers["train_s"]))  # type: ignore[arg-type]
            self.scaler.load_state_dict(numbers["scaler"])  # type: ignore[arg-type]
            self.history = [EpochDone(**row) for row in numbers["history"]]  # type: ignore[attr-defined, unused-ignore]
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(
                f"it does not fit the run's config.yaml: {str(error).splitlines()[0]}.",
                "Resume with the config that the run was started with, or start a new run.",
            ) from error

    def _restore_optimizer(self, saved: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, value in saved.items():
            kind, _, rest = name.partition(".")
            if kind != "optimizer":
                continue
            index, _, slot = rest.partition(".")
            parameter = parameters[int(index)]
            # Fused kernels walk memory in order, so the state must lie in memory as its parameter does.
            fits = value.shape == parameter.shape
            state.setdefault(int(index), {})[slot] = (
                torch.empty_like(parameter).copy_(value) if fits else value
            )
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
