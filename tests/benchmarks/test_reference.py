"""The row of a run for a table comes from the run folder."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import velodrome as vd

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    reference = importlib.import_module("reference")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> vd.Run:
    small = {"limit_train": 64, "limit_test": 20, "batch_size": 32, "width": 2, "epochs": 2, "lr": 0.1}
    place = tmp_path_factory.mktemp("reference")
    return vd.train(vd.recipes.quick(runs_dir=place, precision="fp32", **small), progress=False)


def test_the_report_has_the_figures_of_the_run_and_the_command_that_makes_them(run, tmp_path):
    output = tmp_path / "reference.md"
    assert reference.main([str(run.path), "--title", "a small run", "--output", str(output)]) == 0
    text = output.read_text()
    assert ": a small run\n" in text
    assert f"| test accuracy | **{100 * run.result['test_accuracy']:.2f}%** |" in text
    command = (
        "velodrome train quick --limit-train 64 --limit-test 20 --width 2 --epochs 2 --batch-size 32 --lr 0.1"
    )
    assert f"`{command} --lr-min 0.01`" in text
    assert "| times it was stopped or killed, and resumed | 0 |" in text
    assert text.splitlines()[-1].startswith("| 2 | ")


def test_a_run_that_has_not_finished_is_refused(run, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("")
    assert reference.main([str(tmp_path)]) == 2
    assert "has not finished" in capsys.readouterr().err
