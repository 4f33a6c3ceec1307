"""Classes of unlike sizes: rare ones are drawn more often, or weigh more in the loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from velodrome.data.imageset import Labels


def draw_order(numbers: np.random.Generator, labels: Labels, *, balanced: bool) -> NDArray[np.int64]:
    """The image at each position of an epoch.

    Args:
        numbers: to draw from.
        labels: (N,) int64.
        balanced: draw with replacement, so that each class that has images is as likely as any other, and
            each image as likely as any other of its class. Where all classes have as many images, that is
            not needed, and nothing changes.

    Returns:
        (N,) int64.
    """
    counts = np.bincount(labels)
    if not balanced or _are_equal(counts):
        return numbers.permutation(len(labels))
    likely = 1 / counts[labels]
    return numbers.choice(len(labels), len(labels), p=likely / likely.sum())


def class_weights(labels: Labels, classes: int) -> NDArray[np.float32] | None:
    """Weights of the classes with which all classes weigh as much; (classes,) float32.

    Their mean over all images is 1; a class without images has 0. None where all have as many images.

    Args:
        labels: (N,) int64, at least one.
        classes: their number.
    """
    counts = np.bincount(labels, minlength=classes)
    if _are_equal(counts):
        return None
    there = counts > 0
    return np.where(there, len(labels) / (there.sum() * np.maximum(counts, 1)), 0).astype(np.float32)


def _are_equal(counts: NDArray[np.int64]) -> bool:
    """Whether all classes that have images have as many."""
    return len(set(counts[counts > 0].tolist())) <= 1
