"""A data set in one picture: examples of each class, then the images that something is wrong with."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from velodrome.data.image_files import Failure
from velodrome.data.imageset import AnyImages
from velodrome.data.own.class_table import ends, in_between
from velodrome.data.own.contents import Conflict, Contents, Leak
from velodrome.data.own.drawing import write
from velodrome.data.own.listing import counted
from velodrome.data.own.near_duplicates import Indices
from velodrome.data.own.splitting import SPLITS

# The colours of the report.
PAPER, INK, QUIET, HAIR, WASH = "#fcfcfa", "#16191d", "#5a626c", "#e2e3df", "#f3f4f0"
AZURE, RED = "#0a67b0", "#c8401c"
# Room for the names of classes, and examples of each class.
NAME_WIDTH, COLUMNS = 216, 12
MARGIN, GAP = 32, 6
# A tile is about as large as this, so that the pixels of small images come out as equal squares.
USUAL_TILE, LARGEST_TILE = 72, 96
# Heights of letters.
TITLE, HEADING, NAME, SMALL = 28, 19, 15, 12
LINE = 17
# Pairs of images and files in a row, and how many are shown of each.
CELLS, MOST_CELLS = 5, 15

T = TypeVar("T")
# Rows (M,) int64 -> their pixels (M, H, W, 3).
Pick = Callable[[NDArray[np.int64]], AnyImages]


@dataclass(frozen=True)
class _Cell:
    """Images side by side, and lines below them.

    Attributes:
        tiles: the images.
        names: what a line begins with, and the name of an image, whose end says most.
        note: what else is to be said.
    """

    tiles: tuple[Image.Image, ...]
    names: tuple[tuple[str, str], ...]
    note: str


def contact_sheet(data: Contents, pick: Pick, title: str) -> bytes:
    """A picture of a data set: a row for each class, then leaks, labels at odds, copies and unreadable files.

    Of more than 40 classes, only the largest and the smallest are there.

    Args:
        data: what is known of the images.
        pick: gives the pixels of images by their indices.
        title: the name of the data set.

    Returns:
        A PNG file.
    """
    strips = list(_Sheet(data, pick).strips(title))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


class _Sheet:
    """Makes the strips of the picture, which are as wide as it is and stand below one another.

    Args:
        data: what is known of the images.
        pick: gives the pixels of images by their indices.
    """

    def __init__(self, data: Contents, pick: Pick) -> None:
        self.data = data
        self.pick = pick
        # Height and width of a tile.
        self.tile = min(LARGEST_TILE, data.side * max(1, round(USUAL_TILE / data.side)))
        self.inner_width = NAME_WIDTH + COLUMNS * (self.tile + GAP) - GAP

    def strips(self, title: str) -> Iterator[Image.Image]:
        """From top to bottom."""
        data = self.data
        yield self._head(title)
        yield from self._classes()
        yield from self._section("Held out to judge by, but trained on too", data.leaks, self._leak)
        yield from self._section("The same image with more than one class", data.conflicts, self._conflict)
        yield from self._section("Copies", data.alike, self._copies)
        yield from self._section("Files that cannot be read", data.failures, self._file)
        yield self._blank(MARGIN)

    def _blank(self, height: int) -> Image.Image:
        return Image.new("RGB", (MARGIN + self.inner_width + MARGIN, height), PAPER)

    def _head(self, title: str) -> Image.Image:
        """The name of the data set and how many images it has, below the lines of a velodrome."""
        strip = self._blank(128)
        draw = ImageDraw.Draw(strip)
        draw.rectangle((0, 0, strip.width, 4), AZURE)
        draw.line((0, 9, strip.width, 9), INK)
        draw.line((0, 15, strip.width, 15), RED)
        write(draw, (MARGIN, 38), title, TITLE, INK, self.inner_width, bold=True)
        write(draw, (MARGIN, 80), _in_words(self.data), NAME, QUIET, self.inner_width)
        return strip

    def _classes(self) -> Iterator[Image.Image]:
        """A row for each class, or for the largest and the smallest of them."""
        first, last = ends(self.data)
        yield from map(self._class, first.tolist())
        if len(last):
            strip = self._blank(52)
            words = (
                f"{in_between(self.data)} are between the {len(first)} largest and the {len(last)} smallest."
            )
            write(ImageDraw.Draw(strip), (MARGIN, 16), words, NAME, QUIET, self.inner_width)
            yield strip
        yield from map(self._class, last.tolist())

    def _class(self, label: int) -> Image.Image:
        """The name of a class, how many images it has, and some of them from all over."""
        data = self.data
        strip = self._blank(self.tile + GAP)
        draw = ImageDraw.Draw(strip)
        top, width = self.tile // 2 - 20, NAME_WIDTH - 16
        write(draw, (MARGIN, top), data.classes[label], NAME, INK, width, bold=True)
        write(draw, (MARGIN, top + 22), _counts_in_words(data, label), SMALL, QUIET, width)
        members = data.readable[data.labels[data.readable] == label]
        chosen = np.linspace(0, len(members) - 1, min(COLUMNS, len(members))).round().astype(np.int64)
        for column, index in enumerate(members[chosen].tolist()):
            strip.paste(self._example(index), (MARGIN + NAME_WIDTH + column * (self.tile + GAP), 0))
        return strip

    def _section(
        self, title: str, found: Sequence[T], cell_of: Callable[[T], _Cell]
    ) -> Iterator[Image.Image]:
        """A heading, and the first of what was found below it; nothing where nothing was found."""
        if not found:
            return
        strip = self._blank(74)
        draw = ImageDraw.Draw(strip)
        draw.line((MARGIN, 22, MARGIN + self.inner_width, 22), HAIR)
        many = f"{len(found):,}" if len(found) <= MOST_CELLS else f"the first {MOST_CELLS} of {len(found):,}"
        write(draw, (MARGIN, 38), f"{title}: {many}", HEADING, INK, self.inner_width, bold=True)
        yield strip
        for start in range(0, min(len(found), MOST_CELLS), CELLS):
            yield self._row([cell_of(one) for one in found[start : start + CELLS]])

    def _row(self, cells: Sequence[_Cell]) -> Image.Image:
        """Cells beside each other."""
        lines = 1 + max(len(cell.names) for cell in cells)
        strip = self._blank(self.tile + 6 + lines * LINE + 14)
        draw = ImageDraw.Draw(strip)
        pitch = (self.inner_width + MARGIN) // CELLS
        width = pitch - MARGIN
        for number, cell in enumerate(cells):
            left = MARGIN + number * pitch
            for place, tile in enumerate(cell.tiles):
                strip.paste(tile, (left + place * (self.tile + GAP), 0))
            top = self.tile + 6
            for begin, name in cell.names:
                used = write(draw, (left, top), begin, SMALL, INK, width // 2)
                write(draw, (left + used, top), name, SMALL, QUIET, width - used, keep_end=True)
                top += LINE
            write(draw, (left, top), cell.note, SMALL, QUIET, width)
        return strip

    # Cells.

    def _leak(self, leak: Leak) -> _Cell:
        pair = leak.held_out, leak.train
        names = tuple((f"{self.data.splits[index]} ", self.data.names[index]) for index in pair)
        return _Cell(self._examples(pair), names, _how_alike(leak.is_exact))

    def _conflict(self, conflict: Conflict) -> _Cell:
        data = self.data
        first = {int(data.labels[index]): index for index in reversed(conflict.images)}
        pair = [first[label] for label in sorted(first)][:2]
        names = tuple((f"{data.classes[data.labels[index]]} ", data.names[index]) for index in pair)
        return _Cell(self._examples(pair), names, _how_alike(conflict.is_exact))

    def _copies(self, group: Indices) -> _Cell:
        pair = group[:2].tolist()
        more = f"{len(group) - 2:,} more, " if len(group) > 2 else ""
        is_exact = bool((self.data.facts.digests[group] == self.data.facts.digests[group[0]]).all())
        names = tuple(("", self.data.names[index]) for index in pair)
        return _Cell(self._examples(pair), names, more + _how_alike(is_exact))

    def _file(self, failure: Failure) -> _Cell:
        """A crossed tile, the name of the file, and why it cannot be read."""
        tile = Image.new("RGB", (self.tile, self.tile), WASH)
        draw = ImageDraw.Draw(tile)
        last = self.tile - 1
        draw.rectangle((0, 0, last, last), outline=HAIR)
        near, far = self.tile // 4, last - self.tile // 4
        draw.line((near, near, far, far), RED, 3)
        draw.line((near, far, far, near), RED, 3)
        return _Cell((tile,), (("", str(failure.path)),), failure.reason)

    def _examples(self, indices: Sequence[int]) -> tuple[Image.Image, ...]:
        return tuple(map(self._example, indices))

    def _example(self, index: int) -> Image.Image:
        """An image as a tile."""
        image = Image.fromarray(np.asarray(self.pick(np.array([index]))[0]))
        # Pixels stay squares where they can; what is larger than a tile is made smaller with antialiasing.
        is_whole = self.tile % image.width == 0
        kind = Image.Resampling.NEAREST if is_whole else Image.Resampling.LANCZOS
        return image.resize((self.tile, self.tile), kind)


def _how_alike(is_exact: bool) -> str:
    return "the same pixels" if is_exact else "nearly the same"


def _in_words(data: Contents) -> str:
    """How many images there are, of how many classes, in which splits."""
    words = [f"{counted(len(data.readable), 'image')} of {len(data.classes):,} classes"]
    sums = zip(SPLITS, data.counts.sum(0).tolist(), strict=True)
    words += [f"{count:,} {split}" for split, count in sums if count]
    if data.failures:
        words.append(f"{counted(len(data.failures), 'file')} cannot be read")
    words.append(f"shown to the network as {data.side} × {data.side} pixels")
    return "   ·   ".join(words)


def _counts_in_words(data: Contents, label: int) -> str:
    """The images of a class in each split."""
    there = zip(SPLITS, data.counts[label].tolist(), strict=True)
    return " · ".join(f"{count:,} {split}" for split, count in there if count) or "no image that can be read"
