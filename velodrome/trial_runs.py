"""Trials: variants of a recipe, each trained with several seeds, one run after the other in this process."""

from __future__ import annotations

import shlex
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import velodrome
from velodrome import planning, session
from velodrome.bench_commands import Stopped, signals_raise
from velodrome.comparison.groups import NO_DIFFERENCE
from velodrome.config import Config, to_dict
from velodrome.device import free_memory, is_out_of_memory
from velodrome.errors import (
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_RESUMABLE,
    InterruptedRunError,
    RunError,
    VelodromeError,
    visible,
)
from velodrome.job import resolve
from velodrome.printing import say
from velodrome.recipes import speed94
from velodrome.run.folder import RunFolder, check_can_write, create_run, find_begun, next_run_folder
from velodrome.run.lock import locked
from velodrome.run.sinks import duration, percent
from velodrome.trial_plan import Variant, adopt, plan_variants
from velodrome.trial_record import Trial, Trials

Vary = Mapping[str, Sequence[object]]
Also = Sequence[Mapping[str, object]]


def trials(
    config: Config | None = None,
    *,
    seeds: int = 3,
    vary: Vary | None = None,
    also: Also = (),
    progress: bool = True,
) -> Trials:
    """Train a recipe, or variants of it, with several seeds; compare what comes of them.

    Leaves a folder with a run folder for each trial, trials.json, trials.csv and trials.html. If the config
    names trials that exist, this goes on with them: what has finished is taken as it is, what was stopped is
    resumed, what failed is tried again; more seeds and other variants may be asked for. A trial that fails is
    recorded, and the others go on.

    Args:
        config: from a recipe; `speed94()` without one. Its seed is the first of the seeds.
        seeds: how many runs each variant gets.
        vary: settings, each with its values; their product are the variants. Without, the recipe itself.
        also: for each further variant the settings that make it of the recipe.
        progress: show it on stderr.

    Returns:
        The trials and their comparison; `failed` tells what went wrong.

    Raises:
        VelodromeError: bad settings or data (nothing was written).
        InterruptedRunError: a signal stopped it; all up to there is kept.
    """
    config = config or speed94()
    wanted = plan_variants(config, vary or {}, also, seeds)
    settings = _settings_of(config)
    place = _existing(config)
    check_can_write(config.run.runs_dir)
    is_new = place is None
    if place is None:
        place = create_run(
            config.run.runs_dir, config.run.name, "trials", lambda new: Trials(new.path, settings).save()
        )
    with locked(place), signals_raise():
        before = Trials.load(place.path)
        before.check_same(settings)
        variants = adopt(config, before.variants, wanted)
        asked = before.asked_for(variants, _seeds(config, seeds))
        work = _Work(config, before.with_plan(variants, asked), progress)
        found = work.do(asked)
    if is_new and work.refusal and not any(found.run_folder(trial).path.exists() for trial in asked):
        shutil.rmtree(place.path, ignore_errors=True)  # no trial could even begin
        raise work.refusal
    return found


def plan(config: Config, *, seeds: int = 3, vary: Vary | None = None, also: Also = ()) -> dict[str, Any]:
    """What `trials` would do, without doing it: which runs, and how long they take together.

    Returns:
        What `planning.plan` says of the first variant that can be trained, in as far as it holds for all;
        the trials folder, the number of runs, how many of them have finished, the time of the others, and of
        each variant its label, the seconds of a run, and why it cannot be trained, if so.

    Raises:
        VelodromeError: what `trials` would refuse.
    """
    variants = plan_variants(config, vary or {}, also, seeds)
    settings, place = _settings_of(config), _existing(config)
    before = Trials(Path(), settings) if place is None else Trials.load(place.path)
    before.check_same(settings)
    variants = adopt(config, before.variants, variants)
    asked = before.asked_for(variants, _seeds(config, seeds))
    left = [trial for trial in asked if not before.is_finished(trial)]
    plans = {variant.label: _plan_of(config, variant) for variant in variants}
    good = [one for one in plans.values() if not isinstance(one, VelodromeError)]
    if not good:
        raise next(error for error in plans.values() if isinstance(error, VelodromeError))
    run_s = {label: _training_s(one) for label, one in plans.items()}
    in_all_s = sum(run_s[trial.variant] or 0.0 for trial in left)
    path = place.path if place else next_run_folder(config.run.runs_dir, config.run.name, "trials")
    return {
        **{key: good[0][key] for key in ("recipe", "data", "device")},
        "trials_folder": str(path),
        "seeds": f"{config.run.seed} to {config.run.seed + seeds - 1}",
        "runs": len(asked),
        "runs_finished": len(asked) - len(left),
        "training_time_left": duration(in_all_s),
        "training_s": round(in_all_s, 1),
        "variants": [
            {
                "label": label,
                "training_s": run_s[label],
                "problem": str(one) if isinstance(one, VelodromeError) else None,
            }
            for label, one in plans.items()
        ],
    }


