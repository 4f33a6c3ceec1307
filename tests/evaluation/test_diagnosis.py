"""Every rule of the diagnosis on run folders made by hand: just above its threshold, and just below."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from velodrome.config import SETTINGS
from velodrome.errors import RunError
from velodrome.evaluation.diagnosis import RULES, Diagnosis, diagnose, write_diagnosis
from velodrome.evaluation.diagnosis_answers import short
from velodrome.evaluation.diagnosis_evidence import Finding
from velodrome.run.folder import HISTORY_COLUMNS, RunFolder

CLASSES = [f"class{number}" for number in range(10)]
LEVEL = math.log(10)
SETTINGS_OF_RUN = {
    **{item.key: item.default for item in SETTINGS.values() if isinstance(item.default, int | float | str)},
    **{"lr": 0.2, "lr_min": 0.02, "lr_final": 0.02, "precision": "fp32", "device": "cpu"},
}
# 24 epochs of the reference recipe on CIFAR-10, 93.27%: train loss and accuracy, test loss and accuracy.
HEALTHY = [
    (1.4543, 0.4702, 1.2375, 0.5804),
    (0.8291, 0.7088, 1.0846, 0.6577),
    (0.6531, 0.7711, 0.5875, 0.8042),
    (0.5562, 0.8069, 0.7063, 0.7575),
    (0.5149, 0.8213, 0.5503, 0.8064),
    (0.4592, 0.8405, 0.8267, 0.7560),
    (0.4046, 0.8609, 0.4785, 0.8389),
    (0.3658, 0.8725, 0.3922, 0.8674),
    (0.3325, 0.8852, 0.4100, 0.8663),
    (0.3057, 0.8937, 0.4355, 0.8602),
    (0.2830, 0.9009, 0.4156, 0.8676),
    (0.2629, 0.9082, 0.4256, 0.8617),
    (0.2364, 0.9177, 0.3559, 0.8798),
    (0.2287, 0.9202, 0.3453, 0.8910),
    (0.2017, 0.9294, 0.3927, 0.8816),
    (0.1936, 0.9323, 0.3192, 0.8968),
    (0.1735, 0.9388, 0.3263, 0.8982),
    (0.1552, 0.9464, 0.2806, 0.9109),
    (0.1389, 0.9514, 0.3484, 0.8958),
    (0.1228, 0.9580, 0.2980, 0.9108),
    (0.1058, 0.9630, 0.2730, 0.9203),
    (0.0929, 0.9685, 0.2359, 0.9245),
    (0.0763, 0.9739, 0.2477, 0.9258),
    (0.0639, 0.9791, 0.2358, 0.9327),
]
# 5 epochs of the quick recipe on drawn shapes, 98.10%; the swing before the end is usual.
QUICK = [
    (1.7305, 0.3640, 1.2012, 0.5600),
    (0.5002, 0.8250, 0.3011, 0.9000),
    (0.2336, 0.9212, 0.1389, 0.9550),
    (0.1582, 0.9479, 0.5324, 0.8405),
    (0.1440, 0.9525, 0.0721, 0.9810),
]
Row = tuple[float, float, float, float]


def steps_of(rows: Sequence[Row], per_epoch: int = 20) -> list[list[float]]:
    """Losses of steps that have about the means of the epochs, and begin at the loss of guessing."""
    ends = pairwise([LEVEL, *(row[0] for row in rows)])
    return [np.linspace(before, after, per_epoch).tolist() for before, after in ends]


Make = Callable[..., RunFolder]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function that writes a run folder; without arguments that of a healthy, complete, evaluated run."""

    def make_run(
        rows: Sequence[Row] = HEALTHY,
        *,
        validation: Sequence[tuple[float, float]] | None = None,
        steps: Sequence[Sequence[float]] | None = None,
        planned: int | None = None,
        events: Sequence[dict[str, Any]] | None = None,
        confusion: Sequence[Sequence[int]] | None = None,
        sure: int = 0,
        evaluation: dict[str, Any] | None = None,
        lr_find: dict[str, Any] | None = None,
        complete: bool = True,
        **settings: object,
    ) -> RunFolder:
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir()
        epochs = planned or len(rows)
        folder.config.write_text(yaml.safe_dump({**SETTINGS_OF_RUN, "epochs": epochs, **settings}))
        folder.summary.write_text(json.dumps({"layers": [{"output_shape": [10]}]}))
        write_history(folder, rows, validation)
        told = [epoch_done(number + 1, losses) for number, losses in enumerate(steps or steps_of(rows))]
        started = {"event": "RunStarted", "epochs": epochs, "train_images": 9000}
        lines = [started, *told] if events is None else events
        folder.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if lr_find:
            folder.lr_find.write_text(json.dumps(lr_find))
        if complete:
            folder.result.write_text(json.dumps({"classes": CLASSES}))
            counts = np.array(confusion if confusion is not None else np.eye(10) * 930 + 7)
            write_answers(folder, counts.astype(int), sure)
            if evaluation is not None or confusion is None:
                folder.evaluation.write_text(json.dumps({**evaluated(), **(evaluation or {})}))
        return folder

    return make_run


