"""The pictures in a run folder: samples of the training images, and the mistakes with their Grad-CAM maps."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from velodrome.data.augment import normalise
from velodrome.data.imageset import ImageSet, ImagesU8, Normalisation
from velodrome.data.loader import Loader
from velodrome.evaluation.gradcam import DEFAULT_LAYER, gradcam
from velodrome.evaluation.mistakes import best_of_each_class, choose_for_gallery
from velodrome.run.answers import Answers
from velodrome.run.folder import RunFolder, write_atomically, write_json, writing

SAMPLES_PER_CLASS = 10
AUGMENTED_IMAGES = 40
SPRITE_COLUMNS = 40
MOST_MISTAKES = 1500
FEWEST_MISTAKES = 500
# Of 32x32 pixels, this many take about 3.4 MB, so that a page with all of them stays below 6 MB.
MOST_IMAGES = 2000
BEST_OF_A_CLASS = 3


def write_samples(folder: RunFolder, images: ImageSet, loader: Loader) -> None:
    """Write the first images of each class, and the first batch as the network sees it.

    Args:
        folder: of the run.
        images: to train on.
        loader: of these images.

    Raises:
        RunError: the folder cannot be written.
    """
    chosen = samples_of_each_class(images)
    _, height, width, _ = images.images_u8.shape
    rows = np.zeros((len(chosen), SAMPLES_PER_CLASS, height, width, 3), np.uint8)
    for row, indices in zip(rows, chosen, strict=True):
        row[: len(indices)] = images.images_u8[indices]
    augmented, labels = augmented_batch(loader)
    _make_room(folder, folder.samples)
    write_atomically(folder.samples_image, sprite(rows.reshape(-1, height, width, 3), SAMPLES_PER_CLASS))
    write_atomically(folder.augmented_image, sprite(augmented, SAMPLES_PER_CLASS))
    about = {
        "image_size": [height, width],
        "classes": list(images.classes),
        "columns": SAMPLES_PER_CLASS,
        "counts": [len(indices) for indices in chosen],
        "augmented": {
            "image_size": list(augmented.shape[1:3]),
            "columns": SAMPLES_PER_CLASS,
            "labels": [images.classes[label] for label in labels.tolist()],
        },
    }
    write_json(folder.samples, about)


def _make_room(folder: RunFolder, about: Path) -> None:
    """Make the folder, and remove what tells of the pictures that are about to be replaced."""
    with writing(folder.gallery):
        folder.gallery.mkdir(exist_ok=True)
        about.unlink(missing_ok=True)


def samples_of_each_class(images: ImageSet) -> list[NDArray[np.int64]]:
    """Indices of the first images of each class, at most ten of each."""
    labels = range(len(images.classes))
    return [np.flatnonzero(images.labels == label)[:SAMPLES_PER_CLASS] for label in labels]


def augmented_batch(loader: Loader) -> tuple[ImagesU8, NDArray[np.int64]]:
    """The first images as the network sees them in the first epoch, at most 40, and their labels."""
    batch, labels = loader.epoch(0)[0]
    images_u8 = denormalise(batch[:AUGMENTED_IMAGES], loader.normalisation)
    return images_u8, labels[:AUGMENTED_IMAGES].cpu().numpy()


def write_mistakes(
    folder: RunFolder,
    images: ImageSet,
    answers: Answers,
    network: nn.Module,
    normalisation: Normalisation,
    *,
    device: torch.device,
    precision: str,
    layer: str = DEFAULT_LAYER,
) -> None:
    """Write the mistakes, and the best answers of each class, as images and Grad-CAM maps.

    Args:
        folder: of the run.
        images: that were answered.
        answers: for these images; where there are more mistakes than the gallery holds, every confused pair
            keeps its share.
        network: on `device`.
        normalisation: of the training images.
        device: where to compute the maps.
        precision: "fp32", "bf16" or "fp16".
        layer: the stage whose maps to show.

    Raises:
        ConfigError: the network has no such stage.
        RunError: the folder cannot be written.
    """
    of_classes = (SAMPLES_PER_CLASS + BEST_OF_A_CLASS) * len(answers.classes)
    most = min(MOST_MISTAKES, max(FEWEST_MISTAKES, MOST_IMAGES - of_classes))
    mistakes = choose_for_gallery(answers, most)
    indices = np.concatenate([mistakes, best_of_each_class(answers, BEST_OF_A_CLASS)])
    shown = images.images_u8[indices]
    targets = np.stack([answers.predictions[indices], answers.labels[indices]], 1)
    maps = maps_of(network, shown, targets, normalisation, device=device, precision=precision, layer=layer)
    array = io.BytesIO()
    np.save(array, as_bytes(maps))
    _make_room(folder, folder.mistakes)
    write_atomically(folder.mistakes_image, sprite(shown, SPRITE_COLUMNS))
    write_atomically(folder.maps, array.getvalue())
    about = {
        "layer": layer,
        "image_size": list(shown.shape[1:3]),
        "map_size": list(maps.shape[2:]),
        "mistakes": len(answers.wrong),
        "columns": SPRITE_COLUMNS,
        "indices": indices.tolist(),
    }
    write_json(folder.mistakes, about)


def maps_of(
    network: nn.Module,
    images_u8: ImagesU8,
    targets: NDArray[np.int64],
    normalisation: Normalisation,
    *,
    device: torch.device,
    precision: str,
    layer: str = DEFAULT_LAYER,
) -> NDArray[np.float32]:
    """Grad-CAM of raw images: (N, H, W, 3) uint8 and (N, K) int64 classes -> (N, K, h, w) float32.

    Raises:
        ConfigError: the network has no such stage.
    """
    batch = normalise(torch.from_numpy(images_u8).to(device), normalisation)
    maps = gradcam(network, batch, torch.from_numpy(targets).to(device), layer=layer, precision=precision)
    return maps.cpu().numpy()


def as_bytes(maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each map scaled so that its own maximum is 255; one that is zero everywhere stays zero."""
    most = maps.max((-2, -1), keepdims=True)
    shares = np.divide(maps, most, out=np.zeros_like(maps), where=most > 0)
    levels: NDArray[np.uint8] = np.rint(255 * shares).astype(np.uint8)
    return levels


def denormalise(images: Tensor, normalisation: Normalisation) -> ImagesU8:
    """Normalised images as they look: (N, 3, H, W) float -> (N, H, W, 3) uint8."""
    mean, std = torch.tensor([normalisation.mean, normalisation.std], device=images.device)
    pixels = images.permute(0, 2, 3, 1).float() * std + mean
    images_u8: ImagesU8 = (255 * pixels).round().clamp(0, 255).byte().cpu().numpy()
    return images_u8


def sprite(images_u8: ImagesU8, columns: int) -> bytes:
    """All images in one, `columns` in a row, as a lossless WebP file: (N, H, W, 3) uint8."""
    n, height, width, _ = images_u8.shape
    rows = max(1, -(-n // columns))
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:n] = images_u8
    grid = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)  # (rows, H, columns, W, 3)
    file = io.BytesIO()
    Image.fromarray(grid.reshape(rows * height, columns * width, 3)).save(file, "WEBP", lossless=True)
    return file.getvalue()
