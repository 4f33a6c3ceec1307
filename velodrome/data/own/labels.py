"""Corrected labels: a table such as a run's label_errors.csv, laid over the labels of a data set."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from velodrome.data.imageset import Labels, Splits
from velodrome.data.own.csv_files import read_csv
from velodrome.data.own.listing import class_name, counted, shown, some
from velodrome.errors import DataError, did_you_mean, visible

MOST_NAMED = 10


def read_corrections(path: Path) -> dict[str, str]:
    """The class of each image that a table names, by the image's name.

    Args:
        path: of a table in CSV with the columns path and label, and any others.

    Raises:
        DataError: it cannot be read, is no such table, or gives an image two classes.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - unlike Path.is_file, it takes any name
        raise DataError(
            f"The table of labels {shown(path)} is not there, or is no file.",
            "Give a CSV file with the columns path and label, such as a run's label_errors.csv.",
        )
    corrections: dict[str, str] = {}
    lines: dict[str, int] = {}
    for cells in read_csv(path):
        label = class_name(cells.label)
        if corrections.setdefault(cells.path, label) != label:
            raise DataError(
                f"Table {shown(path)} gives {visible(cells.path)} two classes, "
                f"{visible(corrections[cells.path])} in line {lines[cells.path]} and {visible(label)} in "
                f"line {cells.line}.",
                "Remove one of the two lines.",
            )
        lines.setdefault(cells.path, cells.line)
    return corrections


def apply_corrections(splits: Splits, corrections: Mapping[str, str], source: Path) -> tuple[Splits, int]:
    """The data set with corrected labels and a checksum of them, and how many of them have changed.

    Args:
        splits: of the data set; they are not changed themselves.
        corrections: name of an image, as in `ImageSet.paths` -> its class.
        source: the table that they come from, which errors name.

    Raises:
        DataError: a name is that of no image or of several, or a label is not one of the classes.
    """
    parts = [images for images in (splits.train, splits.val, splits.test) if images is not None]
    before = np.concatenate([images.labels for images in parts])
    names = [name for images in parts for name in images.paths]
    after = corrected(before, names, splits.train.classes, corrections, source)
    each = np.split(after, np.cumsum([len(images) for images in parts])[:-1])
    train, *val, test = (replace(images, labels=labels) for images, labels in zip(parts, each, strict=True))
    # A published data set needs no checksum, but with these labels it is one's own.
    fingerprint = blake2b(splits.fingerprint.encode() + after.tobytes(), digest_size=16).hexdigest()
    changed = replace(splits, train=train, val=val[0] if val else None, test=test, fingerprint=fingerprint)
    return changed, int((before != after).sum())


def corrected(
    labels: Labels, names: Sequence[str], classes: Sequence[str], corrections: Mapping[str, str], source: Path
) -> Labels:
    """The labels of a whole data set as they are after corrections.

    Args:
        labels: (N,) int64, indices into `classes`; they are not changed themselves.
        names: of the N images.
        classes: the names of the classes.
        corrections: name of an image -> its class.
        source: the table that they come from, which errors name.

    Raises:
        DataError: as in `apply_corrections`.
    """
    _check_classes(classes, corrections, source)
    _check_names(names, corrections, source)
    numbers = {name: label for label, name in enumerate(classes)}
    labels = labels.copy()
    for index, name in enumerate(names):
        if name in corrections:
            labels[index] = numbers[corrections[name]]
    return labels


def _check_classes(classes: Sequence[str], corrections: Mapping[str, str], source: Path) -> None:
    known = set(classes)
    for name, label in corrections.items():
        if label not in known:
            raise DataError(
                f"Table {shown(source)} gives {visible(name)} the class {visible(label)}, but the data set "
                "has no such class.",
                did_you_mean(visible(label), [visible(other) for other in classes]),
            )


def _check_names(names: Sequence[str], corrections: Mapping[str, str], source: Path) -> None:
    there = Counter(name for name in names if name in corrections)
    missing = [name for name in corrections if name not in there]
    if missing:
        raise DataError(
            f"Table {shown(source)} names {counted(len(missing), 'image')} that the data set does not have: "
            f"{some(missing, MOST_NAMED)}.",
            "Names are those in the column path of a run's predictions.csv. Is the table of other data?",
        )
    name, count = next(iter(there.most_common(1)), ("", 0))
    if count > 1:
        raise DataError(
            f"Table {shown(source)} names {visible(name)}, but {count} images of the data set are called so.",
            "Remove the row, as it is unclear which of them it means.",
        )