def epoch_done(epoch: int, losses: Sequence[float]) -> dict[str, Any]:
    return {"event": "EpochDone", "epoch": epoch, "step_losses": list(losses)}


def write_history(folder: RunFolder, rows: Sequence[Row], validation: Any) -> None:
    lines = [",".join(HISTORY_COLUMNS)]
    for number, row in enumerate(rows):
        val = validation[number] if validation else ("", "")
        lines.append(",".join(map(str, (number + 1, 1.0, 0.1, row[0], row[1], *val, row[2], row[3], 100))))
    folder.history.write_text("\n".join(lines) + "\n")


def write_answers(folder: RunFolder, confusion: np.ndarray, sure: int) -> None:
    """Answers with these counts; the first `sure` mistakes are made with 97%, the others with 45%."""
    lines, probabilities, wrong = ["index,path,label,prediction,probability,loss"], [], 0
    for label, row in enumerate(confusion):
        for prediction, count in enumerate(row):
            for _ in range(int(count)):
                values = np.full(10, 0.003)
                values[label], values[prediction] = 0.4, 0.576
                if label == prediction:
                    values[label] = 0.973
                elif wrong < sure:
                    values[label], values[prediction] = 0.003, 0.973
                wrong += label != prediction
                lines.append(f"{len(lines) - 1},x.png,{CLASSES[label]},{CLASSES[prediction]},0.9,0.1")
                probabilities.append(values)
    folder.predictions.write_text("\n".join(lines) + "\n")
    np.save(folder.probabilities, np.array(probabilities, np.float16))


def evaluated(ece: float = 0.03, confidence: float = 0.963, accuracy: float = 0.9327) -> dict[str, Any]:
    bins = [{"low": 0.9, "high": 1.0, "images": 10_000, "confidence": confidence, "accuracy": accuracy}]
    return {
        "classes": CLASSES,
        "images": 10_000,
        "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.005, accuracy + 0.005],
        "calibration": {"ece": ece, "mce": ece, "mean_confidence": confidence, "bins": bins},
        "duplicates": {"images": 0, "examples": []},
    }


def found(folder: RunFolder, rule: str, *, live: bool = False) -> Finding | None:
    """What a rule says; it must have been applied."""
    result = diagnose(folder, live=live)
    assert rule in result.checked, result.unchecked
    return next((finding for finding in result.findings if finding.rule == rule), None)


def triggered(folder: RunFolder, rule: str, *, live: bool = False) -> Finding:
    finding = found(folder, rule, live=live)
    assert finding is not None, f"{rule} found nothing"
    return finding


def grave(result: Diagnosis) -> list[Finding]:
    return [finding for finding in result.findings if finding.severity != "note"]


# Healthy runs


def test_a_healthy_run_has_no_finding_at_all(make: Make) -> None:
    result = diagnose(make())
    assert result.findings == ()
    assert result.unchecked == {}
    assert set(result.checked) == {rule.__name__ for rule in RULES}


def test_a_quick_run_whose_accuracy_swings_has_no_finding(make: Make) -> None:
    assert diagnose(make(QUICK, lr=0.1, width=16)).findings == ()


@pytest.mark.parametrize("epochs", range(1, 24))
def test_a_healthy_run_has_no_finding_while_it_goes_on(make: Make, epochs: int) -> None:
    folder = make(HEALTHY[:epochs], planned=24, complete=False)
    assert diagnose(folder, live=True).findings == ()


