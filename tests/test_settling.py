"""What "auto" becomes once the images are known."""

import numpy as np
import pytest

from velodrome.config import Config, override
from velodrome.data.imageset import ImageSet, Splits
from velodrome.recipes import folder
from velodrome.settling import balance_for, batch_for, epochs_for, settle


def images(counts: list[int], side: int = 32) -> ImageSet:
    labels = np.repeat(np.arange(len(counts)), counts)
    classes = tuple(f"class {number}" for number in range(len(counts)))
    pixels = np.zeros((len(labels), side, side, 3), np.uint8)
    return ImageSet(pixels, labels, classes, [str(number) for number in range(len(labels))])


def splits(counts: list[int], side: int = 32, val: bool = True) -> Splits:
    return Splits("own", images(counts, side), images([1, 1], side) if val else None, images([1, 1], side))


@pytest.mark.parametrize(
    ("n", "batch"), [(5, 5), (20, 16), (160, 16), (400, 16), (1000, 32), (10_000, 256), (10**6, 512)]
)
def test_batches_leave_twenty_steps_an_epoch(n: int, batch: int) -> None:
    assert batch_for(n) == batch


@pytest.mark.parametrize(("n", "epochs"), [(10, 60), (2500, 48), (10_000, 24), (40_000, 12), (10**6, 8)])
def test_fewer_images_get_more_epochs(n: int, epochs: int) -> None:
    assert epochs_for(n) == epochs


def test_only_very_unlike_classes_are_balanced() -> None:
    assert balance_for(images([50, 10])) == "none"
    assert balance_for(images([51, 10])) == "sampling"


def test_everything_is_settled_by_the_images() -> None:
    config = settle(folder(data="photos"), splits([300, 20], side=48))
    assert config.data.image_size == 48
    assert config.data.val_fraction == 0.1
    assert (config.augment.crop, config.augment.cutout) == (6, 12)
    assert (config.train.batch_size, config.train.epochs, config.train.balance) == (16, 60, "sampling")
    assert settle(config, splits([300, 20], side=48)) == config


def test_what_was_given_stays() -> None:
    given = {"batch_size": 3, "epochs": 2, "crop": 1, "cutout": 0, "val_fraction": 0.2, "balance": "weights"}
    config = settle(override(folder(data="photos"), given), splits([30, 2]))
    assert (config.train.batch_size, config.train.epochs, config.train.balance) == (3, 2, "weights")
    assert (config.augment.crop, config.augment.cutout, config.data.val_fraction) == (1, 0, 0.2)


def test_without_validation_images_the_share_is_none() -> None:
    assert settle(folder(data="photos"), splits([30, 20], val=False)).data.val_fraction == 0


def test_other_recipes_stay_as_they_are() -> None:
    before = Config()
    after = settle(before, splits([600, 600]))
    assert after == override(before, {"image_size": 32})
