"""RandAugment of whole batches against Pillow and plain formulas, one image at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from velodrome.config import AugmentSection
from velodrome.data import augment as aug
from velodrome.data.imageset import Normalisation
from velodrome.data.randaugment import MOVING, OPERATIONS, distort, draw_operations

BYTES = Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
OFF = AugmentSection(crop=0, flip=False, cutout=0)
ALL = AugmentSection(brightness=0.2, contrast=0.3)
GREY = np.array([0.2989, 0.587, 0.114])


def do(name: str, images: np.ndarray, magnitude: float = 9, *, backwards: bool = False) -> np.ndarray:
    """One operation on all images."""
    row = torch.tensor([[OPERATIONS.index(name), int(backwards)]])
    return distort(torch.from_numpy(images), row.repeat(len(images), 1, 1), magnitude).numpy()


@pytest.fixture
def pictures(random_images) -> np.ndarray:
    """Smooth images, dark ones, bright ones, flat ones, and noise: (8, 24, 20, 3)."""
    images = random_images(8, 24, 20)
    y, x = np.mgrid[:24, :20]
    images[0] = np.stack([8 * y, 10 * x, 4 * (x + y)], 2)
    images[1] = images[1] // 4
    images[2] = 200 + images[2] // 8
    images[3] = 77
    images[4] = np.where((x + y)[..., None] % 2, 255, 0)
    images[5, ..., 1] = 30  # a flat channel
    return images


# What the operations do.


def test_identity_leaves_images_as_they_are(pictures):
    assert np.array_equal(do("identity", pictures, 30), pictures)


@pytest.mark.parametrize("magnitude", [0, 4, 9, 17, 30])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("axis", ["x", "y"])
def test_translations_are_of_whole_pixels_and_leave_black(pictures, magnitude, backwards, axis):
    found = do(f"translate {axis}", pictures, magnitude, backwards=backwards)
    size = {"x": 20, "y": 24}[axis]
    pixels = math.trunc(150 / 331 * size * magnitude / 30) * (-1 if backwards else 1)
    expected = np.zeros_like(pictures)
    for place in range(size):
        if 0 <= place - pixels < size:
            to, start = (place, place - pixels)
            if axis == "x":
                expected[:, :, to] = pictures[:, :, start]
            else:
                expected[:, to] = pictures[:, start]
    assert np.array_equal(found, expected)


def sampled(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values at places in pixels, of which the first has its middle at 0; black around the image."""
    height, width, _ = image.shape
    padded = np.zeros((height + 80, width + 80, 3))
    padded[40:-40, 40:-40] = image
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, below = (x - left)[..., None], (y - top)[..., None]

    def at(dy: int, dx: int) -> np.ndarray:
        return padded[top + 40 + dy, left + 40 + dx]

    upper = at(0, 0) * (1 - right) + at(0, 1) * right
    lower = at(1, 0) * (1 - right) + at(1, 1) * right
    return upper * (1 - below) + lower * below


@pytest.mark.parametrize("magnitude", [3, 9, 30])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["shear x", "shear y", "rotate"])
def test_shears_and_rotations_are_bilinear(pictures, name, magnitude, sign):
    found = do(name, pictures, magnitude, backwards=sign < 0)
    y, x = (index.astype(float) for index in np.mgrid[:24, :20])
    shear, turn = sign * 0.3 * magnitude / 30, math.radians(sign * magnitude)
    if name == "shear x":
        x = x + shear * (y + 0.5)
    elif name == "shear y":
        y = y + shear * (x + 0.5)
    else:
        dx, dy = x - 9.5, y - 11.5
        x = math.cos(turn) * dx - math.sin(turn) * dy + 9.5
        y = math.sin(turn) * dx + math.cos(turn) * dy + 11.5
    for image, one in zip(pictures, found, strict=True):
        off = np.abs(one - sampled(image, x, y))
        assert off.max() < 0.51
    assert not np.array_equal(found, pictures)


def factor_of(magnitude: float, *, backwards: bool) -> float:
    return 1 + 0.9 * magnitude / 30 * (-1 if backwards else 1)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", ["brightness", "contrast", "colour"])
