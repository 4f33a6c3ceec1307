"""The bench: seeds in this process or in turn with another program, going on, failures, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import velodrome as vd
from velodrome import benching
from velodrome.bench_commands import Stopped
from velodrome.bench_results import Bench
from velodrome.cli import main
from velodrome.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_RESUMABLE,
    ConfigError,
    InterruptedRunError,
    RunError,
    TrainingError,
    VelodromeWarning,
)
from velodrome.run.folder import RunFolder
from velodrome.run.lock import locked

TINY = {
    "data": "shapes",
    "limit_train": 256,
    "limit_test": 50,
    "epochs": 1,
    "width": 4,
    "batch_size": 64,
    "lr": 0.05,
    "precision": "fp32",
}
FLAGS = [word for key, value in TINY.items() for word in ("--" + key.replace("_", "-"), str(value))]
# Stands for the Python that runs `-m velodrome train --config F --seed K --runs-dir DIR --name NAME --quiet`.
FAKE_PYTHON = """#!/bin/sh
echo "velodrome $7" >> "$9/order"
if [ "$7" = 666 ]; then echo some; echo "velodrome: the loss is not finite."; exit 1; fi
sleep 0.1
mkdir "$9/${11}"
printf '{"test_accuracy": 0.9, "test_accuracy_tta": 0.92, "train_seconds": 2.0}' > "$9/${11}/result.json"
"""


def tiny(tmp_path: Path, **changes: object) -> vd.Config:
    return vd.recipes.quick(runs_dir=tmp_path / "runs", **{**TINY, **changes})


class FakeTraining:
    """Stands for `session.train`: leaves the figures of a run and remembers the seeds."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.errors: dict[int, BaseException] = {}

    def __call__(self, config: vd.Config, *, progress: bool = True) -> vd.Run:
        seed, folder = config.run.seed, RunFolder(config.run.runs_dir / str(config.run.name))
        self.seeds.append(seed)
        folder.path.mkdir()
        if seed in self.errors:
            raise self.errors.pop(seed)
        figures = {
            "test_accuracy": 0.93 + seed / 1000,
            "test_accuracy_tta": 0.94 + seed / 1000,
            "train_seconds": 10.0 + seed,
            "predict_seconds": 0.5,
            "train_pflop": 2e-3,
        }
        folder.result.write_text(json.dumps(figures))
        return vd.Run(folder)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    fake, speeds = FakeTraining(), iter(range(300, 10_000))
    monkeypatch.setattr("velodrome.session.train", fake)
    monkeypatch.setattr(benching, "matrix_speeds", lambda _: {"fp32": float(next(speeds))})
    return fake


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("needs a shell")
    script = tmp_path / "fake-python"
    script.write_text(FAKE_PYTHON)
    script.chmod(0o755)
    monkeypatch.setattr(benching.sys, "executable", str(script))
    monkeypatch.setattr(benching, "matrix_speeds", lambda _: {"fp32": 300.0})


def record(path: Path) -> dict[str, Any]:
    content = json.loads((path / "bench.json").read_text())
    assert isinstance(content, dict)
    return content


# In this process.


