"""Files that are unpacked into a folder of the cache once, whole or not at all, and used from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from velodrome.data.image_files import reason
from velodrome.data.own.listing import shown
from velodrome.errors import DataError

# To be raised whenever the same file is unpacked otherwise than before.
FORMAT = 1
RECORD = ".unpacked.json"
# What unpacks to more than this many times its own size fills disks on purpose. Images hardly shrink.
MOST_RATIO = 200
# Small enough not to matter, whatever the ratio.
HARMLESS_BYTES = 2**28
MOST_BYTES = 2**40


def unpacked_before(source: Path, workspace: Path) -> Path | None:
    """What was unpacked of the file as it is now; None where nothing was, or it is not all there any more.

    Raises:
        DataError: the file is not there.
    """
    with _errors_named(source, workspace):
        return _complete(workspace / _name_for(source))


def unpack_now(source: Path, workspace: Path, write: Callable[[Path], dict[str, int]]) -> Path:
    """Make the folder below `workspace` that holds what `source` is unpacked to, or wait for who makes it.

    It is made under a temporary name and renamed when complete, so a kill leaves nothing half-written under
    the final name; what killed processes left is removed.

    Args:
        source: the file to unpack.
        workspace: made when missing.
        write: unpacks into an empty folder, and returns how many files it left out, by suffix.

    Raises:
        DataError: the workspace cannot be written. What `write` raises is passed on.
    """
    with _errors_named(source, workspace):
        goal = workspace / _name_for(source)
        workspace.mkdir(parents=True, exist_ok=True)
        # It belongs to the process, not to the file, so that a killed one does not lock out the next.
        with FileLock(workspace / f".{goal.name}.lock"):
            return _complete(goal) or _make(goal, write)


def left_out_of(folder: Path) -> dict[str, int]:
    """How many files were not unpacked into this folder, by suffix."""
    left_out: dict[str, int] = json.loads((folder / RECORD).read_bytes())["left_out"]
    return left_out


def most_bytes(packed_bytes: int) -> int:
    """To how much a file of this size may unpack."""
    return min(MOST_BYTES, max(HARMLESS_BYTES, MOST_RATIO * packed_bytes))


def check_room(source: Path, workspace: Path, kind: str, total_bytes: int, packed_bytes: int) -> None:
    """Refuse to unpack more than the disk holds, or far more than such a file can honestly hold.

    Args:
        source: the file to unpack.
        workspace: where to; need not be there.
        kind: what `source` is, with a capital.
        total_bytes: unpacked.
        packed_bytes: of `source`.

    Raises:
        DataError: there is too little room, or the file may be a trap.
    """
    most = most_bytes(packed_bytes)
    if total_bytes > most:
        raise DataError(
            f"{kind} {shown(source)} would unpack to over {most / 1e9:,.1f} GB; at most {MOST_RATIO} times "
            f"its own size and {MOST_BYTES / 1e9:,.0f} GB are unpacked.",
            "It may be a trap that fills the disk. If you trust it, unpack it by hand and give the folder.",
        )
    size = f"{total_bytes / 1e9:,.1f} GB"
    with _errors_named(source, workspace):
        free = shutil.disk_usage(_nearest_existing(workspace)).free
    if total_bytes > free:
        raise DataError(
            f"{kind} {shown(source)} takes {size} unpacked, but {shown(workspace)} has only "
            f"{free / 1e9:,.1f} GB free.",
            "Make room there, or unpack it by hand on another disk and give the folder.",
        )


@contextlib.contextmanager
def _errors_named(source: Path, workspace: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter where a file system knows no locks
        raise DataError(
            f"{shown(source)} cannot be unpacked into {shown(workspace)}: {reason(error)}.",
            "Make room there and mend its permissions, or unpack the file by hand and give the folder.",
        ) from error


def _make(goal: Path, write: Callable[[Path], dict[str, int]]) -> Path:
    """Make the folder; the caller holds its lock, so that all temporary ones are of killed processes."""
    for leftover in goal.parent.glob(f".{goal.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".tmp", dir=goal.parent))
    try:
        made = temporary / "made"
        made.mkdir()
        left_out = write(made)
        record = {"files": _files_in(made), "left_out": left_out}
        (made / RECORD).write_text(json.dumps(record), encoding="utf-8")
        if goal.exists():  # and is not complete
            goal.rename(temporary / "old")
        made.rename(goal)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return goal


def _complete(folder: Path) -> Path | None:
    """What was unpacked before; None where nothing was, or it is not all there any more."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if record["files"] == _files_in(folder):
            return folder
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _files_in(folder: Path) -> list[int]:
    """How many files there are, and their bytes; without the record."""
    sizes = [size for name, size in _sizes(folder) if name != RECORD]
    return [len(sizes), sum(sizes)]


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    todo = [str(folder)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    yield entry.name, entry.stat(follow_symlinks=False).st_size


def _name_for(source: Path) -> str:
    """A folder name that is the same while the file's path, size and time of change are."""
    status, path = source.stat(), source.resolve()
    key = f"{FORMAT}\n{path}\n{status.st_size}\n{status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", path.name.split(".")[0])[:40]
    return f"{readable}-{digest}"


def _nearest_existing(path: Path) -> Path:
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), path)
