"""Where prepared images lie in the user cache folder, one process at a time, and how they are removed."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import pooch  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from velodrome.config import HUB
from velodrome.errors import DataError

OTHER_FOLDER = "Set the environment variable XDG_CACHE_HOME to a folder that you may write to."
MORE_SPACE = (
    "Free some space, choose another cache folder by the environment variable XDG_CACHE_HOME, or use a "
    "smaller --image-size."
)


def cache_folder() -> Path:
    """The folder with all prepared images, in the user cache folder."""
    return Path(pooch.os_cache("velodrome")) / "prepared"


def folder_of(root: Path) -> Path:
    """Where everything that is prepared of one data set lies.

    Args:
        root: of the data set, or hf:NAME; another path to the same place has the same folder.
    """
    place = resolved(root)
    name = "".join(char if char.isascii() and char.isalnum() else "_" for char in place.name)[:40]
    digest = blake2b(os.fsencode(place), digest_size=8).hexdigest()
    return cache_folder() / f"{name or 'images'}-{digest}"


def clear(root: Path) -> int:
    """Remove everything that was prepared of a data set.

    Returns:
        The bytes that were freed.

    Raises:
        DataError: it cannot be removed, or a process is at work on it.
    """
    return _removed(folder_of(root))


def clear_all() -> int:
    """Remove everything that was ever prepared; returns the bytes that were freed.

    Raises:
        DataError: it cannot be removed, or a process is at work on it.
    """
    with clear_errors(cache_folder()):
        folders = [path for path in cache_folder().glob("*") if path.is_dir()]
    return sum(_removed(folder) for folder in folders)


def resolved(root: Path) -> Path:
    """One path for a place, however it was written, even where it is gone; what a hub has keeps its name."""
    if str(root).startswith(HUB):
        return root
    place = root.absolute()
    folders = (place, *place.parents)
    there = next((folder for folder in folders if os.path.exists(folder)), place)  # noqa: PTH110  Path's may raise
    return there.resolve() / place.relative_to(there)


@contextmanager
def locked(home: Path, waiting: str | None) -> Iterator[None]:
    """Keep every other process from changing what is prepared of a data set, as long as the block lasts.

    The lock belongs to the process: the system gives it up when the process ends, however it ends.

    Args:
        home: the data set's folder; the lock lies beside it, so that it can be removed.
        waiting: what to say on stderr where another process has it; None for not waiting.

    Raises:
        DataError: another process has it, and nobody waits.
    """
    if not home.is_absolute():  # who has no home folder gets "~/.cache", as it stands
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(home))
    home.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.with_name(f".{home.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if waiting is None:
            raise DataError(
                f"Cache folder {home} is in use by another process, which prepares images in it.",
                "Wait until that has ended, or stop it first.",
            ) from error
        sys.stderr.write(f"velodrome: {waiting}; waiting for it.\n")
        sys.stderr.flush()
        lock.acquire()
    except NotImplementedError as error:
        raise OSError(errno.ENOLCK, "its file system cannot lock files", str(home)) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def clear_errors(folder: Path) -> Iterator[None]:
    """Turns a failure to use a cache folder into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = MORE_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else OTHER_FOLDER
        raise DataError(
            f"Cache folder {folder} cannot be used: {error.strerror or error}.", remedy
        ) from error


def _removed(home: Path) -> int:
    if not home.is_dir():
        return 0
    with clear_errors(home), locked(home, None):
        freed = sum(path.lstat().st_size for path in home.rglob("*") if not path.is_dir())
        shutil.rmtree(home)
    return freed
