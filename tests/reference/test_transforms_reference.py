"""Augmentation of whole batches against torchvision's transforms of single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from velodrome.config import AugmentSection
from velodrome.data import augment as aug
from velodrome.data.imageset import Normalisation

# Beside a CPU build of torch, the ordinary wheel of torchvision raises RuntimeError at import.
transforms = pytest.importorskip("torchvision.transforms.v2.functional", exc_type=(ImportError, RuntimeError))

N = 64
CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
MODES = {"zero": "constant", "reflect": "reflect"}


def crop_one(image: Tensor, yx: Tensor, padding: int, fill: str) -> Tensor:
    """(3, H, W) uint8, by way of float32, in which torch can reflect."""
    height, width = image.shape[1:]
    padded = transforms.pad(image.float(), [padding] * 4, padding_mode=MODES[fill])
    return transforms.crop(padded, int(yx[0]), int(yx[1]), height, width).to(torch.uint8)


def normalise_one(image: Tensor) -> Tensor:
    scaled = transforms.to_dtype(image, torch.float32, scale=True)
    return transforms.normalize(scaled, list(CIFAR10.mean), list(CIFAR10.std))


def channels_first(images: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(images).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("fill", ["zero", "reflect"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 20)])
def test_pad_and_crop(random_images, fill, height, width):
    images = random_images(N, height, width)
    section = AugmentSection(crop_fill=fill)
    offsets = aug.draw_tables(N, height, width, section, seed=0, epoch=0).crop_yx
    cropped = channels_first(aug.crop(torch.from_numpy(images), offsets, 4, fill))
    for image, found, yx in zip(channels_first(images), cropped, offsets, strict=True):
        assert torch.equal(found, crop_one(image, yx, 4, fill))


def test_horizontal_flip(random_images):
    images = random_images(N, 12, 20)
    flags = torch.arange(N) % 3 == 0
    flipped = channels_first(aug.flip(torch.from_numpy(images), flags))
    for image, found, flag in zip(channels_first(images), flipped, flags, strict=True):
        assert torch.equal(found, transforms.horizontal_flip(image) if flag else image)


def test_normalize(random_images):
    images = random_images(N)
    found = aug.normalise(torch.from_numpy(images), CIFAR10)
    expected = torch.stack([normalise_one(image) for image in channels_first(images)])
    torch.testing.assert_close(found.contiguous(), expected, rtol=1e-5, atol=1e-6)


def test_brightness_and_contrast(random_images):
    images = 60 + random_images(N, 12, 20) // 3  # so that nothing is clipped
    section = AugmentSection(crop=0, flip=False, cutout=0, brightness=0.3, contrast=0.4)
    tables = aug.draw_tables(N, 12, 20, section, seed=0, epoch=0)
    found = aug.apply(torch.from_numpy(images), tables, section, CIFAR10)
    for image, one, (brightness, contrast) in zip(
        channels_first(images), found, tables.colour.tolist(), strict=True
    ):
        bright = transforms.adjust_brightness(
            transforms.to_dtype(image, torch.float32, scale=True), brightness
        )
        expected = transforms.adjust_contrast(bright, contrast)
        assert expected.max() < 1
        expected = transforms.normalize(expected, list(CIFAR10.mean), list(CIFAR10.std))
        torch.testing.assert_close(one.contiguous(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fill", ["zero", "reflect"])
def test_all_in_the_order_of_the_recipe(random_images, fill):
    images = random_images(N, 32, 32)
    section = AugmentSection(crop_fill=fill)
    tables = aug.draw_tables(N, 32, 32, section, seed=1, epoch=3)
    found = aug.apply(torch.from_numpy(images), tables, section, CIFAR10)
    for number, image in enumerate(channels_first(images)):
        one = crop_one(image, tables.crop_yx[number], 4, fill)
        if tables.flip[number]:
            one = transforms.horizontal_flip(one)
        top, left = tables.cutout_yx[number].tolist()
        one = transforms.erase(normalise_one(one), top, left, 8, 8, torch.zeros(3, 1, 1))
        torch.testing.assert_close(found[number], one, rtol=1e-5, atol=1e-6)
