"""Run folders with many mistakes for the tests in a browser, and the truth about them."""

import csv
import io
from dataclasses import dataclass

import numpy as np
from pages import (
    epoch_done,
    finding,
    history_rows,
    started,
    write_diagnosis,
    write_evaluation,
    write_events,
    write_history,
    write_label_errors,
    write_lr_find,
    write_mistakes,
    write_probabilities,
    write_run,
    write_samples,
)
from PIL import Image

from velodrome.evaluation.gallery import sprite
from velodrome.run.answers import COLUMNS
from velodrome.run.folder import RunFolder

CLASSES = ["cat", "dog", "sea lion", "frog", "owl"]
EPOCHS = 12
HEIGHT, WIDTH, SPRITE_COLUMNS = 8, 12, 7
MAP_HEIGHT, MAP_WIDTH = 4, 6
BEST_OF_A_CLASS = 3


@dataclass(frozen=True)
class Example:
    """A run folder and what is in it.

    Attributes:
        folder: the run folder.
        classes: K names.
        labels: (N,) the true classes, as numbers.
        predictions: (N,) the predicted ones.
        probabilities: (N, K) float16.
        losses: (N,) to four decimals.
        paths: N texts.
        shown: the images of the gallery in the order of the sprite, as rows of the arrays above.
        images: (len(shown), H, W, 3) uint8.
        maps: (len(shown), 2, h, w) uint8, of the predicted and of the true class.
        suggested: what an image rather is, where its label is likely wrong.
    """

    folder: RunFolder
    classes: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    paths: list[str]
    shown: list[int]
    images: np.ndarray
    maps: np.ndarray
    suggested: dict[int, int]

    @property
    def mistakes(self):
        """The mistakes of the gallery, by falling loss."""
        return [i for i in self.shown if self.labels[i] != self.predictions[i]]

    @property
    def right(self):
        """The right answers of the gallery."""
        return [i for i in self.shown if self.labels[i] == self.predictions[i]]

    def confidence(self, i):
        """As the page has it, to four decimals."""
        return round(float(self.probabilities[i, self.predictions[i]]), 4)

    def pair(self, label, prediction):
        """The mistakes of a cell of the confusion matrix."""
        return [i for i in self.mistakes if (self.labels[i], self.predictions[i]) == (label, prediction)]


def write_example(path, *, classes=CLASSES, paths=None, right=180, wrong=60, most=1500):
    """A complete run with real pictures; of the mistakes those of the highest loss are in the gallery.

    Args:
        path: of the run folder.
        classes: at least four names.
        paths: names of the images, again and again; made up by default.
        right: how many images are recognised.
        wrong: how many are not.
        most: at most so many of these are shown.
    """
    rng = np.random.default_rng(7)
    folder = write_run(path, classes=classes)
    labels, predictions, probabilities = _answers(rng, len(classes), right, wrong)
    true = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0].astype(float)
    losses = np.round(-np.log(true), 4)
    paths = [paths[i % len(paths)] for i in range(len(labels))] if paths else _paths(len(labels))
    mistakes = [i for i in np.argsort(-losses).tolist() if labels[i] != predictions[i]][:most]
    best = np.argsort(losses).tolist()
    shown = [*mistakes, *(i for k in range(len(classes)) for i in _best(best, labels, predictions, k))]
    # Some mistakes, and one image that is not in the gallery.
    suggested = {i: int(predictions[i]) for i in mistakes[3:40:5]}
    unseen = next(i for i in reversed(best) if i not in shown)
    suggested[unseen] = int((labels[unseen] + 1) % len(classes))
    example = Example(
        folder, list(classes), labels, predictions, probabilities, losses, paths, shown,
        _images(rng, len(shown)), _maps(rng, labels[shown] == predictions[shown]), suggested,
    )  # fmt: skip
    _write_answers(example)
    _write_pictures(example)
    _write_the_rest(folder)
    return example


