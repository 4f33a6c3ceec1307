"""How fast a training step is, against the least it could take and against what people use instead.

The claims: on two CPU cores, `resnet9` at batch 512 with augmentation reaches at least 0.92 of the throughput
of a bare forward, backward and step on one fixed batch, in the same precision; and at least 2.5 times that of
a plain float32 loop with torch's DataLoader and torchvision's transforms. It stays under 4 GiB of memory, and
CIFAR-10 is ready to train on in less than 0.5 s. In the same sitting: the loop of somebody who knows bf16 and
channels last, fastai and Lightning.

    python benchmarks/throughput.py --data-root DIR --output benchmarks/throughput.md

needs velodrome, torchvision, fastai, lightning, and a machine that does nothing else; `--only plain informed`
does without the two libraries.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import contestants
import contestants_torch
import torch
from contestants_libraries import RIVALS, check_installed
from dated_tables import (
    Claim,
    command_line,
    heading,
    machine_rows,
    middle_and_ends,
    print_and_append,
    ratios,
    table,
    version_of,
)
from torch import nn

from velodrome.config import Config
from velodrome.data.imageset import channel_statistics
from velodrome.data.sources import load_splits
from velodrome.device import memory_kept, synchronize
from velodrome.errors import ConfigError, VelodromeError
from velodrome.evaluation.predict import logits_of
from velodrome.job import Job, prepare, resolve
from velodrome.recipes import resnet9
from velodrome.run.environment import available_cores

SETTINGS = (
    "data",
    "data_root",
    "limit_train",
    "limit_test",
    "width",
    "batch_size",
    "seed",
    "device",
    "precision",
)
PARTS = ("memory", "ready", "speed")
READY_PROCESSES = 5
MEMORY_STEPS = 4


@dataclass(frozen=True)
class Figures:
    """All that was measured; empty where a part was left out."""

    peak_gib: list[float] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)
    speeds: dict[str, list[float]] = field(default_factory=dict)  # contestant -> images/s, one a round


def main(arguments: Sequence[str]) -> int:
    """Measure, print, append to a file. Bad input is one line on stderr and exit code 2."""
    options = parse(arguments)
    try:
        config = config_of(options)
        if options.child:
            print(json.dumps(CHILDREN[options.child](config)))
            return 0
        print_and_append(measure_all(config, options, arguments), options.output)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Throughput, memory and start of resnet9; see the docstring."
    )
    add_options(parser)
    parser.add_argument("--steps", type=at_least(1), default=6, help="timed steps of a block")
    parser.add_argument("--warmup", type=at_least(1), default=2, help="steps before the clock starts")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="blocks of each contestant")
    parser.add_argument("--only", nargs="+", choices=RIVALS, default=list(RIVALS), help="rivals; else all")
    parser.add_argument("--workers", type=at_least(0), nargs="+", default=[2, 0], help="of the rivals")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The settings of the recipe that a benchmark lets one change, and where its table goes."""
    for key in SETTINGS:
        parser.add_argument(f"--{key.replace('_', '-')}", help="as in velodrome train")
    parser.add_argument("--output", type=in_a_folder, help="Markdown file to which the tables are appended")


def at_least(least: int) -> Callable[[str], int]:
    """Reads a whole number that is not below `least`."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return number


def in_a_folder(text: str) -> Path:
    """The path of a file whose folder exists: found out before measuring, not after."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def config_of(options: argparse.Namespace) -> Config:
    """The recipe `resnet9` with the settings of the command line.

    Raises:
        ConfigError: a value breaks its rule.
    """
    given = {key: getattr(options, key) for key in SETTINGS}
    # Blocks that do not fit into what is left of an epoch begin in the next, so as many epochs as rounds do.
    epochs = max(resnet9().train.epochs, getattr(options, "rounds", 0))
    # Any learning rate takes as long as another; one is given so that none is searched for.
    return resnet9(epochs=epochs, lr=0.2, **{key: value for key, value in given.items() if value is not None})


