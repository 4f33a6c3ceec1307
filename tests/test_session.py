"""Whole runs through the API and the command: small, real, on drawn shapes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import velodrome as vd
from velodrome.errors import ConfigError, RunError, TrainingError, VelodromeWarning
from velodrome.reports import show
from velodrome.run.checkpoint import save_weights
from velodrome.run.folder import HISTORY_COLUMNS, RunFolder

SMALL = {
    "limit_train": 200,
    "limit_test": 60,
    "batch_size": 64,
    "width": 4,
    "epochs": 2,
    "lr": 0.05,
    "precision": "fp32",
}
FLAGS = [word for key, value in SMALL.items() for word in ("--" + key.replace("_", "-"), str(value))]
Command = Callable[..., subprocess.CompletedProcess[str]]


def small(tmp_path: Path, **changes: object) -> vd.Config:
    return vd.recipes.quick(runs_dir=tmp_path / "runs", **{**SMALL, **changes})


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "velodrome", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> vd.Run:
    return vd.train(small(tmp_path_factory.mktemp("session"), val_fraction=0.1), progress=False)


def test_the_run_folder_holds_the_contract(run: vd.Run) -> None:
    files = {path.name for path in run.path.iterdir()}
    assert files == {
        "config.yaml",
        "environment.json",
        "history.csv",
        "events.jsonl",
        "checkpoints",
        "model.safetensors",
        "summary.json",
        "predictions.csv",
        "probabilities.npy",
        "evaluation.json",
        "label_errors.csv",
        "gallery",
        "diagnosis.json",
        "result.json",
        "report.html",
        ".lock",
    }
    pictures = {path.name for path in (run.path / "gallery").iterdir()}
    assert pictures == {
        *("samples.json", "samples.webp", "augmented.webp"),
        *("mistakes.json", "mistakes.webp", "maps.npy"),
    }
    wanted = {
        *("test_accuracy", "test_accuracy_tta", "test_loss", "train_accuracy", "train_loss"),
        *("train_seconds", "epochs", "params", "images_per_s"),
        *("device", "precision", "seed", "data", "recipe"),
    }
    assert wanted <= set(run.result)
    with (run.path / "history.csv").open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert [row[0] for row in rows[1:]] == ["1", "2"]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder, and what a process left that trained there."""
    place = tmp_path_factory.mktemp("typed")
    return place, command("train", "--data", "shapes", *FLAGS, "--quiet", cwd=place)


