"""Tables that say which images there are, of which classes and in which splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from velodrome.data.image_files import Failure, reason
from velodrome.data.own.csv_files import read_csv
from velodrome.data.own.listing import (
    SPLIT_NAMES,
    Found,
    Listing,
    counted,
    judged_by,
    make_listing,
    shown,
    some,
)
from velodrome.data.own.parquet_files import read_parquet
from velodrome.errors import DataError, did_you_mean, visible


class Table(NamedTuple):
    """A table, and the split of its images where its name says so."""

    path: Path
    split: str | None


class _Row(NamedTuple):
    """An image as a table names it; `place` is where it does so, such as "line 3"."""

    table: Path
    place: str
    path: Path
    name: str
    label: str
    split: str | None
    missing: str | None


def list_tables(
    root: Path,
    tables: Sequence[Table],
    base: Path,
    workspace: Path,
    known: Sequence[str] | None,
    *,
    only_inside: bool,
) -> Listing:
    """The images that tables name, in their order.

    Args:
        root: the path that the user named, of a table, a folder or an archive; or hf:NAME.
        tables: at least one. Paths in a table are relative to its folder, or absolute.
        base: a folder; images below it are named relative to it.
        workspace: images that a table holds are unpacked below this folder.
        known: as in `make_listing`; rows of other splits than those that a model is judged by do not matter.
        only_inside: refuse tables that name files which are not below `base`, because a stranger wrote them.

    Raises:
        DataError: a table cannot be read, lacks a column, contradicts itself or names no image that is there.
    """
    rows: dict[str, _Row] = {}
    repeated = 0
    for table in tables:
        for row in _rows_of(table, base, workspace, only_inside=only_inside):
            other = rows.setdefault(row.name, row)
            if other is not row:
                _check_same(row, other)
                repeated += 1
    _check_splits(rows.values())
    used = {row.split for row in rows.values()}
    if known is not None:
        used = set(judged_by(used))
    chosen = [row for row in rows.values() if row.split in used]
    found = [Found(row.path, row.name, row.label, row.split) for row in chosen if not row.missing]
    failures = [Failure(row.path, row.missing) for row in chosen if row.missing]
    if not found:
        raise _without_images(root, tables, failures)
    notes = [f"Named more than once, and taken once: {counted(repeated, 'image')}."] if repeated else []
    return make_listing(root, found, failures, notes, known)


def _rows_of(table: Table, base: Path, workspace: Path, *, only_inside: bool) -> Iterator[_Row]:
    path = table.path
    if path.suffix.lower() == ".parquet":
        rows = [(f"row {row.number}", *row[1:]) for row in read_parquet(path, workspace)]
    else:
        rows = [(f"line {row.line}", row.path, None, row.label, row.split) for row in read_csv(path)]
    for place, written, unpacked, label, split_text in rows:
        split = _split(path, place, split_text, table.split)
        if unpacked is not None:
            name = f"{_name_of(path.with_suffix(''), base)}/{unpacked.name}"
            yield _Row(path, place, unpacked, name, label, split, None)
        elif written is None:
            name = f"{_name_of(path, base)}, {place}"
            yield _Row(path, place, path, name, label, split, f"{place} holds no image")
        else:
            image = _path_of(path.parent, written)
            if only_inside:
                _check_is_below(image, base, path, place)
            yield _Row(path, place, image, _name_of(image, base), label, split, _why_missing(image))


def _split(table: Path, place: str, written: str, of_table: str | None) -> str | None:
    """The split of a row: as it is written, else that of the table."""
    if not written:
        return of_table
    split = SPLIT_NAMES.get(written.lower())
    if split is None:
        raise DataError(
            f"Table {shown(table)}, {place}, has the split {visible(written)}, but it must be train, val or "
            "test.",
            did_you_mean(written.lower(), ["train", "val", "test"]),
        )
    return split


def split_called(name: str) -> str | None:
    """The split that a name begins with, such as train-00000-of-00002 or dev_more; None where with none."""
    return SPLIT_NAMES.get(re.split(r"[-_.]", name.lower(), maxsplit=1)[0])


def note_of_other_splits(names: Sequence[str]) -> list[str]:
    """A sentence about what is beside the splits; none where nothing is."""
    return [f"Left out, as they are called neither train, val nor test: {some(names)}."] if names else []


# Paths.


def _path_of(folder: Path, written: str) -> Path:
    """The file that a table means: its path as it is written, or else as it is written on another system."""
    path = folder / written
    if os.path.lexists(path):
        return path
    others = (written.strip(), written.strip().replace("\\", "/"))
    return next((folder / other for other in others if os.path.lexists(folder / other)), path)


def _name_of(path: Path, base: Path) -> str:
    """The path relative to `base` where it lies below, else the whole of it; with slashes."""
    normal = os.path.normpath(path)
    if _is_below(path, base):
        normal = os.path.relpath(normal, base)
    return normal.replace(os.sep, "/")


def _is_below(path: Path, base: Path) -> bool:
    start = os.path.join(os.path.normpath(base), "")  # noqa: PTH118  of text, as for normpath
    return os.path.normpath(path).startswith(start)


def _check_is_below(path: Path, base: Path, table: Path, place: str) -> None:
    if not _is_below(path, base):
        raise DataError(
            f"Table {shown(table)}, {place}, names {shown(path)}, which lies outside the data set.",
            "Nothing of it was read. Name images by paths that are relative to the folder of the table.",
        )


def _why_missing(path: Path) -> str | None:
    """Why there is no file; None where there is."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        return reason(error)
    return None


# Checks.


def _check_same(row: _Row, other: _Row) -> None:
    """Refuse two rows of one image that say different things about it."""
    for what, one, two in (("classes", other.label, row.label), ("splits", other.split, row.split)):
        if one != two:
            places = f"{other.place} and {row.place}"
            raise DataError(
                f"Table {shown(row.table)} gives {visible(row.name)} two {what}: {visible(str(one))} and "
                f"{visible(str(two))} ({places}).",
                "Remove one of the two rows.",
            )


def _check_splits(rows: Iterable[_Row]) -> None:
    """Refuse rows without a split where others have one."""
    with_split = without = None
    for row in rows:
        if row.split is None:
            without = without or row
        else:
            with_split = with_split or row
    if with_split is not None and without is not None:
        raise DataError(
            f"Table {shown(without.table)}, {without.place}, has no split, but {with_split.place} has.",
            "Write train, val or test in every row, or remove the column split.",
        )


def _without_images(root: Path, tables: Sequence[Table], failures: Sequence[Failure]) -> DataError:
    names = some([table.path.name for table in tables])
    if not failures:
        return DataError(
            f"Data {shown(root)} names no image: {names} has no rows.", "Add a row for each image."
        )
    return DataError(
        f"Data {shown(root)} names {counted(len(failures), 'image')}, but none of them is there: "
        f"{failures[0]}.",
        "Paths in a table are relative to the folder that it lies in: move the table, or mend the paths.",
    )
