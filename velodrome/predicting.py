"""What a trained model answers for image files, and what in them it goes by."""

from __future__ import annotations

import html
import itertools
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.cells import cell_len
from torch import Tensor

from velodrome.data.augment import normalise
from velodrome.data.image_files import (
    Failure,
    UnreadableImageError,
    Views,
    find_images,
    read_image,
    read_views,
)
from velodrome.data.imageset import ImageSet, ImagesU8
from velodrome.errors import EXIT_PARTLY, ConfigError, RunError, visible
from velodrome.evaluation.gradcam import DEFAULT_LAYER, check_stage, gradcam
from velodrome.evaluation.overlay import PANEL, explain_picture, png
from velodrome.evaluation.predict import Classifier, device_of, logits_of
from velodrome.run.folder import write_atomically, writing

PICTURE_SUFFIX = ".gradcam.png"
# With suffix, number and what a temporary file adds, below what the strictest file systems allow.
STEM_BYTES = 100
# The first and the second answer are what people compare.
CLASSES_EXPLAINED = 2
# Widths in a terminal.
PATH_CELLS, CLASS_CELLS = 48, 24
# A notebook does not get slow with so many rows.
ROWS_IN_NOTEBOOK = 200


@dataclass(frozen=True)
class Prediction:
    """The answer for an image file.

    Attributes:
        path: of the file.
        top: class names and their probabilities, the most probable first.
        overlay: the picture that explains the answer, None where none was asked for.
    """

    path: Path
    top: tuple[tuple[str, float], ...]
    overlay: Path | None = None


@dataclass(frozen=True)
class Predictions:
    """The answers for image files, and the files without one, each in the order in which they were given.

    Shows itself as a table, in a terminal (`print`) and in a notebook.

    Attributes:
        predictions: one for each image.
        failed: one for each file or folder that gave none.
    """

    predictions: tuple[Prediction, ...]
    failed: tuple[Failure, ...]

    def to_dict(self) -> dict[str, Any]:
        """What `velodrome predict --json` prints; "overlay" is there only for a picture that was written."""
        return {
            "predictions": [
                {
                    "path": str(prediction.path),
                    "top": [{"class": name, "probability": share} for name, share in prediction.top],
                    **({"overlay": str(prediction.overlay)} if prediction.overlay else {}),
                }
                for prediction in self.predictions
            ],
            "failed": [{"path": str(failure.path), "reason": failure.reason} for failure in self.failed],
        }

    def table(self) -> str:
        """The answers, aligned for a terminal: a line for each image, without those that failed."""
        return _table(self.predictions)

    def __str__(self) -> str:
        parts = [self.table()] if self.predictions else []
        if self.failed:
            parts.append("\n".join(["Without an answer:", *map(str, self.failed)]))
        return "\n\n".join(parts) or "No images."

    def _repr_html_(self) -> str:
        ranks = range(max((len(prediction.top) for prediction in self.predictions), default=0))
        heading = "".join(f"<th>{_ordinal(rank + 1)}</th>" for rank in ranks)
        rows = [
            _html_row(p.path, [f"{visible(name)} {_percent(share)}" for name, share in p.top])
            for p in self.predictions[:ROWS_IN_NOTEBOOK]
        ]
        rows += [
            _html_row(f.path, [f.reason], columns=max(1, len(ranks))) for f in self.failed[:ROWS_IN_NOTEBOOK]
        ]
        left = len(self.predictions) + len(self.failed) - len(rows)
        more = f"<p>{left:,} more are not shown.</p>" if left else ""
        return f"<table><tr><th>image</th>{heading}</tr>{''.join(rows)}</table>{more}"


