"""Images in memory, and the constants that normalise them."""

from __future__ import annotations

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

    Exact: computed from a histogram of the 256 values, not by summing rounded floats.

    Args:
        images_u8: (N, H, W, 3) uint8.
    """
    values = np.arange(256) / 255.0
    means, stds = [], []
    for channel in range(3):
        counts = np.zeros(256, dtype=np.int64)
        for chunk in np.array_split(images_u8[..., channel], max(1, len(images_u8) // 4096)):
            counts += np.bincount(chunk.ravel(), minlength=256)
        share = counts / counts.sum()
        mean = float(share @ values)
        means.append(mean)
        stds.append(float(np.sqrt(share @ (values - mean) ** 2)))
    # A constant channel has no spread; 1 leaves it at zero instead of dividing by zero.
    safe = [std if std > 0 else 1.0 for std in stds]
    return Normalisation((means[0], means[1], means[2]), (safe[0], safe[1], safe[2]))
