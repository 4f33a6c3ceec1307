"""Text in pictures for people."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import matplotlib
from PIL import ImageDraw, ImageFont, features

from velodrome.errors import visible

# No line is longer, however small its letters.
MOST_LETTERS = 300


@functools.cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and so is on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    width: int,
    *,
    bold: bool = False,
    keep_end: bool = False,
) -> int:
    """Write a text on one line; what would be wider is left out at its end, or else in front.

    Args:
        draw: of the picture.
        place: left and top in pixels.
        text: anything; what cannot be seen is escaped.
        size: of the letters in pixels.
        colour: of the letters.
        width: in pixels that the line may take.
        bold: heavy letters.
        keep_end: leave out the beginning, as the end of a path says more.

    Returns:
        How wide it has become, in pixels.
    """
    letters = font(size, bold=bold)
    # Names in Hebrew or Arabic would else turn the line around.
    direction = "ltr" if features.check("raqm") else None
    line = shortened(text, letters, width, keep_end=keep_end)
    draw.text(place, line, colour, letters, direction=direction)
    return math.ceil(letters.getlength(line))


def shortened(text: str, letters: ImageFont.FreeTypeFont, width: int, *, keep_end: bool = False) -> str:
    """The text as it can be seen, with an ellipsis for what goes beyond `width` pixels."""
    text = visible(text)
    rest = text[-MOST_LETTERS:] if keep_end else text[:MOST_LETTERS]
    line = rest if rest == text else _with_ellipsis(rest, keep_end)
    while rest and letters.getlength(line) > width:
        rest = rest[1:] if keep_end else rest[:-1]
        line = _with_ellipsis(rest, keep_end)
    return line


def _with_ellipsis(text: str, keep_end: bool) -> str:
    return f"…{text}" if keep_end else f"{text}…"
