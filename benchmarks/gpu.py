"""The whole sitting on a GPU with one command: is it right, how fast, how accurate, against which ceiling.

    python benchmarks/gpu.py --data-root DIR --output benchmarks/gpu.md
    python benchmarks/gpu.py --data-root DIR --only speed94 --against "python cifar10_speedrun.py" \\
        --against-time "([0-9.]+)s" --against-accuracy "acc: ([0-9.]+)"
    python benchmarks/gpu.py --data-root DIR --only ablation --runs ablation=5

First the losses of the first steps on the GPU, as the loop is written and as it is captured, beside those of
the CPU in fp32; then matrix products; then each recipe, with one seed after the other in this process, so
that the data are read and the code is compiled once. Warming up is reported apart. What does not fit into
--minutes is left out, and the number of runs says so. Another program is run in turn with ours, round by
round; its times are those that it prints. Without a GPU all of it runs as well, to see that it does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import dated_tables as tables
import torch
from throughput import at_least, in_a_folder

from velodrome.bench_results import accuracy_text, spread_text, table
from velodrome.bench_rows import OwnRun
from velodrome.config import Config
from velodrome.device import convolutions_tuned, matrix_speeds, memory_kept
from velodrome.errors import VelodromeError
from velodrome.evaluation.metrics import accuracy
from velodrome.evaluation.results import Trained, answers_of
from velodrome.events import StepDone, WarmedUp
from velodrome.job import Job, prepare, resolve, train_pflop
from velodrome.lr_search import search_before_training
from velodrome.recipes import by_name
from velodrome.spread import spread_of
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.schedule import make_schedule

STEPS_COMPARED = 50
# The CPU has to take these steps too.
SMALLER = {"batch_size": 128}
# How many runs of each recipe; of the ablation, how many of each variant.
RUNS = {"speed94": 100, "dawnbench": 20, "resnet9": 5, "ablation": 5}
USUAL = ("speed94", "dawnbench", "resnet9")
# What the first run of a recipe takes at most before its first step, where it is compiled.
COMPILING_S = 60.0
# Settings of all recipes for a small trial of the sitting itself.
SMALL_TRIALS = ("limit_train", "limit_test", "width", "epochs", "batch_size", "ghost_batch")
# The recipe `dawnbench` without one of its tricks each.
ABLATION: Mapping[str, Mapping[str, object]] = {
    "all tricks": {},
    "a learned 3x3 convolution for whitened patches": {"prep": "conv"},
    "ReLU for CELU": {"activation": "relu"},
    "batch norm over the whole batch": {"ghost_batch": None},
    "learned scales of batch norm": {"norm_scale": "learned"},
    "logits not divided by 16": {"logit_scale": 1.0},
    "no label smoothing": {"label_smoothing": 0.0},
    "biases with the learning rate and decay of weights": {"bias_lr_scale": 1.0, "bias_decay_scale": 1.0},
    "no flat end": {"flat_end": 0.0},
    "black padding": {"crop_fill": "zero"},
    "the last smaller batch kept": {"drop_last": False},
}


@dataclass
class Measured:
    """Runs of one recipe or variant.

    Attributes:
        name: of the recipe, or of what is left out of it.
        runs: one for each seed.
        warm_ups_s: seconds before the first step of each run.
    """

    name: str
    runs: list[OwnRun] = field(default_factory=list)
    warm_ups_s: list[float] = field(default_factory=list)

    def row(self, ceiling_gflops: float) -> list[str]:
        """A row of the table of recipes."""
        speeds = [run.gflops for run in self.runs if run.gflops]
        shares = spread_of(speed / ceiling_gflops for speed in speeds)
        return [
            self.name,
            accuracy_text(spread_of(run.accuracy_tta for run in self.runs)),
            accuracy_text(spread_of(run.accuracy for run in self.runs)),
            spread_text(spread_of(run.time_s for run in self.runs), ".3f"),
            spread_text(spread_of(run.dawnbench_s for run in self.runs), ".3f"),
            f"{self.warm_ups_s[0]:.1f}" if self.warm_ups_s else "-",
            f"{self.runs[0].train_pflop:.3f}" if self.runs and self.runs[0].train_pflop else "-",
            "-" if shares is None else f"{shares.median:.0%}",
        ]


COLUMNS = (
    *("recipe", "accuracy with TTA", "accuracy", "time, data in memory to final answers (s)"),
    *("DAWNBench's clock (s)", "warm-up of the first run (s)", "PFLOP", "of the ceiling"),
)


class Sitting:
    """What is measured, until the time is over.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.ends_s = time.monotonic() + 60 * options.minutes
        self.measured: list[Measured] = []

    def config(self, recipe: str, **changes: object) -> Config:
        """A recipe with the settings of the command line."""
        given = {key: getattr(self.options, key) for key in ("data", "data_root", "device", "precision")}
        given |= {key: getattr(self.options, key) for key in SMALL_TRIALS}
        known = {key: value for key, value in given.items() if value is not None}
        return by_name(recipe)(**{**changes, **known})

    def runs(self, name: str, config: Config, count: int) -> Iterator[OwnRun]:
        """One run after the other, as many as there is time for."""
        found = Measured(name)
        self.measured.append(found)
        job = prepare(config)
        if job.config.train.lr == "auto":
            _, lr_max = search_before_training(job, lambda *_: None)
            say(f"{name}: LRMAX {lr_max:g} found")
            job = job.with_lr(lr_max)
        longest_s = COMPILING_S if self.options.compile else 0.0
        for seed in range(self.options.seed, self.options.seed + count):
            if time.monotonic() + longest_s > self.ends_s:
                say(f"{name}: {len(found.runs)} of {count} runs, then the time was over")
                return
            start_s = time.monotonic()
            try:
                run, warm_up_s = train_once(job, seed, compiled=self.options.compile)
            except (RuntimeError, VelodromeError) as error:  # what is measured so far is kept
                say(f"{name}, seed {seed} failed: {str(error).strip().splitlines()[0]}")
                return
            longest_s = time.monotonic() - start_s
            found.runs.append(run)
            found.warm_ups_s.append(warm_up_s)
            say(
                f"{name}, seed {seed}: {run.accuracy_tta:.2%} in {run.time_s:.3f} s, {warm_up_s:.1f} s before"
            )
            self.keep()
            yield run

    def keep(self) -> None:
        """Write down every run so far."""
        if self.options.json:
            rows = {one.name: [run.to_dict() for run in one.runs] for one in self.measured}
            self.options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def say(line: str) -> None:
    """One line of progress."""
    print(line, file=sys.stderr, flush=True)


