"""Finding the learning rate of a recipe: through the API, the command, and before training."""

import json
import math
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import velodrome as vd
from velodrome.config import SearchSection, usual_lr
from velodrome.data.imageset import ImageSet, Splits
from velodrome.device import threads
from velodrome.errors import ConfigError, VelodromeWarning
from velodrome.job import Job, prepare
from velodrome.lr_search import TRIAL_STEPS, guessing_on, search_before_training, search_job

# 40 steps an epoch.
SMALL = {
    "limit_train": 1280,
    "limit_test": 40,
    "batch_size": 32,
    "width": 4,
    "epochs": 2,
    "precision": "fp32",
    "crop": 0,
    "cutout": 0,
}
FLAGS = [word for key, value in SMALL.items() for word in ("--" + key.replace("_", "-"), str(value))]
Command = Callable[..., subprocess.CompletedProcess[str]]
RULES = {"valley", "slide", "steepest", "minimum_tenth", "minimum"}


def small(tmp_path: Path, **changes: object) -> vd.Config:
    return vd.recipes.quick(runs_dir=tmp_path / "runs", **{**SMALL, **changes})


def learnable(tmp_path: Path, **changes: object) -> vd.Config:
    """A run whose test of one epoch, 80 steps, shows that there is something to learn."""
    return small(tmp_path, **{"batch_size": 16, "optimizer": "adam", "epochs": 1, **changes})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture
def short_trials(monkeypatch: pytest.MonkeyPatch) -> int:
    """Trial runs of fewer steps than usual."""
    monkeypatch.setattr("velodrome.lr_search.TRIAL_STEPS", 20)
    return 20


def job_on(images: ImageSet, **changes: object) -> Job:
    """A job on images of one's own, as if they were drawn shapes."""
    config = vd.recipes.quick(**{**SMALL, "limit_train": None, "limit_test": None, **changes})
    return prepare(config, Splits("shapes", images, None, images.take(np.arange(20))), progress=False)


def easy(n: int, seed: int) -> ImageSet:
    """Noisy images, 16 x 16, of ten colours, which are their classes: quick to learn."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 10)
    colours = np.array([[k % 3, k // 3 % 3, k // 9] for k in range(10)]) * 60
    images = rng.integers(0, 130, (n, 16, 16, 3)) + colours[labels][:, None, None]
    return ImageSet(images.astype(np.uint8), labels, tuple("abcdefghij"), [f"{i}.png" for i in range(n)])


@pytest.fixture(autouse=True, scope="module")
def easy_images() -> Iterator[None]:
    """In place of drawn shapes, which take a larger network and more images to learn."""
    with pytest.MonkeyPatch.context() as patch:
        splits = easy(2560, 1), easy(100, 2)
        patch.setattr("velodrome.data.sources.ready_shapes", lambda: splits)
        yield


def noise(n: int, shuffled: bool = True) -> ImageSet:
    """Images of noise, 32 x 32, whose labels have nothing to do with them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    classes = tuple("abcdefghij")
    labels = rng.permutation(np.arange(n) % 10) if shuffled else np.arange(n) % 10
    return ImageSet(images, labels, classes, [f"{i}.png" for i in range(n)])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> vd.LRFinding:
    return vd.lr_find(small(tmp_path_factory.mktemp("found")), progress=False)


def test_it_finds_numbers_and_says_how_sure_it_is(found: vd.LRFinding) -> None:
    assert found.lr_max is not None
    assert found.lr_min is not None
    assert 0.01 < found.lr_max < 1
    assert found.lr_max / 10 * (1 - 1e-9) <= found.lr_min <= found.lr_max / 5
    assert found.verdict.confidence is not None
    assert found.verdict.confidence.level in ("high", "medium", "low")
    assert found.verdict.confidence.reasons
    assert found.refusal == ""


def test_it_leaves_the_result_and_nothing_else(found: vd.LRFinding) -> None:
    assert found.path is not None
    assert found.path.name == "lr-find-1"
    names = {path.name for path in found.path.iterdir()}
    assert names == {"lr_find.json", "lr_find.png", "lr_schedule.png"}
    assert [path.name for path in found.path.parent.iterdir()] == ["lr-find-1"]
    for name in ("lr_find.png", "lr_schedule.png"):
        assert (found.path / name).read_bytes().startswith(b"\x89PNG")


