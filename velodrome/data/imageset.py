"""Images in memory, and the constants that normalise them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ImagesU8 = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels.

    Attributes:
        images_u8: (N, H, W, 3) uint8, C-contiguous; channels last, as image files and CPUs like them.
        labels: (N,) int64, each in [0, len(classes)).
        classes: the class names; a label is an index into them.
        paths: N names, where each image came from (a file name, or a made-up one for drawn images).
    """

    images_u8: ImagesU8
    labels: Labels
    classes: tuple[str, ...]
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> ImageSet:
        """The images at `indices`, (M,) int64, in that order."""
        return ImageSet(
            self.images_u8[indices],
            self.labels[indices],
            self.classes,
            [self.paths[int(i)] for i in indices],
        )


@dataclass(frozen=True, eq=False)
class Splits:
    """The image sets of one data set: to train on, to choose by (may be absent), and to report on."""

    name: str
    train: ImageSet
    val: ImageSet | None
    test: ImageSet


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of the training images, with pixels scaled to [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def channel_statistics(images_u8: ImagesU8) -> Normalisation:
    """The mean and (population) standard deviation of each channel over all pixels of all images.

    Exact up to one rounding at the end: the sums are whole numbers, not rounded floats.

    Args:
        images_u8: (N, H, W, 3) uint8, at least one pixel.
    """
    count = images_u8.size // 3
    means, stds = [], []
    for total, squares in zip(*_channel_sums(images_u8), strict=True):
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
