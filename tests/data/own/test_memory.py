"""How much memory there is, as Linux shows it in either layout of control groups."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from velodrome.data.own import memory
from velodrome.data.own.memory import FIRST, SECOND, Layout, available_bytes, fits_in_memory

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
