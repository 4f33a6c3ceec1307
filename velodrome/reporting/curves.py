"""The geometry of line charts: from numbers to ticks, paths and the points that hover shows.

Markup and colours are the template's business. Whatever comes in, no NaN and no infinity comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

# The chart's box in SVG units; the page scales it. The margins leave room for the tick labels.
WIDTH, HEIGHT = 480, 264
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40

# More points than this cannot be told apart at the width of a page.
MOST_POINTS = 800
# Beyond this a value is a run gone wrong, and differences of two of them may overflow.
LARGEST = 1e30


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        role: what it shows, which decides its colour: train, val, test, step or rate.
        name: as the legend has it.
        values: one for each x of the chart; None where there is none.
        band: how far each value spreads, as the lowest and the highest; empty where that is not shown.
    """

    role: str
    name: str
    values: Sequence[float | None]
    band: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Chart:
    """What to draw.

    Attributes:
        key: unique among the charts of a page; letters only.
        title: what the y axis shows.
        x_name: what the x axis counts, in the singular.
        xs: positions, ascending.
        series: lines over these positions.
        text: writes a value out in full, for the legend.
        percent: whether the values are shares, shown as percentages.
        from_zero: whether the y axis must reach down to 0.
        x_text: writes a position out; without it positions are whole numbers, as in "epoch 3".
    """

    key: str
    title: str
    x_name: str
    xs: Sequence[float]
    series: Sequence[Series]
    text: Callable[[float], str]
    percent: bool = False
    from_zero: bool = False
    x_text: Callable[[float], str] | None = None

    def position(self, x: float) -> str:
        """A position in words: "epoch 3"."""
        return self.x_text(x) if self.x_text else f"{self.x_name} {x:,.0f}"


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in SVG units and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A drawn series: its path, its points without neighbours, its last value in words, its band."""

    role: str
    name: str
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str
    area: str = ""


@dataclass(frozen=True)
class Point:
    """What hover shows at one x: where it is, its name, and each series' value and height there."""

    x: float
    name: str
    texts: tuple[str, ...]
    heights: tuple[float | None, ...]


@dataclass(frozen=True)
class Drawing:
    """A chart in SVG units, `WIDTH` by `HEIGHT`, with all texts ready."""

    key: str
    title: str
    x_name: str
    description: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    points: tuple[Point, ...]

    def hover_data(self) -> dict[str, object]:
        """What the page's script needs, as plain lists."""
        points = [[point.x, point.name, point.texts, point.heights] for point in self.points]
        return {"width": WIDTH, "points": points}