def test_the_command_is_recorded_as_it_is_typed(
    typed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    place, done = typed
    assert done.returncode == 0
    environment = json.loads((place / "runs" / "quick-1" / "environment.json").read_text())
    assert environment["command"].startswith("python -m velodrome train --data shapes --limit-train 200")


def test_settings_are_resolved_and_usable_again(run: vd.Run, tmp_path: Path, command_here: Command) -> None:
    settings = yaml.safe_load((run.path / "config.yaml").read_text())
    assert settings["device"] != "auto"
    assert settings["lr_min"] == pytest.approx(0.005)
    assert settings["lr_final"] == pytest.approx(0.005)
    done = command_here("train", "--config", str(run.path / "config.yaml"), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_figures_agree_with_predictions_and_probabilities(run: vd.Run) -> None:
    with (run.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == SMALL["limit_test"]
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert right == pytest.approx(run.result["test_accuracy"])
    assert np.mean([float(row["loss"]) for row in rows]) == pytest.approx(run.result["test_loss"], rel=1e-4)
    probabilities = np.load(run.path / "probabilities.npy")
    assert (probabilities.dtype, probabilities.shape) == (np.float16, (60, 10))
    assert probabilities.sum(1) == pytest.approx(1, abs=0.01)
    best = [run.result["classes"][index] for index in probabilities.argmax(1)]
    assert np.mean([a == row["prediction"] for a, row in zip(best, rows, strict=True)]) > 0.95
    assert run.history[-1]["test_acc"] == pytest.approx(run.result["test_accuracy"])
    assert run.history[-1]["val_acc"] == pytest.approx(run.result["val_accuracy"])


def test_lr_is_logged_as_used(run: vd.Run) -> None:
    events = run.folder.read_events()
    lrs = [lr for event in events if event["event"] == "EpochDone" for lr in event["step_lrs"]]
    assert lrs[0] == pytest.approx(0.005)
    assert lrs[-1] == pytest.approx(0.005)
    assert run.history[-1]["lr"] == pytest.approx(0.005)
    assert max(lrs) <= 0.05


def test_the_loaded_model_gives_the_same_answers(run: vd.Run) -> None:
    from velodrome.data.shapes import load_shapes
    from velodrome.data.sources import load_splits

    splits = load_splits(small(Path()).data, seed=0)
    model = vd.load(run)
    probabilities = model.probabilities(splits.test.images_u8)
    assert probabilities.numpy() == pytest.approx(np.load(run.path / "probabilities.npy"), abs=2e-3)
    assert model.predict(splits.test.images_u8[:1])[0][0] in load_shapes(10, 10)[0].classes


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(run: vd.Run, tmp_path: Path) -> None:
    again = vd.train(small(tmp_path, val_fraction=0.1), progress=False)
    other = vd.train(small(tmp_path, val_fraction=0.1, seed=1), progress=False)
    bytes_of = [(r.path / "model.safetensors").read_bytes() for r in (run, again, other)]
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0] != bytes_of[2]


def test_training_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    vd.train(small(tmp_path, epochs=1, dropout=0.1), progress=False)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam", "lr": 0.005, "l1": 1e-5},
        {"optimizer": "adamw", "lr": 0.005, "dropout": 0.2, "label_smoothing": 0.1},
        {"schedule": "cosine", "crop": 0, "cutout": 0, "flip": False},
        {"schedule": "constant", "crop_fill": "reflect", "anneal": "cosine"},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_every_option_trains(changes: dict[str, object], tmp_path: Path) -> None:
    result = vd.train(small(tmp_path, epochs=1, **changes), progress=False).result
    assert np.isfinite(result["test_loss"])
    assert result["precision"] == changes.get("precision", "fp32")


def test_names_are_numbered_and_never_overwritten(tmp_path: Path) -> None:
    first = vd.train(small(tmp_path, epochs=1), progress=False)
    second = vd.train(small(tmp_path, epochs=1), progress=False)
    assert (first.path.name, second.path.name) == ("quick-1", "quick-2")
    with pytest.raises(RunError, match="exists already"):
        vd.train(small(tmp_path, name="quick-1"), progress=False)


def test_a_cutout_larger_than_the_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cutout is 33"):
        vd.train(small(tmp_path, cutout=33), progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite at step \d+ \(learning rate"):
        vd.train(small(tmp_path, lr=1e30, lr_min=1e-3, epochs=3, peak=0.9), progress=False)
    folder = tmp_path / "runs" / "quick-1"
    assert not (folder / "result.json").exists()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "RunStopped"


def test_a_run_shows_itself(run: vd.Run) -> None:
    assert "test accuracy" in repr(run)
    assert "<table>" in run._repr_html_()


def test_the_command_with_json_prints_only_json(tmp_path: Path) -> None:
    done = command("train", "--data", "shapes", *FLAGS, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "runs/quick-1/result.json").read_text())
    assert "2/2" in done.stderr


def test_the_last_line_says_where_how_accurate_and_what_next(
    typed: tuple[Path, subprocess.CompletedProcess[str]], command_here: Command
) -> None:
    place, done = typed
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"runs/quick-1: \d+\.\d\d% test accuracy .*runs/quick-1/report\.html\n", done.stdout)
    assert done.stderr == ""
    again = command_here("resume", "runs/quick-1", cwd=place)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    (place / "runs/quick-1/report.html").unlink()
    assert command_here("report", "runs/quick-1", cwd=place).returncode == 0
    assert (place / "runs/quick-1/report.html").exists()


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    config = small(tmp_path_factory.mktemp("long"), epochs=20, dropout=0.1)
    return vd.train(config, progress=False).path


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_resumes_to_the_same_bytes(
    number: int, code: int, long_run: Path, tmp_path: Path, command_here: Command
) -> None:
    long = [*FLAGS, "--epochs", "20", "--dropout", "0.1"]
    words = [sys.executable, "-m", "velodrome", "train", "--data", "shapes", *long, "--name", "stopped"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path / "runs/stopped/checkpoints/last.json", process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    if number != signal.SIGKILL:
        assert "velodrome resume runs/stopped" in errors
    assert not (tmp_path / "runs/stopped/result.json").exists()
    done = command_here("resume", "runs/stopped", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = (tmp_path / "runs" / "stopped", long_run)
    weights = [(run / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    columns = [column for column in HISTORY_COLUMNS if column not in ("time_s", "images_per_s")]
    histories = []
    for run in runs:
        with (run / "history.csv").open() as file:
            histories.append([[row[column] for column in columns] for row in csv.DictReader(file)])
    assert histories[0] == histories[1]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} never appeared")


def test_a_run_survives_whoever_reads_its_progress(tmp_path: Path) -> None:
    words = " ".join([sys.executable, "-m velodrome train --data shapes", *FLAGS])
    line = f"{words} 2>&1 >out | head -n 1; cat out"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "test accuracy" in done.stdout
    assert (tmp_path / "runs/quick-1/result.json").exists()


def test_a_full_disk_in_mid_run_is_done_in_part(tmp_path: Path, command_here: Command) -> None:
    words = " ".join([sys.executable, "-m velodrome train --data shapes", *FLAGS, "--width 16"])
    # The kernel refuses to let a file grow beyond this many kilobytes, as a full disk does.
    line = f"trap '' XFSZ; ulimit -f 1000; {words}"
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    again = command_here("resume", "runs/quick-1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_settings_of_a_named_run_serve_for_another(tmp_path: Path, command_here: Command) -> None:
    first = vd.train(small(tmp_path, epochs=1, name="first"), progress=False)
    done = command_here("train", "--config", str(first.folder.config), "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert first.path.name == "first"


def test_a_report_that_a_kill_prevented_is_made_by_resume(tmp_path: Path) -> None:
    run = vd.train(small(tmp_path, epochs=1), progress=False)
    run.folder.report.unlink()
    vd.resume(run.path, progress=False)
    assert run.folder.report.exists()


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    run = vd.train(small(tmp_path, epochs=1), progress=False)
    save_file({"x": torch.zeros(1)}, run.folder.model, {"velodrome": json.dumps({"classes": ["a"]})})
    with pytest.raises(RunError, match="the checksum does not match"):
        vd.load(run)
    save_weights(run.folder.model, {"x": torch.zeros(1)}, {"classes": ["a"]})
    with pytest.raises(RunError, match="not of this version"):
        vd.load(run)
    run.folder.model.write_bytes(b"cut off")
    with pytest.raises(RunError, match="cannot be read"):
        vd.load(run)


def test_the_page_follows_the_run_and_stands_still_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []

    def note(folder: RunFolder, *, live: bool = False) -> None:
        show(folder, live=live)
        pages.append((live, len(folder.read_history()), "location.reload" in folder.report.read_text()))

    monkeypatch.setattr("velodrome.running.show", note)
    monkeypatch.setattr("velodrome.running.PAGE_S", 0.0)
    vd.train(small(tmp_path), progress=False)
    assert pages == [(True, 0, True), (True, 1, True), (True, 2, True), (False, 2, False)]


def test_after_a_stop_the_page_says_why(tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        vd.train(small(tmp_path, lr=1e30), progress=False)
    page = (tmp_path / "runs" / "quick-1" / "report.html").read_text()
    assert "not finite" in page
    assert "location.reload" not in page


def test_a_preview_shows_what_a_recipe_would_train_on(tmp_path: Path) -> None:
    found = vd.preview(small(tmp_path))
    assert "200 training and 60 test images, 10 classes" in repr(found)
    assert f"{found.summary.totals.params:,} parameters" in repr(found)
    assert len(found.augmented_u8) == len(found.augmented_labels) == 40
    assert "<table" in found._repr_html_()
    assert len(found.plot_samples().axes) == 100
    assert len(found.plot_augmented().axes) == 40
    assert not (tmp_path / "runs").exists()


def test_a_page_that_cannot_be_made_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_while_live(folder: RunFolder, *, live: bool = False) -> None:
        if live:
            raise ValueError("a template is wrong")
        show(folder)

    monkeypatch.setattr("velodrome.running.show", fail_while_live)
    with pytest.warns(VelodromeWarning, match="There is no page of the run yet: a template is wrong"):
        run = vd.train(small(tmp_path), progress=False)
    assert run.result["epochs"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "velodrome", "summary"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "what it printed cannot be written: No space left on device." in done.stderr
