"""Ending a run where the validation loss no longer falls, with the weights that it was lowest with."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from velodrome.errors import ConfigError
from velodrome.events import EpochDone, StoppedEarly
from velodrome.run.checkpoint import KEEP, load_weights, save_weights
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


def check_goes_on(folder: RunFolder, history: Sequence[EpochDone], patience: int | None) -> None:
    """Check that a run which is to have more epochs was not ended because more did not help.

    Raises:
        ConfigError: it was.
    """
    if stopped := stalled(history, patience):
        raise ConfigError(
            f"Run {folder.path} was ended by early_stop {patience}, as the validation loss had not fallen "
            f"since epoch {stopped.best_epoch}, so it gets no more epochs.",
            f"Start another from it: velodrome train --init {shlex.quote(str(folder.path))}",
        )


def keep_if_best(folder: RunFolder, state: TrainState) -> None:
    """Write the weights down after an epoch whose validation loss is the lowest so far.

    Those of the best epoch before it stay, for a run that goes back to its last checkpoint.

    Raises:
        RunError: they cannot be written.
    """
    if best_of(state.history) is not state.history[-1]:
        return
    save_weights(_weights_of(folder, state.epoch), state.tensors()["model"], {"epoch": state.epoch})
    for path in sorted(folder.checkpoints.glob("best-*.safetensors"))[:-KEEP]:
        path.unlink(missing_ok=True)


def take_best(folder: RunFolder, state: TrainState) -> EpochDone:
    """Give the network the weights of its best epoch, and return the row of that.

    Raises:
        RunError: they were removed or damaged.
    """
    last = state.history[-1]
    best = best_of(state.history) or last
    if best is not last:
        weights, _ = load_weights(_weights_of(folder, best.epoch))
        state.model.load_state_dict(weights)
    return best


def _weights_of(folder: RunFolder, epoch: int) -> Path:
    return folder.checkpoints / f"best-{epoch:05}.safetensors"
