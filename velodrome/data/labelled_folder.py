"""A folder of images with a folder for each class, read for a model that knows its classes already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from velodrome.data.image_files import Failure, UnreadableImageError, find_images, read_image
from velodrome.data.imageset import ImageSet
from velodrome.data.own.listing import as_text
from velodrome.errors import DataError, did_you_mean, visible

# Where a data set is kept in parts, these are the ones that a model was not trained on.
HELD_OUT = ("test", "val", "valid", "validation")


def read_labelled_folder(
    path: Path, classes: Sequence[str], size: tuple[int, int], fit: str = "crop"
) -> tuple[ImageSet, list[Failure]]:
    """All images below `path`, labelled by the folder that they lie in.

    Looks for `path/<class>/*`, or for the same below `path/test` (else val, valid, validation). Folders and
    files whose names begin with a dot are left out. A class may be missing.

    Args:
        path: of the folder.
        classes: the names that the folders may have, in the order of the labels.
        size: (height, width) in pixels to bring the images to.
        fit: how, "crop", "pad" or "squash".

    Returns:
        The images, in sorted order and with paths relative to `path`, and the files that cannot be read.

    Raises:
        DataError: there is no such folder, it has a class that is not among `classes`, or no readable image.
    """
    folders = _class_folders(path, classes)
    number = {name: label for label, name in enumerate(classes)}
    images, labels, names, failures = [], [], [], []
    for folder in folders:
        for found in find_images([folder]):
            if isinstance(found, Failure):
                if found.path != folder or not os.access(folder, os.R_OK | os.X_OK):  # it is not merely empty
                    failures.append(found)
                continue
            try:
                images.append(read_image(found, size, fit))
            except UnreadableImageError as error:
                failures.append(Failure(found, error.reason))
                continue
            labels.append(number[folder.name])
            names.append(as_text(found.relative_to(path).as_posix()))
    if not images:
        raise DataError(
            f"Data {_shown(path)} has no image that can be read in its {len(folders)} class folders.",
            "Give a folder with a folder of images for each class.",
        )
    return ImageSet(np.stack(images), np.array(labels, np.int64), tuple(classes), names), failures


def _class_folders(path: Path, classes: Sequence[str]) -> list[Path]:
    """The folders of the classes, in sorted order."""
    example = f"{_shown(path)}/{visible(classes[0])}"
    if not os.path.isdir(path):  # noqa: PTH112 - unlike Path.is_dir, it takes any name
        raise DataError(
            f"Data {_shown(path)} is neither a data set nor a folder.",
            f"Give cifar10, cifar100, shapes or a folder with a folder for each class, such as {example}.",
        )
    folders = _folders_in(path)
    parts = {folder.name: folder for folder in folders}
    part = next((parts[name] for name in HELD_OUT if name in parts and name not in classes), None)
    folders = _folders_in(part) if part else folders
    unknown = [folder.name for folder in folders if folder.name not in classes]
    if not folders:
        raise DataError(
            f"Data {_shown(path)} has no folders in it, but each class must have one with its images.",
            f"Make one for each class, such as {example}.",
        )
    if unknown:
        raise DataError(
            f"Data {_shown(path)} has the folder {visible(unknown[0])!r}, but the model knows no such class.",
            did_you_mean(unknown[0], [visible(name) for name in classes]),
        )
    return folders


def _folders_in(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        raise DataError(
            f"Data {_shown(path)} cannot be read: {error.strerror or error}.", "Mend its permissions."
        ) from error


def _shown(path: Path) -> str:
    return visible(str(path))
