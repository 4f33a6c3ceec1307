"""A prepared job carried to its end: training with checkpoints and a live page, then results and report."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import torch
from torch import nn

from velodrome.budget import Mark, replan
from velodrome.config import settings_of_training, to_yaml
from velodrome.device import convolutions_tuned, memory_kept
from velodrome.early_stopping import keep_if_best, stalled, take_best
from velodrome.errors import (
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_RESUMABLE,
    InterruptedRunError,
    RunError,
    TrainingError,
    VelodromeWarning,
)
from velodrome.evaluation.gallery import write_samples
from velodrome.evaluation.results import Trained, write_results
from velodrome.events import (
    CheckpointSaved,
    EpochDone,
    Event,
    Replanned,
    RunFinished,
    RunStarted,
    RunStopped,
    Sink,
    StepDone,
    WarmedUp,
)
from velodrome.job import Job, score_on, train_pflop
from velodrome.models.summary import summarize
from velodrome.reports import show
from velodrome.run.checkpoint import save_checkpoint, save_weights
from velodrome.run.environment import bits_depend_on, describe_environment
from velodrome.run.folder import RunFolder, write_atomically, write_json
from velodrome.run.sinks import EventLog, HistoryFile, LiveDisplay, PlainDisplay
from velodrome.run.stopping import Agenda, Every, StopRequest
from velodrome.training.loop import Scores, fit, raise_if_not_finite
from velodrome.training.schedule import make_schedule
from velodrome.training.state import Meter

# How often the device is asked, within an epoch, whether the loss is still finite.
WATCH_S = 2.0
# The page is made again after an epoch, unless that was less than this ago.
PAGE_S = 5.0

Tell = Callable[[Event], None]


def describe(folder: RunFolder, job: Job) -> None:
    """Write down what is known before training starts or goes on."""
    # The folder itself is the name; without it in the settings they can be used for another run.
    nameless = replace(job.config, run=replace(job.config.run, name=None))
    write_atomically(folder.config, to_yaml(nameless))
    if not folder.recorded_environment():  # it tells how the run began
        environment = describe_environment(job.device, job.config.run.precision)
        write_json(folder.environment, {**environment, "ranks": job.world.size})
    side = job.splits.side
    write_json(folder.summary, summarize(job.state.model, (3, side, side)).to_dict())
    if job.splits.found is not None:
        write_json(folder.data_check, job.splits.found)
    folder.checkpoints.mkdir(exist_ok=True)


def carry_on(folder: RunFolder, job: Job, *, progress: bool) -> None:
    """Train from wherever the state stands to the end, then evaluate and report.

    Of several ranks only the first has anything to do with the folder. The others are done with the training.

    Args:
        folder: of the run.
        job: prepared; its state is changed in place.
        progress: show it on stderr.

    Raises:
        InterruptedRunError: a signal asked for a stop; the run can be resumed.
        TrainingError: the loss is not finite, or another rank has gone.
        RunError: the run folder cannot be written; what was written before can be resumed.
    """
    for _ in epochs_of(folder, job, progress=progress):
        pass


def epochs_of(
    folder: RunFolder, job: Job, *, progress: bool, results: bool = True, stop: StopRequest | None = None
) -> Generator[EpochDone]:
    """What `carry_on` does, for somebody who watches it: to give the run up, stop asking for the next epoch.

    Args:
        folder: of the run.
        job: prepared; its state is changed in place.
        progress: show it on stderr.
        results: evaluate and report at the end; else the test images are not looked at.
        stop: notes the signals that ask for a stop, for whoever wants to know of those that came too late.

    Yields:
        Each epoch, once it is trained, scored, and in a checkpoint.

    Raises:
        VelodromeError: as `carry_on`.
    """
    with stop or StopRequest() as signals, memory_kept(job.device):
        if not job.world.is_first:
            yield from _train(folder, job, lambda _event: None, signals)
            return
        try:
            with _listening(folder, job, progress=progress) as tell:
                tell(_started(folder, job))
                with contextlib.suppress(RunError):  # pictures; what matters says so if the disk is full
                    write_samples(folder, job.splits.train, job.loader)
                _show_live(folder)
                warm_up_s = yield from _train(folder, job, tell, signals)
                if not results:
                    return
                tell(_finish(folder, job, warm_up_s))
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


def _train(folder: RunFolder, job: Job, tell: Tell, stop: StopRequest) -> Generator[EpochDone, None, float]:
    """Train to the last step, and tell if that cannot be.

    Returns:
        Seconds that it took to warm up before the first step, which are no part of training.
    """
    # Dropout draws from the global generators; the caller gets them back as they were.
    own_rng = torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else [])
    try:
        with own_rng, convolutions_tuned(job.device), job.world.watched():
            return (yield from _take_all_steps(folder, job, tell, stop))
    except TrainingError as error:
        tell(RunStopped(job.state.step, error.problem))
        raise


def _take_all_steps(
    folder: RunFolder, job: Job, tell: Tell, stop: StopRequest
) -> Generator[EpochDone, None, float]:
    """Train to the last step, of which there may be more or fewer in the end, where the time is given.

    Returns:
        As `_train`.
    """
    if stalled(job.state.history, job.config.train.early_stop):  # before a kill took what comes after it
        return 0.0
    warm_ups_s: list[float] = []
    marks = [Mark(time.perf_counter(), job.state.step)]
    plan: Job | None = job
    while plan is not None:
        plan = yield from _take_steps(folder, plan, tell, stop, marks, warm_ups_s)
    return sum(warm_ups_s)


def _take_steps(
    folder: RunFolder, job: Job, tell: Tell, stop: StopRequest, marks: list[Mark], warm_ups_s: list[float]
) -> Generator[EpochDone, None, Job | None]:
    """Train to the last step; a checkpoint after each epoch, when one is due, and before stopping early.

    All ranks go through this alike: what they do between two steps is what they agreed on.

    Args:
        folder: of the run.
        job: in training.
        tell: passes an event on.
        stop: whether a signal asks for it.
        marks: the start of training and the ends of epochs so far; is added to.
        warm_ups_s: seconds of each time that warming up took; is added to.

    Returns:
        The job to go on with, where it is another from here on.
    """
    state, config = job.state, job.config
    lr_at = make_schedule(config.train, job.loader.steps_per_epoch)
    events = fit(
        state,
        job.loader,
        lr_at,
        config.train,
        precision=config.run.precision,
        seed=config.run.seed,
        score=lambda network: _scores_if_due(network, job),
        compiled=config.run.compile,
    )
    every_s = math.inf if config.run.checkpoint_every is None else 60 * config.run.checkpoint_every
    agenda, page_due = Agenda(job.world, stop, look_s=WATCH_S, save_s=every_s), Every(PAGE_S)
    with contextlib.closing(events):  # whatever ends it, a step and the ranks that it holds are given up
        for event in events:
            tell(event)
            if isinstance(event, WarmedUp):
                warm_ups_s.append(event.seconds)
            ends_epoch = state.meter.done == job.loader.steps_per_epoch or state.step == job.total_steps
            if isinstance(event, StepDone) and ends_epoch:
                continue  # the end of the epoch comes next, with a look and a checkpoint of its own
            due = agenda.after_step()
            if isinstance(event, EpochDone) or due.save or due.signal:
                # Asked first, so that no checkpoint holds a broken network.
                raise_if_not_finite(state, lr_at)
                if isinstance(event, EpochDone) and config.train.early_stop and job.world.is_first:
                    keep_if_best(folder, state)
                _save(folder, job, tell)
                if isinstance(event, EpochDone) and job.world.is_first and page_due.is_due():
                    _show_live(folder)
            elif due.look:
                raise_if_not_finite(state, lr_at)
            if isinstance(event, EpochDone):
                yield event
                if stopped := stalled(state.history, config.train.early_stop):
                    tell(stopped)
                    break
            if due.signal and state.step < job.total_steps:
                tell(RunStopped(state.step, signal.Signals(due.signal).name))
                job.world.wait()  # whoever starts the ranks may end all as soon as one has ended
                where = f"Stopped at step {state.step} of {job.total_steps}; all up to there is saved."
                raise _interrupted(folder, where, due.signal)
            if isinstance(event, EpochDone):
                now_s = time.perf_counter()
                marks.append(Mark(now_s - sum(warm_ups_s), state.step))
                if other := replan(job, marks, now_s=now_s, again_s=sum(warm_ups_s[-1:])):
                    # First of all in the config: the checkpoint that is there can be gone on with by both.
                    job.world.first(lambda: describe(folder, other))
                    train = other.config.train
                    tell(Replanned(state.step, other.total_steps, train.epochs))
                    return other
    return None


def _save(folder: RunFolder, job: Job, tell: Tell) -> None:
    """Save a checkpoint, which is the same whichever rank would write it."""
    state = job.state
    job.world.average_buffers(state.model)
    if not job.world.is_first:
        return
    settings = settings_of_training(job.config)
    numbers = {
        **state.numbers(),
        "seed": job.config.run.seed,
        "settings": settings,
        "images": job.splits.fingerprint,
        "ranks": job.world.size,
        **bits_depend_on(),
    }
    tell(CheckpointSaved(save_checkpoint(folder, state.step, state.tensors(), numbers), state.step))


def _interrupted(folder: RunFolder, where: str, number: int = signal.SIGINT) -> InterruptedRunError:
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_RESUMABLE
    return InterruptedRunError(where, f"Go on with: velodrome resume {shlex.quote(str(folder.path))}", code)


def _finish(folder: RunFolder, job: Job, warm_up_s: float) -> RunFinished:
    """Score the trained network on every test image and write the results; result.json comes last."""
    state, config = job.state, job.config
    last = take_best(folder, state) if config.train.early_stop else state.history[-1]
    trained = Trained(state.model, job.normalisation, job.device, config.run.precision, config.evaluate.tta)
    save_weights(folder.model, state.tensors()["model"], _about_model(job))
    test, train = job.splits.test, job.splits.train
    results = write_results(folder, trained, test, data=job.splits.name, train=train)
    figures = results.figures
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
        "prepare_seconds": job.prepare_s,
        "warm_up_seconds": warm_up_s,
        "train_seconds": finished.train_seconds,
        "predict_seconds": results.predict_s,
        "train_pflop": train_pflop(job, state.step),
        "epochs": state.epoch,
        "weights_of_epoch": last.epoch,
        "params": _count_parameters(state.model),
        "images_per_s": job.loader.images_in(state.step) / finished.train_seconds,
        "device": job.device.type,
        "precision": config.run.precision,
        "seed": config.run.seed,
        "data": job.splits.name,
        "data_checksum": job.splits.fingerprint or None,
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
        "model": {**dataclasses.asdict(job.config.model), "init": None},  # where the weights came from
        "image_size": job.splits.side,
        "image_fit": job.config.data.image_fit,
    }


def _scores_if_due(network: nn.Module, job: Job) -> Scores:
    """Loss and accuracy on the validation images, if any, and on the test images, as often as is wanted."""
    epoch, every = job.state.epoch + 1, job.config.evaluate.score_every
    is_due = every > 0 and (epoch % every == 0 or epoch == job.config.train.epochs)
    # The results have the test images' figures anyway; nothing else has those of the validation images.
    with_val = job.splits.val is not None and (is_due or epoch == job.config.train.epochs)
    nothing = (None, None)
    val = score_on(network, job, job.splits.val) if with_val and job.splits.val else nothing
    with_test = is_due and job.config.evaluate.score_test == "often"
    test = score_on(network, job, job.splits.test) if with_test else nothing
    return job.world.from_first(Scores(*val, *test))


def _started(folder: RunFolder, job: Job) -> RunStarted:
    return RunStarted(
        run=str(folder.path),
        recipe=job.config.recipe,
        data=job.splits.name,
        device=job.device.type,
        precision=job.config.run.precision,
        params=_count_parameters(job.state.model),
        epochs=job.config.train.epochs,
        steps_per_epoch=job.loader.steps_per_epoch,
        train_images=len(job.splits.train),
        step=job.state.step,
        steps=job.config.train.steps,
    )


def _count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _display(meter: Meter) -> Sink:
    """A live bar on a terminal, plain lines elsewhere."""

    def read() -> tuple[float, float]:
        figures = meter.read()
        return figures.loss, figures.accuracy

    return LiveDisplay(read) if sys.stderr.isatty() else PlainDisplay(read)