def test_the_file_says_what_the_object_says(found: vd.LRFinding) -> None:
    assert found.path is not None
    written = json.loads((found.path / "lr_find.json").read_text())
    assert written["lr_max"] == found.lr_max
    assert written["lr_min"] == found.lr_min
    assert set(written["suggestions"]) == RULES
    assert written["steps"] == len(found.verdict.curve.losses) <= 90
    assert {len(written["curve"][key]) for key in ("lr", "loss", "smoothed")} == {written["steps"]}
    assert (written["recipe"], written["data"], written["optimizer"]) == ("quick", "shapes", "sgd")
    assert written["batch_size"] == SMALL["batch_size"]


def test_it_shows_itself(found: vd.LRFinding) -> None:
    assert f"lr_max={found.lr_max:.3g}" in repr(found)
    assert "<table>" in found._repr_html_()
    assert found.plot_curve().axes[0].get_xscale() == "log"
    schedule = found.plot_schedule().axes[0].lines[0].get_ydata()
    assert len(schedule) == 80
    assert max(schedule) == pytest.approx(found.lr_max, rel=0.02)


def test_the_same_search_finds_the_same(found: vd.LRFinding, tmp_path: Path) -> None:
    again = vd.lr_find(small(tmp_path), progress=False)
    assert again.verdict.curve.losses.tolist() == found.verdict.curve.losses.tolist()
    assert again.lr_max == found.lr_max


def test_learning_rates_in_the_config_make_no_difference(found: vd.LRFinding, tmp_path: Path) -> None:
    stale = small(tmp_path, lr=3.0, lr_min=2.0, lr_final=1.0)
    assert vd.lr_find(stale, progress=False).lr_max == found.lr_max


@pytest.mark.parametrize(
    ("optimizer", "precision"), [("sgd", "fp32"), ("adam", "bf16"), ("adamw", "fp16"), ("muon", "bf16")]
)
@pytest.mark.usefixtures("short_trials")
def test_nothing_of_the_caller_is_changed(optimizer: str, precision: str, tmp_path: Path) -> None:
    job = prepare(small(tmp_path, optimizer=optimizer, precision=precision, dropout=0.1), progress=False)
    tensors = job.state.tensors()
    before = {key: {name: value.clone() for name, value in part.items()} for key, part in tensors.items()}
    numbers = job.state.numbers()
    torch.manual_seed(3)
    random_state = torch.random.get_rng_state()
    with torch.no_grad():
        search_job(job, SearchSection(steps=12, verify=1))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert job.state.numbers() == numbers
    for key, part in job.state.tensors().items():
        assert part.keys() == before[key].keys()
        for name, value in part.items():
            assert torch.equal(value, before[key][name]), name
    assert job.loader.seed == job.config.run.seed


def test_the_first_loss_is_that_of_training(tmp_path: Path) -> None:
    config = small(tmp_path, lr=0.05, label_smoothing=0.1, epochs=1)
    run = vd.train(config, progress=False)
    told = next(event for event in run.folder.read_events() if event["event"] == "EpochDone")
    curve = search_job(prepare(config, progress=False), SearchSection()).verdict.curve
    assert curve.losses[0] == pytest.approx(told["step_losses"][0], rel=1e-6)


def test_repeats_are_other_tests_and_their_spread_is_told(tmp_path: Path) -> None:
    found = search_job(prepare(small(tmp_path), progress=False), SearchSection(repeats=3))
    assert len({sweep.losses[0] for sweep in found.sweeps}) == 3
    steps = min(len(sweep.losses) for sweep in found.sweeps)
    mean = np.mean([sweep.losses[:steps] for sweep in found.sweeps], axis=0)
    assert found.verdict.curve.losses == pytest.approx(mean)
    confidence = found.verdict.confidence
    assert confidence is not None
    assert confidence.repeats_factor is not None
    assert confidence.repeats_factor >= 1
    assert any("3 tests gave LRMAX from" in reason for reason in confidence.reasons)


def test_verification_takes_the_best_of_its_candidates(tmp_path: Path, short_trials: int) -> None:
    job = prepare(small(tmp_path, val_fraction=0.2), progress=False)
    told: list[tuple[int, int, str]] = []
    found = search_job(job, SearchSection(verify=3), lambda *words: told.append(words))
    tried = [trial.lr_max for trial in found.trials]
    assert tried == pytest.approx(
        [found.verdict.lr_max / 2, found.verdict.lr_max, found.verdict.lr_max * 2], rel=0.05
    )
    scores = {trial.lr_max: trial.score for trial in found.trials if trial.score is not None}
    assert found.lr_max == min(scores, key=scores.__getitem__)
    assert "validation" in found.judged_by
    assert found.to_dict()["verify"]["trials"][0]["lr_max"] == tried[0]
    assert told[-1][1] == 90 + 3 * short_trials
    assert all(done <= total for done, total, _ in told)


