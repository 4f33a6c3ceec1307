"""Run folders in every state are found, read, and named for what they are."""

import json
import shutil

import pytest
from filelock import FileLock
from run_folders import write_run

from velodrome.comparison.read_runs import natural_order, read_run, read_runs
from velodrome.errors import RunError
from velodrome.run.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "quick-1", seed=3, wrong=[1, 2, 3], cutout=16)


def test_a_finished_run(run):
    found = read_run(run)
    assert (found.status, found.problem, found.seed, found.version) == ("finished", None, 3, "0.1.0")
    assert found.settings["cutout"] == 16
    assert found.figure("test_accuracy") == pytest.approx(57 / 60)
    assert found.figure("val_accuracy") is None


def test_settings_newer_than_the_run_have_their_default(run):
    config = RunFolder(run).config
    config.write_text("\n".join(x for x in config.read_text().split("\n") if not x.startswith("mixup")))
    assert read_run(run).settings["mixup"] == 0.0


def damage(file, content):
    def change(run):
        (run / file).write_bytes(content)

    return change


STATES = {
    "cut result": (damage("result.json", b'{"test_acc'), "damaged", "result.json is damaged"),
    "result of something else": (damage("result.json", b"{}"), "damaged", "holds no test accuracy"),
    "impossible accuracy": (damage("result.json", b'{"test_accuracy": 7}'), "damaged", "no test accuracy"),
    "list": (damage("result.json", b"[1]"), "damaged", "result.json is damaged"),
    "broken yaml": (damage("config.yaml", b"a: [1"), "damaged", "not valid YAML"),
    "empty yaml": (damage("config.yaml", b""), "damaged", "holds no settings"),
    "binary yaml": (damage("config.yaml", b"\xff\xfe\x00"), "damaged", ""),
    "nested yaml": (damage("config.yaml", b"seed: {a: 1}\n"), "damaged", "no plain value for seed"),
    "not a number": (damage("config.yaml", b"lr: .nan\n"), "damaged", "no plain value for lr"),
    "a date": (damage("config.yaml", b"labels: 2026-01-01\n"), "damaged", "no plain value for labels"),
    "another version": (
        damage("config.yaml", b"seed: 1\nwarp_speed: 9\n"),
        "damaged",
        "another version: velodrome 0.1.0 made it, and 0.1.0 does not know its setting warp_speed",
    ),
    "no settings": (lambda run: (run / "config.yaml").unlink(), "damaged", "has no config.yaml"),
    "unfinished": (
        lambda run: (run / "result.json").unlink(),
        "stopped",
        "is not finished (epoch 3 of 5)",
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_what_is_wrong_is_said(run, state):
    change, status, words = STATES[state]
    change(run)
    found = read_run(run)
    assert found.status == status
    assert words in (found.problem or "")
    assert "\n" not in (found.problem or "")


def test_why_a_run_stopped_is_said(run):
    (run / "result.json").unlink()
    event = {"event": "RunStopped", "step": 12, "reason": "SIGTERM"}
    (run / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert (read_run(run).problem or "").endswith(": SIGTERM")


def test_a_run_that_a_process_works_in_is_running(run):
    (run / "result.json").unlink()
    with FileLock(run / ".lock"):
        found = read_run(run)
    assert (found.status, found.problem) == ("running", "is still running (epoch 3 of 5)")


def test_an_empty_folder_is_named(tmp_path):
    assert read_run(tmp_path).problem == "is empty"


def test_a_damaged_environment_costs_nothing_but_the_version(run):
    (run / "environment.json").write_text("{")
    assert (read_run(run).status, read_run(run).version) == ("finished", None)


# Which folders an argument means


def names(found):
    return [run.path.name for run in found]


def test_folders_globs_and_folders_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("quick-2", "quick-10", "trials-1/base-seed-0", "trials-1/base-seed-1", ".quick.draft.tmp"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "notes.txt").write_text("")
    (tmp_path / "runs" / "lr-find-1").mkdir()
    (tmp_path / "runs" / "lr-find-1" / "lr_find.json").write_text("{}")
    assert names(read_runs(["runs/quick-10", "runs/quick-2"])) == ["quick-10", "quick-2"]
    assert names(read_runs(["runs/quick-*"])) == ["quick-2", "quick-10"]
    assert names(read_runs(["runs/trials-1"])) == ["base-seed-0", "base-seed-1"]
    assert names(read_runs(["runs"])) == ["quick-2", "quick-10", "base-seed-0", "base-seed-1"]
    assert names(read_runs(["runs/quick-2", "runs/quick-*", tmp_path / "runs" / "quick-2"])) == [
        *("quick-2", "quick-10")
    ]
    # A shell resolves globs itself; what is no run is named as such.
    (other,) = read_runs(["runs/lr-find-1"])
    assert (other.status, other.problem) == ("not a run", "is not a run folder: it has no config.yaml")
    assert read_runs(["runs/notes.txt"])[0].problem == "is not a folder"


@pytest.mark.parametrize("damage", ["", "{", '{"trials": [{}]}', '{"trials": 7, "variants": [{"label": 1}]}'])
def test_runs_of_trials_are_in_the_order_of_their_variants(tmp_path, damage):
    for name in ("adam-seed-0", "adam-seed-1", "baseline-seed-0", "baseline-seed-1"):
        write_run(tmp_path / name)
    trials = [
        {"variant": variant, "seed": seed, "folder": f"{variant}-seed-{seed}"}
        for seed in (0, 1)
        for variant in ("baseline", "adam")
    ]
    record = {"variants": [{"label": "baseline"}, {"label": "adam"}], "trials": trials}
    (tmp_path / "trials.json").write_text(damage or json.dumps(record))
    in_order = ["baseline-seed-0", "baseline-seed-1", "adam-seed-0", "adam-seed-1"]
    assert names(read_runs([tmp_path])) == (sorted(in_order) if damage else in_order)


def test_what_is_left_of_runs_is_found_below_a_folder(tmp_path, run):
    (tmp_path / "runs" / "empty").mkdir()
    shutil.copytree(run, tmp_path / "runs" / "quick-2")
    (tmp_path / "runs" / "quick-2" / "config.yaml").unlink()
    found = read_runs([tmp_path / "runs"])
    assert [(one.path.name, one.status) for one in found] == [
        ("empty", "damaged"),
        ("quick-1", "finished"),
        ("quick-2", "damaged"),
    ]


def test_a_link_in_a_circle_ends(tmp_path, run):
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "runs")
    elsewhere = write_run(tmp_path / "elsewhere" / "quick-9")
    (tmp_path / "runs" / "quick-2").symlink_to(elsewhere)
    assert names(read_runs([tmp_path / "runs"])) == ["quick-1", "quick-2"]


@pytest.mark.parametrize("pattern", ["runs/quick-7", "runs/q*z", "nowhere/[ab]"])
def test_nothing_of_that_name(run, monkeypatch, pattern):
    monkeypatch.chdir(run.parents[1])
    with pytest.raises(RunError, match=r"does not exist|no run folder") as error:
        read_runs([pattern])
    assert pattern in error.value.problem


def test_numbers_are_in_their_order():
    from pathlib import Path

    words = ["run-10", "run-9", "run-9b", "a/run-1"]
    assert sorted(map(Path, words), key=natural_order) == [
        Path(x) for x in ("a/run-1", "run-9", "run-9b", "run-10")
    ]