@pytest.mark.parametrize("lr", [0.05, 0.1, 0.4])
def test_usual_learning_rates_are_no_reason_for_a_finding(make: Make, lr: float) -> None:
    short = [(1.45, 0.468, 1.28, 0.581), (0.749, 0.738, 0.625, 0.792), (0.54, 0.812, 0.466, 0.842)]
    found_elsewhere = {"lr_max": 0.092}
    assert grave(diagnose(make(short, lr=lr, lr_find=found_elsewhere))) == []


# Overfitting


def overfit(gap: float, test: float = 0.8) -> list[Row]:
    return [(0.1, test + gap, 0.6, test)] * 5


@pytest.mark.parametrize(
    ("gap", "severity"), [(0.079, None), (0.081, "warning"), (0.199, "warning"), (0.201, "problem")]
)
def test_the_gap(make: Make, gap: float, severity: str | None) -> None:
    finding = found(make(overfit(gap, 0.75)), "overfitting")
    assert (finding and finding.severity) == severity


def test_the_gap_is_told_with_its_numbers_and_with_flags_that_are_open(make: Make) -> None:
    finding = triggered(make(overfit(0.147, 0.851), crop=0, flip=False, limit_train=4000), "overfitting")
    assert (
        "Train accuracy 99.8%, test accuracy 85.1%: a gap of 14.7 points (rule: above 8" in finding.evidence
    )
    assert "small gap or none is normal" in finding.evidence
    assert "--crop 4, --flip (where a mirrored image keeps its class), --cutout 12" in finding.advice
    assert "--limit-train is 4000" in finding.advice
    assert "--val-fraction" in finding.advice
    assert finding.numbers["gap"] == pytest.approx(0.147)


def test_a_gap_in_some_epochs_only_is_a_swing(make: Make) -> None:
    rows = [(0.3, 0.9, 0.3, 0.89), (0.25, 0.93, 0.6, 0.8), (0.2, 0.94, 0.6, 0.81)]
    assert found(make(rows), "overfitting") is None


def test_a_gap_within_the_chance_of_few_images_is_none(make: Make) -> None:
    confusion = np.eye(10, dtype=int) * 4  # of 40 images 80%, with a standard error of 6 points
    assert found(make(overfit(0.15), confusion=confusion), "overfitting") is None


def test_validation_images_count_rather_than_test_images(make: Make) -> None:
    finding = triggered(
        make(overfit(0.0), validation=[(0.9, 0.70)] * 5, val_fraction=0.1),
        "overfitting",
    )
    assert "validation accuracy 70.0%" in finding.evidence
    assert "--val-fraction" not in finding.advice


def rising(last: float, train_last: float = 0.1, epochs: int = 8) -> list[Row]:
    rows = [(0.5, 0.85, 0.50, 0.84)] * (epochs - 3)
    return rows + [(train_last, 0.9, last, 0.84)] * 3


@pytest.mark.parametrize(
    ("rows", "is_found"),
    [
        (rising(0.549), False),
        (rising(0.551), True),
        (rising(0.9, train_last=0.6), False),  # the train loss rises too: no overfitting
        (rising(0.9, epochs=5), False),  # too few epochs to tell
        ([*rising(0.9)[:-1], (0.1, 0.9, 0.5, 0.84)], False),  # it came down again
    ],
)
def test_the_loss_on_new_images(make: Make, rows: list[Row], is_found: bool) -> None:
    finding = found(make(rows), "overfitting")
    assert (finding is not None) == is_found
    if finding:
        assert finding.severity == "warning"
        assert "rose by 10%, from 0.5 about epoch" in finding.evidence


def test_the_loss_on_new_images_is_not_looked_at_before_the_end(make: Make) -> None:
    assert found(make(rising(0.9), planned=10, complete=False), "overfitting", live=True) is None


# Underfitting


def ended(accuracy: float, fall: float = 0.1, epochs: int = 3) -> dict[str, Any]:
    """A run that ends with this accuracy, whose loss is lower by a share in the last fifth of the steps."""
    losses = np.full(20 * epochs, 1.0)
    losses[: 4 * epochs] = np.linspace(LEVEL, 1.0, 4 * epochs)
    losses[-4 * epochs :] = 1 - fall
    rows = [(1.0, accuracy - 0.02, 1.0, accuracy)] * epochs
    return {"rows": rows, "steps": np.split(losses, epochs)}


