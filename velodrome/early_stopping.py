"""Ending a run where the validation loss no longer falls, with the weights that it was lowest with."""

from __future__ import annotations

from collections.abc import Sequence

from velodrome.errors import RunError
from velodrome.events import EpochDone, StoppedEarly
from velodrome.run.checkpoint import load_weights, save_weights
from velodrome.run.folder import RunFolder
from velodrome.training.state import TrainState


def best_of(history: Sequence[EpochDone]) -> EpochDone | None:
    """The first epoch with the lowest validation loss; None where no epoch has one."""
    scored = [row for row in history if row.val_loss is not None]
    return min(scored, key=lambda row: row.val_loss or 0.0, default=None)


def stalled(history: Sequence[EpochDone], patience: int | None) -> StoppedEarly | None:
    """That training is to stop, where the validation loss was lowest `patience` epochs ago or more.

    Args:
        history: of the epochs so far; those without a validation loss are not counted.
        patience: in epochs that have one; None never stops.
    """
    best = best_of(history)
    if patience is None or best is None:
        return None
    scored = [row.epoch for row in history if row.val_loss is not None]
    if sum(epoch > best.epoch for epoch in scored) < patience:
        return None
    return StoppedEarly(scored[-1], best.epoch)


def keep_if_best(folder: RunFolder, state: TrainState) -> None:
    """Write the weights down after an epoch whose validation loss is the lowest so far.

    Raises:
        RunError: they cannot be written.
    """
    if state.history and best_of(state.history) is state.history[-1]:
        save_weights(folder.best_weights, state.tensors()["model"], {"epoch": state.epoch})


def take_best(folder: RunFolder, state: TrainState) -> EpochDone:
    """Give the network the weights of its best epoch, and return the row of that.

    Raises:
        RunError: they were removed or damaged, or are of another epoch.
    """
    last = state.history[-1]
    best = best_of(state.history) or last
    if best is last:
        return last
    weights, about = load_weights(folder.best_weights)
    if about.get("epoch") != best.epoch:
        raise RunError(
            f"Weights {folder.best_weights} are of epoch {about.get('epoch')}, but the best is {best.epoch}.",
            "Restore the run folder from a copy, or train it again.",
        )
    state.model.load_state_dict(weights)
    return best