def test_without_validation_images_training_losses_decide(tmp_path: Path) -> None:
    found = search_job(prepare(small(tmp_path), progress=False), SearchSection(verify=1))
    assert found.judged_by == f"mean training loss of the last 25 of {TRIAL_STEPS} steps"
    assert found.trials[0].score is not None
    assert found.trials[0].score < math.log(10)


def test_candidates_that_diverge_cannot_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velodrome.lr_search.CANDIDATES_APART", 1000.0)
    found = search_job(prepare(small(tmp_path), progress=False), SearchSection(verify=3))
    assert found.trials[-1].lr_max > 10
    assert found.trials[-1].score is None
    assert found.lr_max in (found.trials[0].lr_max, found.trials[1].lr_max)
    assert ("trial " + f"{found.trials[-1].lr_max:.2g}", "diverged") in found.rows()


# Refusals, each with words of its own.


def refusal(job: Job, **search: object) -> str:
    found = search_job(job, SearchSection(**search))
    assert found.lr_max is None
    assert found.lr_min is None
    assert found.schedule_lrs == ()
    with pytest.raises(ConfigError, match="no schedule to draw"):
        found.plot_schedule()
    assert found.plot_curve().axes
    return found.refusal


def test_labels_that_are_noise_are_refused() -> None:
    words = refusal(
        job_on(noise(90 * 64)),
    )
    assert "labels belong to their images" in words
    assert "never fell" in words or "never looks at the image" in words


def test_a_model_that_cannot_learn_is_refused() -> None:
    job = job_on(noise(800, shuffled=False))
    black = replace(job.splits.train, images_u8=np.zeros_like(job.splits.train.images_u8))
    words = refusal(job_on(black), steps=50)
    assert "labels belong to their images" in words


def test_a_start_above_divergence_is_refused(tmp_path: Path) -> None:
    job = prepare(small(tmp_path), progress=False)
    words = refusal(job, lr_start=50.0, lr_end=5000.0, steps=20)
    assert "begin lower (lr_start)" in words


def test_a_batch_of_one_image_is_told_apart_from_a_clear_curve() -> None:
    found = search_job(job_on(noise(200), batch_size=1), SearchSection())
    confidence = found.verdict.confidence
    assert found.lr_max is None or (confidence and confidence.level == "low")
    words = found.refusal or " ".join(confidence.reasons if confidence else ())
    assert "batches are too small" in words


def test_guessing_is_the_entropy_of_the_labels(tmp_path: Path) -> None:
    job = prepare(small(tmp_path), progress=False)
    assert guessing_on(job).loss == pytest.approx(math.log(10), rel=1e-2)
    images = noise(100)
    lopsided = replace(images, labels=np.where(np.arange(100) < 75, 0, 1))
    assert guessing_on(job_on(lopsided)).loss == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), rel=1e-6
    )
    smoothed = guessing_on(job_on(lopsided, label_smoothing=0.2)).loss
    shares = [0.8 * 0.75 + 0.02, 0.8 * 0.25 + 0.02, *[0.02] * 8]
    assert smoothed == pytest.approx(-sum(share * math.log(share) for share in shares), rel=1e-6)


# Before training.


def test_training_without_a_learning_rate_finds_one_and_records_it(tmp_path: Path) -> None:
    run = vd.train(learnable(tmp_path), progress=False)
    written = json.loads((run.path / "lr_find.json").read_text())
    settings = yaml.safe_load((run.path / "config.yaml").read_text())
    assert settings["lr"] == written["lr_max"]
    assert settings["lr_min"] == pytest.approx(written["lr_min"])
    assert (run.path / "lr_find.png").exists()
    assert (run.path / "lr_schedule.png").exists()
    used = [lr for event in run.folder.read_events() for lr in event.get("step_lrs", ())]
    assert max(used) == pytest.approx(written["lr_max"], rel=0.1)
    assert "Found by a range test" in (run.path / "report.html").read_text()


def test_a_found_learning_rate_trains_as_if_it_had_been_given(tmp_path: Path) -> None:
    found = vd.train(learnable(tmp_path, dropout=0.1), progress=False)
    lr = yaml.safe_load((found.path / "config.yaml").read_text())["lr"]
    given = vd.train(learnable(tmp_path, dropout=0.1, lr=lr), progress=False)
    assert not (given.path / "lr_find.json").exists()
    assert "Found by a range test" not in (given.path / "report.html").read_text()
    weights = [(run.path / "model.safetensors").read_bytes() for run in (found, given)]
    assert weights[0] == weights[1]