def test_brightness_contrast_and_colour_are_mixed_with_black_grey_and_greys(
    pictures, name, magnitude, backwards
):
    found = do(name, pictures, magnitude, backwards=backwards)
    factor = factor_of(magnitude, backwards=backwards)
    greys = np.floor(pictures @ GREY)[..., None]
    other = {"brightness": 0, "contrast": greys.mean((1, 2, 3), keepdims=True), "colour": greys}[name]
    expected = np.clip(factor * pictures + (1 - factor) * other, 0, 255)
    assert (found <= expected + 1e-3).all()  # cut off to whole levels
    assert (found > expected - 1 - 1e-3).all()


@pytest.mark.parametrize("magnitude", [0, 9, 30])
@pytest.mark.parametrize("backwards", [False, True])
def test_sharpness_is_mixed_with_a_blurred_image(pictures, magnitude, backwards):
    found = do("sharpness", pictures, magnitude, backwards=backwards)
    factor = factor_of(magnitude, backwards=backwards)
    blurred = pictures.astype(float)
    around = sum(pictures[:, dy : dy + 22, dx : dx + 18].astype(float) for dy in range(3) for dx in range(3))
    blurred[:, 1:-1, 1:-1] = np.round((around + 4 * blurred[:, 1:-1, 1:-1]) / 13)
    expected = np.clip(factor * pictures + (1 - factor) * blurred, 0, 255)
    assert (found <= expected + 1e-3).all()
    assert (found > expected - 1 - 1e-3).all()


@pytest.mark.parametrize("shape", [(2, 9), (9, 2), (1, 1)])
def test_tiny_images_have_nothing_to_sharpen(random_images, shape):
    images = random_images(3, *shape)
    assert np.array_equal(do("sharpness", images, 30), images)


@pytest.mark.parametrize("magnitude", [0, 3, 9, 15, 30])
def test_posterize_and_solarize_are_pillows(pictures, magnitude):
    bits = 8 - round(magnitude / 7.5)
    threshold = 255 * (1 - magnitude / 30)
    posterized, solarized = do("posterize", pictures, magnitude), do("solarize", pictures, magnitude)
    for image, one, other in zip(pictures, posterized, solarized, strict=True):
        picture = Image.fromarray(image)
        assert np.array_equal(one, ImageOps.posterize(picture, bits))
        assert np.array_equal(other, np.where(image >= threshold, 255 - image, image))


def test_equalize_is_pillows(pictures):
    for image, one in zip(pictures, do("equalize", pictures), strict=True):
        assert np.array_equal(one, ImageOps.equalize(Image.fromarray(image)))


def test_autocontrast_spans_all_levels_of_each_channel(pictures):
    for image, one in zip(pictures, do("autocontrast", pictures), strict=True):
        expected = np.asarray(ImageOps.autocontrast(Image.fromarray(image)))
        assert np.abs(one.astype(int) - expected).max() <= 1  # which are rounded otherwise
        for channel in range(3):
            if np.ptp(image[..., channel]):
                assert (one[..., channel].min(), one[..., channel].max()) in ((0, 255), (0, 254))
            else:
                assert np.array_equal(one[..., channel], image[..., channel])


@pytest.mark.parametrize(
    "name", [n for n in OPERATIONS[MOVING:] if n not in ("solarize", "autocontrast", "equalize")]
)
def test_at_magnitude_0_images_stay_as_they_are(pictures, name):
    assert np.array_equal(do(name, pictures, 0), pictures)


# Whole batches.


