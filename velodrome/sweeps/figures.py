"""Figures of a sweep: how it went, and which settings mattered. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from velodrome.reporting.lr_figure import AZURE, INK, QUIET, RED, plain
from velodrome.sweeps.rows import TrialRow


def draw_history(rows: Sequence[TrialRow]) -> Figure:
    """The validation accuracy of each trial, and the best so far, in the order of the trials.

    Args:
        rows: of all trials; those without an accuracy are left out.
    """
    figure = Figure(figsize=(9, 4.2), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for status, colour, marker, words in (
        ("complete", AZURE, "o", "complete"),
        ("pruned", QUIET, "x", "pruned: its last accuracy"),
        ("diverged", RED, "v", "diverged: no accuracy"),
    ):
        points = [(row.number, 100 * (row.accuracy or 0)) for row in rows if row.status == status]
        if not points:
            continue
        numbers, values = map(list, zip(*points, strict=True))
        place: dict[str, Any] = {}
        if status == "diverged":  # at the lower edge, not at 0, which is far from all others
            values, place = [0.03] * len(numbers), {"transform": axes.get_xaxis_transform()}
        axes.scatter(numbers, values, s=26, color=colour, marker=marker, label=words, zorder=3, **place)
    complete = [(row.number, row.accuracy) for row in rows if row.status == "complete" and row.accuracy]
    if complete:
        best = accumulate((100 * accuracy for _, accuracy in complete), max)
        axes.step(
            [number for number, _ in complete],
            list(best),
            where="post",
            color=AZURE,
            linewidth=1.5,
            label="best so far",
        )
    if axes.collections:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    axes.set_title("Validation accuracy of the trials, %", loc="left", color=INK, fontsize=11)
    axes.set_xlabel("trial", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)
    return figure


def draw_importance(importance: Mapping[str, float], trials: int, reason: str | None = None) -> Figure:
    """The share of each setting in what told the best trials from the others.

    Args:
        importance: of each setting, 1 in all; empty where nothing can be said.
        trials: how many this is from.
        reason: why nothing can be said, to write in its place.
    """
    height = 1.4 + 0.36 * max(3, len(importance))
    figure = Figure(figsize=(9, height), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    if reason:
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", color=INK, fontsize=10)
        axes.set_axis_off()
    else:
        ordered = sorted(importance.items(), key=lambda item: item[1])
        names, shares = [name for name, _ in ordered], [100 * share for _, share in ordered]
        bars = axes.barh(names, shares, color=AZURE, height=0.62)
        axes.bar_label(bars, [f"{share:.0f}%" for share in shares], padding=4, color=INK, fontsize=9)
        axes.set_xlim(0, 1.12 * max(shares))
        axes.set_xlabel("share of the importance, %", color=INK)
        plain(axes)
        axes.grid(visible=False, axis="y")
    axes.set_title(
        f"What tells the best quarter of the trials from the others, by PED-ANOVA over {trials} trials",
        loc="left",
        color=INK,
        fontsize=11,
    )
    return figure
