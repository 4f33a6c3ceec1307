"""Trials: variants and seeds in one folder, going on, failures, interrupts, bad input, what is printed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import velodrome as vd
from velodrome.bench_commands import Stopped
from velodrome.cli import main
from velodrome.config import to_yaml
from velodrome.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_RESUMABLE,
    ConfigError,
    DataError,
    InterruptedRunError,
    RunError,
    TrainingError,
)
from velodrome.run.answers import COLUMNS
from velodrome.run.folder import RunFolder
from velodrome.run.lock import locked
from velodrome.trial_record import Trials

TINY = {
    "data": "shapes",
    "limit_train": 128,
    "limit_test": 50,
    "epochs": 1,
    "width": 4,
    "batch_size": 64,
    "lr": 0.05,
    "precision": "fp32",
}
FLAGS = [word for key, value in TINY.items() for word in ("--" + key.replace("_", "-"), str(value))]
IMAGES = 50
Command = Callable[..., subprocess.CompletedProcess[str]]


def tiny(tmp_path: Path, **changes: object) -> vd.Config:
    return vd.recipes.quick(runs_dir=tmp_path / "runs", **{**TINY, **changes})


def record(path: Path) -> dict[str, Any]:
    content = json.loads((path / "trials.json").read_text())
    assert isinstance(content, dict)
    return content


def status(path: Path) -> dict[str, str]:
    return {trial["folder"]: trial["status"] for trial in record(path)["trials"]}


class FakeTraining:
    """Stands for `session.train`: leaves a finished run and remembers its name.

    Attributes:
        made: names of the folders, in order.
        before: errors to raise, by name, before there is a folder.
        after: errors to raise, by name, once there is one.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self.before: dict[str, BaseException] = {}
        self.after: dict[str, BaseException] = {}

    def __call__(self, config: vd.Config, *, progress: bool, resume: str) -> vd.Run:
        assert resume == "auto"
        name = str(config.run.name)
        self.made.append(name)
        if name in self.before:
            raise self.before.pop(name)
        folder = RunFolder(config.run.runs_dir / name)
        folder.path.mkdir(exist_ok=True)
        folder.config.write_text(to_yaml(replace(config, run=replace(config.run, name=None))))
        if name in self.after:
            raise self.after.pop(name)
        finish(folder, config)
        return vd.Run(folder)


def finish(folder: RunFolder, config: vd.Config) -> None:
    """Answers and figures; the more cutout, and the higher the seed, the fewer mistakes."""
    wrong = 20 - int(config.augment.cutout) - config.run.seed
    with folder.predictions.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for index in range(IMAGES):
            writer.writerow([index, f"test/{index}.png", "disc", "ring" if index < wrong else "disc", 0.9, 1])
    accuracy = 1 - wrong / IMAGES
    figures = {"test_accuracy": accuracy, "test_accuracy_tta": accuracy, "train_accuracy": 1.0}
    folder.result.write_text(json.dumps({**figures, "train_seconds": 10.0, "data": "shapes"}))


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    fake = FakeTraining()
    monkeypatch.setattr("velodrome.session.train", fake)
    return fake


# Real runs.


