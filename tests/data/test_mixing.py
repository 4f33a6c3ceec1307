"""Mixup and CutMix of whole batches against plain formulas, one image at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from velodrome.config import AugmentSection
from velodrome.data import augment as aug
from velodrome.data.imageset import ImageSet, Normalisation
from velodrome.data.loader import Loader
from velodrome.data.mixing import draw_mixing, main_labels, mix, soft_labels
from velodrome.errors import ConfigError

BYTES = Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
OFF = AugmentSection(crop=0, flip=False, cutout=0)
ALL = AugmentSection(brightness=0.2, contrast=0.3)
CPU = torch.device("cpu")
BOTH = [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)]


def table(n: int, mixup: float, cutmix: float, seed: int = 0, epoch: int = 0) -> Tensor:
    return torch.from_numpy(draw_mixing(n, mixup, cutmix, seed, epoch))


def batch_of(n: int, height: int = 12, width: int = 10) -> Tensor:
    images = torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))
    return images.to(memory_format=torch.channels_last)


def mixed_one(own: np.ndarray, partner: np.ndarray, row: list[float]) -> tuple[np.ndarray, float]:
    """An image (C, H, W) mixed with its partner, and the partner's share."""
    blend, edge, *place = row
    if edge == 0:
        return (1 - blend) * own + blend * partner, blend
    height, width = own.shape[1:]
    # Rounded half to even, in the precision of the table.
    sides = [int(np.round(np.float32(edge) * size)) for size in (height, width)]
    top, left = (
        min(int(np.float32(share) * (size - side + 1)), size - side)
        for share, size, side in zip(place, (height, width), sides, strict=True)
    )
    mixed = own.copy()
    mixed[:, top : top + sides[0], left : left + sides[1]] = partner[
        :, top : top + sides[0], left : left + sides[1]
    ]
    return mixed, sides[0] * sides[1] / (height * width)


@pytest.mark.parametrize(("mixup", "cutmix"), BOTH)
@pytest.mark.parametrize("n", [64, 63, 1])
def test_batches_are_mixed_image_by_image(mixup, cutmix, n):
    images, mixing, labels = batch_of(n), table(n, mixup, cutmix), torch.arange(n) % 5
    found, soft = mix(images, mixing), soft_labels(labels, mixing, 6, 12, 10)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == soft.dtype == torch.float32
    assert soft.shape == (n, 6)
    for number in range(n):
        partner = n - 1 - number
        expected, share = mixed_one(images[number].numpy(), images[partner].numpy(), mixing[number].tolist())
        np.testing.assert_allclose(found[number], expected, atol=1e-6)
        target = np.zeros(6)
        target[labels[number]] += 1 - share
        target[labels[partner]] += share
        np.testing.assert_allclose(soft[number], target, atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    edge=st.floats(0, 1, width=32),
    y=st.floats(0, 1, width=32),
    x=st.floats(0, 1, width=32),
)
def test_a_rectangle_lies_inside_and_its_share_is_that_of_its_pixels(height, width, edge, y, x):
    images = torch.cat([torch.zeros(1, 1, height, width), torch.ones(1, 1, height, width)])
    mixing = torch.tensor([[0, edge, y, x], [0, 0, 0, 0]], dtype=torch.float32)
    pixels = int(mix(images, mixing)[0].sum())
    assert pixels == round(float(np.round(np.float32(edge) * height))) * round(
        float(np.round(np.float32(edge) * width))
    )
    share = soft_labels(torch.tensor([0, 1]), mixing, 2, height, width)[0, 1]
    assert float(share) == pytest.approx(pixels / (height * width), abs=1e-6)


def test_what_is_put_in_is_not_changed():
    """Not even by rounding."""
    images = batch_of(32)
    mixing = table(32, 0.0, 1.0)
    found, partners = mix(images, mixing), images.flip(0)
    assert ((found == images) | (found == partners)).all()
    assert torch.equal(mix(images, torch.zeros(32, 4)), images)


# Tables.


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_a_beta_distribution(alpha):
    n = 50_000
    variance = 1 / (4 * (2 * alpha + 1))
    for shares in (table(n, alpha, 0)[:, 0], table(n, 0, alpha)[:, 1].square()):
        assert float(shares.mean()) == pytest.approx(0.5, abs=5 * (variance / n) ** 0.5)
        assert float(shares.var()) == pytest.approx(variance, rel=0.03)
        assert 0 <= shares.min() <= shares.max() <= 1


