"""The mistakes of a run in a telling order, and labels that are likely wrong. Never imports torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from velodrome.errors import ConfigError, RunError, did_you_mean
from velodrome.run.answers import Answers

RANKINGS = ("loss", "confidence", "class", "pair")
LABEL_ERROR_COLUMNS = (
    "index",
    "path",
    "label",
    "given_label",
    "suggested_label",
    "given_probability",
    "suggested_probability",
    "margin",
)

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]


class ConfusedPair(NamedTuple):
    """Images of class `label` that were taken for `prediction`; `images` is how many they are."""

    label: str
    prediction: str
    images: int


@dataclass(frozen=True)
class LabelError:
    """An image whose label is likely wrong.

    Attributes:
        index: of the image in the test set.
        path: of the image, as the data set names it.
        given: the class that the data set gives.
        suggested: the class that it more likely is.
        given_probability: in [0, 1], the probability of the given class.
        suggested_probability: in [0, 1], the probability of the suggested class.
        margin: given_probability minus the highest probability of another class, in [-1, 0]; -1 is the most
            suspicious.
    """

    index: int
    path: str
    given: str
    suggested: str
    given_probability: float
    suggested_probability: float
    margin: float


def rank(
    answers: Answers, by: str = "loss", *, label: str | None = None, prediction: str | None = None
) -> Indices:
    """The mistakes of a run, the most telling first. Equals are in the order of the test set.

    Args:
        answers: of the run.
        by: "loss": highest loss first; "confidence": highest probability of the wrong prediction first, then
            by loss; "class": by label, in the order of the classes, then by loss; "pair": most frequently
            confused pair of label and prediction first, then by loss.
        label: only images of this class.
        prediction: only images that were taken for this class.

    Returns:
        (M,) int64, indices of images.

    Raises:
        ConfigError: `by` is not one of these, or there is no such class.
        RunError: ranked by confidence, but the run has no probabilities.
    """
    if by not in RANKINGS:
        raise ConfigError(f"Mistakes cannot be ranked by {by!r}.", did_you_mean(by, RANKINGS))
    wrong = answers.wrong
    if label is not None:
        wrong = wrong[answers.labels[wrong] == _number_of(label, answers)]
    if prediction is not None:
        wrong = wrong[answers.predictions[wrong] == _number_of(prediction, answers)]
    losses = -_losses(answers)[wrong]
    if by == "loss":
        order = np.lexsort((losses,))
    elif by == "confidence":
        order = np.lexsort((losses, -_confidences(answers)[wrong]))
    elif by == "class":
        order = np.lexsort((losses, answers.labels[wrong]))
    else:
        pairs = _pair_numbers(answers)[wrong]
        counts = np.bincount(pairs, minlength=len(answers.classes) ** 2)
        order = np.lexsort((losses, pairs, -counts[pairs]))
    return wrong[order]


def confused_pairs(answers: Answers) -> list[ConfusedPair]:
    """Every pair of a label and a wrong prediction that occurs, most frequent first, then by class order."""
    pairs, counts = np.unique(_pair_numbers(answers)[answers.wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")  # `pairs` are in order
    labels, predictions = np.divmod(pairs[order], len(answers.classes))
    return [
        ConfusedPair(answers.classes[label], answers.classes[prediction], count)
        for label, prediction, count in zip(
            labels.tolist(), predictions.tolist(), counts[order].tolist(), strict=True
        )
    ]


def best_of_each_class(answers: Answers, n: int) -> Indices:
    """The n right answers of each class with the lowest loss, or as many as there are.

    Returns:
        (M,) int64, indices of images: by class, then by rising loss.
    """
    right = np.flatnonzero(answers.labels == answers.predictions)
    return _first_of_each_class(answers, right, _losses(answers), n)


def choose_for_gallery(answers: Answers, most: int = 1500) -> Indices:
    """The mistakes to show: all of them where they are few enough, else a fair choice.

    Each confused pair shows its worst, and beyond that the same share of its mistakes as the others. Where
    there are more pairs than places, the most frequent ones are shown.

    Args:
        answers: of the run.
        most: how many mistakes to show, at least 0.

    Returns:
        (M,) int64, M <= most, indices of images by falling loss.
    """
    worst_first = rank(answers)
    pairs = _pair_numbers(answers)[worst_first]
    counts = np.bincount(pairs, minlength=len(answers.classes) ** 2)
    share = _rank_within(pairs) / counts[pairs]  # of its pair that stands before a mistake
    order = np.lexsort((-counts[pairs], share))
    return worst_first[np.sort(order[:most])]


def likely_label_errors(answers: Answers) -> list[LabelError]:
    """Images whose label is likely wrong, the most suspicious first.

    Confident learning: an image counts for a class where its probability reaches what images with that label
    have on average; where it counts for several, for the most probable one of them. Images that count for
    another class than their label's, and that are not recognised as their label's, are listed; this is
    the off-diagonal of the confident joint of Northcutt, Jiang and Chuang, "Confident learning: estimating
    uncertainty in dataset labels", JAIR 70 (2021), arXiv:1911.00068, ranked by normalised margin.

    These are labels to look at, not labels to overturn: the surer a network is when it errs, the more of them
    are right. A network that was trained on the images has learned their wrong labels too, so look among test
    or validation images. Images without finite probabilities are left out.

    Args:
        answers: of the run; nothing is found where they have no probabilities.
    """
    if answers.probabilities is None:
        return []
    kept = np.flatnonzero(np.isfinite(answers.probabilities).all(1))
    probabilities, labels = answers.probabilities[kept].astype(np.float64), answers.labels[kept]
    rows = np.arange(len(kept))
    confident = probabilities >= _thresholds(probabilities, labels)
    suggested = np.where(confident, probabilities, -1.0).argmax(1)
    own = probabilities[rows, labels]
    probabilities_of_others = probabilities.copy()
    probabilities_of_others[rows, labels] = 0.0
    margins = own - probabilities_of_others.max(1)
    suspect = confident.any(1) & (suggested != labels) & (answers.predictions[kept] != labels)
    rows = rows[suspect]
    # Half precision makes many margins equal; losses tell them apart.
    rows = rows[np.lexsort((-_losses(answers)[kept[rows]], margins[rows]))]
    return [
        LabelError(
            index=int(kept[row]),
            path=answers.paths[kept[row]],
            given=answers.classes[labels[row]],
            suggested=answers.classes[suggested[row]],
            given_probability=float(own[row]),
            suggested_probability=float(probabilities[row, suggested[row]]),
            margin=float(margins[row]),
        )
        for row in rows
    ]


def label_errors_csv(errors: Sequence[LabelError]) -> str:
    """The text of label_errors.csv; its column `label` is for a user to correct, and starts as given."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LABEL_ERROR_COLUMNS)
    for error in errors:
        index, path, given, suggested, *figures = astuple(error)
        writer.writerow([index, path, given, given, suggested, *(f"{figure:.6g}" for figure in figures)])
    return text.getvalue()


