"""What a run answered for every test image, read back from its folder. Never imports torch."""

from __future__ import annotations

import csv
import tokenize
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from velodrome.errors import RunError
from velodrome.run.folder import RunFolder

# What reading a damaged .npy file may raise: its header is parsed as Python, and may ask for any size.
DAMAGED_ARRAY = (OSError, ValueError, EOFError, SyntaxError, MemoryError, tokenize.TokenError)
COLUMNS = ("index", "path", "label", "prediction", "probability", "loss")


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers for N test images, in the order of the test set.

    Attributes:
        classes: the names, in the order of the columns of `probabilities`.
        paths: N paths, as the data set names its images.
        labels: (N,) int64, the class that the data set gives, as an index of `classes`.
        predictions: (N,) int64, the most probable class.
        losses: (N,) float64, cross-entropy in nats.
        probabilities: (N, classes) float32 in [0, 1], from float16; None where probabilities.npy is missing.
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    losses: NDArray[np.float64]
    probabilities: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def wrong(self) -> NDArray[np.int64]:
        """Indices of the images whose prediction is not their label, in order."""
        return np.flatnonzero(self.labels != self.predictions)


def read_answers(
    folder: RunFolder, classes: object = None, *, with_probabilities: bool = True
) -> Answers | None:
    """The answers of a run, None where it has none yet.

    Args:
        folder: of the run.
        classes: list of the class names in the order of the probabilities, as in result.json; names that
            it lacks follow in the order of the alphabet. Without it, whose probabilities they are is not
            known, so there are none.
        with_probabilities: read probabilities.npy too.

    Raises:
        RunError: predictions.csv or probabilities.npy is damaged, or they do not belong together.
    """
    rows = _read_rows(folder)
    if not rows:
        return None
    listed = [str(name) for name in classes] if isinstance(classes, list | tuple) else []
    others = sorted({row[key] for row in rows for key in ("label", "prediction")} - set(listed))
    names = tuple(dict.fromkeys([*listed, *others]))
    number = {name: index for index, name in enumerate(names)}
    return Answers(
        classes=names,
        paths=tuple(row["path"] for row in rows),
        labels=np.array([number[row["label"]] for row in rows], np.int64),
        predictions=np.array([number[row["prediction"]] for row in rows], np.int64),
        losses=np.array([float(row["loss"]) for row in rows]),
        probabilities=_read_probabilities(folder, (len(rows), len(names)))
        if with_probabilities and listed
        else None,
    )


def _read_rows(folder: RunFolder) -> list[dict[str, str]]:
    path = folder.predictions
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{column: row[column] for column in COLUMNS} for row in csv.DictReader(file)]
        if any(value is None for row in rows for value in row.values()):
            raise ValueError("a row has too few columns")
        for row in rows:
            float(row["loss"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, csv.Error) as error:
        problem = f"it has no column {error}" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path} is damaged: {problem}.", _remedy(folder)) from error
    return rows


def _read_probabilities(folder: RunFolder, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    path = folder.probabilities
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except DAMAGED_ARRAY as error:
        raise RunError(f"{path} is damaged: {error}.", _remedy(folder)) from error
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype.kind != "f":
        raise RunError(
            f"{path} holds {getattr(found, 'dtype', type(found))} of shape {getattr(found, 'shape', None)}, "
            f"but {folder.predictions.name} has {shape[0]} rows and {shape[1]} classes.",
            _remedy(folder),
        )
    return found.astype(np.float32)


def _remedy(folder: RunFolder) -> str:
    return f"Restore it from a copy, or make it again: velodrome evaluate {folder.path}"
