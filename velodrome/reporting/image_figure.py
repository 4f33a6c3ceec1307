"""Figures of images, with and without Grad-CAM maps over them; never imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from velodrome.reporting.lr_figure import INK, QUIET

CELL_INCHES = 1.55
LONGEST_NAME = 22


def draw_images(images_u8: NDArray[np.uint8], captions: Sequence[str], columns: int = 8) -> Figure:
    """Images in rows, each with its caption above.

    Args:
        images_u8: (N, H, W, 3).
        captions: N texts, of one or two lines.
        columns: images in a row.
    """
    figure, cells = _grid(len(images_u8), columns)
    for axes, image, caption in zip(cells, images_u8, captions, strict=True):
        axes.imshow(image, interpolation="nearest")
        _caption(axes, caption)
    return figure


def draw_maps(
    images_u8: NDArray[np.uint8],
    maps: NDArray[np.float32],
    captions: Sequence[str],
    map_captions: Sequence[Sequence[str]],
) -> Figure:
    """A row for each image: the image, and the same with the map of each class over it.

    Args:
        images_u8: (N, H, W, 3).
        maps: (N, K, h, w), at least 0; each is coloured up to its own maximum.
        captions: N texts for the images.
        map_captions: N times K texts for the maps.
    """
    kinds = 1 + maps.shape[1]
    figure, cells = _grid(len(images_u8) * kinds, kinds)
    height, width = images_u8.shape[1:3]
    for row, (image, caption) in enumerate(zip(images_u8, captions, strict=True)):
        first, *others = cells[row * kinds : (row + 1) * kinds]
        first.imshow(image, interpolation="nearest")
        _caption(first, caption)
        for axes, heat, text in zip(others, maps[row], map_captions[row], strict=True):
            axes.imshow(image, interpolation="nearest", extent=(0, width, height, 0))
            most = float(heat.max())
            level = heat / most if most > 0 else heat
            axes.imshow(
                level,
                cmap="turbo",
                vmin=0,
                vmax=1,
                alpha=0.15 + 0.45 * level,
                interpolation="bilinear",
                extent=(0, width, height, 0),
            )
            _caption(axes, text if most > 0 else f"{text}\nnothing speaks for it")
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
