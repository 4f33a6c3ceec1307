"""Which images of a data set are trained on, and which it is judged by, where the data set does not say."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from velodrome.data.own.near_duplicates import Indices

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


def without_copies(splits: Texts, labels: NDArray[np.int64], same: Sequence[Indices]) -> Texts:
    """The splits, but what is tested on and is the same as a training image is trained on too.

    A class that would have no other image to test on keeps its own.

    Args:
        splits: (N,) of "train" and "test".
        labels: (N,) int64.
        same: groups of the same images.
    """
    is_copy = np.zeros(len(splits), np.bool_)
    for group in same:
        if (splits[group] == "train").any():
            is_copy[group] = splits[group] == "test"
    others = labels[(splits == "test") & ~is_copy]
    return np.where(is_copy & np.isin(labels, others), "train", splits)


def held_out_whole(
    labels: NDArray[np.int64], same: Sequence[Indices], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Hold a share of each class out by lot, and of images that are the same all or none.

    Such a group has the lot of its first image. One for which there is no more room is passed over, but a
    class of groups alone has the smallest of them held out.

    Args:
        labels: (N,) int64.
        same: groups of the same images.
        fraction: of each class.
        rng: draws the lots.

    Returns:
        (N,), whether each is held out.
    """
    group_of = np.arange(len(labels))
    for group in same:
        group_of[group] = group[0]
    held = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        members: Indices = rng.permutation(np.flatnonzero(labels == label))
        held[_first_groups(members, group_of, round(fraction * len(members)))] = True
    for group in same:  # of several classes
        held[group] = held[group].all()
    return held


def _first_groups(members: Indices, group_of: Indices, count: int) -> Indices:
    """At most `count` of the images of a class, which are in the order of their lots, in whole groups."""
    groups: dict[int, list[int]] = {}
    for member in members.tolist():
        groups.setdefault(int(group_of[member]), []).append(member)
    if len(groups) == len(members):
        return members[:count]
    lot = {member: number for number, member in enumerate(members.tolist())}
    ordered = sorted(groups.values(), key=lambda group: lot[min(group)])
    chosen: list[int] = []
    for group in ordered:
        if len(chosen) + len(group) <= count:
            chosen += group
    if count and not chosen and len(ordered) > 1:
        chosen = min(ordered, key=len)
    return np.array(chosen, np.int64)
