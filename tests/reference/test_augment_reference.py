"""Resized crops, saturation, hue and RandAugment of whole batches against torchvision's of single images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from velodrome.config import AugmentSection
from velodrome.data import augment as aug
from velodrome.data.colour import saturate, turn_hue
from velodrome.data.geometry import draw_boxes
from velodrome.data.imageset import Normalisation
from velodrome.data.mixing import mix, soft_labels
from velodrome.data.randaugment import OPERATIONS, distort

# Beside a CPU build of torch, the ordinary wheel of torchvision raises RuntimeError at import.
transforms = pytest.importorskip("torchvision.transforms.v2.functional", exc_type=(ImportError, RuntimeError))
v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=(ImportError, RuntimeError))

N = 64
SHARES = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
BILINEAR = v2.InterpolationMode.BILINEAR
# What torchvision calls them.
NAMES = {
    "identity": "Identity",
    "shear x": "ShearX",
    "shear y": "ShearY",
    "translate x": "TranslateX",
    "translate y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "contrast": "Contrast",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "colour": "Color",
    "sharpness": "Sharpness",
}


def channels_first(images: np.ndarray | Tensor) -> Tensor:
    return torch.as_tensor(images).permute(0, 3, 1, 2).contiguous()


# Resized crops.


@pytest.mark.parametrize("size", [16, 24, 40])
def test_resized_crop(random_images, size):
    """Of boxes of whole pixels; torchvision does not look beyond them, so the border is left out."""
    images = random_images(N, 40, 40)
    boxes = np.round(draw_boxes(np.random.default_rng(0), N, 40, 40, 0.2) * 40).astype(int)
    found = channels_first(
        aug.resized_crop(torch.from_numpy(images), torch.from_numpy(boxes / 40).float(), size, size)
    )
    for image, one, (top, left, bottom, right) in zip(
        channels_first(images), found, boxes.tolist(), strict=True
    ):
        expected = transforms.resized_crop(
            image, top, left, bottom - top, right - left, [size, size], BILINEAR, antialias=True
        )
        margin = math.ceil(size / min(bottom - top, right - left)) + 1
        inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
        assert (one[inner].int() - expected[inner].int()).abs().max() <= 1


def test_boxes_are_drawn_alike():
    """Mean and spread of height, width and area."""
    n, side = 20_000, 200
    boxes = draw_boxes(np.random.default_rng(0), n, side, side, 0.3)
    ours = (boxes[:, 2:] - boxes[:, :2]) * side
    image = torch.empty(3, side, side)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crop = v2.RandomResizedCrop(side, scale=(0.3, 1.0))
        drawn = [crop.make_params([image]) for _ in range(n // 4)]
    theirs = np.array([(params["height"], params["width"]) for params in drawn], float)
    for one, other in (
        (ours, theirs),
        (ours.prod(1), theirs.prod(1)),
        (ours[:, 0] / ours[:, 1], theirs[:, 0] / theirs[:, 1]),
    ):
        assert one.mean(0) == pytest.approx(other.mean(0), rel=0.02)
        assert one.std(0) == pytest.approx(other.std(0), rel=0.05)


# Colour.


def test_saturation(random_images):
    images = 60 + random_images(N, 12, 20) // 3  # so that nothing is clipped
    factors = torch.linspace(0.2, 1.8, N)
    found = saturate(aug.normalise(torch.from_numpy(images), SHARES), factors, SHARES)
    for image, one, factor in zip(channels_first(images), found, factors.tolist(), strict=True):
        expected = transforms.adjust_saturation(transforms.to_dtype(image, torch.float32, scale=True), factor)
        assert 0 < expected.min() < expected.max() < 1
        torch.testing.assert_close(one.contiguous(), expected, rtol=1e-5, atol=1e-5)


def test_hue(random_images):
    images = random_images(N, 12, 20)
    images[0] = images[0, ..., :1]
    turns = torch.linspace(-0.5, 0.5, N)
    found = turn_hue(aug.normalise(torch.from_numpy(images), SHARES), turns, SHARES)
    for image, one, turn in zip(channels_first(images), found, turns.tolist(), strict=True):
        expected = transforms.adjust_hue(transforms.to_dtype(image, torch.float32, scale=True), turn)
        torch.testing.assert_close(one.contiguous(), expected, rtol=1e-5, atol=1e-5)


def test_colour_jitter_in_our_order(random_images):
    images = 90 + random_images(N, 12, 20) // 5
    section = AugmentSection(
        crop=0, flip=False, cutout=0, brightness=0.1, contrast=0.1, saturation=0.2, hue=0.1
    )
    tables = aug.draw_tables(N, 12, 20, section, seed=0, epoch=0)
    found = aug.apply(torch.from_numpy(images), tables, section, SHARES)
    factors = torch.cat([tables.colour, tables.tint], 1).tolist()
    for image, one, (brightness, contrast, saturation, hue) in zip(
        channels_first(images), found, factors, strict=True
    ):
        expected = transforms.to_dtype(image, torch.float32, scale=True)
        expected = transforms.adjust_contrast(transforms.adjust_brightness(expected, brightness), contrast)
        expected = transforms.adjust_hue(transforms.adjust_saturation(expected, saturation), hue)
        assert 0 < expected.min() < expected.max() < 1
        torch.testing.assert_close(one.contiguous(), expected, rtol=1e-4, atol=1e-5)


# RandAugment.


@pytest.fixture
def pictures(random_images) -> np.ndarray:
    """Smooth images, dark ones, bright ones, flat ones, and noise: (16, 24, 20, 3)."""
    images = random_images(16, 24, 20)
    y, x = np.mgrid[:24, :20]
    for number in range(5):
        images[number] = np.stack([8 * y, 10 * x, (4 + number) * (x + y)], 2)
    images[5] = images[5] // 4
    images[6] = 200 + images[6] // 8
    images[7] = 77
    images[8, ..., 1] = 30  # a flat channel
    return images


def theirs(name: str, image: Tensor, magnitude: int, sign: int) -> Tensor:
    """One operation of torchvision's RandAugment."""
    randaugment = v2.RandAugment(interpolation=BILINEAR)
    strengths, signed = randaugment._AUGMENTATION_SPACE[NAMES[name]]
    values = strengths(31, *image.shape[1:])
    value = 0.0 if values is None else float(values[magnitude]) * (sign if signed else 1)
    return randaugment._apply_image_or_video_transform(image, NAMES[name], value, BILINEAR, randaugment._fill)


