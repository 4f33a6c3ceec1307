"""Rules that say what is wrong with a data set.

A rule returns a finding, or None where nothing is the matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from velodrome.data.own.contents import Contents
from velodrome.data.own.listing import counted
from velodrome.data.own.near_duplicates import Indices
from velodrome.errors import visible

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")  # the gravest first

MOST_EXAMPLES = 20
# Of fewer images than this a network learns the images and not the class.
FEW = 10
# How many times as many training images the largest class has as the smallest. Networks then prefer it.
UNEVEN, VERY_UNEVEN = 5, 10
# The longer side over the shorter one, from which on a square shows less than half of the image.
WIDE = 2
# An image that is enlarged by more than this is visibly blurred.
BLURRED = 1.25
# What befalls more than this share of the images is worth a warning.
MANY = 0.1


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: its name.
        level: "error" where it stops training, "warning" where it spoils what comes of it, else "note".
        title: what is the matter, as a clause without a full stop.
        text: the figures behind it, in sentences.
        remedy: what to do, in sentences; empty where nothing is to be done.
        examples: names of files, images or classes, at most 20 lines.
    """

    rule: str
    level: Level
    title: str
    text: str = ""
    remedy: str = ""
    examples: tuple[str, ...] = ()


# What stops training.


def unreadable(data: Contents) -> Finding | None:
    """Files and folders that cannot be read."""
    if not data.failures:
        return None
    title = f"{counted(len(data.failures), 'file')} cannot be read"
    text = f"{counted(len(data.readable), 'image')} can be."
    examples = tuple(str(failure) for failure in data.failures[:MOST_EXAMPLES])
    if data.on_bad_image == "skip":
        return Finding("unreadable", "warning", title, f"{text} The others are left out.", "", examples)
    remedy = "Restore them, remove them, or go on without them: --on-bad-image skip."
    return Finding("unreadable", "error", title, text, remedy, examples)


def empty_splits(data: Contents) -> Finding | None:
    """No image to train on, or none to report on."""
    training, held_out = _training_and_held_out(data)
    if training and held_out:
        return None
    title = "There is no image to test on" if training else "There is no image to train on"
    text = f"Of {counted(len(data.readable), 'readable image')}, {training:,} are to train on."
    remedy = "Add some."
    if data.splits_given:
        remedy = "Add some, or leave the splits out: then a part of each class is held out to test on."
    return Finding("empty_splits", "error", title, text, remedy)


def too_few_classes(data: Contents) -> Finding | None:
    """Images of fewer than two classes."""
    there = np.flatnonzero(data.counts.sum(1))
    if len(there) >= 2:
        return None
    text = (
        f"Of {len(data.classes)} classes {len(there)} {'has' if len(there) == 1 else 'have'} readable images."
    )
    remedy = "Add images of another class."
    return Finding(
        "too_few_classes", "error", "There are fewer than two classes", text, remedy, _names(data, there)
    )


def untrained_classes(data: Contents) -> Finding | None:
    """Classes without an image to train on."""
    without = np.flatnonzero(data.counts[:, 0] == 0)
    if not len(without) or len(without) == len(data.classes):  # then there is nothing at all to train on
        return None
    title = f"{_classes_have(without)} no image to train on"
    text = f"Of {len(data.classes):,} classes, these cannot be learned."
    remedy = "Add training images of each, or remove these classes."
    return Finding("untrained_classes", "error", title, text, remedy, _names(data, without))


def single_images(data: Contents) -> Finding | None:
    """Classes of one image, where each is split."""
    single = np.flatnonzero(data.counts.sum(1) == 1)
    if data.splits_given or not len(single):
        return None
    title = f"{_classes_have(single)} one image only"
    text = "It takes two: one to train on, and one to test on."
    remedy = "Add images of each, or remove these classes."
    return Finding("single_images", "error", title, text, remedy, _names(data, single))


# What spoils the result.


def leaks(data: Contents) -> Finding | None:
    """Images that are held out and trained on too."""
    found = data.leaks
    if not found:
        return None
    exact = sum(leak.is_exact for leak in found)
    _, held_out = _training_and_held_out(data)
    return Finding(
        "leaks",
        "warning",
        f"{counted(len(found), 'image')} to judge by {_is(len(found))} trained on too",
        f"Of {held_out:,} that are held out, {exact:,} {_is(exact)} the same as a training image and "
        f"{len(found) - exact:,} nearly the same. Accuracy will look better than it is.",
        "Remove them from one of the two splits." if data.splits_given else "Keep one image of each only.",
        tuple(
            f"{data.names[leak.held_out]} {_sign(leak.is_exact)} {data.names[leak.train]}"
            for leak in found[:MOST_EXAMPLES]
        ),
    )


def conflicts(data: Contents) -> Finding | None:
    """Images that are the same, but of two classes."""
    found = data.conflicts
    if not found:
        return None
    exact = sum(conflict.is_exact for conflict in found)
    return Finding(
        "conflicts",
        "warning",
        f"{counted(len(found), 'image')} {_is(len(found))} there with more than one class",
        f"In {counted(exact, 'case')} their pixels are the same, in {len(found) - exact:,} nearly. Some of "
        "their labels are wrong, or their classes cannot be told apart.",
        "Move them, or correct them with --labels FILE, a CSV with the columns path and label.",
        tuple(
            _one_of_each_class(data, conflict.images, _sign(conflict.is_exact))
            for conflict in found[:MOST_EXAMPLES]
        ),
    )


