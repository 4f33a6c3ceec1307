"""What lies in folders: directly, or anywhere below."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from velodrome.data.image_files import Failure, image_suffixes, reason
from velodrome.data.own.listing import TABLE_SUFFIXES, is_ignored, shown
from velodrome.errors import DataError

# The device and the number of a folder on it: the same by whatever link it was reached.
Identity = tuple[int, int]


@dataclass(frozen=True)
class Inside:
    """What lies directly in a folder; hidden things and those of the system are left out.

    Attributes:
        path: of the folder.
        folders: in it, sorted by name.
        images: files with the suffix of an image, sorted by name.
        tables: files with the suffix of a table, sorted by name.
        others: how many other files there are, by suffix.
    """

    path: Path
    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    tables: tuple[Path, ...]
    others: Counter[str]


@dataclass
class Beside:
    """What was met on a walk, beside images.

    Attributes:
        failures: folders that may not be looked into.
        left_out: how many files that are no images there are, by suffix.
    """

    failures: list[Failure] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def look_into(folder: Path) -> Inside:
    """What lies directly in a folder.

    Raises:
        DataError: it may not be looked into.
    """
    folders, images, tables, others = [], [], [], Counter[str]()
    suffixes = image_suffixes()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = _suffix(entry.name)
                if is_ignored(entry.name):
                    continue
                if _is_folder(entry):
                    folders.append(folder / entry.name)
                elif suffix in suffixes:
                    images.append(folder / entry.name)
                elif suffix in TABLE_SUFFIXES and entry.is_file():  # a pipe would be waited for, for ever
                    tables.append(folder / entry.name)
                else:
                    others[suffix] += 1
    except OSError as error:
        raise DataError(
            f"Folder {shown(folder)} cannot be looked into: {reason(error)}.", "Mend its permissions."
        ) from error
    return Inside(folder, _sorted(folders), _sorted(images), _sorted(tables), others)


def holds_an_image(folder: Path) -> bool:
    """Whether there is an image in a folder or below it."""
    return any(True for _ in walk(folder, frozenset(), Beside()))


def walk(folder: Path, known: frozenset[Identity], beside: Beside) -> Iterator[str]:
    """The images in a folder and below it, in sorted order, into its folders and through links.

    Args:
        folder: to begin with.
        known: folders that are not entered from here.
        beside: receives what is no image.
    """
    suffixes = image_suffixes()
    entered = set(known - identities([folder]))
    todo = [(str(folder), True)]  # a list of our own, as folders may be nested deeper than calls
    while todo:
        path, is_folder = todo.pop()
        if not is_folder:
            yield path
            continue
        try:
            inside = _entered_once(path, entered)
        except OSError as error:
            beside.failures.append(Failure(Path(path), reason(error)))
            continue
        for name, inner, is_inner_folder in inside:
            if is_inner_folder or _suffix(name) in suffixes:
                todo.append((inner, is_inner_folder))
            else:
                beside.left_out[_suffix(name)] += 1


def identities(folders: Iterable[Path]) -> frozenset[Identity]:
    """Of each folder that can be looked at, by whatever link it is reached."""
    found = set()
    for folder in folders:
        try:
            status = folder.stat()
        except OSError:  # it will be met again, and said then
            continue
        found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def _entered_once(path: str, entered: set[Identity]) -> list[tuple[str, str, bool]]:
    """Name, path and whether it is a folder, of all in a folder, the last first; nothing the second time."""
    status = os.stat(path)  # noqa: PTH116  of text: there may be a million of them
    if (status.st_dev, status.st_ino) in entered:
        return []
    entered.add((status.st_dev, status.st_ino))
    with os.scandir(path) as entries:
        inside = [(entry.name, entry.path, _is_folder(entry)) for entry in entries]
    return sorted((item for item in inside if not is_ignored(item[0])), reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  of text: there may be a million of them


def _sorted(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(sorted(paths, key=lambda path: path.name))
