"""What is said of what was removed from the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from own_images import shapes_folder

from velodrome.checking import clear_data, tell_cleared
from velodrome.cli import main
from velodrome.config import Config, override
from velodrome.data.sources import load_splits


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_a_folder_that_is_gone_is_cleared_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shapes_folder(tmp_path / "photos", train=100, test=20)
    load_splits(override(Config(), {"data": str(path)}).data, 0, progress=False)
    shutil.rmtree(path)
    assert main(["data", "clear", "photos/"]) == 0
    said = capsys.readouterr().out
    assert said.endswith(" MB freed. The images themselves are where they were.\n")
    assert not list((tmp_path / "cache").rglob("*.u8"))
    assert main(["data", "clear", "photos/"]) == 0
    assert capsys.readouterr().out == f"The cache holds nothing of {path}, so nothing is freed.\n"
    assert main(["data", "clear", "photos/", "--json"]) == 0
    assert capsys.readouterr().out == '{"freed_bytes": 0}\n'


def test_nothing_at_all() -> None:
    assert tell_cleared(None, clear_data(None)) == "The cache holds no prepared images, so nothing is freed."