def missing_from_split(data: Contents) -> Finding | None:
    """Classes that are trained on, but without an image to judge them by."""
    for column, purpose in ((2, "test on"), (1, "validate on")):
        there = data.counts[:, column]
        missing = np.flatnonzero((there == 0) & (data.counts[:, 0] > 0))
        if there.any() and len(missing) and (data.splits_given or not len(_single(data))):
            title = f"{_classes_have(missing)} no image to {purpose}"
            text = f"Of {len(data.classes):,} classes, these cannot be judged."
            remedy = "Move some of their training images there."
            return Finding("missing_from_split", "warning", title, text, remedy, _names(data, missing))
    return None


def few_images(data: Contents) -> Finding | None:
    """Classes of very few images."""
    counts = data.counts.sum(1)
    few = np.flatnonzero((counts >= (1 if data.splits_given else 2)) & (counts < FEW))
    if not len(few):
        return None
    title = f"{_classes_have(few)} fewer than {FEW} images"
    text = f"The smallest has {counts[few].min()}. So few images are learned by heart."
    remedy = "Add images; some tens of each class are a start."
    return Finding("few_images", "warning", title, text, remedy, _names(data, few))


def uneven_classes(data: Contents) -> Finding | None:
    """One class with many times the images of another."""
    ratio, training = data.imbalance, data.counts[:, 0]
    if ratio is None or ratio <= UNEVEN:
        return None
    largest, smallest = training.max(), training[training > 0].min()
    names = [visible(data.classes[np.flatnonzero(training == count)[0]]) for count in (largest, smallest)]
    return Finding(
        "uneven_classes",
        "warning" if ratio > VERY_UNEVEN else "note",
        f"The largest class has {ratio:.3g} times the training images of the smallest",
        f"{names[0]} has {largest:,}, {names[1]} {smallest:,}.",
        "Have rare classes drawn more often with --balance sampling, and look at the accuracy of each class.",
    )


# What one should know.


def small_images(data: Contents) -> Finding | None:
    """Images that are made much larger, which adds nothing to them."""
    shorter, longer = data.sizes.min(1), data.sizes.max(1)
    side = data.side
    return _of_some(
        data,
        "small_images",
        BLURRED * (longer if data.fit == "pad" else shorter) < side,
        f"much smaller than {side} × {side} pixels",
        "Scaling them up to that adds nothing but blur.",
        "Where these are many, choose a smaller --image-size.",
    )


def wide_images(data: Contents) -> Finding | None:
    """Images of which the network is shown a small part only."""
    shorter, longer = data.sizes.min(1), data.sizes.max(1)
    if data.fit != "crop":
        return None
    return _of_some(
        data,
        "wide_images",
        longer > WIDE * shorter,
        f"more than {WIDE} times as long as wide",
        "Only the square in the middle of each is seen.",
        "Have them shown whole with --image-fit pad.",
    )


def duplicates(data: Contents) -> Finding | None:
    """Images that are there several times."""
    groups = data.alike
    if not groups:
        return None
    exact = sum(len(group) - 1 for group in data.exact)
    near = sum(len(group) - 1 for group in groups) - exact
    return Finding(
        "duplicates",
        "note",
        "1 image is a copy of another"
        if exact + near == 1
        else f"{exact + near:,} images are copies of others",
        f"{exact:,} {_is(exact)} the same as another and {near:,} nearly the same, in "
        f"{counted(len(groups), 'group')}.",
        "Keep one of each group, unless the others are meant to count.",
        tuple(_first_of(data, group[:3]) for group in groups[:MOST_EXAMPLES]),
    )


RULES = (
    unreadable,
    empty_splits,
    too_few_classes,
    untrained_classes,
    single_images,
    leaks,
    conflicts,
    missing_from_split,
    few_images,
    uneven_classes,
    small_images,
    wide_images,
    duplicates,
)


def _training_and_held_out(data: Contents) -> tuple[int, int]:
    training, *held_out = data.counts.sum(0).tolist()
    return training, sum(held_out)


def _single(data: Contents) -> Indices:
    return np.flatnonzero(data.counts.sum(1) == 1)


def _of_some(
    data: Contents, rule: str, which: NDArray[np.bool_], what: str, text: str, remedy: str
) -> Finding | None:
    """A finding about those of the readable images, (M,), that are something."""
    rows = data.readable[which]
    if not len(rows):
        return None
    return Finding(
        rule,
        "warning" if len(rows) > MANY * len(data.readable) else "note",
        f"{counted(len(rows), 'image')} {_is(len(rows))} {what}",
        text,
        remedy,
        tuple(data.names[row] for row in rows[:MOST_EXAMPLES]),
    )


def _one_of_each_class(data: Contents, images: Sequence[int], sign: str) -> str:
    """The first of these images in each class, with the name of the class."""
    first = {int(data.labels[index]): index for index in reversed(images)}
    return f" {sign} ".join(
        f"{data.names[index]} ({data.classes[label]})" for label, index in sorted(first.items())
    )


def _first_of(data: Contents, group: Indices) -> str:
    """The names of images that are alike, with a sign that says how alike."""
    is_exact = len(np.unique(data.facts.digests[group], axis=0)) == 1
    return f" {_sign(is_exact)} ".join(data.names[index] for index in group)


def _sign(is_exact: bool) -> str:
    return "=" if is_exact else "\N{ALMOST EQUAL TO}"


def _names(data: Contents, labels: Sequence[int] | Indices) -> tuple[str, ...]:
    return tuple(data.classes[label] for label in labels[:MOST_EXAMPLES])


def _classes_have(labels: Indices) -> str:
    return f"{len(labels):,} class has" if len(labels) == 1 else f"{len(labels):,} classes have"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
