"""Does the learning rate that `velodrome lr-find` finds train as well as the best one? Against real training.

For each setting: short runs over a grid of LRMAX with three values a decade; the best of the grid is the one
with the highest mean accuracy over the seeds. Then, with seeds that had no part in that choice, a range test,
a run with what it found and a run with the best of the grid. The regret is the accuracy of the latter minus
that of the former, in points, paired by seed. The goal: a 95% confidence interval that ends below one point.

    python benchmarks/lr_regret.py --data-root DIR --rows rows.jsonl --output benchmarks/lr_regret.md

takes about an hour and a half on two CPU cores. Every run is one line of the file that --rows names; what is
there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dated_tables import command_line, heading, machine_rows, print_and_append, table
from lr_rivals import RIVALS

from velodrome.config import Config, override
from velodrome.data.imageset import Splits
from velodrome.device import memory_kept
from velodrome.errors import TrainingError
from velodrome.job import Job, prepare, resolve, score_on
from velodrome.lr_search import search_before_training
from velodrome.recipes import quick, resnet9
from velodrome.spread import t_quantile_975
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.schedule import make_schedule

GRIDS = {
    "sgd": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    "adam": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1),
}
# Seeds that choose the best of the grid, and fresh ones that compare it with what was found.
GRID_SEEDS, FRESH_SEEDS = (0, 1, 2), range(3, 9)
# Accuracy differs more between the runs of this setting, so that it takes more of them.
MORE_SEEDS = {"CIFAR-10, 10,000 images, Adam": range(3, 12)}
# A value this far below the best with the first seed is not run with the others.
HOPELESS = 0.04

Row = Mapping[str, Any]


def settings(data_root: str) -> dict[str, Config]:
    """What is trained, by name."""
    small = {"data_root": data_root, "width": 16, "limit_train": 10_000, "epochs": 10}
    return {
        "shapes, SGD": quick(),
        "shapes, Adam": quick(optimizer="adam"),
        "CIFAR-10, 10,000 images, SGD": resnet9(**small),
        "CIFAR-10, 10,000 images, Adam": resnet9(**small, optimizer="adam"),
    }


class Rows:
    """What has been run, one JSON line each.

    Args:
        path: of the file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]

    def find(self, **wanted: object) -> list[Row]:
        """The rows with these values."""
        return [row for row in self._rows if all(row.get(key) == value for key, value in wanted.items())]

    def add(self, **row: object) -> Row:
        """Keep a row."""
        self._rows.append(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print({key: value for key, value in row.items() if key != "curve"}, file=sys.stderr, flush=True)
        return row


class Bench:
    """Runs that are done once and remembered.

    Args:
        rows: what has been run.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._splits: tuple[object, Splits] | None = None

    def accuracy(self, name: str, config: Config, lr: float, seed: int) -> float:
        """Test accuracy in [0, 1] after a run with this LRMAX; that of guessing where it diverged."""
        found = self._rows.find(kind="run", setting=name, lr=lr, seed=seed)
        row = found[0] if found else self._train(name, self._job(config, seed).with_lr(lr))
        return float(row["accuracy"])

    def test(self, name: str, config: Config, seed: int) -> Row:
        """The range test that comes before training: LRMAX and its curve."""
        found = self._rows.find(kind="test", setting=name, seed=seed)
        if found:
            return found[0]
        finding, _ = search_before_training(self._job(config, seed), lambda *_: None)
        assert finding is not None
        curve = finding.verdict.curve
        level = finding.verdict.confidence.level if finding.verdict.confidence else None
        return self._rows.add(
            kind="test",
            setting=name,
            seed=seed,
            lr_max=finding.lr_max,
            confidence=level,
            seconds=finding.about["seconds"],
            curve={"lr": curve.lrs.tolist(), "loss": curve.losses.tolist()},
        )

    def _train(self, name: str, job: Job) -> Row:
        train, seed = job.config.train, job.config.run.seed
        events = fit(
            job.state,
            job.loader,
            make_schedule(train, job.loader.steps_per_epoch),
            train,
            precision=job.config.run.precision,
            seed=seed,
            score=lambda _network: NO_SCORES,
        )
        accuracy = 1 / len(job.splits.test.classes)
        try:
            with memory_kept(job.device):
                for _ in events:
                    pass
            accuracy = score_on(job.state.model, job, job.splits.test)[1]
        except TrainingError:
            pass
        return self._rows.add(kind="run", setting=name, lr=train.lr, seed=seed, accuracy=accuracy)

    def _job(self, config: Config, seed: int) -> Job:
        config = override(config, {"seed": seed})
        if self._splits is None or self._splits[0] != config.data:
            self._splits = (config.data, prepare(config, progress=False).splits)
        return prepare(config, self._splits[1], progress=False)


def run_grid(bench: Bench, name: str, config: Config) -> dict[float, list[float]]:
    """Accuracies by LRMAX; hopeless values have only that of the first seed."""
    grid, first = GRIDS[config.train.optimizer], GRID_SEEDS[0]
    found = {lr: [bench.accuracy(name, config, lr, first)] for lr in grid}
    best = max(values[0] for values in found.values())
    for seed in GRID_SEEDS[1:]:
        for lr, values in found.items():
            if values[0] > best - HOPELESS:
                values.append(bench.accuracy(name, config, lr, seed))
    return found


def best_of(grid: Mapping[float, Sequence[float]]) -> float:
    """LRMAX with the highest mean accuracy among those that all seeds were run with."""
    return max(
        (lr for lr in grid if len(grid[lr]) == len(GRID_SEEDS)), key=lambda lr: statistics.mean(grid[lr])
    )


def expected_accuracy(grid: Mapping[float, Sequence[float]], lr: float) -> float:
    """Accuracy with any LRMAX, by straight lines between the means of the grid over log LRMAX."""
    lrs = sorted(grid)
    means = [statistics.mean(grid[value]) for value in lrs]
    return float(np.interp(np.log(lr), np.log(lrs), means))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95% confidence interval (Student's t)."""
    n = len(values)
    return statistics.mean(values), t_quantile_975(n - 1) * statistics.stdev(values) / n**0.5


def report(bench: Bench, configs: Mapping[str, Config]) -> list[str]:
    """All tables."""
    lines, regrets, rivals, grids = [], [], [], []
    pooled: list[float] = []
    for name, config in configs.items():
        grid = run_grid(bench, name, config)
        best = best_of(grid)
        fresh = MORE_SEEDS.get(name, FRESH_SEEDS)
        tests = [bench.test(name, config, seed) for seed in fresh]
        points = [
            100
            * (bench.accuracy(name, config, best, seed) - bench.accuracy(name, config, test["lr_max"], seed))
            for seed, test in zip(fresh, tests, strict=True)
        ]
        pooled += points
        found = [test["lr_max"] for test in tests]
        regrets.append((name, f"{best:g}", span(found), *regret_cells(points), levels(tests)))
        rivals.append((name, span(found), *(rival_cell(grid, best, tests, rule) for rule in RIVALS)))
        grids.append(
            (name, *(f"{lr:g}: {100 * statistics.mean(v):.2f} ({len(v)})" for lr, v in grid.items()))
        )
    regrets.append(("**all**", "", "", *regret_cells(pooled), ""))
    head = (
        "setting",
        "best of the grid",
        "found",
        "n",
        "regret in points",
        "upper bound",
        "under 1",
        "confidence",
    )
    lines += ["### Regret: best of the grid minus found, paired by seed, with 95% interval", ""]
    lines += table(head, regrets)
    lines += [
        "### What others suggest from the same losses (and the regret that the grid lets expect)",
        "",
        "Median over the same tests. The regret is read off the grid by interpolation, nothing was trained.",
        "",
    ]
    lines += table(("setting", "velodrome", *RIVALS), rivals)
    lines += ["### The grids: LRMAX, mean test accuracy in percent, number of seeds", ""]
    width = max(map(len, grids))
    rows = [(*row, *[""] * (width - len(row))) for row in grids]
    return lines + table(("setting", *[""] * (width - 1)), rows)


def span(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2g} ({min(values):.2g} to {max(values):.2g})"


def regret_cells(points: Sequence[float]) -> tuple[str, str, str, str]:
    """Number, mean with interval, upper bound, and whether that is under a point."""
    mean, half = interval(points)
    return (
        str(len(points)),
        f"{mean:+.2f} ± {half:.2f}",
        f"{mean + half:+.2f}",
        "yes" if mean + half < 1 else "**no**",
    )


def levels(tests: Sequence[Row]) -> str:
    """How often each confidence was given."""
    said = [test["confidence"] for test in tests]
    return ", ".join(f"{said.count(level)} {level}" for level in ("high", "medium", "low") if level in said)


def rival_cell(grid: Mapping[float, Sequence[float]], best: float, tests: Sequence[Row], rule: str) -> str:
    """A rival's suggestion, and what it would cost."""
    suggested = []
    for test in tests:
        lr = RIVALS[rule](np.array(test["curve"]["lr"]), np.array(test["curve"]["loss"]))
        if lr is not None:
            suggested.append(lr)
    if not suggested:
        return "none: too few steps"
    middle = statistics.median(suggested)
    cost = 100 * (expected_accuracy(grid, best) - expected_accuracy(grid, middle))
    return f"{middle:.2g} ({cost:+.1f})"


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, print the tables, append them to a file."""
    parser = argparse.ArgumentParser(description="Regret of the found learning rate; see the docstring.")
    parser.add_argument("--data-root", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines of all runs, read and added to")
    parser.add_argument("--only", help="settings whose name contains this")
    parser.add_argument("--output", type=Path, help="Markdown file to which the tables are appended")
    options = parser.parse_args(arguments)
    configs = {
        name: config
        for name, config in settings(options.data_root).items()
        if not options.only or options.only in name
    }
    lines = report(Bench(Rows(options.rows)), configs)
    about = machine_rows(resolve(next(iter(configs.values()))), 0.0)
    setting = (
        "Width 16; shapes: `quick`, 5 epochs at batch 128, range test of 79 steps; 10,000 images: `resnet9`, "
        "10 epochs at batch 512, range test of 20 steps. "
        "Grid with seeds 0 to 2, regret with seeds from 3 on. Scores are test accuracies; runs of the grid "
        "chose the constants of the rule, those with fresh seeds nothing."
    )
    text = heading(
        "learning rates found, against the best of a grid", about, command_line(arguments), setting, 0.0
    )
    print_and_append("\n".join([*text, *lines]), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
