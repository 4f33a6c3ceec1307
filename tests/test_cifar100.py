"""CIFAR-100 from its files to a report, with the reference network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from velodrome.cli import main
from velodrome.data import sources
from velodrome.data.imageset import ImageSet
from velodrome.evaluation.predict import Classifier
from velodrome.runs import load

CLASSES = tuple(f"class {number:02}" for number in range(100))


def coloured(per_class: int, seed: int) -> ImageSet:
    """Noise around a colour of its own for each of the hundred classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(100), per_class)
    colours = np.stack([labels % 5 * 55, labels // 5 % 5 * 55, labels // 25 * 70], 1)[:, None, None]
    pixels = (colours + rng.integers(0, 30, (len(labels), 32, 32, 3))).clip(0, 255).astype(np.uint8)
    return ImageSet(pixels, labels, CLASSES, [f"{number:04}.png" for number in range(len(labels))])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    words = [
        "train",
        "resnet9",
        "--data",
        "cifar100",
        "--data-root",
        str(runs),
        "--width",
        "8",
        "--lr",
        "0.1",
    ]
    words += [
        "--epochs",
        "4",
        "--batch-size",
        "50",
        "--no-flip",
        "--cutout",
        "0",
        "--quiet",
        "--name",
        "hundred",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "load_cifar", lambda *_words, **_more: (coloured(10, 0), coloured(2, 1)))
        assert main([*words, "--runs-dir", str(runs)]) == 0
    return runs / "hundred"


def test_a_hundred_classes_are_told_apart(run: Path) -> None:
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["data"] == "cifar100"
    assert result["classes"] == list(CLASSES)
    assert result["test_accuracy"] > 0.1  # ten times chance


def test_all_that_has_a_row_for_each_class_has_a_hundred(run: Path) -> None:
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert np.array(evaluation["confusion"]).shape == (100, 100)
    assert np.load(run / "probabilities.npy").shape == (200, 100)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in CLASSES)


def test_its_classifier_has_a_hundred_answers(run: Path) -> None:
    model: Classifier = load(run)
    assert model.probabilities(coloured(1, 2).images_u8[:3]).shape == (3, 100)


def test_another_run_starts_from_it_with_its_own_classes(run: Path) -> None:
    words = ["train", "--data", "shapes", "--init", str(run), "--limit-train", "128", "--limit-test", "50"]
    words += ["--epochs", "1", "--batch-size", "32", "--lr", "0.05", "--freeze-epochs", "1", "--quiet"]
    assert main([*words, "--runs-dir", str(run.parent), "--name", "tuned"]) == 0
    tuned, base = load(run.parent / "tuned"), load(run)
    assert len(tuned.classes) == 10
    weights = dict(base.network.named_parameters())
    changed = {
        name
        for name, value in tuned.network.named_parameters()
        if value.shape != weights[name].shape or not np.array_equal(value.detach(), weights[name].detach())
    }
    assert len(changed) == 1  # the classifier alone has learned
