"""Small data sets on disk, drawn for tests of own images."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from velodrome.data.imageset import ImageSet
from velodrome.data.shapes import draw_shapes


def write_folders(images: ImageSet, folder: Path, suffix: str = ".png") -> None:
    """Each image as a file in the folder of its class."""
    for number, (image, label) in enumerate(zip(images.images_u8, images.labels, strict=True)):
        path = folder / images.classes[label] / f"{number:05}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def write_table(parts: dict[str, ImageSet], folder: Path) -> Path:
    """All images as PNG files with a table of path, label and split, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split, images in parts.items():
            for number, (image, label) in enumerate(zip(images.images_u8, images.labels, strict=True)):
                name = f"{split}-{number:05}.png"
                Image.fromarray(image).save(folder / name)
                writer.writerow([name, images.classes[label], split])
    return path


def shapes_folder(folder: Path, train: int = 200, test: int = 50) -> Path:
    """Drawn shapes in train/ and test/."""
    write_folders(draw_shapes(train, 0, "train"), folder / "train")
    write_folders(draw_shapes(test, 0, "test"), folder / "test")
    return folder


def textures(
    folder: Path,
    per_class: int = 40,
    classes: Sequence[str] = ("stripes", "dots", "waves"),
    sides: tuple[int, int] = (90, 200),
) -> Path:
    """Photos in miniature: JPEG files of many sizes, with a pattern of some colour and scale."""
    rng = np.random.default_rng(1)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            height, width = rng.integers(*sides, 2)
            y, x = np.mgrid[:height, :width]
            angle, scale = rng.uniform(0, np.pi), rng.uniform(5, 12)
            u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            pattern = {
                "stripes": np.sin(u * 2 * np.pi / scale) > 0,
                "dots": (np.sin(u * np.pi / scale) * np.sin(v * np.pi / scale)) > 0.5,
                "waves": np.sin((u + scale * np.sin(v / scale)) * 2 * np.pi / scale) > 0,
            }[name]
            dark, light = rng.uniform(0, 110, 3), rng.uniform(140, 255, 3)
            image = np.where(pattern[..., None], light, dark) + rng.normal(0, 12, (height, width, 3))
            path = folder / name / f"{number:03}.jpg"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return folder