def at_skill(skill: float) -> float:
    return 0.1 + 0.9 * skill


@pytest.mark.parametrize(
    ("skill", "severity"),
    [
        (0.901, None),
        (0.899, "note"),
        (0.601, "note"),
        (0.599, "warning"),
        (0.251, "warning"),
        (0.249, "problem"),
    ],
)
def test_how_much_was_learned(make: Make, skill: float, severity: str | None) -> None:
    finding = found(make(**ended(at_skill(skill)), lr=0.1), "underfitting")
    assert (finding and finding.severity) == severity


def test_a_run_that_could_learn_more_is_told_to_go_on(make: Make) -> None:
    finding = triggered(make(**ended(0.838), lr=0.1), "underfitting")
    assert finding.title == "It could learn more"
    assert (
        "Train accuracy 81.8%, test accuracy 83.8%: 82% of the way from guessing (10.0%)" in finding.evidence
    )
    assert "fell by 10%" in finding.evidence
    assert finding.advice == "Try --epochs 6 or --width 128."


@pytest.mark.parametrize(
    ("skill", "fall", "is_found"), [(0.8, 0.049, False), (0.8, 0.051, True), (0.5, 0.0, True)]
)
def test_a_loss_that_has_settled(make: Make, skill: float, fall: float, is_found: bool) -> None:
    finding = found(make(**ended(at_skill(skill), fall), lr=0.1, dropout=0.3), "underfitting")
    assert (finding is not None) == is_found
    if fall == 0:
        assert finding is not None
        assert "did not fall" in finding.evidence
        assert (
            "Check that the labels belong to their images; then try --dropout 0, --cutout 0 or --width 128"
            in finding.advice
        )


def test_with_a_wrong_learning_rate_that_comes_first(make: Make) -> None:
    assert "learning rate first" in triggered(make(**ended(0.4), lr=0.001), "underfitting").advice


def test_a_run_that_has_not_ended_is_not_judged_by_its_end(make: Make) -> None:
    folder = make(HEALTHY[:2], planned=24, complete=False)
    for live, why in ((True, "the run is still going on"), (False, "the run did not come to its end")):
        unchecked = diagnose(folder, live=live).unchecked
        for rule in ("underfitting", "lr_too_low"):
            assert unchecked[rule] == f"{why}: 2 of 24 epochs are trained"


# The learning rate


def test_a_loss_that_is_not_finite(make: Make) -> None:
    reason = "The loss is not finite at step 20 (learning rate 24), so training stopped."
    events = [{"event": "RunStarted"}, {"event": "RunStopped", "step": 32, "reason": reason}]
    folder = make([], planned=4, events=events, complete=False, lr=30.0, precision="bf16")
    finding = triggered(folder, "lr_too_high")
    assert finding.severity == "problem"
    assert "not finite at step 20 (learning rate 24)" in finding.evidence
    assert "--lr 0.1," in finding.advice
    assert "--precision fp32" in finding.advice
    stopped = triggered(folder, "stopped_early")
    assert "0 of 4 epochs and stopped at step 32" in stopped.evidence
    assert "velodrome resume" not in stopped.advice


def blown_up(height: float, share: float, steps: int = 1000) -> dict[str, Any]:
    """A run whose loss stands above that of guessing for the first share of its steps."""
    above = int(share * steps)
    losses = np.concatenate([np.full(above, height), np.linspace(1.0, 0.1, steps - above)])
    return {"rows": [(1.0, 0.93, 0.3, 0.93)] * 5, "steps": np.split(losses, 5), "lr": 0.1}


@pytest.mark.parametrize(
    ("height", "share", "is_found"),
    [(1.55 * LEVEL, 0.33, True), (1.55 * LEVEL, 0.27, False), (1.45 * LEVEL, 0.33, False)],
)
def test_a_loss_that_blew_up(make: Make, height: float, share: float, is_found: bool) -> None:
    finding = found(make(**blown_up(height, share)), "lr_too_high")
    assert (finding is not None) == is_found
    if finding:
        assert "rose to 3.57" in finding.evidence
        assert "33% of the steps it stood above 2.3, the loss of guessing" in finding.evidence
        assert "--lr 0.02," in finding.advice


