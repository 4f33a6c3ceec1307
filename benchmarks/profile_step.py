"""Where the time of a training step goes, by kind of work.

    python benchmarks/profile_step.py --data-root DIR

runs a few steps of the path of `velodrome train` under torch.profiler and prints ms per step and percent for
convolution, batch norm, pooling and so on. What a step takes without the profiler stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import contestants
import dated_tables as tables
import throughput
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from velodrome.data.loader import Epoch, Loader
from velodrome.device import memory_kept, synchronize
from velodrome.errors import VelodromeError
from velodrome.job import Job, prepare, resolve

BATCH = "making a batch"  # the range in the profile around the loader
AUGMENTATION, OPTIMIZER, OTHER = "augmentation", "optimizer", "other torch"
# What an operation does by its bare name (see `bare_name`); the first kind that fits counts.
KINDS = {
    "convolution": re.compile(r"conv(?!ert)"),
    "batch norm": re.compile(r"batch_?norm"),
    "pooling": re.compile(r"pool"),
    "linear layer": re.compile(r"^(linear|matmul|mm|addmm|t)$"),
    OPTIMIZER: re.compile(r"^(optimizer\.|_(fused|foreach)_)"),
    "copies and layout": re.compile(r"^(copy_|_?to_?copy|to|clone|contiguous)$"),
    "pointwise and loss": re.compile(
        r"^_?(relu|threshold|clamp|add|sub|mul|div|neg|abs|sum|mean|eq|ne|ge|gt|le|lt|where|isfinite|argmax"
        r"|bitwise|logical|reciprocal|sqrt|cross_?entropy|log_?softmax|nll_?loss|masked_fill)"
    ),
}
AROUND_NAME = re.compile(r"^(autograd::engine::evaluate_function: )?(aten::|torch::autograd::)?|backward\d+$")


class MarkedEpoch:
    """An epoch that makes each batch within a range of the profile."""

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.epoch)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        with record_function(BATCH):
            return self.epoch[step]

    def batch(self, step: int, side: int | None) -> tuple[Tensor, Tensor]:
        """A batch of this side in pixels, for warming up."""
        return self.epoch.batch(step, side)


class MarkedLoader:
    """A loader of marked epochs, with as much of a loader as the training loop uses."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.device = loader.device
        self.steps_per_epoch = loader.steps_per_epoch
        self.kinds = loader.kinds
        self.world = loader.world
        self.class_weights = loader.class_weights

    def epoch(self, epoch: int) -> MarkedEpoch:
        """The batches of an epoch."""
        return MarkedEpoch(self.loader.epoch(epoch))


def main(arguments: Sequence[str]) -> int:
    """Profile, print, append to a file. Bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description="Time of a training step by kind of work.")
    throughput.add_options(parser)
    parser.add_argument("--steps", type=throughput.at_least(1), default=6, help="steps to profile")
    parser.add_argument("--warmup", type=throughput.at_least(1), default=2, help="steps before that")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    try:
        config = resolve(throughput.config_of(options))
        job = prepare(config)
        throughput.check_fits(options.warmup + 2 * options.steps, job)
        with memory_kept(job.device):
            profiled = profile_steps(job, options.warmup, options.steps)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    setting = f"{throughput.what_is_trained(config)}; {options.steps} steps after {options.warmup}."
    title, command = "where the time of a step goes", tables.command_line(arguments)
    lines = tables.heading(title, tables.machine_rows(config, load), command, setting, load)
    tables.print_and_append("\n".join([*lines, *profiled.table(options.steps)]), options.output)
    return 0


@dataclass(frozen=True)
class Profiled:
    """Where the time of some steps went.

    Attributes:
        by_kind: seconds by kind of work.
        wall_s: seconds that the steps took under the profiler.
        unprofiled_s: seconds that as many steps took before, without it.
        rest: what the seconds are that belong to no operation.
    """

    by_kind: Mapping[str, float]
    wall_s: float
    unprofiled_s: float
    rest: str

    def table(self, steps: int) -> list[str]:
        """Milliseconds a step and percent, the longest first, as lines of Markdown."""
        rest_s = self.wall_s - sum(self.by_kind.values())
        ranked = sorted(self.by_kind.items(), key=lambda item: -item[1])
        rows = [
            (kind, f"{1e3 * seconds / steps:.1f}", f"{100 * seconds / self.wall_s:.1f}%")
            for kind, seconds in [*ranked, (self.rest, rest_s), ("a step under the profiler", self.wall_s)]
        ]
        without = f"Without the profiler: {1e3 * self.unprofiled_s / steps:.1f} ms a step."
        if rest_s < 0:
            without += " **The operations add up to more than the wall time: some ran side by side.**"
        return [*tables.table(("kind of work", "ms a step", "share"), rows), without, ""]


def profile_steps(job: Job, warmup: int, steps: int) -> Profiled:
    """Train on: some steps to warm up, some without the profiler, and as many under it."""
    training = contestants.training_steps(replace(job, loader=MarkedLoader(job.loader)))
    on_gpu = job.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def timed(count: int) -> float:
        start_s = time.perf_counter()
        for _ in itertools.islice(training, count):
            pass
        synchronize(job.device)
        return time.perf_counter() - start_s

    timed(warmup)
    unprofiled_s = timed(steps)
    with profile(activities=activities) as profiler:
        wall_s = timed(steps)
    by_kind = seconds_by_kind(profiler.events(), on_gpu=on_gpu)
    return Profiled(by_kind, wall_s, unprofiled_s, "GPU idle" if on_gpu else "Python")


def seconds_by_kind(events: Iterable[Any], *, on_gpu: bool) -> dict[str, float]:
    """The own time of all operations, without that of operations they call, added up by kind.

    On the CPU that is time by the clock. Work that an operation spreads over several cores counts once, as
    only the thread that calls it leaves an event. The backward pass runs in the thread that calls `backward`;
    where the network is on a GPU it has a thread of its own, for which the first one waits without an event.
    So no two events run side by side, the own times of all threads add up to no more than the wall time, and
    what is missing is Python between the operations.

    On a GPU an operation is given the time of the kernels that it started. They run one after another, and
    what is missing is time in which the GPU had nothing to do.
    """
    seconds: Counter[str] = Counter()
    for event in events:
        if event.device_type == DeviceType.CPU:  # kernels are counted with the operation that started them
            own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            seconds[kind_of(names_outwards(event))] += own_us / 1e6
    return dict(seconds)


def names_outwards(event: Any) -> list[str]:
    """The name of an event and of all that it ran in, innermost first."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def kind_of(names: Sequence[str]) -> str:
    """The kind of work of an operation.

    All that runs within the making of a batch or a step of the optimizer belongs there. Else the name
    decides, and where it says nothing (`aten::empty`, `aten::fill_`), that of the operation which called it.

    Args:
        names: of the operation and of all that it ran in, innermost first.
    """
    if BATCH in names:
        return AUGMENTATION
    if any(name.startswith("Optimizer.") for name in names):
        return OPTIMIZER
    for name in map(bare_name, names):
        for kind, pattern in KINDS.items():
            if pattern.search(name):
                return kind
    return OTHER


def bare_name(name: str) -> str:
    """In small letters, without what torch puts around: "aten::relu_" -> "relu_", "MmBackward0" -> "mm"."""
    return AROUND_NAME.sub("", name.lower())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
