"""A model of the time of a training step on several ranks: fitted here, checked here, and computed for GPUs.

    step = compute + what of the all-reduce does not travel during the backward pass
    compute = fixed + seconds an image x images of a rank
    all-reduce = 2 (N - 1) / N x bytes / bandwidth + 2 ceil(log2 N) x latency

The all-reduce is that of a ring for its bytes and of a tree for its latency (Patarasu and Yuan, "Bandwidth
optimal all-reduce algorithms for clusters of workstations", JPDC 2009; Sanders, Speck and Träff, "Two-tree
algorithms for full bandwidth broadcast, reduction and scan", Parallel Computing 2009).

Three things are measured, each in new processes with a core each, round after round: steps of two processes
that never talk, with several numbers of images each; all-reduces of several sizes between two gloo ranks; and
steps of two ranks. The first two give the constants; from these the third is computed, and compared.

    python benchmarks/scaling.py --data-root DIR --output benchmarks/scaling.md

needs a machine that does nothing else, with two cores. What is computed for GPUs comes from a published speed
of the same network and from nominal links: nothing of that is measured here, and its tables say so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dated_tables import command_line, heading, machine_rows, print_and_append, spread, table
from ranks import be_pinned, config_of, measured, seconds_of_reduction, seconds_of_step

from velodrome.distributed import join
from velodrome.job import resolve

GPUS = (1, 2, 4, 8, 16, 32, 64)
GPUS_A_MACHINE = 8
# The gradients of resnet9 in float32.
RESNET9_BYTES = 4 * 6_573_120
ENOUGH = 0.8


@dataclass(frozen=True)
class Computing:
    """What a rank takes for its part of a step, without the others.

    Attributes:
        fixed_s: seconds of any step, however small.
        image_s: seconds of each image.
        hidden: share of these seconds during which gradients travel for nothing; 0 where the cores that
            compute must carry them too.
        last: share of the gradients that are complete only when the backward pass ends.
    """

    fixed_s: float
    image_s: float
    hidden: float = 0.0
    last: float = 1.0

    def seconds(self, images: float) -> float:
        """Of a step with so many images."""
        return self.fixed_s + self.image_s * images


@dataclass(frozen=True)
class Link:
    """What connects ranks: seconds of a message without content, and bytes a second in one direction."""

    latency_s: float
    bandwidth: float

    def all_reduce_s(self, size: int, n_bytes: float) -> float:
        """Seconds until the sum of `n_bytes` of each of `size` ranks is on all of them."""
        if size == 1:
            return 0.0
        return (
            2 * (size - 1) / size * n_bytes / self.bandwidth + 2 * math.ceil(math.log2(size)) * self.latency_s
        )


def step_s(computing: Computing, link: Link, size: int, batch: int, n_bytes: int) -> float:
    """Seconds of a step of `size` ranks with `batch` images in all."""
    compute_s = computing.seconds(batch / size)
    waiting_s = link.all_reduce_s(size, n_bytes) - computing.hidden * compute_s
    return compute_s + max(waiting_s, link.all_reduce_s(size, computing.last * n_bytes))


def efficiency(computing: Computing, link: Link, size: int, batch: int, n_bytes: int) -> float:
    """The speed of `size` ranks over `size` times that of one rank with the same batch; 1 is perfect."""
    alone_s = computing.seconds(batch)
    return alone_s / (size * step_s(computing, link, size, batch, n_bytes))


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(a, b) with the least sum of squares of relative errors of a + b x size."""
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    (fixed, each), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y), rcond=None)
    return float(fixed), float(each)


