"""Where images come from, by name; how they are cut down and split."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch  # type: ignore[import-untyped]
from numpy.typing import NDArray

from velodrome.config import DataSection
from velodrome.data.cifar import PUBLISHED, cifar_is_present, load_cifar
from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.shapes import load_shapes
from velodrome.errors import ConfigError

# Apart from every other use of the run's seed.
VALIDATION_STREAM = 1000


def resolve_data_root(data_root: Path | None) -> Path:
    """The folder given, else $VELODROME_DATA, else the user cache folder."""
    if data_root is not None:
        return data_root
    from_environment = os.environ.get("VELODROME_DATA")
    return Path(from_environment).expanduser() if from_environment else Path(pooch.os_cache("velodrome"))


def load_splits(data: DataSection, seed: int, *, progress: bool = True) -> Splits:
    """The images to train on, to choose by and to report on.

    Args:
        data: which images, how many, and the share held out for validation.
        seed: of the run; fixes which images are held out.
        progress: show a bar on stderr where something is downloaded.

    Raises:
        DataError: images are missing or damaged.
        ConfigError: the validation share leaves no image to train on, or takes none.
    """
    if data.data == "shapes":
        train, test = load_shapes()
    else:
        root = resolve_data_root(data.data_root)
        train, test = load_cifar(data.data, root, progress=progress)
    return _cut_and_split(train, test, data, seed)


def fetch_first(data: DataSection) -> str | None:
    """What `load_splits` would put on the disk before it can read, in words; None where nothing."""
    if data.data == "shapes":
        return None
    root = resolve_data_root(data.data_root)
    archive = PUBLISHED[data.data].archive
    if (root / archive.folder).is_dir():
        return None
    if cifar_is_present(data.data, root):
        return f"would be unpacked in {root} first"
    return f"would be downloaded to {root} first ({archive.size_bytes / 1e6:.0f} MB)"


def blank_splits(data: DataSection, seed: int) -> Splits:
    """Black images in the number and size of a CIFAR data set, to plan with where it is not there yet."""
    classes = tuple(f"class {number}" for number in range(10 if data.data == "cifar10" else 100))
    train, test = (_blank(count, classes) for count in (50_000, 10_000))
    return _cut_and_split(train, test, data, seed)


def _blank(count: int, classes: tuple[str, ...]) -> ImageSet:
    labels = np.arange(count) % len(classes)
    return ImageSet(np.zeros((count, 32, 32, 3), np.uint8), labels, classes, [""] * count)


def _cut_and_split(train: ImageSet, test: ImageSet, data: DataSection, seed: int) -> Splits:
    train, test = _limited(train, data.limit_train), _limited(test, data.limit_test)
    splits = Splits(data.data, train, None, test)
    return _hold_out(splits, data.val_fraction, seed) if data.val_fraction else splits


def _limited(images: ImageSet, limit: int | None) -> ImageSet:
    """At most `limit` images, spread evenly over the set by a fixed shuffle; a smaller limit is a subset."""
    if limit is None or limit >= len(images):
        return images
    chosen = np.random.default_rng(0).permutation(len(images))[:limit]
    return images.take(np.sort(chosen))


def _hold_out(splits: Splits, fraction: float, seed: int) -> Splits:
    """Move `fraction` of the training images of every class to a validation set."""
    rng = np.random.default_rng([seed, VALIDATION_STREAM])
    labels = splits.train.labels
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members: NDArray[np.int64] = rng.permutation(np.flatnonzero(labels == label))
        held[members[: round(fraction * len(members))]] = True
    if held.all() or not held.any():
        which = "no image to train on" if held.all() else "no image to validate on"
        raise ConfigError(
            f"val_fraction is {fraction:g}, which leaves {which} of {len(labels)}.",
            "Use another --val-fraction, or more images.",
        )
    train, val = splits.train.take(np.flatnonzero(~held)), splits.train.take(np.flatnonzero(held))
    return replace(splits, train=train, val=val)
