"""A user's images, decoded once, brought to one size, and kept in the user cache folder as a memory map.

What lies there is found by what it was made from: the name, size and time of change of every file (or their
contents), and the size and shape that images are brought to. A preparation that was interrupted, however it
was, is taken up where it stood; it appears under its name when it is complete.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL

from velodrome.data.image_files import Failure
from velodrome.data.imageset import ImagesU8
from velodrome.data.own.chunks import Chunk, Goal, Outcome, SourceFile
from velodrome.data.own.decoding import decode_files, rows_a_chunk
from velodrome.data.own.facts import ROW, Facts, Rows, facts_of
from velodrome.data.own.listing import Entry
from velodrome.data.own.prepared_cache import (
    MORE_SPACE,
    cache_folder,
    clear,
    clear_all,
    clear_errors,
    folder_of,
    locked,
    resolved,
)
from velodrome.data.own.prepared_folder import (
    FORMAT,
    DoneLog,
    PreparedFolder,
    Prints,
    prints_in,
    sync_folder,
)
from velodrome.data.own.source_files import look_at
from velodrome.errors import DataError, visible

__all__ = [
    "Facts",
    "Prepared",
    "cache_folder",
    "clear",
    "clear_all",
    "facts_of",
    "folder_of",
    "is_prepared",
    "prepare_images",
]

# What was done is put onto the disk so often; as much is lost by a kill.
SECONDS_BETWEEN_NOTES = 1.0
# Images that are done, and all.
Tell = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Images of one size, in the order of their entries.

    Attributes:
        images_u8: (N, side, side, 3) uint8, a memory map that cannot be written to; 0 where unreadable.
        facts: about each of them.
        failures: of the files that cannot be read, in order.
        folder: where it all lies.
    """

    images_u8: ImagesU8
    facts: Facts
    failures: tuple[Failure, ...]
    folder: Path


def prepare_images(
    entries: Sequence[Entry],
    side: int,
    fit: str,
    *,
    root: Path,
    cache_by: str = "times",
    tell: Tell | None = None,
) -> Prepared:
    """All images in one size: from the cache, or decoded into it.

    Files that cannot be read have black images. Where the reason lies in the file, that is kept like
    everything else; where it does not (no permission, no memory, a decoder that crashes), they are tried
    again the next time.

    Args:
        entries: the files, at least one.
        side: height and width in pixels.
        fit: how images of another shape come to it, as in `read_image`.
        root: of the data set.
        cache_by: "times" looks at sizes and times of change, "contents" reads every file to the end.
        tell: is told how many images are done, of how many; not at all where they all were before.

    Raises:
        DataError: the cache folder cannot be used or has no space, or files change while they are read.
    """
    assert entries, "there is nothing to prepare"
    sources, prints = look_at(entries, cache_by)
    finished = _finished(prints, side, fit, root, cache_by)
    home = finished.path.parent
    if found := _opened(finished, entries):
        return found
    with clear_errors(home), locked(home, f"{visible(str(root))} is being prepared by another process"):
        if found := _opened(finished, entries):  # by another process, meanwhile
            return found
        draft = PreparedFolder(finished.path.with_name(f"{finished.path.name}.part"), len(entries), side)
        preparation = _Preparation(draft, entries, sources, fit, tell or (lambda _done, _total: None))
        preparation.begin(prints)
        preparation.run()
        _remove_older(finished.path, prints)
        if preparation.is_complete:
            draft.write_record(preparation.facts, preparation.reasons)
            shutil.rmtree(finished.path, ignore_errors=True)  # damaged, if it is there
            draft.path.rename(finished.path)
            sync_folder(home)
            finished.log.unlink(missing_ok=True)
            draft = finished
        return _prepared(draft, entries, preparation.facts, preparation.reasons)


def is_prepared(entries: Sequence[Entry], side: int, fit: str, *, root: Path, cache_by: str) -> bool:
    """Whether `prepare_images` would find all of its work done."""
    _, prints = look_at(entries, cache_by)
    return _opened(_finished(prints, side, fit, root, cache_by), entries) is not None


def _finished(prints: Prints, side: int, fit: str, root: Path, cache_by: str) -> PreparedFolder:
    """Where images are once they are prepared."""
    about = json.dumps([FORMAT, side, fit, PIL.__version__, str(resolved(root)), cache_by])
    key = blake2b(about.encode() + prints.tobytes(), digest_size=16).hexdigest()
    return PreparedFolder(folder_of(root) / f"{side}-{fit}-{key}", len(prints), side)


