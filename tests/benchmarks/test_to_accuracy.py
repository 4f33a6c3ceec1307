"""Accuracy against training time: the arithmetic, the table, the figure, and that the script runs."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from velodrome import session
from velodrome.data.imageset import Splits
from velodrome.errors import ConfigError, RunError
from velodrome.job import Job, prepare
from velodrome.recipes import resnet9

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
if not SCRIPTS.is_dir():
    pytest.skip("the benchmarks are not in the source archive", allow_module_level=True)

with pytest.MonkeyPatch.context() as path:
    path.syspath_prepend(SCRIPTS)
    curves = importlib.import_module("accuracy_curves")
    to_accuracy = importlib.import_module("to_accuracy")

TINY = ["--data", "shapes", "--limit-train", "64", "--limit-test", "20", "--batch-size", "16", "--width", "2"]
TASK = {"data": "shapes", "limit_train": 64, "limit_test": 20}


def curve(times_s: list[float], test_accs: list[float], **values: object) -> curves.Curve:
    made = curves.Curve("made up", TASK, {"CPU": "slow"}, "2026-01-02", 0.25, 3, times_s, test_accs, True)
    return replace(made, **values)


CURVES = {
    "slow": curve([10, 21, 30], [0.5, 0.93, 0.92]),
    "weak": curve([1.0, 2.0, 3.0], [0.5, 0.6, 0.55]),
    "fast": curve([5, 10, 15], [0.6, 0.8, 0.9]),
    "weaker": curve([1, 2], [0.5, 0.45], machine={"CPU": "fast"}, load=None),
}


@pytest.fixture
def run(tmp_path) -> session.Run:
    config = resnet9(data="shapes", limit_train=64, limit_test=20, batch_size=16, width=2, lr=0.1, epochs=2)
    return session.train(replace(config, run=replace(config.run, runs_dir=tmp_path)), progress=False)


@pytest.fixture
def job(coloured_images) -> Job:
    images = coloured_images(20, 16, 16)
    config = resnet9(data="shapes", batch_size=16, width=2, lr=0.1, device="cpu", precision="fp32")
    return prepare(config, Splits("made", images, None, images))


def test_time_to_an_accuracy():
    slow = CURVES["slow"]
    assert (slow.epochs_to(0.9), slow.seconds_to(0.9), slow.seconds_to(0.95)) == (2, 21, None)
    assert slow.seconds_an_epoch == 10


def test_the_first_comes_first():
    assert list(curves.in_order(CURVES, 0.9)) == ["fast", "slow", "weak", "weaker"]


def test_table():
    text = "\n".join(curves.tables_of(CURVES, 0.9))
    assert "| slow | 21.0 s | 2 | 10.0 s | 93.00% | 92.00% | 3 | 30.0 s | 2026-01-02 | 0.25 |" in text
    assert "| weak | not reached (best 60.00%) | - | 1.0 s | 60.00% | 55.00% | 3 |" in text
    assert "| 2 of 3: **cut short** | 2.0 s | 2026-01-02 | unknown |" in text
    assert "First to 90%: fast; slow took 1.40 times as long; weak did not get there; weaker did not" in text
    assert "**weaker was not measured under the same conditions**: CPU: fast" in text
    assert "slow was not" not in text
    assert "None reached 99%." in curves.tables_of(CURVES, 0.99)


def test_curves_are_kept_beside_one_another(tmp_path):
    path = tmp_path / "curves.json"
    assert curves.read_curves(path) == {}
    for name in ("slow", "weak", "slow"):
        curves.put_curve(path, name, CURVES[name])
    assert curves.read_curves(path) == {"slow": CURVES["slow"], "weak": CURVES["weak"]}
    curves.check_comparable(path, TASK)
    with pytest.raises(ConfigError, match=r"slow in .* on data shapes, .* this is data cifar10\."):
        curves.check_comparable(path, {"data": "cifar10", "limit_train": None})


@pytest.mark.parametrize("text", ["", "[]", '{"a": {"what": 1}}'])
def test_a_damaged_file(tmp_path, text):
    (tmp_path / "curves.json").write_text(text)
    with pytest.raises(RunError, match="damaged"):
        curves.read_curves(tmp_path / "curves.json")


def test_figures_are_the_same_each_time(tmp_path):
    for name in ("a.svg", "b.svg", "c.png"):
        curves.draw(CURVES, 0.9, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn == (tmp_path / "b.svg").read_bytes()
    assert b"<svg" in drawn
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_the_clock_stands_still_while_a_network_is_scored(job, monkeypatch):
    now_s, told = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now_s[0])

    def score(network, job, images):
        now_s[0] += 100
        return None, 0.5

    monkeypatch.setattr(to_accuracy, "score_on", score)
    watch = to_accuracy.EpochWatch(job, lambda times_s, accs: told.append((times_s[-1], accs[-1])), 9.0)
    watch.begin()
    for _ in range(2):
        now_s[0] += 3
        assert watch.step_done() is False
        watch.epoch_done(job.state.model)
    now_s[0] += 4
    assert watch.step_done() is True
    watch.epoch_done(job.state.model)  # of a part of an epoch
    assert told == [(3, 0.5), (6, 0.5)]


def test_a_run_is_a_curve(run):
    found = to_accuracy.curve_of_run(run.folder)
    assert found.times_s == [row["time_s"] for row in run.history]
    assert found.test_accs == [row["test_acc"] for row in run.history]
    assert (found.task, found.epochs, found.is_recipe) == (TASK, 2, True)
    (run.path / "lr_find.json").write_text(json.dumps({"seconds": 10.0}))
    assert to_accuracy.curve_of_run(run.folder).times_s == [10 + time_s for time_s in found.times_s]


def test_recipes_keep_their_settings_and_resnet9_gets_those_of_its_rivals():
    options = to_accuracy.parse([*TINY, "--json", "curves.json"])
    ours, other = (to_accuracy.config_of(name, options).train for name in ("resnet9", "quick"))
    assert (ours.epochs, ours.lr, ours.batch_size) == (8, 0.2, 16)
    assert (other.epochs, other.lr, other.batch_size) == (5, "auto", 16)
    assert to_accuracy.config_of("speed94", options).evaluate.score_every == 1  # else there is no curve


class TestScript:
    def test_it_adds_runs_and_draws(self, run, tmp_path, capsys):
        files = ["--json", str(tmp_path / "curves.json"), "--figure", str(tmp_path / "figure.svg")]
        files += ["--output", str(tmp_path / "table.md")]
        assert to_accuracy.main([*files, "--only", "--run", f"mine={run.path}"]) == 0
        text = (tmp_path / "table.md").read_text()
        assert "64 images of shapes. Test accuracy after each epoch" in text
        assert "- mine: recipe resnet9" in text
        assert "(figure.svg)" in text
        assert text in capsys.readouterr().out
        assert (tmp_path / "figure.svg").exists()

    def test_a_contestant_is_trained_in_a_process_of_its_own(self, tmp_path, capfd):
        files = ["--json", str(tmp_path / "curves.json"), "--runs-dir", str(tmp_path / "runs")]
        assert to_accuracy.main([*TINY, *files, "--epochs", "1", "--only", "resnet9"]) == 0
        assert "| resnet9 | not reached" in capfd.readouterr().out
        assert curves.read_curves(tmp_path / "curves.json")["resnet9"].epochs == 1

    def test_runs_of_other_data_are_refused(self, run, tmp_path, capsys):
        curves.put_curve(tmp_path / "curves.json", "other", curve([1.0], [0.5], task={"data": "cifar10"}))
        files = ["--json", str(tmp_path / "curves.json")]
        assert to_accuracy.main([*files, "--only", "--run", f"mine={run.path}"]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_without_anything_it_says_so(self, tmp_path, capsys):
        assert to_accuracy.main(["--json", str(tmp_path / "curves.json"), "--only"]) == 2
        assert "has no curves" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (["--run", "mine"], "is not NAME=FOLDER"),
            (["--figure", "a.pdf"], "ends neither in .svg nor in .png"),
            (["--target", "100"], "is not between 0 and 100"),
            (["--minutes", "0"], "0 is not above 0"),
        ],
    )
    def test_bad_words(self, wrong, words, capsys):
        with pytest.raises(SystemExit):
            to_accuracy.parse(["--json", "curves.json", *wrong])
        assert words in capsys.readouterr().err

    @pytest.mark.filterwarnings("ignore")  # what the libraries do not mind
    def test_a_rival_is_trained(self, tmp_path, monkeypatch):
        # Beside a CPU build of torch, the ordinary wheel of torchvision raises RuntimeError at import.
        pytest.importorskip("torchvision.transforms", exc_type=(ImportError, RuntimeError))
        before = torch.random.get_rng_state()
        options = to_accuracy.parse([*TINY, "--json", str(tmp_path / "a.json"), "--workers", "0"])
        to_accuracy.train_one("plain", options)
        torch.random.set_rng_state(before)
        found = curves.read_curves(tmp_path / "a.json")["plain"]
        assert len(found.times_s) == len(found.test_accs) == found.epochs == 8
        assert found.times_s == sorted(found.times_s)
        assert found.what == "batch 16, LRMAX 0.2, 0 workers, width 2"