def test_a_real_bench_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "quick", *FLAGS, "--runs", "2", "--runs-dir", str(tmp_path), "--json"]
    assert main(words) == EXIT_DONE
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    content = json.loads(captured.out)
    path = tmp_path / "bench-1"
    assert content.pop("path") == str(path)
    assert content == record(path)
    assert [run["seed"] for run in content["runs"]] == [0, 1]
    assert content["summary"]["accuracy_tta"]["n"] == 2
    assert all(run["ceiling_gflops"] > 0 for run in content["runs"])
    assert "seed 1: " in captured.err
    assert "(2 of 2)" in captured.err
    for seed in (0, 1):
        run = vd.Run(path / f"seed-{seed}")
        assert run.result["seed"] == seed
        row = content["runs"][seed]
        assert row["train_s"] == run.result["train_seconds"]
        assert row["accuracy_tta"] == run.result["test_accuracy_tta"]
        assert row["predict_s"] == run.result.get("predict_seconds")
    assert (path / "bench.md").read_text().startswith("## ")
    # What it writes down is what a run can be made with.
    assert main(["train", "--config", str(path / "settings.yaml"), "--print-config", "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["limit_train"] == 256


def test_seeds_count_up_from_that_of_the_config(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = vd.bench(tiny(tmp_path, seed=3), runs=3)
    assert training.seeds == [3, 4, 5]
    assert found.path == tmp_path / "runs" / "bench-1"
    assert [run.seed for run in found.runs] == [3, 4, 5]
    # The better of the two measurements around each run.
    assert [run.ceiling_gflops for run in found.runs] == [301, 303, 305]
    assert found.runs[0].gflops == pytest.approx(2e-3 * 1e6 / 13)
    time_s, accuracy = found.summary()["time_s"], found.summary()["accuracy_tta"]
    assert time_s is not None
    assert (time_s.median, time_s.min, time_s.max) == (14.5, 13.5, 15.5)
    assert accuracy is not None
    assert accuracy.mean == pytest.approx(0.944)
    assert "seed 4: 94.40% in 14.5 s (2 of 3)" in capsys.readouterr().err
    assert vd.bench(tiny(tmp_path), runs=1, progress=False).path.name == "bench-2"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), EXIT_INTERRUPTED),
        (Stopped(signal.SIGTERM), EXIT_RESUMABLE),
        (InterruptedRunError("Stopped.", "Go on.", EXIT_RESUMABLE), EXIT_RESUMABLE),
    ],
)
def test_it_goes_on_where_it_stopped(
    error: BaseException, code: int, training: FakeTraining, tmp_path: Path
) -> None:
    config = tiny(tmp_path, name="mine")
    training.errors[1] = error
    with pytest.raises(InterruptedRunError, match="1 of 3 are measured") as stopped:
        vd.bench(config, runs=3, progress=False)
    assert stopped.value.exit_code == code
    assert "--name mine" in stopped.value.remedy
    path = tmp_path / "runs" / "mine"
    assert [run["seed"] for run in record(path)["runs"]] == [0]
    (path / "seed-1" / "left").write_text("half a run")
    with pytest.warns(VelodromeWarning, match="seed-1 did not come to its end"):
        found = vd.bench(config, runs=3, progress=False)
    assert training.seeds == [0, 1, 1, 2]
    assert not (path / "seed-1" / "left").exists()
    assert [run.seed for run in found.runs] == [0, 1, 2]
    assert found.runs[0].ceiling_gflops == 301
    assert len(found.starts) == 2


def test_more_runs_can_be_asked_for_and_nothing_is_measured_twice(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path, name="mine")
    vd.bench(config, runs=2, progress=False)
    found = vd.bench(config, runs=3)
    assert training.seeds == [0, 1, 2]
    assert "seed 0: 94.00% in 10.5 s (1 of 3), measured before" in capsys.readouterr().err
    starts = found.starts
    again = vd.bench(config, runs=1, progress=False)
    assert training.seeds == [0, 1, 2]
    assert [run.seed for run in again.runs] == [0, 1, 2]
    assert again.starts == starts  # as nothing was measured


