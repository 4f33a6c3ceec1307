"""Images by class and split as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from velodrome.data.own.contents import Contents
from velodrome.data.own.near_duplicates import Indices
from velodrome.data.own.splitting import SPLITS
from velodrome.errors import visible

# Of more classes than a screen holds, the largest and the smallest are shown, so many of each.
MOST_ROWS, AT_EACH_END = 40, 10
WIDEST_NAME = 40

Counts = NDArray[np.int64]


def class_table(data: Contents) -> list[str]:
    """The lines of a table: a heading, a row for each class, and the sums."""
    used = [column for column, images in enumerate(data.counts.sum(0).tolist()) if images]
    heading = ["class", "images", *(SPLITS[column] for column in used)]
    # A row for each class: all images, those of each split, unreadable ones.
    counts = np.hstack([data.counts.sum(1, keepdims=True), data.counts[:, used]])
    if data.unreadable_counts.any():
        heading.append("unreadable")
        counts = np.hstack([counts, data.unreadable_counts[:, None]])
    first, last = ends(data)
    rows = [heading, *_rows(data, counts, first)]
    rows += _rows(data, counts, last)
    rows.append([f"{len(data.classes):,} classes", *(f"{count:,}" for count in counts.sum(0).tolist())])
    lines = _aligned(rows)
    if len(last):
        lines.insert(1 + len(first), f"… {in_between(data)} …")
    return lines


def ends(data: Contents) -> tuple[Indices, Indices]:
    """The classes to show: all of them in their order, or the largest, and then the smallest.

    Returns:
        Two arrays of labels; the second is empty where all are shown.
    """
    if len(data.classes) <= MOST_ROWS:
        return np.arange(len(data.classes)), np.arange(0)
    by_size = np.argsort(-data.counts.sum(1), kind="stable")
    return by_size[:AT_EACH_END], by_size[-AT_EACH_END:]


def in_between(data: Contents) -> str:
    """What is said in the place of the classes that `ends` leaves out."""
    by_size = -np.sort(-data.counts.sum(1))
    left_out = by_size[AT_EACH_END:-AT_EACH_END]
    return f"{len(left_out):,} more classes of {left_out[-1]:,} to {left_out[0]:,} images"


def _rows(data: Contents, counts: Counts, labels: Indices) -> list[list[str]]:
    return [[_short(data.classes[label]), *(f"{count:,}" for count in counts[label])] for label in labels]


def _short(name: str) -> str:
    """A name on one line, its end left out where it is long."""
    name = visible(name)
    return name if cell_len(name) <= WIDEST_NAME else set_cell_size(name, WIDEST_NAME - 1).rstrip() + "…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column flush left, the others flush right."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        gap = " " * (widths[0] - cell_len(name))
        cells = (f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True))
        lines.append("  ".join([name + gap, *cells]))
    return lines
