"""Data sets in a NumPy archive (.npz): images and labels as arrays."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from velodrome.data.own.array_file import (
    KIND,
    Pair,
    check_images,
    check_labels,
    check_together,
    described,
    names_of_pairs,
    read_stored,
)
from velodrome.data.own.damage import damage_named
from velodrome.data.own.listing import (
    check_classes,
    check_known,
    class_name,
    class_order,
    judged_by,
    settle_splits,
    shown,
)
from velodrome.errors import DataError, visible

CLASSES = "classes"
# Images that are changed at once; each takes ten times its memory meanwhile.
IMAGES_AT_ONCE = 64

# A label as it is saved.
Value = int | str


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set in memory.

    Attributes:
        classes: their names, in the order of the labels.
        images_u8: split -> (N, H, W, 3) uint8, C-contiguous; the only key is None where there are no splits.
        labels: split -> (N,) int64, each in [0, len(classes)).
        notes: sentences about splits that are taken for others.
    """

    classes: tuple[str, ...]
    images_u8: dict[str | None, NDArray[np.uint8]]
    labels: dict[str | None, NDArray[np.int64]]
    notes: tuple[str, ...] = ()


def is_array_file(path: Path) -> bool:
    """Whether there is an .npz file; a folder may be called so too."""
    return path.suffix.lower() == ".npz" and os.path.isfile(path)  # noqa: PTH113  that of Path may raise


def read_arrays(path: Path, known: Sequence[str] | None = None) -> Arrays:
    """The images and labels in an .npz file; nothing in it is executed.

    The arrays are called images and labels, or x and y; or, for each split, train_images and train_labels
    (also val, test; as in MedMNIST) or x_train and y_train (as in Keras). Images are uint8, (N, H, W) or
    (N, H, W, C) with C grey (1), RGB (3) or RGB and alpha (4), which is laid on white. Labels, (N,) or
    (N, 1), are whole numbers or text. An array `classes` of text may name the classes of the numbers 0, 1,
    ...; without it, the values of the labels are the names. As in a listing, val is reported on where there
    is no test, and train alone is no split.

    Args:
        path: of the file.
        known: the classes of a model that is to be judged by the images, as in `list_data`; other splits
            are not looked at then. None where they are to train on.

    Raises:
        DataError: it cannot be read, is damaged, or lacks what it must have; or the arrays do not fit
            together, or have a class that the model does not know.
    """
    with warnings.catch_warnings(), damage_named(path, KIND), zipfile.ZipFile(path) as file:
        warnings.simplefilter("ignore")  # of old headers
        infos = {info.filename.removesuffix(".npy").lower(): info for info in file.infolist()}
        names = names_of_pairs(path, infos)
        used, notes = settle_splits(path, names) if known is None else (judged_by(names), [])
        pairs = {
            split: Pair(*(described(path, file, infos[name]) for name in both))
            for split, both in names.items()
            if split in used
        }
        for pair in pairs.values():
            check_images(path, pair.images)
            check_labels(path, pair)
        check_together(path, [pair.images for pair in pairs.values()])
        given = _class_names(path, file, infos[CLASSES]) if CLASSES in infos else None
        written = {split: read_stored(file, pair.labels) for split, pair in pairs.items()}
        classes, labels = _numbered(path, written, given, known)
        images_u8 = {split: _as_rgb(read_stored(file, pair.images)) for split, pair in pairs.items()}
    return Arrays(
        classes,
        {used[split]: array for split, array in images_u8.items()},
        {used[split]: array for split, array in labels.items()},
        tuple(notes),
    )


# Labels.


