"""Tables in Parquet that name images, or hold them as data hubs export them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from velodrome.data.own.csv_files import LABEL_NAMES, PATH_NAMES, SPLIT_NAMES
from velodrome.data.own.damage import damage_named
from velodrome.data.own.listing import shown, some
from velodrome.data.own.unpacking import check_room, most_bytes, unpack_now, unpacked_before
from velodrome.errors import DataError, visible

KIND = "Table"
IMAGE_NAMES = ("image", "img")
TEXTS = ("string", "large_string", "dictionary<values=string", "dictionary<values=large_string")
# Rows that are in memory at once, without and with their images.
ROWS_AT_ONCE = 4096
IMAGES_AT_ONCE = 64
# How files of each kind begin, and their suffix. It is for people: readers look at the bytes.
SIGNATURES = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


class ParquetRow(NamedTuple):
    """A row of a table of images.

    Attributes:
        number: of the row, from 1.
        written: the path of the image as it is written; None where the table holds the image, or nothing.
        unpacked: the file with the image that the table holds; None where it does not.
        label: the name of the class; not empty.
        split: without spaces around it; empty where there is no such column or nothing in it.
    """

    number: int
    written: str | None
    unpacked: Path | None
    label: str
    split: str


class _Columns(NamedTuple):
    """The columns that are read.

    Attributes:
        path: with paths; None where the table holds the images.
        image: with encoded images, as bytes; empty where there is `path`. "image.bytes" is a part of records.
        image_path: with paths of images that are not in `image`; None where there is none.
        label: with the classes.
        split: with the splits; None where there is none.
    """

    path: str | None
    image: str
    image_path: str | None
    label: str
    split: str | None


def read_parquet(path: Path, workspace: Path) -> list[ParquetRow]:
    """The rows of a table, in their order.

    The columns are path, label and perhaps split, as in CSV; or instead of path, image (or img) with encoded
    images, as bytes or as records of bytes and path. A label is text or a whole number, which stands for the
    class name that the Hugging Face metadata of the table give it.

    Args:
        path: of the table.
        workspace: images in the table are unpacked below this folder, or were before.

    Raises:
        DataError: it is damaged or no such table, a label is missing, or pyarrow is not installed.
    """
    parquet = _pyarrow(path)
    with damage_named(path, KIND), parquet.ParquetFile(path) as file:
        columns = _find_columns(path, file.schema_arrow)
        labels = _labels(path, file, columns)
        splits = [""] * len(labels) if columns.split is None else _texts(file, columns.split)
        if columns.path is not None:
            written, unpacked = _texts(file, columns.path), dict[int, Path]()
        else:
            written = _texts(file, columns.image_path) if columns.image_path else [""] * len(labels)
            unpacked = _unpacked_images(path, file, columns.image, workspace)
    return [
        ParquetRow(number, text or None, unpacked.get(number), label, split.strip())
        for number, (text, label, split) in enumerate(zip(written, labels, splits, strict=True), 1)
    ]


def has_paths(path: Path) -> bool:
    """Whether a table names images by their paths; where it holds them, or cannot be read, it does not."""
    try:
        with damage_named(path, KIND), _pyarrow(path).ParquetFile(path) as file:
            return _find_columns(path, file.schema_arrow).path is not None
    except DataError:
        return False


def _pyarrow(path: Path) -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f"Table {shown(path)} is in Parquet, which is read with the package pyarrow.",
            "Install it with pip install pyarrow, or save the table as CSV.",
        ) from error


# Columns.


def _find_columns(path: Path, schema: Any) -> _Columns:
    kinds = {field.name: str(field.type) for field in schema}
    image = next((name for name in IMAGE_NAMES if _holds_images(kinds.get(name, ""))), None)
    texts = [name for name in PATH_NAMES if kinds.get(name, "").startswith(TEXTS)]
    label = next((name for name in (*LABEL_NAMES, "labels") if name in kinds), None)
    if label is None or (image is None and not texts):
        missing = "label" if label is None else "path with text or image with images"
        columns = [f"{name} ({kind})" for name, kind in kinds.items()]
        raise DataError(
            f"Table {shown(path)} has no column {missing}; its columns are {some(columns, 8) or 'none'}.",
            "Name the columns path and label, or image and label.",
        )
    split = next((name for name in SPLIT_NAMES if name in kinds), None)
    if image is None:
        return _Columns(texts[0], "", None, label, split)
    is_record = kinds[image].startswith("struct<")
    has_path = is_record and "path: string" in kinds[image]
    return _Columns(
        None, f"{image}.bytes" if is_record else image, f"{image}.path" if has_path else None, label, split
    )


def _holds_images(kind: str) -> bool:
    return kind in {"binary", "large_binary"} or (kind.startswith("struct<") and "bytes: " in kind)


def _values(file: Any, column: str, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[Any]:
    """The values of a column, or of a part of its records, None where there is none."""
    name, _, part = column.partition(".")
    for batch in file.iter_batches(batch_size=rows_at_once, columns=[column]):
        for row in batch.to_pylist():
            yield (row[name] or {}).get(part) if part else row[name]


def _texts(file: Any, column: str) -> list[str]:
    """The values of a column as text; empty where there is none."""
    return ["" if value is None else str(value) for value in _values(file, column)]


def _labels(path: Path, file: Any, columns: _Columns) -> list[str]:
    """The name of the class in each row."""
    names = _class_names(file.schema_arrow.metadata or {}, columns.label)
    labels = []
    for number, value in enumerate(_values(file, columns.label), 1):
        where = f"Table {shown(path)}, row {number},"
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{where} has no label.", "Write one, or remove the row.")
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise DataError(
                f"{where} has the label {visible(str(value)[:40])}, but a label is text or a whole number.",
                "Write the name of the class there.",
            )
        if names and isinstance(value, int) and not 0 <= value < len(names):
            raise DataError(
                f"{where} has the label {value}, but labels are from 0 to {len(names) - 1}; -1 often says "
                "that the label is kept secret.",
                "Remove such rows, or the file with them.",
            )
        labels.append(names[value] if names and isinstance(value, int) else str(value).strip())
    return labels


def _class_names(metadata: dict[bytes, bytes], column: str) -> list[str]:
    """The names that whole numbers stand for; empty where the table does not say."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    is_fine = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    return names if is_fine else []


# Images.


def _unpacked_images(path: Path, table: Any, column: str, workspace: Path) -> dict[int, Path]:
    """Number of a row -> the file to which its image is unpacked, now or before."""
    folder = unpacked_before(path, workspace)
    if folder is None:
        groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
        check_room(path, workspace, KIND, sum(group.total_byte_size for group in groups), path.stat().st_size)
        folder = unpack_now(path, workspace, lambda goal: _write_images(path, table, column, goal))
    return {int(file.stem): file for file in folder.iterdir() if not file.name.startswith(".")}


def _write_images(path: Path, file: Any, column: str, folder: Path) -> dict[str, int]:
    written_bytes, packed_bytes = 0, path.stat().st_size
    for number, content in _images(path, file, column):
        written_bytes += len(content)
        if written_bytes > most_bytes(packed_bytes):  # the table said less
            check_room(path, folder, KIND, written_bytes, packed_bytes)
        suffix = next((suffix for start, suffix in SIGNATURES.items() if content.startswith(start)), ".img")
        (folder / f"{number:07d}{suffix}").write_bytes(content)
    return {}


def _images(path: Path, file: Any, column: str) -> Iterator[tuple[int, bytes]]:
    with damage_named(path, KIND):
        for number, content in enumerate(_values(file, column, IMAGES_AT_ONCE), 1):
            if content:
                yield number, content
