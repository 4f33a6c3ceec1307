"""Sweeps in one process: what they leave, going on, pruning, interrupts, failures, bad input."""

import contextlib
import csv
import itertools
import json
import os
import signal
import subprocess
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import velodrome as vd
from velodrome.cli import main
from velodrome.config import Config, to_dict
from velodrome.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_RESUMABLE,
    ConfigError,
    InterruptedRunError,
    PartlyError,
    RunError,
    TrainingError,
)
from velodrome.run.folder import RunFolder
from velodrome.run.stopping import StopRequest

optuna = pytest.importorskip("optuna")

from velodrome.sweeps import worker  # noqa: E402
from velodrome.sweeps.address import sqlite_address  # noqa: E402
from velodrome.sweeps.study import (  # noqa: E402
    MOST_RETRIES,
    WORKER,
    NumberedSampler,
    OpenStudy,
    opened,
    pruner_for,
)
from velodrome.sweeps.sweep_results import Sweep  # noqa: E402
from velodrome.sweeps.trial_run import Ending  # noqa: E402

TINY: dict[str, object] = {
    **{"data": "shapes", "limit_train": 128, "limit_test": 50, "epochs": 2, "width": 4, "batch_size": 64},
    **{"lr": 0.05, "precision": "fp32"},
}
FLAGS = [word for key, value in TINY.items() for word in ("--" + key.replace("_", "-"), str(value))]
SPACE = {"momentum": {"from": 0.5, "to": 0.95}, "cutout": [0, 8]}
Command = Callable[..., subprocess.CompletedProcess[str]]


def tiny(tmp_path: Path, **changes: object) -> Config:
    return vd.recipes.quick(runs_dir=tmp_path / "runs", **{**TINY, **changes})


def space_file(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps(SPACE))
    return path


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in RunFolder(run).read_events() if event["event"] == name]


@contextlib.contextmanager
def study_of(path: Path, **changes: Any) -> Iterator[OpenStudy]:
    """The study in a sweep folder."""
    usual = {"grace_s": 60, "sampler": "tpe", "seed": 0, "prune": True, "epochs": 2}
    with opened(sqlite_address(path / "study.db"), path.name, **{**usual, **changes}) as found:
        yield found


# Real trainings.


