"""The search for the best settings: many trials with one study, shared by as many workers as there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from velodrome import planning
from velodrome.bench_commands import signals_raise
from velodrome.config import Config, is_own, override, settings_of_training
from velodrome.data.sources import VALIDATION_SHARE
from velodrome.errors import ConfigError
from velodrome.job import Job, prepare
from velodrome.printing import say
from velodrome.recipes import speed94
from velodrome.run.folder import check_can_write, next_run_folder
from velodrome.run.sinks import duration
from velodrome.sweeps.address import check_answers, check_optuna, shown
from velodrome.sweeps.place import existing
from velodrome.sweeps.space import Space, read_space
from velodrome.sweeps.sweep_results import Sweep
from velodrome.sweeps.wishes import GRACE, Wishes, check_wishes


def sweep(
    config: Config | None = None,
    *,
    search: Path | str | Mapping[str, Any] | Space,
    trials: int | None = None,
    timeout: str | None = None,
    sampler: str = "tpe",
    prune: bool = True,
    storage: str | None = None,
    study_name: str | None = None,
    keep_checkpoints: bool = False,
    grace: str = GRACE,
    progress: bool = True,
) -> Sweep:
    """Search for the settings with the highest validation accuracy; score the best once on the test images.

    Leaves a sweep folder, with a run folder for each trial. The same call again, with the name of that folder
    in the config, goes on with it; so do others at the same time, in other processes or, with the same
    storage, on other machines.

    Args:
        config: from a recipe; `speed94()` without one. Without validation images in it, a tenth of the
            training images is held out.
        search: what to try: the path of a YAML file, or its content.
        trials: how many there shall be in all; 20 without, unless there is a timeout.
        timeout: begin no trial after such a time, for instance "1h30m".
        sampler: "tpe" (tree-structured Parzen estimator) or "random".
        prune: give up trials that do worse than the others, by successive halving.
        storage: address of a database, for several machines; else a SQLite file in the folder.
        study_name: of the study in the storage; else the name of the folder.
        keep_checkpoints: of all trials, not just the best.
        grace: a worker without a sign of life for so long is taken for dead, and its trial taken up again.
        progress: show it on stderr.

    Returns:
        All trials so far, those of other workers too.

    Raises:
        ConfigError: Optuna is missing, the space is impossible, the storage cannot be reached, or something
            else is wrong with what is asked (no trial was begun).
        InterruptedRunError: a signal stopped it; all that was trained is kept.
        VelodromeError: bad data, or something that stands against every trial.
    """
    config = config or speed94()
    space = search if isinstance(search, Space) else read_space(search)
    wishes = check_wishes(
        config,
        trials=trials,
        timeout=timeout,
        sampler=sampler,
        prune=prune,
        storage=storage,
        study_name=study_name,
        keep_checkpoints=keep_checkpoints,
        grace=grace,
    )
    _check_can_begin(config, space, wishes)
    if wishes.storage:
        check_answers(wishes.storage)  # before images are prepared, which may take minutes
    common, job = _with_validation(config, space, prune=wishes.prune, progress=progress)
    _check_batches(space, job)
    plan = _plan(common, space, job)
    epochs = max(job.config.train.epochs, int(space.largest("epochs") or 0))
    del job  # the trials load the data themselves
    from velodrome.sweeps.taking_part import take_part

    with signals_raise():
        return take_part(config, common, space, wishes, plan, epochs=epochs, progress=progress)


def plan(config: Config, space: Space, wishes: Wishes) -> dict[str, object]:
    """What a sweep would do, without doing it: `planning.plan` of one trial, and what concerns all of them.

    Raises:
        VelodromeError: what `sweep` would refuse, but for the storage, which is not asked.
    """
    _check_can_begin(config, space, wishes)
    nameless = replace(config, run=replace(config.run, name=None))
    one = planning.plan(space.first_possible(_common(nameless, prune=wishes.prune)))
    count = wishes.trials
    return {
        **one,
        "run_folder": str(next_run_folder(config.run.runs_dir, wishes.folder, "sweep")),
        "trials": count or "as many as there is time for",
        "searched": {key: str(said) for key, said in space.to_json().items()},
        "sampler": wishes.sampler,
        "pruning": wishes.prune,
        "storage": shown(wishes.storage) if wishes.storage else "study.db in the folder",
        "training_time_of_all_trials": f"{duration(count * float(str(one['training_s'])))} at most"
        if count
        else "-",
    }


def _check_can_begin(config: Config, space: Space, wishes: Wishes) -> None:
    """Check what takes no data and no storage."""
    check_optuna()
    space.first_possible(config)
    existing(config.run.runs_dir, wishes)
    check_can_write(config.run.runs_dir)


def _common(config: Config, *, prune: bool) -> Config:
    """What all trials have in common: the test images are left alone, and others are there to choose by."""
    config = override(config, {"score_test": "once"})
    if prune and config.evaluate.score_every == 0:  # there would be nothing to prune by
        config = override(config, {"score_every": 1})
    if not config.data.val_fraction and not is_own(config.data.data):
        config = override(config, {"val_fraction": VALIDATION_SHARE})
    return config


def _with_validation(config: Config, space: Space, *, prune: bool, progress: bool) -> tuple[Config, Job]:
    """What all trials have in common, and one of them, prepared: it has images to choose by."""
    common = _common(config, prune=prune)
    job = prepare(space.first_possible(common), progress=progress)
    if job.splits.val is None:
        common = override(common, {"val_fraction": VALIDATION_SHARE})
        job = prepare(space.first_possible(common), progress=progress)
    if progress and common.data.val_fraction != config.data.val_fraction:
        say(
            f"No image is there to choose by, so {VALIDATION_SHARE:.0%} of the training images are held out "
            f"(--val-fraction {VALIDATION_SHARE:g})."
        )
    return common, job


def _check_batches(space: Space, job: Job) -> None:
    """Check that the largest batch is there.

    Raises:
        ConfigError: it is larger than the training set.
    """
    largest, images = space.largest("batch_size"), len(job.splits.train)
    if isinstance(largest, int | float) and largest > images:
        raise ConfigError(
            f"{space.origin}: batch_size goes up to {largest}, but must not be larger than the training set "
            f"of {images:,} images.",
            f"Go up to {images:,} at most.",
        )


def _plan(common: Config, space: Space, job: Job) -> dict[str, dict[str, object]]:
    """What must be the same for all who take part; each may have its own device."""
    left_out = {"device", *space.keys}
    settings = {key: value for key, value in settings_of_training(common).items() if key not in left_out}
    return {
        "space": space.to_json(),
        "settings": {**settings, "init": str(common.model.init), "images": job.splits.fingerprint},
    }
