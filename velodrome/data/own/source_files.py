"""What image files are like before they are read, so that it shows when they change."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, file_digest
from typing import Any

import numpy as np

from velodrome.data.own.chunks import SourceFile, state_of, status_of
from velodrome.data.own.decoding import usable_cores
from velodrome.data.own.listing import Entry
from velodrome.data.own.prepared_folder import PRINT_BYTES, Prints


def look_at(entries: Sequence[Entry], cache_by: str) -> tuple[list[SourceFile], Prints]:
    """The files as they are now, and (N, 16) uint8, a checksum of what is to stay the same of each.

    Args:
        entries: N files.
        cache_by: as in `prepare_images`.
    """
    statuses = [status_of(entry.path) for entry in entries]
    if cache_by == "contents":
        with ThreadPoolExecutor(usable_cores()) as pool:  # hashing releases the interpreter lock
            states: list[Any] = list(pool.map(_contents, entries, statuses))
    else:
        # The permissions too: a file may be readable now that was not.
        states = [status and [status.st_size, status.st_mtime_ns, status.st_mode] for status in statuses]
    sources = [
        SourceFile(os.path.abspath(entry.path), *state_of(status))  # noqa: PTH100  takes less time
        for entry, status in zip(entries, statuses, strict=True)
    ]
    named = (json.dumps([entry.name, state]) for entry, state in zip(entries, states, strict=True))
    prints = b"".join(blake2b(words.encode(), digest_size=PRINT_BYTES).digest() for words in named)
    return sources, np.frombuffer(prints, np.uint8).reshape(-1, PRINT_BYTES)


def _contents(entry: Entry, status: os.stat_result | None) -> str | None:
    """A checksum of all bytes of a file; None where they cannot be read."""
    if status is None or not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, for ever
        return None
    try:
        with entry.path.open("rb") as file:
            return file_digest(file, "blake2b").hexdigest()
    except OSError:
        return None