class _Preparation:
    """The work on a folder that is in the making.

    Args:
        folder: in the making.
        entries: the files.
        sources: the same files, as they were when they were looked at.
        fit: as in `read_image`.
        tell: is told how far it is.

    Attributes:
        facts: (N,) `ROW`, of what is done.
        reasons: row -> why its file cannot be read.
        is_complete: whether all is done and nothing needs to be tried again.
    """

    def __init__(
        self,
        folder: PreparedFolder,
        entries: Sequence[Entry],
        sources: Sequence[SourceFile],
        fit: str,
        tell: Tell,
    ) -> None:
        self.facts: Rows = np.zeros(folder.n, ROW)
        self.reasons: dict[int, str] = {}
        self.is_complete = False
        self._folder, self._entries, self._sources, self._tell = folder, entries, sources, tell
        self._goal = Goal(str(folder.images), folder.side, fit)
        self._log = DoneLog(folder)
        self._size = rows_a_chunk(folder.n, folder.side)
        # Of outcomes that are in the log, and of those that are not yet.
        self._noted: set[int] = set()
        self._new: list[Outcome] = []

    def begin(self, prints: Prints) -> None:
        """Take up what was done before; make the files where nothing was.

        Raises:
            DataError: there is not enough space.
        """
        folder = self._folder
        folder.path.mkdir(parents=True, exist_ok=True)
        done = [outcome for outcome in self._log.read() if self._is_a_chunk(outcome)]
        if not done:
            _check_space(folder)
            folder.make_space()
            folder.write_prints(prints)
        for outcome in done:
            self._take(outcome)
            self._noted.add(outcome.start)

    def run(self) -> None:
        """Do what is left.

        Raises:
            DataError: a file changed since it was looked at.
        """
        n, size = self._folder.n, self._size
        chunks = [
            Chunk(start, tuple(self._sources[start : start + size]))
            for start in range(0, n, size)
            if start not in self._noted
        ]
        done = n - sum(len(chunk.files) for chunk in chunks)
        self._tell(done, n)
        noted_s = time.monotonic()
        with contextlib.closing(decode_files(chunks, self._goal)) as outcomes:
            for outcome in outcomes:
                self._check_unchanged(outcome)
                self._take(outcome)
                if all(trouble.is_lasting for trouble in outcome.troubles):
                    self._new.append(outcome)
                done += len(outcome.facts)
                self._tell(done, n)
                if time.monotonic() - noted_s > SECONDS_BETWEEN_NOTES:
                    self._note()
                    noted_s = time.monotonic()
        self._note()
        self.is_complete = len(self._noted) == -(-n // size)

    def _is_a_chunk(self, outcome: Outcome) -> bool:
        """Whether it has the rows of a chunk; a version with other chunks may have noted it."""
        start, n = outcome.start, self._folder.n
        return start in range(0, n, self._size) and len(outcome.facts) == min(self._size, n - start)

    def _take(self, outcome: Outcome) -> None:
        self.facts[outcome.start : outcome.start + len(outcome.facts)] = outcome.facts
        self.reasons |= {trouble.row: trouble.reason for trouble in outcome.troubles}

    def _note(self) -> None:
        if not self._new:
            return
        self._log.append(self._new)
        self._noted |= {outcome.start for outcome in self._new}
        self._new.clear()

    def _check_unchanged(self, outcome: Outcome) -> None:
        if not outcome.changed:
            return
        names = [visible(self._entries[row].name) for row in outcome.changed]
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise DataError(
            f"Image {names[0]}{others} changed while images were read.",
            "Run it again once nothing is written there any more.",
        )


def _opened(folder: PreparedFolder, entries: Sequence[Entry]) -> Prepared | None:
    """What is complete and undamaged."""
    with contextlib.suppress(OSError):  # removed by another process
        if found := folder.read():
            return _prepared(folder, entries, *found)
    return None


def _prepared(
    folder: PreparedFolder, entries: Sequence[Entry], facts: Rows, reasons: dict[int, str]
) -> Prepared:
    failures = tuple(Failure(entries[row].path, reasons[row]) for row in sorted(reasons))
    return Prepared(folder.mapped(), Facts.of(facts), failures, folder.path)


def _remove_older(current: Path, prints: Prints) -> None:
    """Remove what was made in the same size and fit from files as they are no longer.

    What was made from a part of the same files, or from them and more, as other settings ask for, is kept,
    but only the newest.
    """
    ours = {bytes(part) for part in prints}
    prefix = "-".join(current.name.split("-")[:2])
    same_size = current.parent.glob(f"{prefix}-*")
    others = [path for path in same_size if path.is_dir() and path.with_suffix("") != current]
    related = [path for path in others if (theirs := prints_in(path)) and (theirs <= ours or ours <= theirs)]
    newest = max(related, key=lambda path: path.stat().st_mtime, default=None)
    for path in others:
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


def _check_space(folder: PreparedFolder) -> None:
    """Check that there is space for everything, before anything is written.

    Raises:
        DataError: there is not.
    """
    there = folder.images.stat().st_size if folder.images.exists() else 0
    wanted = folder.image_bytes - there + 2 * folder.n * ROW.itemsize
    free = shutil.disk_usage(folder.path).free
    if wanted > free:
        raise DataError(
            f"{folder.n:,} images of {folder.side}x{folder.side} pixels take {_in_words(wanted)} in "
            f"{folder.path.parent}, where {_in_words(free)} are free.",
            MORE_SPACE,
        )


def _in_words(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
