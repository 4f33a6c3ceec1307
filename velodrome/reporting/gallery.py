"""The mistakes of a run, for the gallery of the page.

The page's script makes the cards. What it needs is handed over as columns, one value an image, and all images
as one sprite. Without gallery/ there are cards too: from the answers alone, without images and heat maps.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from velodrome.reporting import text
from velodrome.reporting.gaps import (
    Gap,
    damaged,
    missing,
    read_bytes,
    read_image,
    read_object,
    read_size,
    whole,
)
from velodrome.reporting.label_errors import LabelErrors, gather_label_errors
from velodrome.run.answers import DAMAGED_ARRAY, Answers
from velodrome.run.folder import RunFolder

# Cards of a page without gallery/; with it, whoever wrote it chose.
MOST_MISTAKES = 1500
BEST_OF_A_CLASS = 3
# How many of the most probable classes a card shows.
TOP = 3
# Probabilities travel as whole numbers of 1/10,000, which takes fewer characters than fractions.
PARTS = 10_000

Indices = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class Gallery:
    """The mistakes, and the best answers of each class.

    Attributes:
        data: what the page's script needs, ready for JSON.
        sprite: all images in one as a data URI, None where it cannot be shown.
        notes: a sentence for each thing that cannot be shown, with the reason.
        layer: the stage that the heat maps look at, None without heat maps.
        mistakes: how many there are in all.
        label_errors: labels that are likely wrong; None where nobody has looked for any.
    """

    data: Mapping[str, Any]
    sprite: str | None
    notes: tuple[str, ...]
    layer: str | None
    mistakes: int
    label_errors: LabelErrors | None


@dataclass(frozen=True)
class _Pictures:
    """The sprite, which images are in it and in maps.npy, and how they lie there."""

    sprite: str
    indices: Indices
    layer: str
    image: Mapping[str, int]
    map: Mapping[str, int]


def gather_gallery(folder: RunFolder, answers: Answers, without_probabilities: str = "") -> Gallery:
    """The mistakes of a run with all that is known about them.

    Args:
        folder: of the run.
        answers: of the run, for all of its test images.
        without_probabilities: a sentence that says why they have none, where the file is not missing.
    """
    notes: list[str] = []

    def unless_gap(what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Gap as gap:
            notes.append(f"{what}: {gap}")
            return None

    pictures = unless_gap("There are no images and no heat maps", lambda: _read_pictures(folder, answers))
    maps = unless_gap("There are no heat maps", lambda: _read_maps(folder, pictures)) if pictures else None
    if answers.probabilities is None:
        why = without_probabilities or missing(folder, folder.probabilities)
        notes.append(f"Probabilities are not shown: {why}")
    errors = unless_gap("Likely label errors are not marked", lambda: gather_label_errors(folder, answers))
    indices = pictures.indices if pictures else _worst_and_best(answers)
    return Gallery(
        data={
            **_columns(answers, indices),
            "mistakes": len(answers.wrong),
            "image": pictures.image if pictures else None,
            "map": {**pictures.map, "values": maps} if pictures and maps else None,
            "suggested": errors.suggested if errors else {},
        },
        sprite=pictures.sprite if pictures else None,
        notes=tuple(notes),
        layer=pictures.layer if pictures and maps else None,
        mistakes=len(answers.wrong),
        label_errors=errors,
    )


def _read_pictures(folder: RunFolder, answers: Answers) -> _Pictures:
    """The sprite and what gallery/mistakes.json says about it, checked against the answers.

    Raises:
        Gap: one of them is missing or damaged, or of other answers.
    """
    path = folder.mistakes
    found = read_object(folder, path)
    height, width = read_size(folder, path, found, "image_size")
    map_height, map_width = read_size(folder, path, found, "map_size")
    columns, indices = whole(found.get("columns")), found.get("indices")
    if columns is None or not isinstance(indices, list) or any(type(index) is not int for index in indices):
        raise damaged(folder, path, "it does not say which images it holds")
    if any(not 0 <= index < len(answers) for index in indices):
        raise damaged(folder, path, f"it names images that are not among the {len(answers):,} answers")
    return _Pictures(
        sprite=read_image(folder, folder.mistakes_image),
        indices=np.array(indices, np.int64),
        layer=text.words(found.get("layer")),
        image={"height": height, "width": width, "columns": columns},
        map={"height": map_height, "width": map_width},
    )


def _read_maps(folder: RunFolder, pictures: _Pictures) -> str:
    """The heat maps as base64, two an image: of the predicted and of the true class.

    Raises:
        Gap: they are missing, damaged, or of other images.
    """
    path = folder.maps
    try:
        maps = np.load(io.BytesIO(read_bytes(folder, path)), allow_pickle=False)
    except DAMAGED_ARRAY as error:
        raise damaged(folder, path, error) from error
    expected = (len(pictures.indices), 2, pictures.map["height"], pictures.map["width"])
    if not isinstance(maps, np.ndarray) or maps.dtype != np.uint8 or maps.shape != expected:
        is_now = f"{getattr(maps, 'dtype', type(maps))} of shape {getattr(maps, 'shape', None)}"
        raise damaged(folder, path, f"it holds {is_now}, not uint8 of shape {expected}")
    return base64.b64encode(maps.tobytes()).decode()


def _worst_and_best(answers: Answers) -> Indices:
    """Mistakes by falling loss, then the best answers of each class."""
    losses = np.nan_to_num(answers.losses, nan=np.inf)
    wrong = answers.wrong
    worst = wrong[np.argsort(-losses[wrong], kind="stable")][:MOST_MISTAKES]
    right = np.flatnonzero(answers.labels == answers.predictions)
    right = right[np.argsort(losses[right], kind="stable")]
    best = [right[answers.labels[right] == label][:BEST_OF_A_CLASS] for label in range(len(answers.classes))]
    return np.concatenate([worst, *best])


def _columns(answers: Answers, indices: Indices) -> dict[str, Any]:
    """A list for each thing to know about the images at `indices`."""
    losses = [round(loss, 4) if math.isfinite(loss) else None for loss in answers.losses[indices].tolist()]
    columns = {
        "classes": answers.classes,
        "index": indices.tolist(),
        "true": answers.labels[indices].tolist(),
        "predicted": answers.predictions[indices].tolist(),
        "loss": losses,
        "path": [answers.paths[index] for index in indices.tolist()],
    }
    if answers.probabilities is None:
        return {**columns, "top": None, "chance": None}
    top, chance = _most_probable(answers.probabilities[indices], answers.predictions[indices])
    return {**columns, "top": top.T.tolist(), "chance": chance.T.tolist()}


def _most_probable(probabilities: NDArray[np.float32], predictions: Indices) -> tuple[Indices, Indices]:
    """The most probable classes of each image, its prediction first, and their probabilities.

    Args:
        probabilities: (N, classes).
        predictions: (N,), the most probable class, also where half precision has made two equal.

    Returns:
        (N, TOP) class numbers, and (N, TOP) whole numbers of 1/PARTS, -1 where it is not a number.
    """
    rows = np.arange(len(predictions))[:, None]
    ranked = np.nan_to_num(probabilities, nan=-1.0)
    ranked[rows[:, 0], predictions] = 2.0
    top = np.argsort(-ranked, axis=1, kind="stable")[:, :TOP]
    chosen = probabilities[rows, top]
    chance = np.where(np.isfinite(chosen), np.rint(chosen * PARTS), -1)
    return top.astype(np.int64), chance.astype(np.int64)
