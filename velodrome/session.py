"""The verbs: each puts the parts together and lets them work. Everything above talks to this module only."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from velodrome.config import Config, ModelSection, check, override, read_yaml, to_yaml
from velodrome.data.cifar import cifar_is_present
from velodrome.data.imageset import ImageSet, Normalisation, Splits, channel_statistics
from velodrome.data.loader import Loader
from velodrome.data.sources import load_splits, missing_download, resolve_data_root
from velodrome.device import available_devices, device_kind, matrix_speeds, pick_device, pick_precision
from velodrome.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, ConfigError, InterruptedRunError, TrainingError
from velodrome.evaluation.answers import write_predictions
from velodrome.evaluation.metrics import accuracy, mean_loss
from velodrome.evaluation.predict import Classifier, logits_of
from velodrome.events import (
    CheckpointSaved,
    EpochDone,
    Event,
    RunFinished,
    RunStarted,
    RunStopped,
    Sink,
)
from velodrome.models.build import build_model
from velodrome.models.summary import Summary, summarize
from velodrome.recipes import by_name, resnet9
from velodrome.reporting.page import write_report
from velodrome.run.checkpoint import KEEP, load_checkpoint, load_weights, save_checkpoint, save_weights
from velodrome.run.environment import describe_environment
from velodrome.run.folder import (
    RunFolder,
    check_can_write,
    check_name_is_free,
    create_run,
    free_gib,
    next_run_folder,
    open_run,
    write_atomically,
    write_json,
)
from velodrome.run.sinks import EventLog, HistoryFile, LiveDisplay, PlainDisplay, duration
from velodrome.run.stopping import Every, StopRequest
from velodrome.training.estimate import images_per_s, memory_gib
from velodrome.training.loop import Scores, fit, raise_if_not_finite
from velodrome.training.optim import make_optimizer
from velodrome.training.schedule import make_schedule, resolve_lr
from velodrome.training.state import Meter, TrainState

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
    def result(self) -> dict[str, Any]:
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
        found = f", test accuracy {float(figures['test_accuracy']):.2%}" if figures else ", not finished"
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
        if progress:
            sys.stderr.write(f"{path} has finished already; nothing is left to do.\n")
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
    normalisation = Normalisation(tuple(about["mean"]), tuple(about["std"]))
    side = about["image_size"]
    return Classifier(network, about["classes"], normalisation, (side, side)).eval()


def report(path: Path | str, output: Path | None = None) -> Path:
    """Write the page of a run from its folder alone; returns where it is.

    Raises:
        RunError: there is no such run, or the page cannot be written.
    """
    return write_report(open_run(Path(path)), output)


def plan(config: Config) -> dict[str, object]:
    """What `train(config)` would do, without doing it: data, steps, schedule, time, memory, disk.

    Reads the data, but neither downloads nor writes anything; where the data set would have to be
    downloaded, says so and plans with its known size.

    Raises:
        VelodromeError: what `train` would refuse.
    """
    config = resolve(config)
    if download := missing_download(config.data):
        return {"data": f"{config.data.data} would be downloaded to {config.data.data_root}", **download}
    job = prepare(config, progress=False)
    settings, side = job.config.train, job.splits.train.images_u8.shape[1]
    lr_at, last = make_schedule(settings, job.total_steps), job.total_steps - 1
    peak = max(range(job.total_steps), key=lr_at)
    totals = summarize(job.state.model, (3, side, side)).totals
    speed = images_per_s(job.state.model, (3, side, side), precision=job.config.run.precision)
    images = len(job.splits.train) * settings.epochs
    memory = memory_gib(
        params=totals.params,
        activation_mb=totals.activations_mb,
        batch_size=settings.batch_size,
        precision=job.config.run.precision,
        image_bytes=job.splits.train.images_u8.nbytes + job.splits.test.images_u8.nbytes,
    )
    return {
        "recipe": job.config.recipe,
        "data": _describe_data(job.splits),
        "model": f"{job.config.model.model}, {totals.params:,} parameters",
        "device": f"{job.device.type} in {job.config.run.precision}",
        "steps": job.total_steps,
        "epochs": settings.epochs,
        "steps_per_epoch": job.loader.steps_per_epoch,
        "batch_size": settings.batch_size,
        "schedule": f"{settings.schedule}: {lr_at(0):.4g} at step 0, {lr_at(peak):.4g} at step {peak}, "
        f"{lr_at(last):.4g} at step {last}",
        "images_per_s": round(speed),
        "training_time": duration(images / speed),
        "training_s": round(images / speed, 1),
        "memory_gib": round(memory, 2),
        # Weights and two checkpoints of weights, their optimizer state included.
        "disk_mb": round(4 * totals.params * (1 + KEEP * 3) / 1e6),
        "run_folder": str(next_run_folder(config.run.runs_dir, config.run.name, config.recipe)),
    }


def examine(config: Config) -> dict[str, object]:
    """What this machine can do, and what a run with `config` would use of it."""
    device = pick_device(config.run.device)
    precision = pick_precision(config.run.precision, device)
    environment = describe_environment(device, precision)
    wanted = ("velodrome", "python", "torch", "numpy", "platform", "cpu", "cores", "memory_gib")
    root, runs = resolve_data_root(config.data.data_root), config.run.runs_dir
    return {
        **{key: environment[key] for key in wanted},
        "devices": ", ".join(available_devices()),
        "velodrome_uses": {
            "device": device.type,
            "precision": precision,
            "threads": environment["threads"],
        },
        "matrix_product_gflops": {name: round(speed) for name, speed in matrix_speeds(device).items()},
        "compiler": shutil.which("cc") or shutil.which("cl") or "none, so --compile will not work",
        "data_root": str(root),
        "data_there": ", ".join(name for name in ("cifar10", "cifar100") if cifar_is_present(name, root))
        or "none (shapes needs none)",
        "runs_dir": f"{runs} ({free_gib(runs):.1f} GiB free)",
    }


def summary_of(model: ModelSection, classes: int) -> Summary:
    """The layers of a network by name, for images of 32x32."""
    side = 32
    return summarize(build_model(model, classes=classes, image_size=side), (3, side, side))


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
        run=replace(config.run, device=device_kind(device), precision=precision),
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
        tell(_finish(folder, job))
    finally:
        for sink in sinks:
            sink.close()
    write_report(folder)
    return Run(folder)


def _train(folder: RunFolder, job: Job, tell: Callable[[Event], None]) -> None:
    """Train to the last step; a checkpoint after each epoch, when one is due, and before stopping early."""
    state, config = job.state, job.config
    lr_at = make_schedule(config.train, job.total_steps)
    events = fit(
        state,
        job.loader,
        lr_at,
        config.train,
        precision=config.run.precision,
        seed=config.run.seed,
        score=lambda network: _scores(network, job),
        compiled=config.run.compile,
    )
    every_s = math.inf if config.run.checkpoint_every is None else 60 * config.run.checkpoint_every
    watch, checkpoint_due = Every(WATCH_S), Every(every_s)
    with StopRequest() as stop:
        try:
            for event in events:
                tell(event)
                if watch.is_due():
                    raise_if_not_finite(state, lr_at)
                # Asked only after the network is known to be good, so that no checkpoint holds a broken one.
                if isinstance(event, EpochDone) or checkpoint_due.is_due() or stop.signal:
                    raise_if_not_finite(state, lr_at)
                    _save(folder, state, tell)
                if stop.signal and state.step < job.total_steps:
                    tell(RunStopped(state.step, signal.Signals(stop.signal).name))
                    raise _interrupted(folder, state.step, job.total_steps, stop.signal)
        except TrainingError:
            tell(RunStopped(state.step, "the loss is not finite"))
            raise


def _save(folder: RunFolder, state: TrainState, tell: Callable[[Event], None]) -> None:
    name = save_checkpoint(folder, state.step, state.tensors(), state.numbers())
    tell(CheckpointSaved(name, state.step))


def _interrupted(folder: RunFolder, step: int, total: int, signal_number: int) -> InterruptedRunError:
    code = EXIT_INTERRUPTED if signal_number == signal.SIGINT else EXIT_RESUMABLE
    return InterruptedRunError(
        f"Stopped at step {step} of {total}; everything up to there is saved.",
        f"Go on with: velodrome resume {shlex.quote(str(folder.path))}",
        code,
    )


def _finish(folder: RunFolder, job: Job) -> RunFinished:
    """Score the trained network on every test image and write the results; result.json comes last."""
    state, config, test = job.state, job.config, job.splits.test
    answers = functools.partial(
        logits_of,
        state.model,
        test,
        job.normalisation,
        device=job.device,
        precision=config.run.precision,
    )
    logits, logits_tta = answers(), answers(flip_too=True)
    labels = torch.from_numpy(test.labels)
    write_predictions(folder, test, logits)
    save_weights(folder.model, state.tensors()["model"], _about_model(job))
    last, train_s = state.history[-1], state.clock.elapsed_s()
    result = {
        "test_accuracy": accuracy(logits, labels),
        "test_accuracy_tta": accuracy(logits_tta, labels),
        "test_loss": mean_loss(logits, labels),
        "train_accuracy": last.train_acc,
        "train_loss": last.train_loss,
        "val_accuracy": last.val_acc,
        "val_loss": last.val_loss,
        "train_seconds": train_s,
        "epochs": state.epoch,
        "params": _count_parameters(state.model),
        "images_per_s": state.epoch * len(job.splits.train) / train_s,
        "device": job.device.type,
        "precision": config.run.precision,
        "seed": config.run.seed,
        "data": config.data.data,
        "recipe": config.recipe,
        "classes": list(test.classes),
    }
    write_json(folder.result, result)
    return RunFinished(accuracy(logits, labels), accuracy(logits_tta, labels), train_s)


def _about_model(job: Job) -> dict[str, object]:
    """What a reader of model.safetensors needs to know; equal for equal training."""
    return {
        "classes": list(job.splits.train.classes),
        "mean": list(job.normalisation.mean),
        "std": list(job.normalisation.std),
        "model": dataclasses.asdict(job.config.model),
        "image_size": job.splits.train.images_u8.shape[1],
    }


def _scores(network: nn.Module, job: Job) -> Scores:
    """Loss and accuracy on the validation images, if any, and on the test images."""
    val_loss, val_acc = _score(network, job, job.splits.val) if job.splits.val else (None, None)
    test_loss, test_acc = _score(network, job, job.splits.test)
    return Scores(val_loss, val_acc, test_loss, test_acc)


def _score(network: nn.Module, job: Job, images: ImageSet) -> tuple[float, float]:
    logits = logits_of(
        network, images, job.normalisation, device=job.device, precision=job.config.run.precision
    )
    labels = torch.from_numpy(images.labels)
    return mean_loss(logits, labels), accuracy(logits, labels)


def _describe_data(splits: Splits) -> str:
    height, width = splits.train.images_u8.shape[1:3]
    held_out = f"{len(splits.val):,} validation, " if splits.val else ""
    return (
        f"{splits.name}: {len(splits.train):,} training, {held_out}{len(splits.test):,} test images "
        f"of {height}x{width}, {len(splits.train.classes)} classes"
    )


def _started(folder: RunFolder, job: Job) -> RunStarted:
    return RunStarted(
        run=str(folder.path),
        recipe=job.config.recipe,
        data=job.config.data.data,
        device=job.device.type,
        precision=job.config.run.precision,
        params=_count_parameters(job.state.model),
        epochs=job.config.train.epochs,
        steps_per_epoch=job.loader.steps_per_epoch,
        train_images=len(job.splits.train),
        step=job.state.step,
    )


def _count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _display(meter: Meter) -> Sink:
    """A live bar on a terminal, plain lines elsewhere."""

    def read() -> tuple[float, float]:
        figures = meter.read()
        return figures.loss, figures.accuracy

    return LiveDisplay(read) if sys.stderr.isatty() else PlainDisplay(read)