def test_real_trials_of_which_some_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["trials", "quick", *FLAGS, "--seeds", "2", "--runs-dir", str(tmp_path), "--json"]
    words += ["--also", "optimizer=adam,lr=0.01", "--also", "lr=1e30", "--also", "early_stop=3"]
    assert main(words) == EXIT_PARTLY
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    content = json.loads(captured.out)
    path = tmp_path / "trials-1"
    assert content["path"] == str(path)
    assert [variant["label"] for variant in content["variants"]] == [
        *("baseline", "optimizer=adam, lr=0.01", "lr=1e+30", "early_stop=3"),
    ]
    folders = [trial["folder"] for trial in content["trials"]]
    assert folders[:3] == ["baseline-seed-0", "optimizer-adam_lr-0.01-seed-0", "lr-1e+30-seed-0"]
    assert folders[4] == "baseline-seed-1"
    errors = {trial["variant"]: trial["error"] for trial in content["trials"]}
    assert errors["baseline"] is errors["optimizer=adam, lr=0.01"] is None
    assert "loss is not finite" in errors["lr=1e+30"]
    assert "no validation images to stop by" in errors["early_stop=3"]
    assert "4 of 8 trials failed (lr=1e+30, seed 0; early_stop=3, seed 0; lr=" in captured.err
    assert "the same command with --name trials-1 tries them again." in captured.err

    baseline, adam = content["comparison"]["variants"]
    assert (baseline["label"], baseline["n"], adam["n"]) == ("baseline", 2, 2)
    for seed in (0, 1):
        result = vd.Run(path / f"baseline-seed-{seed}").result
        assert result["seed"] == seed
        assert baseline["runs"][seed]["test_accuracy"] == result["test_accuracy"]
    assert not (path / "early-stop-3-seed-0").exists()
    with (path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["stopped"] * 2
    assert "adam" in (path / "trials.html").read_text()
    assert "trial 2 of 8: optimizer=adam, lr=0.01, seed 0 (about " in captured.err
    assert str(path / "optimizer-adam_lr-0.01-seed-0") in captured.err  # the display of the run itself


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_stop_is_gone_on_with_from_the_step_where_it_was(tmp_path: Path, command_here: Command) -> None:
    flags = [*FLAGS, "--limit-train", "256", "--epochs", "12", "--seeds", "1", "--vary", "cutout=0,8"]
    words = ["trials", "quick", *flags, "--name", "mine", "--quiet"]
    path = tmp_path / "runs" / "mine"
    first, second = path / "cutout-0-seed-0", path / "cutout-8-seed-0"
    for number, code in ((signal.SIGTERM, EXIT_RESUMABLE), (signal.SIGINT, EXIT_INTERRUPTED)):
        process = subprocess.Popen(
            [sys.executable, "-m", "velodrome", *words],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
            # A suite that runs in the background hands down that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        wait_for_epoch(first if code == EXIT_RESUMABLE else second, process)
        process.send_signal(number)
        _, error = process.communicate(timeout=120)
        assert process.returncode == code, error
        done = 0 if code == EXIT_RESUMABLE else 1
        assert f"Stopped; {done} of 2 trials have finished, and all up to here is kept in runs/mine." in error
        assert "Go on with the same command and --name mine." in error
    finished = (first / "result.json").stat().st_mtime_ns
    done = command_here(*words, cwd=tmp_path)
    assert done.returncode == EXIT_DONE, done.stderr
    assert (first / "result.json").stat().st_mtime_ns == finished
    for run in (first, second):
        starts = [event["step"] for event in RunFolder(run).read_events() if event["event"] == "RunStarted"]
        assert len(starts) == 2
        assert starts[0] == 0 < starts[1]
    assert set(status(path).values()) == {"finished"}


def wait_for_epoch(run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has an epoch behind it."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if RunFolder(run).read_history():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"{run} never got an epoch behind it")


# The plan and its record.


def test_all_variants_are_run_once_before_any_is_run_twice(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = vd.trials(tiny(tmp_path, seed=3), seeds=2, vary={"cutout": [2, 8]}, also=[{"l1": 0.1}])
    assert training.made == [
        f"{slug}-seed-{n}" for n in (3, 4) for slug in ("cutout-2", "cutout-8", "l1-0.1")
    ]
    assert found.path == tmp_path / "runs" / "trials-1"
    assert found.comparison is not None
    assert [variant.label for variant in found.comparison.variants][:2] == ["baseline", "cutout=8"]
    accuracies = found.comparison.variants[0].figures["test_accuracy"]
    assert accuracies is not None
    assert accuracies.mean == pytest.approx(1 - 14.5 / IMAGES)
    assert found.comparison.contrasts[0].pairs == 2
    shown = capsys.readouterr().err
    assert shown.startswith("trial 1 of 6: cutout=2, seed 3\n70.00% test accuracy (70.00% with TTA) in 0 s\n")
    assert "trial 6 of 6: l1=0.1, seed 4 (about 0 s left)\n" in shown
    again = vd.trials(tiny(tmp_path), seeds=1, progress=False)
    assert again.path.name == "trials-2"
    assert capsys.readouterr().err == ""
    assert "1 run in 1 variant" in str(again)
    assert "<table>" in again._repr_html_()


def test_the_runs_have_their_settings_and_can_be_compared_by_themselves(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = vd.trials(tiny(tmp_path), seeds=2, vary={"cutout": [2, 8]}, progress=False)
    config = (found.path / "cutout-8-seed-1" / "config.yaml").read_text()
    assert "\ncutout: 8\n" in config
    assert "\nseed: 1\n" in config
    assert main(["compare", str(found.path)]) == EXIT_DONE
    assert capsys.readouterr().out == f"{found}\n"


def test_more_seeds_and_variants_can_be_asked_for_and_nothing_is_trained_twice(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path, name="mine")
    vd.trials(config, seeds=1, vary={"cutout": [2, 8]}, progress=False)
    found = vd.trials(config, seeds=2, vary={"cutout": ["8", "4"]})
    assert training.made[2:] == ["cutout-4-seed-0", "cutout-8-seed-1", "cutout-4-seed-1"]
    shown = capsys.readouterr().err
    assert shown.startswith("1 of 4 trials have finished before\ntrial 2 of 4: cutout=4, seed 0\n")
    assert [variant.label for variant in found.variants] == ["cutout=2", "cutout=8", "cutout=4"]
    assert found.comparison is not None
    assert [variant.n for variant in found.comparison.variants] == [1, 2, 2]
    assert found.comparison.baseline.settings["cutout"] == 2
    assert len(Trials.load(found.path).trials) == 5
    vd.trials(config, seeds=2, vary={"cutout": [4, 8]}, progress=False)
    assert len(training.made) == 5


def test_a_run_that_is_gone_is_made_again(training: FakeTraining, tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine")
    found = vd.trials(config, seeds=2, progress=False)
    (found.path / "baseline-seed-1" / "result.json").unlink()
    vd.trials(config, seeds=2, progress=False)
    assert training.made[2:] == ["baseline-seed-1"]


# Failures.


def test_a_trial_that_fails_is_recorded_and_tried_again(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.after["cutout-8-seed-0"] = TrainingError("The loss is not finite.", "Lower --lr.")
    training.before["cutout-2-seed-1"] = ConfigError("It does not fit.", "Change it.")
    words = ["trials", *FLAGS, "--seeds", "2", "--vary", "cutout=2,8", "--runs-dir", str(tmp_path)]
    assert main([*words, "--name", "mine"]) == EXIT_PARTLY
    captured = capsys.readouterr()
    assert "failed: The loss is not finite. Lower --lr.\ntrial 3 of 4" in captured.err
    assert (
        "velodrome: 2 of 4 trials failed (cutout=8, seed 0; cutout=2, seed 1): The loss is not finite. Lower"
        in captured.err
    )
    assert "2 runs in 2 variants" in captured.out
    assert f"Left out:\n- {tmp_path}/mine/cutout-8-seed-0 is not finished." in captured.out
    assert status(tmp_path / "mine") == {
        "cutout-2-seed-0": "finished",
        "cutout-8-seed-0": "failed",
        "cutout-2-seed-1": "failed",
        "cutout-8-seed-1": "finished",
    }
    assert main([*words, "--name", "mine", "--quiet"]) == EXIT_DONE
    assert training.made[4:] == ["cutout-8-seed-0", "cutout-2-seed-1"]
    assert set(status(tmp_path / "mine").values()) == {"finished"}
    assert all(trial["error"] is None for trial in record(tmp_path / "mine")["trials"])


@pytest.mark.parametrize(
    ("error", "words", "traced"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nmuch"),
            "Out of memory: CUDA out of memory.",
            False,
        ),
        (MemoryError("no room"), "Out of memory: no room Lower --batch-size or --width.", False),
        (RuntimeError("[...] DefaultCPUAllocator: can't allocate memory"), "Out of memory: [...]", False),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero", True),
    ],
)
def test_whatever_goes_wrong_the_others_go_on(
    error: Exception,
    words: str,
    traced: bool,
    training: FakeTraining,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    training.after["baseline-seed-0"] = error
    found = vd.trials(tiny(tmp_path), seeds=2, progress=False)
    assert [trial.status for trial in found.trials] == ["failed", "finished"]
    assert str(found.failed[0].error).startswith(words)
    assert ("Traceback" in capsys.readouterr().err) is traced


def test_a_baseline_without_a_run_is_told(training: FakeTraining, tmp_path: Path) -> None:
    for seed in (0, 1):
        training.after[f"baseline-seed-{seed}"] = TrainingError("The loss is not finite.", "Lower --lr.")
    also = [{"cutout": 2}, {"cutout": 4}]
    found = vd.trials(tiny(tmp_path), seeds=2, also=also, progress=False).comparison
    assert found is not None
    assert found.notes[0] == (
        "No run of the variant baseline can be compared: what is called baseline here is cutout=2."
    )
    training.after.clear()
    found = vd.trials(tiny(tmp_path), seeds=2, also=also, progress=False).comparison
    assert found is not None
    assert not any("called baseline" in note for note in found.notes)


def test_when_no_trial_can_begin_nothing_is_left_behind(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        training.before[f"baseline-seed-{seed}"] = DataError("There are no images.", "Take some.")
    words = ["trials", *FLAGS, "--seeds", "2", "--runs-dir", str(tmp_path / "runs"), "--quiet"]
    assert main(words) == EXIT_BAD_INPUT
    assert capsys.readouterr().err == "velodrome: There are no images. Take some.\n"
    assert list((tmp_path / "runs").iterdir()) == []


def test_when_all_fail_there_is_nothing_to_compare(
    training: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training.after["baseline-seed-0"] = TrainingError("The loss is not finite.", "Lower --lr.")
    words = ["trials", *FLAGS, "--seeds", "1", "--runs-dir", str(tmp_path), "--quiet"]
    assert main(words) == EXIT_PARTLY
    captured = capsys.readouterr()
    assert captured.out == f"No trial has finished.\n\nEverything is in {tmp_path}/trials-1.\n"
    assert "1 of 1 trials failed (baseline, seed 0)" in captured.err
    assert not (tmp_path / "trials-1" / "trials.html").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), EXIT_INTERRUPTED),
        (Stopped(signal.SIGTERM), EXIT_RESUMABLE),
        (InterruptedRunError("Stopped.", "Go on.", EXIT_RESUMABLE), EXIT_RESUMABLE),
    ],
)
def test_a_stop_ends_all_of_it(
    error: BaseException, code: int, training: FakeTraining, tmp_path: Path
) -> None:
    training.after["baseline-seed-1"] = error
    with pytest.raises(InterruptedRunError, match="1 of 3 trials have finished") as stopped:
        vd.trials(tiny(tmp_path), progress=False)
    assert stopped.value.exit_code == code
    assert training.made == ["baseline-seed-0", "baseline-seed-1"]
    path = tmp_path / "runs" / "trials-1"
    assert list(status(path).values()) == ["finished", "open", "open"]


# Refusals.


def test_another_base_is_refused(training: FakeTraining, tmp_path: Path) -> None:
    path = vd.trials(tiny(tmp_path, name="mine"), seeds=1, progress=False).path
    before = (path / "trials.json").read_bytes()
    with pytest.raises(ConfigError, match="mine were begun with epochs 1, but now it is 2"):
        vd.trials(tiny(tmp_path, name="mine", epochs=2), seeds=1, progress=False)
    assert (path / "trials.json").read_bytes() == before
    vd.trials(tiny(tmp_path, name="mine", checkpoint_every=5), seeds=1, progress=False)
    content = record(path)
    content["settings"]["velodrome"] = "0.0.1"
    (path / "trials.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"begun with velodrome 0\.0\.1"):
        vd.trials(tiny(tmp_path, name="mine"), seeds=2, progress=False)
    assert training.made == ["baseline-seed-0"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"settings": {}}', "it has no 'variants'"),
        ('{"settings": {}, "variants": [{"name": 1}], "trials": []}', "unexpected keyword"),
        ("[1]", "it is not a JSON object"),
        ("{", "damaged"),
    ],
)
def test_a_damaged_record_is_named(
    content: str, problem: str, training: FakeTraining, tmp_path: Path
) -> None:
    path = tmp_path / "runs" / "mine"
    path.mkdir(parents=True)
    (path / "trials.json").write_text(content)
    with pytest.raises(RunError, match=rf"trials.json is damaged.*{problem}|{problem}"):
        vd.trials(tiny(tmp_path, name="mine"), progress=False)
    assert training.made == []


def test_what_holds_no_trials_is_left_alone(training: FakeTraining, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "mine"
    path.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"mine exists, but holds no trials: it has no trials\.json"):
        vd.trials(tiny(tmp_path, name="mine"), progress=False)
    assert list(path.iterdir()) == []
    assert training.made == []


def test_one_process_at_a_time(training: FakeTraining, tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine")
    path = vd.trials(config, seeds=1, progress=False).path
    with locked(RunFolder(path)), pytest.raises(RunError, match="in use by another process"):
        vd.trials(config, seeds=2, progress=False)
    assert training.made == ["baseline-seed-0"]


BAD = [
    (["--seeds", "0"], "--seeds is '0', but must be a whole number at least 1."),
    (["--seed", str(2**32 - 1), "--seeds", "2"], "seed is 4294967296"),
    (["--vary", "cutot=8,16"], "--vary: cutot is not a setting. Did you mean cutout?"),
    (["--vary", "cutout=8,-1"], "--vary: cutout is '-1', but must be auto or a whole number at least 0."),
    (["--also", "cutout"], "--also is 'cutout'"),
    (["--epochs", "0"], "--epochs is '0'"),
    (["--varry", "a=1"], "--varry is not an option of velodrome trials. Did you mean --vary?"),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_line_and_writes_nothing(
    words: list[str], expected: str, training: FakeTraining, tmp_path: Path, command_here: Command
) -> None:
    done = command_here("trials", "--data", "shapes", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (EXIT_BAD_INPUT, "")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert training.made == []


# What it would do.


def test_dry_run_says_how_many_runs_and_how_long(
    training: FakeTraining, tmp_path: Path, command_here: Command
) -> None:
    words = ["trials", "quick", *FLAGS, "--seed", "2", "--vary", "epochs=1,8", "--also", "early_stop=3"]
    done = command_here(*words, "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == EXIT_DONE, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["runs"], plan["runs_finished"], plan["seeds"]) == (9, 0, "2 to 4")
    assert plan["trials_folder"] == "runs/trials-1"
    short, long, bad = plan["variants"]
    assert (short["label"], long["label"], bad["training_s"]) == ("epochs=1", "epochs=8", None)
    assert "no validation images to stop by" in bad["problem"]
    assert plan["training_s"] == pytest.approx(3 * (short["training_s"] + long["training_s"]), abs=0.11)
    assert list(tmp_path.iterdir()) == []
    done = command_here(*words, "--dry-run", cwd=tmp_path)
    assert "epochs=8 " in done.stdout
    assert "cannot be trained: early_stop is 3" in done.stdout
    done = command_here("trials", "quick", *FLAGS, "--also", "l1=1", "--print-config", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["l1"] == 0.0
    assert list(tmp_path.iterdir()) == []
    assert training.made == []


def test_dry_run_counts_what_is_there(training: FakeTraining, tmp_path: Path, command_here: Command) -> None:
    words = ["trials", "quick", *FLAGS, "--name", "mine"]
    assert command_here(*words, "--seeds", "1", cwd=tmp_path).returncode == EXIT_DONE
    plan = json.loads(command_here(*words, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert (plan["runs"], plan["runs_finished"]) == (3, 1)
    assert plan["training_s"] == pytest.approx(2 * plan["variants"][0]["training_s"], abs=0.11)
    done = command_here("trials", *FLAGS, "--early-stop", "3", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (EXIT_BAD_INPUT, "")
