"""Which classes are taken for which, and how each class fared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from velodrome.run.answers import Answers

# A confusion matrix of more classes than this cannot be read; the most frequent confusions are listed anyway.
MOST_MATRIX_CLASSES = 40
MOST_CONFUSIONS = 12


@dataclass(frozen=True)
class Cell:
    """Images of class `label` that were taken for `prediction`.

    Attributes:
        label: the true class.
        prediction: the class they were taken for.
        pair: the two as numbers, in the order of the classes.
        count: how many they are.
        strength: in [0, 1], how strongly to colour them.
    """

    label: str
    prediction: str
    pair: tuple[int, int]
    count: int
    strength: float

    @property
    def is_right(self) -> bool:
        """Whether these images were recognised."""
        return self.label == self.prediction


@dataclass(frozen=True)
class ClassScore:
    """How one class fared.

    Attributes:
        name: of the class.
        images: that have this label.
        right: of these, how many were recognised.
        recall: their share, in [0, 1]: the accuracy of the class; None without images.
        precision: share of the images taken for this class that are of it; None where there are none.
        f1: harmonic mean of the two; None where both are.
        mistaken: its most frequent mistake.
    """

    name: str
    images: int
    right: int
    recall: float | None
    precision: float | None
    f1: float | None
    mistaken: Cell | None


@dataclass(frozen=True)
class Macro:
    """Means over the classes that have images; a class that was never predicted has a precision of 0."""

    recall: float
    precision: float
    f1: float


@dataclass(frozen=True)
class Predictions:
    """All test images; `matrix` is empty where there are too many classes to show it."""

    images: int
    right: int
    scores: tuple[ClassScore, ...]
    macro: Macro
    matrix: tuple[tuple[Cell, ...], ...]
    confusions: tuple[Cell, ...]


def count_answers(answers: Answers) -> Predictions:
    """Scores per class, the confusion matrix and the most frequent confusions."""
    classes, size = answers.classes, len(answers.classes)
    pairs = answers.labels * size + answers.predictions
    counts = np.bincount(pairs, minlength=size**2).reshape(size, size)
    confusions = _confusions(counts, classes)
    worst = {cell.label: cell for cell in reversed(confusions)}
    scores = tuple(_score(index, counts, name, worst.get(name)) for index, name in enumerate(classes))
    return Predictions(
        images=len(answers),
        right=int(counts.trace()),
        scores=scores,
        macro=_macro(scores),
        matrix=_matrix(counts, classes) if size <= MOST_MATRIX_CLASSES else (),
        confusions=tuple(confusions[:MOST_CONFUSIONS]),
    )


def _cell(counts: NDArray[np.int64], classes: Sequence[str], row: int, column: int, whole: int) -> Cell:
    count = int(counts[row, column])
    return Cell(classes[row], classes[column], (row, column), count, round(count / max(1, whole), 3))


def _confusions(counts: NDArray[np.int64], classes: Sequence[str]) -> list[Cell]:
    """Every pair of a label and a wrong prediction that occurs, the most frequent first."""
    mistakes = counts - np.diag(counts.diagonal())
    most = int(mistakes.max())
    found = [_cell(counts, classes, row, column, most) for row, column in np.argwhere(mistakes).tolist()]
    return sorted(found, key=lambda cell: (-cell.count, cell.label, cell.prediction))


def _matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> tuple[tuple[Cell, ...], ...]:
    """Right answers are coloured by their share of the class, mistakes against the most frequent one."""
    most = int((counts - np.diag(counts.diagonal())).max())
    numbers = range(len(classes))
    return tuple(
        tuple(
            _cell(counts, classes, row, column, int(counts[row].sum()) if row == column else most)
            for column in numbers
        )
        for row in numbers
    )


def _score(index: int, counts: NDArray[np.int64], name: str, mistaken: Cell | None) -> ClassScore:
    right, images, predicted = (
        int(found) for found in (counts[index, index], counts[index].sum(), counts[:, index].sum())
    )
    return ClassScore(
        name=name,
        images=images,
        right=right,
        recall=right / images if images else None,
        precision=right / predicted if predicted else None,
        f1=2 * right / (images + predicted) if images + predicted else None,
        mistaken=mistaken,
    )


def _macro(scores: Sequence[ClassScore]) -> Macro:
    present = [score for score in scores if score.images]
    means = [
        sum(getattr(score, figure) or 0.0 for score in present) / len(present)
        for figure in ("recall", "precision", "f1")
    ]
    return Macro(*means)
