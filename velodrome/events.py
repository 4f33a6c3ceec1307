"""What happens in a run, as frozen dataclasses, and the protocol of whatever listens."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class RunStarted:
    """Training begins or, where `step` is above 0, goes on from a checkpoint.

    `steps` are those of the whole run where its last epoch is cut short, else None.
    """

    run: str
    recipe: str
    data: str
    device: str
    precision: str
    params: int
    epochs: int
    steps_per_epoch: int
    train_images: int
    step: int
    steps: int | None = None

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self.steps or self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class WarmedUp:
    """Kernels are chosen, and all that is to be compiled is; the seconds are not part of training."""

    seconds: float


@dataclass(frozen=True)
class StepDone:
    """One optimizer step has been issued; `step` counts from 0 over the whole run, `lr` is the one it used.

    Holds only what the host knows without asking the device. Not written to the event log step by step:
    the losses of an epoch's steps stand in its `EpochDone`.
    """

    step: int
    epoch: int
    lr: float


@dataclass(frozen=True)
class EpochDone:
    """An epoch is trained and scored.

    Attributes:
        epoch: counts from 1.
        time_s: seconds of training so far, without the scoring between epochs.
        lr: the learning rate of the epoch's last step.
        train_loss: mean cross-entropy over the epoch's (augmented) images, as they were met.
        train_acc: share in [0, 1] of them that were classified right.
        val_loss: mean cross-entropy over the validation images, None without any or where it is not finite.
        val_acc: accuracy in [0, 1] on them, None without any.
        test_loss: mean cross-entropy over the test images, None where it is not finite; nothing reads it.
        test_acc: accuracy in [0, 1] on them; for people to look at, nothing reads it.
        images_per_s: training images a second in this epoch.
        step_losses: mean loss of each step of the epoch.
        step_lrs: learning rate of each step of the epoch.
    """

    epoch: int
    time_s: float
    lr: float
    train_loss: float
    train_acc: float
    val_loss: float | None
    val_acc: float | None
    test_loss: float | None
    test_acc: float | None
    images_per_s: float
    step_losses: tuple[float, ...] = field(repr=False)
    step_lrs: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Replanned:
    """The run has other steps from here on, so that it takes the time that it was given; `steps` are all."""

    step: int
    steps: int
    epochs: int


@dataclass(frozen=True)
class StoppedEarly:
    """Training is over, because the validation loss has not been lower than after `best_epoch` for long."""

    epoch: int
    best_epoch: int


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on disk, from which `velodrome resume` can go on."""

    checkpoint: str
    step: int


@dataclass(frozen=True)
class RunStopped:
    """Training ended before its last step: by a signal, or because the loss is no longer finite."""

    step: int
    reason: str


@dataclass(frozen=True)
class RunFinished:
    """Training and evaluation are complete, and their results are in the run folder."""

    test_accuracy: float
    test_accuracy_tta: float
    train_seconds: float


Event = (
    RunStarted
    | WarmedUp
    | StepDone
    | EpochDone
    | Replanned
    | StoppedEarly
    | CheckpointSaved
    | RunStopped
    | RunFinished
)


class Sink(Protocol):
    """Whatever listens to a run: a file writer, a display, a tracker."""

    def handle(self, event: Event) -> None:
        """Take note of one event, in order."""

    def close(self) -> None:
        """The run is over, whether it ended well or not; called once."""


def to_json(event: Event) -> dict[str, object]:
    """The event as a JSON object: its type, the time in UTC, its fields."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return {"event": type(event).__name__, "time": now, **dataclasses.asdict(event)}
