"""Figures of merit: small cases worked out by hand, and what must hold for all of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from velodrome.errors import DataError
from velodrome.evaluation.metrics import Evaluation, accuracy_change, evaluate, wilson_interval


def logits_of(probabilities: list[list[float]]) -> Tensor:
    """Logits whose softmax gives these probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def evaluation(
    probabilities: list[list[float]], labels: list[int], classes: str = "abc", tta: Tensor | None = None
) -> Evaluation:
    return evaluate(logits_of(probabilities), torch.tensor(labels), list(classes), tta)


@pytest.fixture
def four_images() -> Evaluation:
    """Of class a: one right, one taken for b. Of class b: one right. Of class c: one taken for b."""
    return evaluation([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.1, 0.5, 0.4]], [0, 0, 1, 2])


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits of 1 to 30 images and 1 to 8 classes, and labels that may leave classes without images."""
    images, classes = draw(st.integers(1, 30)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = draw(st.sampled_from([0.1, 1.0, 10.0])) * torch.randn(images, classes, generator=generator)
    return logits, torch.randint(classes, (images,), generator=generator)


def names(logits: Tensor) -> list[str]:
    return [f"class {index}" for index in range(logits.shape[1])]


def test_confusion_has_labels_in_rows_and_predictions_in_columns(four_images):
    assert four_images.confusion == ((1, 1, 0), (0, 1, 0), (0, 1, 0))
    assert (four_images.images, four_images.accuracy) == (4, 0.5)


def test_figures_of_each_class(four_images):
    a, b, c = four_images.per_class
    assert (a.images, a.predicted, a.precision, a.recall) == (2, 1, 1.0, 0.5)
    assert (b.images, b.predicted, b.recall) == (1, 3, 1.0)
    assert b.precision == pytest.approx(1 / 3)
    assert (a.f1, b.f1) == (pytest.approx(2 / 3), pytest.approx(0.5))
    # Never predicted: there is no precision, but there is a recall.
    assert (c.images, c.predicted, c.precision, c.recall, c.f1) == (1, 0, None, 0.0, 0.0)


def test_means_over_classes_count_one_never_predicted_as_zero(four_images):
    assert four_images.macro.precision == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert four_images.macro.recall == pytest.approx((0.5 + 1 + 0) / 3)
    assert four_images.macro.f1 == pytest.approx((2 / 3 + 0.5 + 0) / 3)


def test_likelihood_and_brier_score(four_images):
    assert four_images.nll == pytest.approx(-math.log(0.7 * 0.3 * 0.8 * 0.4) / 4)
    squares = (0.3**2 + 0.2**2 + 0.1**2) + (0.7**2 + 0.6**2 + 0.1**2)
    squares += (0.1**2 + 0.2**2 + 0.1**2) + (0.1**2 + 0.5**2 + 0.6**2)
    assert four_images.brier == pytest.approx(squares / 4)


def test_calibration(four_images):
    # 0.7, 0.6, 0.8 and 0.5 lie in four bins of a width of 1/15; the first and the third are right.
    assert four_images.calibration.ece == pytest.approx((0.3 + 0.6 + 0.2 + 0.5) / 4)
    assert four_images.calibration.mce == pytest.approx(0.6)
    assert four_images.calibration.mean_confidence == pytest.approx(0.65)
    filled = [(bin_.low, bin_.images, bin_.accuracy) for bin_ in four_images.calibration.bins if bin_.images]
    assert filled == [(7 / 15, 1, 0), (8 / 15, 1, 0), (10 / 15, 1, 1), (11 / 15, 1, 1)]


def test_images_of_one_bin_share_their_accuracy():
    calibration = evaluation([[0.91, 0.09], [0.93, 0.07]], [0, 1], "ab").calibration
    assert calibration.ece == calibration.mce == pytest.approx(0.92 - 0.5)
    assert calibration.bins[13].confidence == pytest.approx(0.92)
    assert calibration.bins[13].accuracy == 0.5


def test_bins_have_their_upper_edge():
    # The highest probabilities are 3/15, which is an edge, 1/2 and 1.
    bins = evaluation(
        [[0.2] * 5, [0.5, 0.5, 0, 0, 0], [1.0, 0, 0, 0, 0]], [0, 0, 0], "abcde"
    ).calibration.bins
    assert [bin_.images for bin_ in bins] == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert (bins[2].high, bins[14].high) == (3 / 15, 1.0)


def test_wilson_interval_of_published_cases():
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 10**6), st.data())
def test_wilson_interval_holds_its_proportion(images, data):
    right = data.draw(st.integers(0, images))
    low, high = wilson_interval(right, images)
    assert 0 <= low <= right / images <= high <= 1
    assert low < high
    mirrored = wilson_interval(images - right, images)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [  # Newcombe, "Interval estimation for the difference" (1998), table II, method 10
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
    ],
)
def test_change_of_accuracy_in_published_cases(counts, interval):
    change, found = accuracy_change(*counts)
    assert change == pytest.approx(counts[0] / counts[1] - counts[2] / counts[3])
    assert found == pytest.approx(interval, abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 10**5), st.integers(1, 10**5), st.data())
def test_change_of_accuracy_turns_its_sign_with_its_sides(new_images, old_images, data):
    new = data.draw(st.integers(0, new_images)), new_images
    old = data.draw(st.integers(0, old_images)), old_images
    change, (low, high) = accuracy_change(*new, *old)
    back, (back_low, back_high) = accuracy_change(*old, *new)
    assert -1 <= low <= change <= high <= 1
    assert (back, back_low, back_high) == pytest.approx((-change, -high, -low))


def test_top5_counts_labels_among_the_five_highest():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(6, 1)
    assert evaluate(logits, torch.arange(6), list("abcdef")).top5_accuracy == pytest.approx(5 / 6)


def test_top5_of_equal_logits_takes_the_first_as_accuracy_does():
    found = evaluate(torch.zeros(7, 7), torch.arange(7), list("abcdefg"))
    assert found.accuracy == pytest.approx(1 / 7)
    assert found.top5_accuracy == pytest.approx(5 / 7)


@pytest.mark.parametrize(("classes", "known"), [(1, False), (5, False), (6, True)])
def test_top5_needs_six_classes(classes, known):
    found = evaluate(torch.eye(classes), torch.arange(classes), [str(c) for c in range(classes)])
    assert (found.top5_accuracy is not None) == known


def test_accuracy_with_augmented_answers():
    found = evaluation([[0.6, 0.4], [0.7, 0.3]], [0, 1], "ab", tta=logits_of([[0.6, 0.4], [0.4, 0.6]]))
    assert (found.accuracy, found.accuracy_tta) == (0.5, 1.0)
    assert evaluation([[0.6, 0.4]], [0], "ab").accuracy_tta is None


@pytest.mark.parametrize(("label", "accuracy"), [(0, 1.0), (1, 0.0)])
def test_one_image(label, accuracy):
    found = evaluation([[0.75, 0.25]], [label], "ab")
    assert found.accuracy == accuracy
    assert found.nll == pytest.approx(-math.log([0.75, 0.25][label]))
    assert found.macro.recall == accuracy  # the class without images does not count
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_class_without_images():
    absent, missed, unseen = evaluation([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]], [1, 1]).per_class
    assert (absent.images, absent.predicted, absent.precision, absent.recall, absent.f1) == (0, 2, 0, None, 0)
    assert (missed.images, missed.predicted, missed.precision, missed.recall, missed.f1) == (2, 0, None, 0, 0)
    assert (unseen.images, unseen.predicted) == (0, 0)
    assert (unseen.precision, unseen.recall, unseen.f1) == (None, None, None)


def test_one_class_is_always_right():
    found = evaluate(torch.tensor([[1.0], [-3.0]]), torch.tensor([0, 0]), ["only"])
    assert (found.accuracy, found.nll, found.brier, found.calibration.ece) == (1, 0, 0, 0)
    assert dict(found.rows())["most frequent confusion"] == "none"


@pytest.mark.parametrize("bad", [[math.nan] * 6, [math.inf] + [0.0] * 5, [-math.inf] * 6])
def test_logits_that_are_not_finite_leave_no_nan(bad):
    logits = torch.tensor([[3.0, 0, 0, 0, 0, 0], bad])
    found = evaluate(logits, torch.tensor([0, 1]), list("abcdef"), logits)
    figures = found.to_dict()
    json.dumps(figures, allow_nan=False)
    assert (found.not_finite, found.accuracy, found.nll, found.brier) == (1, 0.5, None, None)
    assert figures["calibration"] | {"bins": None} == {
        "ece": None,
        "mce": None,
        "mean_confidence": None,
        "bins": None,
    }
    assert sum(bin_.images for bin_ in found.calibration.bins) == 1
    assert found.rows()[0] == ("not finite", "1 of 2 images have no probabilities: NaN or infinite logits")


def test_nothing_finite_at_all():
    found = evaluate(torch.full((3, 6), math.nan), torch.tensor([0, 1, 5]), list("abcdef"))
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.not_finite == 3
    # As argmax and softmax see it, each image is of the first class; top-5 goes on from there.
    assert (found.accuracy, found.top5_accuracy) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_nan_is_the_highest_logit():
    logits = torch.tensor([[1, 2, 3, 4, 5, 6, math.nan]]).repeat(3, 1)
    found = evaluate(logits, torch.tensor([6, 2, 1]), list("abcdefg"))
    assert (found.accuracy, found.top5_accuracy) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_impossible_label_has_no_likelihood_but_a_brier_score():
    found = evaluation([[0.0, 1.0]], [0], "ab")
    assert (found.nll, found.brier, found.not_finite) == (None, 2.0, 0)
    assert dict(found.rows())["negative log-likelihood"] == "not finite"


def test_large_logits_do_not_overflow():
    found = evaluate(torch.tensor([[3e38, -3e38]]), torch.tensor([1]), ["a", "b"])
    assert found.nll == pytest.approx(6e38, rel=1e-6)
    assert found.brier == 2


def test_half_precision_is_computed_in_double():
    logits = torch.tensor([[1.5, -0.25, 0.5], [0.125, 2.0, -1.0]])  # exact in half precision
    labels = torch.tensor([2, 1])
    assert evaluate(logits.half(), labels, list("abc"), logits.half()) == evaluate(
        logits.double(), labels, list("abc"), logits.double()
    )


@pytest.mark.parametrize(
    ("logits", "labels", "tta", "problem"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), None, "no images"),
        (
            torch.zeros(2, 4),
            torch.tensor([0, 1]),
            None,
            r"Logits have shape \(2, 4\).* 2 labels .* 3 classes",
        ),
        (torch.zeros(2, 3), torch.tensor([0]), None, r"Logits have shape \(2, 3\)"),
        (torch.zeros(1, 3), torch.tensor([0]), torch.zeros(2, 3), r"augmentation have shape \(2, 3\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), None, r"Labels lie in \[0, 3\].* \[0, 2\]"),
        (torch.zeros(2, 3), torch.tensor([-1, 2]), None, r"Labels lie in \[-1, 2\]"),
    ],
)
def test_what_does_not_belong_together_is_refused(logits, labels, tta, problem):
    with pytest.raises(DataError, match=problem):
        evaluate(logits, labels, list("abc"), tta)


@settings(deadline=None)
@given(answers())
def test_sums_of_the_confusion_matrix(case):
    logits, labels = case
    found = evaluate(logits, labels, names(logits))
    assert sum(map(sum, found.confusion)) == found.images == len(labels)
    assert sum(row[index] for index, row in enumerate(found.confusion)) == round(found.accuracy * len(labels))
    for index, figures in enumerate(found.per_class):
        assert figures.images == sum(found.confusion[index])
        assert figures.predicted == sum(row[index] for row in found.confusion)


@settings(deadline=None)
@given(answers())
def test_bounds(case):
    logits, labels = case
    found = evaluate(logits, labels, names(logits))
    calibration = found.calibration
    assert sum(bin_.images for bin_ in calibration.bins) == len(labels)
    # Averaging within bins can only cancel: the gap of all images is no more than ECE, which is at most MCE.
    assert abs(found.accuracy - calibration.mean_confidence) <= calibration.ece + 1e-12
    assert calibration.ece <= calibration.mce + 1e-12
    assert calibration.mce <= 1
    assert 0 <= found.brier <= 2
    assert found.nll >= 0
    low, high = found.accuracy_ci95
    assert 0 <= low <= found.accuracy <= high <= 1
    if found.top5_accuracy is not None:
        assert found.accuracy <= found.top5_accuracy <= 1
    for bin_ in calibration.bins:
        if bin_.images:
            assert bin_.low < bin_.confidence + 1e-12
            assert bin_.confidence <= bin_.high + 1e-12


@settings(deadline=None)
@given(answers(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(case, random):
    logits, labels = case
    order = list(range(len(labels)))
    random.shuffle(order)
    first = evaluate(logits, labels, names(logits))
    second = evaluate(logits[order], labels[order], names(logits))
    assert first.confusion == second.confusion
    assert first.per_class == second.per_class
    for figure in ("accuracy", "top5_accuracy", "nll", "brier"):
        assert getattr(first, figure) == pytest.approx(getattr(second, figure))
    assert first.calibration.ece == pytest.approx(second.calibration.ece)
    assert first.calibration.mce == pytest.approx(second.calibration.mce)


@settings(deadline=None)
@given(answers(), st.randoms(use_true_random=False))
def test_the_order_of_the_classes_only_moves_their_rows(case, random):
    logits, labels = case
    order = list(range(logits.shape[1]))
    random.shuffle(order)
    first = evaluate(logits, labels, names(logits))
    moved = torch.tensor([order.index(label) for label in labels.tolist()])
    second = evaluate(logits[:, order], moved, [names(logits)[index] for index in order])
    assert tuple(first.per_class[index] for index in order) == second.per_class
    for figure in ("accuracy", "top5_accuracy", "nll", "brier"):
        assert getattr(first, figure) == pytest.approx(getattr(second, figure))


def test_dictionary_survives_json(four_images):
    figures = four_images.to_dict()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert list(figures) == [
        "images",
        "classes",
        "accuracy",
        "accuracy_ci95",
        "accuracy_tta",
        "top5_accuracy",
        "nll",
        "brier",
        "calibration",
        "confusion",
        "per_class",
        "macro",
    ]
    assert list(figures["calibration"]) == ["ece", "mce", "mean_confidence", "bins"]
    assert figures["calibration"]["bins"][0] == {
        "low": 0.0,
        "high": 1 / 15,
        "images": 0,
        "confidence": None,
        "accuracy": None,
    }
    assert list(figures["per_class"][0]) == ["name", "images", "predicted", "precision", "recall", "f1"]
    assert list(figures["macro"]) == ["precision", "recall", "f1"]


def test_table(four_images):
    assert four_images.rows() == [
        ("accuracy", "50.00% (95% CI 15.00% to 85.00%)"),
        ("negative log-likelihood", "0.6750 nats"),
        ("Brier score", "0.4200"),
        ("calibration error (ECE)", "40.00%"),
        ("worst class", "c: 0.0% of 1 recognised"),
        ("best class", "b: 100.0% of 1 recognised"),
        ("most frequent confusion", "a taken for b: 1"),
    ]


def test_table_tells_of_what_was_computed_beside():
    logits = torch.eye(6)
    rows = dict(evaluate(logits, torch.arange(6), list("abcdef"), logits.flip(0)).rows())
    assert (rows["accuracy with TTA"], rows["top-5 accuracy"]) == ("0.00%", "100.00%")


def test_hostile_class_names_are_harmless():
    classes = ["<script>alert(1)</script>", "\x1b[31m\n\u202eb&"]
    found = evaluate(torch.eye(2), torch.tensor([1, 1]), classes)
    page = found._repr_html_()
    assert "<script>" not in page
    assert "taken for &lt;script&gt;alert(1)&lt;/script&gt;" in page
    for text in [page, *(value for _, value in found.rows())]:
        assert text.isprintable()
    assert found.to_dict()["classes"] == classes  # data are left as they are
