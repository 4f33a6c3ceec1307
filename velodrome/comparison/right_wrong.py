"""Which test images a run gets wrong, and whether two runs have the same ones. Never imports torch.

A thousand files of ten thousand rows are read in a few seconds: cut at commas as they stand, all rows at
once, unless a quote says that a name holds one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from velodrome.errors import RunError
from velodrome.run.answers import COLUMNS, read_answers
from velodrome.run.folder import RunFolder

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class RightWrong:
    """The answers of a run to N test images, in the order of the test set.

    Attributes:
        key: says, together with the name of the data set, which images they are: a checksum of the paths and
            labels. Two runs with the same one were tested on the same images with the same labels.
        classes: the names that were predicted.
        predictions: (N,) int16, indices of `classes`.
        is_wrong: (N,) bool, the prediction is not the label.
    """

    key: str
    classes: tuple[str, ...]
    predictions: NDArray[np.int16]
    is_wrong: Bools

    def __len__(self) -> int:
        return len(self.is_wrong)


class AnswerReader:
    """Reads the answers of many runs; what they have in common is kept once."""

    def __init__(self) -> None:
        self._labels: dict[str, _Names] = {}

    def read(self, folder: RunFolder) -> RightWrong:
        """The answers of a run.

        Raises:
            RunError: predictions.csv is missing or damaged.
        """
        try:
            data = folder.predictions.read_bytes()
        except FileNotFoundError as error:
            raise RunError("it has no predictions.csv.", "velodrome resume makes it again.") from error
        except OSError as error:
            raise RunError(f"predictions.csv cannot be read: {error.strerror}.", "Mend that.") from error
        if data and not data.endswith(b"\n"):
            raise RunError("predictions.csv has lost its end.", "velodrome evaluate makes it again.")
        rows = _cut(data) or _parse(folder)
        key = hashlib.sha256(rows.heads).hexdigest()[:32]
        if key not in self._labels:
            self._labels[key] = rows.labels()
        return _answers(key, self._labels[key], rows.predictions)


@dataclass(frozen=True, eq=False)
class _Names:
    """A name for each row: `codes` are (N,) indices of `names`, which are unique."""

    names: tuple[bytes, ...]
    codes: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class _Rows:
    """A file cut up: all of "index,path,label,"; the names of the labels, when asked for; those predicted."""

    heads: bytes
    labels: Callable[[], _Names]
    predictions: _Names


def _cut(data: bytes) -> _Rows | None:
    """The rows of a file; None where it takes a parser to tell them, or to say what is wrong."""
    head, _, body = data.partition(b"\n")
    if head.rstrip(b"\r") != ",".join(COLUMNS).encode() or not body or b'"' in body:
        return None
    text = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    commas = np.flatnonzero(text == ord(","))
    columns = len(COLUMNS)
    if len(commas) != (columns - 1) * len(ends):
        return None
    cuts = commas.reshape(len(ends), columns - 1)
    if (cuts[:, 0] < starts).any() or (cuts[:, -1] > ends).any():
        return None
    predictions = _names(text, cuts[:, 2] + 1, cuts[:, 3])
    if predictions is None:
        return None
    in_turn = np.stack([cuts[:, 2] + 1 - starts, ends - cuts[:, 2]], 1)  # lengths of a head, and of the rest
    heads = text[np.repeat(np.tile([True, False], len(ends)), in_turn.ravel())]

    def labels() -> _Names:
        found = _names(text, cuts[:, 1] + 1, cuts[:, 2])
        assert found is not None, "that takes two names with the same checksum"
        return found

    return _Rows(heads.tobytes(), labels, predictions)


def _names(text: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> _Names | None:
    """The names between positions of a text; None where checksums cannot tell them apart."""
    lengths = ends - starts
    width = max(8, -(-int(lengths.max()) // 8) * 8)
    padded = np.concatenate([text, np.zeros(width, np.uint8)])
    letters = np.lib.stride_tricks.sliding_window_view(padded, width)[starts]  # (N, width), a copy
    letters *= np.arange(width) < lengths[:, None]
    words = letters.view(np.uint64)  # (N, width / 8)
    sums = words[:, 0]
    for column in range(1, words.shape[1]):
        sums = sums * np.uint64(0x9E3779B97F4A7C15) + words[:, column]
    _, first, codes = np.unique(sums, return_index=True, return_inverse=True)
    if (words != words[first[codes]]).any():
        return None
    return _Names(
        tuple(letters[row, : lengths[row]].tobytes() for row in first.tolist()), codes.astype(np.int16)
    )


def _parse(folder: RunFolder) -> _Rows:
    """The same by the book.

    Raises:
        RunError: the file is damaged.
    """
    answers = read_answers(folder, with_probabilities=False)
    if answers is None:
        raise RunError("predictions.csv has no rows.", "velodrome resume makes it again.")
    names = tuple(name.encode() for name in answers.classes)
    pairs = zip(answers.paths, answers.labels.tolist(), strict=True)
    heads = b"".join(
        f"{index},{path},".encode() + names[label] + b"," for index, (path, label) in enumerate(pairs)
    )
    labels = _Names(names, answers.labels.astype(np.int16))
    return _Rows(heads, lambda: labels, _Names(names, answers.predictions.astype(np.int16)))


def _answers(key: str, labels: _Names, predictions: _Names) -> RightWrong:
    code_of = {name: code for code, name in enumerate(predictions.names)}
    truth = np.array([code_of.get(name, -1) for name in labels.names], np.int16)[labels.codes]
    classes = tuple(name.decode(errors="replace") for name in predictions.names)
    return RightWrong(key, classes, predictions.codes, predictions.codes != truth)
