"""Settings that wait for the data: what "auto" becomes once the images are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np

from velodrome.config import AugmentSection, Config, DataSection, TrainSection, check, is_auto
from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.sources import VALIDATION_SHARE
from velodrome.errors import ConfigError

# Steps that an epoch has at least, unless batches would get smaller than the smallest.
STEPS_AN_EPOCH = 20
SMALLEST_BATCH, LARGEST_BATCH = 16, 512
# The reference recipe's 24 epochs, for so many images; a quarter of them gets twice the epochs.
USUAL_EPOCHS, USUAL_IMAGES = 24, 10_000
FEWEST_EPOCHS, MOST_EPOCHS = 8, 60
# Of 32 pixels, the reference recipe's crop has 4 and its cutout 8.
CROP_SHARE, CUTOUT_SHARE = 1 / 8, 1 / 4
# Rare classes are drawn more often where the largest class has over so many times the images of the smallest.
MOST_IMBALANCE = 5


def settle(config: Config, splits: Splits) -> Config:
    """The config with a value in the place of every "auto" that depends on the images.

    Args:
        config: with or without them.
        splits: the images of the run.

    Raises:
        ConfigError: the settings contradict one another.
    """
    if config.train.early_stop is not None and not splits.val:
        raise ConfigError(
            f"early_stop is {config.train.early_stop}, but there are no validation images to stop by.",
            "Hold some out with --val-fraction 0.1.",
        )
    return check(
        replace(
            config,
            data=_data(config.data, splits),
            augment=_augment(config.augment, splits.side),
            train=_train(config.train, splits.train),
        )
    )


def _data(data: DataSection, splits: Splits) -> DataSection:
    share = data.val_fraction
    if is_auto(share):
        share = VALIDATION_SHARE if splits.val else 0.0
    return replace(data, image_size=splits.side, val_fraction=share)


def _augment(augment: AugmentSection, side: int) -> AugmentSection:
    crop = round(side * CROP_SHARE) if is_auto(augment.crop) else augment.crop
    cutout = round(side * CUTOUT_SHARE) if is_auto(augment.cutout) else augment.cutout
    return replace(augment, crop=crop, cutout=cutout)


def _train(train: TrainSection, images: ImageSet) -> TrainSection:
    batch_size = batch_for(len(images)) if is_auto(train.batch_size) else train.batch_size
    epochs = epochs_for(len(images)) if is_auto(train.epochs) else train.epochs
    balance = balance_for(images) if train.balance == "auto" else train.balance
    return replace(train, batch_size=batch_size, epochs=epochs, balance=balance)


def batch_for(images: int) -> int:
    """The largest power of two that leaves 20 steps an epoch, from 16 to 512, and never above `images`."""
    wanted = 1 << max(0, math.floor(math.log2(images / STEPS_AN_EPOCH)))
    return min(max(wanted, SMALLEST_BATCH), LARGEST_BATCH, images)


def epochs_for(images: int) -> int:
    """24 epochs for 10,000 images, and with the root of their number more for fewer, from 8 to 60."""
    wanted = round(USUAL_EPOCHS * math.sqrt(USUAL_IMAGES / images))
    return min(max(wanted, FEWEST_EPOCHS), MOST_EPOCHS)


def balance_for(images: ImageSet) -> Literal["none", "sampling"]:
    """What "auto" becomes: "sampling" where one class has over five times as many images as another."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    return "sampling" if counts.max() > MOST_IMBALANCE * counts.min() else "none"
