"""A user's own images: listed, split, prepared once, looked through, and handed over as image sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from velodrome.config import HUB, DataSection, is_auto
from velodrome.data.image_files import Failure
from velodrome.data.imageset import AnyImages, ImageSet, ImagesU8, MappedImages, Splits
from velodrome.data.own.arrays import Arrays, is_array_file, read_arrays
from velodrome.data.own.findings import Findings, examine
from velodrome.data.own.image_size import choose_side, estimate, sample_sizes
from velodrome.data.own.layouts import list_data
from velodrome.data.own.listing import Entry, Listing
from velodrome.data.own.memory import fits_in_memory
from velodrome.data.own.prepared import Facts, facts_of, folder_of, prepare_images
from velodrome.data.own.splitting import SPLITS, Texts, assign_splits
from velodrome.data.pixels import fit_image
from velodrome.errors import visible

# Images of which random parts are trained on are kept larger, so that the parts are not blurred.
ENLARGED = 1.25
# Networks halve images three times.
MULTIPLE = 8
# So many are prepared without a word.
FEW = 100

# What is going on, in a sentence.
Say = Callable[[str], None]
# Images that are done, and all.
Bar = Callable[[int, int], None]
# Rows (M,) int64 -> their pixels.
Pick = Callable[[NDArray[np.int64]], AnyImages]


@dataclass(frozen=True, eq=False)
class OwnData:
    """Own images, ready to be trained on.

    Attributes:
        findings: what is to be said about them; nobody has raised the errors among them yet.
        splits: None where the findings hold errors. `val` is None where the data set has none of its own.
        side: height and width in pixels of the images to report on.
        why: a sentence that says why they have this size; empty where it was given.
        name: of the data set.
        pick: rows (M,) int64 of the findings' contents -> their pixels.
    """

    findings: Findings
    splits: Splits | None
    side: int
    why: str
    name: str
    pick: Pick

    def to_dict(self) -> dict[str, Any]:
        """All that is known, as JSON."""
        return {"data": self.name, "why_image_size": self.why, **self.findings.to_dict()}


@dataclass(frozen=True, eq=False)
class _Collected:
    """All images of a data set, whether they were files or arrays; N rows each.

    Attributes:
        name: of the data set.
        classes: their names.
        labels: (N,) int64.
        names: of the images.
        splits: (N,) of "train", "val" and "test".
        splits_given: whether the data set itself says which images are tested on.
        facts: about the pixels.
        failures: of those that cannot be read, and of folders.
        notes: sentences about what was left out or taken for what.
        pick: rows (M,) int64 of one split -> their pixels.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: Sequence[str]
    splits: Texts
    splits_given: bool
    facts: Facts
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    pick: Pick

    def image_set(self, split: str) -> ImageSet:
        """The images of a split that can be read, in their order."""
        rows = np.flatnonzero((self.splits == split) & self.facts.readable)
        names = [self.names[int(row)] for row in rows]
        return ImageSet(self.pick(rows), self.labels[rows], self.classes, names)

    def fingerprint(self) -> str:
        """A checksum of all pixels, labels, names and splits."""
        words = json.dumps([self.classes, list(self.names), self.splits.tolist()]).encode()
        parts = (words, self.labels.tobytes(), self.facts.digests.tobytes())
        return blake2b(b"".join(parts), digest_size=16).hexdigest()


def read_own(data: DataSection, *, enlarged: bool = False, say: Say, bar: Bar | None = None) -> OwnData:
    """List, split, prepare and examine a user's own images.

    Args:
        data: where they are, their size, and what to do about those that cannot be read.
        enlarged: keep training images larger by a quarter, for random parts of them.
        say: is told what takes time, and how long.
        bar: is told how far that is.

    Raises:
        DataError: there is no data set there, or it cannot be prepared. Files that cannot be read are among
            the findings.
    """
    path = Path(data.data)
    if not data.data.startswith(HUB) and is_array_file(path):
        collected, side, why = _from_arrays(read_arrays(path), path, data)
    else:
        collected, side, why = _from_files(list_own(data), data, enlarged=enlarged, say=say, bar=bar)
    findings = examine(
        classes=collected.classes,
        labels=collected.labels,
        splits=collected.splits,
        names=collected.names,
        facts=collected.facts,
        failures=collected.failures,
        notes=collected.notes,
        side=side,
        fit=data.image_fit,
        on_bad_image=data.on_bad_image,
        splits_given=collected.splits_given,
    )
    splits = None if findings.errors else _splits_of(collected)
    return OwnData(findings, splits, side, why, collected.name, collected.pick)