@pytest.mark.parametrize(("rise", "is_found"), [(0.49, False), (0.51, True)])
def test_a_loss_that_rises_again(make: Make, rise: float, is_found: bool) -> None:
    losses = np.full(200, 0.5)
    losses[:20], losses[120:] = LEVEL + 0.01, 0.5 + rise * LEVEL
    rows = [(0.5, 0.9, 0.5, 0.9)] * 5
    finding = found(make(rows, steps=np.split(losses, 5), lr=0.1), "lr_too_high")
    assert (finding is not None) == is_found
    if finding:
        assert "rose again by 1.17 (rule: more than 1.15" in finding.evidence


@pytest.mark.parametrize(
    ("lr", "accuracy", "severity"),
    [
        (0.49, 0.5, None),
        (0.5, 0.5, "warning"),
        (0.99, 0.5, "warning"),
        (1.0, 0.5, "problem"),
        (1.0, at_skill(0.599), "problem"),
        (1.0, at_skill(0.601), None),
    ],
)
def test_far_above_the_usual_learning_rate(
    make: Make, lr: float, accuracy: float, severity: str | None
) -> None:
    finding = found(make(**ended(accuracy), lr=lr), "lr_too_high")
    assert (finding and finding.severity) == severity


def test_far_above_the_learning_rate_that_was_found(make: Make) -> None:
    finding = triggered(make(**ended(0.4), lr=0.5, lr_find={"lr_max": 0.042}), "lr_too_high")
    assert "LRMAX was 0.5, 12 times 0.042, which the range test found" in finding.evidence
    assert finding.advice == "Try --lr 0.04."


@pytest.mark.parametrize(
    ("optimizer", "lr", "skill", "severity"),
    [
        ("sgd", 0.021, 0.5, None),
        ("sgd", 0.02, 0.5, "warning"),
        ("sgd", 0.01, 0.5, "problem"),
        ("sgd", 0.01, 0.899, "note"),
        ("sgd", 0.01, 0.901, None),
        ("adam", 0.0011, 0.5, None),
        ("adamw", 0.0005, 0.5, "problem"),
    ],
)
def test_far_below_the_usual_learning_rate(
    make: Make, optimizer: str, lr: float, skill: float, severity: str | None
) -> None:
    finding = found(make(**ended(at_skill(skill)), lr=lr, optimizer=optimizer), "lr_too_low")
    assert (finding and finding.severity) == severity


def test_a_low_learning_rate_is_told_with_its_numbers(make: Make) -> None:
    finding = triggered(make(**ended(0.12), lr=1e-5), "lr_too_low")
    assert "LRMAX was 1e-05, 10,000 times less than 0.1, the usual one for sgd." in finding.evidence
    assert "In 60 steps the train loss went from" in finding.evidence
    assert "2% of the way" in finding.evidence
    assert "--lr 0.1, or leave --lr out" in finding.advice


def test_a_loss_that_blew_up_is_no_sign_of_a_low_learning_rate(make: Make) -> None:
    run = ended(0.4)
    run["steps"][0][:10] = 9.0
    assert found(make(**run, lr=0.001), "lr_too_low") is None


# The start


def shaky(height: float, steps: int) -> dict[str, Any]:
    """A run of 1,000 steps whose loss stands above that of guessing in the first of them."""
    losses = np.concatenate([np.full(steps, height), np.linspace(1.0, 0.1, 1000 - steps)])
    return {"rows": [(1.0, 0.97, 0.3, 0.93)] * 5, "steps": np.split(losses, 5), "lr": 0.1, "lr_min": 0.01}


@pytest.mark.parametrize(
    ("height", "steps", "severity"),
    [
        (1.24 * LEVEL, 60, None),
        (1.4 * LEVEL, 60, "warning"),
        (1.4 * LEVEL, 45, "note"),
        (1.4 * LEVEL, 24, "note"),
        (1.4 * LEVEL, 19, None),
    ],
)
def test_an_unstable_start(make: Make, height: float, steps: int, severity: str | None) -> None:
    finding = found(make(**shaky(height, steps)), "unstable_start")
    assert (finding and finding.severity) == severity
    if severity == "warning":
        assert finding is not None
        assert "rose to 3.22" in finding.evidence
        assert "first 58 steps, 5.8% of all" in finding.evidence
        assert "--lr-min 0.003, --lr 0.05 or" in finding.advice


