"""Images in memory or in a file, and the constants that normalise them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ImagesU8 = NDArray[np.uint8]
Labels = NDArray[np.int64]
# Of images in a file, so much is read at a time where all of them are looked at.
BLOCK_BYTES = 4 * 2**20


class MappedImages:
    """Images in a file, read when they are asked for: (N, H, W, 3) uint8.

    What an index gives is a copy in memory, which belongs to the caller.

    Args:
        images_u8: (M, H, W, 3) uint8, C-contiguous, a memory map.
        rows: (N,) int64, which of them, in which order; all of them without.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, images_u8: ImagesU8, rows: NDArray[np.int64] | None = None) -> None:
        # As a plain array: where a np.memmap is indexed, it looks for the map below each result.
        self._images_u8: ImagesU8 = np.asarray(images_u8)
        self._rows = np.arange(len(images_u8)) if rows is None else np.asarray(rows, np.int64)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, 3)."""
        _, height, width, channels = self._images_u8.shape
        return len(self._rows), height, width, channels

    @property
    def nbytes(self) -> int:
        """What the images would take in memory."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice | NDArray[Any] | Sequence[int]) -> ImagesU8:
        """An image (H, W, 3) for a number; for a slice, or an array of numbers, images (M, H, W, 3)."""
        found: ImagesU8 = np.take(self._images_u8, self._rows[index], axis=0)
        return found

    def __iter__(self) -> Iterator[ImagesU8]:
        return (self[number] for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All images in memory, as NumPy's functions want them."""
        if copy is False:
            raise ValueError("images in a file cannot become an array without being copied")
        return np.asarray(self[:], dtype)

    def take(self, indices: NDArray[np.int64]) -> MappedImages:
        """The images at `indices`, (M,) int64, in that order, still in their file."""
        return MappedImages(self._images_u8, self._rows[indices])

    def blocks(self) -> Iterator[ImagesU8]:
        """All images in their order, a few (M, H, W, 3) at a time."""
        size = max(1, BLOCK_BYTES // math.prod(self.shape[1:]))
        return (self[start : start + size] for start in range(0, len(self), size))


AnyImages = ImagesU8 | MappedImages


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels.

    Attributes:
        images_u8: (N, H, W, 3) uint8, C-contiguous; channels last, as image files and CPUs like them. An
            array, or images in a file, of which indices, slices and iteration give arrays.
        labels: (N,) int64, each in [0, len(classes)).
        classes: the class names; a label is an index into them.
        paths: N names, where each image came from (a file name, or a made-up one for drawn images).
        digests: (N, B) uint8, checksums that are the same where images of one data set are, in whatever size
            they are held here; None where nobody has computed them.
    """

    images_u8: AnyImages
    labels: Labels
    classes: tuple[str, ...]
    paths: Sequence[str]
    digests: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> ImageSet:
        """The images at `indices`, (M,) int64, in that order; those in a file stay there."""
        ours = self.images_u8
        return ImageSet(
            ours.take(indices) if isinstance(ours, MappedImages) else ours[indices],
            self.labels[indices],
            self.classes,
            [self.paths[int(i)] for i in indices],
            None if self.digests is None else self.digests[indices],
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """The image sets of one data set: to train on, to choose by (may be absent), and to report on.

    Attributes:
        name: of the data set.
        train: may be larger than the others, so that parts of them can be trained on.
        val: None where there is none.
        test: to report on.
        fingerprint: a checksum of a user's own images and labels; empty for what is the same for everybody.
        found: what there is to say about a user's own images, as JSON; None for other data sets.
    """

    name: str
    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    fingerprint: str = ""
    found: Mapping[str, Any] | None = None

    @property
    def side(self) -> int:
        """Height and width in pixels of the images that are reported on, as the model is shown them."""
        side: int = self.test.images_u8.shape[1]
        return side


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of the training images, with pixels scaled to [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def channel_statistics(images_u8: AnyImages) -> Normalisation:
    """The mean and (population) standard deviation of each channel over all pixels of all images.

    Exact up to one rounding at the end: the sums are whole numbers, not rounded floats.

    Args:
        images_u8: (N, H, W, 3) uint8, at least one pixel.
    """
    count = math.prod(images_u8.shape[:3])
    means, stds = [], []
    blocks = images_u8.blocks() if isinstance(images_u8, MappedImages) else [images_u8]
    # Whole numbers, so that they do not depend on the blocks.
    sums = np.sum([_channel_sums(block) for block in blocks], axis=0, dtype=object)
    for total, squares in zip(*sums.tolist(), strict=True):
        means.append(total / (255 * count))
        # The variance times count**2 is a whole number too, so it is 0 for a constant channel and no other.
        std = math.sqrt(count * squares - total**2) / (255 * count)
        # A constant channel has no spread; 1 leaves it at zero instead of dividing by zero.
        stds.append(std if std > 0 else 1.0)
    return Normalisation((means[0], means[1], means[2]), (stds[0], stds[1], stds[2]))


def _channel_sums(images_u8: ImagesU8) -> tuple[list[int], list[int]]:
    """The sum of the values of each channel, and the sum of their squares; both exact."""
    values = images_u8.reshape(-1)  # red, green, blue, red, ...
    # One block of values at a time, so that the work stays in the processor's cache. A column of a block
    # holds one channel; whole rows are added, which is fast. 16 bits hold 255**2, 32 bits 256 times that.
    block = np.empty((256, 3 * 1024), np.uint16)
    flat = block.reshape(-1)
    columns = np.zeros((2, block.shape[1]), np.int64)
    for start in range(0, len(values), len(flat)):
        part = values[start : start + len(flat)]
        flat[: len(part)] = part
        flat[len(part) :] = 0  # adds nothing
        columns[0] += block.sum(0, dtype=np.uint32)
        np.multiply(block, block, out=block)
        columns[1] += block.sum(0, dtype=np.uint32)
    totals, squares = columns.reshape(2, -1, 3).sum(1).tolist()
    return totals, squares
