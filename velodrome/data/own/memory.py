"""How much of the machine's memory a data set may take."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

# Of the memory that is free; the rest is for activations, which grow with the batch, and for everybody else.
MOST = 0.25


class Layout(NamedTuple):
    """How Linux shows what a control group may use; it has two layouts.

    Attributes:
        root: the folder of groups.
        prefix: what the line of this process in /proc/self/cgroup holds before the path of its group.
        limit: name of the file with the most that it may use, in bytes.
        used: of the one with what it uses, files that are kept in memory included.
        idle: the entry of memory.stat with those of these files that it would be the first to give up.
    """

    root: Path
    prefix: str
    limit: str
    used: str
    idle: str


SECOND = Layout(Path("/sys/fs/cgroup"), "0::/", "memory.max", "memory.current", "inactive_file")
FIRST = Layout(
    Path("/sys/fs/cgroup/memory"),
    ":memory:/",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)


def fits_in_memory(size_bytes: int) -> bool:
    """Whether so many bytes are at most a quarter of the memory that is free."""
    return size_bytes <= MOST * available_bytes()


def available_bytes() -> float:
    """Bytes that could be had without swapping; infinite where the system does not say."""
    return min(_of_machine(), _of_control_group(SECOND), _of_control_group(FIRST))


def _of_machine() -> float:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * float(line.split()[1])
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError, AttributeError):
        return float("inf")


def _of_control_group(layout: Layout) -> float:
    """What the limits of this process's control group leave; infinite without a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = next(line.partition(layout.prefix)[2] for line in lines if layout.prefix in line)
    except (OSError, StopIteration):
        return float("inf")
    left = float("inf")
    place = layout.root / own
    while place.is_relative_to(layout.root):  # a group has the limits of all that it lies in
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limit, used = (int((place / name).read_text(encoding="ascii")) for name in layout[2:4])
            left = min(left, max(0, limit - used + _idle_bytes(place, layout)))
        place = place.parent
    return left


def _idle_bytes(place: Path, layout: Layout) -> int:
    """Bytes of files in memory that nobody has asked for again."""
    for line in (place / "memory.stat").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(" ")
        if name == layout.idle:
            return int(value)
    return 0
