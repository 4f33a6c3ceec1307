"""The verbs: each puts the parts together and lets them work. Everything above talks to this module only."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from velodrome.budget import fit_to_budget
from velodrome.config import USUAL_LR, Config, ModelSection, override, search_section
from velodrome.data.cifar import cifar_is_present
from velodrome.data.imageset import Splits
from velodrome.data.sources import blank_splits, fetch_first, resolve_data_root
from velodrome.device import (
    available_devices,
    find_compiler,
    matrix_speeds,
    memory_kept,
    pick_device,
    pick_precision,
    threads,
)
from velodrome.errors import EXIT_PARTLY, ConfigError, RunError, TrainingError
from velodrome.evaluating import Assessment, ask, evaluate_other, evaluate_own
from velodrome.evaluation.gallery import augmented_batch
from velodrome.evaluation.gradcam import DEFAULT_LAYER
from velodrome.explaining import Preview
from velodrome.job import prepare, resolve, train_pflop
from velodrome.lr_finding import LRFinding
from velodrome.lr_search import search_before_training, search_job
from velodrome.models.build import build_model
from velodrome.models.summary import Summary, summarize
from velodrome.predicting import Predictions, predict_files
from velodrome.recipes import speed94
from velodrome.reports import has_final_page, show
from velodrome.resumption import restore
from velodrome.run.checkpoint import KEEP, load_weights
from velodrome.run.environment import describe_environment
from velodrome.run.folder import (
    RunFolder,
    check_can_write,
    check_name_is_free,
    create_run,
    free_gib,
    next_run_folder,
    open_run,
)
from velodrome.run.lock import locked
from velodrome.run.sinks import duration, search_display
from velodrome.running import carry_on, describe
from velodrome.runs import Run, load, read_config
from velodrome.training.estimate import images_per_s, memory_gib
from velodrome.training.optim import STATE_TENSORS
from velodrome.training.schedule import extend, make_schedule


def train(config: Config | None = None, *, progress: bool = True) -> Run:
    """Train, evaluate and report; leaves one run folder.

    Args:
        config: from a recipe; `speed94()` without one.
        progress: show it on stderr.

    Raises:
        VelodromeError: bad settings or data (nothing was written), or training had to stop (see its type).
    """
    config = config or speed94()
    _check_place(config)
    job = prepare(config, progress=progress)
    began_s = time.perf_counter()
    found = None
    if job.config.train.lr == "auto":
        with search_display(progress) as tell:
            found, lr_max = search_before_training(job, tell)
        job = job.with_lr(lr_max)
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

    folder = create_run(run.runs_dir, run.name, job.config.recipe, fill)
    with locked(folder):
        carry_on(folder, job, progress=progress)
    return Run(folder)


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
    _check_place(config)
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
    data_root: Path | str | None = None,
    progress: bool = True,
) -> Run:
    """Go on exactly where a run stopped. A run that is complete is returned as it is.

    On the same machine's CPU the result is bit for bit that of a run that was never interrupted.

    Args:
        path: of the run folder.
        epochs: more than the run has, to train it for longer, be it complete or not. The epochs that it had
            keep their schedule; the new ones have the learning rate with which that ends.
        data_root: where the data set lies now, if it has moved since.
        progress: show it on stderr.

    Raises:
        VelodromeError: there is no such run, it is damaged, in use by another process, or cannot be given
            these epochs; or training had to stop again.
    """
    folder = open_run(Path(path))
    if _is_complete(folder, epochs):
        return _nothing_left(folder, progress=progress)
    with locked(folder):
        if _is_complete(folder, epochs):  # by another process, just before this one got the lock
            return _nothing_left(folder, progress=progress)
        config = read_config(folder)
        if data_root is not None:
            config = override(config, {"data_root": data_root})
        if epochs is not None:
            config = replace(config, train=extend(config.train, epochs))
        job = prepare(config, weights_follow=True, progress=progress)
        threads_so_far = restore(folder, job)
        was_finished = folder.is_finished
        try:
            folder.open_again()
            describe(folder, job)
        except RunError as error:
            if was_finished:  # and is no longer, so something has been written
                error.exit_code = EXIT_PARTLY
            raise
        with threads(threads_so_far):
            carry_on(folder, job, progress=progress)
    return Run(folder)


def _is_complete(folder: RunFolder, epochs: int | None) -> bool:
    """Whether a run has finished, has all its results, and has as many epochs as are asked for."""
    if not folder.is_finished or not (folder.predictions.exists() and folder.probabilities.exists()):
        return False
    try:
        load_weights(folder.model)
    except RunError:  # the last checkpoint has them too
        return False
    return epochs is None or epochs == read_config(folder).train.epochs


def _nothing_left(folder: RunFolder, *, progress: bool) -> Run:
    """Say so, and make the page if a kill on the last few metres prevented it."""
    if progress:
        sys.stderr.write(f"{folder.path} has finished already; nothing is left to do.\n")
    if not has_final_page(folder):
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
    other images, evaluation.json, predictions.csv, probabilities.npy and label_errors.csv go to a folder in
    `evaluations`, and the result says how far the accuracy moved.

    Args:
        run: or the path of its folder.
        data: a data set, or a folder with a folder of images for each class; None for the run's own.
        data_root: where data sets lie now, if that has changed.
        layer: the stage whose Grad-CAM maps the gallery shows, layer2 without; not for other data.
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
        other = None if data is None or str(data) == config.data.data else str(data)
        if other and layer:
            raise ConfigError(
                f"layer is {layer!r}, but other data than the run's own get no gallery.", "Leave it out."
            )
        if progress:
            sys.stderr.write(f"Evaluating {folder.path} on {other or config.data.data} ...\n")
        try:
            with memory_kept(trained.device):
                if other:
                    found = evaluate_other(folder, config, classifier, trained, other)
                else:
                    found = evaluate_own(folder, config, classifier, trained, layer=layer or DEFAULT_LAYER)
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


def plan(config: Config) -> dict[str, object]:
    """What `train(config)` would do, without doing it: data, steps, schedule, time, memory, disk.

    Reads the data, but neither downloads nor writes anything; where the data set would have to be
    downloaded, says so and plans with blank images in its place.

    Raises:
        VelodromeError: what `train` would refuse.
    """
    config = resolve(config)
    _check_place(config)
    fetched = fetch_first(config.data)
    splits = blank_splits(config.data, config.run.seed) if fetched else None
    job = prepare(config, splits, progress=False)
    first_of_all = "; LRMAX is a guess, a range test finds it first" if job.config.train.lr == "auto" else ""
    job = job.with_lr(USUAL_LR[job.config.train.optimizer])
    settings, side = job.config.train, job.splits.side
    lr_at, last = make_schedule(settings, job.loader.steps_per_epoch), job.total_steps - 1
    peak = max(range(job.total_steps), key=lr_at)
    totals = summarize(job.state.model, (3, side, side)).totals
    speed = images_per_s(job.state.model, (3, side, side), precision=job.config.run.precision)
    # Smaller images, where there are some, count by the work that they make.
    training_s = 1e15 * train_pflop(job) / (6 * totals.macs) / speed
    memory = memory_gib(
        params=totals.params,
        activation_mb=totals.activations_mb,
        batch_size=settings.batch_size,
        precision=job.config.run.precision,
        image_bytes=job.splits.train.images_u8.nbytes + job.splits.test.images_u8.nbytes,
    )
    return {
        "recipe": job.config.recipe,
        "data": _describe_data(job.splits) + (f"; {fetched}" if fetched else ""),
        "model": f"{job.config.model.model}, {totals.params:,} parameters",
        "device": f"{job.device.type} in {job.config.run.precision}",
        "steps": job.total_steps,
        "epochs": settings.epochs,
        "steps_per_epoch": job.loader.steps_per_epoch,
        "batch_size": settings.batch_size,
        "schedule": f"{settings.schedule}: {lr_at(0):.4g} at step 0, {lr_at(peak):.4g} at step {peak}, "
        f"{lr_at(last):.4g} at step {last}{first_of_all}",
        "images_per_s": round(speed),
        "training_time": duration(training_s),
        "training_s": round(training_s, 1),
        "memory_gib": round(memory, 2),
        # The final weights, and checkpoints of weights and optimizer state, in float32.
        "disk_mb": round(4 * totals.params * (1 + KEEP * (1 + STATE_TENSORS[settings.optimizer])) / 1e6),
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
        "compiler": find_compiler() or "none, so --compile will not work on the CPU",
        "data_root": str(root),
        "data_there": ", ".join(name for name in ("cifar10", "cifar100") if cifar_is_present(name, root))
        or "none (shapes needs none)",
        "runs_dir": f"{runs} ({free_gib(runs):.1f} GiB free)",
    }


def summary_of(model: ModelSection, classes: int) -> Summary:
    """The layers of a network by name, for images of 32x32."""
    side = 32
    return summarize(build_model(model, classes=classes, image_size=side), (3, side, side))


def _check_place(config: Config) -> None:
    """Check, before anything costly, that the run folder can be made."""
    check_can_write(config.run.runs_dir)
    check_name_is_free(config.run.runs_dir, config.run.name)


def _describe_data(splits: Splits) -> str:
    held_out = f"{len(splits.val):,} validation, " if splits.val else ""
    return (
        f"{splits.name}: {len(splits.train):,} training, {held_out}{len(splits.test):,} test images "
        f"of {splits.side}x{splits.side}, {len(splits.train.classes)} classes"
    )
