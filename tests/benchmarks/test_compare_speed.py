"""The benchmark of comparisons: that it runs, with a few folders, and what it claims."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    compare_speed = importlib.import_module("compare_speed")


def test_the_whole_script_runs(tmp_path, capsys):
    output = tmp_path / "table.md"
    words = ["--runs", "6", "--variants", "2", "--images", "40", "--rounds", "1", "--output", str(output)]
    assert compare_speed.main(words) == 0
    text = output.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    for part in (
        "6 run folders of 2 configurations",
        "compare, table and page",
        "wanted less than 10: reached",
    ):
        assert part in text


def test_claims_are_about_seconds():
    found = {name: [1.0] for name in compare_speed.TIMES}
    assert [claim.reached for claim in compare_speed.claims(found)] == [True, False]
