"""How much of the machine's memory a data set may take."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from pathlib import Path
from typing import NamedTuple

from velodrome.distributed import place_told

# Of the memory that is free; the rest is for activations, which grow with the batch, and for everybody else.
MOST = 0.25
# Of all memory, what is taken for free where a system says only how much there is, as macOS does.
LIKELY_FREE = 0.5
# Taken for free where a system says nothing: as good as every machine that trains has so much.
CAUTIOUS_BYTES = 4 * 2**30


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


class WindowsMemory(ctypes.Structure):
    """What GlobalMemoryStatusEx fills in: MEMORYSTATUSEX of the Windows API, sizes in bytes."""

    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        ("ullTotalPhys", ctypes.c_uint64),
        ("ullAvailPhys", ctypes.c_uint64),
        ("ullTotalPageFile", ctypes.c_uint64),
        ("ullAvailPageFile", ctypes.c_uint64),
        ("ullTotalVirtual", ctypes.c_uint64),
        ("ullAvailVirtual", ctypes.c_uint64),
        ("ullAvailExtendedVirtual", ctypes.c_uint64),
    )


def fits_in_memory(size_bytes: int) -> bool:
    """Whether so many bytes are at most a quarter of the memory that is free for this process."""
    return size_bytes <= MOST * own_share_bytes()


def own_share_bytes() -> float:
    """What this process may take of the memory that is free, where ranks on this machine share it."""
    return available_bytes() / _ranks_to_come()


def available_bytes() -> float:
    """Bytes that could be had without swapping, as far as the system says."""
    return min(_of_machine(), _of_control_group(SECOND), _of_control_group(FIRST))


def _ranks_to_come() -> int:
    """The ranks on this machine that read images now or later, this one included.

    The first of them reads before the others, see `World.in_turn`; what it has taken is no longer free then.
    """
    place = place_told()
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    here = min(int(told), place.size) if told.isdecimal() else place.size
    return max(1, here if place.local_rank == 0 else here - 1)


def _of_machine() -> float:
    """Free memory as the system tells it; a cautious bound where it does not."""
    try:
        if platform.system() == "Windows":
            return _of_windows()
        if platform.system() == "Linux":
            return _of_linux()
        return LIKELY_FREE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return float(CAUTIOUS_BYTES)


def _of_linux() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * float(line.split()[1])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _of_windows() -> float:
    told = WindowsMemory(dwLength=ctypes.sizeof(WindowsMemory))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(told)):  # type: ignore[attr-defined, unused-ignore]
        raise OSError("GlobalMemoryStatusEx failed")
    return float(told.ullAvailPhys)


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
