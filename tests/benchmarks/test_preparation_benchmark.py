"""The benchmark of preparation: its files, its words, and that it runs, with a few images."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from velodrome.data.image_files import read_size

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    preparation = importlib.import_module("preparation")

TINY = ["--photos", "12", "--small", "8", "--image-size", "32", "--rounds", "2", "--batch-size", "2"]
TINY += ["--width", "2", "--steps", "1", "--warmup", "1"]


def test_files_are_drawn_once_and_look_like_photos(tmp_path):
    first = preparation.drawn(tmp_path, 5, preparation.draw_photo, ".jpg")
    times = [entry.path.stat().st_mtime_ns for entry in first]
    assert preparation.drawn(tmp_path, 5, preparation.draw_photo, ".jpg") == first
    assert [entry.path.stat().st_mtime_ns for entry in first] == times
    assert [entry.name for entry in first] == sorted(entry.name for entry in first)
    assert {preparation.CLASSES[entry.label] for entry in first} == set(preparation.CLASSES)
    for entry in first:
        assert sorted(read_size(entry.path)) == [375, 500]
        assert 30_000 < entry.path.stat().st_size < 120_000


def test_everybody_who_prepares_gets_through(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    entries = preparation.drawn(tmp_path / "small", 6, preparation.draw_small, ".png")
    for run in preparation.preparations(tmp_path / "small", entries, 32).values():
        run()


def test_claims_are_about_ratios_within_rounds():
    found = {
        "photos": {"velodrome": [20.0, 40.0], "Pillow, one process": [10.0, 10.0]},
        "small": {"velodrome": [15.0], "Pillow, one process": [10.0]},
        "training": {"from the map": [9.6], "from memory": [10.0], preparation.OF_SMALL: [11.0]},
    }
    claims = preparation.claims(found)
    assert [claim.reached for claim in claims] == [True, False, True, False]
    assert "3.000 (2.000 to 4.000, n = 2)" in str(claims[0])


def test_the_whole_script_runs_and_leaves_the_users_cache_alone(tmp_path, capsys):
    before = os.environ["XDG_CACHE_HOME"]
    output = tmp_path / "table.md"
    assert preparation.main([*TINY, "--keep", str(tmp_path / "files"), "--output", str(output)]) == 0
    assert os.environ["XDG_CACHE_HOME"] == before
    text = output.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    for words in (
        "photos, images/s",
        "small, images/s",
        "training, megapixels/s",
        "from the map",
        "wanted at least 1.7",
    ):
        assert words in text
    assert len(list((tmp_path / "files" / "photos").rglob("*.jpg"))) == 12
    assert {read_size(path) for path in (tmp_path / "files" / "small").rglob("*.png")} == {(32, 32)}