def test_a_start_from_which_a_run_never_recovers_is_told_once(make: Make) -> None:
    result = diagnose(make(**shaky(2 * LEVEL, 600)))
    rules = [finding.rule for finding in result.findings]
    assert "lr_too_high" in rules
    assert "unstable_start" not in rules


def test_epochs_that_are_told_twice_count_as_told_last(make: Make) -> None:
    good = steps_of(HEALTHY)
    first = [epoch_done(number, [50.0] * 20) for number in range(1, 13)]
    second = [epoch_done(number + 1, losses) for number, losses in enumerate(good)]
    stopped = {"event": "RunStopped", "step": 240, "reason": "SIGTERM"}
    events = [{"event": "RunStarted"}, *first, stopped, {"event": "RunStarted", "step": 0}, *second]
    assert diagnose(make(events=events)).findings == ()


# The end


def test_a_run_that_was_stopped(make: Make) -> None:
    events = [{"event": "RunStarted"}, {"event": "RunStopped", "step": 1234, "reason": "SIGTERM"}]
    folder = make(HEALTHY[:7], planned=24, events=events, complete=False)
    finding = triggered(folder, "stopped_early")
    assert "7 of 24 epochs and stopped at step 1,234. It was stopped by SIGTERM." in finding.evidence
    assert finding.advice == f"Go on where it stopped: velodrome resume {folder.path}"
    assert finding.numbers == {"epochs": 7, "planned_epochs": 24}


def test_a_run_that_was_killed(make: Make) -> None:
    events = [
        {"event": "RunStarted"},
        {"event": "RunStopped", "step": 3, "reason": "SIGTERM"},
        {"event": "RunStarted", "step": 3},
    ]
    finding = triggered(make(HEALTHY, events=events, complete=False), "stopped_early")
    assert "24 of 24 epochs. The log does not say why" in finding.evidence


def test_a_run_that_goes_on_is_not_stopped(make: Make) -> None:
    folder = make(HEALTHY[:7], planned=24, complete=False)
    assert diagnose(folder, live=True).unchecked["stopped_early"] == "the run is still going on"


# The answers


def one_class_at(right: int, images: int = 200, others: float = 0.9) -> np.ndarray:
    counts = np.eye(10, dtype=int) * int(others * images)
    counts[np.arange(10), (np.arange(10) + 1) % 10] += images - int(others * images)
    counts[3] = 0
    counts[3, 3], counts[3, 5], counts[3, 7] = right, images - right - 1, 1
    return counts


@pytest.mark.parametrize(
    ("right", "severity"), [(161, None), (159, "note"), (131, "note"), (129, "warning"), (79, "problem")]
)
def test_a_class_that_is_behind(make: Make, right: int, severity: str | None) -> None:
    finding = found(make(confusion=one_class_at(right)), "class_behind")
    assert (finding and finding.severity) == severity


def test_a_class_that_is_behind_is_named_with_what_it_is_taken_for(make: Make) -> None:
    finding = triggered(make(confusion=one_class_at(120)), "class_behind")
    assert finding.title == "The class class3 is behind the others"
    assert (
        "Of 200 images of class3, 60.0% are recognised; the mean of the other classes is 90.0%"
        in finding.evidence
    )
    assert "79 are taken for class5" in finding.evidence


def test_a_class_that_is_behind_by_chance_is_not(make: Make) -> None:
    # 7 of 10 where 9 are expected: happens to one of ten classes in half of all cases.
    assert found(make(confusion=one_class_at(7, images=10)), "class_behind") is None


def test_classes_are_not_compared_where_hardly_anything_is_recognised(make: Make) -> None:
    confusion = np.zeros((10, 10), dtype=int)
    confusion[:, 0] = 100
    assert "class_behind" in diagnose(make(confusion=confusion)).unchecked


