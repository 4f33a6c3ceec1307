"""Image data sets of the Hugging Face hub, and whatever else the package `datasets` loads."""

from __future__ import annotations

import csv
import shutil
import uuid
from hashlib import blake2b
from pathlib import Path
from typing import Any

from velodrome.errors import DataError, visible

# In this order; else the first column of class labels.
LABEL_COLUMNS = ("label", "labels", "fine_label")
# How the hub marks the images of a test set whose labels are kept secret.
UNLABELLED = -1
TABLE = "table.csv"
# By the first bytes of a file, what Pillow goes by; names are for people.
SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}


def export(name: str, workspace: Path) -> Path:
    """Write the images of a data set as files with a table of their labels and splits, once.

    Args:
        name: as `datasets.load_dataset` takes it, a local folder too; with `:CONFIGURATION` where there are
            several.
        workspace: receives a folder, whole or not at all.

    Returns:
        The path of the table.

    Raises:
        DataError: `datasets` is not installed, or there is no such data set, or it has no images or labels.
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
        loaded = datasets.load_dataset(place, configuration or None)
    except Exception as error:  # of the network, of files, of the hub: there is no end to them
        reason = visible((str(error) or type(error).__name__).strip().splitlines()[0])
        raise DataError(
            f"Data hf:{visible(name)} cannot be loaded: {reason}.",
            "Check the name at the hub, and the connection.",
        ) from error
    prints = "".join(str(part._fingerprint) for part in loaded.values())
    goal = workspace / f"hub-{blake2b(prints.encode(), digest_size=8).hexdigest()}"
    if not goal.is_dir():
        draft = workspace / f".{goal.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            draft.mkdir(parents=True)
            _write(loaded, datasets, name, draft)
            draft.rename(goal)
        except OSError as error:
            raise DataError(
                f"Data hf:{visible(name)} cannot be written to {workspace}: {error.strerror or error}.",
                "Free some space, or set XDG_CACHE_HOME to another folder.",
            ) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return goal / TABLE


def _write(loaded: Any, datasets: Any, name: str, folder: Path) -> None:
    first = next(iter(loaded.values()))
    image, label = _columns(first.features, datasets, name)
    kind = first.features[label]
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "label", "split"])
        for split, rows in loaded.items():
            (folder / split).mkdir()
            encoded = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
            for number, row in enumerate(encoded):
                value = row[label]
                if value is None or row[image] is None or value == UNLABELLED:
                    continue
                content = row[image]["bytes"] or Path(row[image]["path"]).read_bytes()
                path = Path(split) / f"{number:07}{_suffix(content)}"
                (folder / path).write_bytes(content)
                if isinstance(kind, datasets.ClassLabel):
                    value = kind.int2str(value)
                writer.writerow([path.as_posix(), value, _split_of(split)])


def _columns(features: Any, datasets: Any, name: str) -> tuple[str, str]:
    """The names of the columns with images and with labels."""
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    named = [key for key in LABEL_COLUMNS if key in features]
    if not images or not (named or classes):
        raise DataError(
            f"Data hf:{visible(name)} has the columns {', '.join(map(visible, features))}, but one of images "
            "and one of class labels are needed.",
            "Give a data set for image classification.",
        )
    return images[0], (named or classes)[0]


def _split_of(name: str) -> str:
    """Hub data sets have train, test and validation, and a few other names that are trained on."""
    return {"validation": "val", "valid": "val", "dev": "val"}.get(name, name if name == "test" else "train")


def _suffix(content: bytes) -> str:
    return next((suffix for start, suffix in SUFFIXES.items() if content.startswith(start)), ".img")
