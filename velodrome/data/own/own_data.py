"""A user's own images, looked through and handed over as image sets: to train on, or to judge a model by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from velodrome.config import DataSection
from velodrome.data.image_files import Failure
from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.own.collecting import (
    Bar,
    Collected,
    Outline,
    Pick,
    Say,
    are_prepared,
    collect,
    holds_arrays,
    list_own,
    outline_of_files,
    path_of,
)
from velodrome.data.own.findings import Findings, examine
from velodrome.data.own.labels import corrected, read_corrections
from velodrome.data.own.listing import counted, shown
from velodrome.data.own.near_duplicates import exact_groups
from velodrome.data.own.prepared import cache_folder
from velodrome.data.own.splitting import SPLITS, without_copies
from velodrome.errors import DataError, visible


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


def read_own(data: DataSection, *, enlarged: bool = False, say: Say, bar: Bar | None = None) -> OwnData:
    """List, split, prepare, correct and examine a user's own images.

    Args:
        data: where they are, their size, corrections of their labels, and what to do about those that cannot
            be read.
        enlarged: keep training images larger by a quarter, for random parts of them.
        say: is told what takes time, and how long; and how many labels are corrected.
        bar: is told how far that is.

    Raises:
        DataError: there is no data set there, it cannot be prepared, or the corrections are not of it. Files
            that cannot be read are among the findings.
    """
    collected = _without_copies(collect(data, enlarged=enlarged, say=say, bar=bar))
    if data.labels:
        before = collected.labels
        collected = replace(collected, labels=_corrected(collected, data.labels))
        say(tell_corrected(int((before != collected.labels).sum()), data.labels))
    findings = examine(
        classes=collected.classes,
        labels=collected.labels,
        splits=collected.splits,
        names=collected.names,
        facts=collected.facts,
        failures=collected.failures,
        notes=collected.notes,
        side=collected.side,
        fit=data.image_fit,
        on_bad_image=data.on_bad_image,
        splits_given=collected.splits_given,
    )
    splits = None if findings.errors else _splits_of(collected)
    return OwnData(
        findings,
        splits,
        collected.side,
        collected.why,
        collected.name,
        pick=lambda rows: collected.pick(rows, True),
    )


def read_to_judge(
    data: DataSection, known: Sequence[str], *, say: Say, bar: Bar | None = None
) -> tuple[ImageSet, tuple[Failure, ...]]:
    """The images of a user's data set to judge a model by: those to test on, else to choose by, else all.

    Args:
        data: where they are, and the size and fit of the model's images.
        known: the classes of the model, of which the data set may lack some.
        say: is told what takes time, and how long.
        bar: is told how far that is.

    Returns:
        The images, whose classes are those of the data set, and the files that cannot be read.

    Raises:
        DataError: there is no data set there, it has a class that the model does not know, or no image that
            can be read.
    """
    collected = collect(data, known, say=say, bar=bar)
    if not collected.facts.readable.any():
        raise DataError(
            f"Data {visible(data.data)} has no image that can be read; the first: {collected.failures[0]}.",
            "Restore the files, or give other ones.",
        )
    return collected.image_set(), collected.failures


def blank_own(data: DataSection) -> Splits:
    """Black images in the number and size of a user's own files, to plan with before those are prepared.

    Raises:
        DataError: there is no data set there, or the corrections are not of it.
    """
    outline = outline_of_files(list_own(data), data)
    labels = _corrected(outline, data.labels) if data.labels else outline.labels
    train, val, test = (
        blank(labels[outline.splits == split], outline.classes, outline.side) for split in SPLITS
    )
    return Splits(path_of(data).name, train, val if len(val) else None, test)


def blank(labels: NDArray[np.int64], classes: tuple[str, ...], side: int) -> ImageSet:
    """Black images, which take no memory until somebody writes on them."""
    return ImageSet(np.zeros((len(labels), side, side, 3), np.uint8), labels, classes, [""] * len(labels))


def left_to_prepare(data: DataSection, *, enlarged: bool) -> str | None:
    """What `read_own` would put into the cache, in words; None where everything is there.

    Archives, and what a hub has, must be unpacked to tell.

    Raises:
        DataError: there is no data set there.
    """
    if holds_arrays(data):
        return None
    listing = list_own(data)
    if are_prepared(listing, outline_of_files(listing, data), data, enlarged=enlarged):
        return None
    is_unpacked = listing.entries[0].path.is_relative_to(cache_folder())
    return f"{'unpacked in the cache, ' if is_unpacked else ''}would be prepared first, once"


def tell_corrected(changed: int, source: Path) -> str:
    """How many labels are others than before, in a sentence."""
    return f"{counted(changed, 'label')} corrected, as {shown(source)} says."


def _without_copies(collected: Collected) -> Collected:
    """The images with a note of how many are held out to test on; copies of what is trained on are not.

    Where the data set itself says what is tested on, nothing is changed.
    """
    if collected.splits_given:
        return collected
    facts = collected.facts
    same = exact_groups(facts.digests, facts.readable)
    splits = without_copies(collected.splits, collected.labels, same)
    moved = int((splits != collected.splits).sum())
    held_out = int((facts.readable & (splits == "test")).sum())
    notes = [
        f"Of {counted(int(facts.readable.sum()), 'image')}, {held_out:,} are held out to test on, by their "
        "names and --split-seed."
    ]
    if moved:
        notes.append(
            f"Not held out but trained on, as the same image is trained on: {counted(moved, 'image')}."
        )
    return replace(collected, splits=splits, notes=(*collected.notes, *notes))


def _corrected(images: Collected | Outline, source: Path) -> NDArray[np.int64]:
    return corrected(images.labels, images.names, images.classes, read_corrections(source), source)


def _splits_of(collected: Collected) -> Splits:
    val = collected.image_set("val")
    return Splits(
        collected.name,
        collected.image_set("train"),
        val if len(val) else None,
        collected.image_set("test"),
        collected.fingerprint(),
    )
