"""Samples of the training images, as they are and as the network saw them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from velodrome.reporting import text
from velodrome.reporting.gaps import Gap, damaged, read_image, read_object, read_size, whole
from velodrome.reporting.tables import listing, mapping
from velodrome.run.folder import RunFolder

# Of more classes than this the samples start folded.
MANY_CLASSES = 20
# A strip is as wide as so many samples.
PLACES = 10
# Pixels of images up to this side, in pixels, are shown as squares.
LARGEST_WITH_SQUARES = 48


@dataclass(frozen=True)
class Sprite:
    """Many images in one.

    Attributes:
        uri: the image as a data URI.
        width: of an image, in pixels.
        height: of an image, in pixels.
        columns: images in a row.
        rows: of images.
    """

    uri: str
    width: int
    height: int
    columns: int
    rows: int

    @property
    def is_smooth(self) -> bool:
        """Whether its pixels are too small to be shown as squares."""
        return max(self.width, self.height) > LARGEST_WITH_SQUARES


@dataclass(frozen=True)
class Strip:
    """Samples of a class: its name, how many they are, and where in the sprite the first is, in images."""

    name: str
    count: int
    column: int
    row: int


@dataclass(frozen=True)
class Tile:
    """An augmented image: its class, and where it is in the sprite, in images."""

    name: str
    column: int
    row: int


@dataclass(frozen=True)
class Samples:
    """Training images of each class, and the first batch as the network saw it.

    `augmented` is None where it cannot be shown, and `note` says why. Of very many classes `strips` are the
    first; `classes` is how many there are.
    """

    images: Sprite
    strips: tuple[Strip, ...]
    classes: int
    augmented: Sprite | None
    tiles: tuple[Tile, ...]
    note: str | None

    @property
    def places(self) -> int:
        """How many samples a strip has room for."""
        return max(PLACES, *(strip.count for strip in self.strips))

    @property
    def are_many(self) -> bool:
        """Whether they start folded."""
        return len(self.strips) > MANY_CLASSES


def gather_samples(folder: RunFolder) -> Samples:
    """The samples that were written when training started.

    Raises:
        Gap: there are none, or they are damaged.
    """
    found = read_object(folder, folder.samples)
    classes, counts = listing(found.get("classes")), listing(found.get("counts"))
    height, width = read_size(folder, folder.samples, found, "image_size")
    columns = whole(found.get("columns"))
    if not classes or columns is None or len(counts) != len(classes):
        raise damaged(folder, folder.samples, "classes, counts and columns do not belong together")
    # Runs of earlier versions have the samples of one class in a row.
    most = min(columns, whole(found.get("samples")) or columns)
    across = columns // most
    strips = tuple(
        Strip(text.words(name), min(most, whole(count) or 0), place % across * most, place // across)
        for place, (name, count) in enumerate(zip(classes, counts, strict=True))
    )
    rows = -(-len(classes) // across)
    sprite = Sprite(read_image(folder, folder.samples_image), width, height, columns, rows)
    in_all = max(len(classes), whole(found.get("all_classes")) or 0)
    try:
        same_size: dict[str, Any] = {"image_size": [height, width]}
        augmented, tiles = _augmented(folder, same_size | dict(mapping(found.get("augmented"))))
        return Samples(sprite, strips, in_all, augmented, tiles, None)
    except Gap as gap:
        return Samples(sprite, strips, in_all, None, (), str(gap))


def _augmented(folder: RunFolder, found: Mapping[str, Any]) -> tuple[Sprite, tuple[Tile, ...]]:
    height, width = read_size(folder, folder.samples, found, "image_size")
    columns, labels = whole(found.get("columns")), listing(found.get("labels"))
    if columns is None or not labels:
        raise damaged(folder, folder.samples, "it does not say what the augmented images are")
    uri = read_image(folder, folder.augmented_image)
    tiles = tuple(Tile(text.words(name), *divmod(i, columns)[::-1]) for i, name in enumerate(labels))
    return Sprite(uri, width, height, columns, -(-len(labels) // columns)), tiles
