"""The verbs: each puts the parts together and lets them work. Everything above talks to this module only."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from velodrome.budget import fit_to_budget
from velodrome.config import Config, override, search_section
from velodrome.data.sources import check_is_there
from velodrome.device import memory_kept, pick_device, threads
from velodrome.distributed import World, join
from velodrome.early_stopping import check_goes_on
from velodrome.errors import EXIT_PARTLY, ConfigError, RunError, TrainingError
from velodrome.evaluating import Assessment, ask, evaluate_other, evaluate_own, is_own_data
from velodrome.evaluation.gallery import augmented_batch
from velodrome.evaluation.gradcam import DEFAULT_LAYER
from velodrome.explaining import Preview
from velodrome.job import Job, prepare, prepare_together
from velodrome.lr_finding import LRFinding
from velodrome.lr_search import search_before_training, search_job
from velodrome.models.summary import summarize
from velodrome.planning import check_place
from velodrome.predicting import Predictions, predict_files
from velodrome.recipes import speed94
from velodrome.reports import has_final_page, show, show_evaluation
from velodrome.resumption import check_request, restore
from velodrome.run.checkpoint import had_checkpoints, load_weights
from velodrome.run.folder import RunFolder, create_run, open_run
from velodrome.run.lock import locked
from velodrome.run.sinks import duration, search_display
from velodrome.running import carry_on, describe
from velodrome.runs import Run, load, read_config
from velodrome.training.schedule import extend


class Carry(Protocol):
    """Brings a prepared run from wherever it stands to its end, as `running.carry_on` does."""

    def __call__(self, folder: RunFolder, job: Job, *, progress: bool) -> None:
        """Train, and write down what comes of it."""


def train(config: Config | None = None, *, progress: bool = True, resume: str | None = None) -> Run:
    """Train, evaluate and report; leaves one run folder.

    Started by torchrun, all processes train one network together. The first of them writes the folder; the
    others return as soon as training is over.

    Args:
        config: from a recipe; `speed94()` without one.
        progress: show it on stderr.
        resume: "auto" goes on with the run of that name where there is one, and leaves it alone where it has
            finished.

    Raises:
        VelodromeError: bad settings or data (nothing was written), or training had to stop (see its type).
    """
    config = config or speed94()
    _check_resume(config, resume)
    with join(lambda: pick_device(config.run.device)) as world:
        progress = progress and world.is_first
        if resume:
            place = config.run.runs_dir / str(config.run.name)
            if world.first(lambda: os.path.lexists(place)):
                folder = open_run(place)
                world.together(lambda: check_request(config, folder, read_config(folder)))
                return go_on(folder, world, data_root=config.data.data_root, progress=progress)
        return start(config, world, progress=progress)


def _check_resume(config: Config, resume: str | None) -> None:
    if resume not in (None, "auto"):
        raise ConfigError(
            f"resume is {resume!r}, but must be auto.", "To go on with a run that is there: velodrome resume."
        )
    if resume and config.run.name is None:
        raise ConfigError(
            "resume is auto, but no name says which run to go on with.", "Give it one, as in --name my-run."
        )


def start(config: Config, world: World, *, progress: bool, carry: Carry = carry_on) -> Run:
    """Train from the beginning.

    Args:
        config: of the run.
        world: the processes that train together.
        progress: show it on stderr.
        carry: brings the run to its end.

    Raises:
        VelodromeError: as `train`.
    """
    world.first(lambda: check_place(config))
    job = prepare_together(config, world, progress=progress)
    began_s = time.perf_counter()
    found = None
    if job.config.train.lr == "auto":
        with search_display(progress) as tell:
            found, lr_max = search_before_training(job, tell)
        job = job.with_lr(world.from_first(lr_max))
        if progress and found and found.lr_max:
            seconds = duration(found.about["seconds"])
            sys.stderr.write(f"LRMAX {lr_max:g} found in {seconds}, with {found.level} confidence\n")
    if job.config.train.time_budget:
        job = fit_to_budget(job, time.perf_counter() - began_s)
    run = job.config.run

    def fill(draft: RunFolder) -> None:
        describe(draft, job)
        if found:
            found.save(draft.path)

    path = world.first(lambda: create_run(run.runs_dir, run.name, job.config.recipe, fill).path)
    folder = RunFolder(path)
    with _locked(folder, world):
        carry(folder, job, progress=progress)
    return Run(folder)


@contextlib.contextmanager
def _locked(folder: RunFolder, world: World) -> Iterator[None]:
    """Keep every other run out of the folder; the first rank does so for all."""
    with contextlib.ExitStack() as until_the_end:
        world.first(lambda: until_the_end.enter_context(locked(folder)))
        yield


def lr_find(config: Config | None = None, *, progress: bool = True, **search: object) -> LRFinding:
    """Find the learning rate of a recipe by a range test on a throwaway copy.

    Leaves a folder with lr_find.json, lr_find.png and lr_schedule.png, and nothing else.

    Args:
        config: from a recipe; `speed94()` without one. Its learning rates are not looked at.
        progress: show it on stderr.
        search: `steps` of each test (90), `repeats` of it (1), `verify` so many candidates in short runs (0),
            `lr_start` and `lr_end` of the range.

    Raises:
        TrainingError: the test found no learning rate; says why. The folder with the curve is there.
        VelodromeError: bad settings or data; nothing was written.
    """
    plan = search_section(search)
    config = override(config or speed94(), {"lr": "auto", "lr_min": "auto", "lr_final": "auto"})
    check_place(config)
    job = prepare(config, progress=progress)
    with search_display(progress) as tell:
        found = search_job(job, plan, tell)
    run = job.config.run
    folder = create_run(run.runs_dir, run.name, "lr-find", lambda draft: found.save(draft.path))
    if found.lr_max is None:
        raise TrainingError(found.refusal, f"The curve is in {folder.lr_find_figure}.")
    return replace(found, path=folder.path)


def resume(
    path: Path | str,
    *,
    epochs: int | None = None,
    data: Path | str | None = None,
    data_root: Path | str | None = None,
    progress: bool = True,
) -> Run:
    """Go on exactly where a run stopped. A run that is complete is returned as it is.

    On the same machine's CPU the result is bit for bit that of a run that was never interrupted.

    Args:
        path: of the run folder.
        epochs: more than the run has, to train it for longer, be it complete or not. The epochs that it had
            keep their schedule; the new ones have the learning rate with which that ends.
        data: where the run's own images lie now, if they have moved since; they must be the same images.
        data_root: where the data set lies now, if it has moved since.
        progress: show it on stderr.

    Raises:
        VelodromeError: there is no such run, it is damaged, in use by another process, or cannot be given
            these epochs; or training had to stop again.
    """
    folder = open_run(Path(path))
    with join(lambda: pick_device(read_config(folder).run.device)) as world:
        progress = progress and world.is_first
        return go_on(folder, world, epochs=epochs, data=data, data_root=data_root, progress=progress)


def go_on(
    folder: RunFolder,
    world: World,
    *,
    epochs: int | None = None,
    data: Path | str | None = None,
    data_root: Path | str | None = None,
    progress: bool,
    carry: Carry = carry_on,
) -> Run:
    """Train to the end, where there is anything left to do.

    Args:
        folder: of the run.
        world: the processes that train together.
        epochs: as for `resume`.
        data: likewise.
        data_root: likewise.
        progress: show it on stderr.
        carry: brings the run to its end.

    Raises:
        VelodromeError: as `resume`.
    """
    if world.first(lambda: _is_complete(folder, epochs)):
        return _nothing_left(folder, world, progress=progress)
    with _locked(folder, world):
        # By another process, just before this one got the lock?
        if world.first(lambda: _is_complete(folder, epochs)):
            return _nothing_left(folder, world, progress=progress)
        config = read_config(folder)
        places = {"data": data and str(data), "data_root": data_root}
        config = override(config, {key: place for key, place in places.items() if place is not None})
        moved = f"If it has moved: velodrome resume {shlex.quote(str(folder.path))} --data PATH"
        check_is_there(config.data, moved)
        if epochs is not None:
            config = replace(config, train=extend(config.train, epochs))
        follow = world.first(lambda: had_checkpoints(folder))
        job = prepare_together(config, world, weights_follow=follow, progress=progress)
        threads_so_far = world.together(lambda: restore(folder, job))
        if epochs is not None:
            check_goes_on(folder, job.state.history, job.config.train.early_stop)
        world.first(lambda: _open_again(folder, job))
        with threads(threads_so_far):
            carry(folder, job, progress=progress)
    return Run(folder)


def _open_again(folder: RunFolder, job: Job) -> None:
    """Take back that the run has ended, if it has, and write down what is known now."""
    was_finished = folder.is_finished
    try:
        folder.open_again()
        describe(folder, job)
    except RunError as error:
        if was_finished:  # and is no longer, so something has been written
            error.exit_code = EXIT_PARTLY
        raise


def _is_complete(folder: RunFolder, epochs: int | None) -> bool:
    """Whether a run has finished, has all its results, and has as many epochs as are asked for."""
    if not folder.is_finished or not (folder.predictions.exists() and folder.probabilities.exists()):
        return False
    try:
        load_weights(folder.model)
    except RunError:  # the last checkpoint has them too
        return False
    return epochs is None or epochs == read_config(folder).train.epochs


def _nothing_left(folder: RunFolder, world: World, *, progress: bool) -> Run:
    """Say so, and make the page if a kill on the last few metres prevented it."""
    if progress:
        sys.stderr.write(f"{folder.path} has finished already; nothing is left to do.\n")
    if world.is_first and not has_final_page(folder):
        with contextlib.suppress(RunError):  # of a run that may only be read, the page stays as it is
            show(folder)
    return Run(folder)


def evaluate(
    run: Run | Path | str,
    *,
    data: Path | str | None = None,
    data_root: Path | str | None = None,
    layer: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    progress: bool = True,
) -> Assessment:
    """Evaluate a finished run: accuracy, loss, calibration, confusion, per class; every answer; the mistakes.

    On its own test images, everything that depends on the answers is written again, and the page with it. On
    other images the same files go to a folder in `evaluations`, with a page of their own that says how far
    the accuracy moved, for each class too.

    Args:
        run: or the path of its folder.
        data: a data set, as in a config: of one with held-out images these are taken, else all of them; None
            for the run's own.
        data_root: where data sets lie now, if that has changed.
        layer: the stage whose Grad-CAM maps the gallery shows, layer2 without.
        device: "auto", "cpu", "cuda" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16"; that of the run where it is None.
        progress: say on stderr what is going on.

    Raises:
        VelodromeError: there is no such run or data, they do not belong together, or nothing can be written.
    """
    folder = _folder_of(run)
    with locked(folder):
        if not folder.is_finished:
            raise RunError(
                f"Run {folder.path} has not finished, so there is nothing to evaluate yet.",
                f"Go on with: velodrome resume {shlex.quote(str(folder.path))}",
            )
        classifier, config = load(folder.path), read_config(folder)
        if data_root is not None:
            config = override(config, {"data_root": data_root})
        trained = ask(classifier, config, device=device, precision=precision)
        other = None if data is None or is_own_data(config, str(data)) else str(data)
        stage = layer or DEFAULT_LAYER
        if progress:
            sys.stderr.write(f"Evaluating {folder.path} on {other or config.data.data} ...\n")
        try:
            with memory_kept(trained.device):
                if other:
                    found = evaluate_other(
                        folder, config, classifier, trained, other, layer=stage, progress=progress
                    )
                    show_evaluation(folder, found.path)
                else:
                    found = evaluate_own(folder, config, classifier, trained, layer=stage, progress=progress)
            show(folder)
        except RunError as error:  # of writing, which has begun
            error.exit_code = EXIT_PARTLY
            raise
        return found


def predict(
    run: Run | Path | str,
    images: Path | str | Iterable[Path | str],
    *,
    top: int = 3,
    explain: Path | str | None = None,
    layer: str | None = None,
) -> Predictions:
    """The most probable classes of image files, of any size and kind.

    Args:
        run: or the path of its folder.
        images: a file or a folder that is searched for images, or any number of them.
        top: how many classes to name for each.
        explain: folder for a picture of each image with Grad-CAM maps of its first classes.
        layer: the stage whose maps to draw, layer2 without.

    Returns:
        The answers, and the files that cannot be read, each with its reason.

    Raises:
        VelodromeError: there is no such run, the network has no such stage, or `explain` cannot be written.
    """
    return predict_files(
        load(_folder_of(run).path), images, top=top, explain=explain, layer=layer or DEFAULT_LAYER
    )


def _folder_of(run: Run | Path | str) -> RunFolder:
    return run.folder if isinstance(run, Run) else open_run(Path(run))


def preview(config: Config | None = None) -> Preview:
    """The data and the network of a recipe, to look at before training. Writes nothing but downloaded data.

    Args:
        config: from a recipe; `speed94()` without one.

    Raises:
        VelodromeError: bad settings or data.
    """
    job = prepare(config or speed94())
    side = job.splits.side
    return Preview(job.splits, summarize(job.state.model, (3, side, side)), *augmented_batch(job.loader))
