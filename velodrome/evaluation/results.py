"""What an evaluation leaves in a folder: every answer, all figures, suspicious labels, the gallery."""

from __future__ import annotations

import csv
import functools
import io
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velodrome.data.duplicates import exact_duplicates
from velodrome.data.image_files import Failure
from velodrome.data.imageset import ImageSet, Normalisation
from velodrome.errors import VelodromeWarning, visible
from velodrome.evaluation.gallery import write_mistakes
from velodrome.evaluation.gradcam import DEFAULT_LAYER
from velodrome.evaluation.metrics import Evaluation, Interval, accuracy_change, evaluate
from velodrome.evaluation.mistakes import LABEL_ERROR_COLUMNS, label_errors_csv, likely_label_errors
from velodrome.evaluation.predict import logits_of, shifted
from velodrome.run.answers import COLUMNS, read_answers
from velodrome.run.folder import RunFolder, write_atomically, write_json

# Of this share of all images, those with the lowest probability, "shift" takes more views.
UNSURE_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, and how it is to be asked.

    Attributes:
        network: on `device`.
        normalisation: of the images that it was trained on.
        device: where to compute.
        precision: "fp32", "bf16" or "fp16".
        tta: test-time augmentation, "flip" or "shift".
    """

    network: nn.Module
    normalisation: Normalisation
    device: torch.device
    precision: str
    tta: str = "flip"


@dataclass(frozen=True)
class Results:
    """What was written.

    Attributes:
        figures: of merit.
        predict_s: seconds from images in memory to the final answers, with test-time augmentation.
    """

    figures: Evaluation
    predict_s: float


@dataclass(frozen=True)
class Baseline:
    """How the network did on the images that others are compared with.

    Attributes:
        data: what they are called.
        images_of: how many they are, for each class.
        right_of: how many of them were recognised.
    """

    data: str
    images_of: tuple[int, ...]
    right_of: tuple[int, ...]

    def change(self, figures: Evaluation) -> tuple[float, Interval]:
        """How far the accuracy moved from here, in [-1, 1], and the 95% interval of that."""
        right = round(figures.accuracy * figures.images)
        return accuracy_change(right, figures.images, sum(self.right_of), sum(self.images_of))

    def compared_with(self, figures: Evaluation) -> dict[str, Any]:
        """These images as evaluation.json has them, with the change of each class of which both have some."""
        per_class = []
        for one, images, right in zip(figures.per_class, self.images_of, self.right_of, strict=True):
            if images and one.images:
                now = round((one.recall or 0) * one.images)
                change, interval = accuracy_change(now, one.images, right, images)
                per_class.append(
                    {
                        "name": one.name,
                        "images": images,
                        "accuracy": right / images,
                        "change": change,
                        "change_ci95": list(interval),
                    }
                )
        images = sum(self.images_of)
        accuracy = sum(self.right_of) / images
        return {"data": self.data, "images": images, "accuracy": accuracy, "per_class": per_class}


def write_results(
    folder: RunFolder,
    trained: Trained,
    images: ImageSet,
    *,
    data: str,
    train: ImageSet | None,
    baseline: Baseline | None = None,
    layer: str = DEFAULT_LAYER,
    failed: Sequence[Failure] | None = None,
) -> Results:
    """Let the network answer every image, and write all that follows from the answers.

    Args:
        folder: receives predictions.csv, probabilities.npy, evaluation.json, label_errors.csv and gallery/.
        trained: the network.
        images: to answer.
        data: what they are called.
        train: the images that it was trained on, to look for duplicates; None where that is not wanted.
        baseline: what the accuracy is to be compared with.
        layer: the stage whose Grad-CAM maps the gallery shows.
        failed: files that could not be read; None where there are no files.

    Raises:
        ConfigError: the network has no such stage.
        RunError: a file cannot be written.
    """
    began_s = time.perf_counter()
    logits, logits_tta = answers_of(trained, images)
    predict_s = time.perf_counter() - began_s
    evaluation = evaluate(logits, torch.from_numpy(images.labels), images.classes, logits_tta)
    write_predictions(folder, images, logits)
    # As they are in the folder, so that whatever is made from them there is the same.
    answers = read_answers(folder, images.classes)
    assert answers is not None, "there is no empty image set"
    suspects = likely_label_errors(answers)
    _write_label_errors(folder, label_errors_csv(suspects))
    report = {
        "data": data,
        **evaluation.to_dict(),
        "label_errors": len(suspects),
        "duplicates": exact_duplicates(images, train).to_dict() if train else None,
        "precision": trained.precision,
    }
    if baseline:
        change, interval = baseline.change(evaluation)
        report["compared_with"] = baseline.compared_with(evaluation)
        report |= {"accuracy_change": change, "accuracy_change_ci95": list(interval)}
    if failed is not None:
        report["failed"] = [{"path": visible(str(file.path)), "reason": file.reason} for file in failed]
    write_json(folder.evaluation, report)
    write_mistakes(
        folder,
        images,
        answers,
        trained.network,
        trained.normalisation,
        device=trained.device,
        precision=trained.precision,
        layer=layer,
    )
    return Results(evaluation, predict_s)


def answers_of(trained: Trained, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Logits for all images, without and with test-time augmentation: twice (N, classes) float32 on the CPU.

    "flip" is the mean with the mirror image. "shift" asks about those images again of which the network is
    least certain: also about the image and its mirror image moved by one pixel up and left, and down and
    right, which count for half. Six views are from cifar10-airbench (arXiv:2404.00498), asking about
    uncertain images only from cifar10-speedrun (Hiverge, 2025).
    """
    answer = functools.partial(
        logits_of,
        trained.network,
        normalisation=trained.normalisation,
        device=trained.device,
        precision=trained.precision,
    )
    logits = answer(images)
    if trained.tta == "flip":
        return logits, (logits + answer(images, mirrored=True)) / 2
    certainty = logits.softmax(1).amax(1)
    unsure = certainty.argsort()[: math.ceil(UNSURE_SHARE * len(images))].sort().values
    asked = images.take(unsure.numpy())
    here = (logits[unsure] + answer(asked, mirrored=True)) / 2
    moved = [replace(asked, images_u8=shifted(asked.images_u8[:], pixels)) for pixels in (-1, 1)]
    there = [answer(views, mirrored=mirrored) for views in moved for mirrored in (False, True)]
    with_views = logits.clone()
    with_views[unsure] = here / 2 + torch.stack(there).mean(0) / 2
    return logits, with_views


