"""What a data set of files holds, before any of them is read: images, their classes and their splits."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from velodrome.data.image_files import Failure
from velodrome.errors import DataError, did_you_mean, visible

# What a split may be called, in lower case.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    # As the package datasets takes them.
    "eval": "test",
    "evaluation": "test",
}
# What systems and programs leave in folders, in lower case. Hidden names begin with a dot.
SYSTEM_NAMES = frozenset(
    {
        "__macosx",
        "@eadir",
        "lost+found",
        "$recycle.bin",
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
    }
)
TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
MOST_SHOWN = 5


class Found(NamedTuple):
    """An image whose class is known by name, but not yet by number.

    Attributes:
        path: of the file with its bytes.
        name: relative to the data set's root, as the system gives it.
        label: the name of its class, as it was found.
        split: "train", "val" or "test"; None where the data set does not say.
    """

    path: Path
    name: str
    label: str
    split: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of a data set that is not read yet.

    Attributes:
        path: of the file with its bytes.
        name: relative to the data set's root, with slashes; valid UTF-8 and unique. Becomes one of
            `ImageSet.paths`.
        label: index into the listing's classes.
        split: "train", "val" or "test"; None where the data set does not say.
    """

    path: Path
    name: str
    label: int
    split: str | None


@dataclass(frozen=True)
class Listing:
    """The images of a data set of files.

    Attributes:
        root: the absolute path that the user named: of a folder, an archive or a table; or hf:NAME.
        classes: their names, in the order of the labels.
        entries: the images; either all of them have a split or none has.
        failures: files or folders that are missing or may not be looked into.
        notes: sentences that say what was left out, or taken for what.
    """

    root: Path
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def make_listing(
    root: Path,
    found: Sequence[Found],
    failures: Iterable[Failure],
    notes: Iterable[str],
    known: Sequence[str] | None,
) -> Listing:
    """Number the classes, settle the splits and make the names unique.

    Args:
        root: the path that the user named.
        found: at least one image; either all of them have a split or none has.
        failures: files or folders that are missing or may not be looked into.
        notes: sentences about what was left out.
        known: the classes of a model that is to be judged by these images; None where they are to train on.

    Raises:
        DataError: two classes have nearly the same name; or there is one only, or nothing to train on; or
            one is not among those that are known.
    """
    label_of = _numbered_classes(root, Counter(image.label for image in found))
    classes = class_order(set(label_of.values()))
    splits = {image.split for image in found}
    if known is None:
        check_classes(root, classes)
        split_of, more = settle_splits(root, splits)
    else:
        check_known(str(root), classes, known)
        split_of, more = judged_by(splits), []
    numbers = {name: number for number, name in enumerate(classes)}
    names = unique_names(image.name for image in found)
    entries = tuple(
        Entry(image.path, name, numbers[label_of[image.label]], split_of[image.split])
        for image, name in zip(found, names, strict=True)
    )
    return Listing(root, classes, entries, tuple(failures), (*notes, *more))


# Classes.


