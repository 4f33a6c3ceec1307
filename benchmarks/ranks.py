"""Two gloo ranks with a core each against one process with both cores: images a second, and where time goes.

Three contestants work through the same global batches in turn, round after round, each time in new processes:
one process with two threads; two ranks with a core each; and two processes with a core each that have half of
each batch and never talk. The last is what ranks could reach if talking were free. What one all-reduce of the
gradients takes with nothing else to do is measured too.

    python benchmarks/ranks.py --data-root DIR --output benchmarks/ranks.md

needs a machine that does nothing else, with two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from dated_tables import command_line, heading, machine_rows, print_and_append, ratios, spread, table

from velodrome.config import Config
from velodrome.device import memory_kept
from velodrome.distributed import World, join
from velodrome.events import StepDone
from velodrome.job import prepare_together, resolve
from velodrome.recipes import resnet9
from velodrome.training.loop import NO_SCORES, fit

RANKS = 2


def config_of(options: argparse.Namespace, batch_size: int) -> Config:
    """The network, and as many images as the steps need."""
    return resnet9(
        data=options.data,
        data_root=options.data_root,
        width=options.width,
        batch_size=batch_size,
        limit_train=batch_size * (options.steps + options.first_steps),
        epochs=1,
        lr=0.01,
        device="cpu",
        precision=options.precision,
    )


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step, and those that gradients take on their way."""
    with join(lambda: torch.device("cpu")) as world:
        config = config_of(options, options.batch_size // (RANKS if options.half else 1))
        step_s, values = seconds_of_step(config, world, options.first_steps, options.steps)
        return {
            "step_s": step_s,
            "reduce_s": seconds_of_reduction(values, world),
            "gradient_mb": 4 * values / 1e6,
        }


def seconds_of_step(config: Config, world: World, first_steps: int, steps: int) -> tuple[float, int]:
    """The mean over some steps of training; and how many values have gradients.

    Args:
        config: what is trained; its data must be enough for all the steps.
        world: all ranks, which take part of each step.
        first_steps: these choose kernels, and fill the memory.
        steps: that are timed.
    """
    job = prepare_together(config, world, progress=False)
    training = fit(
        job.state,
        job.loader,
        lambda _step: 0.01,
        job.config.train,
        precision=job.config.run.precision,
        seed=0,
        score=lambda _network: NO_SCORES,
    )
    with memory_kept(job.device):
        start_s = 0.0
        for event in training:
            if isinstance(event, StepDone) and event.step + 1 == first_steps:
                world.wait()
                start_s = time.perf_counter()
            if isinstance(event, StepDone) and event.step + 1 == first_steps + steps:
                break
        world.wait()
        step_s = (time.perf_counter() - start_s) / steps
    parameters = job.state.model.parameters()
    return step_s, sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def seconds_of_reduction(values: int, world: World) -> float:
    """Of an all-reduce of so many float32; the median of ten."""
    gradient, seconds = torch.ones(values), []
    for _ in range(10):
        world.wait()
        start_s = time.perf_counter()
        world.sum(gradient)
        seconds.append(time.perf_counter() - start_s)
    return statistics.median(seconds[1:])


def be_pinned(cores: Sequence[int]) -> None:
    """Work on these cores only, with a thread on each."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))


def run(cores_of_processes: Sequence[Sequence[int]], *, talk: bool = True) -> dict[str, float]:
    """Start a process for each group of cores; what the slowest measured.

    Args:
        cores_of_processes: on which each works.
        talk: several are ranks of one run; else each trains by itself on half of each batch.
    """
    words = [__file__, *sys.argv[1:], *([] if talk else ["--half"])]
    return max(measured(words, cores_of_processes, talk=talk), key=lambda one: one["step_s"])


def measured(words: Sequence[str], cores_of_processes: Sequence[Sequence[int]], *, talk: bool) -> list[Any]:
    """What a script prints as JSON, with `--measure CORES`, in a process for each group of cores.

    Args:
        words: the script and its other options.
        cores_of_processes: on which each works.
        talk: they are ranks that can meet; else each is alone.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size, processes = len(cores_of_processes) if talk else 1, []
    for rank, cores in enumerate(cores_of_processes):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "OMP_NUM_THREADS": len(cores)}
        env = {**os.environ, **{key: str(value) for key, value in told.items()}}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        line = [sys.executable, *words, "--measure", ",".join(map(str, cores))]
        processes.append(subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("A measurement failed; its message is above.")
    return [json.loads(text.splitlines()[-1]) for text in printed]


def main(arguments: Sequence[str]) -> int:
    """Measure in turn, print, append."""
    parser = argparse.ArgumentParser(description="Two gloo ranks against two threads; see the docstring.")
    parser.add_argument("--data", default="cifar10", help="data set; shapes needs no folder")
    parser.add_argument("--data-root", help="folder that holds cifar-10-batches-py")
    parser.add_argument("--width", type=int, default=64, help="of resnet9")
    parser.add_argument("--batch-size", type=int, default=512, help="of all ranks together")
    parser.add_argument("--precision", default="auto", help="fp32, bf16 or auto")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--first-steps", type=int, default=3, help="that are not")
    parser.add_argument("--rounds", type=int, default=5, help="of one after the other")
    parser.add_argument("--output", type=Path, help="Markdown file to which the tables are appended")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--half", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        be_pinned([int(core) for core in options.measure.split(",")])
        print(json.dumps(measure(options)))
        return 0
    load = os.getloadavg()[0]
    cores = sorted(os.sched_getaffinity(0))[:RANKS]
    if len(cores) < RANKS:
        raise SystemExit(f"{RANKS} cores are needed, but this process may use {len(cores)}.")
    steps: dict[str, list[float]] = {"threads": [], "ranks": [], "apart": []}
    reductions = []
    for _ in range(options.rounds):
        one_each = [[core] for core in cores]
        steps["threads"].append(run([cores])["step_s"])
        ranks = run(one_each)
        steps["ranks"].append(ranks["step_s"])
        reductions.append(ranks["reduce_s"])
        steps["apart"].append(run(one_each, talk=False)["step_s"])
    speeds = {name: [options.batch_size / step_s for step_s in taken] for name, taken in steps.items()}
    rows = [
        (str(number), *(f"{speeds[name][number - 1]:.1f}" for name in speeds), f"{1000 * reduce_s:.1f}")
        for number, reduce_s in enumerate(reductions, 1)
    ]
    setting = (
        f"`resnet9` at width {options.width}, batch {options.batch_size} in all, {options.data}, "
        f"{options.steps} steps each time. One process has {RANKS} threads, each of {RANKS} ranks one, on a "
        "core of its own."
    )
    lines = heading(
        "gloo ranks against threads",
        machine_rows(resolve(config_of(options, options.batch_size)), load),
        command_line(arguments),
        setting,
        load,
    )
    columns = ("round", "threads, images/s", "ranks, images/s", "apart, images/s", "one all-reduce, ms")
    shares = [100 * reduce_s / step_s for reduce_s, step_s in zip(reductions, steps["ranks"], strict=True)]
    lines += table(columns, rows)
    lines += [
        f"Ranks over threads: {spread(ratios(speeds, 'ranks', 'threads'))}.",
        f"Apart over threads, what one thread each gains: {spread(ratios(speeds, 'apart', 'threads'))}.",
        f"Ranks over apart, what talking and waiting cost: {spread(ratios(speeds, 'ranks', 'apart'))}.",
        "",
        f"One all-reduce of the {ranks['gradient_mb']:.1f} MB of gradients, with nothing else to do, takes "
        f"{spread(shares, '%')} of a step of the ranks. In training most of it happens during the backward "
        "pass, for which it takes time from the same cores.",
        "",
    ]
    print_and_append("\n".join(lines), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
