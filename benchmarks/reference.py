"""The row of a finished run for a dated table: what was trained, where, how long it took, what came out.

    python benchmarks/reference.py runs/resnet9-1 --output benchmarks/reference.md

Everything is read from the run folder, so that no figure is typed by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dated_tables import hardware_rows, print_and_append, table

from velodrome.config import read_yaml, to_dict
from velodrome.errors import RunError, VelodromeError
from velodrome.recipes import by_name
from velodrome.run.folder import RunFolder, open_run
from velodrome.run.sinks import duration, percent

# Where and what, not how it was trained.
NOT_SETTINGS = {"data_root", "runs_dir", "name", "device", "precision", "checkpoint_every"}


def main(arguments: Sequence[str]) -> int:
    """Print the report of a run and append it to a file. Bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description="The row of a finished run for a dated table.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--title", default="", help="what the run is")
    parser.add_argument("--remark", default="", help="what a reader must know about the run")
    parser.add_argument("--output", type=Path, help="Markdown file to which the report is appended")
    options = parser.parse_args(arguments)
    try:
        text = report(open_run(options.run), options.title, options.remark)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    print_and_append(text, options.output)
    return 0


def report(folder: RunFolder, title: str, remark: str) -> str:
    """Command, figures, machine and epochs of a run, as Markdown.

    Raises:
        RunError: the run has not finished.
    """
    result, environment = folder.read_json(folder.result), folder.read_json(folder.environment)
    if not result or not environment:
        raise RunError(f"Run {folder.path} has not finished.", f"velodrome resume {folder.path}")
    events = folder.read_events()
    ended = next(event["time"] for event in reversed(events) if event["event"] == "RunFinished")
    heading = title or f"{result['recipe']} on {result['data']}"
    lines = [f"## {ended[:10]}: {heading}", "", f"`{command_of(result, folder)}`", ""]
    if remark:
        lines += [remark, ""]
    lines += table(("figure", ""), figures(result, folder.read_history(), events))
    lines += table(("machine", ""), list(machine(environment).items()))
    head = ("epoch", "train loss", "train acc", "test loss", "test acc", "lr", "images/s", "time")
    return "\n".join([*lines, *table(head, [epoch(row) for row in folder.read_history()])])


def command_of(result: Mapping[str, Any], folder: RunFolder) -> str:
    """The command that trains the same: the recipe and every setting in which the run differs from it."""
    recipe = to_dict(by_name(result["recipe"])())
    settings = read_yaml(folder.config)
    if settings["lr_final"] == settings["lr_min"]:  # which is the default
        settings["lr_final"] = "auto"
    if settings.get("image_size") == 32:  # the own size of the data sets that have a name
        settings["image_size"] = "auto"
    changed = [
        f"--{key.replace('_', '-')} {f'{value:g}' if isinstance(value, float) else value}"
        for key, value in settings.items()
        if key not in NOT_SETTINGS and value != recipe.get(key)
    ]
    return " ".join(["velodrome train", result["recipe"], *changed])


def figures(
    result: Mapping[str, Any], history: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """What came out, and how the run went."""
    kinds = Counter(event["event"] for event in events)
    return [
        ("test accuracy", f"**{percent(result['test_accuracy'])}**"),
        ("with flipped images too", percent(result["test_accuracy_tta"])),
        ("test loss", f"{result['test_loss']:.4f}"),
        ("training accuracy of the last epoch (augmented)", percent(result["train_accuracy"])),
        ("training time", f"{duration(result['train_seconds'])} ({result['train_seconds']:.0f} s)"),
        ("images/s, mean and fastest epoch", f"{result['images_per_s']:.0f}, {fastest(history):.0f}"),
        ("parameters", f"{result['params']:,}"),
        ("epochs", str(result["epochs"])),
        ("seed", str(result["seed"])),
        ("precision", result["precision"]),
        ("times it was stopped or killed, and resumed", str(kinds["RunStarted"] - 1)),
    ]


def fastest(history: Sequence[Mapping[str, Any]]) -> float:
    """Images/s of the fastest epoch."""
    return max(float(row["images_per_s"]) for row in history)


def machine(environment: Mapping[str, Any]) -> dict[str, str]:
    """What it ran on."""
    git = environment.get("git") or {}
    return {
        **hardware_rows(environment),
        "torch": str(environment["torch"]),
        "Python": str(environment["python"]),
        "velodrome": f"{environment['velodrome']}, commit {str(git.get('commit', 'unknown'))[:12]}",
        "begun": str(environment["started"]),
    }


def epoch(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One row of the table of epochs."""
    return (
        f"{row['epoch']:.0f}",
        f"{row['train_loss']:.4f}",
        percent(row["train_acc"]),
        f"{row['test_loss']:.4f}",
        percent(row["test_acc"]),
        f"{row['lr']:.4g}",
        f"{row['images_per_s']:.0f}",
        duration(row["time_s"]),
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
