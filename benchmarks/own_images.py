"""A folder of images for velodrome, fastai and Ultralytics: test accuracy, and the time of all of it.

    python benchmarks/own_images.py --data-root DIR --runs 3 --output benchmarks/own_images.md

writes a part of CIFAR-10 as PNG files into folders (train/<class>, test/<class>) and lets each contestant
train from scratch on it, in turn, with the same number of epochs and the same image size, each in a
process of its own, from the start of the process to its end. Velodrome begins without anything prepared. All
are used as their documentation has it for a folder of images, and scored by the share of test images that
they get right after their last epoch. fastai and Ultralytics have to be installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dated_tables import command_line, heading, machine_rows, print_and_append, ratios, spread, version_of
from png_folders import write_folders
from throughput import at_least, in_a_folder

from velodrome.bench_results import table
from velodrome.errors import DeviceError, VelodromeError
from velodrome.job import resolve
from velodrome.recipes import folder

PACKAGES = {"fastai": "fastai", "ultralytics": "ultralytics"}


def main(arguments: Sequence[str]) -> int:
    """Train in turn, print, append to a file."""
    options = parse(arguments)
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return 0
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as place:
            check_there(options.only)
            data = write_folders(options.data_root, options.train, options.test, Path(place))
            found = race(options, data, Path(place))
        print_and_append(report(options, found, command_line(arguments), load), options.output)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A folder of images against fastai and Ultralytics.")
    everyone = ["velodrome", *PACKAGES]
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--train", type=at_least(10), default=4000, help="training images")
    parser.add_argument("--test", type=at_least(10), default=1000, help="test images")
    parser.add_argument("--epochs", type=at_least(1), default=10)
    parser.add_argument("--image-size", type=at_least(8), default=64)
    parser.add_argument("--runs", type=at_least(1), default=3)
    parser.add_argument("--only", nargs="*", choices=everyone, default=everyone)
    parser.add_argument("--output", type=in_a_folder)
    parser.add_argument("--child", choices=list(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def check_there(names: Sequence[str]) -> None:
    """Check that those who are to take part are installed.

    Raises:
        DeviceError: one is not.
    """
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise DeviceError(f"{name} is not installed.", f"Install it, or leave it out of --only: {name}.")


def race(options: argparse.Namespace, data: Path, place: Path) -> dict[str, list[tuple[float, float]]]:
    """Each contestant once a round: its accuracies and seconds."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in options.only}
    for number in range(options.runs):
        for name in options.only:
            scratch = place / f"{name}-{number}"
            scratch.mkdir()
            command = [sys.executable, str(Path(__file__).resolve()), "--child", name, "--folder", str(data)]
            for key in ("epochs", "image_size"):
                command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
            command += ["--seed", str(number)]
            # Nothing is prepared from the run before.
            own = os.environ | {"XDG_CACHE_HOME": str(scratch / "cache"), "YOLO_CONFIG_DIR": str(scratch)}
            began_s = time.perf_counter()
            done = subprocess.run(command, cwd=scratch, env=own, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - began_s
            if done.returncode:
                print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
                raise DeviceError(f"{name} failed with exit code {done.returncode}.", "Its output is above.")
            accuracy = json.loads(done.stdout.strip().splitlines()[-1])["accuracy"]
            found[name].append((accuracy, seconds))
            print(f"{name}, seed {number}: {accuracy:.2%} in {seconds:.1f} s", file=sys.stderr)
    return found


def train_velodrome(options: argparse.Namespace) -> dict[str, float]:
    """What `velodrome train --data FOLDER` does."""
    import velodrome as vd  # noqa: PLC0415

    config = vd.recipes.folder(
        data=str(options.folder), epochs=options.epochs, image_size=options.image_size, seed=options.seed
    )
    return {"accuracy": vd.train(config, progress=False).result["test_accuracy"]}


def train_fastai(options: argparse.Namespace) -> dict[str, float]:
    """As in fastai's vision tutorial, with a network that has not been trained before."""
    from fastai.vision import all as fastai  # noqa: PLC0415

    fastai.set_seed(options.seed)
    loaders = fastai.ImageDataLoaders.from_folder(
        options.folder,
        train="train",
        valid="test",
        item_tfms=fastai.Resize(options.image_size),
        batch_tfms=fastai.aug_transforms(size=options.image_size),
        num_workers=2,
        device="cpu",
    )
    learner = fastai.vision_learner(loaders, fastai.resnet18, pretrained=False, metrics=fastai.accuracy)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(options.epochs, learner.lr_find(show_plot=False).valley)
        return {"accuracy": float(learner.validate()[1])}


def train_ultralytics(options: argparse.Namespace) -> dict[str, float]:
    """As in Ultralytics' page on classification, with a network that has not been trained before."""
    from ultralytics import YOLO  # noqa: PLC0415

    model = YOLO("yolo11n-cls.yaml")
    model.train(
        data=str(options.folder),
        epochs=options.epochs,
        imgsz=options.image_size,
        seed=options.seed,
        device="cpu",
        workers=2,
        plots=False,
        verbose=False,
    )
    return {"accuracy": float(model.val(split="test", plots=False, verbose=False).top1)}


CHILDREN = {"velodrome": train_velodrome, "fastai": train_fastai, "ultralytics": train_ultralytics}


def report(
    options: argparse.Namespace,
    found: dict[str, list[tuple[float, float]]],
    command: str,
    load: float,
) -> str:
    """The figures as Markdown."""
    machine = machine_rows(resolve(folder()), load) | {
        name: version_of(package) for name, package in PACKAGES.items()
    }
    setting = (
        f"{options.train:,} training and {options.test:,} test images of CIFAR-10 as PNG files, "
        f"{options.epochs} epochs at {options.image_size} pixels, from scratch, in turn, each from the start "
        "of its process to the end: imports, reading, the search for a learning rate, training and scores; "
        "velodrome's includes its report with Grad-CAM."
    )
    seconds = {name: [second for _, second in runs] for name, runs in found.items()}
    rows = []
    for name, runs in found.items():
        accuracies = [accuracy for accuracy, _ in runs]
        own = "" if name == "velodrome" else spread(ratios(seconds, name, "velodrome"))
        middle = statistics.mean(accuracies)
        ends = f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f}"
        rows.append((name, f"{100 * middle:.2f}% ({ends})", spread(seconds[name], " s"), own))
    columns = ("", "test accuracy, mean and range", "seconds, median and range", "times velodrome's")
    return "\n".join([*heading("a folder of images", machine, command, setting, load), *table(columns, rows)])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
