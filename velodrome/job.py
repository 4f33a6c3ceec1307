"""A run from settings to a finished folder: prepared whole, then carried to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from velodrome.config import Config, check, settings_of_training, to_yaml
from velodrome.data.imageset import ImageSet, Normalisation, Splits, channel_statistics
from velodrome.data.loader import Loader
from velodrome.data.sources import load_splits, resolve_data_root
from velodrome.device import (
    check_can_compile,
    device_kind,
    memory_kept,
    pick_device,
    pick_precision,
)
from velodrome.errors import (
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_RESUMABLE,
    ConfigError,
    InterruptedRunError,
    RunError,
    TrainingError,
    VelodromeWarning,
)
from velodrome.evaluation.gallery import write_samples
from velodrome.evaluation.metrics import accuracy, mean_loss
from velodrome.evaluation.predict import logits_of
from velodrome.evaluation.results import Trained, write_results
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
from velodrome.models.summary import summarize
from velodrome.reports import show
from velodrome.run.checkpoint import save_checkpoint, save_weights
from velodrome.run.environment import bits_depend_on, describe_environment
from velodrome.run.folder import RunFolder, write_atomically, write_json
from velodrome.run.sinks import EventLog, HistoryFile, LiveDisplay, PlainDisplay
from velodrome.run.stopping import Every, StopRequest
from velodrome.training.loop import Scores, fit, raise_if_not_finite
from velodrome.training.optim import make_optimizer
from velodrome.training.schedule import make_schedule, resolve_lr
from velodrome.training.state import Meter, TrainState

# How often the device is asked, within an epoch, whether the loss is still finite.
WATCH_S = 2.0
# The page is made again after an epoch, unless that was less than this ago.
PAGE_S = 5.0

Tell = Callable[[Event], None]


@dataclass(frozen=True, eq=False)
class Job:
    """All that a run is made of, checked and ready, before anything is written."""

    config: Config
    device: torch.device
    splits: Splits
    normalisation: Normalisation
    loader: Loader
    state: TrainState

    def with_lr(self, lr: float) -> Job:
        """The same job with LRMAX where it was "auto", and what follows from it.

        Raises:
            ConfigError: another setting is at odds with it.
        """
        return replace(self, config=check(replace(self.config, train=resolve_lr(self.config.train, lr))))

    def throwaway(self, seed: int) -> Job:
        """A job of its own, at its start, on the same images, to be trained and forgotten."""
        config = replace(self.config, run=replace(self.config.run, seed=seed))
        loader = self.loader.with_seed(seed)
        return replace(self, config=config, loader=loader, state=_new_state(config, self.splits, loader))

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.config.train.epochs * self.loader.steps_per_epoch


def resolve(config: Config) -> Config:
    """The config with all that is "auto" or left open decided for this machine, but for the learning rate.

    Raises:
        ConfigError: settings contradict one another.
        DeviceError: the device, the precision or compilation is not to be had.
    """
    device = pick_device(config.run.device)
    precision = pick_precision(config.run.precision, device)
    if config.run.compile:
        check_can_compile(device)
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


def prepare(config: Config, splits: Splits | None = None, *, progress: bool = True) -> Job:
    """Load the data, build the network, check that everything fits. Writes nothing but downloaded data.

    Args:
        config: with or without "auto" in it.
        splits: images to use in place of those that the config names.
        progress: show downloads on stderr.

    Raises:
        VelodromeError: something does not fit, is missing, damaged or cannot be written.
    """
    config = resolve(config)
    if splits is None:
        splits = load_splits(config.data, config.run.seed, progress=progress)
    _check_batch(config.train.batch_size, len(splits.train))
    device = torch.device(config.run.device)
    normalisation = channel_statistics(splits.train.images_u8)
    loader = Loader(
        splits.train, normalisation, config.augment, config.train.batch_size, config.run.seed, device
    )
    return Job(config, device, splits, normalisation, loader, _new_state(config, splits, loader))


def _new_state(config: Config, splits: Splits, loader: Loader) -> TrainState:
    """A new network with its optimizer, before the first step."""
    device = loader.images_u8.device
    network = build_model(
        config.model,
        classes=len(splits.train.classes),
        image_size=splits.train.images_u8.shape[1],
        seed=config.run.seed,
    ).to(device)
    return TrainState(
        model=network,
        optimizer=make_optimizer(network, config.train),
        scaler=torch.amp.GradScaler(device.type, enabled=config.run.precision == "fp16"),
        meter=Meter(loader.steps_per_epoch, device),
    )


def _check_batch(batch_size: int, images: int) -> None:
    if batch_size > images:
        raise ConfigError(
            f"batch_size is {batch_size}, but must not be larger than the training set of {images} images.",
            f"Use --batch-size {images} or smaller.",
        )


def describe(folder: RunFolder, job: Job) -> None:
    """Write down what is known before training starts or goes on."""
    # The folder itself is the name; without it in the settings they can be used for another run.
    nameless = replace(job.config, run=replace(job.config.run, name=None))
    write_atomically(folder.config, to_yaml(nameless))
    if not folder.recorded_environment():  # it tells how the run began
        write_json(folder.environment, describe_environment(job.device, job.config.run.precision))
    channels_first = (3, *job.splits.train.images_u8.shape[1:3])
    write_json(folder.summary, summarize(job.state.model, channels_first).to_dict())
    folder.checkpoints.mkdir(exist_ok=True)


def carry_on(folder: RunFolder, job: Job, *, progress: bool) -> None:
    """Train from wherever the state stands to the end, then evaluate and report.

    Args:
        folder: of the run.
        job: prepared; its state is changed in place.
        progress: show it on stderr.

    Raises:
        InterruptedRunError: a signal asked for a stop; the run can be resumed.
        TrainingError: the loss is not finite.
        RunError: the run folder cannot be written; what was written before can be resumed.
    """
    with StopRequest() as stop, memory_kept(job.device):
        try:
            with _listening(folder, job, progress=progress) as tell:
                tell(_started(folder, job))
                with contextlib.suppress(RunError):  # pictures; what matters says so if the disk is full
                    write_samples(folder, job.splits.train, job.loader)
                _show_live(folder)
                # Dropout draws from the global generators; the caller gets them back as they were.
                with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
                    _train(folder, job, tell, stop)
                tell(_finish(folder, job))
            show(folder)
        except RunError as error:
            error.exit_code = EXIT_PARTLY
            raise
        except (InterruptedRunError, TrainingError):
            with contextlib.suppress(RunError):  # why training ended is what matters now
                show(folder)
            raise
        except KeyboardInterrupt as error:  # the second Ctrl-C
            raise _interrupted(folder, "Stopped at once; the last checkpoint is kept.") from error


def _show_live(folder: RunFolder) -> None:
    """Show the run as it stands. A page that cannot be made is no reason to lose the training."""
    try:
        show(folder, live=True)
    except RunError:  # the next checkpoint says so if the disk is full
        pass
    except Exception as error:
        warnings.warn(f"There is no page of the run yet: {error}", VelodromeWarning, stacklevel=2)


@contextlib.contextmanager
def _listening(folder: RunFolder, job: Job, *, progress: bool) -> Iterator[Tell]:
    """A function that passes an event on to everything that listens; all are closed at the end."""
    with contextlib.ExitStack() as open_sinks:
        sinks: list[Sink] = []

        def add(sink: Sink) -> None:
            sinks.append(sink)
            open_sinks.callback(sink.close)

        def tell(event: Event) -> None:
            for sink in sinks:
                sink.handle(event)

        add(HistoryFile(folder, job.state.history))
        add(EventLog(folder))
        if progress:
            add(_display(job.state.meter))
        yield tell


def _train(folder: RunFolder, job: Job, tell: Tell, stop: StopRequest) -> None:
    """Train to the last step; a checkpoint after each epoch, when one is due, and before stopping early."""
    state, config = job.state, job.config
    lr_at = make_schedule(config.train, job.loader.steps_per_epoch)
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
    watch, checkpoint_due, page_due = Every(WATCH_S), Every(every_s), Every(PAGE_S)
    try:
        for event in events:
            tell(event)
            if watch.is_due():
                raise_if_not_finite(state, lr_at)
            if state.meter.done == job.loader.steps_per_epoch:
                continue  # the end of the epoch comes next, with a checkpoint of its own
            if isinstance(event, EpochDone) or checkpoint_due.is_due() or stop.signal:
                # Asked first, so that no checkpoint holds a broken network.
                raise_if_not_finite(state, lr_at)
                _save(folder, job, tell)
                if isinstance(event, EpochDone) and page_due.is_due():
                    _show_live(folder)
            if stop.signal and state.step < job.total_steps:
                tell(RunStopped(state.step, signal.Signals(stop.signal).name))
                where = f"Stopped at step {state.step} of {job.total_steps}; all up to there is saved."
                raise _interrupted(folder, where, stop.signal)
    except TrainingError as error:
        tell(RunStopped(state.step, error.problem))
        raise


def _save(folder: RunFolder, job: Job, tell: Tell) -> None:
    state = job.state
    settings = settings_of_training(job.config)
    numbers = {**state.numbers(), "seed": job.config.run.seed, "settings": settings, **bits_depend_on()}
    tell(CheckpointSaved(save_checkpoint(folder, state.step, state.tensors(), numbers), state.step))


def _interrupted(folder: RunFolder, where: str, number: int = signal.SIGINT) -> InterruptedRunError:
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_RESUMABLE
    return InterruptedRunError(where, f"Go on with: velodrome resume {shlex.quote(str(folder.path))}", code)


def _finish(folder: RunFolder, job: Job) -> RunFinished:
    """Score the trained network on every test image and write the results; result.json comes last."""
    state, config = job.state, job.config
    trained = Trained(state.model, job.normalisation, job.device, config.run.precision)
    save_weights(folder.model, state.tensors()["model"], _about_model(job))
    test, train = job.splits.test, job.splits.train
    figures = write_results(folder, trained, test, data=config.data.data, train=train)
    last = state.history[-1]
    assert figures.accuracy_tta is not None, "results have it"
    finished = RunFinished(figures.accuracy, figures.accuracy_tta, state.clock.elapsed_s())
    result = {
        "test_accuracy": finished.test_accuracy,
        "test_accuracy_tta": finished.test_accuracy_tta,
        "test_loss": figures.nll,
        "train_accuracy": last.train_acc,
        "train_loss": last.train_loss,
        "val_accuracy": last.val_acc,
        "val_loss": last.val_loss,
        "train_seconds": finished.train_seconds,
        "epochs": state.epoch,
        "params": _count_parameters(state.model),
        "images_per_s": state.epoch * len(job.splits.train) / finished.train_seconds,
        "device": job.device.type,
        "precision": config.run.precision,
        "seed": config.run.seed,
        "data": config.data.data,
        "recipe": config.recipe,
        "classes": list(figures.classes),
    }
    write_json(folder.result, result)
    return finished


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
    val_loss, val_acc = score_on(network, job, job.splits.val) if job.splits.val else (None, None)
    test_loss, test_acc = score_on(network, job, job.splits.test)
    return Scores(val_loss, val_acc, test_loss, test_acc)


def score_on(network: nn.Module, job: Job, images: ImageSet) -> tuple[float | None, float]:
    """Mean loss, None where it is not finite, and accuracy of a network on some of the job's images."""
    logits = logits_of(
        network, images, job.normalisation, device=job.device, precision=job.config.run.precision
    )
    labels = torch.from_numpy(images.labels)
    return mean_loss(logits, labels), accuracy(logits, labels)


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