def fit_link(n_bytes: Sequence[float], seconds: Sequence[float]) -> Link:
    """The link between two ranks whose all-reduces took so long."""
    fixed_s, byte_s = fit_line(n_bytes, seconds)
    return Link(max(fixed_s, 0.0) / 2, 1 / byte_s)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of a step for each number of images of a rank, and of all-reduces of each size."""
    with join(lambda: torch.device("cpu")) as world:
        found = [
            seconds_of_step(
                config_of(options, images * world.size), world, options.first_steps, options.steps
            )
            for images in options.images
        ]
        values = [256 * kilobytes for kilobytes in options.kilobytes] + [found[0][1]]
        reduce_s = [seconds_of_reduction(n, world) for n in values] if not world.is_alone else []
        return {"step_s": [s for s, _ in found], "bytes": [4.0 * n for n in values], "reduce_s": reduce_s}


def in_order(found: Sequence[dict[str, list[float]]], key: str) -> list[float]:
    """What the slower of two processes took, at each place."""
    return [max(pair) for pair in zip(*(one[key] for one in found), strict=True)]


def medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The median over all rounds, at each place."""
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def checked(
    images: Sequence[int], computing: Computing, link: Link, n_bytes: int, rounds: Sequence[Sequence[float]]
) -> list[str]:
    """A table of the steps of two ranks, as they were computed and as they were measured."""
    rows, errors = [], []
    for place, part in enumerate(images):
        computed_s = step_s(computing, link, 2, 2 * part, n_bytes)
        took_s = [one[place] for one in rounds]
        errors.append(computed_s / statistics.median(took_s) - 1)
        alone_s = computing.seconds(part)
        rows.append(
            (
                str(part),
                f"{1000 * alone_s:.1f}",
                f"{1000 * computed_s:.1f}",
                spread([1000 * s for s in took_s]),
                f"{100 * errors[-1]:+.1f}%",
                f"{100 * alone_s / computed_s:.0f}%",
            )
        )
    columns = ("images of a rank", "alone, ms", "computed, ms", "measured, ms", "error", "share of compute")
    worst = max(abs(error) for error in errors)
    return [*table(columns, rows), f"The largest error is {100 * worst:.1f}%.", ""]


# What is computed only. The speed is that of one V100 with the same network in half precision, 24 epochs of
# 50,000 images in 79 s (Page, "How to train your ResNet", 2018); 3 ms to launch the kernels of a step is an
# assumption. In the backward pass, two thirds of a step, the gradients of the last block, nine tenths of all,
# are there after two fifths: the rest of the pass hides them.
V100_STEP_S, LAUNCH_S = 512 * 79 / (24 * 50_000), 0.003
V100 = Computing(LAUNCH_S, (V100_STEP_S - LAUNCH_S) / 512, hidden=0.4, last=0.1)
FASTER = Computing(LAUNCH_S, V100.image_s / 4, hidden=0.4, last=0.1)
NVLINK = Link(10e-6, 150e9)
# Between machines: a network card for each GPU, and one for all of them, which the ring passes once each way.
CARD_EACH, CARD_SHARED = Link(20e-6, 40e9), Link(30e-6, 10e9)


def link_of(size: int, between: Link) -> Link:
    """The slowest link that the gradients pass."""
    return NVLINK if size <= GPUS_A_MACHINE else between


def predictions(computing: Computing, between: Link, batches: Sequence[int]) -> list[str]:
    """Images a second and efficiency by GPUs, for a batch that stays and for one that grows with them."""

    def cell(size: int, batch: int, batch_of_one: int) -> str:
        speed = batch / step_s(computing, link_of(size, between), size, batch, RESNET9_BYTES)
        perfect = size * batch_of_one / computing.seconds(batch_of_one)
        return f"{speed:,.0f} ({100 * speed / perfect:.0f}%)"

    rows = [
        (str(size), *(cell(size, batch, batch) for batch in batches), cell(size, 512 * size, 512))
        for size in GPUS
    ]
    return table(("GPUs", *(f"batch {batch}" for batch in batches), "512 on each GPU"), rows)


def most_ranks(computing: Computing, between: Link, batch: int) -> int:
    """The largest number of GPUs with an efficiency of `ENOUGH`, the batch being the same for any number."""
    return max(
        size
        for size in GPUS
        if efficiency(computing, link_of(size, between), size, batch, RESNET9_BYTES) >= ENOUGH
    )


