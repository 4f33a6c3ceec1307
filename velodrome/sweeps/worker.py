"""A worker of a sweep: takes one trial after another until there are enough, and says what comes of each."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from dataclasses import dataclass
from typing import NoReturn

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from velodrome import session
from velodrome.bench_commands import Stopped
from velodrome.config import Config
from velodrome.device import free_memory, is_out_of_memory
from velodrome.errors import (
    ConfigError,
    DataError,
    DeviceError,
    InterruptedRunError,
    TrainingError,
    visible,
)
from velodrome.printing import say
from velodrome.run.lock import is_locked
from velodrome.run.sinks import percent
from velodrome.sweeps.rows import ENDED, SweepFolder, TrialRow, best_of
from velodrome.sweeps.space import Space
from velodrome.sweeps.study import (
    DIVERGED,
    EPOCHS,
    PROBLEM,
    RUN,
    SAME_AS,
    SETTINGS,
    WORKER,
    OpenStudy,
)
from velodrome.sweeps.trial_run import TrialRun

# How often those who wait look whether there is something to do.
LOOK_S = 1.0


@dataclass(frozen=True)
class Worker:
    """One process that takes part in a sweep.

    Attributes:
        config: what all trials have in common.
        space: what they try.
        shared: the study.
        place: this worker's folder of the sweep.
        trials: how many there shall be, over all workers; None for as many as there is time for.
        timeout_s: no trial is begun after so many seconds.
        keep_checkpoints: also of trials that are not the best.
        progress: show it on stderr.
    """

    config: Config
    space: Space
    shared: OpenStudy
    place: SweepFolder
    trials: int | None
    timeout_s: float | None
    keep_checkpoints: bool
    progress: bool

    def work(self) -> None:
        """Train trials until there are enough; then see to those that dead workers have left.

        Raises:
            VelodromeError: something stands against all trials, not just against one.
            InterruptedRunError: a signal asked for a stop.
        """
        began_s = time.monotonic()

        def is_time_up() -> bool:
            return self.timeout_s is not None and time.monotonic() - began_s >= self.timeout_s

        while not is_time_up():
            self.shared.bury()
            if self._has_one_to_do():
                self._do_one()
            elif not self._others_leave_one():
                break

    def score_best(self) -> None:
        """Score the best trial on the test images, unless others still work at the sweep."""
        rows = self.shared.rows()
        best = best_of(rows)
        if best is None or best.run is None or any(row.status in ("running", "waiting") for row in rows):
            return
        folder = self.place.run(best.run)
        if not folder.config.exists():
            self._say(
                f"Trial {best.number}, the best, is one of {best.worker}; there, the same command scores it "
                "on the test images."
            )
        elif not folder.is_finished and not is_locked(folder):
            session.resume(folder.path, data_root=self.config.data.data_root, progress=self.progress)

    def _has_one_to_do(self) -> bool:
        rows = self.shared.rows()
        waiting = any(row.status == "waiting" for row in rows)
        begun = sum(row.status != "retried" for row in rows)
        return waiting or self.trials is None or begun < self.trials

    def _others_leave_one(self) -> bool:
        """Wait as long as it takes to tell whether those who still train are alive.

        Returns:
            Whether one was not, so that there is a trial to take up again.
        """
        until_s = time.monotonic() + self.shared.grace_s + 2 * LOOK_S
        told = False
        while True:
            self.shared.bury()
            rows = self.shared.rows()
            running = [row for row in rows if row.status == "running"]
            if any(row.status == "waiting" for row in rows) or not running:
                return bool(running) or any(row.status == "waiting" for row in rows)
            if time.monotonic() >= until_s:
                self._end_unborn(running)
                return False
            if not told:
                numbers = ", ".join(str(row.number) for row in running)
                self._say(
                    f"Others still train (trial {numbers}). Waiting for up to {self.shared.grace_s} s, in "
                    "case one of them is dead and leaves a trial behind."
                )
                told = True
            time.sleep(LOOK_S)

    def _end_unborn(self, running: list[TrialRow]) -> None:
        """Fail trials whose workers were killed before they gave a first sign of life."""
        for row in running:
            if row.worker is None:
                with contextlib.suppress(ValueError):  # it has ended meanwhile
                    self.shared.study.tell(row.number, state=TrialState.FAIL)

    def _do_one(self) -> None:
        """Train one trial and tell the study what came of it."""
        trial = self.shared.ask()
        if self.shared.is_surplus(trial, self.trials):
            return
        run = TrialRun(trial, self.place, progress=self.progress)
        try:
            with self.shared.beating(trial):
                trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
                self._train(trial, run)
        except UpdateFinishedTrialError:
            self._say(
                f"trial {trial.number}: this worker gave no sign of life for {self.shared.grace_s} s, so "
                "another one has taken the trial up; what came of it here is not used."
            )
        self._tidy()
        if run.stop.signal:
            _stop(run.stop.signal)

    def _train(self, trial: optuna.Trial, run: TrialRun) -> None:
        """Train a trial; what goes wrong with its settings is noted, all else is raised."""
        value, state = None, TrialState.FAIL
        try:
            config = self.space.configure(self.config, self.space.suggest(trial))
            if (same := self._same(trial)) is not None:
                trial.set_user_attr(SAME_AS, same.number)
                trial.set_user_attr(RUN, same.run)
                trial.set_user_attr(EPOCHS, same.epochs)
                trial.set_user_attr(SETTINGS, dict(same.settings))
                value, state = same.accuracy, TrialState.COMPLETE
            else:
                ending = run.train(config)
                trial.set_user_attr(EPOCHS, ending.epochs)
                trial.set_user_attr(SETTINGS, ending.settings)
                pruned = ending.status == "pruned"
                value, state = (None, TrialState.PRUNED) if pruned else (ending.accuracy, TrialState.COMPLETE)
        except TrainingError as error:  # a network whose weights are not finite recognises nothing
            trial.set_user_attr(DIVERGED, True)
            trial.set_user_attr(PROBLEM, error.problem)
            value, state = 0.0, TrialState.COMPLETE
        except (ConfigError, DataError, DeviceError) as error:
            trial.set_user_attr(PROBLEM, str(error))
        except (KeyboardInterrupt, InterruptedRunError):
            self._tell(trial, None, TrialState.FAIL)
            self.shared.take_up_again(self.shared.study.trials[trial.number])
            raise
        except (UpdateFinishedTrialError, SQLAlchemyError, StorageInternalError):
            raise
        except Exception as error:
            lacks_memory = is_out_of_memory(error)
            trial.set_user_attr(PROBLEM, "out of memory" if lacks_memory else str(error))
            if not lacks_memory:
                self._tell(trial, None, TrialState.FAIL)
                raise
        free_memory()  # outside of the handler, where nothing holds what the trial held
        self._tell(trial, value, state)
        self._report(trial.number)

    def _tell(self, trial: optuna.Trial, value: float | None, state: TrialState) -> None:
        try:
            self.shared.study.tell(trial, value, state)
        except ValueError as error:  # by which Optuna says that the trial has ended already
            raise UpdateFinishedTrialError(str(error)) from error

    def _same(self, trial: optuna.Trial) -> TrialRow | None:
        """A complete trial with the same settings, whose result would be the same."""
        return next(
            (row for row in self.shared.rows() if row.status == "complete" and row.params == trial.params),
            None,
        )

    def _report(self, number: int) -> None:
        """Say what came of a trial, and how far the sweep is."""
        rows = self.shared.rows()
        row, best = next(row for row in rows if row.number == number), best_of(rows)
        words: str = row.status
        if row.same_as is not None:
            words = f"the same settings as trial {row.same_as}, so not trained again"
        elif row.status == "pruned":
            words = f"pruned after epoch {row.epochs}"
        elif row.problem:
            words = f"{row.status}: {visible(row.problem).rstrip('.')}"
        figure = f"{percent(row.accuracy)} validation accuracy, " if row.status != "failed" else ""
        leader = f"; best {percent(best.accuracy)} (trial {best.number})" if best else ""
        done = sum(one.status in ENDED for one in rows)
        of = f" of {self.trials}" if self.trials else ""
        self._say(f"trial {number}: {figure}{words}{leader}; {done}{of} done")

    def _tidy(self) -> None:
        """Remove the checkpoints of trials that have ended, but for the best: nobody goes on with them."""
        if self.keep_checkpoints:
            return
        rows = self.shared.rows()
        best = best_of(rows)
        needed = {row.run for row in rows if row.status in ("running", "waiting")} | {best and best.run}
        for row in rows:
            if row.status in ENDED and row.run is not None and row.run not in needed:
                shutil.rmtree(self.place.run(row.run).checkpoints, ignore_errors=True)

    def _say(self, line: str) -> None:
        if self.progress:
            say(line)


def _stop(number: int) -> NoReturn:
    """End as the signal asked that came when a trial was about to end anyway."""
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)
