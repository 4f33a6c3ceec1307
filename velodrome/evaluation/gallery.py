"""The pictures in a run folder: samples of the training images, and the mistakes with their Grad-CAM maps."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from velodrome.data.augment import normalise
from velodrome.data.imageset import ImageSet, ImagesU8, Normalisation
from velodrome.data.loader import Loader
from velodrome.data.mixing import main_labels
from velodrome.evaluation.gradcam import DEFAULT_LAYER, gradcam
from velodrome.evaluation.mistakes import best_of_each_class, choose_for_gallery
from velodrome.evaluation.predict import at_once
from velodrome.evaluation.sprites import (
    LARGEST_WITHOUT_LOSS,
    Plan,
    columns_for,
    plan_page,
    sprite,
    tile_of,
    tiles,
)
from velodrome.run.answers import Answers
from velodrome.run.folder import RunFolder, write_atomically, write_json, writing

SAMPLES_PER_CLASS = 10
AUGMENTED_IMAGES = 40
SPRITE_COLUMNS = 40
# Images of 32 x 32 pixels that are looked at together; a multiple of the batches that their maps are made in.
BLOCK = 500
# Of an image made smaller, a map has one position for so many pixels, as that of layer2 has of a whole one.
PIXELS_A_POSITION = 4


def write_samples(folder: RunFolder, images: ImageSet, loader: Loader) -> None:
    """Write the first images of each class, and the first batch as the network sees it.

    Args:
        folder: of the run.
        images: to train on.
        loader: of these images.

    Raises:
        RunError: the folder cannot be written.
    """
    _, height, width, _ = images.images_u8.shape
    plan = plan_page(len(images.classes), (height, width))
    chosen = samples_of_each_class(images, plan.samples)[: plan.classes]
    rows = np.zeros((len(chosen), plan.samples, *plan.tile, 3), np.uint8)
    for row, indices in zip(rows, chosen, strict=True):
        row[: len(indices)] = tiles(images.images_u8[indices], plan.tile)
    columns = plan.samples * columns_for(len(rows), plan.tile[0])
    augmented, labels = augmented_batch(loader)
    seen = tiles(augmented, tile_of(augmented.shape[1:3]))
    _make_room(folder, folder.samples)
    sheet = sprite(rows.reshape(-1, *plan.tile, 3), columns, lossless=plan.is_lossless)
    write_atomically(folder.samples_image, sheet)
    write_atomically(folder.augmented_image, sprite(seen, SAMPLES_PER_CLASS, lossless=_is_small(augmented)))
    about = {
        "image_size": list(plan.tile),
        "classes": list(images.classes[: plan.classes]),
        "all_classes": len(images.classes),
        "columns": columns,
        "samples": plan.samples,
        "counts": [len(indices) for indices in chosen],
        "augmented": {
            "image_size": list(seen.shape[1:3]),
            "columns": SAMPLES_PER_CLASS,
            "labels": [images.classes[label] for label in labels.tolist()],
        },
    }
    write_json(folder.samples, about)


def _is_small(images_u8: ImagesU8) -> bool:
    """Whether nothing is lost of images of this size, (N, H, W, 3)."""
    _, height, width, _ = images_u8.shape
    return bool(max(height, width) <= LARGEST_WITHOUT_LOSS)


def _make_room(folder: RunFolder, about: Path) -> None:
    """Make the folder, and remove what tells of the pictures that are about to be replaced."""
    with writing(folder.gallery):
        folder.gallery.mkdir(exist_ok=True)
        about.unlink(missing_ok=True)


def samples_of_each_class(images: ImageSet, n: int = SAMPLES_PER_CLASS) -> list[NDArray[np.int64]]:
    """Indices of the first `n` images of each class, or as many as there are."""
    labels = range(len(images.classes))
    return [np.flatnonzero(images.labels == label)[:n] for label in labels]


def augmented_batch(loader: Loader) -> tuple[ImagesU8, NDArray[np.int64]]:
    """The first images as the network sees them in the first epoch, at most 40, and their labels.

    Where images are mixed, the label is the class with the larger share.
    """
    batch, labels = loader.epoch(0)[0]
    images_u8 = denormalise(batch[:AUGMENTED_IMAGES], loader.normalisation)
    return images_u8, main_labels(labels[:AUGMENTED_IMAGES]).cpu().numpy()


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
            keeps its share. The larger the images, the fewer it holds, and the smaller it shows them.
        network: on `device`.
        normalisation: of the training images.
        device: where to compute the maps.
        precision: "fp32", "bf16" or "fp16".
        layer: the stage whose maps to show.

    Raises:
        ConfigError: the network has no such stage.
        RunError: the folder cannot be written.
    """
    _, height, width, _ = images.images_u8.shape
    plan = plan_page(len(answers.classes), (height, width))
    best = best_of_each_class(answers, plan.best)
    best = best[answers.labels[best] < plan.classes]
    indices = np.concatenate([choose_for_gallery(answers, plan.mistakes), best])

    def shown(part: NDArray[np.int64]) -> tuple[ImagesU8, NDArray[np.uint8]]:
        large = images.images_u8[part]
        targets = np.stack([answers.predictions[part], answers.labels[part]], 1)
        maps = maps_of(
            network, large, targets, normalisation, device=device, precision=precision, layer=layer
        )
        return tiles(large, plan.tile), as_bytes(maps if plan.is_lossless else _coarse(maps, plan))

    block = at_once(BLOCK, (height, width), device)
    parts = [shown(indices[start : start + block]) for start in range(0, max(1, len(indices)), block)]
    pictures, maps = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    array = io.BytesIO()
    np.save(array, maps)
    _make_room(folder, folder.mistakes)
    write_atomically(folder.mistakes_image, sprite(pictures, SPRITE_COLUMNS, lossless=plan.is_lossless))
    write_atomically(folder.maps, array.getvalue())
    about = {
        "layer": layer,
        "image_size": list(plan.tile),
        "map_size": list(maps.shape[2:]),
        "mistakes": len(answers.wrong),
        "columns": SPRITE_COLUMNS,
        "indices": indices.tolist(),
    }
    write_json(folder.mistakes, about)


def _coarse(maps: NDArray[np.float32], plan: Plan) -> NDArray[np.float32]:
    """Maps with at most as many positions as can be told apart in a tile: (N, K, h, w) float32."""
    height, width = (
        min(now, -(-side // PIXELS_A_POSITION)) for now, side in zip(maps.shape[2:], plan.tile, strict=True)
    )
    coarse: NDArray[np.float32] = adaptive_avg_pool2d(torch.from_numpy(maps), (height, width)).numpy()
    return coarse


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
