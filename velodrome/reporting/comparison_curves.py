"""Curves of several variants in one chart: the mean of the runs of each, with what lies between them.

Never imports torch.
"""

from __future__ import annotations

import bisect
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from velodrome.reporting import text
from velodrome.reporting.curves import Chart, Drawing, Series, draw

History = Sequence[Mapping[str, float | None]]
Points = list[tuple[float, float, float, float]]  # x, mean, lowest, highest

_SETS = (("test", "Test"), ("val", "Validation"), ("train", "Train"))
# From so many seconds on, time is shown in the unit; the first that fits counts.
_UNITS = ((2 * 3600.0, 3600.0, "h"), (180.0, 60.0, "min"), (0.0, 1.0, "s"))


@dataclass(frozen=True)
class Curves:
    """The runs of a variant.

    Attributes:
        role: decides the colour: v0, v1, ...
        name: of the variant.
        histories: of each run, the rows of history.csv.
    """

    role: str
    name: str
    histories: tuple[History, ...]


def draw_curves(variants: Sequence[Curves], what: str) -> tuple[Drawing, ...]:
    """Charts of "acc" or "loss" on test, validation and training images, each by epoch and against time."""
    return tuple(
        drawing
        for key, name in _SETS
        for drawing in _draw(variants, f"{key}_{what}", f"{name} {_WORDS[what]}")
    )


_WORDS = {"acc": "accuracy", "loss": "loss"}


def _draw(variants: Sequence[Curves], column: str, title: str) -> Iterator[Drawing]:
    by_epoch = {one.role: _means(one, column) for one in variants}
    drawn = [one for one in variants if by_epoch[one.role]]
    if not drawn:
        return
    longest_s = max((_last_s(one) for one in drawn), default=0.0)
    unit_s, unit = next((size, name) for least, size, name in _UNITS if longest_s >= least)
    against_time = {one.role: _at_times(one, by_epoch[one.role], unit_s) for one in drawn}

    def in_time(x: float) -> str:
        return f"{x:.4g} {unit}"

    key = column.replace("_", "")
    for drawing in (
        _chart(key, title, "epoch", drawn, by_epoch, None),
        _chart(f"{key}time", f"{title} against time", f"training time, {unit}", drawn, against_time, in_time),
    ):
        if drawing:
            yield drawing


def _chart(
    key: str,
    title: str,
    x_name: str,
    variants: Sequence[Curves],
    points: Mapping[str, Points],
    x_text: Callable[[float], str] | None,
) -> Drawing | None:
    """One chart; every line stands at all positions of all lines that lie between its own ends."""
    xs = sorted({x for one in variants for x, *_ in points[one.role]})
    if not xs:
        return None
    is_share = "acc" in key
    series = []
    for one in variants:
        at = [_between(points[one.role], x) for x in xs]
        several = len(one.histories) > 1
        band = [(p[1], p[2]) if p else None for p in at] if several else ()
        series.append(Series(one.role, one.name, [p[0] if p else None for p in at], band))
    write = text.percent if is_share else text.loss
    drawing = draw(
        Chart(key, title, x_name, xs, series, write, percent=is_share, from_zero=not is_share, x_text=x_text)
    )
    if drawing is None:
        return None
    ends = {one.role: write(points[one.role][-1][1]) for one in variants if points[one.role]}
    return replace(drawing, lines=tuple(replace(line, last=ends[line.role]) for line in drawing.lines))


def _means(variant: Curves, column: str) -> Points:
    """Mean, lowest and highest of the runs at each epoch that one of them has."""
    found: dict[float, list[float]] = {}
    for history in variant.histories:
        for row in history:
            epoch, value = row["epoch"], row[column]
            if epoch is not None and value is not None:
                found.setdefault(epoch, []).append(value)
    return [(epoch, statistics.fmean(v), min(v), max(v)) for epoch, v in sorted(found.items())]


def _at_times(variant: Curves, means: Points, unit_s: float) -> Points:
    """The same at the mean time of each epoch, as far as time goes on from one to the next."""
    times: dict[float, list[float]] = {}
    for history in variant.histories:
        for row in history:
            epoch, second = row["epoch"], row["time_s"]
            if epoch is not None and second is not None:
                times.setdefault(epoch, []).append(second)
    points: Points = []
    for epoch, mean, low, high in means:
        time = statistics.fmean(times[epoch]) / unit_s if epoch in times else None
        if time is not None and (not points or time > points[-1][0]):
            points.append((time, mean, low, high))
    return points


def _last_s(variant: Curves) -> float:
    return max((row["time_s"] or 0.0 for history in variant.histories for row in history), default=0.0)


def _between(points: Points, x: float) -> tuple[float, float, float] | None:
    """Mean, lowest and highest at a position, on the line between the points beside it; None beyond them."""
    place = bisect.bisect_left(points, (x,))
    if place == len(points) or (place == 0 and points[0][0] != x):
        return None
    right, *after = points[place]
    if right == x:
        return after[0], after[1], after[2]
    left, *before = points[place - 1]
    share = (x - left) / (right - left)
    mean, low, high = ((1 - share) * b + share * a for b, a in zip(before, after, strict=True))
    return mean, low, high