def blank_own(data: DataSection) -> Splits:
    """Black images in the number and size of a user's own, to plan with where they are not prepared yet.

    Raises:
        DataError: there is no data set there.
    """
    path = Path(data.data)
    if not data.data.startswith(HUB) and is_array_file(path):
        collected, side, _ = _from_arrays(read_arrays(path), path, data)
        labels, splits, classes = collected.labels, collected.splits, collected.classes
    else:
        listing = list_own(data)
        entries, classes = listing.entries, listing.classes
        labels = np.array([entry.label for entry in entries], np.int64)
        splits = _assign([entry.split for entry in entries], labels, [entry.name for entry in entries], data)
        side, _ = _side(data, lambda: sample_sizes(entries))

    train, val, test = (blank(labels[splits == split], classes, side) for split in SPLITS)
    return Splits(path.name, train, val if len(val) else None, test)


def blank(labels: NDArray[np.int64], classes: tuple[str, ...], side: int) -> ImageSet:
    """Black images, which take no memory until somebody writes on them."""
    return ImageSet(np.zeros((len(labels), side, side, 3), np.uint8), labels, classes, [""] * len(labels))


def list_own(data: DataSection) -> Listing:
    """The files of a user's data set, or those that a hub has of it.

    Raises:
        DataError: there are none.
    """
    if data.data.startswith(HUB):
        # A package of its own, that only those have who need it.
        from velodrome.integrations.hub import export  # noqa: PLC0415

        name = data.data.removeprefix(HUB)
        return list_data(export(name, folder_of(Path(HUB + name))), folder_of(Path(HUB + name)))
    path = Path(data.data)
    return list_data(path, folder_of(path) / "unpacked")


def _splits_of(collected: _Collected) -> Splits:
    val = collected.image_set("val")
    return Splits(
        collected.name,
        collected.image_set("train"),
        val if len(val) else None,
        collected.image_set("test"),
        collected.fingerprint(),
    )


def _side(data: DataSection, sizes: Callable[[], NDArray[np.int32]]) -> tuple[int, str]:
    """The side that was asked for, or one that fits the sizes, with a sentence that says why."""
    return choose_side(sizes()) if is_auto(data.image_size) else (data.image_size, "")


# From files.


def _from_files(
    listing: Listing, data: DataSection, *, enlarged: bool, say: Say, bar: Bar | None
) -> tuple[_Collected, int, str]:
    entries = listing.entries
    labels = np.array([entry.label for entry in entries], np.int64)
    names = [entry.name for entry in entries]
    splits = _assign([entry.split for entry in entries], labels, names, data)
    side, why = _side(data, lambda: sample_sizes(entries))
    sides = np.where((splits == "train") & enlarged, _enlarged(side), side)
    has_begun = False

    def tell(done: int, total: int) -> None:
        nonlocal has_begun
        if not has_begun and total - done > FEW:  # what was prepared before takes no time
            say(_announcement(listing, int(sides.max())))
        has_begun = True
        if bar:
            bar(done, total)

    facts, failures, maps, place = _prepare(listing, sides, data, tell)
    resident = fits_in_memory(sum(images.nbytes for images in maps.values()))

    def pick(rows: NDArray[np.int64]) -> AnyImages:
        own = maps[int(sides[rows[0]])] if len(rows) else next(iter(maps.values()))
        return np.take(np.asarray(own), place[rows], axis=0) if resident else MappedImages(own, place[rows])

    everything = _Collected(
        data.data if data.data.startswith(HUB) else listing.root.name,
        listing.classes,
        labels,
        names,
        splits,
        any(entry.split for entry in entries),
        facts,
        listing.failures + failures,
        listing.notes,
        pick,
    )
    return everything, side, why