def drawn(n: int, rounds: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(draw_operations(np.random.default_rng(seed), n, rounds))


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_an_image_is_treated_alike_in_any_batch(random_images, rounds):
    images = torch.from_numpy(random_images(60, 12, 12))
    operations = drawn(60, rounds)
    whole = distort(images, operations, 12)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    for number in range(60):
        alone = distort(images[number : number + 1], operations[number : number + 1], 12)
        assert torch.equal(whole[number], alone[0])
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(distort(images[shuffled], operations[shuffled], 12), whole[shuffled])


def test_operations_follow_one_another(random_images):
    images = torch.from_numpy(random_images(50, 12, 12))
    operations = drawn(50, 3)
    step_by_step = images
    for number in range(3):
        step_by_step = distort(step_by_step, operations[:, number : number + 1], 7)
    assert torch.equal(distort(images, operations, 7), step_by_step)


def test_images_that_are_given_stay_as_they_are(random_images):
    images = random_images(40, 12, 12)
    given = torch.from_numpy(images.copy())
    distort(given, drawn(40, 2), 20)
    assert np.array_equal(given.numpy(), images)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_small_batches_lack_most_operations(random_images, n):
    images = torch.from_numpy(random_images(n, 12, 12))
    for seed in range(20):
        assert distort(images, drawn(n, 2, seed), 9).shape == images.shape


# Tables.


def test_all_operations_are_as_likely():
    n = 28_000
    table = aug.draw_tables(n, 32, 32, replace(OFF, randaugment=2), seed=0, epoch=0).operations
    assert table.dtype == torch.int64
    assert table.shape == (n, 2, 2)
    counts = torch.bincount(table[..., 0].flatten(), minlength=14).double()
    assert len(counts) == len(OPERATIONS) == 14
    expected = 2 * n / 14
    assert float(((counts - expected) ** 2 / expected).sum()) < 13 + 6 * 26**0.5
    assert abs(float(table[..., 1].double().mean()) - 0.5) < 5 * (0.25 / (2 * n)) ** 0.5
    assert set(table[..., 1].flatten().tolist()) == {0, 1}


def test_tables_depend_on_seed_and_epoch_alone():
    def draw(seed: int, epoch: int) -> Tensor:
        return aug.draw_tables(64, 32, 32, replace(OFF, randaugment=2), seed, epoch).operations

    assert torch.equal(draw(1, 2), draw(1, 2))
    assert not any(torch.equal(draw(1, 2), other) for other in (draw(1, 3), draw(2, 2)))


def test_other_streams_stay_as_they_were():
    without = aug.draw_tables(64, 32, 32, ALL, seed=5, epoch=1)
    with_it = aug.draw_tables(64, 32, 32, replace(ALL, randaugment=3), seed=5, epoch=1)
    assert without.operations is None
    for name in ("crop_yx", "flip", "cutout_yx", "colour"):
        assert torch.equal(getattr(without, name), getattr(with_it, name))


def test_tables_are_cut_and_picked_like_the_others():
    tables = aug.draw_tables(20, 32, 32, replace(ALL, randaugment=2), seed=0, epoch=0)
    assert torch.equal(tables.rows(3, 7).operations, tables.operations[3:7])
    assert torch.equal(tables.at(torch.tensor([5, 2])).operations, tables.operations[[5, 2]])


def test_operations_stay_on_the_cpu():
    tables = aug.draw_tables(20, 32, 32, replace(ALL, randaugment=2), seed=0, epoch=0)
    moved = tables.to(torch.device("meta"))
    assert moved.operations is tables.operations
    assert moved.flip.device.type == "meta"


# Composition.


def test_apply_distorts_after_crop_flip_and_scaling(random_images):
    images = torch.from_numpy(random_images(40, 16, 16))
    augment = AugmentSection(crop=2, cutout=4, randaugment=2, randaugment_magnitude=14)
    tables = aug.draw_tables(40, 16, 16, augment, seed=1, epoch=0)
    placed = aug.resize(aug.flip(aug.crop(images, tables.crop_yx, 2, "zero"), tables.flip), 12)
    distorted = aug.normalise(distort(placed, tables.operations, 14), BYTES)
    place = torch.stack([tables.cutout_yx[:, 0] * 12 // 16, tables.cutout_yx[:, 1] * 12 // 16], 1)
    found = aug.apply(images, tables, augment, BYTES, 12)
    assert torch.equal(found, aug.cutout(distorted, place, 3))
    assert found.is_contiguous(memory_format=torch.channels_last)