def _class_names(path: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[str, ...]:
    stored = described(path, file, info)
    if stored.dtype.kind not in "US" or len(stored.shape) != 1:
        raise DataError(
            f"{KIND} {shown(path)}: {stored.name} is of type {stored.dtype} and shape {stored.shape}, but "
            "must be a row of text, a name for each class.",
            "Save np.array(['cat', 'dog']) or the like, or leave it out.",
        )
    names = tuple(_text(value) for value in read_stored(file, stored))
    wrong = next((name for name, count in Counter(names).items() if count > 1 or not name.strip()), None)
    if wrong is not None:
        raise DataError(
            f"{KIND} {shown(path)}: {stored.name} holds the name '{visible(wrong)}', which is empty or "
            "that of two classes.",
            "Give each class a name of its own.",
        )
    return names


def _numbered(
    path: Path,
    raw: Mapping[str | None, NDArray[Any]],
    given: tuple[str, ...] | None,
    known: Sequence[str] | None,
) -> tuple[tuple[str, ...], dict[str | None, NDArray[np.int64]]]:
    """The classes, and the labels as numbers of them.

    Args:
        path: of the file.
        raw: split -> labels, (N,) or (N, 1), whole numbers or text.
        given: the names of the classes; None where the labels themselves are the names.
        known: as in `read_arrays`.

    Raises:
        DataError: labels are partly numbers and partly text, not among the given or the known classes, or
            all the same.
    """
    if len({array.dtype.kind in "iu" for array in raw.values()}) > 1:
        raise DataError(
            f"{KIND} {shown(path)} has labels that are numbers, and others that are text.",
            "Save all of them as numbers, or all as text.",
        )
    split_values = {split: np.unique(array.reshape(-1), return_inverse=True) for split, array in raw.items()}
    values = {value for distinct, _ in split_values.values() for value in _plain(distinct)}
    classes, numbers = _number_of_each(path, values, given)
    there = [classes[number] for number in sorted(set(numbers.values()))]
    if known is None:
        check_classes(path, there)
    else:
        check_known(str(path), there, known)
    labels = {
        split: np.array([numbers[value] for value in _plain(distinct)], np.int64)[places.reshape(-1)]
        for split, (distinct, places) in split_values.items()
    }
    return classes, labels


def _number_of_each(
    path: Path, values: set[Value], given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[Value, int]]:
    """The classes, and which of them each label means."""
    are_numbers = all(isinstance(value, int) for value in values)
    if any(isinstance(value, str) and not value.strip() for value in values):
        raise DataError(f"{KIND} {shown(path)} has an empty label.", "Write the name of a class there.")
    if given is None:
        ordered = sorted(values, key=int) if are_numbers else class_order(map(str, values))
        return tuple(map(str, ordered)), {value: number for number, value in enumerate(ordered)}
    known: Sequence[Value] = range(len(given)) if are_numbers else given
    numbers = {value: number for number, value in enumerate(known)}
    unknown = sorted((value for value in values if value not in numbers), key=str)
    if unknown:
        rule = f"whole numbers from 0 to {len(given) - 1}" if are_numbers else "the names in it"
        raise DataError(
            f"{KIND} {shown(path)} has the label {visible(str(unknown[0]))}, but beside an array {CLASSES} "
            f"of {len(given)} names, labels are {rule}.",
            f"Mend the labels, or leave {CLASSES} out.",
        )
    return given, {value: numbers[value] for value in values}


def _plain(distinct: NDArray[Any]) -> list[Value]:
    """The values of a column of labels: whole numbers, or text as classes are called."""
    if distinct.dtype.kind in "iu":
        return [int(value) for value in distinct]
    return [_text(value) for value in distinct]


def _text(value: str | bytes) -> str:
    return class_name(value.decode() if isinstance(value, bytes) else str(value))


# Pixels.


def _as_rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images of any number of channels as (N, H, W, 3); transparent parts are laid on white.

    Args:
        images: (N, H, W) or (N, H, W, C) uint8, C being 1, 3 or 4.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] == 3:
        return np.ascontiguousarray(images)
    rgb = np.empty((*images.shape[:3], 3), np.uint8)
    if images.shape[-1] == 1:
        rgb[:] = images
        return rgb
    for start in range(0, len(images), IMAGES_AT_ONCE):
        part = images[start : start + IMAGES_AT_ONCE].astype(np.uint16)
        alpha = part[..., 3:]
        mixed = part[..., :3] * alpha + 255 * (255 - alpha)
        rgb[start : start + IMAGES_AT_ONCE] = (mixed + 127) // 255
    return rgb
