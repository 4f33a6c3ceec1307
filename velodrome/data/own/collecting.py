"""All images of a user's data set with what is known of them, whether they were files or arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from velodrome.config import HUB, DataSection, is_auto
from velodrome.data.image_files import Failure
from velodrome.data.imageset import AnyImages, ImageSet, ImagesU8, MappedImages
from velodrome.data.own.array_file import check_resized
from velodrome.data.own.arrays import Arrays, is_array_file, read_arrays
from velodrome.data.own.image_size import choose_side, estimate, sample_sizes
from velodrome.data.own.layouts import list_data
from velodrome.data.own.listing import Entry, Listing
from velodrome.data.own.memory import fits_in_memory
from velodrome.data.own.prepared import Facts, Prepared, facts_of, folder_of, is_prepared, prepare_images
from velodrome.data.own.splitting import Texts, assign_splits
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
# Rows (M,) int64 -> their pixels, which may be those of the data set itself, so nobody writes on them.
Pick = Callable[[NDArray[np.int64]], AnyImages]
# The same, and whether these rows are to train on: then they may be larger.
PickFor = Callable[[NDArray[np.int64], bool], AnyImages]
# Rows (M,) int64 that are prepared together, and their side in pixels.
Part = tuple[NDArray[np.int64], int]


@dataclass(frozen=True, eq=False)
class Collected:
    """All images of a data set; N rows.

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
        side: height and width in pixels of the images to report on.
        why: a sentence that says why they have this size; empty where it was given.
        pick: rows (M,) int64, and whether they are to train on -> their pixels.
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
    side: int
    why: str
    pick: PickFor

    def image_set(self, split: str | None = None) -> ImageSet:
        """The images of a split that can be read, in their order; of all splits, where they have one size."""
        is_chosen = self.facts.readable if split is None else self.facts.readable & (self.splits == split)
        rows = np.flatnonzero(is_chosen)
        names = [self.names[int(row)] for row in rows]
        pixels = self.pick(rows, split == "train")
        return ImageSet(pixels, self.labels[rows], self.classes, names, self.facts.digests[rows])

    def fingerprint(self) -> str:
        """A checksum of all pixels, labels, names and splits."""
        words = json.dumps([self.classes, list(self.names), self.splits.tolist()]).encode()
        parts = (words, self.labels.tobytes(), self.facts.digests.tobytes())
        return blake2b(b"".join(parts), digest_size=16).hexdigest()


