"""Figures of merit as torchmetrics and scikit-learn have them, label errors as cleanlab finds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from velodrome.evaluation.metrics import Evaluation, evaluate
from velodrome.evaluation.mistakes import likely_label_errors
from velodrome.run.answers import Answers

SHAPES = [(1, 3), (40, 2), (500, 10), (2000, 100)]


def case(images: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits that are right about as often as a trained network's, and surer than they should be."""
    rng = np.random.default_rng(images)
    labels = rng.integers(0, classes, images)
    logits = 3 * rng.standard_normal((images, classes))
    logits[np.arange(images), labels] += 6
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.fixture(params=SHAPES, ids=lambda shape: "{} images, {} classes".format(*shape))
def logits_and_labels(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    return case(*request.param)


@pytest.fixture
def found(logits_and_labels) -> Evaluation:
    logits, labels = logits_and_labels
    return evaluate(logits, labels, [str(index) for index in range(logits.shape[1])])


@pytest.fixture(scope="module")
def torchmetrics():
    return pytest.importorskip(
        "torchmetrics.functional.classification", reason="torchmetrics is in the extra `reference`"
    )


def test_accuracy(torchmetrics, logits_and_labels, found):
    logits, labels = logits_and_labels
    expected = torchmetrics.multiclass_accuracy(logits, labels, logits.shape[1], average="micro")
    assert found.accuracy == pytest.approx(float(expected))


def test_top5_accuracy(torchmetrics, logits_and_labels, found):
    logits, labels = logits_and_labels
    if logits.shape[1] <= 5:
        assert found.top5_accuracy is None
        return
    expected = torchmetrics.multiclass_accuracy(logits, labels, logits.shape[1], average="micro", top_k=5)
    assert found.top5_accuracy == pytest.approx(float(expected))


def test_confusion_matrix(torchmetrics, logits_and_labels, found):
    logits, labels = logits_and_labels
    expected = torchmetrics.multiclass_confusion_matrix(logits, labels, logits.shape[1])
    assert [list(row) for row in found.confusion] == expected.tolist()


@pytest.mark.parametrize("figure", ["precision", "recall", "f1"])
def test_figures_of_each_class(torchmetrics, logits_and_labels, found, figure):
    logits, labels = logits_and_labels
    function = getattr(torchmetrics, {"f1": "multiclass_f1_score"}.get(figure, f"multiclass_{figure}"))
    each = function(logits, labels, logits.shape[1], average=None)
    # Where a share is of nothing, torchmetrics says 0.
    assert [getattr(row, figure) or 0.0 for row in found.per_class] == pytest.approx(each.tolist())
    present = [row.images > 0 for row in found.per_class]
    assert getattr(found.macro, figure) == pytest.approx(float(each[present].mean()))


@pytest.mark.parametrize("figure", ["precision", "recall", "f1"])
def test_means_over_classes(torchmetrics, figure):
    logits, labels = case(500, 10)  # every class has images, so both average over the same ones
    function = getattr(torchmetrics, {"f1": "multiclass_f1_score"}.get(figure, f"multiclass_{figure}"))
    expected = function(logits, labels, 10, average="macro")
    found = evaluate(logits, labels, list("abcdefghij"))
    assert getattr(found.macro, figure) == pytest.approx(float(expected))


@pytest.mark.parametrize(("figure", "norm"), [("ece", "l1"), ("mce", "max")])
def test_calibration_error(torchmetrics, logits_and_labels, found, figure, norm):
    logits, labels = logits_and_labels
    expected = torchmetrics.multiclass_calibration_error(
        logits.softmax(1), labels, logits.shape[1], n_bins=15, norm=norm
    )
    assert getattr(found.calibration, figure) == pytest.approx(float(expected), abs=1e-6)


def test_brier_score_and_likelihood(logits_and_labels, found):
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the extra `reference`")
    logits, labels = logits_and_labels
    classes = list(range(logits.shape[1]))
    probabilities = logits.softmax(1).numpy()
    expected = metrics.brier_score_loss(labels.numpy(), probabilities, labels=classes, scale_by_half=False)
    assert found.brier == pytest.approx(expected)
    expected = metrics.log_loss(labels.numpy(), probabilities, labels=classes)
    assert found.nll == pytest.approx(expected)


@pytest.mark.parametrize(("images", "classes", "noise"), [(300, 3, 0.2), (2000, 10, 0.05), (4000, 100, 0.1)])
def test_label_errors(images, classes, noise):
    cleanlab = pytest.importorskip("cleanlab.filter", reason="cleanlab is in the extra `reference`")
    rng = np.random.default_rng(classes)
    logits, true = case(images, classes)
    labels = np.where(rng.random(images) < noise, rng.integers(0, classes, images), true.numpy())
    # As they are read back from probabilities.npy.
    probabilities = logits.softmax(1).numpy().astype(np.float16).astype(np.float32)
    names = tuple(str(index) for index in range(classes))
    losses = -np.log(probabilities[np.arange(images), labels] + 1e-9).astype(np.float64)
    errors = likely_label_errors(
        Answers(names, ("",) * images, labels, probabilities.argmax(1), losses, probabilities)
    )
    expected = cleanlab.find_label_issues(
        labels,
        probabilities.astype(np.float64),
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    )
    # Of several classes that an image counts for, the paper takes the most probable; cleanlab takes the most
    # probable of all classes, even where the image does not count for that one.
    thresholds = [probabilities[labels == k, k].mean(dtype=np.float64) for k in range(classes)]
    counts_for = probabilities >= np.array(thresholds)
    differs = (counts_for.sum(1) > 1) & ~counts_for[np.arange(images), probabilities.argmax(1)]
    assert differs.mean() < 0.02
    expected = [index for index in expected.tolist() if not differs[index]]
    margins = {error.index: error.margin for error in errors if not differs[error.index]}
    assert len(expected) > images * noise / 4
    assert set(margins) == set(expected)
    # The same order but for equal margins, which cleanlab leaves in any order.
    assert list(margins.values()) == pytest.approx([margins[index] for index in expected])
