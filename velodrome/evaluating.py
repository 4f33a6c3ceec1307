"""Evaluating a finished run again: on its own test images, or on other images of the same classes."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import warnings
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len

from velodrome.config import HUB, Config, is_own, override
from velodrome.data.image_files import Failure
from velodrome.data.imageset import ImageSet
from velodrome.data.own.listing import check_known
from velodrome.data.own.own_data import read_to_judge
from velodrome.data.sources import check_is_there, load_splits, telling
from velodrome.device import pick_device, pick_precision
from velodrome.errors import VelodromeWarning, visible
from velodrome.evaluation.gallery import write_samples
from velodrome.evaluation.gradcam import DEFAULT_LAYER, check_stage
from velodrome.evaluation.metrics import Evaluation
from velodrome.evaluation.predict import Classifier
from velodrome.evaluation.results import Baseline, Trained, write_results
from velodrome.job import make_loader
from velodrome.run.answers import Answers, read_answers
from velodrome.run.folder import RunFolder, writing
from velodrome.run.images import check_same_as_result

# A longer table cannot be taken in.
MOST_CLASSES_PRINTED = 40


@dataclass(frozen=True, eq=False)
class Assessment:
    """How good a run's model is on a set of images; shows itself in a notebook.

    Attributes:
        figures: all figures of merit.
        path: of the folder that evaluation.json, predictions.csv and the other files were written to.
        change: how far the accuracy moved from that on the run's own test images, in [-1, 1], and the 95%
            interval of that; None on those images themselves, and where there are no answers for them.
        failed: files that could not be read.
    """

    figures: Evaluation
    path: Path
    change: tuple[float, tuple[float, float]] | None = None
    failed: tuple[Failure, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share in [0, 1] of the images that were recognised."""
        return self.figures.accuracy

    @property
    def page(self) -> Path:
        """The page that shows the answers, the mistakes among them."""
        return RunFolder(self.path).report

    def to_dict(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        content: dict[str, Any] = json.loads(RunFolder(self.path).evaluation.read_text(encoding="utf-8"))
        return content

    def rows(self) -> list[tuple[str, str]]:
        """The figures as a table: names and texts."""
        rows = self.figures.rows()
        if self.change is not None:
            change, (low, high) = self.change
            moved = f"{100 * change:+.2f} points (95% CI {100 * low:+.2f} to {100 * high:+.2f})"
            rows.insert(1, ("change from the run's own test images", moved))
        return rows

    def table(self) -> str:
        """The figures of each class as a table for a terminal; of very many classes, where to find them."""
        if len(self.figures.classes) > MOST_CLASSES_PRINTED:
            return f"The figures of each of the {len(self.figures.classes)} classes are in evaluation.json."
        rows = [["class", "images", "precision", "recall", "F1"]]
        for one in self.figures.per_class:
            shares = (one.precision, one.recall, one.f1)
            texts = ["-" if share is None else f"{share:.2%}" for share in shares]
            rows.append([visible(one.name), f"{one.images:,}", *texts])
        width = max(cell_len(name) for name, *_ in rows)
        return "\n".join(
            name + " " * (width - cell_len(name)) + "".join(f"{number:>11}" for number in numbers)
            for name, *numbers in rows
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in self.rows()
        )
        return f"<table>{rows}</table>"


def ask(classifier: Classifier, config: Config, *, device: str, precision: str | None) -> Trained:
    """The network of a run on a device, in the precision that it was trained in unless told otherwise.

    Args:
        classifier: of the run; moved to the device.
        config: of the run.
        device: "auto", "cpu", "cuda" or "mps".
        precision: "auto", "fp32", "bf16" or "fp16"; None for that of the run, where it is the same device.

    Raises:
        DeviceError: the device or the precision is not to be had.
    """
    place = pick_device(device)
    same = place.type == config.run.device
    wanted = precision or (config.run.precision if same else "auto")
    network = classifier.network.to(place)
    precision = pick_precision(wanted, place)
    return Trained(network, classifier.normalisation, place, precision, config.evaluate.tta)


def evaluate_own(
    folder: RunFolder,
    config: Config,
    classifier: Classifier,
    trained: Trained,
    *,
    layer: str = DEFAULT_LAYER,
    progress: bool = True,
) -> Assessment:
    """Evaluate a run on its own test images, and write everything that follows from the answers.

    Args:
        folder: of the run, which the caller has locked.
        config: of the run.
        classifier: of the run.
        trained: its network, as it is to be asked.
        layer: the stage whose Grad-CAM maps the gallery shows.
        progress: say on stderr what takes time.

    Raises:
        VelodromeError: the data are missing or not those of the run, the network has no such stage, or a file
            cannot be written.
    """
    moved = f"If it has moved, name the new place in the line `data:` of {folder.config}."
    check_is_there(config.data, moved)
    enlarged = config.augment.takes_parts
    splits = load_splits(config.data, config.run.seed, enlarged=enlarged, progress=progress)
    check_same_as_result(folder, splits, config.data.data)
    test = _as_known(splits.test, classifier.classes, config.data.data)
    check_stage(trained.network, classifier.image_size, layer)
    loader = make_loader(config, splits.train, trained.normalisation, trained.device)
    write_samples(folder, splits.train, loader)
    results = write_results(folder, trained, test, data=splits.name, train=splits.train, layer=layer)
    return Assessment(results.figures, folder.path)


def evaluate_other(
    folder: RunFolder,
    config: Config,
    classifier: Classifier,
    trained: Trained,
    data: str,
    *,
    layer: str = DEFAULT_LAYER,
    progress: bool = True,
) -> Assessment:
    """Evaluate a run on other images of its classes; writes to a folder of that name in `evaluations`.

    Of a data set with images to test on these are taken, else those to choose by, else all.

    Warns (VelodromeWarning) of every file that cannot be read.

    Args:
        folder: of the run.
        config: of the run; its `data_root` says where data sets lie.
        classifier: of the run.
        trained: its network, as it is to be asked.
        data: a data set, as in the config.
        layer: the stage whose Grad-CAM maps the gallery shows.
        progress: say on stderr what takes time.

    Raises:
        VelodromeError: the data are missing or have images of a class that the run does not know, the network
            has no such stage, or a file cannot be written.
    """
    check_stage(trained.network, classifier.image_size, layer)
    images, failed = _other_images(config, classifier, data, progress=progress)
    for failure in failed:
        message = f"{visible(str(failure.path))} cannot be read: {failure.reason}."
        warnings.warn(message, VelodromeWarning, stacklevel=2)
    answers = read_answers(folder, classifier.classes)
    baseline = _baseline(answers, config.data.data) if answers else None
    place = RunFolder(folder.evaluations / _folder_name(data))
    with writing(place.path):
        place.path.mkdir(parents=True, exist_ok=True)
        place.report.unlink(missing_ok=True)  # it tells of the answers from before
    shown = os.fsencode(data).decode("utf-8", "replace")
    figures = write_results(
        place, trained, images, data=shown, train=None, baseline=baseline, layer=layer, failed=failed
    ).figures
    return Assessment(figures, place.path, baseline.change(figures) if baseline else None, failed)


def _baseline(answers: Answers, data: str) -> Baseline:
    right = answers.labels[answers.labels == answers.predictions]
    images_of, right_of = (
        np.bincount(labels, minlength=len(answers.classes)).tolist() for labels in (answers.labels, right)
    )
    return Baseline(data, tuple(images_of), tuple(right_of))


def is_own_data(config: Config, data: str) -> bool:
    """Whether a data set is that of the run, however its path is written."""
    ours = config.data.data
    with contextlib.suppress(OSError, ValueError):  # one of them is not there
        if is_own(ours) and is_own(data):
            return Path(data).expanduser().samefile(ours)
    return data == ours


def _other_images(
    config: Config, classifier: Classifier, data: str, *, progress: bool
) -> tuple[ImageSet, tuple[Failure, ...]]:
    """The images of a data set to judge the model by, in its size, and the files that cannot be read."""
    settings = {
        "data": data,
        "data_root": config.data.data_root,
        "image_size": classifier.image_size[0],
        "image_fit": classifier.image_fit,
        "cache_by": config.data.cache_by,
    }
    section = override(Config(), settings).data
    if not is_own(data):
        test = load_splits(section, config.run.seed, progress=progress).test
        return _as_known(test, classifier.classes, data), ()
    with telling(progress) as (say, bar):
        images, failed = read_to_judge(section, classifier.classes, say=say, bar=bar)
    return _as_known(images, classifier.classes, data), failed


def _as_known(images: ImageSet, classes: tuple[str, ...], data: str) -> ImageSet:
    """The same images with their labels as indices of `classes`.

    Raises:
        DataError: they have a class that is not among `classes`.
    """
    check_known(data, [images.classes[label] for label in np.unique(images.labels)], classes)
    number = {name: label for label, name in enumerate(classes)}
    numbers = np.array([number.get(name, -1) for name in images.classes])
    return replace(images, labels=numbers[images.labels], classes=tuple(classes))


def _folder_name(data: str) -> str:
    """A plain folder name of its own for each data set or path."""
    if not is_own(data):
        return data
    path = os.fsencode(data if data.startswith(HUB) else Path(data).expanduser().resolve())
    plain = re.sub(r"[^\w.-]+", "-", os.fsdecode(Path(path.decode("utf-8", "replace")).name))[:60].strip("-.")
    return f"{plain or 'folder'}-{blake2b(path, digest_size=4).hexdigest()}"
