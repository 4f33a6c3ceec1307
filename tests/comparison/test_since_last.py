"""What `train` says at its end about what changed: nothing that is not so, and never late."""

import os
import time

import pytest
from run_folders import write_run

from velodrome import cli
from velodrome.comparison import since_last
from velodrome.comparison.since_last import change_since_last


def test_settings_and_accuracy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "quick-1", wrong=[1, 2, 3], finished_s=1000)
    run = write_run(tmp_path / "runs" / "quick-2", wrong=[1], cutout=16, flip=False, seed=1)
    assert change_since_last(run.relative_to(tmp_path)) == (
        "Since runs/quick-1: flip yes -> no, cutout 8 -> 16, seed 0 -> 1; "
        "test accuracy 95.00% -> 98.33% (+3.33 points).\n"
        "With one run each, another seed may turn that round. "
        "More: velodrome compare runs/quick-1 runs/quick-2"
    )


def test_the_seed_alone(tmp_path):
    write_run(tmp_path / "a", finished_s=1000)
    run = write_run(tmp_path / "b", seed=1, wrong=[1])
    assert "only the seed 0 -> 1 changed" in change_since_last(run)
    assert "That much the seed alone can do." in change_since_last(run)


def test_nothing_at_all(tmp_path):
    write_run(tmp_path / "a", finished_s=1000)
    run = write_run(tmp_path / "b")
    assert "nothing changed, not even the seed" in change_since_last(run)


def test_the_last_comparable_one(tmp_path):
    write_run(tmp_path / "oldest", finished_s=1000, cutout=0)
    write_run(tmp_path / "older", finished_s=2000, cutout=4)
    write_run(tmp_path / "other data", finished_s=3000, data="cifar10")
    write_run(tmp_path / "other images", finished_s=4000, images=50)
    (write_run(tmp_path / "damaged", finished_s=5000) / "predictions.csv").unlink()
    (write_run(tmp_path / "worse damaged", finished_s=5000) / "config.yaml").write_text("[")
    (write_run(tmp_path / "unfinished", finished_s=6000) / "result.json").unlink()
    run = write_run(tmp_path / "now", finished_s=7000)
    write_run(tmp_path / "newer", finished_s=8000, cutout=2)
    assert "older: cutout 4 -> 8;" in change_since_last(run)


def test_many_settings_are_not_all_listed(tmp_path):
    write_run(tmp_path / "a", finished_s=1000)
    changes = {"cutout": 1, "crop": 1, "dropout": 0.1, "l1": 0.1, "momentum": 0.5, "width": 1, "peak": 0.3}
    run = write_run(tmp_path / "b", **changes)
    assert ", 1 more;" in change_since_last(run)


@pytest.mark.parametrize("broken", ["first", "unfinished", "gone", "damaged"])
def test_where_there_is_nothing_to_say(tmp_path, broken):
    run = write_run(tmp_path / "b")
    if broken != "first":
        write_run(tmp_path / "a", finished_s=1000)
    if broken == "unfinished":
        (run / "result.json").unlink()
    if broken == "damaged":
        (run / "predictions.csv").write_text("")
    assert change_since_last(tmp_path / "nowhere" if broken == "gone" else run) is None


def test_whatever_happens_it_does_not_fail(tmp_path, monkeypatch):
    write_run(tmp_path / "a", finished_s=1000)
    run = write_run(tmp_path / "b")

    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(since_last, "_in_words", fail)
    assert change_since_last(run) is None


def test_a_thousand_folders_do_not_make_it_late(tmp_path):
    """Only the newest are looked into; all of these have other data."""
    for number in range(1000):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        (folder / "result.json").write_text("{}")
        os.utime(folder / "result.json", (1000 + number, 1000 + number))
    for number in range(30):
        write_run(tmp_path / f"other-{number}", data="cifar10", finished_s=5000 + number)
    run = write_run(tmp_path / "now")
    change_since_last(run)  # imports
    began_s = time.perf_counter()
    assert change_since_last(run) is None
    assert time.perf_counter() - began_s < 0.5  # on a busy machine; else below 0.1


def test_train_says_so_on_stderr(tmp_path, capsys):
    command = ["train", "--data", "shapes", "--limit-train", "64", "--limit-test", "20", "--epochs", "1"]
    command += ["--batch-size", "32", "--width", "2", "--lr", "0.1", "--runs-dir", str(tmp_path)]
    assert cli.main(command) == 0
    assert "Since " not in capsys.readouterr().err
    assert cli.main([*command, "--seed", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert "only the seed 0 -> 1 changed" in printed.err
    assert "Since" not in printed.out
    assert cli.main([*command, "--quiet"]) == 0
    assert "Since" not in capsys.readouterr().err