def write_predictions(folder: RunFolder, images: ImageSet, logits: Tensor) -> None:
    """Write the answer for every image: predictions.csv and, as float16, probabilities.npy.

    Args:
        folder: of the run.
        images: that were answered.
        logits: (N, classes) float32.
    """
    probabilities = logits.softmax(1)
    losses = F.cross_entropy(logits, torch.from_numpy(images.labels), reduction="none")
    # By the logits, as all figures are: as float32 probabilities, two that are close may be equal.
    predictions = logits.argmax(1, keepdim=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    columns = (
        images.paths,
        images.labels.tolist(),
        predictions[:, 0].tolist(),
        probabilities.gather(1, predictions)[:, 0].tolist(),
        losses.tolist(),
    )
    for index, (path, label, prediction, probability, loss) in enumerate(zip(*columns, strict=True)):
        row = [path, images.classes[label], images.classes[prediction], f"{probability:.6g}", f"{loss:.6g}"]
        writer.writerow([index, *row])
    write_atomically(folder.predictions, text.getvalue())
    array = io.BytesIO()
    np.save(array, probabilities.numpy().astype(np.float16))
    write_atomically(folder.probabilities, array.getvalue())


def _write_label_errors(folder: RunFolder, content: str) -> None:
    """Write label_errors.csv, but never over labels that somebody has corrected in it."""
    if _is_corrected(folder):
        message = f"{folder.label_errors} holds corrected labels, so it was left as it is."
        warnings.warn(message, VelodromeWarning, stacklevel=2)
        return
    write_atomically(folder.label_errors, content)


def _is_corrected(folder: RunFolder) -> bool:
    """Whether label_errors.csv is there with other labels or columns in it than velodrome wrote."""
    path = folder.label_errors
    if not path.exists():
        return False
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if tuple(rows.fieldnames or ()) != LABEL_ERROR_COLUMNS:
                return True
            return any(row["label"] != row["given_label"] for row in rows)
    except (OSError, ValueError, KeyError, csv.Error):
        return True