@pytest.mark.parametrize(
    ("ece", "severity"), [(0.049, None), (0.051, "warning"), (0.149, "warning"), (0.151, "problem")]
)
def test_calibration(make: Make, ece: float, severity: str | None) -> None:
    evaluation = evaluated(ece, confidence=0.85 + ece, accuracy=0.85)
    finding = found(make(evaluation=evaluation), "calibration")
    assert (finding and finding.severity) == severity
    if severity == "warning" and ece > 0.1:
        assert finding is not None
        assert "99.9% on average, and 85.0% of them are right" in finding.evidence
        assert f"error is {ece:.3f} (rule: at least 0.05" in finding.evidence
        assert "surer of its answers" in finding.title
        assert "--label-smoothing 0.1" in finding.advice


def test_calibration_within_the_chance_of_few_images_is_fine(make: Make) -> None:
    few = evaluated(0.06, confidence=0.86, accuracy=0.8)
    few["calibration"]["bins"] = [{"images": 60, "confidence": 0.86}]  # 0.036 by chance, on average
    assert found(make(evaluation=few), "calibration") is None


def test_answers_that_are_too_careful_are_a_note(make: Make) -> None:
    careful = evaluated(0.09, confidence=0.84, accuracy=0.93)
    finding = triggered(make(evaluation=careful, label_smoothing=0.1), "calibration")
    assert finding.severity == "note"
    assert "less sure" in finding.title
    assert "--label-smoothing 0.05" in finding.advice


def mistaken(share: float, images: int = 2000) -> np.ndarray:
    per_class, wrong = images // 10, round(share * images / 10)
    counts = np.eye(10, dtype=int) * (per_class - wrong)
    counts[np.arange(10), (np.arange(10) + 3) % 10] += wrong
    return counts


@pytest.mark.parametrize(
    ("share", "sure", "severity"),
    [
        (0.05, 4, None),
        (0.05, 5, "note"),
        (0.10, 75, "note"),  # 37.5% of the mistakes
        (0.10, 77, "warning"),
        (0.05, 58, "note"),  # 2.9% of the images
        (0.05, 62, "warning"),
        (0.20, 198, "warning"),
        (0.20, 202, "problem"),
    ],
)
def test_label_noise(make: Make, share: float, sure: int, severity: str | None) -> None:
    confusion = mistaken(share)
    finding = found(make(overfit(0.0, 0.9), confusion=confusion, sure=sure), "label_noise")
    assert (finding and finding.severity) == severity
    if sure == 77:
        assert finding is not None
        assert "77 of 2,000 (3.9%)" in finding.evidence
        assert "38% of all mistakes" in finding.evidence
        assert "label_errors.csv" in finding.advice


def test_labels_are_not_doubted_by_a_network_that_errs_often(make: Make) -> None:
    unchecked = diagnose(make(confusion=mistaken(0.31), sure=600)).unchecked
    assert "69.0% accuracy" in unchecked["label_noise"]


def test_labels_are_not_doubted_by_a_network_that_overfits(make: Make) -> None:
    folder = make(overfit(0.15), confusion=mistaken(0.2), sure=300)
    assert "overfits" in diagnose(folder).unchecked["label_noise"]


@pytest.mark.parametrize(("images", "severity"), [(0, None), (9, "note"), (10, "warning"), (100, "problem")])
def test_duplicates(make: Make, images: int, severity: str | None) -> None:
    examples = [{"test": 5, "train": 123, "same_label": True}, {"test": 7, "train": 9, "same_label": False}]
    folder = make(evaluation={"duplicates": {"images": images, "examples": examples}})
    finding = found(folder, "duplicates")
    assert (finding and finding.severity) == severity
    if images == 100:
        assert finding is not None
        assert "100 of 10,000 test images (1.0%)" in finding.evidence
        assert "5 = 123, 7 = 9" in finding.evidence
        assert "1 of the first 2 have another label" in finding.evidence


def test_duplicates_that_were_not_looked_for(make: Make) -> None:
    unchecked = diagnose(make(evaluation={"duplicates": None})).unchecked
    assert unchecked["duplicates"] == "training and test images were not compared"


@pytest.mark.parametrize(("half", "is_found"), [(0.0251, True), (0.0249, False)])
def test_a_small_test_set(make: Make, half: float, is_found: bool) -> None:
    evaluation = {"images": 1000, "accuracy_ci95": [0.6 - half, 0.6 + half]}
    finding = found(make(evaluation=evaluation, limit_test=1000), "small_test_set")
    assert (finding is not None) == is_found
    if finding:
        assert "With 1,000 test images the accuracy lies between 57.5% and 62.5%" in finding.evidence
        assert "--limit-test" in finding.advice