def computed(batches: Sequence[int]) -> list[str]:
    """All tables of what is computed for GPUs."""
    lines = []
    for name, computing in (("a V100", V100), ("a GPU that computes four times as fast", FASTER)):
        lines += [f"**Computed, not measured: {name}, a network card for each GPU.**", ""]
        lines += predictions(computing, CARD_EACH, batches)
    lines += [f"**Computed, not measured: the most GPUs with an efficiency of {ENOUGH:.0%}.**", ""]
    kinds = [
        ("a V100, a card for each GPU", V100, CARD_EACH),
        ("a V100, a card for eight", V100, CARD_SHARED),
        ("four times as fast, a card for each GPU", FASTER, CARD_EACH),
        ("four times as fast, a card for eight", FASTER, CARD_SHARED),
    ]
    rows = [
        (name, *(str(most_ranks(computing, between, batch)) for batch in batches))
        for name, computing, between in kinds
    ]
    return lines + table(("GPU and network", *(f"batch {batch}" for batch in batches)), rows)


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them."""
    return [int(word) for word in text.split(",")]


def arguments_of(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A model of the time of a step; see the docstring.")
    parser.add_argument("--data", default="cifar10", help="data set; shapes needs no folder")
    parser.add_argument("--data-root", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--width", type=int, default=64, help="of resnet9")
    parser.add_argument("--precision", default="auto", help="fp32, bf16 or auto")
    parser.add_argument(
        "--images", type=numbers, default=[4, 8, 16, 32, 64, 128], help="of a rank, in a step"
    )
    parser.add_argument(
        "--kilobytes", type=numbers, default=[16, 256, 1024, 4096, 16384], help="of an all-reduce"
    )
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--first-steps", type=int, default=3, help="that are not")
    parser.add_argument("--rounds", type=int, default=3, help="of one after the other")
    parser.add_argument(
        "--batches", type=numbers, default=[512, 2048, 8192], help="that are computed for GPUs"
    )
    parser.add_argument("--output", type=Path, help="Markdown file to which the tables are appended")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(arguments: Sequence[str]) -> int:
    """Measure in turn, fit, compare, compute, print, append."""
    options = arguments_of(arguments)
    if options.measure:
        be_pinned([int(core) for core in options.measure.split(",")])
        print(json.dumps(measure(options)))
        return 0
    load = os.getloadavg()[0]
    cores = [[core] for core in sorted(os.sched_getaffinity(0))[:2]]
    if len(cores) < 2:
        raise SystemExit(f"Two cores are needed, but this process may use {len(cores)}.")
    apart, ranks, reductions = [], [], []
    for _ in range(options.rounds):
        words = [__file__, *arguments]
        apart.append(in_order(measured(words, cores, talk=False), "step_s"))
        found = measured(words, cores, talk=True)
        ranks.append(in_order(found, "step_s"))
        reductions.append(in_order(found, "reduce_s"))
    n_bytes = found[0]["bytes"]
    computing = Computing(*fit_line(options.images, medians(apart)))
    link = fit_link(n_bytes, medians(reductions))
    setting = (
        f"`resnet9` at width {options.width}, {options.data}, {options.steps} steps each time, "
        f"{options.rounds} rounds. Each process has one core and one thread."
    )
    machine = machine_rows(resolve(config_of(options, options.images[0])), load)
    lines = heading("a model of the time of a step", machine, command_line(arguments), setting, load)
    lines += [
        f"Fitted: a step takes {1000 * computing.fixed_s:.1f} ms and {1000 * computing.image_s:.2f} ms an "
        f"image; a message takes {1e6 * link.latency_s:.0f} us, and gloo carries "
        f"{link.bandwidth / 1e9:.2f} GB/s each way.",
        "",
        "**Measured: two ranks.**",
        "",
        *checked(options.images, computing, link, int(n_bytes[-1]), ranks),
        "**Measured: one all-reduce between two ranks.**",
        "",
        *table(
            ("kB", "computed, ms", "measured, ms"),
            [
                (
                    f"{size / 1024:.0f}",
                    f"{1000 * link.all_reduce_s(2, size):.2f}",
                    spread([1000 * s for s in took]),
                )
                for size, took in zip(n_bytes, zip(*reductions, strict=True), strict=True)
            ],
        ),
        *computed(options.batches),
    ]
    print_and_append("\n".join(lines), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