def test_a_resumed_run_does_not_search_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = vd.train(learnable(tmp_path), progress=False)
    before = (run.path / "lr_find.json").read_bytes()

    def search(*_: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr("velodrome.session.search_before_training", search)
    vd.resume(run.path, epochs=2, progress=False)
    assert (run.path / "lr_find.json").read_bytes() == before


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_an_epoch_too_short_to_search_in_uses_the_usual_rate_and_says_so(
    optimizer: str, tmp_path: Path
) -> None:
    config = small(tmp_path, limit_train=128, epochs=1, optimizer=optimizer)
    with pytest.warns(VelodromeWarning, match="takes 10 steps, but an epoch has 4 and all the run 4"):
        run = vd.train(config, progress=False)
    assert yaml.safe_load((run.path / "config.yaml").read_text())["lr"] == usual_lr(
        optimizer, config.train.batch_size
    )
    assert not (run.path / "lr_find.json").exists()


def test_where_a_test_finds_nothing_the_usual_rate_is_used_and_the_reason_is_told() -> None:
    job = job_on(noise(64 * 20))
    with pytest.warns(
        VelodromeWarning, match="found no learning rate.*LRMAX is 0.025, the usual one for sgd"
    ):
        found, lr_max = search_before_training(job, lambda *_: None)
    assert found is not None
    assert found.lr_max is None
    assert lr_max == usual_lr("sgd", 32)


def test_of_small_data_a_test_sees_a_twelfth_of_the_run(tmp_path: Path) -> None:
    config = small(tmp_path, limit_train=128, epochs=60, optimizer="adam", batch_size=32)
    found, _ = search_before_training(prepare(config, progress=False), lambda *_: None)
    assert found is not None
    assert len(found.sweeps[0].lrs) == 60 * 4 / 12


def test_a_smallest_rate_above_the_one_found_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lr_min is 5, but must not be above lr"):
        vd.train(learnable(tmp_path, lr_min=5.0), progress=False)
    assert list((tmp_path / "runs").glob("*")) == []


# The command.


def test_the_command_prints_a_table(tmp_path: Path, command_here: Command) -> None:
    done = command_here("lr-find", "--data", "shapes", *FLAGS, "--verify", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("valley", "slide", "steepest", "minimum / 10", "LRMAX", "LRMIN", "confidence", "trial"):
        assert word in done.stdout
    assert "velodrome train --lr" in done.stdout
    assert "finding the learning rate" in done.stderr
    assert (tmp_path / "runs" / "lr-find-1" / "lr_find.png").exists()


def test_with_json_stdout_is_the_file(tmp_path: Path, command_here: Command) -> None:
    done = command_here(
        "lr-find", "--data", "shapes", *FLAGS, "--json", "--quiet", "--name", "here", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == json.loads((tmp_path / "runs" / "here" / "lr_find.json").read_text())


def test_a_refusal_is_one_line_and_leaves_the_curve(tmp_path: Path, command_here: Command) -> None:
    words = ("--lr-start", "50", "--lr-end", "5000", "--steps", "20")
    done = command_here("lr-find", "--data", "shapes", *FLAGS, *words, "--quiet", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "begin lower" in done.stderr
    assert json.loads((tmp_path / "runs" / "lr-find-1" / "lr_find.json").read_text())["lr_max"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "5"), "--steps is '5', but must be a whole number at least 10"),
        (("--repeats", "0"), "--repeats is '0', but must be a whole number at least 1"),
        (("--verify", "-1"), "--verify is '-1', but must be a whole number at least 0"),
        (("--lr-start", "0"), "--lr-start is '0', but must be a number above 0"),
        (("--lr-start", "1", "--lr-end", "0.1"), "1 to 0.1, but must begin above 0 and rise"),
        (("--lr", "0.1"), "--lr is not an option of velodrome lr-find"),
        (("--epoch", "3"), "Did you mean --epochs?"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: tuple[str, ...], message: str, tmp_path: Path, command_here: Command
) -> None:
    done = command_here("lr-find", "--data", "shapes", *FLAGS, *words, "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_search_are_checked_in_python_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repeat is not a setting"):
        vd.lr_find(small(tmp_path), progress=False, repeat=2)
    with pytest.raises(ConfigError, match="steps is 3, but must be"):
        vd.lr_find(small(tmp_path), progress=False, steps=3)


def test_a_dry_run_says_that_a_search_comes_first(tmp_path: Path, command_here: Command) -> None:
    done = command_here("train", "--data", "shapes", *FLAGS, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a range test finds it first" in done.stdout