@dataclass(frozen=True, eq=False)
class Outline:
    """N files of a data set before they are prepared.

    Attributes:
        classes: their names.
        labels: (N,) int64.
        names: of the images.
        splits: (N,) of "train", "val" and "test".
        side: height and width in pixels of the images to report on.
        why: as in `Collected`.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    names: Sequence[str]
    splits: Texts
    side: int
    why: str


def collect(
    data: DataSection,
    known: Sequence[str] | None = None,
    *,
    enlarged: bool = False,
    say: Say,
    bar: Bar | None = None,
) -> Collected:
    """List, split and prepare a user's own images.

    Args:
        data: where they are, and their size.
        known: the classes of a model to judge, as in `list_data`; None where they are to train on.
        enlarged: keep training images larger by a quarter, for random parts of them.
        say: is told what takes time, and how long.
        bar: is told how far that is.

    Raises:
        DataError: there is no data set there, or it cannot be prepared.
    """
    if holds_arrays(data):
        return _from_arrays(read_arrays(path_of(data), known), data)
    return _from_files(list_own(data, known), data, enlarged=enlarged, say=say, bar=bar)


def path_of(data: DataSection) -> Path:
    """Where own images are that lie on this machine."""
    return Path(data.data).expanduser()


def holds_arrays(data: DataSection) -> bool:
    """Whether own images are arrays and no files."""
    return not data.data.startswith(HUB) and is_array_file(path_of(data))


def list_own(data: DataSection, known: Sequence[str] | None = None) -> Listing:
    """The files of a user's data set, or those that a hub has of it.

    Args:
        data: where they are.
        known: as in `list_data`.

    Raises:
        DataError: there are none.
    """
    if data.data.startswith(HUB):
        # A package of its own, that only those have who need it.
        from velodrome.integrations.hub import list_hub  # noqa: PLC0415

        return list_hub(data.data.removeprefix(HUB), folder_of(Path(data.data)) / "unpacked", known)
    path = path_of(data)
    return list_data(path, folder_of(path) / "unpacked", known)


def outline_of_files(listing: Listing, data: DataSection) -> Outline:
    """What is known of files from their names and a few headers."""
    labels = np.array([entry.label for entry in listing.entries], np.int64)
    names = [entry.name for entry in listing.entries]
    splits = _assign([entry.split for entry in listing.entries], labels, names, data)
    return Outline(
        listing.classes, labels, names, splits, *_side(data, lambda: sample_sizes(listing.entries))
    )


def _side(data: DataSection, sizes: Callable[[], NDArray[np.int32]]) -> tuple[int, str]:
    """The side that was asked for, or one that fits the sizes, with a sentence that says why."""
    return choose_side(sizes()) if is_auto(data.image_size) else (data.image_size, "")


def _assign(
    named: Sequence[str | None], labels: NDArray[np.int64], names: Sequence[str], data: DataSection
) -> Texts:
    return assign_splits(named, labels, names, test_fraction=data.test_fraction, seed=data.split_seed)


# From files.


def _from_files(
    listing: Listing, data: DataSection, *, enlarged: bool, say: Say, bar: Bar | None
) -> Collected:
    outline = outline_of_files(listing, data)
    parts = _parts(outline, enlarged=enlarged)
    has_begun = False

    def tell(done: int, total: int) -> None:
        nonlocal has_begun
        if not has_begun and total - done > FEW:  # what was prepared before takes no time
            say(_announcement(listing, parts[0][1]))
        has_begun = True
        if bar:
            bar(done, total)

    every, *held_out = _prepare(listing, parts, data, tell)
    facts, failures = every.facts, {failure.path: failure for failure in every.failures}
    place = np.arange(len(outline.labels))
    for smaller, (rows, _) in zip(held_out, parts[1:], strict=True):
        place[rows] = np.arange(len(rows))
        facts.readable[rows] &= smaller.facts.readable  # a decoder may fail once and not twice
        failures |= {failure.path: failure for failure in smaller.failures}
    resident = fits_in_memory(sum(prepared.images_u8.nbytes for prepared in (every, *held_out)))

    def pick(rows: NDArray[np.int64], to_train_on: bool) -> AnyImages:
        is_smaller = held_out and not to_train_on
        own = (held_out[0] if is_smaller else every).images_u8
        chosen = place[rows] if is_smaller else rows
        return np.take(np.asarray(own), chosen, axis=0) if resident else MappedImages(own, chosen)

    return Collected(
        data.data if data.data.startswith(HUB) else listing.root.name,
        outline.classes,
        outline.labels,
        outline.names,
        outline.splits,
        any(entry.split for entry in listing.entries),
        facts,
        (*listing.failures, *failures.values()),
        listing.notes,
        outline.side,
        outline.why,
        pick,
    )


def _parts(outline: Outline, *, enlarged: bool) -> list[Part]:
    """What is prepared: all images; and where these are enlarged, those that are held out again.

    All are there in one size, as only so it can be told whether two of them are the same.
    """
    everything = np.arange(len(outline.labels))
    if not enlarged:
        return [(everything, outline.side)]
    larger = -(-round(outline.side * ENLARGED) // MULTIPLE) * MULTIPLE
    held_out = np.flatnonzero(outline.splits != "train")
    return [(everything, larger), *([(held_out, outline.side)] if len(held_out) else [])]


def _prepare(listing: Listing, parts: Sequence[Part], data: DataSection, tell: Bar) -> list[Prepared]:
    """Prepare each part; `tell` is told of all of them together."""
    total = sum(len(rows) for rows, _ in parts)
    done_before = 0

    def tell_all(done: int, _: int) -> None:
        tell(done_before + done, total)

    prepared = []
    for rows, side in parts:
        entries = _entries(listing, rows)
        prepared.append(
            prepare_images(
                entries, side, data.image_fit, root=listing.root, cache_by=data.cache_by, tell=tell_all
            )
        )
        done_before += len(entries)
    return prepared


def are_prepared(listing: Listing, outline: Outline, data: DataSection, *, enlarged: bool) -> bool:
    """Whether all files were prepared before, as they are now and in the sizes that are wanted."""
    return all(
        is_prepared(_entries(listing, rows), side, data.image_fit, root=listing.root, cache_by=data.cache_by)
        for rows, side in _parts(outline, enlarged=enlarged)
    )


def _entries(listing: Listing, rows: NDArray[np.int64]) -> list[Entry]:
    return [listing.entries[row] for row in rows]


def _announcement(listing: Listing, side: int) -> str:
    size_bytes, seconds = estimate(listing.entries, side)
    return (
        f"{visible(listing.root.name)}: {len(listing.entries):,} images of {len(listing.classes)} classes "
        f"are prepared once, which takes about {seconds:.0f} s and {size_bytes / 1e6:,.0f} MB of disk."
    )


# From arrays.


def _from_arrays(arrays: Arrays, data: DataSection) -> Collected:
    """The images of a file of arrays, which are taken out of `arrays`, so that no more of them lie there."""
    parts, path = arrays.images_u8, path_of(data)
    sizes = np.concatenate([np.full((len(part), 2), part.shape[1:3], np.int32) for part in parts.values()])
    side, why = _side(data, lambda: sizes)
    if (sizes[0] != side).any():
        check_resized(path, len(sizes), side, sum(part.nbytes for part in parts.values()))
    labels = np.concatenate([arrays.labels[split] for split in parts])
    named = [split for split, part in parts.items() for _ in part]
    names = [
        f"{split}/{number}" if split else str(number)
        for split, part in parts.items()
        for number in range(len(part))
    ]
    images_u8 = [resized(parts.pop(split), side, data.image_fit) for split in list(parts)]
    ends = np.cumsum([len(part) for part in images_u8])[:-1]
    found = [
        facts_of(part, its, data.image_fit)
        for part, its in zip(images_u8, np.split(sizes, ends), strict=True)
    ]
    digests, thumbnails = zip(*found, strict=True)
    return Collected(
        path.name,
        arrays.classes,
        labels,
        names,
        _assign(named, labels, names, data),
        any(named),
        Facts(np.ones(len(labels), np.bool_), sizes, np.concatenate(digests), np.concatenate(thumbnails)),
        (),
        arrays.notes,
        side,
        why,
        _pick_from(images_u8),
    )


def _pick_from(parts: Sequence[ImagesU8]) -> PickFor:
    """Picks from the arrays of a file, whose rows go on from one to the next; each split lies in one of them.

    Args:
        parts: each (N, side, side, 3) uint8.
    """
    begins = np.cumsum([0, *(len(part) for part in parts)])

    def pick(rows: NDArray[np.int64], _to_train_on: bool) -> ImagesU8:
        number = np.searchsorted(begins, rows[0], side="right") - 1 if len(rows) else 0
        part, own = parts[number], rows - begins[number]
        # All of them are not copied, as they may take most of the memory.
        return part if np.array_equal(own, np.arange(len(part))) else part[own]

    return pick


def resized(images_u8: ImagesU8, side: int, fit: str) -> ImagesU8:
    """Images brought to a side, as those in files are: (N, H, W, 3) uint8 -> (N, side, side, 3) uint8."""
    if images_u8.shape[1:3] == (side, side):
        return images_u8
    fitted = np.empty((len(images_u8), side, side, 3), np.uint8)
    for place, image in zip(fitted, images_u8, strict=True):
        place[:] = np.asarray(fit_image(Image.fromarray(image), (side, side), fit))
    return fitted
