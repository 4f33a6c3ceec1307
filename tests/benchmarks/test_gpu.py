"""The sitting on a GPU, tried on the CPU: that it runs to its end, and what its tables say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from velodrome import recipes
from velodrome.bench_rows import OwnRun
from velodrome.config import check

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    gpu = importlib.import_module("gpu")

TINY = [
    *("--data", "shapes", "--limit-train", "100", "--limit-test", "40", "--batch-size", "32", "--width", "2"),
    *("--epochs", "1", "--device", "cpu", "--precision", "fp32", "--ghost-batch", "8", "--no-compile"),
]


def test_the_whole_sitting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "STEPS_COMPARED", 3)
    monkeypatch.setattr(gpu, "ceilings", lambda config: (["### Ceilings", ""], {"bf16": 1e3, "fp32": 500.0}))
    output, record = tmp_path / "gpu.md", tmp_path / "gpu.json"
    rival = f"{sys.executable} -c \"print('took 4.0 s, accuracy: 91')\""
    words = [*TINY, "--only", "speed94", "dawnbench", "--runs", "speed94=3", "dawnbench=1", "--rounds", "2"]
    assert gpu.main([*words, "--against", rival, "--output", str(output), "--json", str(record)]) == 0
    text = output.read_text()
    first_steps, _, trained = text.partition("### Ceilings")
    assert first_steps.count("| 0.00% | 0.00% |") == 4  # two recipes in two ways, on the CPU like there
    rows = {line.split(" | ")[0].strip("| "): line for line in trained.splitlines() if line.startswith("|")}
    assert "n = 3" in rows["speed94"]
    assert "n = 1" in rows["dawnbench"]
    assert rows["1"].split(" | ")[2:6] == ["2", "4.000", "1", "91 (n = 1)"]
    assert rows["2"].split(" | ")[2] == "1"
    assert "ours / other" in trained
    runs = json.loads(record.read_text())
    assert [run["seed"] for run in runs["speed94"]] == [0, 1, 2]
    assert all(run["time_s"] > 0 and run["dawnbench_s"] > 0 for run in runs["speed94"])
    assert len({run["accuracy"] for run in runs["speed94"]} | {0.0}) > 1
    err = capsys.readouterr().err
    assert err.count("speed94, seed") == 3


def test_the_first_losses_are_those_of_a_run() -> None:
    sitting = gpu.Sitting(gpu.parse([*TINY, "--epochs", "2"]))
    config = sitting.config("speed94")
    losses = gpu.first_losses(config, compiled=False)
    assert len(losses) == 8  # four steps an epoch
    assert losses == gpu.first_losses(config, compiled=False)


def test_time_that_is_over_ends_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    sitting = gpu.Sitting(gpu.parse([*TINY, "--minutes", "0"]))
    assert list(sitting.runs("speed94", sitting.config("speed94"), 3)) == []
    assert "0 of 3 runs, then the time was over" in capsys.readouterr().err


def test_every_variant_of_the_ablation_is_a_recipe_without_one_trick() -> None:
    whole = recipes.dawnbench()
    for what, changes in gpu.ABLATION.items():
        config = check(recipes.dawnbench(**changes))
        assert (config == whole) == (what == "all tricks"), what


def test_a_row_of_the_table() -> None:
    runs = [OwnRun(seed, 0.93 + seed / 100, 0.94, 1.0, 0.5, 2.0, None, None, 0.25) for seed in (0, 1)]
    row = gpu.Measured("speed94", runs, [12.0, 1.0]).row(4e6)
    assert row[0] == "speed94"
    assert row[1].startswith("mean 94.00%")
    assert row[2].startswith("mean 93.50%")
    assert row[3:] == [
        "1.500 (1.500 to 1.500, n = 2)",
        "1.250 (1.250 to 1.250, n = 2)",
        "12.0",
        "2.000",
        "50%",
    ]


def test_bad_input_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([*TINY, "--width", "0"]) == 2
    err = capsys.readouterr().err
    assert "width is '0'" in err
    assert err.count("\n") == 1
