"""Figures of a learning rate range test, drawn from lr_find.json; never imports torch."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from velodrome.run.folder import write_atomically

INK, QUIET, HAIR, AZURE, RED = "#16191d", "#5a626c", "#e2e3df", "#0a67b0", "#c8401c"
# Share of the range that the name of a suggestion takes.
ROOM = 0.2
NAMES = {
    "valley": "valley",
    "slide": "slide",
    "steepest": "steepest",
    "minimum_tenth": "minimum / 10",
    "minimum": "minimum",
}


def draw_range_test(found: Mapping[str, Any]) -> Figure:
    """The losses over the learning rate with every suggestion, LRMIN to LRMAX, and the divergence point.

    Args:
        found: as in lr_find.json.
    """
    figure = Figure(figsize=(9, 5.2), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    curve = found["curve"]
    lrs, losses, smoothed = curve["lr"], curve["loss"], curve["smoothed"]
    low, high = _limits(smoothed) if found["lr_max"] is not None else _limits_of_all(losses)
    for repeat in found["sweeps"]:
        axes.plot(repeat["lr"], repeat["smoothed"], color=AZURE, alpha=0.35, linewidth=0.8)
    axes.scatter(lrs, losses, s=9, color=QUIET, alpha=0.45, linewidths=0, label="loss of each step")
    axes.plot(lrs, smoothed, color=AZURE, linewidth=2, label="smoothed")
    axes.set_xscale("log")
    axes.set_ylim(low, high)
    if found["lr_max"] is not None:
        axes.axvspan(
            found["lr_min"],
            found["lr_max"],
            color=AZURE,
            alpha=0.12,
            linewidth=0,
            label=f"one-cycle: LRMIN {found['lr_min']:.2g} to LRMAX {found['lr_max']:.2g}",
        )
    if not lrs:
        axes.text(0.5, 0.5, "no loss was finite", transform=axes.transAxes, ha="center", color=RED)
    elif found["ending"] != "completed":
        last = lrs[-1]
        words = "diverged" if found["ending"] == "diverged" else "not finite after this"
        axes.axvline(last, color=RED, linewidth=1.2, linestyle=(0, (4, 3)), label=f"{words}, at {last:.2g}")
    if found["lr_max"] is not None:
        _mark_suggestions(axes, found["suggestions"], lrs, smoothed, (low, high))
    if found["lr_max"] is not None and found["edge"] is not None:
        _mark_edge(axes, found["edge"], smoothed[0])
    axes.set_title(_title(found), loc="left", color=INK, fontsize=11, parse_math=False)
    axes.set_xlabel("learning rate (log scale)", color=INK)
    axes.set_ylabel("training loss", color=INK)
    _label_rates(axes, lrs)
    plain(axes)
    axes.legend(loc="lower left", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _label_rates(axes: Axes, lrs: Sequence[float]) -> None:
    """Write learning rates on a logarithmic axis as 0.01, with 0.02 and 0.05 where there is room."""
    plain_number = FuncFormatter(lambda rate, _place: f"{rate:g}")
    axes.xaxis.set_major_formatter(plain_number)
    axes.xaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    few = bool(lrs) and max(lrs) < 1000 * min(lrs)
    axes.xaxis.set_minor_formatter(plain_number if few else NullFormatter())


def draw_schedule(lrs: Sequence[float], steps_per_epoch: int) -> Figure:
    """The learning rate of every step of the run, with its peak marked.

    Args:
        lrs: of each step.
        steps_per_epoch: to count epochs on the x axis.
    """
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    epochs = [step / steps_per_epoch for step in range(len(lrs))]
    peak = max(range(len(lrs)), key=lrs.__getitem__)
    axes.plot(epochs, lrs, color=AZURE, linewidth=2)
    axes.plot([epochs[peak]], [lrs[peak]], "o", color=RED, markersize=6)
    axes.annotate(
        f"LRMAX {lrs[peak]:.3g} at step {peak} (epoch {epochs[peak]:.1f})",
        (epochs[peak], lrs[peak]),
        xytext=(10, -2),
        textcoords="offset points",
        color=RED,
        fontsize=9,
    )
    for step, words, where in ((0, "first", "left"), (len(lrs) - 1, "last", "right")):
        axes.annotate(
            f"{words} step: {lrs[step]:.3g}",
            (epochs[step], lrs[step]),
            xytext=(6 if where == "left" else -6, -5),
            textcoords="offset points",
            ha=where,
            va="top",
            color=QUIET,
            fontsize=9,
        )
    axes.set_ylim(0, max(lrs) * 1.12)
    axes.set_title("Learning rate over the run", loc="left", color=INK, fontsize=11)
    axes.set_xlabel("epoch", color=INK)
    axes.set_ylabel("learning rate", color=INK)
    plain(axes)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, atomically.

    Raises:
        RunError: it cannot be written.
    """
    data = io.BytesIO()
    # Without the version of matplotlib in it: the same figure is the same file.
    figure.savefig(data, format="png", metadata={"Software": None})
    write_atomically(path, data.getvalue())


