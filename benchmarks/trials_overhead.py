"""What `velodrome trials` adds to its runs: all that is not inside of a run, as a share of the runs.

The claim: less than 2%, with runs so small that nobody would make smaller ones. Counted are the plan, the
record after every trial, the comparison of all of them, the CSV file and the page. A run is a call of
`session.train`; what of it result.json tells (preparation, warming up, training, final answers) is shown too,
as is the same list of runs in a plain loop, in turn with the trials: where that ratio is near 1, runs within
trials are no slower than runs outside.

    python benchmarks/trials_overhead.py --output benchmarks/trials_overhead.md

draws its images itself, and needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from dated_tables import Claim, command_line, heading, machine_rows, print_and_append, spread, table

from velodrome import session
from velodrome.config import Config, override
from velodrome.job import resolve
from velodrome.recipes import quick
from velodrome.runs import Run
from velodrome.trial_runs import trials

CUTOUTS = (0, 8)
TOLD = ("prepare_seconds", "warm_up_seconds", "train_seconds", "predict_seconds")


@contextmanager
def runs_timed() -> Iterator[list[float]]:
    """Seconds of each call of `session.train` within the block."""
    taken_s: list[float] = []
    train = session.train

    def timed(*arguments: object, **options: object) -> Run:
        start_s = time.perf_counter()
        run = train(*arguments, **options)  # type: ignore[arg-type]
        taken_s.append(time.perf_counter() - start_s)
        return run

    with mock.patch.object(session, "train", timed):
        yield taken_s


def time_trials(config: Config, seeds: int) -> tuple[float, float, float]:
    """Seconds of trials, of the runs in them, and of what the runs tell of themselves."""
    start_s = time.perf_counter()
    with runs_timed() as taken_s:
        found = trials(config, seeds=seeds, vary={"cutout": CUTOUTS}, progress=False)
    in_all_s = time.perf_counter() - start_s
    results = [Run(found.run_folder(trial)).result for trial in found.trials]
    return in_all_s, sum(taken_s), sum(result[key] for result in results for key in TOLD)


def time_loop(config: Config, seeds: int) -> float:
    """Seconds of the same runs in a plain loop."""
    start_s = time.perf_counter()
    for seed in range(seeds):
        for cutout in CUTOUTS:
            session.train(override(config, {"seed": seed, "cutout": cutout}), progress=False)
    return time.perf_counter() - start_s


def main(arguments: Sequence[str]) -> int:
    """Measure in turn, print, append."""
    parser = argparse.ArgumentParser(description="Overhead of trials; see the docstring.")
    parser.add_argument("--seeds", type=int, default=6, help="of each of two variants")
    parser.add_argument("--images", type=int, default=300, help="to train on, for one epoch")
    parser.add_argument("--rounds", type=int, default=5, help="of trials and the same runs in a loop")
    parser.add_argument("--output", type=Path, help="Markdown file to which the table is appended")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        config = quick(
            data="shapes",
            limit_train=options.images,
            limit_test=500,
            epochs=1,
            width=4,
            precision="fp32",
            batch_size=100,
            lr=0.1,
            runs_dir=place,
        )
        session.train(config, progress=False)  # the first one imports and chooses kernels
        rows, overheads, loops = [], [], []
        for number in range(1, options.rounds + 1):
            in_all_s, runs_s, told_s = time_trials(config, options.seeds)
            loop_s = time_loop(config, options.seeds)
            overheads.append(100 * (in_all_s / runs_s - 1))
            loops.append(in_all_s / loop_s)
            figures = (f"{seconds:.2f}" for seconds in (in_all_s, runs_s, told_s, loop_s))
            rows.append((str(number), *figures, f"{overheads[-1]:.2f}%", f"{loops[-1]:.3f}"))
    claim = Claim("overhead", overheads, 2.0, or_more=False, unit="%")
    runs = len(CUTOUTS) * options.seeds
    setting = f"{runs} runs of `quick` on {options.images:,} shapes, one epoch each; then the same in a loop."
    lines = heading(
        "trials against the runs in them",
        machine_rows(resolve(config), load),
        command_line(arguments),
        setting,
        load,
    )
    columns = (
        "round",
        "trials, s",
        "runs in them, s",
        "told by them, s",
        "loop, s",
        "overhead",
        "trials / loop",
    )
    lines += table(columns, rows)
    lines += [f"{claim}.", "", f"trials / loop: {spread(loops)}.", ""]
    print_and_append("\n".join(lines), options.output)
    return 0 if statistics.median(overheads) < claim.wanted else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
