"""What a run would do, and what this machine can do; nothing is trained and nothing but data is read."""

from __future__ import annotations

from velodrome.config import Config, ModelSection, seconds_of, usual_lr
from velodrome.data.cifar import cifar_is_present
from velodrome.data.imageset import Splits
from velodrome.data.sources import blank_splits, fetch_first, resolve_data_root
from velodrome.device import available_devices, find_compiler, matrix_speeds, pick_device, pick_precision
from velodrome.distributed import World, place_told
from velodrome.job import prepare, resolve, train_pflop
from velodrome.models.build import build_model
from velodrome.models.summary import Summary, summarize
from velodrome.run.checkpoint import KEEP
from velodrome.run.environment import describe_environment
from velodrome.run.folder import check_can_write, check_name_is_free, free_gib, next_run_folder
from velodrome.run.sinks import duration
from velodrome.training.estimate import images_per_s, memory_gib
from velodrome.training.optim import STATE_TENSORS
from velodrome.training.schedule import make_schedule


def plan(config: Config) -> dict[str, object]:
    """What `train(config)` would do, without doing it: data, steps, schedule, time, memory, disk.

    Reads the data. Where they would have to be downloaded or prepared, says so and plans with blank images in
    their place. Writes nothing, but for archives and what a hub has: these are unpacked in the cache, as
    nothing else tells what they hold.

    Raises:
        VelodromeError: what `train` would refuse.
    """
    config = resolve(config)
    check_place(config)
    fetched = fetch_first(config.data, enlarged=config.augment.takes_parts)
    splits = blank_splits(config.data, config.run.seed) if fetched else None
    # Started by torchrun, it says too whether the ranks can share the batches.
    job = prepare(config, splits, world=World(place_told()), progress=False)
    first_of_all = "; LRMAX is a guess, a range test finds it first" if job.config.train.lr == "auto" else ""
    job = job.with_lr(usual_lr(job.config.train.optimizer, job.config.train.batch_size))
    settings, side = job.config.train, job.splits.side
    lr_at, last = make_schedule(settings, job.loader.steps_per_epoch), job.total_steps - 1
    peak = max(range(job.total_steps), key=lr_at)
    totals = summarize(job.state.model, (3, side, side)).totals
    speed = images_per_s(job.state.model, (3, side, side), precision=job.config.run.precision)
    # Smaller images, where there are some, count by the work that they make.
    training_s = 1e15 * train_pflop(job) / (6 * totals.macs) / speed
    budget = settings.time_budget
    if budget:  # with as many steps as fit into it, results and page included
        training_s = seconds_of(budget)
    memory = memory_gib(
        params=totals.params,
        activation_mb=totals.activations_mb,
        batch_size=settings.batch_size,
        precision=job.config.run.precision,
        image_bytes=job.splits.train.images_u8.nbytes + job.splits.test.images_u8.nbytes,
    )
    at_steps = ("step 0", f"step {peak}", f"step {last}")
    first_word, peak_word, last_word = ("first", "its peak", "last") if budget else at_steps
    return {
        "recipe": job.config.recipe,
        "data": _describe_data(job.splits) + (f"; {fetched}" if fetched else ""),
        "model": f"{job.config.model.model}, {totals.params:,} parameters",
        "device": f"{job.device.type} in {job.config.run.precision}",
        "steps": f"as many as fit into {budget}" if budget else job.total_steps,
        "epochs": "as many as these take" if budget else settings.epochs,
        "steps_per_epoch": job.loader.steps_per_epoch,
        "batch_size": settings.batch_size,
        "schedule": f"{settings.schedule}: {lr_at(0):.4g} at {first_word}, {lr_at(peak):.4g} at {peak_word}, "
        f"{lr_at(last):.4g} at {last_word}{first_of_all}",
        "images_per_s": round(speed),
        "training_time": f"{budget}, with the results and the page" if budget else duration(training_s),
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


def check_place(config: Config) -> None:
    """Check, before anything costly, that the run folder can be made."""
    check_can_write(config.run.runs_dir)
    check_name_is_free(config.run.runs_dir, config.run.name)


def _describe_data(splits: Splits) -> str:
    held_out = f"{len(splits.val):,} validation, " if splits.val else ""
    return (
        f"{splits.name}: {len(splits.train):,} training, {held_out}{len(splits.test):,} test images "
        f"of {splits.side}x{splits.side}, {len(splits.train.classes)} classes"
    )
