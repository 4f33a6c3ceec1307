"""How soon velodrome's recipes and what people use instead reach an accuracy, on the same machine.

    python benchmarks/to_accuracy.py --data-root DIR --json benchmarks/to_accuracy.json \\
        --figure benchmarks/to_accuracy.svg --output benchmarks/to_accuracy.md

trains one contestant after the other, each in a process of its own: the same network, batch, number of epochs
and peak of one cycle for `resnet9` and its rivals; other recipes with all settings of their own. After each
epoch the clock stops and velodrome scores the network on the test images. The JSON is written after each
epoch of a rival and each run of velodrome, and it can be made in parts:

    python benchmarks/to_accuracy.py --data-root DIR --json FILE --only fastai lightning --minutes 20
    python benchmarks/to_accuracy.py --json FILE --only --run speed94=runs/speed94-1 --figure FILE

The first stops each rival after so many minutes of training. The second trains nothing, adds a run that is
there already, and draws. A contestant that is trained or given again takes the place of what the file has of
it. The rivals need torchvision, fastai and lightning.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import contestants_torch
import numpy as np
import torch
from accuracy_curves import Curve, check_comparable, draw, put_curve, read_curves, tables_of
from contestants_libraries import RIVALS, check_installed
from dated_tables import (
    command_line,
    hardware_rows,
    heading,
    machine_rows,
    print_and_append,
    version_of,
)
from throughput import SETTINGS, add_options, at_least, in_a_folder
from torch import nn

from velodrome import session
from velodrome.config import Config, read_yaml
from velodrome.device import synchronize
from velodrome.errors import EXIT_PARTLY, ConfigError, RunError, VelodromeError
from velodrome.job import Job, prepare, resolve, score_on
from velodrome.recipes import RECIPES, by_name, resnet9
from velodrome.run.folder import RunFolder, open_run
from velodrome.training.state import Clock

EPOCHS, LR_MAX = 8, 0.2
FAMOUS = [name for name in ("speed94", "resnet9") if name in RECIPES]
FORMATS = (".svg", ".png")


def main(arguments: Sequence[str]) -> int:
    """Train, print, append to a file, draw. Bad input is one line on stderr and exit code 2."""
    options = parse(arguments)
    try:
        if options.child:
            train_one(options.child, options)
            return 0
        load = os.getloadavg()[0]
        config = resolve(check_before_training(options))
        for name, folder in options.run:
            put_curve(options.json, name, curve_of_run(open_run(folder)))
        codes = [train_in_new_process(name, arguments, load) for name in options.only]
        print_and_append(report(config, options, command_line(arguments), load), options.output)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_PARTLY if any(codes) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Test accuracy against training time; see the docstring.")
    add_options(parser)
    everyone = [*RECIPES, *(name for name in RIVALS if name not in RECIPES)]
    usual = [*FAMOUS, *RIVALS]
    parser.add_argument("--json", type=in_a_folder, required=True, help="file that keeps the curves")
    parser.add_argument("--figure", type=figure_file, help="SVG or PNG to draw all curves of the file into")
    parser.add_argument("--only", nargs="*", choices=everyone, default=usual, help="contestants to train")
    parser.add_argument(
        "--run", type=name_and_folder, nargs="+", default=[], help="NAME=FOLDER of a run to add"
    )
    parser.add_argument("--epochs", type=at_least(1), help=f"else {EPOCHS}; other recipes: their own")
    parser.add_argument("--lr", type=float, help=f"LRMAX, else {LR_MAX}; other recipes: their own")
    parser.add_argument("--workers", type=at_least(0), default=2, help="of the rivals' loaders")
    parser.add_argument(
        "--minutes", type=positive, default=math.inf, help="of training, after which a rival is stopped"
    )
    parser.add_argument("--target", type=percent, default=0.9, help="accuracy to reach in percent, else 90")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="for the runs of velodrome")
    parser.add_argument("--child", choices=everyone, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def figure_file(text: str) -> Path:
    """The path of an SVG or a PNG in a folder that exists."""
    path = in_a_folder(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text} ends neither in {' nor in '.join(FORMATS)}")
    return path


def name_and_folder(text: str) -> tuple[str, Path]:
    """NAME=FOLDER."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FOLDER")
    return name, Path(folder)


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def percent(text: str) -> float:
    """A share, given in percent."""
    value = float(text) / 100
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 100")
    return value


