"""Going on with a run: from its newest good checkpoint, with the settings and threads it was trained with."""

from __future__ import annotations

import shlex
import warnings
from dataclasses import replace
from typing import Any

import torch

from velodrome.config import Config, is_auto, replanned_parts, settings_of_training
from velodrome.errors import ConfigError, RunError, VelodromeWarning
from velodrome.job import Job, with_absolute_paths
from velodrome.run.checkpoint import Checkpoint, load_checkpoint
from velodrome.run.environment import bits_depend_on
from velodrome.run.folder import RunFolder
from velodrome.run.images import check_same_images
from velodrome.training.schedule import resolve_lr


def restore(folder: RunFolder, job: Job) -> int:
    """Put the job where its newest good checkpoint left it, if there is one.

    Warns (VelodromeWarning) where the run goes on with another torch, on another CPU, or with another number
    of ranks.

    Returns:
        The number of threads to go on with: that with which the run was trained so far, by as many ranks.

    Raises:
        RunError: there are checkpoints, but none that is whole and was made with the job's settings.
        DataError: the images or labels are others by now.
    """

    def into_job(checkpoint: Checkpoint) -> None:
        check_settings(job.config, checkpoint.numbers["settings"])
        recorded, data = checkpoint.numbers.get("images"), job.config.data.data
        check_same_images(folder, job.splits, data, recorded=recorded, otherwise="start a new run.")
        job.state.restore(checkpoint.tensors, checkpoint.numbers)

    checkpoint = load_checkpoint(folder, into_job)
    before = checkpoint.numbers if checkpoint else folder.recorded_environment()
    here = bits_depend_on()
    for key in ("torch", "cpu"):
        if before.get(key, here[key]) != here[key]:
            message = (
                f"The run began with {key} {before[key]} and goes on with {here[key]}, so the last bits of "
                "its result may differ from those of a run that was never interrupted."
            )
            warnings.warn(message, VelodromeWarning, stacklevel=2)
    ranks = before.get("ranks", 1)
    if ranks != job.world.size:
        _warn_of_ranks(job, ranks)
        return torch.get_num_threads()
    threads = before.get("threads")
    return threads if isinstance(threads, int) and threads > 0 else torch.get_num_threads()


def _warn_of_ranks(job: Job, before: int) -> None:
    """Tell what another number of ranks means."""
    message = (
        f"The run began with {before} rank(s) and goes on with {job.world.size}, so the last bits of its "
        "result may differ from those of a run that was never interrupted."
    )
    train = job.config.train
    if not train.sync_bn and job.config.model.ghost_batch is None:
        batch = train.batch_size
        message += (
            f" Batch norm now takes its statistics over {batch // job.world.size} images in place of "
            f"{batch // before}."
        )
    warnings.warn(message, VelodromeWarning, stacklevel=3)


def check_request(wanted: Config, folder: RunFolder, recorded: Config) -> None:
    """Check that a run is the one that is asked for, so that it can be gone on with in its place.

    What is "auto" in the request may have become anything, and so may what follows from the data.

    Args:
        wanted: as it was asked for.
        folder: of the run.
        recorded: its settings.

    Raises:
        ConfigError: a setting is another; names the first.
    """
    train = resolve_lr(wanted.train, recorded.train.lr if recorded.train.lr != "auto" else None)
    if train.time_budget:  # fixes the steps by a measurement
        follows = {"epochs", "steps", "schedule_epochs", "replanned"}
    else:
        follows = {"epochs"} if train.steps is not None else set()
    asked = settings_of_training(replace(wanted, train=train)) | _sources(wanted)
    there = settings_of_training(recorded) | _sources(recorded)
    for key, value in asked.items():
        if key not in follows and not is_auto(value) and there.get(key, value) != value:
            raise ConfigError(
                f"{key} is {value}, but run {folder.path} has {there[key]}.",
                f"Choose another --name, or go on as it is: velodrome resume {shlex.quote(str(folder.path))}",
            )


def _sources(config: Config) -> dict[str, object]:
    """What a run is made from: data set, corrected labels, run to start from; paths are absolute."""
    data, init = with_absolute_paths(config.data), config.model.init
    return {
        "data": data.data,
        "labels": None if data.labels is None else str(data.labels),
        "init": None if init is None else str(init.absolute()),
    }


def check_settings(config: Config, trained_with: dict[str, Any]) -> None:
    """Check that a run goes on with the settings that it was trained with so far; it may get more epochs.

    Args:
        config: to go on with.
        trained_with: what `settings_of_training` said when the checkpoint was written.

    Raises:
        RunError: a setting is another.
    """
    now = settings_of_training(config)
    if now["replanned"] and replanned_parts(config.train.replanned or "")[1] == trained_with["steps"]:
        # The steps before are those of the plan that the checkpoint was made with.
        trained_with = trained_with | {key: now[key] for key in ("epochs", "steps", "replanned")}
    if now["epochs"] > trained_with["epochs"]:
        # As `extend` in `training.schedule` has it.
        span = trained_with["schedule_epochs"] or trained_with["epochs"]
        trained_with = trained_with | {"epochs": now["epochs"], "schedule_epochs": span}
    for key, value in now.items():
        before = trained_with.get(key, value)  # a setting may be newer than the run
        if before != value:
            raise RunError(
                f"it was trained with {key} {before}, but config.yaml says {value}.",
                "Restore config.yaml.",
            )
