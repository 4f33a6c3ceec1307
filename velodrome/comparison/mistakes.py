"""Mistakes that one variant makes and the other does not, by the majority of its runs; with thumbnails."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from velodrome.comparison.groups import Trial, Variant
from velodrome.errors import RunError
from velodrome.run.answers import Answers, read_answers

# So many images of each kind are listed; their number is exact.
MOST_LISTED = 24
SHEET_COLUMNS = 24
# A gallery with larger tiles than this is not one of ours.
LARGEST_TILE = 256


@dataclass(frozen=True)
class Mistake:
    """A test image that one of two variants gets wrong.

    Attributes:
        index: of the image in the test set.
        path: of the image, as the data set names it.
        label: its class.
        taken_for: what the variant that errs takes it for, most frequent first, with the number of its runs.
        wrong: how many runs of the variant that errs get it wrong.
        runs: how many runs that variant has.
        right: how many runs of the other variant get it right.
        other_runs: how many runs the other variant has.
    """

    index: int
    path: str
    label: str
    taken_for: tuple[tuple[str, int], ...]
    wrong: int
    runs: int
    right: int
    other_runs: int


@dataclass(frozen=True, eq=False)
class MistakesOfTwo:
    """What a variant and the baseline get wrong, by the majority of the runs of each.

    Attributes:
        variant: label of the variant.
        both: how many images most runs of both get wrong.
        only_variant: indices that most runs of the variant get wrong and most of the baseline right, the
            clearest first.
        only_baseline: the other way round.
    """

    variant: str
    both: int
    only_variant: NDArray[np.int64]
    only_baseline: NDArray[np.int64]


def mistakes_of_two(variant: Variant, baseline: Variant) -> MistakesOfTwo:
    """The mistakes of two variants that were tested on the same images."""
    ours, theirs = variant.wrong_share, baseline.wrong_share
    return MistakesOfTwo(
        variant.label,
        int(((ours > 0.5) & (theirs > 0.5)).sum()),
        _clearest(ours, theirs),
        _clearest(theirs, ours),
    )


def _clearest(wrong: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.int64]:
    found = np.flatnonzero((wrong > 0.5) & (other < 0.5))
    return found[np.argsort(other[found] - wrong[found], kind="stable")]


def describe_mistakes(
    indices: Iterable[int], erring: Variant, other: Variant, images: Answers
) -> tuple[Mistake, ...]:
    """What is known about images that one variant gets wrong and the other does not.

    Args:
        indices: of the images.
        erring: the variant that gets them wrong.
        other: the one that does not.
        images: answers of any run to these images, for their paths and labels.
    """
    return tuple(
        Mistake(
            index,
            images.paths[index],
            images.classes[images.labels[index]],
            tuple(_taken_for(erring, index).most_common()),
            sum(bool(trial.answers.is_wrong[index]) for trial in erring.trials),
            erring.n,
            sum(not trial.answers.is_wrong[index] for trial in other.trials),
            other.n,
        )
        for index in map(int, indices)
    )


def _taken_for(variant: Variant, index: int) -> Counter[str]:
    return Counter(
        trial.answers.classes[trial.answers.predictions[index]]
        for trial in variant.trials
        if trial.answers.is_wrong[index]
    )


def names_of_images(variant: Variant) -> Answers | None:
    """The answers of a run of the variant, for paths and labels; None where they are gone by now."""
    try:
        return read_answers(variant.trials[0].run.folder, with_probabilities=False)
    except RunError:
        return None


@dataclass(frozen=True)
class Thumbnails:
    """Small pictures of test images, all in one.

    Attributes:
        content: of a WebP file, `SHEET_COLUMNS` in a row.
        height: of one, in pixels.
        width: of one, in pixels.
        places: by index in the test set, where it is, counted along the rows.
    """

    content: bytes
    height: int
    width: int
    places: dict[int, int]

    @property
    def rows(self) -> int:
        """How many rows of pictures there are."""
        return -(-len(self.places) // SHEET_COLUMNS)


def collect_thumbnails(indices: Sequence[int], trials: Iterable[Trial]) -> Thumbnails | None:
    """Pictures of test images from the galleries of runs, as far as these have them.

    Args:
        indices: of the images.
        trials: whose galleries to look into; as few as will do are opened.
    """
    left = set(indices)
    pictures: dict[int, Image.Image] = {}
    for trial in trials:
        if not left:
            break
        pictures |= _from_gallery(trial, left)
        left -= set(pictures)
    if not pictures:
        return None
    width, height = next(iter(pictures.values())).size
    order = [index for index in dict.fromkeys(indices) if index in pictures]
    rows = -(-len(order) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (width * min(SHEET_COLUMNS, len(order)), height * rows))
    for place, index in enumerate(order):
        row, column = divmod(place, SHEET_COLUMNS)
        picture = pictures[index]
        fitting = picture if picture.size == (width, height) else picture.resize((width, height))
        sheet.paste(fitting, (column * width, row * height))
    file = io.BytesIO()
    sheet.save(file, "WEBP", lossless=max(width, height) <= 48, quality=85)
    return Thumbnails(file.getvalue(), height, width, {index: place for place, index in enumerate(order)})


def _from_gallery(trial: Trial, wanted: set[int]) -> dict[int, Image.Image]:
    """Those of the wanted images that the gallery of a run has; none where it is missing or damaged."""
    folder = trial.run.folder
    try:
        about = folder.read_json(folder.mistakes) or {}
        height, width, columns, indices = _layout(about)
        places = [(index, place) for place, index in enumerate(indices) if index in wanted]
        if not places:
            return {}
        with Image.open(folder.mistakes_image) as sheet:
            pixels = sheet.convert("RGB")
        if pixels.width != columns * width or pixels.height * columns < len(indices) * height:
            return {}
        return {
            index: pixels.crop((x * width, y * height, (x + 1) * width, (y + 1) * height))
            for index, place in places
            for y, x in [divmod(place, columns)]
        }
    except (RunError, OSError, ValueError, TypeError, KeyError, RecursionError, Image.DecompressionBombError):
        return {}


def _layout(about: dict[str, Any]) -> tuple[int, int, int, list[int]]:
    """Height, width, columns and indices of a gallery.

    Raises:
        KeyError, TypeError, ValueError: it does not say.
    """
    height, width = (int(side) for side in about["image_size"])
    columns, indices = int(about["columns"]), [int(index) for index in about["indices"]]
    if not (
        isinstance(about["indices"], list)
        and 0 < height <= LARGEST_TILE
        and 0 < width <= LARGEST_TILE
        and columns > 0
    ):
        raise ValueError("a gallery without sizes")
    return height, width, columns, indices
