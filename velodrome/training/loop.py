"""The training loop: a generator of events. To stop training, stop asking for the next event."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import nn

from velodrome.config import TrainSection
from velodrome.data.loader import Loader
from velodrome.device import synchronize
from velodrome.errors import TrainingError
from velodrome.events import EpochDone, StepDone, WarmedUp
from velodrome.training.freezing import freeze_body, stages
from velodrome.training.schedule import cut_short, steps_in_epoch
from velodrome.training.state import Progress, TrainState
from velodrome.training.step import Step, make_step


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy and accuracy in [0, 1] after an epoch; None where there are no such images."""

    val_loss: float | None
    val_acc: float | None
    test_loss: float | None
    test_acc: float | None


NO_SCORES = Scores(None, None, None, None)


def fit(
    state: TrainState,
    loader: Loader,
    lr_at: Callable[[int], float],
    train: TrainSection,
    *,
    precision: str,
    seed: int,
    score: Callable[[nn.Module], Scores],
    compiled: bool = False,
) -> Generator[WarmedUp | StepDone | EpochDone, None, None]:
    """Train `state` to the end of `train.epochs` or to `train.steps`, from wherever it stands.

    In the first `train.freeze_epochs` only the classifier learns; a step for all parameters is made after
    them.

    Args:
        state: the network, its optimizer and how far they are; changed in place.
        loader: training batches, on the network's device.
        lr_at: learning rate of a step, counted from 0 over the whole run.
        train: epochs, steps, label smoothing and the L1 penalty.
        precision: "fp32", "bf16" or "fp16".
        seed: of the run; with the step it fixes dropout.
        score: judges the network after each epoch.
        compiled: run the network through torch.compile; on a GPU, capture whole steps as CUDA graphs, unless
            they have dropout or gradient scaling.

    Yields:
        On a GPU, and wherever it is compiled, a WarmedUp before the first step, and again where the body has
        thawed; a StepDone after each step, an EpochDone after each epoch.

    Raises:
        TrainingError: a loss was not finite; raised at the end of that epoch at the latest.
        ConfigError: all epochs together have fewer steps than `train.steps`.
    """
    train = cut_short(train, loader.steps_per_epoch)
    try:
        for epochs, frozen in stages(train, state.epoch):
            freeze_body(state.model, state.optimizer, frozen=frozen)
            step, warm_up_s = make_step(
                state, train, loader, precision=precision, seed=seed, compiled=compiled
            )
            if warm_up_s is not None:
                yield WarmedUp(warm_up_s)
            for epoch in epochs:
                steps = steps_in_epoch(train, epoch, loader.steps_per_epoch)
                images_per_s = yield from _train_epoch(state, step, loader, lr_at, epoch, steps)
                yield _end_epoch(state, lr_at, score(state.model), images_per_s)
    finally:
        freeze_body(state.model, state.optimizer, frozen=False)


def _train_epoch(
    state: TrainState, step: Step, loader: Loader, lr_at: Callable[[int], float], epoch: int, steps: int
) -> Generator[StepDone, None, float]:
    """Take the steps that are left of an epoch.

    Nothing in the loop waits for the device, so a GPU never runs dry. A step whose loss is not finite changes
    no weights; that is decided on the device and read with the figures of the epoch.

    Returns:
        Images a second.
    """
    before_s, steps_before = state.clock.elapsed_s(), state.meter.done
    state.clock.start()
    batches = loader.epoch(epoch)
    state.model.train()
    for index in range(state.meter.done, steps):
        lr = lr_at(state.step)
        step(batches, index, lr)
        state.step += 1
        yield StepDone(state.step - 1, epoch, lr)
    synchronize(loader.device)
    state.clock.stop()
    trained = int(state.meter.images[steps_before:].sum())
    return trained / max(state.clock.elapsed_s() - before_s, 1e-9)


def _end_epoch(
    state: TrainState, lr_at: Callable[[int], float], scores: Scores, images_per_s: float
) -> EpochDone:
    """Close the epoch's books."""
    progress = raise_if_not_finite(state, lr_at)
    first = state.step - state.meter.done
    lrs = tuple(lr_at(step) for step in range(first, state.step))
    row = EpochDone(
        epoch=state.epoch + 1,
        time_s=state.clock.elapsed_s(),
        lr=lrs[-1],
        train_loss=progress.loss,
        train_acc=progress.accuracy,
        val_loss=scores.val_loss,
        val_acc=scores.val_acc,
        test_loss=scores.test_loss,
        test_acc=scores.test_acc,
        images_per_s=images_per_s,
        step_losses=state.meter.step_losses(),
        step_lrs=lrs,
    )
    state.history.append(row)
    state.epoch += 1
    state.meter.reset()
    return row


def raise_if_not_finite(state: TrainState, lr_at: Callable[[int], float]) -> Progress:
    """The figures of the epoch so far. Waits for the device.

    Raises:
        TrainingError: the loss of a step was not finite, or a weight no longer is.
    """
    progress = state.meter.read()
    if progress.bad_step is not None:
        step = state.step - state.meter.done + progress.bad_step
        raise _not_finite("The loss is", step, lr_at(step))
    if not all_finite(state.model):
        step = state.step - 1
        raise _not_finite("A weight is", step, lr_at(step))
    return progress


def all_finite(model: nn.Module) -> bool:
    """Whether no weight of the network is infinite or NaN. Waits for the device."""
    return bool(torch.stack([weight.isfinite().all() for weight in model.parameters()]).all())


def _not_finite(what: str, step: int, lr: float) -> TrainingError:
    return TrainingError(
        f"{what} not finite at step {step} (learning rate {lr:.3g}), so training stopped.",
        "Try a lower --lr, --precision fp32 or a smaller --momentum; the last checkpoint is from before.",
    )
