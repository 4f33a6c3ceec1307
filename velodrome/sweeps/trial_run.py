"""One trial of a sweep: a run that is trained, watched epoch by epoch, perhaps given up, but not tested."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, replace
from typing import Any, Literal

import optuna

from velodrome import session
from velodrome.config import Config, to_dict
from velodrome.distributed import ALONE
from velodrome.early_stopping import best_of
from velodrome.events import EpochDone, RunStopped
from velodrome.job import Job
from velodrome.reports import show
from velodrome.run.folder import RunFolder
from velodrome.run.lock import is_locked
from velodrome.run.sinks import EventLog, percent
from velodrome.run.stopping import StopRequest
from velodrome.running import epochs_of
from velodrome.sweeps.rows import SweepFolder
from velodrome.sweeps.study import RUN


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Attributes:
        status: trained to its end, or given up.
        accuracy: share in [0, 1] of the validation images that the last network of the run recognises.
        epochs: that it was trained for.
        settings: of the run, flat, with everything decided.
    """

    status: Literal["complete", "pruned"]
    accuracy: float
    epochs: int
    settings: dict[str, Any]


class TrialRun:
    """A trial that is being trained.

    Args:
        trial: that is told of each epoch.
        place: the folder of the sweep.
        progress: show it on stderr.
    """

    def __init__(self, trial: optuna.Trial, place: SweepFolder, *, progress: bool) -> None:
        self._trial, self._place, self._progress = trial, place, progress
        self._ending: Ending | None = None
        self.stop = StopRequest()

    def train(self, config: Config) -> Ending:
        """Train from the beginning, or from where another worker had to leave off.

        Args:
            config: of the trial.

        Raises:
            VelodromeError: as `session.train`.
        """
        folder = self._folder()
        self._trial.set_user_attr(RUN, folder.name)
        if folder.config.exists():
            session.go_on(
                folder,
                ALONE,
                data_root=config.data.data_root,
                progress=self._progress,
                carry=self._carry,
            )
        else:
            run = replace(config.run, runs_dir=self._place.path, name=folder.name)
            session.start(replace(config, run=run), ALONE, progress=self._progress, carry=self._carry)
        assert self._ending is not None, "the run was carried on"
        return self._ending

    def _folder(self) -> RunFolder:
        """The folder that the trial has already, if it lies here; else one of its own."""
        if before := self._trial.user_attrs.get(RUN):
            folder = self._place.run(before)
            if folder.config.exists() and not folder.is_finished and not is_locked(folder):
                return folder
        name = f"trial-{self._trial.number}"
        names = itertools.chain([name], (f"{name}-{count}" for count in itertools.count(2)))
        return next(folder for folder in map(self._place.run, names) if not folder.path.exists())

    def _carry(self, folder: RunFolder, job: Job, *, progress: bool) -> None:
        """Train to the last epoch, or to the one after which the trial is given up."""
        job = replace(job, deadline=None)  # the time of a trial is not what it is about
        epochs = job.config.train.epochs
        reason = "trained to its end; of a sweep, only the best trial is scored on the test images"
        status: Literal["complete", "pruned"] = "complete"
        for row in job.state.history:
            self._report(row)
        with contextlib.closing(
            epochs_of(folder, job, progress=progress, results=False, stop=self.stop)
        ) as rows:
            for row in rows:
                self._report(row)
                if row.epoch < epochs and row.val_acc is not None and self._trial.should_prune():
                    status, reason = "pruned", _why_pruned(row, epochs)
                    break
        scored = [row for row in job.state.history if row.val_acc is not None]
        # Early stopping keeps the weights of the best epoch.
        kept = best_of(scored) if job.config.train.early_stop else scored[-1]
        assert kept is not None, "there are validation images"
        assert kept.val_acc is not None, "these epochs were scored"
        self._ending = Ending(status, kept.val_acc, job.state.epoch, to_dict(job.config))
        log = EventLog(folder)
        with contextlib.closing(log):
            log.handle(RunStopped(job.state.step, reason))
        show(folder)

    def _report(self, row: EpochDone) -> None:
        """Tell the study what an epoch brought."""
        if row.val_acc is not None:
            self._trial.report(row.val_acc, row.epoch)


def _why_pruned(row: EpochDone, epochs: int) -> str:
    return (
        f"pruned after epoch {row.epoch} of {epochs}, as {percent(row.val_acc)} validation accuracy is not "
        "among the best third of the trials that got so far"
    )