def measure_all(config: Config, options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """Every part that was asked for, as Markdown."""
    load = os.getloadavg()[0]
    config = resolve(config)
    machine = machine_rows(config, load) | {name: version_of(name) for name in ("fastai", "lightning")}
    if "speed" in options.parts:
        contestants_torch.import_torchvision()  # missing, it should be missed now, not after minutes
        check_installed(options.only)
    # These come first, while this process is small: on Linux a child's peak memory starts at its parent's.
    children = {"memory": 1, "ready": READY_PROCESSES}
    peak_gib, ready_s = (
        [in_new_process(part, arguments) for _ in range(count) if part in options.parts]
        for part, count in children.items()
    )
    speeds = measure_speeds(prepare(config), options) if "speed" in options.parts else {}
    figures = Figures(peak_gib, ready_s, speeds)
    return report(figures, machine, command_line(arguments), setting=setting_of(config, options), load=load)


def measure_speeds(job: Job, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images/s of each contestant, one value a round.

    The contestants take turns (A B C D A B C D ...), so whatever changes slowly on the machine, such as its
    clock, meets all of them, and the ratio of two is taken within each round. Each begins its block with
    steps that are not timed, in which caches, allocator and workers settle: nobody pays for the one before.

    Raises:
        ConfigError: there are too few images for a block.
    """
    batch, block_steps = job.config.train.batch_size, options.warmup + options.steps
    check_fits(block_steps, job)
    entrants = [contestants.velodrome(job, block_steps), contestants.bare(job)]
    entrants += [RIVALS[rival](job, workers) for rival in options.only for workers in options.workers]
    speeds: dict[str, list[float]] = {contestant.name: [] for contestant in entrants}
    for number, contestant in itertools.product(range(options.rounds), entrants):
        seconds = time_block(contestant, options.warmup, options.steps, job.device)
        speeds[contestant.name].append(options.steps * batch / seconds)
        done = f"round {number + 1} of {options.rounds}: {contestant.name:26}"
        print(f"{done} {speeds[contestant.name][-1]:9.1f} images/s", file=sys.stderr)
    return speeds


def check_fits(steps: int, job: Job) -> None:
    """Check that an epoch has this many full batches.

    Raises:
        ConfigError: it has fewer.
    """
    batch, images = job.config.train.batch_size, len(job.splits.train)
    if steps * batch > images:
        raise ConfigError(
            f"{steps} steps in a row of {batch} images must fit into an epoch, which has {images} images.",
            "Use fewer --steps, a smaller --batch-size or a larger --limit-train.",
        )


class BlockWatch:
    """Takes the time of a block: `steps` steps after `warmup` others."""

    def __init__(self, warmup: int, steps: int, device: torch.device) -> None:
        self.warmup, self.steps, self.device = warmup, warmup + steps, device
        self.done, self.start_s, self.seconds = 0, 0.0, 0.0

    def begin(self) -> None:
        """The warm-up begins; there is always one."""

    def step_done(self) -> bool:
        """Starts the clock after the warm-up, and reads it after the last step."""
        self.done += 1
        if self.done == self.warmup:
            synchronize(self.device)
            self.start_s = time.perf_counter()
        elif self.done == self.steps:
            synchronize(self.device)
            self.seconds = time.perf_counter() - self.start_s
        return self.done >= self.steps

    def epoch_done(self, network: nn.Module) -> None:
        """Goes on: only steps count."""


def time_block(contestant: contestants.Contestant, warmup: int, steps: int, device: torch.device) -> float:
    """Seconds for `steps` steps after `warmup` others."""
    watch = BlockWatch(warmup, steps, device)
    contestant.train(watch)
    return watch.seconds


def in_new_process(part: str, arguments: Sequence[str]) -> float:
    """The figure that a process of its own prints for this part; ends this process if that one fails."""
    print(f"{part}: in a process of its own", file=sys.stderr)
    command = [sys.executable, __file__, *arguments, "--child", part]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{part}: that process failed with {done.returncode}", file=sys.stderr)
        raise SystemExit(done.returncode)
    return float(json.loads(done.stdout))


def peak_memory_gib(config: Config) -> float:
    """The most memory that this process has held, in GiB, after a little training and a whole evaluation.

    That is memory of the host; what a GPU holds is not in it.
    """
    job = prepare(config)
    network, test, precision = job.state.model, job.splits.test, job.config.run.precision
    with memory_kept(job.device):
        for _ in itertools.islice(contestants.training_steps(job), MEMORY_STEPS):
            pass
        # The largest thing that `velodrome train` does after training.
        logits_of(network, test, job.normalisation, device=job.device, precision=precision, mirrored=True)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB, macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def seconds_until_ready(config: Config) -> float:
    """Seconds to verify and read the images and to compute the constants that normalise them."""
    start_s = time.perf_counter()
    splits = load_splits(config.data, config.run.seed, progress=False)
    channel_statistics(splits.train.images_u8)
    return time.perf_counter() - start_s


CHILDREN = {"memory": peak_memory_gib, "ready": seconds_until_ready}


def report(figures: Figures, machine: Mapping[str, str], command: str, *, setting: str, load: float) -> str:
    """The tables and the verdicts, as Markdown."""
    lines = heading("throughput of `resnet9`", machine, command, setting, load)
    if figures.speeds:
        rows = [(name, *middle_and_ends(values, ".1f")) for name, values in figures.speeds.items()]
        lines += table(("images/s", "median", "min", "max", "n"), rows)
        rows = [
            (f"velodrome / {name}", *middle_and_ends(ratios(figures.speeds, "velodrome", name), ".3f"))
            for name in figures.speeds
            if name != "velodrome"
        ]
        lines += table(("ratio within each round", "median", "min", "max", "n"), rows)
    return "\n".join([*lines, *(f"- {claim}" for claim in claims(figures)), ""])


def claims(figures: Figures) -> list[Claim]:
    """The claims that the figures bear on. Of the plain loops the faster one counts."""
    found = []
    speeds = figures.speeds
    if speeds:
        found.append(Claim("velodrome / bare", ratios(speeds, "velodrome", "bare"), 0.92, or_more=True))
    if rivals := [name for name in speeds if name.startswith("plain")]:
        faster = max(rivals, key=lambda name: statistics.median(speeds[name]))
        against = ratios(speeds, "velodrome", faster)
        found.append(Claim(f"velodrome / {faster}, the faster plain loop", against, 2.5, or_more=True))
    if figures.peak_gib:
        what = f"peak memory of {MEMORY_STEPS} steps and an evaluation, in a new process"
        found.append(Claim(what, figures.peak_gib, 4, or_more=False, unit=" GiB"))
    if figures.ready_s:
        what = "images ready in a new process, after imports, files in the page cache"
        found.append(Claim(what, figures.ready_s, 0.5, or_more=False, unit=" s"))
    return found


def setting_of(config: Config, options: argparse.Namespace) -> str:
    """What was trained and how it was timed; it says where that is not what the claims are about."""
    blocks = f"{options.rounds} rounds of {options.steps} steps after {options.warmup}."
    data = config.data
    as_claimed = (
        (data.data, data.limit_train, data.limit_test) == ("cifar10", None, None)
        and (config.model.width, config.train.batch_size, config.run.device) == (64, 512, "cpu")
        and available_cores() == torch.get_num_threads() == 2
    )
    remark = "" if as_claimed else " The claims are about another setting: for orientation only."
    return f"{what_is_trained(config)}; {blocks}{remark}"


def what_is_trained(config: Config) -> str:
    """Images, network, batch and seed."""
    limit = config.data.limit_train
    images = f"{limit} images" if limit else "All images"
    model, train, seed = config.model, config.train, config.run.seed
    return f"{images} of {config.data.data}, width {model.width}, batch {train.batch_size}, seed {seed}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
