"""Finished run folders that the tests of comparisons make up."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from velodrome import recipes
from velodrome.config import override, to_yaml
from velodrome.evaluation.sprites import sprite
from velodrome.run.answers import COLUMNS
from velodrome.run.folder import HISTORY_COLUMNS, RunFolder

CLASSES = ("cat", "dog", "sea lion")
IMAGES = 60
SIDE = 8


def write_run(
    path: Path,
    *,
    seed: int = 0,
    wrong: Sequence[int] = (),
    images: int = IMAGES,
    classes: Sequence[str] = CLASSES,
    data: str = "shapes",
    version: str | None = None,
    epochs: int = 3,
    train_seconds: float = 10.0,
    finished_s: float | None = None,
    gallery: bool = False,
    **settings: object,
) -> Path:
    """A finished run that gets the images at `wrong` wrong; the labels go round the classes.

    Args:
        path: of the folder.
        seed: of the run.
        wrong: indices of images; each is taken for the class after its own.
        images: how many there are.
        classes: their names.
        data: what result.json calls the data.
        version: of velodrome; without it this one.
        epochs: rows of history.csv.
        train_seconds: in result.json.
        finished_s: when it finished, in seconds since 1970.
        gallery: write gallery/ with its mistakes.
        settings: other settings.
    """
    path.mkdir(parents=True)
    folder = RunFolder(path)
    config = override(recipes.quick(), {"lr": 0.1, "lr_min": 0.01, "lr_final": 0.01, "seed": seed} | settings)
    folder.config.write_text(to_yaml(replace(config, run=replace(config.run, name=None))), encoding="utf-8")
    about = {"velodrome": version or "0.1.0", "device_name": "CPU", "threads": 2}
    folder.environment.write_text(json.dumps(about), encoding="utf-8")
    accuracy = 1 - len(set(wrong)) / images
    write_history(folder, epochs, accuracy, train_seconds)
    write_answers(folder, wrong, images, classes)
    if gallery:
        write_gallery(folder, wrong)
    result = {
        "test_accuracy": accuracy,
        "test_accuracy_tta": accuracy,
        "test_loss": 1 - accuracy,
        "train_accuracy": accuracy,
        "train_loss": 1 - accuracy,
        "train_seconds": train_seconds,
        "epochs": epochs,
        "params": 1000,
        "seed": seed,
        "data": data,
        "recipe": "quick",
        "classes": list(classes),
    }
    folder.result.write_text(json.dumps(result), encoding="utf-8")
    if finished_s is not None:
        os.utime(folder.result, (finished_s, finished_s))
    return path


def write_history(folder: RunFolder, epochs: int, accuracy: float, seconds: float) -> None:
    """Epochs in which the accuracy comes nearer to its last value."""
    with folder.history.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HISTORY_COLUMNS)
        for epoch in range(1, epochs + 1):
            now = accuracy * epoch / epochs
            row = [epoch, seconds * epoch / epochs, 0.1, 1 - now, now, None, None, 1 - now, now, 100.0]
            writer.writerow(["" if value is None else value for value in row])


def write_answers(folder: RunFolder, wrong: Sequence[int], images: int, classes: Sequence[str]) -> None:
    """predictions.csv."""
    with folder.predictions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for index in range(images):
            label = classes[index % len(classes)]
            prediction = classes[(index + (index in wrong)) % len(classes)]
            writer.writerow([index, f"test/{index:05}.png", label, prediction, 0.9, 0.1])


def write_gallery(folder: RunFolder, wrong: Sequence[int]) -> None:
    """The mistakes; image i is of one colour, (i, 2 i, 3 i)."""
    folder.gallery.mkdir()
    pictures = np.zeros((len(wrong), SIDE, SIDE, 3), np.uint8)
    for picture, index in zip(pictures, wrong, strict=True):
        picture[:] = colour(index)
    folder.mistakes_image.write_bytes(sprite(pictures, 5))
    about = {"image_size": [SIDE, SIDE], "map_size": [4, 4], "columns": 5, "indices": list(wrong)}
    folder.mistakes.write_text(json.dumps(about), encoding="utf-8")


def colour(index: int) -> tuple[int, int, int]:
    """The colour of an image."""
    return index, 2 * index, 3 * index


def pixels_of(webp: bytes) -> np.ndarray:
    """(H, W, 3) uint8."""
    import io

    return np.asarray(Image.open(io.BytesIO(webp)).convert("RGB"))


def write_variants(place: Path, **variants: Sequence[Sequence[int]]) -> Path:
    """Runs of variants that differ in their cutout: for each name such as `cutout8` the mistakes by seed."""
    for name, runs in variants.items():
        for seed, wrong in enumerate(runs):
            cutout = int(name.removeprefix("cutout"))
            write_run(place / f"{name}-{seed}", seed=seed, wrong=wrong, cutout=cutout, gallery=True)
    return place
