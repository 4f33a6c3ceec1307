"""The answers for every image, written down in the run folder."""

from __future__ import annotations

import csv
import io

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from velodrome.data.imageset import ImageSet
from velodrome.run.folder import RunFolder, write_atomically


def write_predictions(folder: RunFolder, images: ImageSet, logits: Tensor) -> None:
    """Write the answer for every image: predictions.csv and, as float16, probabilities.npy.

    Args:
        folder: of the run.
        images: that were answered.
        logits: (N, classes) float32.
    """
    probabilities = logits.softmax(1)
    losses = F.cross_entropy(logits, torch.from_numpy(images.labels), reduction="none")
    best = probabilities.max(1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "path", "label", "prediction", "probability", "loss"])
    columns = (
        images.paths,
        images.labels.tolist(),
        best.indices.tolist(),
        best.values.tolist(),
        losses.tolist(),
    )
    for index, (path, label, prediction, probability, loss) in enumerate(zip(*columns, strict=True)):
        row = [path, images.classes[label], images.classes[prediction], f"{probability:.6g}", f"{loss:.6g}"]
        writer.writerow([index, *row])
    write_atomically(folder.predictions, text.getvalue())
    array = io.BytesIO()
    np.save(array, probabilities.numpy().astype(np.float16))
    write_atomically(folder.probabilities, array.getvalue())
