"""The arrays in an .npz file: found by their names, checked by their headers, and then read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from velodrome.data.own.listing import SPLIT_NAMES, shown, some
from velodrome.data.own.memory import own_share_bytes
from velodrome.errors import DataError, visible

KIND = "Array file"
# What images and labels of the split {} are called, and where there are no splits.
SPLIT_PAIRS = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))
PLAIN_PAIRS = (("images", "labels"), ("x", "y"))
CHANNELS = (1, 3, 4)
# So many times the memory of its images does a data set take at most: while the images of splits are taken
# out of those of the whole, and later while some to validate on are taken out of those to train on, both lie
# there. A test counts them.
COPIES = 2
# What the name, the checksum and the thumbnail of an image take.
BESIDES_BYTES = 500
NAMES = (
    "Name the arrays images and labels, or train_images, train_labels, test_images and test_labels, or "
    "x_train, y_train, x_test and y_test."
)


class Stored(NamedTuple):
    """An array in the file, as its header describes it; its values are not read."""

    name: str
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class Pair(NamedTuple):
    """The images of a split and their labels."""

    images: Stored
    labels: Stored


def names_of_pairs(path: Path, names: Iterable[str]) -> dict[str | None, tuple[str, str]]:
    """Split -> the names of its images and its labels, None where there are no splits.

    Raises:
        DataError: there are none, one is without the other, or they contradict each other.
    """
    there = set(names)
    wanted: list[tuple[str | None, str, str]] = [(None, *pair) for pair in PLAIN_PAIRS]
    for word, meant in SPLIT_NAMES.items():
        wanted += [(meant, images.format(word), labels.format(word)) for images, labels in SPLIT_PAIRS]
    pairs: dict[str | None, tuple[str, str]] = {}
    for split, images, labels in wanted:
        if images not in there and labels not in there:
            continue
        if images not in there or labels not in there:
            has, lacks = (images, labels) if images in there else (labels, images)
            raise DataError(f"{KIND} {shown(path)} has an array {has}, but none called {lacks}.", NAMES)
        if split in pairs or (None in pairs and split is not None):
            both = f"{next(iter(pairs.values()))[0]} and {images}"
            raise DataError(
                f"{KIND} {shown(path)} has the arrays {both}, so it is unclear which of them to use.", NAMES
            )
        pairs[split] = images, labels
    if not pairs:
        found = some(sorted(there), 8) or "none at all"
        raise DataError(
            f"{KIND} {shown(path)} has no arrays with images and labels; its arrays are {found}.", NAMES
        )
    return pairs


def described(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stored:
    """An array, as far as it can be known before its values are read.

    Raises:
        DataError: it holds Python objects.
        ValueError: it is damaged.
    """
    name = visible(info.filename.removesuffix(".npy"))
    with file.open(info) as content:
        version = npy.read_magic(content)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{name} is in version {version} of the format")
        shape, _, dtype = readers[version](content)
        stored = Stored(name, info, shape, dtype)
        if dtype.hasobject:
            raise DataError(
                f"{KIND} {shown(path)}: {name} holds Python objects, which are not read, as that could run "
                "any program.",
                "Save plain arrays: images as uint8, and labels as whole numbers or text.",
            )
        if min(shape, default=0) < 0 or content.tell() + stored.size_bytes != info.file_size:
            raise ValueError(f"{name} has another size than it says")
    return stored


def read_stored(file: zipfile.ZipFile, stored: Stored) -> NDArray[Any]:
    """The values of an array; none of them is a Python object."""
    with file.open(stored.info) as content:
        return np.asarray(npy.read_array(content, allow_pickle=False))


# Checks.


def check_images(path: Path, images: Stored) -> None:
    """Refuse what are no images, before they are read.

    Raises:
        DataError: see there.
    """
    shape, where = images.shape, f"{KIND} {shown(path)}: {images.name}"
    if images.dtype != np.uint8:
        raise DataError(
            f"{where} holds values of type {images.dtype}, but images are whole numbers from 0 to 255, of "
            "type uint8.",
            "Save images.astype('uint8'), or (images * 255).round().astype('uint8') if they are from 0 to 1.",
        )
    if len(shape) == 4 and shape[1] in CHANNELS and shape[-1] not in CHANNELS and shape[1] < shape[2]:
        raise DataError(
            f"{where} has the shape {shape}, with channels before height and width.",
            "Save images.transpose(0, 2, 3, 1).",
        )
    if len(shape) not in {3, 4} or (len(shape) == 4 and shape[-1] not in CHANNELS):
        raise DataError(
            f"{where} has the shape {shape}, but images are (number, height, width) where they are grey, or "
            "(number, height, width, channels) with 1, 3 or 4 channels.",
            "Reshape them before they are saved.",
        )
    if 0 in shape:
        raise DataError(f"{where} has the shape {shape}, so there is no pixel in it.", "Save some images.")


def check_labels(path: Path, pair: Pair) -> None:
    """Refuse what are no labels of these images, before they are read.

    Raises:
        DataError: see there.
    """
    images, labels = pair
    where = f"{KIND} {shown(path)}: {labels.name}"
    if labels.dtype.kind not in "iuUS":
        raise DataError(
            f"{where} holds values of type {labels.dtype}, but labels are whole numbers or text.",
            "Save labels.astype('int64').",
        )
    if len(labels.shape) == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{where} has the shape {labels.shape}, but there must be one label for each image.",
            "If one number in each row is 1 and all others are 0, save labels.argmax(axis=1). Images with "
            "several labels at once cannot be learnt from.",
        )
    if labels.shape[1:] not in {(), (1,)} or not labels.shape:
        raise DataError(
            f"{where} has the shape {labels.shape}, but labels are (number,) or (number, 1).",
            "Reshape them before they are saved.",
        )
    if images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{KIND} {shown(path)} has {images.shape[0]:,} {images.name} and {labels.shape[0]:,} "
            f"{labels.name}, but there must be one label for each image.",
            "Save both in the same order and number.",
        )


def check_together(path: Path, images: Sequence[Stored]) -> None:
    """Refuse images of several sizes, and more of them than the memory holds.

    Raises:
        DataError: see there.
    """
    sizes = {stored.shape[1:3]: stored.name for stored in images}
    if len(sizes) > 1:
        words = " and ".join(f"{name} of {size[0]} x {size[1]} pixels" for size, name in sizes.items())
        raise DataError(
            f"{KIND} {shown(path)} has {words}, but all images must be of one size.",
            "Resize them before they are saved, or save them as files in folders.",
        )
    pixels_bytes = sum(3 * math.prod(stored.shape[:3]) for stored in images)
    # What has an alpha channel lies there as it was read, and without.
    reading_bytes = pixels_bytes + max(stored.size_bytes for stored in images)
    besides_bytes = BESIDES_BYTES * sum(stored.shape[0] for stored in images)
    _check_room(
        path,
        f"images of {pixels_bytes / 1e9:,.1f} GB",
        max(COPIES * pixels_bytes, reading_bytes) + besides_bytes,
        "Save the images as files in folders: these are read piece by piece.",
    )


def check_resized(path: Path, images: int, side: int, held_bytes: int) -> None:
    """Refuse to bring images that are read to a size in which the memory cannot hold them.

    Args:
        path: of the file.
        images: how many.
        side: the height and width in pixels that they are to have.
        held_bytes: what they take now, which is given back.

    Raises:
        DataError: see there.
    """
    _check_room(
        path,
        f"{images:,} images, which are brought to {side} x {side} pixels",
        (COPIES * 3 * side**2 + BESIDES_BYTES) * images - held_bytes,
        "Use a smaller --image-size, or save the images as files in folders: these are read piece by piece.",
    )


def _check_room(path: Path, what: str, needed_bytes: int, remedy: str) -> None:
    free_bytes = own_share_bytes()
    if needed_bytes > free_bytes:
        raise DataError(
            f"{KIND} {shown(path)} holds {what}. Reading and splitting them takes {needed_bytes / 1e9:,.1f} "
            f"GB, more than the {free_bytes / 1e9:,.1f} GB of memory that are free.",
            remedy,
        )
