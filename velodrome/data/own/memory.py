"""How much of the machine's memory a data set may take."""

from __future__ import annotations

import os
from pathlib import Path

# Of the memory that is free; the rest is for activations, which grow with the batch, and for everybody else.
MOST = 0.25
# Where Linux keeps the limit and the use of a control group, as in containers, and where it is not nested.
LIMIT, USED = "memory.max", "memory.current"


def fits_in_memory(size_bytes: int) -> bool:
    """Whether so many bytes are at most a quarter of the memory that is free."""
    return size_bytes <= MOST * available_bytes()


def available_bytes() -> float:
    """Bytes that could be had without swapping; infinite where the system does not say."""
    return min(_of_machine(), _of_control_group())


def _of_machine() -> float:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * float(line.split()[1])
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError, AttributeError):
        return float("inf")


def _of_control_group(root: Path = Path("/sys/fs/cgroup")) -> float:
    """What the limit of this process's control group leaves; infinite without a limit."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    except (OSError, StopIteration):
        return float("inf")
    left = float("inf")
    place = root / own
    while place.is_relative_to(root):  # a group has the limits of all that it lies in
        try:
            limit, used = (float((place / name).read_text(encoding="ascii")) for name in (LIMIT, USED))
            left = min(left, max(0.0, limit - used))
        except (OSError, ValueError):  # no such file, or "max"
            pass
        place = place.parent
    return left
