"""Rankings of mistakes and likely label errors: small cases by hand, and what must hold for all of them."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velodrome.errors import ConfigError, RunError
from velodrome.evaluation.mistakes import (
    LABEL_ERROR_COLUMNS,
    RANKINGS,
    best_of_each_class,
    choose_for_gallery,
    confused_pairs,
    label_errors_csv,
    likely_label_errors,
    rank,
)
from velodrome.run.answers import Answers

CLASSES = ("cat", "dog", "frog")


def answers_of(
    labels: list[int],
    predictions: list[int],
    losses: list[float],
    probabilities: list[list[float]] | None = None,
    classes: tuple[str, ...] = CLASSES,
) -> Answers:
    return Answers(
        classes,
        tuple(f"test/{index}.png" for index in range(len(labels))),
        np.array(labels, np.int64),
        np.array(predictions, np.int64),
        np.array(losses, np.float64),
        None if probabilities is None else np.array(probabilities, np.float32),
    )


def answers_from(probabilities: np.ndarray, labels: np.ndarray) -> Answers:
    own = probabilities[np.arange(len(labels)), labels]
    classes = tuple(f"class {index}" for index in range(probabilities.shape[1]))
    losses = -np.log(np.maximum(own, 1e-30))
    return answers_of(labels, probabilities.argmax(1), losses, probabilities, classes)


def random_answers(images: int, classes: int, seed: int = 0, spread: float = 0.3) -> Answers:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, spread), images)
    # As they are read back: rounded to half precision, so that some are equal.
    return answers_from(probabilities.astype(np.float16).astype(np.float32), rng.integers(0, classes, images))


@pytest.fixture
def answers() -> Answers:
    """Image:        0     1      2    3     4       5     6      7
    label->answer: cat  cat->dog dog cat->dog frog->cat frog dog->frog cat->frog
    """
    return answers_of(
        [0, 0, 1, 0, 2, 2, 1, 0],
        [0, 1, 1, 1, 0, 2, 2, 2],
        [0.1, 2.0, 0.2, 3.0, 5.0, 0.3, 1.0, 4.0],
        [
            [0.90, 0.05, 0.05],
            [0.14, 0.80, 0.06],
            [0.10, 0.82, 0.08],
            [0.05, 0.60, 0.35],
            [0.70, 0.29, 0.01],
            [0.10, 0.15, 0.75],
            [0.05, 0.37, 0.58],
            [0.02, 0.03, 0.95],
        ],
    )


several = st.builds(random_answers, st.integers(1, 80), st.integers(2, 6), st.integers(0, 2**31))


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("loss", [4, 7, 3, 1, 6]),
        ("confidence", [7, 1, 4, 3, 6]),
        ("class", [7, 3, 1, 6, 4]),
        ("pair", [3, 1, 7, 6, 4]),
    ],
)
def test_rankings(answers, by, order):
    assert rank(answers, by).tolist() == order


def test_ranked_by_loss_unless_told_otherwise(answers):
    assert rank(answers).tolist() == rank(answers, "loss").tolist()


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        ({"label": "cat"}, [7, 3, 1]),
        ({"prediction": "frog"}, [7, 6]),
        ({"label": "cat", "prediction": "dog"}, [3, 1]),
        ({"label": "frog", "prediction": "dog"}, []),
        ({"label": "cat", "prediction": "cat"}, []),
    ],
)
def test_filters_by_class(answers, wanted, order):
    assert rank(answers, **wanted).tolist() == order


def test_equal_losses_stay_in_the_order_of_the_test_set():
    equal = answers_of([0, 1, 0, 1], [1, 0, 1, 0], [2.0] * 4, [[0.5, 0.5, 0]] * 4)
    assert rank(equal, "loss").tolist() == rank(equal, "confidence").tolist() == [0, 1, 2, 3]
    assert rank(equal, "class").tolist() == rank(equal, "pair").tolist() == [0, 2, 1, 3]


def test_equal_confidence_is_told_apart_by_loss():
    # Half precision rounds all of them to 1.
    sure = answers_of([0, 0, 0], [1, 1, 1], [9.0, 12.0, 10.0], [[0, 1, 0]] * 3)
    assert rank(sure, "confidence").tolist() == [1, 2, 0]


def test_a_loss_that_is_nan_is_the_worst():
    odd = answers_of([0, 0, 0, 0], [1, 1, 1, 0], [3.0, np.nan, np.inf, np.nan])
    assert rank(odd).tolist() == [1, 2, 0]


def test_nan_is_no_confidence():
    odd = answers_of([0, 0], [1, 1], [1.0, 1.0], [[np.nan] * 3, [0.4, 0.6, 0.0]])
    assert rank(odd, "confidence").tolist() == [1, 0]


def test_unknown_names_are_refused_with_the_nearest(answers):
    with pytest.raises(ConfigError, match=r"ranked by 'los'.*Did you mean loss"):
        rank(answers, "los")
    with pytest.raises(ConfigError, match=r"'dgo' is not a class.*Did you mean dog"):
        rank(answers, label="dgo")
    with pytest.raises(ConfigError, match=r"'bus' is not a class.*Choose from: cat, dog, frog"):
        rank(answers, prediction="bus")


def test_confidence_needs_probabilities():
    bare = answers_of([0, 1], [1, 1], [2.0, 0.1])
    with pytest.raises(RunError, match=r"no probabilities\.npy"):
        rank(bare, "confidence")
    for by in set(RANKINGS) - {"confidence"}:
        assert rank(bare, by).tolist() == [0]
    assert choose_for_gallery(bare).tolist() == [0]


@settings(deadline=None)
@given(several, st.sampled_from(RANKINGS))
def test_every_ranking_holds_every_mistake_once(found, by):
    assert sorted(rank(found, by).tolist()) == found.wrong.tolist()


@settings(deadline=None)
@given(several)
def test_orders_are_what_they_say(found):
    assert np.all(np.diff(found.losses[rank(found)]) <= 0)
    sure = rank(found, "confidence")
    assert np.all(np.diff(found.probabilities[sure, found.predictions[sure]]) <= 0)
    assert np.all(np.diff(found.labels[rank(found, "class")]) >= 0)
    counts = {(label, prediction): count for label, prediction, count in confused_pairs(found)}
    ranked = rank(found, "pair")
    sizes = [
        counts[found.classes[label], found.classes[prediction]]
        for label, prediction in zip(found.labels[ranked], found.predictions[ranked], strict=True)
    ]
    assert np.all(np.diff(sizes) <= 0)


def test_pairs_by_frequency_then_by_class(answers):
    assert confused_pairs(answers) == [
        ("cat", "dog", 2),
        ("cat", "frog", 1),
        ("dog", "frog", 1),
        ("frog", "cat", 1),
    ]


@settings(deadline=None)
@given(several)
def test_pairs_hold_every_mistake(found):
    pairs = confused_pairs(found)
    assert sum(pair.images for pair in pairs) == len(found.wrong)
    assert all(pair.label != pair.prediction for pair in pairs)


def test_best_of_each_class():
    found = answers_of(
        [1, 0, 0, 0, 1, 0, 2], [1, 0, 1, 0, 1, 0, 0], [0.5, 0.3, 4.0, 0.1, 0.4, 0.3, 2.0], classes=CLASSES
    )
    assert best_of_each_class(found, 2).tolist() == [3, 1, 4, 0]  # frog has no right answer
    assert best_of_each_class(found, 9).tolist() == [3, 1, 5, 4, 0]
    assert best_of_each_class(found, 0).tolist() == []


def test_a_run_without_mistakes():
    right = answers_of([0, 1], [0, 1], [0.1, 0.2], [[1, 0, 0], [0, 1, 0]])
    for by in RANKINGS:
        assert rank(right, by).tolist() == []
    assert confused_pairs(right) == []
    assert choose_for_gallery(right).tolist() == []
    assert likely_label_errors(right) == []


@settings(deadline=None)
@given(several, st.integers(0, 100))
def test_gallery_holds_as_many_as_fit_by_falling_loss(found, most):
    chosen = choose_for_gallery(found, most)
    assert len(chosen) == min(most, len(found.wrong))
    everything = rank(found).tolist()
    places = [everything.index(index) for index in chosen.tolist()]
    assert places == sorted(set(places))


@settings(deadline=None)
@given(several)
def test_gallery_shows_the_worst_of_every_pair(found):
    pairs = confused_pairs(found)
    chosen = set(choose_for_gallery(found, len(pairs)).tolist())
    worst = {rank(found, label=label, prediction=prediction)[0].item() for label, prediction, _ in pairs}
    assert chosen == worst


def test_gallery_shares_places_by_how_frequent_a_pair_is():
    sizes = {(0, 1): 100, (1, 2): 50, (2, 0): 2}
    labels = [label for (label, _), size in sizes.items() for _ in range(size)]
    predictions = [prediction for (_, prediction), size in sizes.items() for _ in range(size)]
    # The smallest pair has the smallest losses, and would not be seen by loss alone.
    found = answers_of(labels, predictions, list(np.linspace(9, 1, len(labels))))
    chosen = choose_for_gallery(found, 76)
    shown = np.bincount(found.labels[chosen], minlength=3)
    assert shown.tolist() == [50, 25, 1]
    assert chosen[:50].tolist() == list(range(50))


def test_gallery_with_more_pairs_than_places_shows_the_most_frequent():
    found = answers_of([0, 0, 1, 2], [1, 1, 2, 0], [1.0, 2.0, 9.0, 8.0])
    assert choose_for_gallery(found, 1).tolist() == [1]
    assert choose_for_gallery(found, 2).tolist() == [2, 1]


@pytest.fixture
def mislabelled() -> Answers:
    """Images 3 and 7 look like the other class; image 4 is taken for it too, but not confidently."""
    probabilities = [
        [0.90, 0.10],
        [0.90, 0.10],
        [0.80, 0.20],
        [0.05, 0.95],
        [0.45, 0.55],
        [0.10, 0.90],
        [0.20, 0.80],
        [0.75, 0.25],
    ]
    return answers_from(np.array(probabilities, np.float32), np.array([0, 0, 0, 0, 0, 1, 1, 1]))


def test_label_errors_are_those_that_reach_the_mean_of_another_class(mislabelled):
    # Thresholds: class 0 (0.9 + 0.9 + 0.8 + 0.05 + 0.45) / 5 = 0.62; class 1 (0.9 + 0.8 + 0.25) / 3 = 0.65.
    errors = likely_label_errors(mislabelled)
    assert [error.index for error in errors] == [3, 7]
    first = errors[0]
    assert (first.path, first.given, first.suggested) == ("test/3.png", "class 0", "class 1")
    assert (first.given_probability, first.suggested_probability) == pytest.approx((0.05, 0.95))
    assert [error.margin for error in errors] == pytest.approx([-0.9, -0.5])


def test_the_most_probable_of_several_confident_classes_is_suggested():
    probabilities = [[0.3, 0.1, 0.6], [0.3, 0.4, 0.3], [0.1, 0.7, 0.2], [0.0, 0.45, 0.55], [0.5, 0.2, 0.3]]
    found = answers_from(np.array(probabilities, np.float32), np.array([0, 0, 1, 2, 2]))
    # Thresholds 0.3, 0.7 and 0.425. The first image reaches those of classes 0 and 2.
    assert [(error.index, error.suggested) for error in likely_label_errors(found)] == [
        (0, "class 2"),
        (4, "class 0"),
    ]


def test_an_image_that_is_recognised_has_its_label():
    # Thresholds 0.725 and 0.35: the second image reaches that of class 1 only, but is taken for class 0.
    probabilities = [[0.9, 0.1], [0.55, 0.45], [0.6, 0.4], [0.7, 0.3]]
    found = answers_from(np.array(probabilities, np.float32), np.array([0, 0, 1, 1]))
    assert likely_label_errors(found) == []


def test_no_class_without_images_is_suggested():
    probabilities = [[0.9, 0.1, 0.0], [0.05, 0.05, 0.9], [0.1, 0.9, 0.0]]
    found = answers_from(np.array(probabilities, np.float32), np.array([0, 0, 1]))
    assert likely_label_errors(found) == []


def test_label_errors_need_probabilities():
    assert likely_label_errors(answers_of([0, 1], [1, 0], [9.0, 9.0])) == []


def test_answers_that_are_not_finite_are_left_out(mislabelled):
    odd = np.vstack([[[np.nan, np.nan]], mislabelled.probabilities]).astype(np.float32)
    found = answers_of(
        [1, *mislabelled.labels.tolist()],
        [0, *mislabelled.predictions.tolist()],
        [np.nan] * 9,
        odd,
        ("a", "b"),
    )
    assert [error.index for error in likely_label_errors(found)] == [4, 8]
    nothing = answers_of([1, 0], [0, 0], [np.nan] * 2, [[np.nan] * 2] * 2, ("a", "b"))
    assert likely_label_errors(nothing) == []


def test_equal_margins_are_told_apart_by_loss():
    probabilities = [[0, 1]] * 3 + [[1, 0]] * 7 + [[0, 1]] * 5
    labels = [0] * 10 + [1] * 5
    losses = [9.0, 12.0, 10.0] + [0.0] * 12
    predictions = np.array(probabilities).argmax(1).tolist()
    found = answers_of(labels, predictions, losses, probabilities, ("a", "b"))
    assert [error.index for error in likely_label_errors(found)] == [1, 2, 0]


@settings(deadline=None)
@given(several)
def test_label_errors_are_mistakes_in_order(found):
    errors = likely_label_errors(found)
    assert {error.index for error in errors} <= set(found.wrong.tolist())
    assert len({error.index for error in errors}) == len(errors)
    margins = [error.margin for error in errors]
    assert margins == sorted(margins)
    for error in errors:
        assert error.given == found.classes[found.labels[error.index]] != error.suggested
        assert -1 <= error.margin <= 0
        assert error.margin <= error.given_probability - error.suggested_probability + 1e-12


@settings(deadline=None)
@given(several, st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(found, random):
    order = list(range(len(found)))
    random.shuffle(order)
    moved = answers_from(found.probabilities[order], found.labels[order])
    assert {error.index for error in likely_label_errors(found)} == {
        order[error.index] for error in likely_label_errors(moved)
    }
    assert confused_pairs(found) == confused_pairs(moved)


def test_csv_of_label_errors(mislabelled):
    text = label_errors_csv(likely_label_errors(mislabelled))
    assert text.splitlines() == [
        "index,path,label,given_label,suggested_label,given_probability,suggested_probability,margin",
        "3,test/3.png,class 0,class 0,class 1,0.05,0.95,-0.9",
        "7,test/7.png,class 1,class 1,class 0,0.25,0.75,-0.5",
    ]


def test_csv_without_label_errors_is_a_header():
    assert label_errors_csv([]) == ",".join(LABEL_ERROR_COLUMNS) + "\n"


def test_hostile_names_survive_the_csv():
    names = ('a,"b"\nc', "<script>\u202e")
    probabilities = np.array([[0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], np.float32)
    found = answers_of([0, 0, 1], [0, 1, 1], [0.1, 9.0, 0.1], probabilities.tolist(), names)
    rows = list(csv.DictReader(io.StringIO(label_errors_csv(likely_label_errors(found)), newline="")))
    assert [(row["label"], row["given_label"], row["suggested_label"]) for row in rows] == [
        (names[0], names[0], names[1])
    ]


def test_many_images_and_classes_take_well_under_a_second():
    found = random_answers(10_000, 100)
    started = time.process_time()
    for by in RANKINGS:
        rank(found, by)
    confused_pairs(found)
    choose_for_gallery(found)
    best_of_each_class(found, 3)
    label_errors_csv(likely_label_errors(found))
    assert time.process_time() - started < 1


def test_torch_is_not_imported():
    code = "import sys, velodrome.evaluation.mistakes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
