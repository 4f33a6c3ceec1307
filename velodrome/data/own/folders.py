"""Folders of images: which of their folders are splits, which are classes, and what lies in them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from velodrome.data.own.listing import SPLIT_NAMES, Found, class_name, counted, judged_by, shown, some
from velodrome.data.own.walking import Beside, Inside, holds_an_image, identities, look_into, walk
from velodrome.errors import DataError, visible


@dataclass(frozen=True)
class Tree:
    """A data set's folders.

    Attributes:
        entered: the folder that the user named, then the only folder in it, and so on to where the data are.
        splits: what lies in the folder of each split; None: in the last folder entered, where there are no
            splits.
        left_out: folders beside those of the splits.
    """

    entered: tuple[Inside, ...]
    splits: dict[str | None, Inside]
    left_out: tuple[Path, ...]

    @property
    def places(self) -> list[tuple[Inside, str | None]]:
        """The folders in which a table may lie, each with the split that this says."""
        parts = [(part, split) for split, part in self.splits.items() if split is not None]
        return [*((part, None) for part in self.entered), *parts]


@dataclass(frozen=True)
class Gathered:
    """What the class folders of a data set hold.

    Attributes:
        found: the images, in sorted order.
        empty: class folders without an image.
        beside: what else is in them.
    """

    found: list[Found]
    empty: list[Path]
    beside: Beside


def read_tree(root: Path, named: Path, known: Collection[str] = ()) -> Tree:
    """Find out which folders below `root` are splits, and where the class folders lie.

    A folder that holds one folder and no image is entered, as archives often hold the data set's own folder.

    Args:
        root: the folder to look into.
        named: the path that errors name: the folder, or the archive that it comes from.
        known: names that are those of classes, even where a folder of images is called as a split is.

    Raises:
        DataError: a folder may not be looked into, or it is unclear which folders are splits.
    """
    entered = [look_into(root)]
    seen = identities([root])
    while (inner := _only_folder(entered[-1], known)) is not None and not identities([inner]) <= seen:
        entered.append(look_into(inner))
        seen |= identities([inner])
    last = entered[-1]
    splits = _split_folders(last, named, known)
    if not splits:
        return Tree(tuple(entered), {None: last}, ())
    parts: dict[str | None, Inside] = {split: look_into(path) for split, path in splits.items()}
    left_out = tuple(path for path in last.folders if path not in splits.values())
    rivals = [path for path in left_out if holds_an_image(path)]
    if rivals and set(parts) == {"train"} and not parts["train"].folders:  # a class of trains
        return Tree(tuple(entered), {None: last}, ())
    if rivals and (set(parts) == {"train"} or "train" not in parts):
        raise _unclear(named, [path.name for path in splits.values()], [path.name for path in rivals])
    return Tree(tuple(entered), parts, left_out)


def held_out(tree: Tree) -> Tree:
    """The tree with those splits only that a model is judged by; a split without an image is none."""
    used = judged_by(split for split, part in tree.splits.items() if holds_an_image(part.path))
    chosen = {split: part for split, part in tree.splits.items() if split in used}
    return replace(tree, splits=chosen or tree.splits)


def gather(root: Path, tree: Tree) -> Gathered:
    """The images in all class folders, in sorted order.

    A link to a folder is followed, but none to a split or a class, so that no class gets the images of
    another and nothing goes in circles.
    """
    result = Gathered([], [], Beside())
    folders = [(folder, split) for split, part in tree.splits.items() for folder in part.folders]
    structure = [part.path for part in (*tree.entered, *tree.splits.values())]
    known = identities([*structure, *(folder for folder, _ in folders)])
    start = len(os.path.join(root, ""))  # noqa: PTH118  of text: there may be a million of them
    for folder, split in folders:
        before, label = len(result.found) + len(result.beside.failures), folder.name
        for path in walk(folder, known, result.beside):
            result.found.append(Found(Path(path), path[start:].replace(os.sep, "/"), label, split))
        if len(result.found) + len(result.beside.failures) == before:
            result.empty.append(folder)
    return result


def check_all_have_classes(root: Path, named: Path, tree: Tree) -> None:
    """Refuse images that lie beside the class folders.

    Raises:
        DataError: there are some.
    """
    for part in tree.splits.values():
        if part.images:
            names = [path.relative_to(root).as_posix() for path in part.images]
            folder = part.folders[0] if part.folders else part.path / "cat"
            example = (folder / part.images[0].name).relative_to(root).as_posix()
            raise DataError(
                f"Data {shown(named)} has {counted(len(names), 'image')} beside the class folders, and so "
                f"without a class: {some(names)}.",
                f"Put each into the folder of its class, such as {shown(example)}, or elsewhere.",
            )


# Layout.


def _only_folder(inside: Inside, known: Collection[str]) -> Path | None:
    """The folder to go on in; None where this is the one with the data.

    The only folder is not entered where it holds images, as then it is a class; nor where it is called test
    or val, as then train is missing; nor where its name is known as that of a class, unless so are those of
    folders in it.
    """
    if len(inside.folders) != 1 or inside.images:
        return None
    only = inside.folders[0]
    if SPLIT_NAMES.get(only.name.lower(), "train") != "train":
        return None
    within = look_into(only)
    is_class = bool(within.images) and not within.folders
    if class_name(only.name) in known:
        is_class = not any(class_name(folder.name) in known for folder in within.folders)
    # Where there is a table, it may be that which says what the classes are.
    return None if is_class and not inside.tables and not within.tables else only


def _split_folders(inside: Inside, named: Path, known: Collection[str]) -> dict[str, Path]:
    """The folders that are called as splits are, but for those of images of a known class.

    Raises:
        DataError: two of them are the same split.
    """
    splits: dict[str, Path] = {}
    for folder in inside.folders:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is not None and class_name(folder.name) in known and look_into(folder).images:
            continue
        if split in splits:
            raise DataError(
                f"Data {shown(named)} has the folders {visible(splits[split].name)} and "
                f"{visible(folder.name)}, which are both names of one split, {split}.",
                "Put the images of both into one of them, or move one elsewhere.",
            )
        if split is not None:
            splits[split] = folder
    return splits


def _unclear(named: Path, splits: Sequence[str], others: Sequence[str]) -> DataError:
    names = " and ".join(visible(name) for name in splits)
    return DataError(
        f"Data {shown(named)} has the folder {names} beside others ({some(others)}), so it is unclear what "
        "is a split and what a class.",
        "If it is a split, put the class folders to learn from into a folder train, and move all others "
        f"away. If it is a class, give it another name, such as {visible(splits[0])}_images.",
    )
