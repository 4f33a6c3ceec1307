"""Tables in CSV that name images and their labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from velodrome.data.image_files import reason
from velodrome.data.own.listing import counted, shown, some
from velodrome.errors import DataError

# What the columns may be called, the best name first.
PATH_NAMES = ("path", "file", "filename", "file_name", "image")
LABEL_NAMES = ("label", "class")
SPLIT_NAMES = ("split",)
SEPARATORS = ",;\t"
HEADER = "Name the columns in the first line, such as path,label or path,label,split."
# A longer table is no table of images: this is that of ten million.
MOST_BYTES = 2**30
MOST_HEADER_BYTES = 2**16


class Cells(NamedTuple):
    """A row of a table of images.

    Attributes:
        line: the number of the row's last line in the file, from 1.
        path: as it is written.
        label: without spaces around it; not empty.
        split: without spaces around it; empty where there is no such column or nothing in it.
    """

    line: int
    path: str
    label: str
    split: str


class _Columns(NamedTuple):
    """Which columns are read; `width` is how many there are."""

    path: int
    label: int
    split: int | None
    width: int


def read_csv(path: Path) -> list[Cells]:
    """The rows of a table, in their order.

    The table is UTF-8, with or without a byte order mark. Its columns are separated by commas, semicolons or
    tabs, and named in the first line: path (or file, filename, file_name, image), label (or class), perhaps
    split, and any others.

    Args:
        path: of the table.

    Raises:
        DataError: it cannot be read or is no such table; names the line.
    """
    text = _read_text(path)
    separator, columns = _find_columns(path, _first_line(text))
    return list(_rows(path, text, separator, columns))


def has_image_columns(path: Path) -> bool:
    """Whether the first line of a file names the columns of a table of images."""
    try:
        with path.open("rb") as file:
            start = file.readline(MOST_HEADER_BYTES).decode("utf-8-sig")
        _find_columns(path, _first_line(start))
    except (OSError, UnicodeDecodeError, DataError):
        return False
    return True


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].split("\r", 1)[0]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"Table {shown(path)} cannot be read: {reason(error)}.", "Check the path and its permissions."
        ) from error
    if len(content) > MOST_BYTES:
        raise DataError(
            f"Table {shown(path)} is larger than 1 GiB, the most that is read.",
            "Split it, or save it as Parquet.",
        )
    if not content.strip():
        raise DataError(f"Table {shown(path)} is empty.", HEADER)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "UTF-16" if is_utf_16 else f"another, as line {_line_at(content, error.start)} shows"
        raise DataError(
            f"Table {shown(path)} must be text in the encoding UTF-8, but is in {found}.",
            'Save it as UTF-8; in Excel, the kind of file is "CSV UTF-8".',
        ) from error
    if "\0" in text:
        line = _line_at(content, content.index(b"\0"))
        raise DataError(
            f"Table {shown(path)}, line {line}, holds a null character, which no text does.",
            "Save it as text in CSV, with the encoding UTF-8.",
        )
    return text


def _line_at(content: bytes, place: int) -> int:
    return len(content[: place + 1].splitlines())


def _find_columns(path: Path, first_line: str) -> tuple[str, _Columns]:
    """The separator with which the first line names the columns, and where they are.

    Raises:
        DataError: with none of the separators it does.
    """
    headers = {separator: _split_header(first_line, separator) for separator in SEPARATORS}
    for separator, header in headers.items():
        places = [_place_of(names, header) for names in (PATH_NAMES, LABEL_NAMES, SPLIT_NAMES)]
        if places[0] is not None and places[1] is not None:
            _check_named_once(path, header, [place for place in places if place is not None])
            return separator, _Columns(places[0], places[1], places[2], len(header))
    header = max(headers.values(), key=len)
    wanted = {"path": PATH_NAMES, "label": LABEL_NAMES}
    missing = [word for word, names in wanted.items() if _place_of(names, header) is None]
    raise DataError(
        f"Table {shown(path)} has no column {' and no column '.join(missing)}; its first line reads "
        f"{some(header, most=8) or 'nothing'}.",
        HEADER,
    )


def _split_header(line: str, separator: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return []
    return [name.strip().lower() for name in row]


def _place_of(names: Sequence[str], header: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _check_named_once(path: Path, header: Sequence[str], places: Sequence[int]) -> None:
    for place in places:
        if header.count(header[place]) > 1:
            raise DataError(
                f"Table {shown(path)} has {header.count(header[place])} columns called {header[place]}.",
                "Give the others another name.",
            )


def _rows(path: Path, text: str, separator: str, columns: _Columns) -> Iterator[Cells]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        next(reader)
        for row in reader:
            if row:  # not an empty line
                yield _cells(path, reader.line_num, row, columns)
    except csv.Error as error:
        raise DataError(
            f"Table {shown(path)}, line {reader.line_num}, is not proper CSV: {reason(error)}.",
            "Put a cell in quotes where it holds a separator, a quote or a line break, and double each quote "
            'in it: "a ""b"".png".',
        ) from error


def _cells(path: Path, line: int, row: Sequence[str], columns: _Columns) -> Cells:
    where = f"Table {shown(path)}, line {line},"
    if len(row) != columns.width:
        raise DataError(
            f"{where} has {counted(len(row), 'cell')}, but the first line names {columns.width} columns.",
            "Put a name that holds a separator in quotes, and leave no cell out.",
        )
    split = "" if columns.split is None else row[columns.split].strip()
    cells = Cells(line, row[columns.path], row[columns.label].strip(), split)
    for name, cell in (("path", cells.path.strip()), ("label", cells.label)):
        if not cell:
            raise DataError(f"{where} has no {name}.", "Write one, or remove the line.")
    return cells
