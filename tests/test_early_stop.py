"""Training that ends where the validation loss no longer falls."""

import json
from pathlib import Path

import pytest
import torch

import velodrome as vd
from velodrome.early_stopping import stalled
from velodrome.errors import ConfigError, RunError
from velodrome.events import EpochDone, StoppedEarly
from velodrome.job import prepare


def row(epoch: int, val_loss: float | None) -> EpochDone:
    return EpochDone(epoch, 1.0, 0.1, 1.0, 0.5, val_loss, None, None, None, 1.0, (), ())


@pytest.mark.parametrize(
    ("losses", "patience", "best"),
    [
        ([1.0, 0.9, 0.8], 1, None),
        ([1.0, 0.9, 0.95], 1, 2),
        ([1.0, 0.9, 0.95], 2, None),
        ([1.0, 0.9, 0.95, 0.91], 2, 2),
        ([1.0, 0.9, 0.9], 1, 2),
        ([None, 0.9, None, 1.0], 1, 2),
        ([None, None], 1, None),
        ([1.0, 2.0, 3.0], None, None),
    ],
)
def test_it_stops_so_many_epochs_after_the_best(
    losses: list[float | None], patience: int | None, best: int | None
) -> None:
    history = [row(number, loss) for number, loss in enumerate(losses, 1)]
    found = stalled(history, patience)
    assert (found and found.best_epoch) == best
    assert found is None or found == StoppedEarly(len(losses), found.best_epoch)


def config(tmp_path: Path, **settings: object) -> vd.Config:
    usual = {"limit_train": 200, "limit_test": 50, "width": 2, "batch_size": 50, "lr": 0.01, "epochs": 8}
    return vd.recipes.quick(**{**usual, "precision": "fp32", "runs_dir": tmp_path, **settings})


def test_a_run_ends_early_and_is_complete(tmp_path: Path) -> None:
    # With so high a learning rate the loss only rises.
    run = vd.train(config(tmp_path, val_fraction=0.3, early_stop=1, lr=1.5), progress=False)
    assert run.result["epochs"] < 8
    assert len(run.history) == run.result["epochs"]
    lines = (run.path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    told = [json.loads(line) for line in lines]
    assert [event["epoch"] for event in told if event["event"] == "StoppedEarly"] == [run.result["epochs"]]
    best = min(run.history, key=lambda row: row["val_loss"])
    assert run.result["weights_of_epoch"] == best["epoch"] < run.result["epochs"]
    assert run.result["val_accuracy"] == best["val_acc"]
    before = (run.path / "model.safetensors").read_bytes()
    (run.path / "result.json").unlink()  # as if it had been killed just before its end
    again = vd.resume(run.path, progress=False)
    assert (again.path / "model.safetensors").read_bytes() == before
    assert again.result["epochs"] == run.result["epochs"]


def test_the_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    settings = {"val_fraction": 0.3, "lr": 1.5, "schedule_epochs": 8}
    stopped = vd.train(config(tmp_path, early_stop=2, **settings), progress=False)
    best = stopped.result["weights_of_epoch"]
    assert best < stopped.result["epochs"]
    shorter = vd.train(config(tmp_path, epochs=best, **settings), progress=False)
    weights, expected = (dict(run.model().network.state_dict()) for run in (stopped, shorter))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_best_weights_that_are_gone_are_missed(tmp_path: Path) -> None:
    run = vd.train(config(tmp_path, val_fraction=0.3, early_stop=1, lr=1.5), progress=False)
    (run.path / "result.json").unlink()
    for path in run.folder.checkpoints.glob("best-*"):
        path.unlink()
    with pytest.raises(RunError, match=r"best-0000\d.safetensors cannot be read"):
        vd.resume(run.path, progress=False)


def test_a_run_that_was_ended_gets_no_more_epochs_and_stays_as_it_is(tmp_path: Path) -> None:
    run = vd.train(config(tmp_path, val_fraction=0.3, early_stop=1, lr=1.5), progress=False)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="was ended by early_stop 1"):
        vd.resume(run.path, epochs=20, progress=False)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_without_scores_there_is_nothing_to_stop_by() -> None:
    with pytest.raises(ConfigError, match="early_stop is 3, but score_every is 0"):
        vd.recipes.speed94(early_stop=3, val_fraction=0.1)


def test_without_validation_images_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="early_stop is 2, but there are no validation images"):
        prepare(config(tmp_path, early_stop=2), progress=False)
