"""The figures of merit of a run, from evaluation.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from velodrome.reporting import text
from velodrome.reporting.calibration import Calibration, read_calibration
from velodrome.reporting.gaps import Gap, damaged, read_object
from velodrome.reporting.tables import Fact, Table, listing, mapping, with_values
from velodrome.run.folder import RunFolder, number


@dataclass(frozen=True)
class Duplicates:
    """Test images that are in the training set too: how many, and some of them."""

    images: int
    examples: Table


@dataclass(frozen=True)
class Evaluation:
    """What evaluation.json says.

    Attributes:
        accuracy: on the images that were evaluated, as a percentage.
        interval: its 95% confidence interval in words, None where it is not known.
        facts: the other figures of merit.
        calibration: how far probabilities can be trusted, None where it is not known.
        duplicates: None where training images were not looked at.
    """

    accuracy: str
    interval: str | None
    facts: tuple[Fact, ...]
    calibration: Calibration | None
    duplicates: Duplicates | None


def gather_evaluation(folder: RunFolder) -> Evaluation:
    """What evaluation.json says.

    Raises:
        Gap: it is missing or damaged.
    """
    found = read_object(folder, folder.evaluation)
    if number(found.get("accuracy")) is None:
        raise damaged(folder, folder.evaluation, "it has no accuracy")
    calibration = read_calibration(mapping(found.get("calibration")))
    facts = (
        Fact("Test accuracy, TTA", text.percent(found.get("accuracy_tta"))),
        Fact("Top-5 accuracy", text.percent(found.get("top5_accuracy"))),
        Fact("Test loss (NLL)", text.loss(found.get("nll"))),
        Fact("Brier score", text.loss(found.get("brier"))),
        Fact("Calibration error (ECE)", calibration.ece if calibration else text.NONE),
    )
    return Evaluation(
        accuracy=text.percent(found["accuracy"]),
        interval=interval(found.get("accuracy_ci95"), text.percent),
        facts=with_values(facts),
        calibration=calibration,
        duplicates=_duplicates(mapping(found.get("duplicates"))),
    )


def gather_other_evaluations(folder: RunFolder) -> Table | None:
    """How the model fared on other data, None where it was not tried on any."""
    rows = []
    for path in sorted(folder.evaluations.glob("*/evaluation.json")):
        try:
            found = read_object(folder, path)
        except Gap:
            found = {}
        name = text.words(found.get("data", path.parent.name))
        change = text.points(found.get("accuracy_change"))
        between = interval(found.get("accuracy_change_ci95"), text.points) or text.NONE
        figures = (text.count(found.get("images")), text.percent(found.get("accuracy")))
        rows.append((name, *figures, change, between))
    columns = ("Data", "Images", "Accuracy", "Change", "95% interval of the change")
    return Table(columns, tuple(rows), numbers=1) if rows else None


def interval(value: object, write: Callable[[object], str]) -> str | None:
    """Two ends as "-1.2 to +3.4", each as `write` has it; None where the value is not that."""
    ends = [write(end) for end in listing(value)]
    return " to ".join(ends) if len(ends) == 2 and text.NONE not in ends else None


def _duplicates(found: Mapping[str, Any]) -> Duplicates | None:
    images = number(found.get("images"))
    if images is None:
        return None
    rows = tuple(
        (
            text.count(example.get("test")),
            text.count(example.get("train")),
            text.words(example.get("same_label")),
        )
        for example in map(mapping, listing(found.get("examples")))
    )
    return Duplicates(int(images), Table(("Test image", "Training image", "Same label"), rows, numbers=1))
