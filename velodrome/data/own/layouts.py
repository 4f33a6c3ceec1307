"""The user's own data sets: a path becomes a list of images with their classes and splits.

The path is of a folder with class folders, of a table (CSV or Parquet) that names images, or of an archive of
either. Nothing is read here but names and tables.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from velodrome.config import NAMED_DATA
from velodrome.data.image_files import image_suffixes, reason
from velodrome.data.own.archives import is_archive, unpack
from velodrome.data.own.csv_files import has_image_columns, read_csv
from velodrome.data.own.folders import Gathered, Tree, check_all_have_classes, gather, held_out, read_tree
from velodrome.data.own.listing import (
    TABLE_SUFFIXES,
    Found,
    Listing,
    class_name,
    counted,
    kinds_of_files,
    make_listing,
    shown,
    some,
)
from velodrome.data.own.parquet_files import ParquetRow, has_paths, read_parquet
from velodrome.data.own.tables import Table, list_tables, note_of_other_splits, split_called
from velodrome.data.own.unpacking import left_out_of
from velodrome.errors import DataError, nearest, visible

KINDS = (
    "a folder with a folder of images for each class, a table (.csv, .tsv, .parquet), an archive of either "
    "(.zip, .tar, .tar.gz, .tar.bz2, .tar.xz, .tar.zst) or an .npz file"
)
LAYOUTS = (
    "Make a folder for each class, such as {0}/cat/1.png and {0}/dog/2.png, or such folders in {0}/train, "
    "{0}/val and {0}/test; or write a table {0}/labels.csv with the columns path and label."
)


def list_data(path: Path, workspace: Path, known: Sequence[str] | None = None) -> Listing:
    """The images of a data set, with their classes and splits; only names and tables are read.

    To judge a model that is there already, there need be no images to train on, nor two classes. Of all
    splits only test is listed then, else val, else all images, whatever was to be done with them.

    A folder holds a folder for each class, or such folders in `train`, `val` and `test`, or a table beside
    its images, or Parquet files that are called as splits are. A table has the columns path and label, and
    perhaps split. An archive holds one of these. A table beside class folders must not contradict them.

    Args:
        path: of a folder, a table (.csv, .tsv, .parquet) or an archive (.zip, .tar, .tar.gz, ...).
        workspace: a folder, made on demand. Archives, and images that a Parquet file holds, are unpacked
            below it, whole or not at all, and used again while the file is as it was.
        known: the classes of the model to judge; None for images to train on.

    Raises:
        DataError: there is no such data set, its layout is unclear, it is damaged or not safe to unpack, or
            has a class that the model does not know.
    """
    looks_like_a_name = path.parent == Path() and not path.suffix
    path = path.absolute()
    if _is_folder(path, NAMED_DATA if looks_like_a_name else ()):
        return _list_folder(path, path, workspace, known, only_inside=False)
    if is_archive(path):
        folder = unpack(path, workspace)
        listing = _list_folder(folder, path, workspace, known, only_inside=True)
        return replace(listing, notes=(*listing.notes, *_note_of_left_out(left_out_of(folder))))
    if path.suffix.lower() in TABLE_SUFFIXES:
        return list_tables(path, [Table(path, None)], path.parent, workspace, known, only_inside=False)
    raise _unknown_kind(path)


# What lies at a path.


def _is_folder(path: Path, names: Sequence[str]) -> bool:
    """Whether it is a folder, and not a file.

    Args:
        path: of what the user named.
        names: of data sets that may be meant instead.

    Raises:
        DataError: it is neither, or not there.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        close = nearest(path.name, names)
        raise DataError(
            f"Data {shown(path)} does not exist.",
            f"Did you mean {close}?" if close else f"Check the path, or give {', '.join(NAMED_DATA)}.",
        ) from error
    except (OSError, ValueError) as error:  # a ValueError where it holds a null character
        raise DataError(
            f"Data {shown(path)} cannot be looked at: {reason(error)}.", "Check the path and its permissions."
        ) from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise DataError(f"Data {shown(path)} is neither a folder nor a regular file.", f"Give {KINDS}.")
    return stat.S_ISDIR(mode)


def _unknown_kind(path: Path) -> DataError:
    if path.suffix.lower() in image_suffixes():
        return DataError(
            f"Data {shown(path)} is one image, but a data set holds many, of two classes or more.",
            f"Give {KINDS}.",
        )
    return DataError(f"Data {shown(path)} is a file of a kind that is not known.", f"Give {KINDS}.")


# Folders.


def _list_folder(
    folder: Path, named: Path, workspace: Path, known: Sequence[str] | None, *, only_inside: bool
) -> Listing:
    """The images in a folder.

    Args:
        folder: to look into.
        named: the path that the user gave: the folder, or the archive that was unpacked there.
        workspace: as in `list_data`.
        known: as in `list_data`.
        only_inside: refuse tables that name files elsewhere.
    """
    tree = read_tree(folder, named) if known is None else held_out(read_tree(folder, named, known))
    gathered = gather(folder, tree)
    are_sorted = bool(gathered.found) and not any(part.images for part in tree.splits.values())
    tables, others = ([], []) if are_sorted else _tables_of_images(named, tree)
    if tables:
        listing = list_tables(named, tables, folder, workspace, known, only_inside=only_inside)
        return replace(listing, notes=(*listing.notes, *note_of_other_splits(others)))
    if not gathered.found:
        raise _without_images(named, tree, gathered)
    check_all_have_classes(folder, named, tree)
    _check_tables_agree(folder, named, tree, gathered.found, workspace)
    notes = _notes(folder, tree, gathered)
    return make_listing(named, gathered.found, gathered.beside.failures, notes, known)