def predict_files(
    classifier: Classifier,
    paths: Path | str | Iterable[Path | str],
    *,
    top: int = 3,
    explain: Path | str | None = None,
    layer: str = DEFAULT_LAYER,
    batch_size: int = 256,
) -> Predictions:
    """What a model says about image files of any kind and size; see `read_image` for how they are read.

    One batch of images is in memory at a time. An image that cannot be read becomes a Failure.

    Args:
        classifier: computes in float32, where its weights are.
        paths: files, and folders to look for images in.
        top: classes in an answer; all of them where there are fewer.
        explain: a folder for one picture per image, with Grad-CAM of its first two classes; made where it is
            missing. Of the files in it, only pictures of the same name are replaced.
        layer: the stage that Grad-CAM looks at.
        batch_size: images at a time.

    Raises:
        ConfigError: `top` or `batch_size` is below 1, or there is no stage called `layer`.
        RunError: `explain` cannot be written, or the model does not answer with numbers.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} is {value}, but must be at least 1.", f"Use {name}=3, for instance.")
    found = find_images(Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths))
    names = None
    if explain is not None:
        check_stage(classifier.network, classifier.image_size, layer)
        names = _PictureNames(Path(explain), [path for path in found if isinstance(path, Path)])
    predictions: list[Prediction] = []
    failed: list[Failure] = []
    for start in range(0, len(found), batch_size):
        batch = found[start : start + batch_size]
        read = [_read(item, classifier, with_views=names is not None) for item in batch]
        failed += [item for item in read if isinstance(item, Failure)]
        images = [item for item in read if isinstance(item, _Image)]
        try:
            predictions += _answer(classifier, images, top, names, layer) if images else []
        except RunError as error:
            error.exit_code = EXIT_PARTLY if names else error.exit_code  # pictures have been written
            raise
    return Predictions(tuple(predictions), tuple(failed))


@dataclass(frozen=True, eq=False)
class _Image:
    """An image file that could be read."""

    path: Path
    shown: ImagesU8
    views: Views | None


def _read(item: Path | Failure, classifier: Classifier, *, with_views: bool) -> _Image | Failure:
    if isinstance(item, Failure):
        return item
    size, fit = classifier.image_size, classifier.image_fit
    try:
        if not with_views:
            return _Image(item, read_image(item, size, fit), None)
        views = read_views(item, size, PANEL, fit)
        return _Image(item, views.shown, views)
    except UnreadableImageError as error:
        return Failure(item, error.reason)


def _answer(
    classifier: Classifier, images: Sequence[_Image], top: int, names: _PictureNames | None, layer: str
) -> list[Prediction]:
    """The answers for a batch; where there are `names`, with a picture each."""
    shown = np.stack([image.shown for image in images])
    shares, labels = _ranked(classifier, shown, [str(image.path) for image in images])
    answers = [
        [(classifier.classes[label], share) for label, share in zip(*row, strict=True)]
        for row in zip(labels.tolist(), shares.tolist(), strict=True)
    ]
    pictures: list[Path | None] = [None] * len(images)
    if names:
        batch = normalise(torch.from_numpy(shown).to(device_of(classifier)), classifier.normalisation)
        targets = labels[:, :CLASSES_EXPLAINED].to(batch.device)
        maps = gradcam(classifier.network, batch, targets, layer=layer).cpu().numpy()
        pictures = [
            _write_picture(names.next_for(image.path), image, heat, answer)
            for image, heat, answer in zip(images, maps, answers, strict=True)
        ]
    return [
        Prediction(image.path, tuple(answer[:top]), picture)
        for image, answer, picture in zip(images, answers, pictures, strict=True)
    ]


def _ranked(classifier: Classifier, shown: ImagesU8, paths: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The classes of each image, the most probable first: (N, classes) probabilities and their labels."""
    images = ImageSet(shown, np.zeros(len(shown), np.int64), classifier.classes, paths)
    logits = logits_of(
        classifier.network,
        images,
        classifier.normalisation,
        device=device_of(classifier),
        precision="fp32",
    )
    if not logits.isfinite().all():
        raise RunError(
            "The model answers with NaN or infinity: its training has diverged.",
            "Train it again with a lower learning rate.",
        )
    # Of logits, as small probabilities may be equal after rounding.
    ranked = logits.sort(dim=1, descending=True, stable=True)
    return ranked.values.softmax(1), ranked.indices


