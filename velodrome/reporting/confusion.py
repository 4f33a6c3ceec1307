"""What predictions.csv says about each class and about which classes are taken for which."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from velodrome.errors import RunError
from velodrome.run.folder import RunFolder

# A confusion matrix of more classes than this cannot be read; the most frequent confusions are listed anyway.
MOST_MATRIX_CLASSES = 40
MOST_CONFUSIONS = 12

Pair = tuple[str, str]  # label, prediction


@dataclass(frozen=True)
class Cell:
    """Images of class `label` that were taken for `prediction`.

    Attributes:
        label: the true class.
        prediction: the class they were taken for.
        count: how many they are.
        strength: in [0, 1], how strongly to colour them.
    """

    label: str
    prediction: str
    count: int
    strength: float

    @property
    def is_right(self) -> bool:
        """Whether these images were recognised."""
        return self.label == self.prediction


@dataclass(frozen=True)
class ClassScore:
    """How the images of one class fared; `mistaken` is its most frequent mistake."""

    name: str
    images: int
    right: int
    mistaken: Cell | None

    @property
    def share(self) -> float | None:
        """Share of the images that were recognised, in [0, 1]; None without images."""
        return self.right / self.images if self.images else None


@dataclass(frozen=True)
class Predictions:
    """All test images; `matrix` is empty where there are too many classes to show it."""

    images: int
    right: int
    scores: tuple[ClassScore, ...]
    matrix: tuple[tuple[Cell, ...], ...]
    confusions: tuple[Cell, ...]


def read_predictions(folder: RunFolder, classes: object) -> Predictions | None:
    """The predictions of a run, None where it has none yet.

    Args:
        folder: of the run.
        classes: list of the class names in the order to show them; classes that it lacks follow by name.

    Raises:
        RunError: predictions.csv is damaged.
    """
    pairs = _read_pairs(folder)
    if not pairs:
        return None
    listed = [str(name) for name in classes] if isinstance(classes, list) else []
    others = sorted({name for pair in pairs for name in pair} - set(listed))
    return count_predictions(pairs, list(dict.fromkeys([*listed, *others])))


def count_predictions(pairs: Sequence[Pair], classes: Sequence[str]) -> Predictions:
    """Scores per class, the confusion matrix and the most frequent confusions."""
    counts = Counter(pairs)
    images = Counter(label for label, _ in pairs)
    mistakes = {pair: count for pair, count in counts.items() if pair[0] != pair[1]}
    most = max(mistakes.values(), default=1)

    def cell(label: str, prediction: str) -> Cell:
        count = counts[label, prediction]
        # Right answers are coloured by their share of the class, mistakes against the most frequent one.
        whole = most if label != prediction else images[label] or 1
        return Cell(label, prediction, count, round(count / whole, 3))

    confusions = [cell(*pair) for pair in mistakes]
    confusions.sort(key=lambda found: (-found.count, found.label, found.prediction))
    worst = {found.label: found for found in reversed(confusions)}
    shown = classes if len(classes) <= MOST_MATRIX_CLASSES else ()
    return Predictions(
        images=len(pairs),
        right=sum(counts[name, name] for name in classes),
        scores=tuple(ClassScore(name, images[name], counts[name, name], worst.get(name)) for name in classes),
        matrix=tuple(tuple(cell(label, prediction) for prediction in shown) for label in shown),
        confusions=tuple(confusions[:MOST_CONFUSIONS]),
    )


def _read_pairs(folder: RunFolder) -> list[Pair]:
    path = folder.predictions
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            pairs = [(row["label"], row["prediction"]) for row in csv.DictReader(file)]
        if any(name is None for pair in pairs for name in pair):
            raise ValueError("a row has too few columns")
    except (OSError, ValueError, KeyError, csv.Error) as error:
        problem = f"it has no column {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(
            f"{path} is damaged: {problem}.", "Restore it from a copy, or evaluate the run again."
        ) from error
    return pairs