def test_with_both_a_coin_decides():
    n = 40_000
    both = table(n, 0.7, 1.0)
    rectangles = both[:, 1] > 0
    assert abs(int(rectangles.sum()) - n / 2) < 5 * (n / 4) ** 0.5
    assert (both[rectangles, 0] == 0).all()
    assert (both[~rectangles, 0] > 0).all()
    # Those that are mixed in one way are mixed as with that way alone.
    assert torch.equal(both[~rectangles, 0], table(n, 0.7, 0)[~rectangles, 0])
    assert torch.equal(both[rectangles], table(n, 0, 1.0)[rectangles])


def test_tables_depend_on_seed_and_epoch_alone():
    assert torch.equal(table(64, 0.4, 1.0, 1, 2), table(64, 0.4, 1.0, 1, 2))
    first = table(64, 0.4, 1.0, 1, 2)
    assert not any(torch.equal(first, table(64, 0.4, 1.0, *other)) for other in ((1, 3), (2, 2)))


def test_other_streams_stay_as_they_were():
    without = aug.draw_tables(64, 32, 32, ALL, seed=5, epoch=1)
    mixed = aug.draw_tables(64, 32, 32, replace(ALL, mixup=0.2, cutmix=1.0), seed=5, epoch=1)
    assert without.mixing is None
    for name in ("crop_yx", "flip", "cutout_yx", "colour"):
        assert torch.equal(getattr(without, name), getattr(mixed, name))


# Batches.


def loader_of(images: ImageSet, augment: AugmentSection, batch_size: int = 8) -> Loader:
    return Loader(images, BYTES, augment, batch_size, 3, CPU, epochs=2)


@pytest.mark.parametrize(("mixup", "cutmix"), BOTH)
def test_a_batch_is_mixed_after_all_else(coloured_images, mixup, cutmix):
    images = coloured_images(22)
    augment = AugmentSection(crop=1, cutout=3, mixup=mixup, cutmix=cutmix)
    mixed = loader_of(images, augment).epoch(1)
    plain = loader_of(images, replace(augment, mixup=0.0, cutmix=0.0)).epoch(1)
    for step in range(3):  # of 8, 8 and 6 images
        (found, soft), (whole, labels) = mixed[step], plain[step]
        rows = mixed.tables.mixing[8 * step : 8 * step + 8]
        assert torch.equal(found, mix(whole, rows))
        assert torch.equal(soft, soft_labels(labels, rows, 3, 8, 8))
        assert soft.sum(1) == pytest.approx(1.0)
        assert labels.dtype == torch.int64


def test_scaled_batches_count_their_own_pixels(coloured_images):
    loader = loader_of(coloured_images(20), replace(OFF, cutmix=1.0, resolutions="5:1,8:1"))
    epoch = loader.epoch(0)
    images, soft = epoch[0]
    assert images.shape[2:] == (5, 5)
    shares = 25 * soft
    torch.testing.assert_close(shares, shares.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_an_image_alone_has_no_partner(coloured_images, key):
    with pytest.raises(ConfigError, match=rf"{key} is 0\.2, but batch_size is 1, .* --{key} 0"):
        loader_of(coloured_images(4), replace(OFF, **{key: 0.2}), 1)


def test_main_labels_are_the_larger_shares():
    assert main_labels(torch.tensor([[0.4, 0.6], [0.9, 0.1]])).tolist() == [1, 0]
    labels = torch.tensor([3, 1])
    assert main_labels(labels) is labels


def test_cross_entropy_of_shares_is_the_mean_of_both():
    """The loss of a mixed image is that of its two labels, in their shares; also with smoothing."""
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    labels, mixing = torch.arange(8) % 4, table(8, 0.5, 0.0)
    soft = soft_labels(labels, mixing, 4, 8, 8)
    for smoothing in (0.0, 0.1):
        own = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        other = F.cross_entropy(logits, labels.flip(0), reduction="none", label_smoothing=smoothing)
        expected = ((1 - mixing[:, 0]) * own + mixing[:, 0] * other).mean()
        torch.testing.assert_close(F.cross_entropy(logits, soft, label_smoothing=smoothing), expected)