def _answers(rng, classes, right, wrong):
    """Labels, predictions and probabilities, in any order; some pairs of classes are confused often."""
    labels = rng.permutation(np.arange(right + wrong) % classes)
    offset = np.zeros(len(labels), np.int64)
    offset[:wrong] = 1 + np.minimum(rng.geometric(0.5, wrong) - 1, classes - 2)
    predictions = (labels + rng.permutation(offset)) % classes
    probabilities = rng.uniform(0.01, 0.3, (len(labels), classes))
    probabilities[np.arange(len(labels)), predictions] = rng.uniform(0.35, 3, len(labels))
    return labels, predictions, (probabilities / probabilities.sum(1, keepdims=True)).astype(np.float16)


def _best(order, labels, predictions, label):
    found = [i for i in order if labels[i] == predictions[i] == label]
    return found[:BEST_OF_A_CLASS]


def _paths(count):
    """Without digits, so that a search for an index finds nothing else."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [f"roll-{letters[i % 5]}/IMG_{letters[i // 26 % 26]}{letters[i % 26]}.jpg" for i in range(count)]


def _images(rng, count):
    """Slopes from one colour to another, which compress well; no two the same."""
    ends = rng.integers(0, 256, (2, count, 1, 1, 3))
    share = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    return np.rint(ends[0] * (1 - share) + ends[1] * share).astype(np.uint8)


def _maps(rng, is_right):
    """Each a peak with slopes, at different places; right answers have one map twice; some are zero."""
    count = len(is_right)
    peaks = np.stack([rng.permutation(MAP_HEIGHT * MAP_WIDTH)[:2] for _ in range(count)])
    peaks[is_right, 1] = peaks[is_right, 0]
    rows, columns = np.divmod(np.arange(MAP_HEIGHT * MAP_WIDTH), MAP_WIDTH)
    far = abs(rows - (peaks // MAP_WIDTH)[..., None]) + abs(columns - (peaks % MAP_WIDTH)[..., None])
    maps = np.choose(np.minimum(far, 2), [255, 110, 0]).astype(np.uint8)
    maps[1:count:9, 1][~is_right[1:count:9]] = 0
    maps[2:count:11, 0][~is_right[2:count:11]] = 0
    return maps.reshape(count, 2, MAP_HEIGHT, MAP_WIDTH)


def _write_answers(example):
    names = example.classes
    with example.folder.predictions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, (label, prediction) in enumerate(zip(example.labels, example.predictions, strict=True)):
            row = [i, example.paths[i], names[label], names[prediction]]
            writer.writerow([*row, example.confidence(i), example.losses[i]])
    write_probabilities(example.folder, example.probabilities)
    rows = [(i, names[example.labels[i]], names[k]) for i, k in example.suggested.items()]
    write_label_errors(example.folder, *rows)


def _write_pictures(example):
    folder, classes = example.folder, example.classes
    wrong = int((example.labels != example.predictions).sum())
    about = {"size": (HEIGHT, WIDTH), "map_size": (MAP_HEIGHT, MAP_WIDTH), "mistakes": wrong}
    write_mistakes(folder, example.shown, **about, columns=SPRITE_COLUMNS)
    folder.mistakes_image.write_bytes(sprite(example.images, SPRITE_COLUMNS))
    np.save(folder.maps, example.maps)
    write_samples(folder, classes, image_size=[HEIGHT, WIDTH])
    folder.samples_image.write_bytes(sprite(example.images[: 5 * len(classes)], 5))
    folder.augmented_image.write_bytes(sprite(example.images[:3], 2))


def _write_the_rest(folder):
    rows = history_rows(EPOCHS)
    write_history(folder, rows)
    write_events(folder, started(epochs=EPOCHS), *(epoch_done(row) for row in rows))
    examples = [{"test": 5, "train": 123, "same_label": True}]
    write_evaluation(folder, duplicates={"images": 1, "examples": examples})
    findings = [finding(severity) for severity in ("problem", "warning", "note")]
    write_diagnosis(folder, *findings, unchecked={"calibration": "evaluation.json is missing"})
    write_lr_find(folder)
    figure = io.BytesIO()
    Image.new("RGB", (60, 30), (90, 120, 200)).save(figure, "PNG")
    folder.lr_find_figure.write_bytes(figure.getvalue())