def test_a_sweep_through_the_command(
    tmp_path: Path, command_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    space_file(tmp_path)
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)
    words = ["sweep", *FLAGS, "--search", "space.yaml", "--name", "mine"]
    done = command_here(*words, "--trials", "3", "--json", cwd=tmp_path)
    assert done.returncode == EXIT_DONE, done.stderr
    assert "10% of the training images are held out (--val-fraction 0.1)" in done.stderr
    assert "trial 1:" in done.stderr
    assert "pruned after epoch 1; best" in done.stderr
    content = json.loads(done.stdout)
    path = tmp_path / "runs" / "mine"
    assert (content["path"], content["study"], content["space"]) == ("runs/mine", "mine", SPACE)
    assert [trial["status"] for trial in content["trials"]] == ["complete", "pruned", "complete"]
    assert [trial["epochs"] for trial in content["trials"]] == [2, 1, 2]
    best = content["best"]
    assert best["val_accuracy"] == max(
        trial["val_accuracy"] for trial in content["trials"] if trial["status"] == "complete"
    )
    for trial in content["trials"]:
        run = vd.Run(path / trial["run"])
        assert run.history[-1]["val_acc"] == trial["val_accuracy"]
        is_best = trial["number"] == best["number"]
        # Nobody looks at the test images, but for the best trial, once.
        assert all(row["test_acc"] is None for row in run.history)
        assert (run.result != {}) == run.folder.predictions.exists() == is_best
        assert run.folder.checkpoints.exists() == is_best
        assert run.folder.report.exists()
        settings = run.folder.config.read_text()
        assert "val_fraction: 0.1" in settings
        assert f"cutout: {trial['params']['cutout']}" in settings
    assert best["test_accuracy_tta"] == vd.Run(path / best["run"]).result["test_accuracy_tta"]
    reason = events(path / "trial-1", "RunStopped")[-1]["reason"]
    assert reason.startswith("pruned after epoch 1 of 2, as ")
    assert reason in (path / "trial-1" / "report.html").read_text()
    for name in ("history.png", "importance.png"):
        assert (path / name).read_bytes().startswith(b"\x89PNG")
    with (path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["complete", "pruned", "complete"]
    assert float(rows[0]["momentum"]) == content["trials"][0]["params"]["momentum"]

    printed = command_here(
        "train", "--config", str(path / "best.yaml"), "--print-config", "--json", cwd=tmp_path
    )
    settings = json.loads(printed.stdout)
    assert {key: settings[key] for key in best["params"]} == best["params"]
    assert (settings["runs_dir"], settings["score_test"], settings["val_fraction"]) == ("runs", "often", 0.1)

    again = command_here(*words, "--trials", "4", "--quiet", cwd=tmp_path)
    assert again.returncode == EXIT_DONE
    assert again.stderr == ""
    assert again.stdout.startswith("runs/mine: 3 complete, 1 pruned\n")
    assert "To train with its settings: velodrome train --config runs/mine/best.yaml" in again.stdout
    assert "Importance takes 10 trials that have ended; there are 4." in again.stdout
    assert sorted(run.name for run in path.glob("trial-*")) == ["trial-0", "trial-1", "trial-2", "trial-3"]


def test_an_interrupted_sweep_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = optuna.Trial.report
    signals = {1: signal.SIGTERM}

    def interrupted(trial: Any, value: float, step: int) -> None:
        report(trial, value, step)
        if number := signals.pop(trial.number, None):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(optuna.Trial, "report", interrupted)
    config = tiny(tmp_path, name="stopped", epochs=3)
    with pytest.raises(InterruptedRunError, match="1 of 2 trials are done") as stopped:
        vd.sweep(config, search=SPACE, trials=2, prune=False, progress=False)
    assert stopped.value.exit_code == EXIT_RESUMABLE
    assert "--name stopped" in stopped.value.remedy
    found = vd.sweep(config, search=SPACE, trials=2, prune=False, progress=False)
    assert [row.status for row in found.rows] == ["complete", "retried", "complete"]
    run = found.path / "trial-1"
    assert found.rows[2].run == "trial-1"
    assert [event["step"] for event in events(run, "RunStarted")][:2] == [0, 3]
    whole = vd.sweep(
        tiny(tmp_path, name="whole", epochs=3), search=SPACE, trials=2, prune=False, progress=False
    )
    ended = [found.rows[0], found.rows[2]]
    assert [row.params for row in ended] == [row.params for row in whole.rows]
    assert [row.curve for row in ended] == [row.curve for row in whole.rows]
    assert found.test_accuracy == whole.test_accuracy


# What comes of each trial, without training.


class FakeRun:
    """Stands for the training of a trial: its accuracy is its momentum, unless something else is planned."""

    planned: dict[int, Any]
    trained: list[int]

    def __init__(self, trial: Any, place: Any, *, progress: bool) -> None:
        self.trial, self.place, self.stop = trial, place, StopRequest()

    def train(self, config: Config) -> Ending:
        self.trained.append(self.trial.number)
        planned = self.planned.pop(self.trial.number, None)
        if isinstance(planned, BaseException):
            raise planned
        if planned is not None:
            planned(self)
        name = f"trial-{self.trial.number}"
        (self.place.path / name / "checkpoints" / "step-00000001").mkdir(parents=True)
        self.trial.set_user_attr("run", name)
        self.trial.report(config.train.momentum, 2)
        return Ending("complete", config.train.momentum, 2, to_dict(config))


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> type[FakeRun]:
    FakeRun.planned, FakeRun.trained = {}, []
    monkeypatch.setattr(worker, "TrialRun", FakeRun)
    return FakeRun


def test_trials_that_diverge_or_fail_are_told_apart(
    training: type[FakeRun], tmp_path: Path, command_here: Command
) -> None:
    space_file(tmp_path)
    training.planned = {
        0: TrainingError("The loss is not finite at step 3.", "Lower --lr."),
        1: ConfigError("time_budget is 1s, but that is too little.", "Give more."),
    }
    words = ["sweep", *FLAGS, "--search", "space.yaml", "--trials", "3", "--name", "mine"]
    done = command_here(*words, cwd=tmp_path)
    assert done.returncode == EXIT_PARTLY
    assert (
        "trial 0: 0.00% validation accuracy, diverged: The loss is not finite at step 3; 1 of 3"
        in done.stderr
    )
    assert (
        "1 of 3 trials failed (trial 1): time_budget is 1s, but that is too little. Give more." in done.stderr
    )
    assert done.stdout.startswith("runs/mine: 1 complete, 1 diverged, 1 failed")
    # A failed trial counts, and is not tried again.
    assert command_here(*words, cwd=tmp_path).returncode == EXIT_PARTLY
    assert training.trained == [0, 1, 2]
    with study_of(tmp_path / "runs" / "mine") as shared:
        assert [row.status for row in shared.rows()] == ["diverged", "failed", "complete"]
        assert shared.rows()[0].problem == "The loss is not finite at step 3."


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), EXIT_INTERRUPTED), (RunError("No space.", "Free some."), EXIT_PARTLY)],
)
def test_what_stands_against_all_trials_stops_the_sweep(
    error: BaseException, code: int, training: type[FakeRun], tmp_path: Path, command_here: Command
) -> None:
    space_file(tmp_path)
    training.planned = {1: error}
    words = ["sweep", *FLAGS, "--search", "space.yaml", "--trials", "3", "--name", "mine", "--quiet"]
    stopped = command_here(*words, cwd=tmp_path)
    assert stopped.returncode == code
    assert stopped.stderr.count("\n") == 1
    done = command_here(*words, cwd=tmp_path)
    interrupted = code == EXIT_INTERRUPTED
    assert done.returncode == (EXIT_DONE if interrupted else EXIT_PARTLY)
    with study_of(tmp_path / "runs" / "mine") as shared:
        again = "retried" if interrupted else "failed"
        assert [row.status for row in shared.rows()][:3] == ["complete", again, "complete"]
        assert shared.rows()[1].params == shared.rows()[2].params or not interrupted