def train_once(job: Job, seed: int, *, compiled: bool) -> tuple[OwnRun, float]:
    """A run from a new network to the final answers, without a folder; and the seconds of its warm-up."""
    trial = job.throwaway(seed)
    state, config, warm_up_s = trial.state, trial.config, 0.0
    with memory_kept(job.device):
        with convolutions_tuned(job.device):
            for event in events_of(trial, compiled=compiled):
                if isinstance(event, WarmedUp):
                    warm_up_s = event.seconds
        tta = config.evaluate.tta
        trained = Trained(state.model, trial.normalisation, trial.device, config.run.precision, tta)
        start_s = time.perf_counter()
        answers = answers_of(trained, trial.splits.test)
        predict_s = time.perf_counter() - start_s
    labels = torch.from_numpy(trial.splits.test.labels)
    plain, with_tta = (accuracy(logits, labels) for logits in answers)
    run = OwnRun(
        seed,
        accuracy=plain,
        accuracy_tta=with_tta,
        train_s=state.clock.elapsed_s(),
        predict_s=predict_s,
        train_pflop=train_pflop(trial),
        prepare_s=job.prepare_s,
    )
    return run, warm_up_s


def events_of(job: Job, *, compiled: bool) -> Iterator[object]:
    """The training of a job, without scores."""
    train, run = job.config.train, job.config.run
    lr_at = make_schedule(train, job.loader.steps_per_epoch)
    return fit(
        job.state,
        job.loader,
        lr_at,
        train,
        precision=run.precision,
        seed=run.seed,
        score=lambda _network: NO_SCORES,
        compiled=compiled,
    )


def first_losses(config: Config, *, compiled: bool) -> list[float]:
    """The losses of the first steps of a run."""
    job = prepare(config)
    losses: list[float] = []
    for event in events_of(job, compiled=compiled):
        if isinstance(event, StepDone):
            if job.state.step == STEPS_COMPARED or job.state.meter.done == job.loader.steps_per_epoch:
                losses += job.state.meter.step_losses()
            if job.state.step == STEPS_COMPARED:
                break
    return losses[:STEPS_COMPARED]


def correctness(sitting: Sitting) -> list[str]:
    """How far the losses of the first steps on the device are from those on the CPU, as Markdown."""
    lines, rows = ["### The first steps, beside the CPU", ""], []
    for recipe, changes in (("speed94", {}), ("dawnbench", SMALLER)):
        config = resolve(sitting.config(recipe, **changes))
        on_cpu = replace(config, run=replace(config.run, device="cpu", precision="fp32"))
        expected = first_losses(on_cpu, compiled=False)
        ways = [("fp32", False), (config.run.precision, False)]
        if sitting.options.compile:
            ways += [("fp32", True), (config.run.precision, True)]
        for precision, compiled in ways:
            there = replace(config, run=replace(config.run, precision=precision))
            found = first_losses(there, compiled=compiled)
            apart = [abs(a - b) / b for a, b in zip(found, expected, strict=True)]
            how = f"{precision}{', compiled' if compiled else ''}"
            rows.append([recipe, how, f"{found[0]:.4f}", f"{expected[0]:.4f}", f"{found[-1]:.4f}"])
            rows[-1] += [f"{expected[-1]:.4f}", f"{statistics.median(apart):.2%}", f"{max(apart):.2%}"]
    head = ("recipe", "on the device", "first loss", "on the CPU", "last loss", "on the CPU")
    return [*lines, *table((*head, "median difference", "largest"), rows)]


