"""Images that a data set holds more than once, byte for byte or nearly, in groups.

Nearly the same are images of which one was made from the other: saved again as a JPEG, resized a little, made
a little brighter. Such pairs are looked for among images with nearly the same difference hash (dHash, N.
Krawetz, "Kind of Like That", 2013, https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html),
and believed where the images themselves hardly differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Thumbnails = NDArray[np.uint8]

# Spread is the mean distance of the values from the mean of their channel, in levels of 255. Photographs have
# 10 to 70. With less than this an image is nearly flat, and noise is a large part of what it shows.
LEAST_SPREAD = 4.0
# How much the thumbnails of two images may differ, in levels and as a share of their spread. Of images of 32
# pixels that are saved again as JPEG with quality 75 nearly all differ by less, and larger ones by far less;
# drawn shapes of one class, or digits of one hand, differ by more.
MOST_LEVELS, MOST_SHARE = 5.0, 0.25
# How much brighter one of them may be in any channel, in levels, and how much richer in contrast.
MOST_BRIGHTER, MOST_CONTRAST = 24.0, 1.25
# Between neighbours that differ by less than this share of the spread, noise would decide a bit of the hash.
STEP = 0.15
# Where more images than this have the same key, each is compared with so many only, those nearest in
# brightness. Images that are all alike come to one group through these.
MOST_NEIGHBOURS = 100
# Pairs that are compared at once.
BLOCK = 1024


def exact_groups(digests: NDArray[np.uint8], usable: NDArray[np.bool_]) -> list[Indices]:
    """Groups of images with the same pixels.

    Args:
        digests: (N, B) uint8, a hash of the pixels of each image.
        usable: (N,), which images to look at.

    Returns:
        For each group of at least two, its indices in rising order; by its first image.
    """
    return _groups_of(_numbered(digests), usable)


def near_groups(
    thumbnails: Thumbnails, digests: NDArray[np.uint8], usable: NDArray[np.bool_]
) -> list[Indices]:
    """Groups of images that are nearly the same, some of which may be exactly the same.

    Every pair is compared whose hashes differ in at most 3 of 64 bits, unless there are hundreds of such
    images, and so are most pairs that differ in a few more. A group is what such pairs join. Flat images,
    such as a clear sky or a blank page, all look the same, and are in none.

    Args:
        thumbnails: (N, 8, 8, 3) uint8, means of blocks of the pixels.
        digests: (N, B) uint8, a hash of the pixels of each image.
        usable: (N,), which images to look at.

    Returns:
        For each group of at least two that are not all exactly the same, its indices in rising order; by its
        first image.
    """
    if not usable.any():
        return []
    # Of exact duplicates only the first is compared.
    numbers = _numbered(digests)
    first_ones = np.flatnonzero(usable)[np.unique(numbers[usable], return_index=True)[1]]
    looks = Looks.of(thumbnails[first_ones])
    shown = np.flatnonzero(looks.spread >= LEAST_SPREAD)
    shown = shown[np.argsort(looks.brightness[shown], kind="stable")]  # neighbours are alike in this already
    chosen, looks = first_ones[shown], looks.take(shown)
    labels = np.arange(len(chosen))
    for ones, others in candidate_pairs(difference_hash(thumbnails[chosen])):
        apart = labels[ones] != labels[others]
        first, second = ones[apart], others[apart]
        same = looks.are_alike(first, second)
        labels = _joined(labels, first[same], second[same])
    # Exact duplicates of an image belong to its group.
    group = np.full(len(numbers), -1)
    group[numbers[chosen]] = np.where(np.bincount(labels)[labels] > 1, labels, -1)
    return _groups_of(group[numbers], usable & (group[numbers] >= 0))


@dataclass(frozen=True, eq=False)
class Looks:
    """How N images look, to compare them.

    Attributes:
        channels: (N, 3) float32, means of the channels.
        spread: (N,) float32, the mean distance of the values from these.
        pattern: (N, 192) float32, the values without these means, divided by the spread.
    """

    channels: Floats
    spread: Floats
    pattern: Floats

    @classmethod
    def of(cls, thumbnails: Thumbnails) -> Looks:
        """How (N, 8, 8, 3) uint8 look."""
        values = thumbnails.astype(np.float32)
        channels = values.mean((1, 2))
        pattern = (values - channels[:, None, None]).reshape(len(values), -1)
        spread = np.abs(pattern).mean(1)
        pattern /= np.maximum(spread, np.float32(1e-6))[:, None]
        return cls(channels, spread, pattern)

    @property
    def brightness(self) -> Floats:
        """The mean of all values, (N,)."""
        mean: Floats = self.channels.mean(1)
        return mean

    def take(self, indices: Indices) -> Looks:
        """Those of some of the images."""
        return Looks(self.channels[indices], self.spread[indices], self.pattern[indices])

    def are_alike(self, first: Indices, second: Indices) -> NDArray[np.bool_]:
        """Whether images hardly differ, but for a little brightness and contrast: (M,) and (M,) -> (M,)."""
        brighter = np.abs(self.channels[first] - self.channels[second]).max(1, initial=0)
        low, high = np.sort([self.spread[first], self.spread[second]], axis=0)
        alike: NDArray[np.bool_] = (brighter <= MOST_BRIGHTER) & (high <= MOST_CONTRAST * low)
        most = np.minimum(MOST_SHARE, MOST_LEVELS / np.maximum(np.sqrt(low * high), np.float32(1e-6)))
        places = np.flatnonzero(alike)
        # A block at a time, which the processor's cache can hold.
        for start in range(0, len(places), BLOCK):
            part = places[start : start + BLOCK]
            apart = np.abs(self.pattern[first[part]] - self.pattern[second[part]]).mean(1)
            alike[part] = apart <= most[part]
        return alike


def difference_hash(thumbnails: Thumbnails) -> NDArray[np.bool_]:
    """Whether each block of an image is lighter than the next in its row: (N, 8, 8, 3) -> (N, 64) bits.

    The next of the last in a row is the first, which gives eight bits for eight blocks. A block counts as
    lighter only where that is plain to see.
    """
    grey = thumbnails @ np.array([0.299, 0.587, 0.114], np.float32)  # (N, 8, 8)
    spread = np.abs(grey - grey.mean((1, 2), keepdims=True)).mean((1, 2), keepdims=True)
    lighter: NDArray[np.bool_] = grey > np.roll(grey, -1, axis=2) + STEP * spread
    bits: NDArray[np.bool_] = lighter.reshape(len(thumbnails), 64)
    return bits


def candidate_pairs(bits: NDArray[np.bool_]) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of hashes that may differ in few bits: (N, 64) -> indices (M,) and (M,), again and again.

    Of four bands of 16 bits, three changes leave one alone, and so do they of four parts of the 48 other
    bits. So every pair within 3 bits has one of 16 keys in common, a band and a part of the rest.
    """
    hashes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    for number in range(16):
        band, part = divmod(number, 4)
        # Every fourth bit: neighbours say much the same, and the background nothing at all.
        rest = np.delete(bits, np.s_[band::4], axis=1)
        key = np.hstack([bits[:, band::4], rest[:, part::4]]) @ (1 << np.arange(28))
        order = np.argsort(key, kind="stable")
        key = key[order]
        place = np.arange(len(key))
        for distance in range(1, MOST_NEIGHBOURS + 1):
            place = place[: np.searchsorted(place, len(key) - distance)]
            place = place[key[place] == key[place + distance]]
            if not len(place):
                break
            first, second = order[place], order[place + distance]
            # The same hash has all keys in common; one of them is enough.
            new = np.flatnonzero((hashes[first] != hashes[second]) | (number == 0))
            yield first[new], second[new]


def _joined(labels: Indices, first: Indices, second: Indices) -> Indices:
    """The labels of images, (N,), when the groups of each pair (M,) and (M,) become one.

    The label of a group is the index of its first image.
    """
    labels = labels.copy()
    while True:
        low, high = np.minimum(labels[first], labels[second]), np.maximum(labels[first], labels[second])
        apart = low < high
        if not apart.any():
            return labels
        np.minimum.at(labels, high[apart], low[apart])
        while (labels[labels] != labels).any():
            labels = labels[labels]


def _numbered(rows: NDArray[np.uint8]) -> Indices:
    """A number for each row, the same for the same rows: (N, B) -> (N,)."""
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def _groups_of(labels: Indices, usable: NDArray[np.bool_]) -> list[Indices]:
    """The indices of each label that two or more usable images have, (N,), by the first of them."""
    places = np.flatnonzero(usable)
    order = places[np.argsort(labels[places], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    groups = [group for group in np.split(order, starts) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))