def test_a_signal_as_a_trial_ends_stops_the_sweep_after_it(training: type[FakeRun], tmp_path: Path) -> None:
    def noted(run: FakeRun) -> None:
        run.stop.signal = signal.SIGUSR1

    training.planned = {0: noted}
    with pytest.raises(InterruptedRunError, match="1 of 3 trials are done") as stopped:
        vd.sweep(tiny(tmp_path), search=SPACE, trials=3, progress=False)
    assert stopped.value.exit_code == EXIT_RESUMABLE


def test_the_same_settings_are_not_trained_twice(
    training: type[FakeRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = vd.sweep(tiny(tmp_path), search={"cutout": [0, 8]}, trials=6, sampler="random")
    assert len(found.rows) == 6
    assert len(training.trained) == 2
    copies = [row for row in found.rows if row.same_as is not None]
    assert len(copies) == 4
    for row in copies:
        assert row.params == found.rows[row.same_as].params
        assert row.accuracy == found.rows[row.same_as].accuracy
    assert found.best is found.rows[0]
    assert "the same settings as trial 0, so not trained again" in capsys.readouterr().err


def test_only_the_best_keeps_its_checkpoints(training: type[FakeRun], tmp_path: Path) -> None:
    found = vd.sweep(tiny(tmp_path), search=SPACE, trials=4, progress=False)
    assert found.best is not None
    kept = [path.parent.name for path in found.path.glob("trial-*/checkpoints")]
    assert kept == [found.best.run]
    found = vd.sweep(tiny(tmp_path), search=SPACE, trials=3, keep_checkpoints=True, progress=False)
    assert len(list(found.path.glob("trial-*/checkpoints"))) == 3


def test_with_a_timeout_alone_it_goes_on_until_then(
    training: type[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count(step=0.4)  # seconds from one look at the clock to the next
    clock = types.SimpleNamespace(monotonic=lambda: next(looks), sleep=time.sleep)
    monkeypatch.setattr(worker, "time", clock)
    found = vd.sweep(tiny(tmp_path), search=SPACE, timeout="1s", sampler="random", progress=False)
    assert len(found.rows) == 2
    assert found.importance == {}


def test_what_others_are_given_up_for_is_not_used(
    training: type[FakeRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bury(run: FakeRun) -> None:
        with study_of(run.place.path) as other:
            other.study.tell(run.trial.number, state=optuna.trial.TrialState.FAIL)
            other.take_up_again(other.study.trials[run.trial.number], killed=True)

    training.planned = {0: bury}
    found = vd.sweep(tiny(tmp_path), search=SPACE, trials=2)
    assert [row.status for row in found.rows] == ["retried", "complete", "complete"]
    assert found.rows[0].params == found.rows[1].params
    assert "trial 0: this worker gave no sign of life for 60 s" in capsys.readouterr().err


def test_a_storage_that_goes_away_is_told(
    training: type[FakeRun], tmp_path: Path, command_here: Command
) -> None:
    space_file(tmp_path)

    def spoil(run: FakeRun) -> None:
        (run.place.path / "study.db").write_bytes(b"this is no database, however long one looks at it" * 100)

    training.planned = {1: spoil}
    words = ["sweep", *FLAGS, "--search", "space.yaml", "--trials", "3", "--quiet"]
    done = command_here(*words, cwd=tmp_path)
    assert done.returncode == EXIT_PARTLY
    assert done.stderr.count("\n") == 1
    assert "study.db does not answer any more: " in done.stderr
    assert "When it does, go on with the same command." in done.stderr
    again = command_here(*words, "--name", "sweep-1", cwd=tmp_path)
    assert again.returncode == EXIT_BAD_INPUT
    assert "study.db cannot be reached: " in again.stderr
    assert again.stderr.count("\n") == 1


# The study.


def test_a_trial_is_taken_up_again_so_often(tmp_path: Path) -> None:
    with study_of(tmp_path) as shared:
        trial = shared.ask()
        trial.suggest_float("lr", 0.1, 1.0)
        trial.set_user_attr(WORKER, "host:1")
        for _ in range(MOST_RETRIES):
            shared.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            assert shared.take_up_again(shared.study.trials[trial.number], killed=True)
            trial = shared.ask()
            assert trial.suggest_float("lr", 0.1, 1.0) == shared.study.trials[0].params["lr"]
            assert WORKER not in trial.user_attrs
        shared.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        assert not shared.take_up_again(shared.study.trials[trial.number], killed=True)
        rows = shared.rows()
        assert [row.status for row in rows] == ["retried"] * MOST_RETRIES + ["failed"]
        assert rows[-1].problem == "its worker ended before it did"


def test_there_are_no_more_trials_than_wanted(tmp_path: Path) -> None:
    with study_of(tmp_path) as shared:
        trials = [shared.ask() for _ in range(3)]
        assert [shared.is_surplus(trial, 2) for trial in trials] == [False, False, True]
        assert [shared.is_surplus(trial, None) for trial in trials[:2]] == [False, False]
        assert [row.status for row in shared.rows()] == ["running", "running"]
        shared.study.tell(trials[0], state=optuna.trial.TrialState.FAIL)
        shared.take_up_again(shared.study.trials[0])
        assert not shared.is_surplus(shared.ask(), 2)


def test_a_trial_that_never_came_to_life_is_ended(training: type[FakeRun], tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine")
    vd.sweep(config, search=SPACE, trials=1, progress=False)
    with study_of(tmp_path / "runs" / "mine") as shared:
        shared.ask()  # and no more: no sign of life, no name
    began_s = time.monotonic()
    found = vd.sweep(config, search=SPACE, trials=3, grace="1s", progress=False)
    assert time.monotonic() - began_s < 30
    assert [row.status for row in found.rows] == ["complete", "failed", "complete"]


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_workers_choose_by_the_number_of_the_trial(kind: str) -> None:
    def choices(seed: int, restarts: bool) -> list[float]:
        study = optuna.create_study(sampler=NumberedSampler(kind, seed), direction="maximize")
        for _ in range(12):
            if restarts:
                study.sampler = NumberedSampler(kind, seed)
            trial = study.ask()
            study.tell(trial, trial.suggest_float("x", 0, 1))
        return [trial.params["x"] for trial in study.trials]

    first = choices(0, False)
    assert len(set(first)) == 12
    assert choices(0, True) == first
    assert choices(1, False) != first


def test_a_third_goes_on_at_each_rung() -> None:
    study = optuna.create_study(direction="maximize", pruner=pruner_for(27))

    def epochs_of(accuracy: float) -> int:
        trial = study.ask()
        for epoch in range(1, 28):
            trial.report(accuracy, epoch)
            if epoch < 27 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return epoch
        study.tell(trial, accuracy)
        return 27

    # At epochs 3 and 9; the first to come is always among the best.
    assert [epochs_of(value) for value in (0.5, 0.4, 0.3, 0.6, 0.45, 0.55, 0.52)] == [27, 3, 3, 27, 3, 9, 3]


# Bad input.

BAD = [
    (["--trials", "0"], "--trials is '0', but must be a whole number at least 1."),
    (["--trials", "x"], "--trials is 'x'"),
    (["--timeout", "soon"], "--timeout is 'soon', but must be a length of time such as 90s"),
    (["--grace", "0s"], "--grace is '0s', but must be a length of time"),
    (["--sampler", "grid"], "--sampler is 'grid', but must be tpe or random."),
    (["--momentum", "0.9"], "space.yaml: momentum is searched, but --momentum gives it a value."),
    (["--study-name", "a/b"], "--study-name is 'a/b', but must be a plain folder name"),
    (["--study-name", "a\nb", "--name", "c"], "--study-name is 'a\\\\nb', but must be a line of 1 to 200"),
    (["--storage", "postgresql://u:secret@h/d"], "--storage is given, but no name by which all workers find"),
    (["--storage", "nonsense", "--name", "a"], "--storage is not the address of a database."),
    (
        ["--storage", "foo://u:secret@h/d", "--name", "a"],
        "foo://u:***@h/d is of a kind that SQLAlchemy does not",
    ),
    (["--storage", "oracle://u:secret@h/d", "--name", "a"], "oracle://u:***@h/d needs a driver that is not"),
    (
        ["--storage", "sqlite:////nowhere/a.db", "--name", "a"],
        "cannot be reached: unable to open database file.",
    ),
    (["--storage", "postgresql://u:secret@127.0.0.1:1/d", "--name", "a"], "cannot be reached: connection "),
    # The server is asked before anything is read or prepared.
    (
        ["--storage", "postgresql://u:secret@127.0.0.1:1/d", "--name", "a", "--data", "nowhere"],
        "cannot be reached: connection ",
    ),
    (["--search", "none.yaml"], "Search space none.yaml cannot be read"),
    (["--epochs", "0"], "--epochs is '0'"),
    (["--val-fraction", "0.001"], "val_fraction is 0.001, which leaves no image to validate on"),
    (["--batch-size", "10001"], "batch_size is 10001"),
    (["--sampling", "tpe"], "--sampling is not an option of velodrome sweep. Did you mean --sampler?"),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_line_and_writes_nothing(
    words: list[str], expected: str, training: type[FakeRun], tmp_path: Path, command_here: Command
) -> None:
    space_file(tmp_path)
    began_s = time.monotonic()
    done = command_here("sweep", *FLAGS, "--quiet", "--search", "space.yaml", *words, cwd=tmp_path)
    assert time.monotonic() - began_s < 20
    assert done.returncode == EXIT_BAD_INPUT, done.stderr
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert "secret" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_batches_larger_than_the_data_are_found_at_once(training: type[FakeRun], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="batch_size goes up to 128, but must not be larger than the training"
    ):
        vd.sweep(tiny(tmp_path), search={"batch_size": [32, 128]}, progress=False)
    assert not (tmp_path / "runs").exists()


def test_others_take_part_in_the_same_sweep_only(training: type[FakeRun], tmp_path: Path) -> None:
    config = tiny(tmp_path, name="mine")
    vd.sweep(config, search=SPACE, trials=1, progress=False)
    more: dict[str, Any] = {"trials": 2, "progress": False}
    with pytest.raises(ConfigError, match="begun with epochs 2, but now it is 3"):
        vd.sweep(tiny(tmp_path, name="mine", epochs=3), search=SPACE, **more)
    with pytest.raises(ConfigError, match=r"begun with cutout \[0, 8\], but now it is \[0, 4\]"):
        vd.sweep(config, search=SPACE | {"cutout": [0, 4]}, **more)
    with pytest.raises(ConfigError, match="begun with width not searched, but now it is"):
        vd.sweep(config, search=SPACE | {"width": [2, 4]}, **more)
    with pytest.raises(ConfigError, match="mine was begun with --study-name mine, but now it is other"):
        vd.sweep(config, search=SPACE, study_name="other", **more)
    elsewhere = sqlite_address(tmp_path / "other.db")
    with pytest.raises(ConfigError, match="mine was begun with --storage None, but now it is sqlite"):
        vd.sweep(config, search=SPACE, storage=elsewhere, **more)
    run = tmp_path / "runs" / "run"
    run.mkdir()
    with pytest.raises(ConfigError, match="run exists, but is not a sweep"):
        vd.sweep(tiny(tmp_path, name="run"), search=SPACE, **more)
    optuna.create_study(storage=elsewhere, study_name="theirs").ask()
    with pytest.raises(ConfigError, match=r"Study theirs in sqlite\S* is not one of velodrome sweep"):
        vd.sweep(tiny(tmp_path), search=SPACE, storage=elsewhere, study_name="theirs", **more)
    assert training.trained == [0]
    # Another device makes no difference, nor where results go.
    found = vd.sweep(tiny(tmp_path, name="mine", device="cpu"), search=SPACE, **more)
    assert len(found.rows) == 2


def test_dry_run_says_what_would_be_done(tmp_path: Path, command_here: Command) -> None:
    space_file(tmp_path)
    words = ["sweep", *FLAGS, "--search", "space.yaml", "--storage", "postgresql://u:secret@h/d"]
    done = command_here(*words, "--study-name", "width", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == EXIT_DONE, done.stderr
    would = json.loads(done.stdout)
    assert (would["trials"], would["storage"]) == (20, "postgresql://u:***@h/d")
    assert (would["run_folder"], would["steps"]) == ("runs/width", 4)
    assert "13 validation" in would["data"]
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]
    assert main(["sweep", *FLAGS, "--search", "space.yaml", "--print-config"]) == EXIT_DONE


def test_figures_and_tables_of_what_was_found(training: type[FakeRun], tmp_path: Path) -> None:
    training.planned = {3: TrainingError("The loss is not finite.", "Lower --lr.")}
    found = vd.sweep(tiny(tmp_path), search=SPACE, trials=14, progress=False)
    assert sum(found.importance.values()) == pytest.approx(1)
    # The accuracy is the momentum, and nothing else matters.
    assert found.importance["momentum"] > 0.6
    assert found.plot_importance().axes[0].get_title(loc="left").endswith("over 14 trials")
    (legend,) = found.plot_history().legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("complete", "diverged: no accuracy", "best so far"),
    ]
    assert found.best is not None
    assert found.best_config().train.momentum == found.best.params["momentum"]
    assert str(found).splitlines()[3].split()[:3] == [
        str(found.best.number),
        "complete",
        f"{found.best.accuracy:.2%}",
    ]
    assert "Importance: momentum" in str(found)
    assert found._repr_html_().count("<tr>") == 15
    empty = Sweep(tmp_path, "empty", "nowhere", SPACE, (), no_importance="Nothing is known.")
    empty.save()
    assert "No trial is complete yet." in str(empty)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [
        "history.png",
        "importance.png",
        "trials.csv",
    ]
    with pytest.raises(RunError, match="No trial of"):
        empty.best_config()


def test_a_failed_trial_is_no_error_of_the_function(training: type[FakeRun], tmp_path: Path) -> None:
    training.planned = {0: ConfigError("That cannot be.", "Do otherwise.")}
    found = vd.sweep(tiny(tmp_path), search=SPACE, trials=2, progress=False)
    assert [row.number for row in found.failed] == [0]
    assert issubclass(PartlyError, vd.VelodromeError)
