"""Saturation and hue of whole batches against the standard library, one pixel at a time."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from velodrome.config import AugmentSection
from velodrome.data import augment as aug
from velodrome.data.colour import GREY, saturate, turn_hue
from velodrome.data.imageset import Normalisation

CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
# With these constants a normalised pixel is one from 0 to 1.
SHARES = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OFF = AugmentSection(crop=0, flip=False, cutout=0)
COLOURED = AugmentSection(brightness=0.2, contrast=0.3)


def shares_of(images: Tensor, normalisation: Normalisation) -> np.ndarray:
    """Normalised (N, 3, H, W) -> (N, H, W, 3) from 0 to 1."""
    return images.permute(0, 2, 3, 1).numpy() * normalisation.std + np.array(normalisation.mean)


@pytest.mark.parametrize("normalisation", [CIFAR10, SHARES])
def test_hue_turns_as_in_hsv(random_images, normalisation):
    images = random_images(12, 6, 5)
    images[0] = images[0, ..., :1]  # grey, which has no hue
    turns = torch.linspace(-0.5, 0.5, 12)
    batch = aug.normalise(torch.from_numpy(images), normalisation)
    found = turn_hue(batch, turns, normalisation)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == torch.float32
    for image, one, turn in zip(images / 255, shares_of(found, normalisation), turns.tolist(), strict=True):
        for pixel, result in zip(image.reshape(-1, 3), one.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            assert result == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=1e-5)


def test_a_third_of_the_circle_swaps_the_channels(random_images):
    batch = aug.normalise(torch.from_numpy(random_images(4)), SHARES)
    found = turn_hue(batch, torch.full((4,), 1 / 3), SHARES)
    torch.testing.assert_close(found, batch[:, [2, 0, 1]], atol=1e-5, rtol=0)


def test_hue_takes_pixels_beyond_white():
    """Brightness is not clipped, so that there are such."""
    pixels = torch.tensor([1.6, 0.4, -0.2]).view(1, 3, 1, 1)
    found = turn_hue(pixels, torch.tensor([1 / 3]), SHARES)
    assert found.flatten().tolist() == pytest.approx([-0.2, 1.6, 0.4], abs=1e-5)


@pytest.mark.parametrize("normalisation", [CIFAR10, SHARES])
def test_saturation_stretches_around_each_pixels_grey(random_images, normalisation):
    images = random_images(9, 6, 5)
    factors = torch.linspace(0, 2, 9)
    found = saturate(aug.normalise(torch.from_numpy(images), normalisation), factors, normalisation)
    shares = images / 255
    greys = (shares * GREY).sum(3, keepdims=True)
    expected = greys + factors.numpy()[:, None, None, None] * (shares - greys)
    np.testing.assert_allclose(shares_of(found, normalisation), expected, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_without_either_batches_are_bit_for_bit_what_they_were(random_images):
    images = torch.from_numpy(random_images(20, 16, 16))
    tables = aug.draw_tables(20, 16, 16, COLOURED, seed=1, epoch=0)
    assert tables.tint is None
    cropped = aug.flip(aug.crop(images, tables.crop_yx, 4, "zero"), tables.flip)
    coloured = aug.recolour(aug.normalise(cropped, CIFAR10), tables.colour, CIFAR10)
    expected = aug.cutout(coloured, tables.cutout_yx, 8)
    assert torch.equal(aug.apply(images, tables, COLOURED, CIFAR10), expected)


@pytest.mark.parametrize(("saturation", "hue"), [(0.4, 0.0), (0.0, 0.1), (0.4, 0.1)])
def test_apply_turns_and_saturates_after_contrast(random_images, saturation, hue):
    images = torch.from_numpy(random_images(20, 8, 8))
    augment = replace(OFF, brightness=0.1, contrast=0.2, saturation=saturation, hue=hue)
    tables = aug.draw_tables(20, 8, 8, augment, seed=1, epoch=0)
    expected = aug.recolour(aug.normalise(images, CIFAR10), tables.colour, CIFAR10)
    expected = saturate(expected, tables.tint[:, 0], CIFAR10)
    expected = turn_hue(expected, tables.tint[:, 1], CIFAR10)
    found = aug.apply(images, tables, augment, CIFAR10)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# Tables.


def test_factors_and_turns_fill_their_range():
    n = 20_000
    tint = aug.draw_tables(n, 32, 32, replace(OFF, saturation=0.4, hue=0.1), seed=0, epoch=0).tint
    assert (tint.dtype, tint.shape) == (torch.float32, (n, 2))
    share = (tint - torch.tensor([1.0, 0.0])) / torch.tensor([0.4, 0.1])  # uniform in [-1, 1]
    assert share.abs().max() <= 1 + 1e-5
    assert share.mean(0).abs().max() < 5 / (3 * n) ** 0.5
    assert (share.square().mean(0) - 1 / 3).abs().max() < 0.02
    only_hue = aug.draw_tables(n, 32, 32, replace(OFF, hue=0.1), seed=0, epoch=0).tint
    assert only_hue[:, 0].eq(1).all()
    assert torch.equal(only_hue[:, 1], tint[:, 1])


def test_other_streams_stay_as_they_were():
    without = aug.draw_tables(64, 32, 32, COLOURED, seed=5, epoch=1)
    tinted = aug.draw_tables(64, 32, 32, replace(COLOURED, saturation=0.2, hue=0.1), seed=5, epoch=1)
    for name in ("crop_yx", "flip", "cutout_yx", "colour"):
        assert torch.equal(getattr(without, name), getattr(tinted, name))
    assert abs(float(torch.corrcoef(torch.cat([tinted.tint, tinted.colour], 1).T)[0, 2])) < 0.9
