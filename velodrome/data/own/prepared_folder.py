"""The files of a prepared data set in the cache: how they are written, taken up again, and checked."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from velodrome.data.imageset import ImagesU8
from velodrome.data.own.chunks import Outcome, read_exactly
from velodrome.data.own.facts import ROW, Rows

# To be raised whenever the same files give other pixels or facts than before, or they are kept otherwise.
FORMAT = 2
# blake2b of the state of each source file.
PRINT_BYTES = 16
Prints = NDArray[np.uint8]


@dataclass(frozen=True)
class PreparedFolder:
    """The folder of `n` images of side x side pixels, whether it is finished or in the making.

    `images.u8` holds their pixels, `sources.bin` says which files they were made from. While it is in the
    making, `done.log` says which of them are there; at its end `facts.bin` and `record.json` are.
    """

    path: Path
    n: int
    side: int

    @property
    def images(self) -> Path:
        """(N, side, side, 3) bytes, the pixels."""
        return self.path / "images.u8"

    @property
    def log(self) -> Path:
        """What was done so far, for `DoneLog`."""
        return self.path / "done.log"

    @property
    def image_bytes(self) -> int:
        """The size of the file of pixels."""
        return self.n * self.side**2 * 3

    def mapped(self) -> ImagesU8:
        """The pixels as a memory map that cannot be written to: (N, side, side, 3) uint8."""
        return np.memmap(self.images, np.uint8, "r", shape=(self.n, self.side, self.side, 3))

    def has_space(self) -> bool:
        """Whether the file of pixels has its size."""
        return _size_of(self.images) == self.image_bytes

    def make_space(self) -> None:
        """Make the file of pixels, all of them 0, and take its space on the disk at once where that can be.

        Raises:
            OSError: it cannot be made; there is none then.
        """
        self.images.unlink(missing_ok=True)
        try:
            with self.images.open("wb") as file:
                file.truncate(self.image_bytes)
                _take_space(file, self.image_bytes)
        except OSError:
            self.images.unlink(missing_ok=True)
            raise

    def write_prints(self, prints: Prints) -> None:
        """Note the state of each source file: (N, 16) uint8."""
        (self.path / "sources.bin").write_bytes(prints.tobytes())

    def write_record(self, facts: Rows, reasons: Mapping[int, str]) -> None:
        """Write what makes it complete, and see all of it onto the disk.

        Args:
            facts: (N,) `ROW`.
            reasons: row -> why its file cannot be read.
        """
        content = facts.tobytes()
        record = {
            "format": FORMAT,
            "image_bytes": self.image_bytes,
            "facts": _checksum(content),
            "failures": sorted(reasons.items()),
        }
        for name, data in (("facts.bin", content), ("record.json", json.dumps(record).encode())):
            with (self.path / name).open("wb") as file:
                file.write(data)
                synced(file)
        sync_folder(self.path)

    def read(self) -> tuple[Rows, dict[int, str]] | None:
        """Facts and reasons as they were written; None where the folder is not complete or is damaged."""
        try:
            record: dict[str, Any] = json.loads((self.path / "record.json").read_bytes())
            content = (self.path / "facts.bin").read_bytes()
            is_whole = (
                (record["format"], record["image_bytes"], record["facts"])
                == (FORMAT, self.image_bytes, _checksum(content))
                and len(content) == self.n * ROW.itemsize
                and self.has_space()
            )
            reasons = {int(row): str(reason) for row, reason in record["failures"]}
        # A damaged record may hold anything.
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return (np.frombuffer(content, ROW), reasons) if is_whole else None


class DoneLog:
    """Which chunks of a preparation are done, and what came of them: a file that only grows.

    What is in it was on the disk before it was noted, so it holds whatever happens.

    Args:
        folder: in the making.
    """

    def __init__(self, folder: PreparedFolder) -> None:
        self._folder = folder

    def read(self) -> list[Outcome]:
        """What is done, up to where a kill or a power cut tore the file; the rest of it is cut off."""
        if not self._folder.has_space():  # the pixels are not there
            self._folder.log.unlink(missing_ok=True)
            return []
        found, end = [], 0
        with contextlib.suppress(FileNotFoundError), self._folder.log.open("r+b") as file:
            for outcome in self._outcomes(file):
                found.append(outcome)
                end = file.tell()
            file.truncate(end)
        return found

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Note what is done, after its pixels are on the disk.

        Raises:
            OSError: that cannot be.
        """
        with self._folder.images.open("r+b") as pixels:
            os.fsync(pixels.fileno())
        with self._folder.log.open("ab") as file:
            for outcome in outcomes:
                content = outcome.to_bytes()
                file.write(_checksum(content).encode() + content)
            synced(file)

    def _outcomes(self, file: BinaryIO) -> Iterator[Outcome]:
        """The outcomes in the log that are whole, and those only."""
        size = len(_checksum(b""))
        with contextlib.suppress(EOFError, ValueError, TypeError, MemoryError):
            while True:
                checksum = read_exactly(file, size).decode("ascii", "replace")
                outcome = Outcome.read_from(file)
                if _checksum(outcome.to_bytes()) != checksum:
                    return
                yield outcome


def prints_in(path: Path) -> set[bytes]:
    """The states of the source files of a folder, finished or not; none where that is not known."""
    try:
        content = (path / "sources.bin").read_bytes()
    except OSError:
        return set()
    return {content[start : start + PRINT_BYTES] for start in range(0, len(content), PRINT_BYTES)}


def synced(file: BinaryIO) -> None:
    """See what was written to a file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make renames in a folder last through a power cut, where the system allows it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _take_space(file: BinaryIO, size: int) -> None:
    if sys.platform != "linux":
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # this file system cannot
            raise


def _checksum(content: bytes) -> str:
    return blake2b(content, digest_size=PRINT_BYTES).hexdigest()
