"""Which images of a data set are trained on, and which it is judged by, where the data set does not say."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
Texts = NDArray[np.str_]


def assign_splits(
    named: Sequence[str | None],
    labels: NDArray[np.int64],
    names: Sequence[str],
    *,
    test_fraction: float,
    seed: int,
) -> Texts:
    """The split of each image: the one that it was given, else by lot within its class.

    The lot of an image follows from its name and the seed alone, so it keeps its split, but for a few at the
    border, when others are added. Every class of two images or more has one on either side.

    Args:
        named: "train", "val" or "test" of each image; None where nothing is said. Where others have a split,
            those without one are trained on.
        labels: (N,) int64.
        names: of the N images, each once.
        test_fraction: share of each class to test on, where no image has a split.
        seed: of the lots.

    Returns:
        (N,) of "train", "val" and "test".
    """
    splits = np.array([name or "train" for name in named], dtype="<U5")
    if any(named):
        return splits
    lots = np.array([blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in names])
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        held_out = min(max(1, round(test_fraction * len(members))), len(members) - 1)
        splits[members[np.argsort(lots[members], kind="stable")[:held_out]]] = "test"
    return splits
