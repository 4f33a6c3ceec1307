"""One process at a time in a run folder. Never imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from filelock import FileLock, Timeout

from velodrome.errors import RunError
from velodrome.run.folder import RunFolder, writing


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Keep every other process from training in this folder for as long as the block lasts.

    The lock belongs to the process, not to the file `.lock`: the system gives it up when the process ends,
    however it ends, so that a run that was killed can be resumed at once.

    Raises:
        RunError: another process is at work in the folder, or the folder cannot be written.
    """
    guard = FileLock(folder.lock)
    with writing(folder.path):
        try:
            guard.acquire(blocking=False)
        except Timeout as error:
            raise RunError(
                f"Run {folder.path} is in use by another process, which works in it.",
                "Wait until that has ended, or stop it first.",
            ) from error
    try:
        yield
    finally:
        guard.release()


def is_locked(folder: RunFolder) -> bool:
    """Whether a process is at work in the folder, as far as this one may find out."""
    if not folder.lock.exists():
        return False
    guard = FileLock(folder.lock)
    try:
        guard.acquire(blocking=False)
    except Timeout:
        return True
    except OSError:
        return False
    guard.release()
    return False