# Pictures.


class _PictureNames:
    """Where the picture of each image goes: names that are safe, and that no other file of this call has.

    Args:
        folder: of the pictures; made where it is missing.
        images: that are answered. Where they lie in `folder` too, none of them is overwritten.

    Raises:
        RunError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            parents = {parent for parent in {path.parent for path in images} if parent.samefile(folder)}
        self._taken = {_same_name(path.name) for path in images if path.parent in parents}
        self._stems = Counter(_same_name(_plain(path.stem, STEM_BYTES)) for path in images)
        self._numbers: dict[str, int] = {}

    def next_for(self, image: Path) -> Path:
        """A path for the picture of an image: stem.gradcam.png.

        Where other images have that stem, the name of the folder is in front: cat_1.gradcam.png. Where others
        have that too, a number is behind: cat_1-2.gradcam.png.
        """
        stem = _plain(image.stem, STEM_BYTES) or "image"
        if self._stems[_same_name(stem)] > 1:
            place = _plain(image.absolute().parent.name, STEM_BYTES - len(stem.encode()) - 1)
            stem = f"{place}_{stem}" if place else stem
        number = self._numbers.get(_same_name(stem), 0)
        while True:
            number += 1
            name = f"{stem}-{number}{PICTURE_SUFFIX}" if number > 1 else f"{stem}{PICTURE_SUFFIX}"
            if _same_name(name) not in self._taken:
                self._numbers[_same_name(stem)] = number
                self._taken.add(_same_name(name))
                return self._folder / name


def _plain(stem: str, most_bytes: int) -> str:
    """A stem that every file system takes, not too long; may be empty."""
    plain = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem)).strip("._-")
    return plain.encode()[: max(0, most_bytes)].decode(errors="ignore")


def _same_name(name: str) -> str:
    """Equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _write_picture(
    path: Path, image: _Image, heat: NDArray[np.float32], answer: Sequence[tuple[str, float]]
) -> Path:
    assert image.views is not None
    write_atomically(path, png(explain_picture(image.views, heat, answer[: len(heat)])))
    return path


# Text.


def _table(predictions: Sequence[Prediction]) -> str:
    ranks = max((len(prediction.top) for prediction in predictions), default=0)
    rows = [["image", *itertools.chain.from_iterable((_ordinal(rank + 1), "") for rank in range(ranks))]]
    for prediction in predictions:
        row = [_short(str(prediction.path), PATH_CELLS)]
        for name, share in prediction.top:
            row += [_short(name, CLASS_CELLS), _percent(share)]
        rows.append(row)
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """A path, then pairs of a class and, flush right, its probability."""
    gaps = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
    line = row[0] + gaps[0]
    for column in range(1, len(row), 2):
        line += f"  {row[column]}{gaps[column]} {gaps[column + 1]}{row[column + 1]}"
    return line.rstrip()


def _short(text: str, cells: int) -> str:
    """The text on one line, its middle left out where it would take more places in a terminal."""
    text = visible(text)
    if cell_len(text) <= cells:
        return text
    head, tail = text[: cells // 3], text[-cells:]
    while cell_len(head) + 1 + cell_len(tail) > cells:
        head, tail = (head, tail[1:]) if len(tail) > len(head) else (head[:-1], tail)
    return f"{head}…{tail}"


def _html_row(path: Path, cells: Sequence[str], columns: int = 1) -> str:
    tds = "".join(f'<td colspan="{columns}">{html.escape(cell)}</td>' for cell in cells)
    return f"<tr><th>{html.escape(visible(str(path)))}</th>{tds}</tr>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _ordinal(number: int) -> str:
    teens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
