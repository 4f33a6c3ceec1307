"""The benchmark of trials: that it runs, with a few tiny ones, and tells the runs from the rest."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    trials_overhead = importlib.import_module("trials_overhead")


def test_the_whole_script_runs(tmp_path, capsys):
    output = tmp_path / "table.md"
    words = ["--seeds", "1", "--images", "100", "--rounds", "1", "--output", str(output)]
    assert trials_overhead.main(words) in (0, 1)  # the share is what a quiet machine tells
    text = output.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "2 runs of `quick` on 100 shapes, one epoch each" in text
    assert "wanted less than 2: " in text
    (row,) = (line for line in text.splitlines() if line.startswith("| 1 | "))
    in_all_s, runs_s, told_s = (float(cell) for cell in row.split(" | ")[1:4])
    assert in_all_s > runs_s > told_s > 0
