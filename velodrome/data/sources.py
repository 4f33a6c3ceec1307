"""Where images come from, by name; how they are cut down and split."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pooch  # type: ignore[import-untyped]
from tqdm import tqdm

from velodrome.config import HUB, DataSection, is_auto, is_own
from velodrome.data.cifar import PUBLISHED, cifar_is_present, load_cifar
from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.own.collecting import Bar, Say, path_of, resized
from velodrome.data.own.labels import apply_corrections, read_corrections
from velodrome.data.own.listing import counted
from velodrome.data.own.near_duplicates import exact_groups
from velodrome.data.own.own_data import OwnData, blank, blank_own, left_to_prepare, read_own, tell_corrected
from velodrome.data.own.splitting import held_out_whole
from velodrome.data.shapes import ready_shapes
from velodrome.errors import ConfigError, DataError, VelodromeWarning, visible

# Apart from every other use of the run's seed.
VALIDATION_STREAM = 1000
# Where nothing is said: held out for validation, from so many training images on.
VALIDATION_SHARE, FEWEST_TO_HOLD_OUT = 0.1, 500


def resolve_data_root(data_root: Path | None) -> Path:
    """The folder given, else $VELODROME_DATA, else the user cache folder."""
    if data_root is not None:
        return data_root
    from_environment = os.environ.get("VELODROME_DATA")
    return Path(from_environment).expanduser() if from_environment else Path(pooch.os_cache("velodrome"))


def load_splits(data: DataSection, seed: int, *, enlarged: bool = False, progress: bool = True) -> Splits:
    """The images to train on, to choose by and to report on.

    Args:
        data: which images, how many, of which size, and the share held out for validation.
        seed: of the run; fixes which images are held out for validation.
        enlarged: keep own training images larger than the others by a quarter, for random parts of them.
        progress: say on stderr what takes time.

    Raises:
        DataError: images are missing or damaged.
        ConfigError: the validation share leaves no image to train on, or takes none.
    """
    with telling(progress) as (say, bar):
        if is_own(data.data):
            splits = usable_splits(read_own(data, enlarged=enlarged, say=say, bar=bar), say)
        else:
            splits = _load_named(data, progress)
            if data.labels:
                splits, changed = apply_corrections(splits, read_corrections(data.labels), data.labels)
                say(tell_corrected(changed, data.labels))
        splits = _cut(splits, data)  # by this name, so that those left out are gone when more are copied
        has_val = splits.val is not None
        splits = _split(splits, data, seed)
        if is_own(data.data) and splits.val is not None and not has_val:
            both = counted(len(splits.val) + len(splits.train), "training image")
            say(
                f"{visible(splits.name)}: Of {both}, {len(splits.val):,} are held out to choose by, as "
                "--val-fraction says."
            )
    return splits


def usable_splits(own: OwnData, say: Say) -> Splits:
    """The image sets of own data, if nothing stands against training on them.

    Warns (VelodromeWarning) of what does not, but should be known.

    Args:
        own: the data.
        say: is told what is taken for what, held out and ignored.

    Raises:
        DataError: something does; all of it is named at once.
    """
    own.findings.raise_errors()
    assert own.splits is not None, "there are no errors"
    for line in own.findings.warnings():
        warnings.warn(line, VelodromeWarning, stacklevel=2)
    for line in own.findings.assumptions():
        say(f"{visible(own.name)}: {line}")
    return replace(own.splits, found=own.to_dict())


def _load_named(data: DataSection, progress: bool) -> Splits:
    if data.data == "shapes":
        train, test = ready_shapes()
    else:
        root = resolve_data_root(data.data_root)
        train, test = load_cifar(data.data, root, progress=progress)
    if not is_auto(data.image_size):
        train, test = (
            replace(images, images_u8=resized(images.images_u8[:], data.image_size, data.image_fit))
            for images in (train, test)
        )
    return Splits(data.data, train, None, test)


@contextmanager
def telling(progress: bool) -> Iterator[tuple[Say, Bar]]:
    """What to tell about slow work, and a bar on stderr; nothing without `progress`."""
    bars: list[tqdm[Any]] = []

    def say(line: str) -> None:
        if progress:
            for one in bars:
                one.clear()
            sys.stderr.write(f"{line}\n")

    def bar(done: int, total: int) -> None:
        if not bars:
            # Where nobody looks, a line would come with every step.
            quiet = not progress or not sys.stderr.isatty()
            bars.append(tqdm(total=total, unit=" images", desc="preparing", disable=quiet, leave=False))
        bars[-1].update(done - bars[-1].n)

    try:
        yield say, bar
    finally:
        for one in bars:
            one.close()


def check_is_there(data: DataSection, remedy: str) -> None:
    """Check that own images lie where they lay before.

    Args:
        data: where that is.
        remedy: what to do where they do not.

    Raises:
        DataError: they do not.
    """
    if is_own(data.data) and not data.data.startswith(HUB) and not os.path.lexists(path_of(data)):
        raise DataError(f"Data {visible(data.data)} is not there any more.", remedy)


def fetch_first(data: DataSection, *, enlarged: bool = False) -> str | None:
    """What `load_splits` would put on the disk before it can read, in words; None where nothing.

    Args:
        data: which images.
        enlarged: as in `load_splits`.

    Raises:
        DataError: there are no such images.
    """
    if data.data == "shapes":
        return None
    if is_own(data.data):
        return left_to_prepare(data, enlarged=enlarged)
    root = resolve_data_root(data.data_root)
    archive = PUBLISHED[data.data].archive
    if (root / archive.folder).is_dir():
        return None
    if cifar_is_present(data.data, root):
        return f"would be unpacked in {root} first"
    return f"would be downloaded to {root} first ({archive.size_bytes / 1e6:.0f} MB)"


def blank_splits(data: DataSection, seed: int) -> Splits:
    """Black images in the number and size of a data set, to plan with where it is not there yet."""
    if is_own(data.data):
        return _split(_cut(blank_own(data), data), data, seed)
    classes = tuple(f"class {number}" for number in range(10 if data.data == "cifar10" else 100))
    side = 32 if is_auto(data.image_size) else data.image_size
    train, test = (blank(np.arange(count) % len(classes), classes, side) for count in (50_000, 10_000))
    return _split(_cut(Splits(data.data, train, None, test), data), data, seed)


def _cut(splits: Splits, data: DataSection) -> Splits:
    train, test = _limited(splits.train, data.limit_train), _limited(splits.test, data.limit_test)
    return replace(splits, train=train, test=test)


def _split(splits: Splits, data: DataSection, seed: int) -> Splits:
    share = data.val_fraction
    if is_auto(share):
        share = VALIDATION_SHARE if len(splits.train) >= FEWEST_TO_HOLD_OUT else 0.0
    return _hold_out(splits, share, seed) if share and splits.val is None else splits


def _limited(images: ImageSet, limit: int | None) -> ImageSet:
    """At most `limit` images, spread evenly over the set by a fixed shuffle; a smaller limit is a subset."""
    if limit is None or limit >= len(images):
        return images
    chosen = np.random.default_rng(0).permutation(len(images))[:limit]
    return images.take(np.sort(chosen))


def _hold_out(splits: Splits, fraction: float, seed: int) -> Splits:
    """Move `fraction` of the training images of every class to a validation set.

    Of images with the same checksum all are moved or none; named data sets have none.
    """
    rng = np.random.default_rng([seed, VALIDATION_STREAM])
    labels, digests = splits.train.labels, splits.train.digests
    same = [] if digests is None else exact_groups(digests, np.ones(len(labels), np.bool_))
    held = held_out_whole(labels, same, fraction, rng)
    if held.all() or not held.any():
        which = "no image to train on" if held.all() else "no image to validate on"
        raise ConfigError(
            f"val_fraction is {fraction:g}, which leaves {which} of {len(labels)}.",
            "Use another --val-fraction, or more images.",
        )
    train, val = splits.train.take(np.flatnonzero(~held)), splits.train.take(np.flatnonzero(held))
    return replace(splits, train=train, val=val)
