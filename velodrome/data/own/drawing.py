"""Text in pictures for people."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont, features

from velodrome.errors import visible

# No line is longer, however small its letters.
MOST_LETTERS = 300
NORMAL, BOLD = 400, 700
ELLIPSIS = "…"
# Fonts that have a box for every letter there is.
BOXES = "lastresort"


@functools.cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and so is on every machine."""
    return ImageFont.truetype(_usual(bold=bold), size)


def fitting(text: str, size: int, *, bold: bool = False) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and a font that has all of its letters: DejaVu Sans, else any on this machine.

    Where there is none, as for Chinese on many servers, numbers stand for what DejaVu Sans lacks: [U+732B].
    """
    lacking = set(text) - _letters_in(_usual(bold=bold))
    if not lacking:
        return text, font(size, bold=bold)
    wanted = {*text, ELLIPSIS}
    for path in _installed(bold=bold):
        if wanted <= _letters_in(path):
            return text, ImageFont.truetype(path, size)
    return "".join(_spelled(text, lacking)), font(size, bold=bold)


def _usual(*, bold: bool) -> str:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


@functools.cache
def _letters_in(path: str) -> frozenset[str]:
    """All letters that a font has; none where it cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


def _installed(*, bold: bool) -> list[str]:
    """The fonts on this machine, upright ones first, and of these the ones of the right weight."""
    # It makes a list of all fonts when it is first imported, for which others need not wait.
    from matplotlib.font_manager import fontManager  # noqa: PLC0415

    weight = BOLD if bold else NORMAL
    there = [entry for entry in fontManager.ttflist if BOXES not in entry.name.lower().replace(" ", "")]
    there.sort(key=lambda entry: (entry.style != "normal", abs(int(entry.weight) - weight), entry.fname))
    return [entry.fname for entry in there]


def _spelled(text: str, lacking: set[str]) -> Iterator[str]:
    """The parts of a text, those without letters of their own as numbers of Unicode."""
    for is_lacking, letters in itertools.groupby(text, lacking.__contains__):
        part = "".join(letters)
        yield f"[{' '.join(f'U+{ord(letter):04X}' for letter in part)}]" if is_lacking else part


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
        text: anything; what cannot be seen, or that no font has, is escaped.
        size: of the letters in pixels.
        colour: of the letters.
        width: in pixels that the line may take.
        bold: heavy letters.
        keep_end: leave out the beginning, as the end of a path says more.

    Returns:
        How wide it has become, in pixels.
    """
    text, letters = fitting(visible(text), size, bold=bold)
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
    return f"{ELLIPSIS}{text}" if keep_end else f"{text}{ELLIPSIS}"
