"""Figures of images with captions; never imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from velodrome.reporting.lr_figure import INK, QUIET

CELL_INCHES = 1.55
LONGEST_NAME = 22


def draw_images(images_u8: Iterable[NDArray[np.uint8]], captions: Sequence[str], columns: int = 8) -> Figure:
    """Images in rows, each with its caption above.

    Args:
        images_u8: N arrays (height, width, 3).
        captions: N texts, of one or two lines.
        columns: images in a row.
    """
    figure, cells = _grid(len(captions), columns)
    for axes, image, caption in zip(cells, images_u8, captions, strict=True):
        axes.imshow(image, interpolation="nearest")
        _caption(axes, caption)
    return figure


def shortened(name: str) -> str:
    """A name on one line, its middle left out where it is long."""
    line = " ".join(name.split())
    half = (LONGEST_NAME - 1) // 2
    return line if len(line) <= LONGEST_NAME else f"{line[:half]}…{line[-half:]}"


def _grid(cells: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with that many empty cells."""
    columns = min(columns, max(cells, 1))
    rows = max(1, -(-cells // columns))
    size = (columns * CELL_INCHES, rows * CELL_INCHES * 1.25)
    figure = Figure(figsize=size, dpi=120, layout="constrained", facecolor="white")
    everything = [axes for row in figure.subplots(rows, columns, squeeze=False) for axes in row]
    for axes in everything:
        axes.set_axis_off()
    return figure, everything[:cells]


def _caption(axes: Axes, text: str) -> None:
    first, _, rest = text.partition("\n")
    axes.set_title(first, fontsize=8, color=INK, parse_math=False, pad=14 if rest else 4)
    if rest:
        axes.text(
            0.5,
            1.02,
            rest,
            transform=axes.transAxes,
            ha="center",
            va="bottom",
            fontsize=7,
            color=QUIET,
            parse_math=False,
        )
