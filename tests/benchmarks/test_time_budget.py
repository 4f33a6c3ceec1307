"""The benchmark of time budgets: what it measures and what it says."""

import argparse
import functools
import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velodrome.recipes import folder

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    time_budget = importlib.import_module("time_budget")


def test_a_run_is_timed_from_images_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for number in range(80):
        place = tmp_path / "photos" / ("red", "blue")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(place / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time_budget, "folder", functools.partial(folder, width=4, lr=0.01))
    words = ["--child", "6s", "--folder", str(tmp_path / "photos"), "--seed", "1"]
    found = time_budget.Timed("6s", **time_budget.train(time_budget.parse(words)))
    assert 1 < found.seconds < 20
    assert min(found.steps, found.planned) >= 10
    assert 0 <= found.accuracy <= 1


def test_the_report_counts_who_kept_to_the_time() -> None:
    found = [
        time_budget.Timed("30s", 31.0, 60, 57, 0.5),
        time_budget.Timed("1m", 56.0, 100, 100, 0.625),
        time_budget.Timed("30s", 29.4, 60, 60, 0.5),
    ]
    text = time_budget.report(time_budget.parse(["--budgets", "30s", "1m"]), found, "python x", 0.1)
    assert "| 30s | 31.0 s | +3.3% | 60 | 57 (-5.0%) | 50.00% |" in text
    assert "| 1m | 56.0 s | -6.7% | 100 | 100 (+0.0%) | 62.50% |" in text
    assert text.index("29.4 s") < text.index("56.0 s")
    assert text.endswith("Within 5%: 2 of 3 runs; the worst was off by -6.7%.\n")


def test_what_is_no_time_is_refused() -> None:
    assert time_budget.budget("90s") == "90s"
    with pytest.raises(argparse.ArgumentTypeError, match="'soon' is not a length of time"):
        time_budget.budget("soon")