def _announcement(listing: Listing, side: int) -> str:
    size_bytes, seconds = estimate(listing.entries, side)
    return (
        f"{visible(listing.root.name)}: {len(listing.entries):,} images of {len(listing.classes)} classes "
        f"are prepared once, which takes about {seconds:.0f} s and {size_bytes / 1e6:,.0f} MB of disk."
    )


def _prepare(
    listing: Listing, sides: NDArray[np.int64], data: DataSection, tell: Bar
) -> tuple[Facts, tuple[Failure, ...], Mapping[int, ImagesU8], NDArray[np.int64]]:
    """Prepare all images, each in its size; where there are two sizes, in two maps.

    Returns:
        Facts of all images, failures, the map of each size, and (N,) the row of each image in its map.
    """
    entries = listing.entries
    failures: list[Failure] = []
    maps: dict[int, ImagesU8] = {}
    place = np.zeros(len(entries), np.int64)
    parts: list[tuple[NDArray[np.int64], Facts]] = []
    for side in np.unique(sides).tolist():
        rows = np.flatnonzero(sides == side)
        chosen: list[Entry] = [entries[row] for row in rows]
        prepared = prepare_images(
            chosen, side, data.image_fit, root=listing.root, cache_by=data.cache_by, tell=tell
        )
        maps[side] = prepared.images_u8
        place[rows] = np.arange(len(rows))
        failures += prepared.failures
        parts.append((rows, prepared.facts))
    return _merged(parts, len(entries)), tuple(failures), maps, place


def _merged(parts: Sequence[tuple[NDArray[np.int64], Facts]], n: int) -> Facts:
    """The facts of all images from those of parts of them."""
    whole = Facts(
        np.zeros(n, np.bool_),
        np.zeros((n, 2), np.int32),
        np.zeros((n, 16), np.uint8),
        np.zeros((n, 8, 8, 3), np.uint8),
    )
    for rows, part in parts:
        whole.readable[rows], whole.sizes[rows] = part.readable, part.sizes
        whole.digests[rows], whole.thumbnails[rows] = part.digests, part.thumbnails
    return whole


def _enlarged(side: int) -> int:
    return -(-round(side * ENLARGED) // MULTIPLE) * MULTIPLE


def _assign(
    named: Sequence[str | None], labels: NDArray[np.int64], names: Sequence[str], data: DataSection
) -> Texts:
    return assign_splits(named, labels, names, test_fraction=data.test_fraction, seed=data.split_seed)


# From arrays.


def _from_arrays(arrays: Arrays, path: Path, data: DataSection) -> tuple[_Collected, int, str]:
    parts = [(split, images, arrays.labels[split]) for split, images in arrays.images_u8.items()]
    sizes = np.concatenate([np.full((len(labels), 2), images.shape[1:3]) for _, images, labels in parts])
    side, why = _side(data, lambda: sizes.astype(np.int32))
    images_u8 = np.concatenate([resized(images, side, data.image_fit) for _, images, _ in parts])
    labels = np.concatenate([labels for _, _, labels in parts])
    named = [split for split, _, labels in parts for _ in labels]
    names = [
        f"{split}/{number}" if split else str(number)
        for split, _, labels in parts
        for number in range(len(labels))
    ]
    digests, thumbnails = facts_of(images_u8)
    facts = Facts(np.ones(len(labels), np.bool_), sizes.astype(np.int32), digests, thumbnails)
    everything = _Collected(
        path.name,
        arrays.classes,
        labels,
        names,
        _assign(named, labels, names, data),
        any(named),
        facts,
        (),
        (),
        lambda rows: images_u8[rows],
    )
    return everything, side, why


def resized(images_u8: ImagesU8, side: int, fit: str) -> ImagesU8:
    """Images brought to a side, as those in files are: (N, H, W, 3) uint8 -> (N, side, side, 3) uint8."""
    if images_u8.shape[1:3] == (side, side):
        return images_u8
    return np.stack([np.asarray(fit_image(Image.fromarray(image), (side, side), fit)) for image in images_u8])