def class_name(text: str) -> str:
    """The name as a class is called: valid UTF-8 in normal form C, control characters escaped."""
    normal = unicodedata.normalize("NFC", as_text(text))
    return "".join(visible(char) if unicodedata.category(char) == "Cc" else char for char in normal)


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order of their labels: by number where all are whole numbers, else as text."""
    ordered = sorted(names)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in ordered):
        ordered.sort(key=int)
    return tuple(ordered)


def check_classes(root: Path, classes: Sequence[str]) -> None:
    """Refuse a data set with which nothing can be told apart.

    Raises:
        DataError: there is one class only.
    """
    if len(classes) < 2:
        raise DataError(
            f"Data {shown(root)} has one class only, {visible(classes[0])}, but there must be at least two "
            "to tell apart.",
            "Add images of another class.",
        )


def check_known(data: str, classes: Iterable[str], known: Sequence[str]) -> None:
    """Refuse images of a class that a model does not know.

    Args:
        data: what the data set is called.
        classes: of its images.
        known: the classes of the model.

    Raises:
        DataError: there is such a class.
    """
    unknown = next((name for name in classes if name not in known), None)
    if unknown is not None:
        raise DataError(
            f"Data {visible(data)} has the class '{visible(unknown)}', but the model knows no such class.",
            did_you_mean(visible(unknown), [visible(name) for name in known]),
        )


def _numbered_classes(root: Path, raw_names: Iterable[str]) -> dict[str, str]:
    """The class name for each name that was found.

    Raises:
        DataError: two of them differ in upper and lower case only, or not at all once they are shown.
    """
    names, alike = {raw: class_name(raw) for raw in sorted(raw_names)}, dict[str, str]()
    for raw, name in names.items():
        other = alike.setdefault(name.lower(), raw)
        if other == raw:
            continue
        if names[other] == name:
            which = f"{other!a} and {raw!a}, which are the same text written in two ways"
        else:
            which = f"{visible(other)} and {visible(raw)}, which differ in upper and lower case only"
        raise DataError(
            f"Data {shown(root)} has the classes {which}.",
            "Give both the same name, or names that differ in more.",
        )
    return names


# Splits.


def settle_splits(root: Path, splits: Iterable[str | None]) -> tuple[dict[str | None, str | None], list[str]]:
    """Which split each one is used as, and sentences about those that are used as another.

    Without "test", "val" is reported on. "train" alone says nothing, as if there were no splits.

    Raises:
        DataError: there is no "train".
    """
    there: set[str | None] = set(splits)
    used = {split: split for split in there}
    if None in there:
        return used, []
    if "train" not in there:
        raise DataError(
            f"Data {shown(root)} has images in {' and '.join(sorted(map(str, there)))}, but none in train, "
            "so there is nothing to learn from.",
            "Call the images to learn from train, or leave the split out: then some are held out to test on.",
        )
    if there == {"train"}:
        return {"train": None}, ["Only train is there, so images to test on will be held out from it."]
    if "test" not in there:
        return used | {"val": "test"}, ["There is no test split, so val is reported on in its place."]
    return used, []


def judged_by(splits: Iterable[str | None]) -> dict[str | None, str | None]:
    """The splits that a model is judged by, and what each is used as.

    That is "test", else "val" as if it were "test", else all that there is, as if there were no splits.
    """
    there = set(splits)
    held_out: str | None = next((split for split in ("test", "val") if split in there), None)
    return {held_out: "test"} if held_out else dict.fromkeys(there)


# Names.


def as_text(name: str) -> str:
    """The name as UTF-8 can hold it."""
    if name.isascii():
        return name
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "replace")


def unique_names(names: Iterable[str]) -> Iterator[str]:
    """The names as text, with a number behind those that would be the same as an earlier one."""
    taken = set[str]()
    for name in names:
        text, number = as_text(name), 1
        unique = text
        while unique in taken:
            number += 1
            unique = f"{text} ({number})"
        taken.add(unique)
        yield unique


def shown(path: Path | str) -> str:
    """The path as it may be printed."""
    return visible(str(path))


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names, as they may be printed, and how many more there are."""
    listed = ", ".join(visible(name) for name in names[:most])
    return f"{listed} and {len(names) - most:,} more" if len(names) > most else listed


def counted(count: int, thing: str) -> str:
    """The number with the thing in the singular or the plural: "1 image", "1,000 images"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to a system and not to the data."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def kinds_of_files(left_out: Mapping[str, int]) -> str:
    """The numbers of files by suffix, most frequent first: "12 .txt, 1 without a suffix"."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count:,} {visible(suffix) or 'without a suffix'}" for suffix, count in ordered[:MOST_SHOWN]]
    if len(ordered) > MOST_SHOWN:
        words.append(f"{sum(count for _, count in ordered[MOST_SHOWN:]):,} of other kinds")
    return ", ".join(words)
