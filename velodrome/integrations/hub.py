"""Image data sets of the Hugging Face hub, and whatever else the package `datasets` loads."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from velodrome.config import HUB
from velodrome.data.own.listing import Listing, some
from velodrome.data.own.tables import Table, list_tables, note_of_other_splits, split_called
from velodrome.data.own.unpacking import Version, copied_before, copy_now, left_out_of
from velodrome.errors import DataError, visible

# In this order; else the first column of class labels.
LABEL_COLUMNS = ("label", "labels", "fine_label")
# Of plain values that are classes: whole numbers and text.
LABEL_KINDS = ("int", "uint", "string", "large_string")
# How the hub marks the images of a test set whose labels are kept secret.
UNLABELLED = -1
TABLE = "table.csv"
# By the first bytes of a file, what Pillow goes by; names are for people.
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}


def list_hub(name: str, workspace: Path, known: Sequence[str] | None) -> Listing:
    """The images of a data set of the hub, exported once, with their classes and splits.

    Args:
        name: as in `export`.
        workspace: as in `export`.
        known: the classes of the model to judge; None for images to train on.

    Raises:
        DataError: as in `export`, or the data set has a class that the model does not know.
    """
    table = export(name, workspace, known)
    listing = list_tables(
        Path(HUB + name), [Table(table, None)], table.parent, workspace, known, only_inside=True
    )
    others = note_of_other_splits(list(left_out_of(table.parent)))
    return replace(listing, notes=(*listing.notes, *others))


def export(name: str, workspace: Path, known: Sequence[str] | None = None) -> Path:
    """Write the images of a data set as files with a table of their labels and splits, once.

    Splits are called as those of local folders are; what has another name is left out.

    Args:
        name: as `datasets.load_dataset` takes it, a local folder too; with `:CONFIGURATION` where there are
            several.
        workspace: receives a folder, whole or not at all; older exports of the same name are removed.
        known: as in `list_hub`.

    Returns:
        The path of the table.

    Raises:
        DataError: `datasets` is not installed, or there is no such data set, or it has no images, no labels,
            or no split that can be used.
    """
    datasets, loaded = _loaded(name)
    _check_splits(name, list(loaded), known)
    parts = {split: rows for split, rows in loaded.items() if split_called(split)}
    others = {split: len(rows) for split, rows in loaded.items() if split not in parts}
    columns = _columns(next(iter(parts.values())).features, datasets, name)

    def write(folder: Path) -> dict[str, int]:
        _write(parts, columns, datasets, name, folder)
        return others

    prints = "".join(str(part._fingerprint) for part in loaded.values())
    version = Version.of(Path(name.partition(":")[0]).name, str(Path(HUB + name)), prints)
    try:
        folder = copied_before(version, workspace) or copy_now(version, workspace, write)
    except (OSError, NotImplementedError) as error:  # the latter where a file system knows no locks
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise DataError(
            f"Data hf:{visible(name)} cannot be written to {workspace}: {reason}.",
            "Free some space, or set XDG_CACHE_HOME to another folder.",
        ) from error
    return folder / TABLE


def _loaded(name: str) -> tuple[Any, Any]:
    """The package `datasets`, and a data set: its splits by name.

    Raises:
        DataError: there is no such package, or no such data set.
    """
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore] # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            f"Data hf:{visible(name)} needs the package datasets, which is not installed.",
            "Install it: pip install 'velodrome[hub]'.",
        ) from error
    place, _, configuration = name.partition(":")
    try:
        return datasets, datasets.load_dataset(place, configuration or None)
    except Exception as error:  # of the network, of files, of the hub: there is no end to them
        reason = visible((str(error) or type(error).__name__).strip().splitlines()[0])
        raise DataError(
            f"Data hf:{visible(name)} cannot be loaded: {reason}.",
            "Check the name at the hub, and the connection.",
        ) from error


def _check_splits(name: str, splits: Sequence[str], known: Sequence[str] | None) -> None:
    """Refuse a data set of which nothing is left to train on, or to judge a model by.

    Raises:
        DataError: it is one.
    """
    used = {split_called(split) for split in splits} - {None}
    if not used or (known is None and "train" not in used):
        wanted = "train, so there is nothing to learn from" if known is None else "train, val or test"
        raise DataError(
            f"Data hf:{visible(name)} has the splits {some(splits, 8)}, but none called {wanted}.",
            "Give another data set, or another configuration of this one, as hf:NAME:CONFIGURATION.",
        )


def _write(
    parts: Mapping[str, Any], columns: tuple[str, str], datasets: Any, name: str, folder: Path
) -> None:
    """Write the images of all splits and the table of them into a folder.

    Raises:
        DataError: not one of them has a label.
    """
    image, label = columns
    written = 0
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split"])
        for split, rows in parts.items():
            kind = rows.features[label]
            (folder / split).mkdir()
            encoded = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
            for number, row in enumerate(encoded):
                value = row[label]
                if value is None or row[image] is None or value == UNLABELLED or not str(value).strip():
                    continue
                content = row[image]["bytes"] or Path(row[image]["path"]).read_bytes()
                path = Path(split) / f"{number:07}{_suffix(content)}"
                (folder / path).write_bytes(content)
                if isinstance(kind, datasets.ClassLabel):
                    value = kind.int2str(value)
                writer.writerow([path.as_posix(), value, split_called(split)])
                written += 1
    if not written:
        raise DataError(
            f"Data hf:{visible(name)} has no image with a label.",
            "Give a data set whose labels are not kept secret.",
        )


def _columns(features: Any, datasets: Any, name: str) -> tuple[str, str]:
    """The names of the columns with images and with labels.

    Raises:
        DataError: one is missing, or what is called a label is none.
    """
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [key for key in LABEL_COLUMNS if key in features]
    if not images or not (named or classes):
        raise DataError(
            f"Data hf:{visible(name)} has the columns {', '.join(map(visible, features))}, but one of images "
            "and one of class labels are needed.",
            "Give a data set for image classification.",
        )
    label = (named or classes)[0]
    kind = features[label]
    is_plain = isinstance(kind, datasets.Value) and kind.dtype.startswith(LABEL_KINDS)
    if not is_plain and not isinstance(kind, datasets.ClassLabel):
        found = kind.dtype if isinstance(kind, datasets.Value) else type(kind).__name__
        raise DataError(
            f"Data hf:{visible(name)} has the column {visible(label)} of the type {visible(found)}, but a "
            "label is a class label, text or a whole number.",
            "Give a data set for image classification, with one class for each image.",
        )
    return images[0], label


def _suffix(content: bytes) -> str:
    return next((suffix for start, suffix in SUFFIXES.items() if content.startswith(start)), ".img")
