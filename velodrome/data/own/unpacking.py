"""Copies of data in the cache: unpacked once, whole or not at all, used from there, and only the newest kept.

Each copy is a folder, called by what it is a copy of and by the state that this had. A process that uses one
holds a lock beside it until it ends, so that no other process removes it meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

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


# The copies that this process uses, each with the lock that tells other processes so; it goes when we do.
_used_here: dict[Path, FileLock] = {}


class Version(NamedTuple):
    """What a folder is a copy of; together its name.

    Attributes:
        source: the same for all states of one source.
        state: of the source when it was copied.
    """

    source: str
    state: str

    @classmethod
    def of(cls, name: str, source: str, state: str) -> Version:
        """A version with a short name.

        Args:
            name: for people; shortened.
            source: what no other source has, such as its path.
            state: what changes whenever another copy is needed.
        """
        readable = re.sub(r"[^A-Za-z0-9-]+", "_", name)[:40]
        return cls(f"{readable}-{_digest(source)}", _digest(f"{FORMAT}\n{state}"))

    @property
    def folder_name(self) -> str:
        """Of the copy."""
        return f"{self.source}-{self.state}"


def unpacked_before(source: Path, workspace: Path) -> Path | None:
    """What was unpacked of the file as it is now; None where nothing was, or it is not all there any more.

    Raises:
        DataError: the file is not there.
    """
    with _errors_named(source, workspace):
        return copied_before(_version_of(source), workspace)


def unpack_now(source: Path, workspace: Path, write: Callable[[Path], dict[str, int]]) -> Path:
    """Make the folder below `workspace` that holds what `source` is unpacked to, or wait for who makes it.

    Args:
        source: the file to unpack.
        workspace: made when missing.
        write: unpacks into an empty folder, and returns how many files it left out, by suffix.

    Raises:
        DataError: the workspace cannot be written. What `write` raises is passed on.
    """
    with _errors_named(source, workspace):
        return copy_now(_version_of(source), workspace, write)


def copied_before(version: Version, workspace: Path) -> Path | None:
    """The copy of this version; None where there is none, or it is not all there any more."""
    folder = workspace / version.folder_name
    if not folder.is_dir():
        return None
    # Where no lock can be made, nothing can be removed either.
    with contextlib.suppress(OSError, NotImplementedError), _locked(version, workspace):
        _use(folder, version)
    return _complete(folder)


def copy_now(version: Version, workspace: Path, write: Callable[[Path], dict[str, int]]) -> Path:
    """Make the copy of this version, or wait for who makes it; remove older ones that nobody uses.

    It is made under a temporary name and renamed when complete, so a kill leaves nothing half-written under
    the final name; what killed processes left is removed.

    Args:
        version: of what is copied.
        workspace: made when missing.
        write: as for `unpack_now`, or whatever else it leaves out, by kind.

    Raises:
        OSError: the workspace cannot be written. What `write` raises is passed on.
    """
    folder = workspace / version.folder_name
    workspace.mkdir(parents=True, exist_ok=True)
    with _locked(version, workspace):
        made = _complete(folder) or _make(folder, version, write)
        _use(made, version)
        return made


def left_out_of(folder: Path) -> dict[str, int]:
    """How much was left out when this folder was made, by kind: files by their suffix."""
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


def _locked(version: Version, workspace: Path) -> FileLock:
    """For all versions of a source. It belongs to the process: a killed one does not lock out the next."""
    return FileLock(workspace / f".{version.source}.lock")


def _make(goal: Path, version: Version, write: Callable[[Path], dict[str, int]]) -> Path:
    """Make the folder; the caller holds the lock, so that all temporary ones are of killed processes."""
    for leftover in goal.parent.glob(f".{version.source}-*.tmp"):
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


def _use(folder: Path, version: Version) -> None:
    """Keep other processes from removing a copy, and remove what they do not use of older ones.

    The caller holds the lock of the source, so that nobody takes up an older copy while it is removed.
    """
    lock = _used_here.get(folder)
    if lock is None or not Path(lock.lock_file).exists():  # it is removed with the cache
        # Of any thread, as another one may let it go.
        lock = FileLock(_beside(folder, uuid.uuid4().hex[:8]), thread_local=False)
        lock.acquire(blocking=False)
        _used_here[folder] = lock
    for older in folder.parent.glob(f"{version.source}-*"):
        if older != folder and not _is_used_elsewhere(older):
            shutil.rmtree(older, ignore_errors=True)


def _is_used_elsewhere(folder: Path) -> bool:
    """Whether another process uses a copy; this one does not any more."""
    if ours := _used_here.pop(folder, None):
        ours.release()
    for path in folder.parent.glob(_beside(folder, "*").name):
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return True
        path.unlink(missing_ok=True)  # of a process that has ended
        lock.release()
    return False


def _beside(folder: Path, user: str) -> Path:
    """The lock by which a process says that it uses a folder."""
    return folder.with_name(f".{folder.name}.{user}.lock")


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


def _version_of(source: Path) -> Version:
    """The same while the file's path, size and time of change are."""
    status, path = source.stat(), source.resolve()
    return Version.of(path.name.split(".")[0], str(path), f"{status.st_size}\n{status.st_mtime_ns}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _nearest_existing(path: Path) -> Path:
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), path)
