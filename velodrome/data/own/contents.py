"""What is in a data set: its images by class and split, and which of them are the same or nearly so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from velodrome.data.image_files import Failure
from velodrome.data.own.facts import Facts
from velodrome.data.own.near_duplicates import Indices, exact_groups, near_groups
from velodrome.data.own.splitting import SPLITS

# A held-out image is shown beside the most similar one of this many training images.
MOST_COMPARED = 50


@dataclass(frozen=True)
class Leak:
    """An image to report on or to choose by that is trained on too.

    Attributes:
        held_out: index of the image.
        train: index of the training image that is the same or nearly so.
        is_exact: whether all of their pixels are the same.
    """

    held_out: int
    train: int
    is_exact: bool


@dataclass(frozen=True)
class Conflict:
    """Images that are the same or nearly so, but not of one class.

    Attributes:
        images: their indices.
        is_exact: whether all of their pixels are the same.
    """

    images: tuple[int, ...]
    is_exact: bool


@dataclass(frozen=True, eq=False)
class Contents:
    """N images of a data set, with what is known of them before anybody trains on them.

    Attributes:
        classes: their names.
        labels: (N,) int64, indices into `classes`.
        splits: (N,) of "train", "val" and "test".
        names: of the images, each once.
        facts: about their files and pixels.
        failures: of the files that cannot be read, and of folders.
        notes: sentences about what was left out or taken for what.
        side: height and width in pixels that images are brought to.
        fit: "crop", "pad" or "squash".
        on_bad_image: "stop" or "skip".
        splits_given: whether the data set itself says what the test images are.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    names: Sequence[str]
    facts: Facts
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    side: int
    fit: str
    on_bad_image: str
    splits_given: bool

    @cached_property
    def readable(self) -> Indices:
        """Indices of the images that can be read."""
        return np.flatnonzero(self.facts.readable)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Images that can be read, (classes, 3): of each class, to train on, to choose by and to test on."""
        counts = np.zeros((len(self.classes), len(SPLITS)), np.int64)
        for column, split in enumerate(SPLITS):
            there = self.labels[self.facts.readable & (self.splits == split)]
            counts[:, column] = np.bincount(there, minlength=len(self.classes))
        return counts

    @cached_property
    def unreadable_counts(self) -> NDArray[np.int64]:
        """Images of each class that cannot be read, (classes,)."""
        return np.bincount(self.labels[~self.facts.readable], minlength=len(self.classes))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Height and width in pixels of the files that can be read, (M, 2)."""
        return self.facts.sizes[self.readable].astype(np.int64)

    @cached_property
    def aspect_ratios(self) -> NDArray[np.float64]:
        """Width over height of the files that can be read, (M,)."""
        ratios: NDArray[np.float64] = self.sizes[:, 1] / np.maximum(self.sizes[:, 0], 1)
        return ratios

    @cached_property
    def imbalance(self) -> float | None:
        """Training images of the largest class over those of the smallest that has any; None without any."""
        training = self.counts[:, 0][self.counts[:, 0] > 0]
        return float(training.max() / training.min()) if len(training) else None

    @cached_property
    def exact(self) -> list[Indices]:
        """Groups of images with the same pixels."""
        return exact_groups(self.facts.digests, self.facts.readable)

    @cached_property
    def near(self) -> list[Indices]:
        """Groups of images that are nearly the same."""
        return near_groups(self.facts.thumbnails, self.facts.digests, self.facts.readable)

    @cached_property
    def alike(self) -> list[Indices]:
        """Groups of images that are the same or nearly so, the largest first."""
        near = {index for group in self.near for index in group.tolist()}
        groups = [*self.near, *(group for group in self.exact if int(group[0]) not in near)]
        return sorted(groups, key=len, reverse=True)

    @cached_property
    def conflicts(self) -> list[Conflict]:
        """Images of several classes that are the same; then those that are nearly the same."""
        exact = [group for group in self.exact if self._are_at_odds(group)]
        known = {index for group in exact for index in group.tolist()}
        near = [group for group in self.near if self._are_at_odds(group) and known.isdisjoint(group.tolist())]
        return [Conflict(tuple(group.tolist()), True) for group in exact] + [
            Conflict(tuple(group.tolist()), False) for group in near
        ]

    def _are_at_odds(self, group: Indices) -> bool:
        return len(np.unique(self.labels[group])) > 1

    @cached_property
    def leaks(self) -> list[Leak]:
        """Images held out that are trained on too: those that are the same, then those that nearly are."""
        exact = self._leaks_in(self.exact, is_exact=True)
        known = {leak.held_out for leak in exact}
        near = self._leaks_in(self.near, is_exact=False)
        return exact + [leak for leak in near if leak.held_out not in known]

    def _leaks_in(self, groups: Sequence[Indices], *, is_exact: bool) -> list[Leak]:
        leaks = []
        for group in groups:
            is_train = self.splits[group] == "train"
            train, held_out = group[is_train], group[~is_train]
            if len(train):
                leaks += [Leak(index, self._closest(index, train), is_exact) for index in held_out.tolist()]
        return leaks

    def _closest(self, index: int, among: Indices) -> int:
        """Of the first images of `among`, the most similar to that at `index`."""
        some = among[:MOST_COMPARED]
        thumbnails = self.facts.thumbnails
        differences = np.abs(thumbnails[some].astype(np.int16) - thumbnails[index]).sum((1, 2, 3))
        return int(some[differences.argmin()])