def _tables_of_images(named: Path, tree: Tree) -> tuple[list[Table], list[str]]:
    """The tables that say which images there are: the only one, or those that are called as splits are.

    Beside those, a hub exports other parts of a data set: their tables in Parquet, by name, come second.

    Raises:
        DataError: there are several, and it is unclear which of them to read.
    """
    fitting = {
        path: split_called(path.stem) or split
        for place, split in tree.places
        for path in place.tables
        if path.suffix.lower() == ".parquet" or has_image_columns(path)
    }
    if len(fitting) < 2:
        return [Table(path, None) for path in fitting], []
    exported = {path: split for path, split in fitting.items() if path.suffix.lower() == ".parquet"}
    others = [path for path, split in exported.items() if split is None and any(exported.values())]
    fitting = {path: split for path, split in fitting.items() if path not in others}
    if None in fitting.values():
        names = [path.name for path in fitting]
        raise DataError(
            f"Data {shown(named)} has {counted(len(names), 'table')} ({some(names)}), so it is unclear which "
            "of them says what the images are.",
            "Give the path of the right one, or name them as splits are: train, val and test.",
        )
    return [Table(path, split) for path, split in fitting.items()], [path.name for path in others]


def _check_tables_agree(
    folder: Path, named: Path, tree: Tree, found: Sequence[Found], workspace: Path
) -> None:
    """Refuse a table that puts images into other classes than the folders that they lie in.

    Raises:
        DataError: there is one, or one whose rows cannot be read.
    """
    for table in (table for place, _ in tree.places for table in place.tables):
        rows = list(_rows_with_paths(table, workspace))
        images = {os.path.normpath(image.path): image for image in found} if rows else {}
        pairs = [(images[path], label) for path, label in rows if path in images]
        at_odds = [(image, label) for image, label in pairs if not _is_one_class(image.label, label)]
        if at_odds:
            image, label = at_odds[0]
            name = shown(table.relative_to(folder))
            give = (
                f"Give --data {shown(table)}" if folder == named else f"Unpack it and give {name} as --data"
            )
            raise DataError(
                f"Data {shown(named)} has class folders and the table {name}, which contradict each other: "
                f"{visible(image.name)} lies in the folder {visible(image.label)}, but the table calls it "
                f"{visible(label)}. So it is with {len(at_odds):,} of {counted(len(pairs), 'image')}, and "
                "it is unclear which of them says the classes.",
                f"{give} to go by the table. Take the table away to go by the folders; if it is meant to "
                "correct these, keep it elsewhere and give it as --labels.",
            )


def _rows_with_paths(table: Path, workspace: Path) -> Iterator[tuple[str, str]]:
    """The files that a table names, and their labels; none where it is a table of something else.

    Raises:
        DataError: a row cannot be read.
    """
    is_parquet = table.suffix.lower() == ".parquet"
    if not (has_paths(table) if is_parquet else has_image_columns(table)):
        return
    try:
        rows = read_parquet(table, workspace) if is_parquet else read_csv(table)
    except DataError as error:
        remedy = f"{error.remedy} Or take the table away: the folders say the classes too."
        raise DataError(error.problem, remedy) from error
    for row in rows:
        written = (row.written if isinstance(row, ParquetRow) else row.path) or ""
        yield os.path.normpath(table.parent / written.strip().replace("\\", "/")), row.label


def _is_one_class(one: str, other: str) -> bool:
    return class_name(one).strip().lower() == class_name(other).strip().lower()


def _without_images(named: Path, tree: Tree, gathered: Gathered) -> DataError:
    """What to say of a folder in which no image has a class."""
    flat = [path for place, _ in tree.places for path in place.images]
    others = gathered.beside.left_out + _other_files(tree)
    tables = [path.name for place, _ in tree.places for path in place.tables]
    if gathered.beside.failures:
        problem = f"has no image that may be read: {gathered.beside.failures[0]}."
        return DataError(f"Data {shown(named)} {problem}", "Mend the permissions.")
    if flat:
        names = [path.relative_to(tree.entered[0].path).as_posix() for path in flat]
        problem = f"has {counted(len(flat), 'image')} ({some(names)}), but no folders that say their classes."
    elif tables:
        problem = f"has no images in class folders, and {some(tables)} lacks the columns path and label."
    elif others:
        problem = f"has no image in it, only other files: {kinds_of_files(others)}."
    else:
        problem = "has no image in it."
    return DataError(f"Data {shown(named)} {problem}", LAYOUTS.format(shown(named)))


def _notes(folder: Path, tree: Tree, gathered: Gathered) -> list[str]:
    """Sentences about what was left out."""
    names = {
        "Left out, as they lie beside the splits": tree.left_out,
        "Without an image, and so no classes": gathered.empty,
        "Tables are ignored where there are class folders": [
            path for place, _ in tree.places for path in place.tables
        ],
    }
    notes = [
        f"{what}: {some([path.relative_to(folder).as_posix() for path in paths])}."
        for what, paths in names.items()
        if paths
    ]
    return notes + _note_of_left_out(gathered.beside.left_out + _other_files(tree))


def _other_files(tree: Tree) -> Counter[str]:
    return sum((place.others for place, _ in tree.places), Counter[str]())


def _note_of_left_out(left_out: Mapping[str, int]) -> list[str]:
    return [f"Left out, as they are no images: {kinds_of_files(left_out)}."] if left_out else []
