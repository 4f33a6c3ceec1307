"""A part of CIFAR-10 as PNG files in folders of classes, which stands for a user's own images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from velodrome.config import DataSection
from velodrome.data.imageset import ImageSet
from velodrome.data.sources import load_splits


def write_folders(data_root: Path | None, train: int, test: int, place: Path) -> Path:
    """Write the first images to `place`/data/train/CLASS and `place`/data/test/CLASS; returns `place`/data.

    Args:
        data_root: where CIFAR-10 lies.
        train: how many images to train on.
        test: how many to test on.
        place: an empty folder.

    Raises:
        DataError: there is no CIFAR-10.
    """
    data = DataSection(data_root=data_root, limit_train=train, limit_test=test)
    splits = load_splits(data, seed=0, progress=False)
    for split, images in (("train", splits.train), ("test", splits.test)):
        _write(images, place / "data" / split)
    return place / "data"


def _write(images: ImageSet, place: Path) -> None:
    for name in images.classes:
        (place / name).mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images.images_u8, images.labels, strict=True)):
        Image.fromarray(np.asarray(image)).save(place / images.classes[label] / f"{number:05}.png")