def rows_of_plan(found: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as names and values for a terminal, a row for each variant."""
    of_all = {key: value for key, value in found.items() if key not in ("variants", "training_s")}
    of_each = {
        one["label"]: f"cannot be trained: {visible(one['problem'])}"
        if one["problem"]
        else f"{duration(one['training_s'])} of training a run"
        for one in found["variants"]
    }
    return of_all | of_each


def _plan_of(config: Config, variant: Variant) -> dict[str, Any] | VelodromeError:
    try:
        one = variant.config(config)
        return planning.plan(replace(one, run=replace(one.run, name=None)))
    except VelodromeError as error:
        return error


def _training_s(found: Mapping[str, Any] | VelodromeError) -> float | None:
    return None if isinstance(found, VelodromeError) else float(found["training_s"])


def _seeds(config: Config, count: int) -> range:
    return range(config.run.seed, config.run.seed + count)


def _settings_of(config: Config) -> dict[str, Any]:
    """What trials may not go on with another of: settings of the base, as this machine takes them."""
    settings = to_dict(resolve(config))
    kept = {key: value for key, value in settings.items() if key not in NO_DIFFERENCE}
    return kept | {"velodrome": velodrome.__version__}


def _existing(config: Config) -> RunFolder | None:
    """The trials folder that the config names, None where there is nothing of that name.

    Raises:
        ConfigError: something else has that name.
    """
    path = find_begun(config.run.runs_dir, config.run.name, "trials.json", "holds no trials")
    return None if path is None else RunFolder(path)


@dataclass
class _Work:
    """Trials that go on.

    Attributes:
        config: the base, with "auto" in it.
        found: what is known so far.
        progress: show it on stderr.
        took_s: seconds of each trial that was made by now.
        refusal: why the first of the trials failed that could not even begin.
    """

    config: Config
    found: Trials
    progress: bool
    took_s: list[float] = field(default_factory=list)
    refusal: VelodromeError | None = None

    def do(self, asked: Sequence[Trial]) -> Trials:
        """Make what is missing; compare all."""
        left = [trial for trial in asked if not self.found.is_finished(trial)]
        try:
            self._keep(self.found)
            if len(left) < len(asked):
                self._say(f"{len(asked) - len(left)} of {len(asked)} trials have finished before")
            for made, trial in enumerate(left):
                number = len(asked) - len(left) + made + 1
                self._say(f"trial {number} of {len(asked)}: {trial.name}{self._time_left(len(left) - made)}")
                self._keep(self.found.with_trial(self._make(trial)))
            self.found = replace(self.found.compared(), asked=frozenset(trial.folder for trial in asked))
            self.found.save_comparison()
        except (KeyboardInterrupt, InterruptedRunError) as error:
            raise self._stopped(error, asked) from error
        except RunError as error:  # of writing, which has begun
            error.exit_code = EXIT_PARTLY
            raise
        return self.found

    def _keep(self, found: Trials) -> None:
        self.found = found
        found.save()

    def _make(self, trial: Trial) -> Trial:
        """Train, or go on, in the run folder of a trial; returns how it ended."""
        began_s = time.perf_counter()
        variant = next(one for one in self.found.variants if one.label == trial.variant)
        try:
            config = variant.config(self.config)
            place = replace(config.run, seed=trial.seed, runs_dir=self.found.path, name=trial.folder)
            run = session.train(replace(config, run=place), progress=self.progress, resume="auto")
        except InterruptedRunError:
            raise
        except VelodromeError as error:
            if not self.found.run_folder(trial).path.exists():
                self.refusal = self.refusal or error.with_traceback(None)  # which would hold the images
            failed = replace(trial, status="failed", error=str(error))
        except Exception as error:  # whatever it is, the other trials go on
            failed = replace(trial, status="failed", error=_words_of(error))
        else:
            self.took_s.append(time.perf_counter() - began_s)
            self._say_result(run.result)
            return replace(trial, status="finished", error=None)
        free_memory()
        self._say(f"failed: {visible(str(failed.error))}")
        return failed

    def _say_result(self, result: Mapping[str, Any]) -> None:
        test, with_tta = (percent(result.get(key)) for key in ("test_accuracy", "test_accuracy_tta"))
        self._say(f"{test} test accuracy ({with_tta} with TTA) in {duration(self.took_s[-1])}")

    def _time_left(self, trials_left: int) -> str:
        """About how long the rest takes, once that can be told; trials may be of unlike length."""
        if not self.took_s:
            return ""
        mean_s = sum(self.took_s) / len(self.took_s)
        return f" (about {duration(mean_s * trials_left)} left)"

    def _say(self, line: str) -> None:
        if self.progress:
            say(line)

    def _stopped(self, error: BaseException, asked: Sequence[Trial]) -> InterruptedRunError:
        """Say what is kept and how to go on."""
        finished = {trial.folder for trial in self.found.trials if trial.status == "finished"}
        done = sum(trial.folder in finished for trial in asked)
        code = EXIT_RESUMABLE if isinstance(error, Stopped) else EXIT_INTERRUPTED
        code = error.exit_code if isinstance(error, InterruptedRunError) else code
        path = self.found.path
        return InterruptedRunError(
            f"Stopped; {done} of {len(asked)} trials have finished, and all up to here is kept in {path}.",
            f"Go on with the same command and --name {shlex.quote(path.name)}.",
            code,
        )


def _words_of(error: Exception) -> str:
    """Why a trial failed that did so in no way that a run has words for."""
    first_line = (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return f"Out of memory: {first_line} Lower --batch-size or --width."
    traceback.print_exc()
    return f"{type(error).__name__}: {first_line}"
