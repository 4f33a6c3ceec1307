"""Archives of a data set, unpacked with suspicion.

Of an archive only image files and tables are taken, and their places are ours to say. All names are checked
before anything is written; what would lie elsewhere, or is no plain file, is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from velodrome.data.image_files import image_suffixes
from velodrome.data.own.archive_files import KIND, Member, Opened, opened_archive, pieces
from velodrome.data.own.damage import damage_named
from velodrome.data.own.listing import TABLE_SUFFIXES, is_ignored, kinds_of_files, shown
from velodrome.data.own.unpacking import check_room, unpack_now, unpacked_before
from velodrome.errors import DataError, visible

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst")
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
MOST_MEMBERS = 1_000_000
# Deeper folders would make functions call one another too deep, and paths too long.
MOST_FOLDERS = 50
BY_HAND = "Nothing was unpacked. If you trust the archive, unpack it by hand and give the folder."

# The folders that a file lies in, and its name.
Parts = tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What will be unpacked.

    Attributes:
        members: place below the folder -> the member whose bytes go there.
        left_out: how many other files there are, by suffix.
    """

    members: dict[Parts, Member]
    left_out: dict[str, int]


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive that can be unpacked."""
    return path.name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES + COMPRESSED_TAR_SUFFIXES)


def unpack(archive: Path, workspace: Path) -> Path:
    """The folder with the images and tables of an archive, below `workspace`; unpacked if it is not there.

    Nothing is written before all names in the archive have been checked, nothing remains of an archive that
    is found to be damaged, and what was unpacked before is used again while the archive is as it was.

    Args:
        archive: a path that `is_archive`.
        workspace: made when missing.

    Raises:
        DataError: the archive is damaged, encrypted, too large, may be a trap, or holds neither image nor
            table; or there is no room to unpack it.
    """
    ready = unpacked_before(archive, workspace)
    if ready is not None:
        return ready
    with opened_archive(archive) as opened:
        plan = _plan(archive, opened)
        total = sum(member.size for member in plan.members.values())
        check_room(archive, workspace, KIND, total, archive.stat().st_size)
        return unpack_now(archive, workspace, lambda folder: _write(archive, opened, plan, folder))


def _plan(archive: Path, opened: Opened) -> _Plan:
    """The images and tables in an archive, and where they go.

    Raises:
        DataError: a member is refused, there are too many of them, or there is none to unpack.
    """
    chosen: dict[Parts, Member] = {}
    left_out, suffixes = Counter[str](), image_suffixes() | TABLE_SUFFIXES
    with damage_named(archive, KIND):
        for count, member in enumerate(opened.members()):
            if count >= MOST_MEMBERS:
                problem = f"holds more than {MOST_MEMBERS:,} files and folders, the most that are unpacked"
                raise DataError(f"{KIND} {shown(archive)} {problem}.", BY_HAND)
            parts = _checked_parts(archive, member)
            if member.is_folder or not parts or any(is_ignored(part) for part in parts):
                continue
            suffix = Path(parts[-1]).suffix.lower()
            if suffix not in suffixes:
                left_out[suffix] += 1
                continue
            if parts in chosen:
                raise _refused(archive, member.name, "which it holds twice")
            chosen[parts] = member
    _check_places(archive, chosen)
    if not chosen:
        what = f"only other files: {kinds_of_files(left_out)}" if left_out else "and no other file"
        raise DataError(
            f"{KIND} {shown(archive)} holds no image and no table, {what}.",
            "Give an archive of a folder with a folder of images for each class.",
        )
    return _Plan(chosen, dict(left_out))


def _checked_parts(archive: Path, member: Member) -> Parts:
    """The folders and the file that a name consists of.

    Raises:
        DataError: it leads elsewhere, or is that of a link, a device or the like.
    """
    name = member.name.replace("\\", "/")
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise _refused(archive, member.name, "which is an absolute path")
    if ".." in parts:
        raise _refused(archive, member.name, "which leads out of it")
    if "\0" in name:
        raise _refused(archive, member.name, "which no file can be called")
    if len(parts) > MOST_FOLDERS:
        raise _refused(archive, member.name[:100], f"which lies more than {MOST_FOLDERS} folders deep")
    if member.refused is not None:
        raise _refused(archive, member.name, member.refused)
    return parts


def _check_places(archive: Path, chosen: Iterable[Parts]) -> None:
    """Refuse files that would be one and the same on some systems, or would lie in a file.

    Raises:
        DataError: there are some.
    """
    taken: dict[Parts, Parts] = {}
    for parts in chosen:
        alike = tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)
        other = taken.setdefault(alike, parts)
        if other is not parts:
            why = f"which many systems take for the same file as {visible('/'.join(other))}"
            raise _refused(archive, "/".join(parts), why)
    for alike, parts in taken.items():
        if any(alike[:end] in taken for end in range(1, len(alike))):
            raise _refused(archive, "/".join(parts), "which lies in a file and not in a folder")


def _refused(archive: Path, name: str, why: str) -> DataError:
    return DataError(f"{KIND} {shown(archive)} holds {visible(name)}, {why}.", BY_HAND)


def _write(archive: Path, opened: Opened, plan: _Plan, folder: Path) -> dict[str, int]:
    made = set[Path]()
    for parts, member in plan.members.items():
        goal = folder.joinpath(*parts)
        if goal.parent not in made:
            goal.parent.mkdir(parents=True, exist_ok=True)
            made.add(goal.parent)
        with goal.open("xb") as file:
            for piece in pieces(archive, opened, member):
                file.write(piece)
    return plan.left_out
