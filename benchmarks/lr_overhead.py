"""What a range test costs beyond its steps: `search_job` in turn with as many plain training steps.

The claim: less than 3% more. Counted are the throwaway network, the loop, the looks at the losses, the rules
and the verdict; the two figures that `velodrome lr-find` draws are timed apart.

    python benchmarks/lr_overhead.py --data-root DIR --output benchmarks/lr_overhead.md

needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dated_tables import Claim, command_line, heading, machine_rows, print_and_append, spread, table

from velodrome.config import SearchSection
from velodrome.device import memory_kept
from velodrome.events import StepDone
from velodrome.job import Job, prepare
from velodrome.lr_search import search_job
from velodrome.recipes import resnet9
from velodrome.training.loop import NO_SCORES, fit


def time_search(job: Job) -> tuple[float, int, float]:
    """Seconds of a range test, its steps, and seconds of writing its figures and data."""
    start_s = time.perf_counter()
    found = search_job(job, SearchSection())
    searched_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder))
    # Steps beyond the end of the curve were taken too, until the next look at the losses.
    taken = round(found.sweeps[0].images / job.config.train.batch_size)
    return searched_s - start_s, taken, time.perf_counter() - searched_s


def time_steps(job: Job, steps: int) -> float:
    """Seconds of so many steps of training with a small learning rate, by the same loop."""
    trial = job.throwaway(job.config.run.seed)
    training = fit(
        trial.state,
        trial.loader,
        lambda _step: 1e-3,
        trial.config.train,
        precision=trial.config.run.precision,
        seed=trial.config.run.seed,
        score=lambda _network: NO_SCORES,
    )
    events = (event for event in training if isinstance(event, StepDone))
    with memory_kept(trial.device):
        start_s = time.perf_counter()
        for _ in itertools.islice(events, steps):
            pass
        return time.perf_counter() - start_s


def main(arguments: Sequence[str]) -> int:
    """Measure in turn, print, append."""
    parser = argparse.ArgumentParser(description="Overhead of a range test; see the docstring.")
    parser.add_argument("--data-root", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--width", type=int, default=16, help="of resnet9; a narrow one shows more overhead")
    parser.add_argument("--rounds", type=int, default=7, help="of a search and as many plain steps")
    parser.add_argument("--output", type=Path, help="Markdown file to which the tables are appended")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    job = prepare(resnet9(data_root=options.data_root, width=options.width))
    time_steps(job, 3)  # the first ones choose kernels
    rows, overheads, figures_s = [], [], []
    for number in range(1, options.rounds + 1):
        search_s, steps, saving_s = time_search(job)
        plain_s = time_steps(job, steps)
        overheads.append(100 * (search_s / plain_s - 1))
        figures_s.append(saving_s)
        rows.append((str(number), str(steps), f"{search_s:.2f}", f"{plain_s:.2f}", f"{overheads[-1]:+.2f}%"))
    claim = Claim("overhead", overheads, 3.0, or_more=False, unit="%")
    setting = f"`resnet9` at width {options.width}, batch 512, CIFAR-10, one after the other."
    lines = heading(
        "a range test against plain steps",
        machine_rows(job.config, load),
        command_line(arguments),
        setting,
        load,
    )
    lines += table(("round", "steps taken", "range test, s", "as many plain steps, s", "overhead"), rows)
    lines += [
        f"{claim}.",
        "",
        f"Figures and JSON: {spread(figures_s, ' s')}, the first with the import of matplotlib.",
        "",
    ]
    print_and_append("\n".join(lines), options.output)
    return 0 if statistics.median(overheads) < claim.wanted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