def test_operations_are_the_same():
    assert set(NAMES.values()) == set(v2.RandAugment._AUGMENTATION_SPACE)
    assert tuple(NAMES) == OPERATIONS


@pytest.mark.parametrize("magnitude", [0, 5, 9, 10, 17, 30])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation(pictures, name, magnitude, sign):
    row = torch.tensor([[OPERATIONS.index(name), int(sign < 0)]])
    images = torch.from_numpy(pictures)
    found = channels_first(distort(images, row.repeat(len(images), 1, 1), magnitude))
    expected = torch.stack([theirs(name, image, magnitude, sign) for image in channels_first(pictures)])
    off = (found.int() - expected.int()).abs()
    assert off.max() <= 1
    assert off.float().mean() < 0.03  # halves may be rounded up or down


def test_several_operations(pictures):
    section = AugmentSection(crop=0, flip=False, cutout=0, randaugment=2, randaugment_magnitude=9)
    tables = aug.draw_tables(16, 24, 20, section, seed=0, epoch=0)
    found = channels_first(distort(torch.from_numpy(pictures), tables.operations, 9))
    for image, one, rounds in zip(channels_first(pictures), found, tables.operations.tolist(), strict=True):
        expected = image
        for number, backwards in rounds:
            expected = theirs(OPERATIONS[number], expected, 9, 1 - 2 * backwards)
        off = (one.int() - expected.int()).abs().float()
        assert off.mean() < 0.3  # a level may be another, which equalize and solarize may spread
        assert off.median() == 0


# Mixing: of two images, each is the other's partner here and in torchvision.


def mixed_by(
    mixer: torch.nn.Module, images: Tensor, labels: Tensor, seed: int
) -> tuple[dict, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        params = {"labels": labels, "batch_size": 2} | mixer.make_params([images])
    return params, mixer.transform(images, params), mixer.transform(labels, params)


@pytest.mark.parametrize("seed", range(10))
def test_mixup(random_images, seed):
    images, labels = channels_first(random_images(2, 12, 12)).float(), torch.tensor([0, 2])
    params, expected, shares = mixed_by(v2.MixUp(alpha=0.4, num_classes=3), images, labels, seed)
    rows = torch.tensor([[1 - params["lam"], 0, 0, 0]]).repeat(2, 1)
    torch.testing.assert_close(mix(images, rows).contiguous(), expected)
    torch.testing.assert_close(soft_labels(labels, rows, 3, 12, 12), shares)


def test_cutmix(random_images):
    images, labels = channels_first(random_images(2, 12, 12)).float(), torch.tensor([0, 2])
    compared = 0
    for seed in range(60):
        params, expected, shares = mixed_by(v2.CutMix(num_classes=3), images, labels, seed)
        left, top, right, bottom = (int(place) for place in params["box"])
        side = bottom - top
        if right - left != side:  # cut off at the border, where ours never is
            continue
        place = [(start + 0.5) / (12 - side + 1) for start in (top, left)]
        rows = torch.tensor([[0, side / 12, *place]]).repeat(2, 1)
        assert torch.equal(mix(images, rows), expected)
        torch.testing.assert_close(soft_labels(labels, rows, 3, 12, 12), shares)
        compared += 1
    assert compared > 10