def ceilings(config: Config) -> tuple[list[str], dict[str, float]]:
    """The speed of matrix products, as Markdown and in GFLOP/s."""
    speeds = matrix_speeds(torch.device(config.run.device))
    rows = [(name, f"{speed / 1e3:,.2f}") for name, speed in speeds.items()]
    return ["### Ceilings", "", *table(("matrix products in", "TFLOP/s"), rows)], speeds


def recipes(sitting: Sitting, ceiling_gflops: float) -> list[str]:
    """The runs of all recipes that were asked for, and of another program in turn with the first."""
    options, lines = sitting.options, []
    for name in options.only:
        if name == "ablation":
            for what, changes in ABLATION.items():
                for _ in sitting.runs(
                    f"dawnbench: {what}", sitting.config("dawnbench", **changes), runs_of(options, name)
                ):
                    pass
        elif options.against and not lines:
            lines = against(sitting, name)
        else:
            for _ in sitting.runs(name, sitting.config(name), runs_of(options, name)):
                pass
    rows = [found.row(ceiling_gflops) for found in sitting.measured if found.runs]
    return ["### Recipes", "", *table(COLUMNS, rows), *lines]


def runs_of(options: argparse.Namespace, name: str) -> int:
    """How many runs are wanted."""
    return dict(options.runs).get(name, RUNS[name])


def against(sitting: Sitting, name: str) -> list[str]:
    """Runs of a recipe, and between them the other program, once in each round; as Markdown."""
    options, wanted = sitting.options, runs_of(sitting.options, name)
    each = -(-wanted // options.rounds)
    rows, ratios = [], []
    own = sitting.runs(name, sitting.config(name), wanted)
    for number in range(1, options.rounds + 1):
        block = list(itertools.islice(own, each))
        if not block:
            break
        ours = statistics.median(run.time_s or 0.0 for run in block)
        done = subprocess.run(
            ["timeout", str(max(1, round(sitting.ends_s - time.monotonic()))), "sh", "-c", options.against],
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        times = [float(value) for value in re.findall(options.against_time, output)]
        shares = [float(value) for value in re.findall(options.against_accuracy, output)]
        if done.returncode or not times:
            last = output.strip().splitlines()[-1:] or ["no output"]
            return [f"The other program failed with exit code {done.returncode}: {last[0]}", ""]
        theirs = statistics.median(times)
        ratios.append(ours / theirs)
        mean = f"{statistics.fmean(shares):.4g} (n = {len(shares)})" if shares else "-"
        rows.append([str(number), f"{ours:.3f}", str(len(block)), f"{theirs:.3f}", str(len(times)), mean])
        rows[-1].append(f"{ratios[-1]:.3f}")
    if not ratios:
        return [f"Against `{options.against}`: the time was over before a round was.", ""]
    head = ("round", "ours (s)", "n", "other (s)", "n", "its accuracy", "ours / other")
    return [
        f"Against `{options.against}`, in turn:",
        "",
        *table(head, rows),
        f"- ours / other: {tables.spread(ratios)}",
        "",
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, append to a file. Bad input is one line on stderr and exit code 2."""
    options = parse(arguments)
    load = os.getloadavg()[0]
    try:
        sitting = Sitting(options)
        config = resolve(sitting.config("speed94"))
        lines, speeds = ceilings(config)
        if not options.unchecked:
            lines = [*correctness(sitting), *lines]
        lines += recipes(sitting, speeds.get(config.run.precision, speeds["bf16"]))
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    setting = f"{'Compiled and captured' if options.compile else 'Neither compiled nor captured'}."
    head = tables.heading(
        "a sitting on a GPU", tables.machine_rows(config, load), tables.command_line(arguments), setting, load
    )
    tables.print_and_append("\n".join([*head, *lines]), options.output)
    return 0


def name_and_count(text: str) -> tuple[str, int]:
    """NAME=N."""
    name, _, count = text.partition("=")
    if name not in RUNS:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(RUNS)}")
    return name, at_least(1)(count)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A sitting on a GPU; see the docstring.")
    for key in ("data", "data_root", "device", "precision", *SMALL_TRIALS):
        parser.add_argument(f"--{key.replace('_', '-')}", help="as in velodrome train")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=USUAL, help="what to train")
    parser.add_argument(
        "--runs", nargs="+", type=name_and_count, default=[], metavar="NAME=N", help=f"how often; else {RUNS}"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--minutes", type=float, default=9.5, help="after which no run begins; else 9.5")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--unchecked", action="store_true", help="no comparison with the CPU")
    parser.add_argument("--against", metavar="COMMAND", help="another program, in turn with the first recipe")
    parser.add_argument("--against-time", metavar="REGEX", default=r"([\d.]+) ?s", help="its seconds")
    parser.add_argument("--against-accuracy", metavar="REGEX", default=r"accuracy:? ([\d.]+)")
    parser.add_argument("--rounds", type=at_least(1), default=3, help="of ours and the other program")
    parser.add_argument("--json", type=in_a_folder, help="file for every run")
    parser.add_argument("--output", type=in_a_folder, help="Markdown file to which the tables are appended")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
