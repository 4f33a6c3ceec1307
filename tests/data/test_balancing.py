"""Classes of unlike sizes: how often their images are drawn, and what they weigh."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from velodrome.config import AugmentSection
from velodrome.data.balancing import class_weights, draw_order
from velodrome.data.imageset import ImageSet, Normalisation
from velodrome.data.loader import Loader

BYTES = Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
MILD = AugmentSection(crop=1, flip=True, cutout=2)
CPU = torch.device("cpu")


def images_of(*counts: int) -> ImageSet:
    """So many images of each class; image i has the value i everywhere."""
    labels = np.repeat(np.arange(len(counts)), counts)
    values = (np.arange(len(labels)) % 256).astype(np.uint8)[:, None, None, None]
    return ImageSet(np.tile(values, (1, 6, 6, 3)), labels, tuple("abcdef"[: len(counts)]), [""] * len(labels))


def loader_of(images: ImageSet, balance: str, batch_size: int = 8, seed: int = 0) -> Loader:
    return Loader(images, BYTES, MILD, batch_size, seed, CPU, balance=balance)


# Sampling.


def test_each_class_is_as_likely_and_each_image_of_a_class():
    labels = images_of(30_000, 3_000, 300).labels
    order = draw_order(np.random.default_rng(0), labels, balanced=True)
    assert order.dtype == np.int64
    assert len(order) == len(labels)
    n = len(order)
    shares = np.bincount(labels[order]) / n
    assert np.abs(shares - 1 / 3).max() < 5 * (2 / 9 / n) ** 0.5
    for first, count in ((30_000, 3_000), (33_000, 300)):
        times = np.bincount(order, minlength=n)[first : first + count]
        expected = times.sum() / count
        assert ((times - expected) ** 2 / expected).sum() < count + 6 * (2 * count) ** 0.5


def test_a_class_without_images_is_never_drawn():
    loader = loader_of(images_of(40, 0, 8), "sampling")
    drawn = torch.cat([loader.epoch(0)[step][1] for step in range(loader.steps_per_epoch)])
    assert set(drawn.tolist()) == {0, 2}
    assert len(drawn) == 48


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        return loader_of(images_of(40, 8), "sampling", seed=seed).epoch(epoch).order.tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*pair)) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


def test_labels_go_with_their_images():
    images = images_of(40, 8)
    epoch = loader_of(images, "sampling").epoch(2)
    assert sorted(epoch.order.tolist()) != list(range(48))
    for step in range(len(epoch)):
        batch, labels = epoch[step]
        numbers = batch.amax((1, 2, 3)).round().long()
        assert torch.equal(labels, torch.from_numpy(images.labels)[numbers])


@pytest.mark.parametrize("balance", ["none", "sampling", "weights"])
@pytest.mark.parametrize("counts", [(16, 16, 16), (24, 0, 24), (48,)])
def test_classes_of_one_size_change_nothing(balance, counts):
    images = images_of(*counts)
    plain, balanced = loader_of(images, "none"), loader_of(images, balance)
    assert balanced.class_weights is None
    for step in range(plain.steps_per_epoch):
        (one, labels), (other, others) = plain.epoch(1)[step], balanced.epoch(1)[step]
        assert torch.equal(one, other)
        assert torch.equal(labels, others)


def test_weights_leave_the_order_alone():
    images = images_of(40, 8)
    assert torch.equal(loader_of(images, "weights").epoch(3).order, loader_of(images, "none").epoch(3).order)


# Weights.


def test_all_classes_weigh_as_much_and_an_image_1_in_the_mean():
    labels = images_of(60, 30, 10).labels
    weights = class_weights(labels, 3)
    assert weights.dtype == np.float32
    assert weights * [60, 30, 10] == pytest.approx([100 / 3] * 3)
    assert weights[labels].mean() == pytest.approx(1)


def test_a_class_without_images_weighs_nothing():
    labels = images_of(60, 0, 20).labels
    assert class_weights(labels, 4) == pytest.approx([80 / 120, 0, 2, 0])


def test_a_loader_has_weights_only_where_they_are_asked_for():
    images = images_of(30, 10)
    assert loader_of(images, "none").class_weights is None
    assert loader_of(images, "sampling").class_weights is None
    assert loader_of(images, "weights").class_weights.tolist() == pytest.approx([2 / 3, 2])
