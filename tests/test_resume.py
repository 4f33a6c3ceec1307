"""Resuming: the same bytes, more epochs, another machine; with real processes where it matters."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import velodrome as vd
from velodrome import resumption, running
from velodrome.errors import ConfigError, InterruptedRunError, RunError, VelodromeWarning
from velodrome.run.folder import HISTORY_COLUMNS, open_run
from velodrome.run.lock import locked
from velodrome.training import loop as training

SMALL = {
    "limit_train": 200,
    "limit_test": 60,
    "batch_size": 64,
    "width": 4,
    "epochs": 2,
    "lr": 0.05,
    "dropout": 0.1,
    "precision": "fp32",
}
FLAGS = [word for key, value in SMALL.items() for word in ("--" + key.replace("_", "-"), str(value))]
Command = Callable[..., subprocess.CompletedProcess[str]]


def small(tmp_path: Path, **changes: object) -> vd.Config:
    return vd.recipes.quick(runs_dir=tmp_path / "runs", **{**SMALL, **changes})


def velodrome(*words: str) -> list[str]:
    return [sys.executable, "-m", "velodrome", *words]


def heed_hangups() -> None:
    """These tests may themselves run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(*words: str, cwd: Path, **options: object) -> subprocess.Popen[str]:
    options = {"preexec_fn": heed_hangups, **options}
    return subprocess.Popen(velodrome(*words), cwd=cwd, stderr=subprocess.PIPE, text=True, **options)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of at least this step is announced."""
    for _ in range(3000):
        assert process.poll() is None, process.communicate()
        if (run / "events.jsonl").exists():
            *lines, _torn = (run / "events.jsonl").read_text().split("\n")
            if any(
                json.loads(line).get("event") == "CheckpointSaved" and json.loads(line)["step"] >= step
                for line in lines
            ):
                return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of step {step}")


def weights_of(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def learned(run: Path) -> list[list[str]]:
    """The columns of history.csv that do not depend on how fast the machine was."""
    columns = [column for column in HISTORY_COLUMNS if column not in ("time_s", "images_per_s")]
    with (run / "history.csv").open() as file:
        return [[row[column] for column in columns] for row in csv.DictReader(file)]


def interrupted(tmp_path: Path, name: str = "stopped", after: int = 1, **changes: object) -> Path:
    """A run that is told to stop after so many steps, without a process of its own."""
    requests = []

    class Request(running.StopRequest):
        def __enter__(self) -> running.StopRequest:
            requests.append(self)
            return super().__enter__()

    def fit(*given: object, **named: object) -> Iterator[object]:
        for count, event in enumerate(training.fit(*given, **named), 1):
            if count == after:
                requests[-1].signal = signal.SIGTERM
            yield event

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(running, "StopRequest", Request)
        patched.setattr(running, "fit", fit)
        with pytest.raises(InterruptedRunError):
            vd.train(small(tmp_path, name=name, **changes), progress=False)
    return tmp_path / "runs" / name


# The same bytes.


def test_a_run_killed_twice_ends_with_the_same_bytes(tmp_path: Path, command_here: Command) -> None:
    """Once in mid-epoch, once by a signal after going on; the checkpoints fall within epochs."""
    options = ["--epochs", "24", "--checkpoint-every", "0.0005"]
    run = tmp_path / "runs" / "killed"
    first = start("train", "--data", "shapes", *FLAGS, *options, "--name", "killed", cwd=tmp_path)
    wait_for_step(run, 10, first)
    first.kill()
    first.communicate()
    again = start("resume", "runs/killed", cwd=tmp_path)
    wait_for_step(run, 50, again)
    again.send_signal(signal.SIGHUP)
    _, said = again.communicate(timeout=60)
    assert again.returncode == 75, said
    assert not (run / "result.json").exists()
    done = command_here("resume", "runs/killed", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    alone = vd.train(small(tmp_path, name="alone", epochs=24), progress=False)
    assert weights_of(run) == weights_of(alone.path)
    assert learned(run) == learned(alone.path)


def test_500_steps_in_bf16_are_the_same_each_time(tmp_path: Path) -> None:
    config = {"precision": "bf16", "limit_train": 800, "batch_size": 16, "epochs": 10, "limit_test": 20}
    runs = [vd.train(small(tmp_path, name=name, **config), progress=False) for name in ("one", "two")]
    assert runs[0].folder.read_events()[-2]["step"] == 500
    assert weights_of(runs[0].path) == weights_of(runs[1].path)


def test_it_goes_on_with_the_threads_with_which_it_began(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = vd.train(small(tmp_path, name="whole"), progress=False)
        run = interrupted(tmp_path)
        torch.set_num_threads(1)
        vd.resume(run, progress=False)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    states = sorted((run / "checkpoints").glob("*/state.json"))
    assert [json.loads(state.read_text())["threads"] for state in states] == [2, 2]
    assert weights_of(run) == weights_of(whole.path)


def test_another_machine_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(tmp_path)
    here = resumption.bits_depend_on()
    words = f"began with torch {re.escape(str(here['torch']))} and goes on with 9.9"
    monkeypatch.setattr(resumption, "bits_depend_on", lambda: here | {"torch": "9.9"})
    with pytest.warns(VelodromeWarning, match=words):
        vd.resume(run, progress=False)


def test_the_command_tells_of_a_damaged_checkpoint_in_one_line(tmp_path: Path, command_here: Command) -> None:
    whole = vd.train(small(tmp_path, name="whole", epochs=3), progress=False)
    run = interrupted(tmp_path, after=6, epochs=3, checkpoint_every=1e-9)
    newest = max((run / "checkpoints").glob("step-*"))
    (newest / "model.safetensors").write_bytes(b"")
    done = command_here("resume", str(run), "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"velodrome: A checkpoint cannot be read ({newest.name}: the checksum of ")
    assert done.stderr.count("\n") == 1
    assert weights_of(run) == weights_of(whole.path)


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path: Path) -> None:
    run, other = interrupted(tmp_path), interrupted(tmp_path, "other", seed=1)
    for checkpoint in (run / "checkpoints").glob("step-*"):
        (other / "checkpoints" / checkpoint.name).rename(tmp_path / checkpoint.name)
        checkpoint.rename(other / "checkpoints" / checkpoint.name)
    with pytest.raises(RunError, match=r"it was trained with seed 0, but config.yaml says 1"):
        vd.resume(other, progress=False)


def test_a_damaged_log_or_environment_costs_nothing(tmp_path: Path) -> None:
    whole = vd.train(small(tmp_path, name="whole"), progress=False)
    run = interrupted(tmp_path)
    (run / "events.jsonl").write_bytes(b"\xff\x00 not a log\n" + (run / "events.jsonl").read_bytes())
    (run / "environment.json").write_text("{")
    (run / "summary.json").write_text("[]")
    (run / "history.csv").write_text("nonsense")
    vd.resume(run, progress=False)
    assert weights_of(run) == weights_of(whole.path)
    assert learned(run) == learned(whole.path)
    assert json.loads((run / "environment.json").read_text())["torch"] == torch.__version__
    assert (run / "report.html").exists()


# Networks that are fitted to images, Muon, and images that grow.

GROWING = {
    **{"model": "speednet", "optimizer": "muon", "resolutions": "16:1,24:1", "alternate_flip": True},
    **{"head_lr_scale": 0.1, "bias_lr_scale": 8.0, "score_every": 2, "tta": "shift", "epochs": 3},
}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> vd.Run:
    """An uninterrupted run of 12 steps; from step 6 on, in the middle of an epoch, the images are larger."""
    return vd.train(small(tmp_path_factory.mktemp("grown"), **GROWING), progress=False)


# An event is a step or the end of an epoch of 4 steps. So the run stops after 3 steps, after 6, when the next
# is the first with larger images, after 7, after 8, which is the end of an epoch, and after the first epoch.
@pytest.mark.parametrize("events_before", [3, 7, 8, 9, 5])
def test_a_run_whose_images_grow_ends_with_the_same_bytes(
    grown: vd.Run, tmp_path: Path, events_before: int
) -> None:
    run = interrupted(tmp_path, after=events_before, **GROWING)
    torch.manual_seed(99)  # whatever happened in between
    vd.resume(run, progress=False)
    assert weights_of(run) == weights_of(grown.path)
    assert learned(run) == learned(grown.path)
    for name in ("predictions.csv", "probabilities.npy"):
        assert (run / name).read_bytes() == (grown.path / name).read_bytes()
    result = json.loads((run / "result.json").read_text())
    for name in ("test_accuracy", "test_accuracy_tta", "train_loss", "train_pflop"):
        assert result[name] == grown.result[name]


def test_the_tests_above_would_notice_other_sizes(grown: vd.Run, tmp_path: Path) -> None:
    other = vd.train(small(tmp_path, **{**GROWING, "resolutions": "16:5,24:7"}), progress=False)
    assert weights_of(other.path) != weights_of(grown.path)  # they grow after 5 steps, not after 6


def test_more_epochs_keep_the_size_that_the_images_grew_to(tmp_path: Path) -> None:
    settings = {**GROWING, "score_every": 1, "epochs": 2}
    at_once = vd.train(
        small(tmp_path, name="whole", **{**settings, "epochs": 3, "schedule_epochs": 2}), progress=False
    )
    run = vd.train(small(tmp_path, name="stopped", **settings), progress=False)
    first_pflop = run.result["train_pflop"]
    longer = vd.resume(run.path, epochs=3, progress=False)
    assert weights_of(run.path) == weights_of(at_once.path)
    assert learned(run.path) == learned(at_once.path)
    # The first two epochs hold as many small images as large ones, the third large ones only.
    assert longer.result["train_pflop"] == at_once.result["train_pflop"] > 1.5 * first_pflop


def test_other_resolutions_are_another_run(tmp_path: Path) -> None:
    run = interrupted(tmp_path, **GROWING)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("16:1,24:1", "16:2,24:1"))
    with pytest.raises(RunError, match=r"trained with resolutions 16:1,24:1, but config.yaml says 16:2,24:1"):
        vd.resume(run, progress=False)


# More epochs.


@pytest.mark.parametrize("finished", [True, False])
def test_more_epochs_are_as_if_they_had_been_asked_for_at_once(tmp_path: Path, finished: bool) -> None:
    at_once = vd.train(small(tmp_path, name="whole", epochs=4, schedule_epochs=2), progress=False)
    if finished:
        run = vd.train(small(tmp_path, name="stopped"), progress=False).path
    else:
        run = interrupted(tmp_path)
    longer = vd.resume(run, epochs=4, progress=False)
    assert longer.result["epochs"] == 4
    assert weights_of(run) == weights_of(at_once.path)
    assert learned(run) == learned(at_once.path)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert (settings["epochs"], settings["schedule_epochs"]) == (4, 2)
    lrs = [
        lr
        for event in longer.folder.read_events()
        if event["event"] == "EpochDone"
        for lr in event["step_lrs"]
    ]
    assert lrs[-8:] == pytest.approx([0.005] * 8)


def test_the_epochs_that_an_interrupted_run_has_are_nothing_new(tmp_path: Path) -> None:
    whole = vd.train(small(tmp_path, name="whole"), progress=False)
    run = vd.resume(interrupted(tmp_path), epochs=2, progress=False)
    assert weights_of(run.path) == weights_of(whole.path)


def test_the_epochs_that_a_finished_run_has_are_nothing_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = vd.train(small(tmp_path), progress=False)
    before = {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()}
    vd.resume(run.path, epochs=2)
    assert "finished already" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "epochs", "problem"),
    [
        ({}, 1, "epochs is 1, but the run has 2"),
        ({"lr_final": 0.0}, 3, "ends at 0"),
        ({}, 0, "epochs is 0, but the run has 2"),
    ],
)
def test_epochs_that_cannot_be_are_refused_and_nothing_changes(
    tmp_path: Path, changes: dict[str, object], epochs: int, problem: str
) -> None:
    run = vd.train(small(tmp_path, **changes), progress=False)
    before = {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}
    with pytest.raises(ConfigError, match=problem):
        vd.resume(run.path, epochs=epochs, progress=False)
    assert {path: path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()} == before


def test_the_command_takes_more_epochs(tmp_path: Path, command_here: Command) -> None:
    run = vd.train(small(tmp_path, epochs=1), progress=False)
    done = command_here("resume", str(run.path), "--epochs", "2", "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 2
    bad = command_here("resume", str(run.path), "--epochs", "many", cwd=tmp_path)
    assert bad.returncode == 2
    assert "--epochs is 'many', but must be auto or a whole number" in bad.stderr


# One process at a time.


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    with locked(open_run(run)):
        done = subprocess.run(velodrome("resume", str(run)), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "in use by another process" in done.stderr
    assert np.isfinite(vd.resume(run, progress=False).result["test_loss"])


def test_under_nohup_a_closing_terminal_is_ignored(tmp_path: Path) -> None:
    ignores = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = start("train", "--data", "shapes", *FLAGS, "--epochs", "12", cwd=tmp_path, **ignores)
    wait_for_step(tmp_path / "runs" / "quick-1", 4, process)
    os.kill(process.pid, signal.SIGHUP)
    assert process.communicate(timeout=60) is not None
    assert process.returncode == 0