def test_a_run_that_finished_just_before_a_kill_counts(training: FakeTraining, tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine")
    bench = vd.bench(config, runs=2, progress=False)
    Bench(bench.path, bench.settings, None, bench.machine, bench.starts, bench.runs[:1]).save()
    found = vd.bench(config, runs=2, progress=False)
    assert training.seeds == [0, 1]
    assert found.runs[1].time_s == 11.5
    assert found.runs[1].ceiling_gflops is None


def test_a_run_that_fails_is_recorded_and_run_again(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.errors = {1: TrainingError("The loss is not finite.", "Lower --lr."), 2: RunError("No.", "So.")}
    words = ["bench", *FLAGS, "--runs", "4", "--runs-dir", str(tmp_path), "--name", "mine"]
    assert main(words) == EXIT_PARTLY
    captured = capsys.readouterr()
    assert "2 of 4 runs of velodrome failed (seeds 1, 2): The loss is not finite. Lower --lr." in captured.err
    assert "| 1 | failed | - |" in captured.out
    assert training.seeds == [0, 1, 2, 3]
    accuracy = Bench.load(tmp_path / "mine").summary()["accuracy_tta"]
    assert accuracy is not None
    assert accuracy.n == 2
    assert main(words) == EXIT_DONE
    assert training.seeds == [0, 1, 2, 3, 1, 2]


def test_other_settings_and_other_machines_are_refused(training: FakeTraining, tmp_path: Path) -> None:
    path = vd.bench(tiny(tmp_path, name="mine"), runs=1, progress=False).path
    before = (path / "bench.json").read_bytes()
    with pytest.raises(ConfigError, match="mine was made with epochs 1, but now it is 2"):
        vd.bench(tiny(tmp_path, name="mine", epochs=2), runs=1, progress=False)
    with pytest.raises(ConfigError, match="made with --against None, but now it is true"):
        vd.bench(tiny(tmp_path, name="mine"), runs=1, against="true", progress=False)
    assert (path / "bench.json").read_bytes() == before
    content = record(path)
    content["machine"]["torch"] = "1.0"
    (path / "bench.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"made with torch 1\.0"):
        vd.bench(tiny(tmp_path, name="mine"), runs=2, progress=False)
    assert training.seeds == [0]


def test_what_is_no_bench_is_refused_and_left_alone(training: FakeTraining, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    with pytest.raises(ConfigError, match="mine exists, but is not a bench"):
        vd.bench(tiny(tmp_path, name="mine"), progress=False)
    assert list(run.iterdir()) == []
    (run / "bench.json").write_text('{"settings": {}}')
    with pytest.raises(RunError, match=r"bench.json is damaged: it has no 'against'"):
        vd.bench(tiny(tmp_path, name="mine"), progress=False)
    assert training.seeds == []


def test_one_process_at_a_time(training: FakeTraining, tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine")
    path = vd.bench(config, runs=1, progress=False).path
    with locked(RunFolder(path)), pytest.raises(RunError, match="in use by another process"):
        vd.bench(config, runs=2, progress=False)
    (path / "seed-1").mkdir()
    with locked(RunFolder(path / "seed-1")), pytest.raises(RunError, match="in use by another process"):
        vd.bench(config, runs=2, progress=False)
    assert training.seeds == [0]


# In turn with another program.


def test_the_ratio_of_wall_times(commands: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "runs" / "bench-1"
    rival = f'echo rival >> "{place}/order"; sleep 0.5; echo "acc: 12.0"; echo "acc: 91.5 | done"'
    words = ["bench", *FLAGS, "--runs", "2", "--runs-dir", str(tmp_path / "runs"), "--against", rival]
    words += ["--against-accuracy", r"acc: ([\d.]+)"]
    assert main([*words, "--json"]) == EXIT_DONE
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert (place / "order").read_text().split("\n") == ["velodrome 0", "rival", "velodrome 1", "rival", ""]
    for run, beside in zip(content["runs"], content["rivals"], strict=True):
        assert 0.1 < run["wall_s"] < beside["wall_s"]
        assert beside["wall_s"] > 0.5
        assert beside["accuracy"] == 0.915
    ratios = [b["wall_s"] / a["wall_s"] for a, b in zip(content["runs"], content["rivals"], strict=True)]
    assert content["summary"]["ratio"]["median"] == pytest.approx(sum(ratios) / 2)
    assert (content["summary"]["ratio"]["min"], content["summary"]["ratio"]["n"]) == (min(ratios), 2)
    assert content["runs"][0]["time_s"] is None  # the fake does not say how long its answers took
    assert "acc: 91.5" in (place / "rival-1.log").read_text()
    assert "seed 0: the other program" in captured.err
    table = (place / "bench.md").read_text()
    assert (
        f"| 1 | {content['runs'][1]['wall_s']:.2f} | {content['rivals'][1]['wall_s']:.2f} | 91.50% |" in table
    )


def test_pairs_are_kept_and_logs_are_read_again(commands: None, tmp_path: Path) -> None:
    config, rival = tiny(tmp_path, name="mine"), "echo 0.8; echo 0.9"
    first = vd.bench(config, runs=1, against=rival, progress=False)
    assert first.rivals[0].accuracy is None
    found = vd.bench(config, runs=2, against=rival, against_accuracy="(0.+)", progress=False)
    assert [row.accuracy for row in found.rivals] == [0.9, 0.9]
    assert found.runs[0] == first.runs[0]
    assert found.rivals[0].wall_s == first.rivals[0].wall_s


def test_the_other_program_is_given_the_seed(commands: None, tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine", seed=7)
    rival = 'test {seed} = 7 && echo "0.{seed}"'
    found = vd.bench(config, runs=1, against=rival, against_accuracy="(0.+)", progress=False)
    assert (found.rivals[0].exit_code, found.rivals[0].accuracy, found.against) == (0, 0.7, rival)


def test_a_run_without_its_wall_time_is_run_again(commands: None, tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine")
    first = vd.bench(config, runs=1, against="true", progress=False)
    Bench(first.path, first.settings, "true", first.machine, first.starts).save()
    with pytest.warns(VelodromeWarning, match="is deleted and run again"):
        found = vd.bench(config, runs=1, against="true", progress=False)
    assert found.runs[0].wall_s is not None


def test_what_fails_is_recorded_and_the_others_go_on(
    commands: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    rival = f'test -e "{tmp_path}/second" || {{ touch "{tmp_path}/second"; echo broken; exit 3; }}'
    words = ["bench", *FLAGS, "--runs", "3", "--seed", "665", "--runs-dir", str(runs), "--against", rival]
    assert main([*words, "--quiet", "--name", "mine"]) == EXIT_PARTLY
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "1 of 3 runs of velodrome failed (seed 666): exit code 1: velodrome: the loss" in captured.err
    assert "1 of 3 runs of the other program failed (seed 665): exit code 3." in captured.err
    found = Bench.load(runs / "mine")
    assert [run.error is None for run in found.runs] == [True, False, True]
    assert (found.rivals[0].exit_code, found.rivals[0].output_end) == (3, "broken")
    assert [found.ratio(seed) is not None for seed in (665, 666, 667)] == [False, False, True]
    assert "| 665 | " in captured.out
    assert "| exit code 3 | - | - |" in captured.out


def alive(number: int) -> bool:
    """Whether a process goes on; one that has ended and is not yet collected does not."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_ctrl_c_ends_the_children_and_keeps_what_is_finished(tmp_path: Path) -> None:
    noted = tmp_path / "children"
    rival = f"sleep 1000 & echo $! > {noted}.part; echo $$ >> {noted}.part; mv {noted}.part {noted}; wait"
    words = ["bench", *FLAGS, "--runs", "2", "--name", "mine", "--against", rival]
    process = subprocess.Popen(
        [sys.executable, "-m", "velodrome", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background hands down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 300
    while not noted.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert noted.exists(), process.communicate()
    children = [int(word) for word in noted.read_text().split()]
    assert all(map(alive, children))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED, error
    assert "0 of 2 are measured and kept in runs/mine." in error
    assert not any(map(alive, children))
    rows = record(tmp_path / "runs" / "mine")["runs"]
    assert [row["seed"] for row in rows] == [0]
    assert rows[0]["wall_s"] > rows[0]["train_s"]
    assert rows[0]["error"] is None


# Input and output.

BAD = [
    (["--runs", "0"], "--runs is '0', but must be a whole number at least 1."),
    (["--runs", "many"], "--runs is 'many'"),
    (["--seed", str(2**32 - 1), "--runs", "2"], "seed is 4294967296"),
    (["--against", " "], "--against is empty"),
    (["--against-accuracy", "(.)"], "Add --against."),
    (["--against", "true", "--against-accuracy", "("], "is not a regular expression"),
    (["--against", "true", "--against-accuracy", "acc"], "has 0 groups, but must have one."),
    (["--against", "true", "--against-accuracy", "(a)(b)"], "has 2 groups, but must have one."),
    (["--output", "none/table.md"], "--output none/table.md lies in none, which is not a folder."),
    (["--output", "."], "--output . is a folder."),
    (["--epochs", "0"], "--epochs is '0'"),
    (["--batch-size", "10001"], "batch_size is 10001"),
    (["--run", "3"], "--run is not an option of velodrome bench. Did you mean --runs?"),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_line_and_writes_nothing(
    words: list[str],
    expected: str,
    training: FakeTraining,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--data", "shapes", *words]) == EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []
    assert training.seeds == []


def test_the_table_is_appended_to_a_file_or_printed(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", *FLAGS, "--runs", "2", "--runs-dir", str(tmp_path / "runs"), "--name", "mine"]
    assert main([*words, "--quiet"]) == EXIT_DONE
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == (tmp_path / "runs" / "mine" / "bench.md").read_text()
    output = tmp_path / "table.md"
    for _ in range(2):
        assert main([*words, "--quiet", "--output", str(output)]) == EXIT_DONE
        assert capsys.readouterr().out == f"The table is in {output}\n"
    assert output.read_text() == f"{captured.out}\n{captured.out}"


def test_dry_run_and_print_config_write_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *FLAGS, "--runs", "3", "--seed", "2", "--dry-run", "--json"]) == EXIT_DONE
    plan = json.loads(capsys.readouterr().out)
    assert (plan["runs"], plan["seeds"], plan["run_folder"]) == (3, "2 to 4", "runs/bench-1")
    assert plan["steps"] == 4
    assert main(["bench", "--data", "shapes", "--print-config", "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["recipe"] == "quick"
    assert list(tmp_path.iterdir()) == []
