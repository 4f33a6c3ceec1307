"""What it costs to evaluate and explain a finished run: the whole commands, and 200 Grad-CAM maps.

The claims: evaluation with predictions, mistakes, maps and the page takes less than 5% of the training of the
run; the page by itself less than 5 s and less than 6 MB; 200 maps less than 10 s.

    python benchmarks/evaluation.py runs/resnet9-1 --data-root DIR --output benchmarks/evaluation.md

works on a copy of the run, and needs a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from dated_tables import Claim, command_line, heading, machine_rows, print_and_append, table

from velodrome.evaluation.gallery import maps_of
from velodrome.runs import Run, read_config

MAPS = 200


def seconds_of(*words: str) -> float:
    """Seconds of a whole velodrome command, from the start of its process to its end."""
    start_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "velodrome", *words], check=True, capture_output=True)
    return time.perf_counter() - start_s


def seconds_of_maps(run: Run, precision: str) -> float:
    """Seconds for the maps of the predicted and the true class of the first mistakes."""
    model, answers = run.model(), run.answers()
    indices = np.resize(answers.wrong, MAPS // 2)
    images_u8 = run.test_images().images_u8[indices]
    targets = np.stack([answers.predictions[indices], answers.labels[indices]], 1)
    cpu = torch.device("cpu")
    start_s = time.perf_counter()
    maps_of(model.network, images_u8, targets, model.normalisation, device=cpu, precision=precision)
    return time.perf_counter() - start_s


def main(arguments: Sequence[str]) -> int:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description="Cost of evaluating a run; see the docstring.")
    parser.add_argument("run", type=Path, help="folder of a finished run of 24 epochs")
    parser.add_argument("--data-root", required=True, help="folder that holds the data set of the run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file to which the tables are appended")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        run = Run(shutil.copytree(options.run, Path(place) / "run"))
        path = str(run.path)
        figures: dict[str, list[float]] = {"evaluate": [], "report": [], "fp32": [], "bf16": []}
        for _ in range(options.rounds):
            evaluate = ("evaluate", path, "--quiet", "--data-root", options.data_root)
            figures["evaluate"].append(seconds_of(*evaluate))
            figures["report"].append(seconds_of("report", path))
            for precision in ("fp32", "bf16"):
                figures[precision].append(seconds_of_maps(run, precision))
        size_mb = run.folder.report.stat().st_size / 1e6
        shown = len(run.folder.read_json(run.folder.mistakes)["indices"])
        config, trained_s = read_config(run.folder), run.result["train_seconds"]
    shares = [100 * seconds / trained_s for seconds in figures["evaluate"]]
    claims = [
        Claim("evaluation, share of the training", shares, 5, or_more=False, unit="%"),
        Claim("page, seconds", figures["report"], 5, or_more=False, unit=" s"),
        Claim("page, size", [size_mb], 6, or_more=False, unit=" MB"),
        Claim(f"{MAPS} maps in fp32", figures["fp32"], 10, or_more=False, unit=" s"),
        Claim(f"{MAPS} maps in bf16", figures["bf16"], 10, or_more=False, unit=" s"),
    ]
    setting = (
        f"A run of `{config.recipe}` on {config.data.data}, {config.train.epochs} epochs, {trained_s:.0f} s "
        f"of training; {shown:,} images with maps in its gallery. Whole commands, from start to end."
    )
    lines = heading("cost of evaluation", machine_rows(config, load), command_line(arguments), setting, load)
    rows = [
        (str(number), *(f"{value:.2f}" for value in values))
        for number, values in enumerate(zip(*figures.values(), strict=True), 1)
    ]
    head = ("round", "evaluate, s", "report, s", f"{MAPS} maps in fp32, s", f"{MAPS} maps in bf16, s")
    lines += table(head, rows) + [f"- {claim}" for claim in claims] + [""]
    print_and_append("\n".join(lines), options.output)
    return 0 if all(claim.reached for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
