"""How far runs with a time budget end from the time that they were given.

    python benchmarks/time_budget.py --data-root DIR --output benchmarks/time_budget.md

writes a part of CIFAR-10 as PNG files into folders and lets `velodrome train --data FOLDER --time-budget T`
train on it, each budget once a round, each run in a process of its own. The claim: from the moment in which
all images are in memory to the one in which the page is written, a run takes the time that it was given, give
or take 5%. Beside it: how many steps were planned after the first measurement, and how many it were after the
look at the clock half way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from dated_tables import command_line, heading, machine_rows, print_and_append
from png_folders import write_folders
from throughput import at_least, in_a_folder

from velodrome import session
from velodrome.bench_results import table
from velodrome.config import TIME, replanned_parts, seconds_of
from velodrome.errors import DeviceError, VelodromeError
from velodrome.job import Job, resolve
from velodrome.recipes import folder
from velodrome.runs import read_config

CLAIM = 0.05


@dataclass(frozen=True)
class Timed:
    """A run: its budget and what it took, in seconds; steps as planned and as taken; test accuracy."""

    budget: str
    seconds: float
    planned: int
    steps: int
    accuracy: float

    @property
    def off(self) -> float:
        """By which share of the budget it took longer."""
        return self.seconds / seconds_of(self.budget) - 1


def main(arguments: Sequence[str]) -> int:
    """Measure in turn, print, append."""
    options = parse(arguments)
    if options.child:
        print(json.dumps(train(options)))
        return 0
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as place:
            data = write_folders(options.data_root, options.train, options.test, Path(place))
            found = rounds(options, data, Path(place))
        print_and_append(report(options, found, command_line(arguments), load), options.output)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0 if all(abs(run.off) <= CLAIM for run in found) else 1


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Runs with a time budget; see the docstring.")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--train", type=at_least(10), default=4000, help="training images")
    parser.add_argument("--test", type=at_least(10), default=2000, help="test images")
    parser.add_argument("--budgets", nargs="+", type=budget, default=["30s", "60s", "5m"])
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--output", type=in_a_folder)
    parser.add_argument("--child", type=budget, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def budget(text: str) -> str:
    """A length of time, as `--time-budget` takes it."""
    if not TIME.holds(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not {TIME.words}")
    return text


def rounds(options: argparse.Namespace, data: Path, place: Path) -> list[Timed]:
    """Each budget once a round."""
    found = []
    for seed in range(options.rounds):
        for given in options.budgets:
            words = ["--child", given, "--folder", str(data), "--seed", str(seed)]
            done = subprocess.run(
                [sys.executable, str(Path(__file__).resolve()), *words],
                env=os.environ | {"XDG_CACHE_HOME": str(place / "cache")},
                cwd=place,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(done.stderr[-2000:], file=sys.stderr)
                raise DeviceError(f"A run of {given} failed with exit code {done.returncode}.", "See above.")
            found.append(Timed(given, **json.loads(done.stdout.splitlines()[-1])))
            print(f"{given}, seed {seed}: {found[-1].seconds:.1f} s ({found[-1].off:+.1%})", file=sys.stderr)
    return found


def train(options: argparse.Namespace) -> dict[str, float]:
    """One run, and its seconds from images in memory to the page."""
    prepare, ready_s = session.prepare_together, []

    def noted(*given: object, **named: object) -> Job:
        job = prepare(*given, **named)  # type: ignore[arg-type]
        ready_s.append(time.perf_counter())
        return job

    config = folder(data=str(options.folder), time_budget=options.child, seed=options.seed)
    with mock.patch.object(session, "prepare_together", noted):
        run = session.train(config, progress=False)
    seconds = time.perf_counter() - ready_s[0]
    settled = read_config(run.folder).train
    assert settled.steps is not None, "a budget sets them"
    planned = replanned_parts(settled.replanned)[1] if settled.replanned else settled.steps
    accuracy = run.result["test_accuracy"]
    return {"seconds": seconds, "planned": planned, "steps": settled.steps, "accuracy": accuracy}


def report(options: argparse.Namespace, found: Sequence[Timed], command: str, load: float) -> str:
    """The dated table."""
    rows = [
        (
            run.budget,
            f"{run.seconds:.1f} s",
            f"{run.off:+.1%}",
            f"{run.planned:,}",
            f"{run.steps:,} ({run.steps / run.planned - 1:+.1%})",
            f"{run.accuracy:.2%}",
        )
        for given in options.budgets
        for run in found
        if run.budget == given
    ]
    kept = sum(abs(run.off) <= CLAIM for run in found)
    worst = max(found, key=lambda run: abs(run.off))
    setting = (
        f"{options.train:,} training and {options.test:,} test images of CIFAR-10 as PNG files, the recipe "
        "`folder`, from images in memory to the finished page, the search for the learning rate included."
    )
    columns = ("budget", "took", "off by", "steps planned", "steps taken", "test accuracy")
    lines = [
        *heading("runs with a time budget", machine_rows(resolve(folder()), load), command, setting, load),
        *table(columns, rows),
        f"Within {CLAIM:.0%}: {kept} of {len(found)} runs; the worst was off by {worst.off:+.1%}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
