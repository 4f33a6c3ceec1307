"""A figure of accuracy, loss and learning rate over the epochs, from history.csv; never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from velodrome.reporting.lr_figure import AZURE, INK, RED, plain

ROLES = (("train", "train", RED, "-"), ("val", "validation", INK, (0, (4, 2))), ("test", "test", AZURE, "-"))


def draw_history(history: Sequence[Mapping[str, float | None]]) -> Figure:
    """Accuracy and loss on each set of images, and the learning rate, over the epochs.

    Args:
        history: the rows of history.csv, one an epoch; without any the axes are empty.
    """
    figure = Figure(figsize=(12, 3.8), dpi=120, layout="constrained", facecolor="white")
    accuracy, loss, rate = figure.subplots(1, 3)
    _draw_roles(accuracy, history, "acc", 100)
    _draw_roles(loss, history, "loss", 1)
    rate.plot([row["epoch"] for row in history], [row["lr"] for row in history], color=AZURE, linewidth=2)
    for axes, title in (
        (accuracy, "Accuracy, %"),
        (loss, "Loss"),
        (rate, "Learning rate at the epoch's end"),
    ):
        axes.set_title(title, loc="left", color=INK, fontsize=11)
        axes.set_xlabel("epoch", color=INK)
        plain(axes)
    loss.set_ylim(bottom=0)
    rate.set_ylim(bottom=0)
    return figure


def _draw_roles(axes: Axes, history: Sequence[Mapping[str, float | None]], what: str, unit: float) -> None:
    """A line for each set of images that has figures; the legend tells the last ones."""
    for role, name, colour, style in ROLES:
        points = [(row["epoch"], row[f"{role}_{what}"]) for row in history]
        known = [(epoch, unit * value) for epoch, value in points if epoch is not None and value is not None]
        if known:
            epochs, values = zip(*known, strict=True)
            label = f"{name} {values[-1]:.4g}"
            axes.plot(epochs, values, color=colour, linewidth=2, linestyle=style, label=label)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
