"""The trials of a sweep as rows: what was tried, what came of it, which is best. Never imports torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from velodrome.run.folder import RunFolder
from velodrome.run.sinks import percent

Status = Literal["complete", "pruned", "diverged", "failed", "retried", "running", "waiting"]
# A trial of one of these has come to its end.
ENDED: tuple[Status, ...] = ("complete", "pruned", "diverged", "failed")
# Of more trials the best are shown.
MOST_ROWS = 20


class SweepFolder:
    """A sweep's folder and the names of the files in it; a run folder for each trial lies there too.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "sweep.json"
        self.study = path / "study.db"  # unless the study is kept elsewhere
        self.best = path / "best.yaml"
        self.table = path / "trials.csv"
        self.history = path / "history.png"
        self.importance = path / "importance.png"

    def run(self, name: str) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder(self.path / name)


@dataclass(frozen=True)
class TrialRow:
    """A trial.

    Attributes:
        number: counts from 0.
        status: "complete"; "pruned", given up as it did worse than others; "diverged", so that its accuracy
            counts as 0; "failed"; "retried", its worker ended before it did and another trial has its
            settings; "running"; "waiting" to be taken up again.
        params: the settings that it tries.
        accuracy: share in [0, 1] of the validation images, the last that is known; None before any.
        epochs: that it was trained for.
        curve: the accuracy after each epoch that was scored.
        run: name of its run folder in the folder of the sweep; None before it has one.
        worker: host and process that trained it.
        seconds: from its start to its end; None where one of them is not known.
        same_as: the trial whose result this one has, because its settings are the same.
        problem: why it failed or diverged.
        settings: all settings of its run, flat, where it is complete.
    """

    number: int
    status: Status
    params: Mapping[str, Any]
    accuracy: float | None = None
    epochs: int | None = None
    curve: Mapping[int, float] = field(default_factory=dict)
    run: str | None = None
    worker: str | None = None
    seconds: float | None = None
    same_as: int | None = None
    problem: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON."""
        return {
            "number": self.number,
            "status": self.status,
            "val_accuracy": self.accuracy,
            "epochs": self.epochs,
            "params": dict(self.params),
            "run": self.run,
            "worker": self.worker,
            "seconds": self.seconds,
            "same_as": self.same_as,
            "problem": self.problem,
        }


def best_of(rows: Iterable[TrialRow]) -> TrialRow | None:
    """The complete trial with the highest accuracy, the first of several; None where none is complete."""
    complete = [row for row in rows if row.status == "complete" and row.accuracy is not None]
    return max(complete, key=lambda row: (row.accuracy, -row.number), default=None)


def best_first(rows: Iterable[TrialRow]) -> list[TrialRow]:
    """The rows in the order of a table: complete ones by accuracy, then the others as far as they came."""

    def place(row: TrialRow) -> tuple[Any, ...]:
        return (
            row.status != "complete",
            -(row.epochs or 0) * (row.status != "complete"),
            -(row.accuracy or 0),
        )

    return sorted((row for row in rows if row.status != "retried"), key=place)


def counts(rows: Iterable[TrialRow]) -> str:
    """How many trials there are of each kind: "12 complete, 7 pruned, 1 failed"."""
    statuses = [row.status for row in rows]
    found = [(statuses.count(status), status) for status in (*ENDED, "running", "waiting")]
    parts = [f"{count} {status}" for count, status in found if count]
    if again := statuses.count("retried"):
        parts.append(f"{again} taken up again")
    return ", ".join(parts) or "none"


def table(rows: Sequence[TrialRow], keys: Sequence[str]) -> list[str]:
    """The best trials in columns, as lines.

    Args:
        rows: of all trials.
        keys: the settings that are searched.
    """
    head = ["trial", "status", "val acc", "epochs", *keys]
    body = [
        [
            str(row.number),
            row.status if row.same_as is None else f"as {row.same_as}",
            percent(row.accuracy),
            "-" if row.epochs is None else str(row.epochs),
            *(short(row.params.get(key, "-")) for key in keys),
        ]
        for row in best_first(rows)
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in (head, *body[:MOST_ROWS])
    ]
    more = len(body) - MOST_ROWS
    return [*lines, *([f"... and {more} more, all in trials.csv"] if more > 0 else [])]


def short(value: object) -> str:
    """A value in a few characters."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return "none" if value is None else str(value)


def to_csv(rows: Sequence[TrialRow], keys: Sequence[str]) -> str:
    """All trials as CSV, one a row."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = ("number", "status", "val_accuracy", "epochs", "seconds", "run", "worker", "problem")
    writer.writerow([*columns, *keys])
    for row in rows:
        known = row.to_dict()
        cells = [known[column] for column in columns] + [row.params.get(key) for key in keys]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return file.getvalue()