def check_before_training(options: argparse.Namespace) -> Config:
    """The settings of `resnet9`, after a look at all that could fail after hours.

    Raises:
        VelodromeError: something would.
    """
    config = config_of("resnet9", options)
    rivals = [name for name in options.only if name in RIVALS]
    if rivals:
        contestants_torch.import_torchvision()
        check_installed(rivals)
    if options.only:
        check_comparable(options.json, task_of_config(config))
    for _, folder in options.run:
        check_comparable(options.json, curve_of_run(open_run(folder)).task)
    for name in options.only:
        config_of(name if name in RECIPES else "resnet9", options)
    return config


def config_of(recipe: str, options: argparse.Namespace) -> Config:
    """A recipe with the settings of the command line; `resnet9` with epochs and LRMAX where none are given.

    Raises:
        ConfigError: a value breaks its rule.
    """
    given = {key: getattr(options, key) for key in (*SETTINGS, "epochs", "lr")}
    settings = {key: value for key, value in given.items() if value is not None}
    if recipe == "resnet9":
        return resnet9(**{"epochs": EPOCHS, "lr": LR_MAX, **settings})
    return by_name(recipe)(**{"score_every": 1, **settings})


def train_in_new_process(name: str, arguments: Sequence[str], load: float) -> int:
    """Train a contestant where no other has left anything behind; the exit code of its process."""
    print(f"{name}: begins", file=sys.stderr)
    command = [sys.executable, __file__, *arguments, "--child", name, "--load", str(load)]
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code:
        print(f"{name}: failed with {code}; what it reached before is kept", file=sys.stderr)
    return code


def train_one(name: str, options: argparse.Namespace) -> None:
    """Train a contestant and put its curve into the file.

    Raises:
        VelodromeError: it cannot be trained.
    """
    if name in RECIPES:
        config = config_of(name, options)
        run = session.train(replace(config, run=replace(config.run, runs_dir=options.runs_dir)))
        put_curve(options.json, name, replace(curve_of_run(run.folder), load=options.load))
        return
    job = prepare(config_of("resnet9", options))
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(job.config.run.seed)
    contestant = RIVALS[name](job, options.workers)
    about = curve_of_rival(job, options)

    def tell(times_s: list[float], test_accs: list[float]) -> None:
        put_curve(options.json, name, replace(about, times_s=times_s, test_accs=test_accs))
        done = f"{name}: epoch {len(times_s)} of {about.epochs}"
        print(f"{done}, {times_s[-1]:.1f} s, test accuracy {test_accs[-1]:.2%}", file=sys.stderr)

    contestant.train(EpochWatch(job, tell, 60 * options.minutes))


class EpochWatch:
    """Scores the network after each whole epoch, while the clock stands still; stops training in time."""

    def __init__(self, job: Job, tell: Callable[[list[float], list[float]], None], limit_s: float) -> None:
        self.job, self.tell, self.limit_s, self.clock = job, tell, limit_s, Clock()
        self.times_s: list[float] = []
        self.test_accs: list[float] = []

    def begin(self) -> None:
        """Starts the clock."""
        synchronize(self.job.device)
        self.clock.start()

    def step_done(self) -> bool:
        """Whether the time is over."""
        return self.clock.elapsed_s() > self.limit_s

    def epoch_done(self, network: nn.Module) -> None:
        """Stops the clock, scores, tells, and starts the clock again."""
        synchronize(self.job.device)
        if self.step_done():  # some libraries call the part of an epoch that was trained an epoch too
            return
        self.clock.stop()
        _, accuracy = score_on(network, self.job, self.job.splits.test)
        self.times_s.append(self.clock.elapsed_s())
        self.test_accs.append(accuracy)
        self.tell(self.times_s, self.test_accs)
        self.clock.start()