def _thresholds(probabilities: Floats, labels: Indices) -> Floats:
    """Mean probability of each class over the images with that label; out of reach where there are none."""
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    images = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, own, minlength=classes)
    return np.where(images > 0, sums / np.maximum(images, 1), np.inf)


def _losses(answers: Answers) -> Floats:
    """Losses in which NaN, which no image should have, is as bad as it gets."""
    return np.where(np.isnan(answers.losses), np.inf, answers.losses)


def _confidences(answers: Answers) -> Floats:
    """Probability of the prediction of each image. Sorting puts NaN last."""
    if answers.probabilities is None:
        raise RunError(
            "Mistakes cannot be ranked by confidence: the run has no probabilities.npy.",
            "Rank them by loss, or make the file again with velodrome evaluate.",
        )
    return answers.probabilities[np.arange(len(answers)), answers.predictions].astype(np.float64)


def _pair_numbers(answers: Answers) -> Indices:
    """A number for the pair of label and prediction of each image, (N,), in the order of the classes."""
    return answers.labels * len(answers.classes) + answers.predictions


def _rank_within(groups: Indices) -> Indices:
    """How many earlier elements are of the same group, for each element: [7, 4, 7, 7] -> [0, 0, 1, 2]."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return ranks


def _first_of_each_class(answers: Answers, indices: Indices, key: Floats, n: int) -> Indices:
    """The n of the images at `indices` with the lowest key, for each class in turn."""
    ordered = indices[np.lexsort((key[indices], answers.labels[indices]))]
    return ordered[_rank_within(answers.labels[ordered]) < n]


def _number_of(name: str, answers: Answers) -> int:
    if name not in answers.classes:
        raise ConfigError(f"{name!r} is not a class of this run.", did_you_mean(name, answers.classes))
    return answers.classes.index(name)
