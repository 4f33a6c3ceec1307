"""How much memory there is: as Linux shows it in either layout of control groups, and elsewhere."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from velodrome.data.own import memory
from velodrome.data.own.memory import (
    CAUTIOUS_BYTES,
    FIRST,
    SECOND,
    Layout,
    available_bytes,
    fits_in_memory,
    own_share_bytes,
)

MIB = 2**20


def write_group(place: Path, layout: Layout, limit: str, used: int, idle: int = 0) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / layout.limit).write_text(f"{limit}\n")
    (place / layout.used).write_text(f"{used}\n")
    (place / "memory.stat").write_text(f"anon 5\n{layout.idle} {idle}\nactive_file 7\n")


@pytest.fixture
def own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Layout:
    """A layout whose files lie in `tmp_path`, where this process is in group a/b."""
    layout: Layout = request.param._replace(root=tmp_path)
    lines = {FIRST: "9:cpu:/\n4:memory:/a/b\n0::/elsewhere\n", SECOND: "1:name=x:/y\n0::/a/b\n"}[
        request.param
    ]
    read = Path.read_text

    def shown(path: Path, *words: object, **more: object) -> str:
        return lines if path == Path("/proc/self/cgroup") else read(path, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", shown)
    monkeypatch.setattr(memory, "FIRST", layout)
    monkeypatch.setattr(memory, "SECOND", layout)
    return layout


both = pytest.mark.parametrize("own_group", [FIRST, SECOND], indirect=True, ids=["first", "second"])


@both
def test_a_group_leaves_its_limit_less_what_it_uses(tmp_path: Path, own_group: Layout) -> None:
    write_group(tmp_path / "a" / "b", own_group, str(80 * MIB), 30 * MIB)
    assert available_bytes() == 50 * MIB
    assert fits_in_memory(12 * MIB)
    assert not fits_in_memory(13 * MIB)


@both
def test_files_that_are_merely_kept_in_memory_do_not_count(tmp_path: Path, own_group: Layout) -> None:
    write_group(tmp_path / "a" / "b", own_group, str(80 * MIB), 80 * MIB, idle=60 * MIB)
    assert available_bytes() == 60 * MIB


@both
def test_a_group_has_the_limits_of_those_around_it(tmp_path: Path, own_group: Layout) -> None:
    write_group(tmp_path / "a" / "b", own_group, "max", 10 * MIB)
    write_group(tmp_path / "a", own_group, str(40 * MIB), 15 * MIB)
    assert available_bytes() == 25 * MIB


@both
def test_without_a_limit_the_machine_decides(own_group: Layout) -> None:
    assert 10 * MIB < available_bytes() < float("inf")


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_the_group_of_this_process_is_found() -> None:
    assert available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# Other systems.


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no /proc."""

    def missing(path: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)


def test_half_of_what_a_mac_has_is_taken_for_free(elsewhere, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    told = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 16_384}
    monkeypatch.setattr(os, "sysconf", told.__getitem__)
    assert available_bytes() == 500 * 16_384


def windows(monkeypatch: pytest.MonkeyPatch, *, works: bool) -> None:
    """A system whose GlobalMemoryStatusEx writes 700 MiB where the Windows API has ullAvailPhys."""

    def fill_in(pointer: object) -> int:
        status = pointer._obj  # type: ignore[attr-defined]
        assert status.dwLength == ctypes.sizeof(status) == 64
        ctypes.memmove(ctypes.addressof(status) + 16, (700 * MIB).to_bytes(8, sys.byteorder), 8)
        return int(works)

    kernel = SimpleNamespace(GlobalMemoryStatusEx=fill_in)
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)


def test_windows_is_asked(elsewhere, monkeypatch):
    windows(monkeypatch, works=True)
    assert available_bytes() == 700 * MIB


def test_a_system_that_says_nothing_is_not_taken_for_endless(elsewhere, monkeypatch):
    windows(monkeypatch, works=False)
    assert available_bytes() == CAUTIOUS_BYTES
    monkeypatch.setattr(platform, "system", lambda: "")
    monkeypatch.delattr(os, "sysconf", raising=False)  # as on Windows
    assert available_bytes() == CAUTIOUS_BYTES
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert available_bytes() == CAUTIOUS_BYTES


# Several ranks.


@pytest.mark.parametrize(
    ("told", "ranks"),
    [
        ({}, 1),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, 1),
        ({"RANK": "0", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, 4),
        ({"RANK": "4", "WORLD_SIZE": "8", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, 4),
        # What the first has read is no longer free.
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, 3),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 1),
        ({"RANK": "0", "WORLD_SIZE": "3"}, 3),
        ({"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "none"}, 3),
        ({"LOCAL_WORLD_SIZE": "4"}, 1),  # left over from elsewhere
    ],
)
def test_ranks_on_a_machine_share_its_memory(monkeypatch, told, ranks):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(memory, "available_bytes", lambda: 240.0)
    assert own_share_bytes() == 240 / ranks
    assert fits_in_memory(60 // ranks)
    assert not fits_in_memory(60 // ranks + 1)
