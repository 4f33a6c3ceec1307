"""The verbs: each puts the parts together and lets them work. Everything above talks to this module only."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn

from velodrome.config import Config, check, override, read_yaml, to_yaml
from velodrome.data.imageset import ImageSet, Normalisation, Splits, channel_statistics
from velodrome.data.loader import Loader
from velodrome.data.sources import load_splits, resolve_data_root
from velodrome.device import pick_device, pick_precision
from velodrome.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, ConfigError, Interrupted
from velodrome.evaluate.metrics import accuracy, mean_loss
from velodrome.evaluate.predict import Classifier, logits_of
from velodrome.events import (
    CheckpointSaved,
    EpochDone,
    Event,
    RunFinished,
    RunStarted,
    RunStopped,
    Sink,
    StepDone,
)
from velodrome.models.build import build_model
from velodrome.models.summary import summarize
from velodrome.recipes import by_name, resnet9
from velodrome.report.page import write_report
from velodrome.run.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from velodrome.run.environment import describe_environment
from velodrome.run.folder import (
    RunFolder,
    check_can_write,
    check_name_is_free,
    create_run,
    open_run,
    write_atomically,
    write_json,
)
from velodrome.run.sinks import EventLog, HistoryFile, LiveDisplay, PlainDisplay
from velodrome.train.loop import Scores, fit, raise_if_not_finite
from velodrome.train.optim import make_optimizer
from velodrome.train.schedule import make_schedule, resolve_lr
from velodrome.train.state import Meter, TrainState

# How often the device is asked, within an epoch, whether the loss is still finite.
WATCH_S = 2.0


class Run:
    """A run that has finished, or any run folder: its figures and its model.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def result(self) -> dict[str, object]:
        """The final figures, as in result.json; empty while the run is not complete."""
        return self.folder.read_json(self.folder.result) or {}

    @property
    def history(self) -> list[dict[str, float | None]]:
        """The rows of history.csv, one an epoch."""
        return self.folder.read_history()

    def model(self) -> Classifier:
        """The trained model, ready to predict."""
        return load(self.path)

    def __repr__(self) -> str:
        figures = self.result
        found = f", test accuracy {figures['test_accuracy']:.2%}" if figures else ", not finished"
        return f"Run({str(self.path)!r}{found})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
            for key, value in self.result.items()
            if key != "classes"
        )
        return f"<p>{html.escape(repr(self))}</p><table>{rows}</table>"


@dataclass(frozen=True, eq=False)
class Job:
    """All that a run is made of, checked and ready, before anything is written."""

    config: Config
    device: torch.device
    splits: Splits
    normalisation: Normalisation
    loader: Loader
    state: TrainState

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.config.train.epochs * self.loader.steps_per_epoch


def train(config: Config | None = None, *, progress: bool = True) -> Run:
    """Train, evaluate and report; leaves one run folder.

    Args:
        config: from a recipe; `resnet9()` without one.
        progress: show it on stderr.

    Raises:
        VelodromeError: bad settings or data (nothing was written), or training had to stop (see its type).
    """
    job = prepare(config or resnet9(), progress=progress)
    run = job.config.run
    folder = create_run(run.runs_dir, run.name, job.config.recipe)
    _describe(folder, job)
    return _go_on(folder, job, progress=progress)


def resume(path: Path | str, *, progress: bool = True) -> Run:
    """Go on exactly where a run stopped. A run that is complete is returned as it is.

    Args:
        path: of the run folder.
        progress: show it on stderr.

    Raises:
        VelodromeError: there is no such run, it is damaged, or training had to stop again.
    """
    folder = open_run(Path(path))
    if folder.is_finished:
        return Run(folder)
    environment = folder.read_json(folder.environment) or {}
    threads = environment.get("threads")
    if isinstance(threads, int):
        # The order in which partial sums are added depends on it, and with that the last bits.
        torch.set_num_threads(threads)
    config = read_config(folder)
    # The folder exists, and is where the run belongs, whatever name and place the settings gave it.
    job = prepare(replace(config, run=replace(config.run, name=None)), progress=progress)
    checkpoint = load_checkpoint(folder)
    if checkpoint:
        job.state.restore(checkpoint.tensors, checkpoint.numbers)
    return _go_on(folder, job, progress=progress)


