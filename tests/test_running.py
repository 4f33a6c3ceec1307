"""A job that is carried to its end: how often it is scored, and what its result tells."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import velodrome as vd
from velodrome import running
from velodrome.data.imageset import ImageSet, Splits
from velodrome.job import prepare, train_pflop
from velodrome.run.folder import RunFolder, create_run

SMALL = {
    **{"model": "speednet", "width": 2, "batch_size": 16, "epochs": 3, "lr": 0.05, "precision": "fp32"},
    **{"device": "cpu", "crop": 1, "cutout": 2},
}
SIDE = 10
Carry = Callable[..., RunFolder]


@pytest.fixture
def carry(coloured_images: Callable[..., ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Carry:
    """A function that trains on coloured images; the pages and pictures are tested elsewhere."""
    monkeypatch.setattr(running, "show", lambda *_, **__: None)
    monkeypatch.setattr(running, "write_samples", lambda *_: None)
    train, val, test = (coloured_images(n, SIDE, SIDE, seed) for seed, n in enumerate((32, 12, 9)))

    def run(*, with_val: bool = False, **changes: object) -> RunFolder:
        config = vd.recipes.quick(runs_dir=tmp_path / "runs", **{**SMALL, **changes})
        job = prepare(config, Splits("shapes", train, val if with_val else None, test), progress=False)
        folder = create_run(config.run.runs_dir, None, "quick", lambda draft: running.describe(draft, job))
        running.carry_on(folder, job, progress=False)
        return folder

    return run


def scored(folder: RunFolder, kind: str) -> list[int]:
    """The epochs after which history.csv has accuracy and loss on such images."""
    rows = folder.read_history()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert (row[f"{kind}_acc"] is None) == (row[f"{kind}_loss"] is None)
    return [row["epoch"] for row in rows if row[f"{kind}_acc"] is not None]


@pytest.mark.parametrize(
    ("score_every", "expected"), [(1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (5, [3]), (0, [])]
)
@pytest.mark.parametrize("with_val", [False, True])
def test_how_often_a_run_is_scored(
    carry: Carry, score_every: int, expected: list[int], with_val: bool
) -> None:
    folder = carry(score_every=score_every, with_val=with_val)
    assert scored(folder, "test") == expected
    # The results have figures of the test images anyway; those of the validation images are only here.
    assert scored(folder, "val") == ((expected or [3]) if with_val else [])
    last = folder.read_history()[-1]
    result = folder.read_json(folder.result)
    assert result["val_accuracy"] == last["val_acc"]
    assert result["val_loss"] == last["val_loss"]
    assert (result["val_accuracy"] is None) == (not with_val)
    assert 0 <= result["test_accuracy"] <= 1
    if expected:
        assert last["test_acc"] == pytest.approx(result["test_accuracy"])
        assert last["test_loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    assert folder.read_json(folder.evaluation)["accuracy"] == result["test_accuracy"]


def test_scoring_changes_nothing_else(carry: Carry) -> None:
    """What is learned does not depend on how often it is looked at."""
    often, seldom = carry(score_every=1, with_val=True), carry(score_every=0)
    assert often.model.read_bytes() == seldom.model.read_bytes()


@pytest.mark.parametrize("tta", ["flip", "shift"])
def test_the_result_tells_of_work_and_time(carry: Carry, tta: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    count = lambda *about: counted.append(train_pflop(*about)) or counted[-1]  # noqa: E731
    monkeypatch.setattr(running, "train_pflop", count)
    folder = carry(tta=tta, resolutions="9:1,10:2")
    result = json.loads(folder.result.read_text())
    assert [result["train_pflop"]] == counted
    assert result["train_pflop"] > 0
    assert 0 < result["predict_seconds"] < 60
    assert result["test_accuracy_tta"] == folder.read_json(folder.evaluation)["accuracy_tta"]
