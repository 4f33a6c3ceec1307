"""`--resume auto`, for scripts of jobs that are started again and again; here with one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rank_processes import TINY, flags

import velodrome as vd
from velodrome import running
from velodrome.cli import main
from velodrome.config import override
from velodrome.errors import ConfigError, RunError
from velodrome.resumption import check_request
from velodrome.run.folder import RunFolder, open_run
from velodrome.runs import read_config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: str) -> vd.Run:
    """A run whose learning rate was found, or fell back to the usual one, as everything that is auto."""
    place = tmp_path_factory.mktemp("finished")
    return vd.train(wanted(data, place), progress=False)


def wanted(images: str, place: Path, **changes: object) -> vd.Config:
    settings = {
        **TINY,
        "epochs": 1,
        "lr_final": "5%",
        "data": images,
        "name": "job",
        "runs_dir": place / "runs",
    }
    return override(vd.recipes.quick(), {**settings, **changes})


def test_a_run_that_is_not_there_is_started_and_a_finished_one_left_alone(
    data: str, finished: vd.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished.folder.result.stat().st_mtime_ns
    again = vd.train(wanted(data, finished.path.parent.parent), resume="auto")
    assert again.result == finished.result
    assert finished.folder.result.stat().st_mtime_ns == before
    assert "has finished already; nothing is left to do" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "train",
        *flags({**TINY, "epochs": 1, "data": data, "name": "job"}),
        "--resume",
        "auto",
        "--json",
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "show", lambda *_, **__: None)

    def fail(*_: object) -> None:
        raise RunError("The disk is full.", "Free some space.")

    with monkeypatch.context() as patch:
        patch.setattr(running, "_finish", fail)
        assert main(words) == 1
    assert main(words) == 0
    started = [e for e in RunFolder(tmp_path / "runs" / "job").read_events() if e["event"] == "RunStarted"]
    assert [event["step"] for event in started] == [0, 4]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["epochs"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 2}, "epochs is 2, but run .*job has 1. Choose another --name"),
        ({"lr": 0.03}, "lr is 0.03, but run .*job has 0.02"),
        ({"lr_final": "6%"}, "lr_final is 0.0012, but run .*job has 0.001"),
        ({"data": "shapes"}, "data is shapes, but run .*job has /.*shapes.npz"),
        ({"recipe": "resnet9"}, "recipe is resnet9, but run .*job has quick"),
        ({"seed": 1, "width": 8}, "width is 8, but run .*job has 4"),
    ],
)
def test_another_run_is_not_gone_on_with(
    changes: dict[str, object], words: str, data: str, finished: vd.Run
) -> None:
    settings = {key: value for key, value in changes.items() if key != "recipe"}
    config = wanted(data, finished.path.parent.parent, **settings)
    config = replace(config, recipe=changes.get("recipe", "quick"))
    with pytest.raises(ConfigError, match=words):
        vd.train(config, progress=False, resume="auto")


def test_what_the_data_or_a_measurement_decide_may_be_anything(data: str, finished: vd.Run) -> None:
    folder, place = open_run(finished.path), finished.path.parent.parent
    recorded = read_config(folder)
    check_request(
        wanted(data, place, lr="auto", batch_size="auto", crop="auto", device="auto"), folder, recorded
    )
    fixed = override(recorded, {"time_budget": "10s", "epochs": 7, "steps": 26})
    check_request(wanted(data, place, time_budget="10s", epochs=1), folder, fixed)
    cut = override(recorded, {"steps": 3})
    check_request(wanted(data, place, steps=3, epochs=9), folder, cut)
    with pytest.raises(ConfigError, match=r"steps is 4, but run .* has 3"):
        check_request(wanted(data, place, steps=4), folder, cut)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--resume", "auto"], "resume is auto, but no name says which run"),
        (["--resume", "yes", "--name", "job"], "resume is 'yes', but must be auto"),
        (["--resume", "auto", "--name", "job", "--dry-run"], "--resume and --dry-run"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(
    words: list[str], problem: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags({**TINY, "data": data, "runs_dir": tmp_path}), *words]) == 2
    assert problem in capsys.readouterr().err


def test_a_folder_of_that_name_that_is_no_run_is_left_alone(data: str, tmp_path: Path) -> None:
    (tmp_path / "runs" / "job").mkdir(parents=True)
    with pytest.raises(RunError, match="is not a run folder"):
        vd.train(wanted(data, tmp_path), progress=False, resume="auto")