@dataclass(frozen=True)
class _Scale:
    """A linear map from values to SVG units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def draw(chart: Chart) -> Drawing | None:
    """The chart, or None where there is nothing to draw."""
    series = [_usable(line) for line in chart.series]
    series = [line for line in series if any(value is not None for value in line.values)]
    if not series:
        return None
    values = [value for line in series for value in line.values if value is not None]
    values += [end for line in series for ends in line.band if ends for end in ends]
    low, high = _widened(min(values), max(values), chart.from_zero)
    y_marks = nice_ticks(low, high, 4)
    down = _Scale(y_marks[0], y_marks[-1], HEIGHT - BOTTOM, TOP)
    first, last = (chart.xs[0], chart.xs[-1]) if len(chart.xs) > 1 else (chart.xs[0] - 0.5, chart.xs[0] + 0.5)
    across = _Scale(first, last, LEFT, WIDTH - RIGHT)
    whole = chart.x_text is None
    x_marks = [mark for mark in nice_ticks(first, last, 5, whole=whole) if first <= mark <= last]
    x_texts = [f"{mark:,.0f}" for mark in x_marks] if whole else tick_texts(x_marks, False)
    kept = _thinned(series[0].values)
    return Drawing(
        key=chart.key,
        title=chart.title,
        x_name=chart.x_name,
        description=_description(chart, series),
        x_ticks=tuple(Tick(across(mark), text) for mark, text in zip(x_marks, x_texts, strict=True)),
        y_ticks=tuple(
            Tick(down(mark), text)
            for mark, text in zip(y_marks, tick_texts(y_marks, chart.percent), strict=True)
        ),
        lines=tuple(_line(line, chart, kept, across, down) for line in series),
        points=tuple(_point(index, chart, series, across, down) for index in kept),
    )


def nice_ticks(low: float, high: float, intervals: int, *, whole: bool = False) -> list[float]:
    """Round numbers at even steps, about `intervals` of them, from at or below `low` to at or above `high`.

    Args:
        low: least value; below `high`.
        high: greatest value.
        intervals: how many steps to aim at.
        whole: whether only whole numbers will do.
    """
    rough = (high - low) / intervals
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if rough <= factor * power * 1.001)
    if whole:
        step = max(1.0, float(round(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_texts(marks: Sequence[float], percent: bool) -> list[str]:
    """The labels of ticks, all with the decimals that their distance asks for."""
    shown = [100 * mark for mark in marks] if percent else list(marks)
    unit = "%" if percent else ""
    step = shown[1] - shown[0]
    if not 1e-5 <= step < 1e5:
        return [f"{mark:.3g}{unit}" for mark in shown]
    decimals = next(n for n in range(8) if abs(round(step, n) - step) < 1e-3 * step)
    return [f"{mark:,.{decimals}f}{unit}" for mark in shown]


def _usable(line: Series) -> Series:
    """The series with None in place of all that cannot be drawn."""
    values = [
        value if value is not None and math.isfinite(value) and abs(value) < LARGEST else None
        for value in line.values
    ]
    return replace(line, values=values, band=[ends if _is_drawable(ends) else None for ends in line.band])


def _is_drawable(ends: tuple[float, float] | None) -> bool:
    return ends is not None and all(math.isfinite(end) and abs(end) < LARGEST for end in ends)


def _widened(low: float, high: float, from_zero: bool) -> tuple[float, float]:
    """The range to show: never empty, so that a constant has an axis too."""
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    reach = abs(high) / 10 or 1.0
    return (low, high + reach) if from_zero and low == 0 else (low - reach, high + reach)


def _thinned(values: Sequence[float | None]) -> list[int]:
    """Indices to draw: all of them, or the lowest and highest of each stretch, so that no peak is lost."""
    count = len(values)
    if count <= MOST_POINTS:
        return list(range(count))
    kept = {0, count - 1}
    stretches = MOST_POINTS // 2
    for number in range(stretches):
        stretch = range(number * count // stretches, (number + 1) * count // stretches)
        finite = [(value, index) for index in stretch if (value := values[index]) is not None]
        kept |= {min(finite)[1], max(finite)[1]} if finite else {stretch.start}
    return sorted(kept)


def _line(line: Series, chart: Chart, kept: Sequence[int], across: _Scale, down: _Scale) -> Line:
    stretches: list[list[tuple[float, float]]] = [[]]
    for index in kept:
        value = line.values[index]
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append((across(chart.xs[index]), down(value)))
    path = "".join(
        "M" + "L".join(f"{x:g} {y:g}" for x, y in stretch) for stretch in stretches if len(stretch) > 1
    )
    dots = tuple(stretch[0] for stretch in stretches if len(stretch) == 1)
    area = _area(line.band, chart, kept, across, down)
    return Line(line.role, line.name, path, dots, _text(line.values[-1], chart), area)


def _area(
    band: Sequence[tuple[float, float] | None],
    chart: Chart,
    kept: Sequence[int],
    across: _Scale,
    down: _Scale,
) -> str:
    """The band as a closed path: its upper side from left to right, then its lower side back."""
    ends = [(across(chart.xs[index]), band[index]) for index in kept] if band else []
    known = [(x, *both) for x, both in ends if both is not None]
    if len(known) < 2:
        return ""
    upper = [f"{x:g} {down(high):g}" for x, _, high in known]
    lower = [f"{x:g} {down(low):g}" for x, low, _ in reversed(known)]
    return f"M{'L'.join(upper + lower)}Z"


def _point(index: int, chart: Chart, series: Sequence[Series], across: _Scale, down: _Scale) -> Point:
    values = [line.values[index] for line in series]
    return Point(
        x=across(chart.xs[index]),
        name=chart.position(chart.xs[index]),
        texts=tuple(_text(value, chart) for value in values),
        heights=tuple(None if value is None else down(value) for value in values),
    )


def _description(chart: Chart, series: Sequence[Series]) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for line in series:
        found = [value for value in line.values if value is not None]
        first, last, least, most = (chart.text(v) for v in (found[0], found[-1], min(found), max(found)))
        parts.append(f"{line.name}: first {first}, last {last}, lowest {least}, highest {most}.")
    last = f"{chart.xs[-1]:,.0f}" if chart.x_text is None else chart.position(chart.xs[-1])
    span = f"From {chart.position(chart.xs[0])} to {last}."
    return " ".join([span, *parts])


def _text(value: float | None, chart: Chart) -> str:
    return "–" if value is None else chart.text(value)
