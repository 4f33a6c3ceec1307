"""A few image files at a time: decoded, described, and written to their rows of a file of pixels.

Imports little, because the processes that decode start with it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np

from velodrome.data.image_files import UnreadableImageError, decode
from velodrome.data.own.facts import ROW, Rows, facts_of

# The bytes of an outcome's words and of its facts, which follow.
_HEAD = struct.Struct("<II")


class SourceFile(NamedTuple):
    """An image file as it was when it was looked at.

    Attributes:
        path: absolute.
        size: in bytes; -1 where it could not be looked at.
        mtime_ns: its time of change; 0 where it could not be looked at.
    """

    path: str
    size: int
    mtime_ns: int


class Chunk(NamedTuple):
    """Files that are decoded one after another, for rows that lie side by side.

    Attributes:
        start: the row of the first.
        files: in the order of the rows.
    """

    start: int
    files: tuple[SourceFile, ...]

    def pieces(self) -> list[Chunk]:
        """The same files, each by itself."""
        return [Chunk(self.start + number, (file,)) for number, file in enumerate(self.files)]

    def to_line(self) -> bytes:
        """As one line of JSON; what UTF-8 cannot hold of a path is escaped."""
        return json.dumps(self).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Chunk:
        """What `to_line` wrote."""
        start, files = json.loads(line)
        return cls(start, tuple(SourceFile(*file) for file in files))


class Trouble(NamedTuple):
    """A file that cannot be read.

    Attributes:
        row: of the file.
        reason: as in `Failure`.
        is_lasting: whether it lies in the file, so that trying again would not help.
    """

    row: int
    reason: str
    is_lasting: bool


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a chunk.

    Attributes:
        start: the row of its first file.
        facts: (n,) `facts.ROW`, one of each file.
        troubles: the files that cannot be read, whose pixels are 0.
        changed: rows of files that are not as they were when they were looked at.
    """

    start: int
    facts: Rows
    troubles: tuple[Trouble, ...] = ()
    changed: tuple[int, ...] = ()

    def to_bytes(self) -> bytes:
        """As bytes that say themselves where they end."""
        words = json.dumps([self.start, self.troubles, self.changed]).encode()
        return b"".join([_HEAD.pack(len(words), self.facts.nbytes), words, self.facts.tobytes()])

    @classmethod
    def read_from(cls, file: IO[bytes]) -> Outcome:
        """The outcome whose bytes come next in a file.

        Raises:
            EOFError: it ends before they do.
            ValueError: they are none.
        """
        words_size, facts_size = _HEAD.unpack(read_exactly(file, _HEAD.size))
        start, troubles, changed = json.loads(read_exactly(file, words_size))
        facts = np.frombuffer(read_exactly(file, facts_size), ROW)
        return cls(start, facts, tuple(Trouble(*trouble) for trouble in troubles), tuple(changed))

    @classmethod
    def joined(cls, outcomes: Iterable[Outcome]) -> Outcome:
        """One outcome of pieces that follow one another."""
        parts = list(outcomes)
        return cls(
            parts[0].start,
            np.concatenate([part.facts for part in parts]),
            tuple(trouble for part in parts for trouble in part.troubles),
            tuple(row for part in parts for row in part.changed),
        )


class Goal(NamedTuple):
    """Where pixels go, and how they get their size.

    Attributes:
        pixels: path of a file of (N, side, side, 3) bytes.
        side: height and width in pixels.
        fit: as in `read_image`.
    """

    pixels: str
    side: int
    fit: str


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """So many bytes, and no fewer.

    Raises:
        EOFError: the file ends before.
    """
    content = file.read(size)
    if len(content) < size:
        raise EOFError
    return content


def status_of(path: str | Path) -> os.stat_result | None:
    """What the system says of a file; None where it cannot be looked at."""
    try:
        return os.stat(path)  # noqa: PTH116  a Path would take longer
    except (OSError, ValueError):
        return None


def state_of(status: os.stat_result | None) -> tuple[int, int]:
    """Size and time of change as `SourceFile` has them."""
    return (-1, 0) if status is None else (status.st_size, status.st_mtime_ns)


def decode_chunk(
    chunk: Chunk,
    goal: Goal,
    pixels: BinaryIO,
    *,
    is_quiet: bool = False,
    before_each: Callable[[], object] = lambda: None,
) -> Outcome:
    """Decode the files of a chunk and write them to their rows; those that cannot be read become black.

    Args:
        chunk: of files.
        goal: how they get their size.
        pixels: the file that `goal` names, open for writing.
        is_quiet: as in `image_files.decode`.
        before_each: is called before each file.

    Raises:
        OSError: the pixels cannot be written.
    """
    n, size = len(chunk.files), (goal.side, goal.side)
    images_u8 = np.zeros((n, *size, 3), np.uint8)
    facts = np.zeros(n, ROW)
    readable, sizes = facts["readable"], facts["size"]
    troubles, changed = [], []
    for number, file in enumerate(chunk.files):
        before_each()
        row, state = chunk.start + number, file[1:]
        try:
            image_u8, size_of_file, status = decode(file.path, size, goal.fit, is_quiet=is_quiet)
        except UnreadableImageError as error:
            if state_of(status_of(file.path)) == state:
                troubles.append(Trouble(row, error.reason, error.is_lasting))
            else:
                changed.append(row)
            continue
        if state_of(status) != state:
            changed.append(row)
        images_u8[number] = image_u8
        readable[number], sizes[number] = True, size_of_file
    facts["digest"], facts["thumbnail"] = facts_of(images_u8, sizes, goal.fit)
    facts["digest"][~readable] = 0
    pixels.seek(chunk.start * images_u8[0].nbytes)
    pixels.write(images_u8.data)
    pixels.flush()
    return Outcome(chunk.start, facts, tuple(troubles), tuple(changed))