def curve_of_rival(job: Job, options: argparse.Namespace) -> Curve:
    """All that is known of a rival's curve before it begins."""
    train = job.config.train
    return Curve(
        what=f"batch {train.batch_size}, LRMAX {train.lr:g}, {options.workers} workers, "
        f"width {job.config.model.width}",
        task=task_of_config(job.config),
        machine=hardware_and_torch(job.config),
        date=time.strftime("%Y-%m-%d"),
        load=options.load,
        epochs=train.epochs,
        times_s=[],
        test_accs=[],
        is_recipe=False,
    )


def hardware_and_torch(config: Config) -> dict[str, str]:
    """The part of the machine that must be the same for times to be comparable."""
    rows = machine_rows(config, 0.0)
    return {key: rows[key] for key in ("CPU", "memory", "device", "torch")}


def curve_of_run(folder: RunFolder) -> Curve:
    """The curve in the history of a run. Seconds of a range test before it, if there was one, come on top.

    Raises:
        RunError: the run has no epoch with a test accuracy, or its files are damaged.
        ConfigError: config.yaml is damaged.
    """
    rows = [row for row in folder.read_history() if row["test_acc"] is not None]
    environment = folder.recorded_environment()
    if not rows or not environment:
        raise RunError(f"Run {folder.path} has no test accuracies.", "Let it train for an epoch at least.")
    settings = read_yaml(folder.config)
    searched_s = float((folder.read_json(folder.lr_find) or {}).get("seconds", 0.0))
    search = f" (found in {searched_s:.1f} s, which are part of its time)" if searched_s else ""
    return Curve(
        what=f"recipe {settings['recipe']} in {environment['precision']}, batch {settings['batch_size']}, "
        f"LRMAX {settings['lr']:g}{search}",
        task={key: settings[key] for key in ("data", "limit_train", "limit_test")},
        machine=hardware_rows(environment) | {"torch": str(environment["torch"])},
        date=str(environment["started"])[:10],
        load=None,
        epochs=int(str(settings["epochs"])),
        times_s=[searched_s + float(row["time_s"]) for row in rows],
        test_accs=[float(row["test_acc"]) for row in rows],
        is_recipe=True,
    )


def task_of_config(config: Config) -> dict[str, object]:
    """What must be the same for curves to be comparable."""
    data = config.data
    return {"data": data.data, "limit_train": data.limit_train, "limit_test": data.limit_test}


def report(config: Config, options: argparse.Namespace, command: str, load: float) -> str:
    """All curves of the file as Markdown; draws them where a figure is asked for.

    Raises:
        ConfigError: there are none.
        RunError: the file is damaged, or the figure cannot be written.
    """
    curves = read_curves(options.json)
    if not curves:
        raise ConfigError(f"{options.json} has no curves.", "Train some contestants, or give runs.")
    setting = (
        f"{_images(next(iter(curves.values())))}. Test accuracy after each epoch, with the clock stopped, "
        f"scored by velodrome in {config.run.precision}. One training each. Times do not include imports, "
        "reading the data, and building networks and loaders."
    )
    versions = {name: version_of(name) for name in ("fastai", "lightning")}
    machine = machine_rows(config, load) | versions
    lines = heading("accuracy against training time", machine, command, setting, load)
    lines += tables_of(curves, options.target)
    if options.figure:
        draw(curves, options.target, options.figure)
        if options.output:
            link = os.path.relpath(options.figure, options.output.parent)
            lines += [f"![Test accuracy against seconds of training, for each contestant]({link})", ""]
    return "\n".join(lines)


def _images(curve: Curve) -> str:
    limit = curve.task["limit_train"]
    return f"{f'{limit:,} images' if limit else 'All images'} of {curve.task['data']}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
