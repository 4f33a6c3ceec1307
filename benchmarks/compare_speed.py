"""How long `velodrome compare` takes over a thousand run folders, and what a run pays for its last line.

The claims: 1,000 finished run folders with 10,000 test images each are read and compared, and the page is
written, in less than 10 seconds, from the start of the command to its end; and `train` takes less than 0.2
seconds more to say what changed since the last comparable run, with 1,000 run folders beside its own.

    python benchmarks/compare_speed.py --output benchmarks/compare_speed.md

makes up the folders, with figures and answers but without weights, in a temporary folder (0.6 GB), and needs
a machine that does nothing else. The folders have just been written, so that the system has them in memory.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dated_tables import (
    Claim,
    command_line,
    heading,
    machine_rows,
    middle_and_ends,
    print_and_append,
    table,
)
from throughput import at_least, in_a_folder

from velodrome.comparison.since_last import change_since_last
from velodrome.config import Config, override, to_yaml
from velodrome.errors import VelodromeError
from velodrome.job import resolve
from velodrome.recipes import resnet9
from velodrome.run.answers import COLUMNS
from velodrome.run.folder import HISTORY_COLUMNS, RunFolder

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EPOCHS = 24
COMPARE_S, LAST_LINE_S = 10.0, 0.2
TIMES = ("compare, table", "compare, table and page", "the last line of train")
Times = dict[str, list[float]]


def main(arguments: Sequence[str]) -> int:
    """Make up folders, measure, print, append to a file. Bad input is one line on stderr and exit code 2."""
    options = parse(arguments)
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as place:
            folders = write_runs(Path(place) / "runs", options.runs, options.variants, options.images)
            found = measure(folders, options.rounds)
        print_and_append(report(options, found, command_line(arguments), load), options.output)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed of velodrome compare; see the docstring.")
    parser.add_argument("--runs", type=at_least(2), default=1000, help="run folders")
    parser.add_argument("--variants", type=at_least(1), default=20, help="configurations")
    parser.add_argument("--images", type=at_least(10), default=10_000, help="test images of each run")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="turns of each measurement")
    parser.add_argument("--output", type=in_a_folder, help="Markdown file to which the table is appended")
    return parser.parse_args(arguments)


def write_runs(place: Path, runs: int, variants: int, images: int) -> Path:
    """Run folders of configurations with other weight decays, their seeds from 0 up."""
    base = override(resnet9(), {"lr": 0.4, "lr_min": 0.04, "lr_final": 0.04})
    rows = [f"{i},cifar10/test/{i:05}.png,{CLASSES[i % 10]}," for i in range(images)]
    for number in range(runs):
        seed, variant = divmod(number, variants)
        config = override(base, {"seed": seed, "weight_decay": 1e-4 * (variant + 1)})
        write_one(RunFolder(place / f"run-{number}"), config, rows, random.Random(number))
    return place


def write_one(folder: RunFolder, config: Config, rows: Sequence[str], rng: random.Random) -> None:
    """What a comparison reads of a run; it errs on about 7% of the images."""
    folder.path.mkdir(parents=True)
    folder.config.write_text(to_yaml(replace(config, run=replace(config.run, name=None))), encoding="utf-8")
    wrong = set(rng.sample(range(len(rows)), k=max(1, len(rows) * rng.randint(60, 80) // 1000)))
    lines = [
        f"{row}{CLASSES[(i + (i in wrong)) % 10]},{rng.random():.6g},{rng.random():.6g}\n"
        for i, row in enumerate(rows)
    ]
    folder.predictions.write_text(",".join(COLUMNS) + "\n" + "".join(lines), encoding="utf-8")
    accuracy = 1 - len(wrong) / len(rows)
    about = {"velodrome": "0.1.0", "device_name": "CPU", "threads": 2, "torch": "2.8.0"}
    folder.environment.write_text(json.dumps(about), encoding="utf-8")
    history = io.StringIO()
    writer = csv.writer(history, lineterminator="\n")
    writer.writerow(HISTORY_COLUMNS)
    for epoch in range(1, EPOCHS + 1):
        now = accuracy * epoch / EPOCHS
        writer.writerow([epoch, 10.0 * epoch, 0.1, 1 - now, now, "", "", 1 - now, now, 5000.0])
    folder.history.write_text(history.getvalue(), encoding="utf-8")
    result = {
        "test_accuracy": accuracy,
        "test_accuracy_tta": accuracy,
        "test_loss": 0.3,
        "train_accuracy": 0.95,
    }
    result |= {"train_seconds": 240.0, "data": "cifar10", "seed": config.run.seed, "classes": list(CLASSES)}
    folder.result.write_text(json.dumps(result), encoding="utf-8")


def measure(folders: Path, rounds: int) -> Times:
    """Seconds of each of `TIMES`, one value a round."""
    found: Times = {name: [] for name in TIMES}
    page = folders.parent / "page.html"
    newest = max(folders.iterdir(), key=lambda path: (path / "result.json").stat().st_mtime_ns)
    for number in range(rounds):
        found[TIMES[0]].append(seconds_of_command(["compare", str(folders)]))
        found[TIMES[1]].append(seconds_of_command(["compare", str(folders), "--output", str(page)]))
        began_s = time.perf_counter()
        assert change_since_last(newest) is not None, "there is a run before it"
        found[TIMES[2]].append(time.perf_counter() - began_s)
        shown = ", ".join(f"{name} {values[-1]:.3f} s" for name, values in found.items())
        print(f"round {number + 1} of {rounds}: {shown}", file=sys.stderr)
    return found


def seconds_of_command(words: Sequence[str]) -> float:
    """From the start of the command to its end.

    Raises:
        VelodromeError: it failed.
    """
    began_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "velodrome", *words], check=False, capture_output=True, text=True
    )
    took_s = time.perf_counter() - began_s
    if done.returncode != 0:
        raise VelodromeError(f"velodrome compare failed: {done.stderr.strip()}.", "Mend it first.")
    return took_s


def claims(found: Times) -> list[Claim]:
    """What should hold."""
    return [
        Claim("compare with page", found[TIMES[1]], COMPARE_S, or_more=False, unit=" s"),
        Claim("last line of train", found[TIMES[2]], LAST_LINE_S, or_more=False, unit=" s"),
    ]


def report(options: argparse.Namespace, found: Times, command: str, load: float) -> str:
    """The dated report."""
    machine = machine_rows(resolve(override(resnet9(), {"device": "cpu"})), load)
    setting = (
        f"{options.runs:,} run folders of {options.variants} configurations, {options.images:,} test images "
        f"and {EPOCHS} epochs each; {options.rounds} rounds."
    )
    lines = heading("velodrome compare", machine, command, setting, load)
    rows = [(name, *middle_and_ends(values, ".3f")) for name, values in found.items()]
    lines += table(("seconds", "median", "min", "max", "n"), rows)
    lines += [f"- {claim}" for claim in claims(found)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