@pytest.mark.parametrize(("small", "right", "is_found"), [(60, 20, True), (60, 45, False), (80, 20, False)])
def test_uneven_classes(make: Make, small: int, right: int, is_found: bool) -> None:
    confusion = np.diag([200] * 7 + [right] * 3)
    confusion[[7, 8, 9], 0] = small - right
    finding = found(make(confusion=confusion), "uneven_classes")
    assert (finding is not None) == is_found
    if finding:
        assert "92.4%, but the mean over classes is 80.0%" in finding.evidence
        assert "largest class has 200 test images, the smallest 60" in finding.evidence


# The whole


def test_findings_are_in_order_of_gravity_and_written_as_they_are(make: Make) -> None:
    confusion = one_class_at(100)
    folder = make(overfit(0.3), confusion=confusion, evaluation=evaluated(0.06, 0.91, 0.85))
    result = write_diagnosis(folder)
    assert [finding.severity for finding in result.findings] == sorted(
        (finding.severity for finding in result.findings), key=("problem", "warning", "note").index
    )
    assert len({finding.severity for finding in result.findings}) > 1
    written = json.loads(folder.diagnosis.read_text())
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["findings"][0] == asdict(result.findings[0])
    assert set(written) == {"findings", "checked", "unchecked"}


def test_every_flag_that_is_advised_exists() -> None:
    source = Path(sys.modules[diagnose.__module__].__file__ or "").parent
    text = "".join(path.read_text() for path in source.glob("diagnosis*.py"))
    flags = set(re.findall(r"--[a-z][a-z-]+", text))
    assert len(flags) > 8
    assert flags <= {item.flag for item in SETTINGS.values()}


@pytest.mark.parametrize(
    "missing",
    ["config", "history", "events", "summary", "predictions", "probabilities", "evaluation", "result"],
)
def test_a_missing_file_is_a_reason_and_no_error(make: Make, missing: str) -> None:
    folder = make()
    if missing == "summary":
        folder.result.unlink()
    getattr(folder, missing).unlink()
    result = diagnose(folder)
    assert result.unchecked
    assert set(result.checked) | set(result.unchecked) == {rule.__name__ for rule in RULES}
    assert all(result.unchecked.values())


def test_an_older_run_lacks_an_evaluation(make: Make) -> None:
    folder = make()
    folder.evaluation.unlink()
    result = diagnose(folder)
    assert dict(result.unchecked) == {
        "calibration": "evaluation.json is missing",
        "duplicates": "evaluation.json is missing",
        "small_test_set": "evaluation.json is missing",
    }


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    result = diagnose(RunFolder(tmp_path))
    assert result.checked == ()
    assert result.findings == ()


@pytest.mark.parametrize(
    "name", ["config", "history", "result", "evaluation", "lr_find", "predictions", "probabilities"]
)
def test_a_damaged_file_is_named(make: Make, name: str) -> None:
    folder = make()
    path: Path = getattr(folder, name)
    path.write_text("broken: [\nbroken")
    with pytest.raises(RunError, match=path.name):
        diagnose(folder)


@pytest.mark.parametrize(
    "strange",
    [
        {"calibration": [], "duplicates": 3, "images": "many", "accuracy": None, "classes": 7},
        {"calibration": {"ece": 0.2, "mean_confidence": 0.9, "bins": [1, {"images": "x"}]}},
        {"duplicates": {"images": 4, "examples": ["x", {"test": None}]}, "images": 0},
    ],
)
def test_strange_values_are_no_error(make: Make, strange: dict[str, Any]) -> None:
    folder = make(evaluation=strange)
    folder.summary.write_text('{"layers": 3}')
    with folder.events.open("a") as file:
        file.write('{"event": "EpochDone", "epoch": [1], "step_losses": [NaN, "x"]}\n')
        file.write('{"event": "EpochDone", "epoch": 1, "step_losses": [NaN, null, 2.3]}\n')
    write_diagnosis(folder)


def test_class_names_are_in_one_line_and_not_too_long() -> None:
    assert short("a\n\nb\tc") == "a b c"
    assert len(short("x" * 300)) == 40


def test_the_diagnosis_never_imports_torch() -> None:
    code = "import sys, velodrome.evaluation.diagnosis; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
