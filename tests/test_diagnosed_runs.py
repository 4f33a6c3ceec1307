"""Real trainings, small, each made to go wrong in one way, and what their diagnosis says."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import velodrome as vd
from velodrome import running
from velodrome.data.imageset import ImageSet, Splits
from velodrome.errors import InterruptedRunError, TrainingError
from velodrome.evaluation.diagnosis import Diagnosis, diagnose
from velodrome.evaluation.diagnosis_evidence import Finding
from velodrome.job import prepare
from velodrome.run.folder import RunFolder, create_run

SMALL = {
    "limit_train": 300,
    "limit_test": 200,
    "batch_size": 30,
    "width": 4,
    "epochs": 3,
    "lr": 0.05,
    "precision": "fp32",
}
# For images of 8x8 pixels.
GENTLE = {"crop": 1, "cutout": 2}
Train = Callable[..., RunFolder]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """A function that trains on drawn shapes, or on the splits given; a run that fails leaves its folder."""

    def run(splits: Splits | None = None, **changes: Any) -> RunFolder:
        config = vd.recipes.quick(runs_dir=tmp_path / "runs", **{**SMALL, **changes})
        prepared = prepare(config, splits, progress=False)
        folder = create_run(
            config.run.runs_dir, "run", "quick", lambda draft: running.describe(draft, prepared)
        )
        try:
            running.carry_on(folder, prepared, progress=False)
        except (TrainingError, InterruptedRunError):
            assert not folder.is_finished
        return folder

    return run


def said(result: Diagnosis, rule: str) -> Finding:
    """The finding of a rule."""
    (finding,) = (finding for finding in result.findings if finding.rule == rule)
    return finding


def rules(result: Diagnosis, *severities: str) -> set[str]:
    """The rules that found something of these severities."""
    return {finding.rule for finding in result.findings if finding.severity in severities}


@pytest.fixture
def coloured_splits(coloured_images: Callable[..., ImageSet]) -> Callable[..., Splits]:
    """A function that makes splits of three colours, easily told apart."""

    def make(train: int = 600, test: int = 600) -> Splits:
        return Splits("coloured", coloured_images(train, seed=1), None, coloured_images(test, seed=2))

    return make


def test_a_healthy_run(train: Train, coloured_splits: Callable[..., Splits]) -> None:
    result = diagnose(train(coloured_splits(), **GENTLE))
    assert rules(result, "problem", "warning") == set()
    assert result.unchecked == {}


def test_overfitting_and_overconfidence(train: Train) -> None:
    result = diagnose(train(limit_train=100, batch_size=20, epochs=20, crop=0, flip=False, cutout=0))
    finding = said(result, "overfitting")
    assert finding.severity == "problem"
    assert finding.numbers["train_accuracy"] > 0.95
    assert finding.numbers["gap"] > 0.3
    assert "--crop 4" in finding.advice
    assert "surer" in said(result, "calibration").title
    assert not rules(result, "problem", "warning", "note") & {"underfitting", "lr_too_low", "lr_too_high"}


def test_underfitting(train: Train) -> None:
    result = diagnose(train(epochs=4))
    assert said(result, "underfitting").severity in ("problem", "warning")
    assert not rules(result, "problem") & {"lr_too_low", "lr_too_high", "overfitting"}


@pytest.mark.parametrize("lr", [3.0, 1000.0])
def test_a_learning_rate_that_is_too_high(train: Train, lr: float) -> None:
    result = diagnose(train(lr=lr, lr_min=lr / 10))
    assert said(result, "lr_too_high").severity == "problem"
    assert "Try --lr 0.02," in said(result, "lr_too_high").advice


def test_a_learning_rate_that_is_too_low(train: Train) -> None:
    result = diagnose(train(lr=1e-5, epochs=4))
    assert said(result, "lr_too_low").severity == "problem"
    assert said(result, "underfitting").severity == "problem"
    assert "learning rate first" in said(result, "underfitting").advice


def shuffled(images: ImageSet, share: float, seed: int) -> ImageSet:
    """The images, a share of which have the label of another class."""
    rng = np.random.default_rng(seed)
    labels, chosen = images.labels.copy(), rng.permutation(len(images))[: round(share * len(images))]
    labels[chosen] = (labels[chosen] + rng.integers(1, len(images.classes), len(chosen))) % len(
        images.classes
    )
    return replace(images, labels=labels)


def test_label_noise(train: Train, coloured_splits: Callable[..., Splits]) -> None:
    clean = coloured_splits()
    splits = replace(clean, train=shuffled(clean.train, 0.15, 3), test=shuffled(clean.test, 0.15, 4))
    result = diagnose(train(splits, **GENTLE))
    finding = said(result, "label_noise")
    assert finding.severity in ("problem", "warning")
    assert 60 < finding.numbers["label_errors"] < 120  # of 90


def test_duplicates(train: Train, coloured_splits: Callable[..., Splits]) -> None:
    clean = coloured_splits()
    images = clean.test.images_u8.copy()
    images[:12] = clean.train.images_u8[100:112]
    finding = said(
        diagnose(train(replace(clean, test=replace(clean.test, images_u8=images)), **GENTLE)), "duplicates"
    )
    assert "12 of 600 test images (2.0%)" in finding.evidence
    assert "0 = 100, 1 = 101, 2 = 102" in finding.evidence


def test_a_class_that_cannot_be_told_from_another(
    train: Train, coloured_splits: Callable[..., Splits]
) -> None:
    def repainted(images: ImageSet) -> ImageSet:
        """Of four blue images three look green."""
        pixels, blue = images.images_u8.copy(), np.flatnonzero(images.labels == 2)
        changed = blue[np.arange(len(blue)) % 4 > 0]
        pixels[changed] = pixels[changed][..., [0, 2, 1]]
        return replace(images, images_u8=pixels)

    clean = coloured_splits()
    result = diagnose(
        train(replace(clean, train=repainted(clean.train), test=repainted(clean.test)), **GENTLE)
    )
    finding = said(result, "class_behind")
    assert finding.title == "The class blue is behind the others"
    assert "taken for green" in finding.evidence


def stop_after_an_epoch(patch: pytest.MonkeyPatch) -> None:
    """A signal comes while the network is scored after its first epoch."""
    score = running.score_on

    def score_and_stop(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return score(*args)

    patch.setattr(running, "score_on", score_and_stop)


def test_a_stopped_run_until_it_is_resumed(train: Train) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after_an_epoch(patch)
        folder = train(limit_train=120)
    finding = said(diagnose(folder), "stopped_early")
    assert "1 of 3 epochs and stopped at step 4. It was stopped by SIGTERM." in finding.evidence
    assert finding.advice.endswith(f"velodrome resume {folder.path}")
    vd.resume(folder.path, progress=False)
    result = diagnose(folder)
    assert "stopped_early" in result.checked
    assert "stopped_early" not in rules(result, "problem", "warning", "note")