def _title(found: Mapping[str, Any]) -> str:
    """What was tested on what, as far as it is known."""
    what = f"{found['recipe']} on {found['data']}" if found.get("recipe") else found.get("model", "")
    steps = f"{len(found['curve']['lr'])} steps"
    if found.get("batch_size"):
        steps += f" of {found['batch_size']} images"
    refused = "" if found["lr_max"] is not None else ", no learning rate found"
    return f"Learning rate range test: {what}, {found['optimizer']}, {steps}{refused}"


def _limits(smoothed: Sequence[float]) -> tuple[float, float]:
    """The part of the y axis that matters: from below the minimum to somewhat above the start."""
    if not smoothed:
        return 0.0, 1.0
    start, lowest = max(smoothed[: max(1, len(smoothed) // 3)]), min(smoothed)
    room = max(start - lowest, 0.05 * abs(start), 1e-6)
    return lowest - 0.55 * room, start + 0.45 * room


def _limits_of_all(losses: Sequence[float]) -> tuple[float, float]:
    """Where nothing was found, every loss may be the reason."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return 0.0, 1.0
    room = max(0.06 * (max(finite) - min(finite)), 1e-6)
    return min(finite) - room, max(finite) + room


def _mark_suggestions(
    axes: Axes,
    suggestions: Mapping[str, float],
    lrs: Sequence[float],
    smoothed: Sequence[float],
    limits: tuple[float, float],
) -> None:
    """A dot on the curve for each suggestion and its name above it, each at a height of its own."""
    low, high = limits
    logs = [math.log(lr) for lr in lrs]
    ordered = sorted(suggestions.items(), key=lambda item: item[1])
    for rank, (name, lr) in enumerate(ordered):
        nearest = min(range(len(lrs)), key=lambda index: abs(logs[index] - math.log(lr)))
        loss = min(smoothed[nearest], high)
        height = high - (high - low) * (0.05 + 0.065 * rank)
        axes.plot([lr, lr], [loss, height], color=QUIET, alpha=0.5, linewidth=0.8, zorder=1)
        axes.plot([lr], [loss], "o", color=INK, markersize=5, zorder=4)
        # To the left of its line, unless that would be beyond the axis.
        has_room = math.log(lr) - logs[0] > ROOM * (logs[-1] - logs[0])
        axes.annotate(
            f"{NAMES.get(name, name)} {lr:.2g}",
            (lr, height),
            xytext=(-4 if has_room else 4, 0),
            textcoords="offset points",
            ha="right" if has_room else "left",
            va="center",
            color=INK,
            fontsize=9,
        )


def _mark_edge(axes: Axes, edge: float, start: float) -> None:
    """A dot where the smoothed loss is back at its start, with its name behind it, off the curve."""
    axes.plot([edge], [start], "o", color=INK, markersize=5, zorder=4)
    axes.annotate(
        f"edge {edge:.2g}",
        (edge, start),
        xytext=(8, -8),
        textcoords="offset points",
        ha="left",
        va="center",
        color=INK,
        fontsize=9,
    )


def plain(axes: Axes) -> None:
    """Axes in the style of all figures: a faint grid, no frame."""
    axes.grid(color=HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=QUIET, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(HAIR)