def load(run: Path | str | Run) -> Classifier:
    """The trained model of a run, in evaluation mode on the CPU, ready to predict.

    Raises:
        RunError: the run does not exist, or has no readable weights yet.
    """
    folder = run.folder if isinstance(run, Run) else open_run(Path(run))
    tensors, about = load_weights(folder.model)
    settings = override(Config(), about["model"])
    network = build_model(settings.model, classes=len(about["classes"]), image_size=about["image_size"])
    network.load_state_dict(tensors)
    normalisation = Normalisation(tuple(about["mean"]), tuple(about["std"]))  # type: ignore[arg-type]
    side = about["image_size"]
    return Classifier(network, about["classes"], normalisation, (side, side)).eval()


def report(path: Path | str, output: Path | None = None) -> Path:
    """Write the page of a run from its folder alone; returns where it is.

    Raises:
        RunError: there is no such run, or the page cannot be written.
    """
    return write_report(open_run(Path(path)), output)


def read_config(folder: RunFolder) -> Config:
    """The settings of a run.

    Raises:
        ConfigError: config.yaml is damaged.
    """
    return config_from_file(folder.config)


def config_from_file(path: Path) -> Config:
    """The settings in a YAML file, on top of the recipe that it names.

    Raises:
        ConfigError: the file cannot be read or holds a setting that is wrong.
    """
    values = read_yaml(path)
    recipe = by_name(str(values.pop("recipe", "resnet9")))
    return check(override(recipe(), values, origin=str(path)))


def resolve(config: Config) -> Config:
    """The config with everything that is "auto" or left open decided for this machine.

    Raises:
        ConfigError: settings contradict one another.
        DeviceError: the device or precision is not to be had.
    """
    device = pick_device(config.run.device)
    precision = pick_precision(config.run.precision, device)
    root = config.data.data_root
    if config.data.data != "shapes":
        root = resolve_data_root(root).absolute()
    settled = replace(
        config,
        data=replace(config.data, data_root=root),
        train=resolve_lr(config.train),
        run=replace(config.run, device=device.type, precision=precision),
    )
    return check(settled)


def prepare(config: Config, *, progress: bool = True) -> Job:
    """Load the data, build the network, check that everything fits. Writes nothing but downloaded data.

    Raises:
        VelodromeError: something does not fit, is missing, damaged or cannot be written.
    """
    config = resolve(config)
    check_can_write(config.run.runs_dir)
    check_name_is_free(config.run.runs_dir, config.run.name)
    splits = load_splits(config.data, config.run.seed, progress=progress)
    _check_batch(config.train.batch_size, len(splits.train))
    device = torch.device(config.run.device)
    normalisation = channel_statistics(splits.train.images_u8)
    loader = Loader(
        splits.train, normalisation, config.augment, config.train.batch_size, config.run.seed, device
    )
    network = build_model(
        config.model,
        classes=len(splits.train.classes),
        image_size=splits.train.images_u8.shape[1],
        seed=config.run.seed,
    ).to(device)
    state = TrainState(
        model=network,
        optimizer=make_optimizer(network, config.train),
        scaler=torch.amp.GradScaler(device.type, enabled=config.run.precision == "fp16"),
        meter=Meter(loader.steps_per_epoch, device),
    )
    return Job(config, device, splits, normalisation, loader, state)


def _check_batch(batch_size: int, images: int) -> None:
    if batch_size > images:
        raise ConfigError(
            f"batch_size is {batch_size}, but must not be larger than the training set of {images} images.",
            f"Use --batch-size {images} or smaller.",
        )


def _describe(folder: RunFolder, job: Job) -> None:
    """Write down what is known before training starts."""
    write_atomically(folder.config, to_yaml(job.config))
    write_json(folder.environment, describe_environment(job.device, job.config.run.precision))
    channels_first = (3, *job.splits.train.images_u8.shape[1:3])
    write_json(folder.summary, summarize(job.state.model, channels_first).to_dict())
    folder.checkpoints.mkdir()


def _go_on(folder: RunFolder, job: Job, *, progress: bool) -> Run:
    """Train from wherever the state stands to the end, then evaluate and report."""
    started_s = time.monotonic()
    sinks: list[Sink] = [HistoryFile(folder, job.state.history), EventLog(folder)]
    if progress:
        sinks.append(_display(job.state.meter))

    def tell(event: Event) -> None:
        for sink in sinks:
            sink.handle(event)

    devices = [job.device] if job.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            tell(_started(folder, job))
            _train(folder, job, tell)
        result = _finish(folder, job)
        tell(
            RunFinished(
                float(result["test_accuracy"]),  # type: ignore[arg-type]
                float(result["test_accuracy_tta"]),  # type: ignore[arg-type]
                job.state.clock.elapsed_s(),
                time.monotonic() - started_s,
            )
        )
    finally:
        for sink in sinks:
            sink.close()
    write_report(folder)
    return Run(folder)
