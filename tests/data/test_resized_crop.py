"""Random resized crops of whole batches against Pillow, one image at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from velodrome.config import AugmentSection
from velodrome.data import augment as aug
from velodrome.data.geometry import draw_boxes, smallest_box_px
from velodrome.data.imageset import Normalisation
from velodrome.data.streams import generator
from velodrome.errors import ConfigError

BYTES = Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
OFF = AugmentSection(crop=0, flip=False, cutout=0)
PARTS = replace(OFF, random_resized_crop=0.2)
ALL = AugmentSection(brightness=0.2, contrast=0.3)


def crop_one(image: np.ndarray, box: Tensor, height: int, width: int) -> np.ndarray:
    (own_height, own_width, _), (top, left, bottom, right) = image.shape, box.tolist()
    place = (left * own_width, top * own_height, right * own_width, bottom * own_height)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, place))


def boxes_of(n: int, height: int, width: int, smallest: float = 0.2, seed: int = 0) -> np.ndarray:
    return draw_boxes(np.random.default_rng(seed), n, height, width, smallest)


# Placement.


@pytest.mark.parametrize(
    ("own", "result"),
    [
        ((20, 20), (20, 20)),
        ((40, 40), (16, 16)),  # several pixels of the image in each of the result
        ((40, 40), (32, 32)),
        ((12, 12), (48, 48)),
        ((17, 40), (24, 24)),
        ((40, 17), (9, 14)),
        ((20, 20), (1, 1)),
    ],
)
def test_boxes_are_scaled_as_pillow_does(random_images, own, result):
    images = random_images(40, *own)
    boxes = torch.from_numpy(boxes_of(40, *own))
    given = torch.from_numpy(images.copy())
    found = aug.resized_crop(given, boxes, *result)
    assert found.shape == (40, *result, 3)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    expected = np.stack([crop_one(image, box, *result) for image, box in zip(images, boxes, strict=True)])
    off = np.abs(found.numpy().astype(int) - expected)
    assert off.max() <= 1  # Pillow rounds twice, and weighs in whole numbers
    assert off.mean() < 0.25
    assert np.array_equal(given.numpy(), images)


def test_the_whole_image_in_its_own_size_stays_as_it_is(random_images):
    images = torch.from_numpy(random_images(5, 13, 20))
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(5, 1)
    assert torch.equal(aug.resized_crop(images, whole, 13, 20), images)


def test_a_box_of_whole_pixels_in_its_own_size_is_cut_out(random_images):
    images = torch.from_numpy(random_images(3, 16, 16))
    box = torch.tensor([4, 2, 12, 10]) / 16
    assert torch.equal(aug.resized_crop(images, box.repeat(3, 1), 8, 8), images[:, 4:12, 2:10])


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_flat_images_stay_flat(level):
    images = torch.full((30, 21, 21, 3), level, dtype=torch.uint8)
    found = aug.resized_crop(images, torch.from_numpy(boxes_of(30, 21, 21, 0.05)), 16, 16)
    assert (found == level).all()


def test_larger_boxes_are_smoothed_not_sampled():
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    images[:, ::2, ::2] = 240  # a quarter of all pixels
    found = aug.resized_crop(images, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 8, 8)
    assert 50 <= found.min() <= found.max() <= 70


# Boxes.


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 32), (40, 32)])
@pytest.mark.parametrize("smallest", [0.08, 0.5, 0.9])
def test_boxes_lie_inside_and_have_their_shape(height, width, smallest):
    boxes = boxes_of(20_000, height, width, smallest)
    assert boxes.dtype == np.float32
    assert boxes.shape == (20_000, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    sizes = boxes[:, 2:] - boxes[:, :2]
    ratio = sizes[:, 1] * width / (sizes[:, 0] * height)
    assert ratio.min() > 3 / 4 - 1e-4
    assert ratio.max() < 4 / 3 + 1e-4
    largest = min(1, width / height / (3 / 4)) * min(1, 4 / 3 / (width / height))  # of such a shape
    assert sizes.prod(1).min() > min(smallest, largest) - 1e-4
    shortest = min(smallest_box_px(height, width, smallest), height, width)
    assert (sizes * (height, width)).min() >= shortest - 1e-3


def test_small_shares_are_uniform_in_area_shape_and_place():
    """Where nearly all boxes fit at once."""
    boxes = boxes_of(40_000, 32, 32, 0.01)
    sizes = boxes[:, 2:] - boxes[:, :2]
    area, ratio = sizes.prod(1), np.log(sizes[:, 1] / sizes[:, 0])
    small = area < 0.5  # whatever their shape, these fit
    assert np.median(area[small]) == pytest.approx((0.01 + 0.5) / 2, abs=0.01)
    assert abs(ratio[small].mean()) < 0.01
    assert ratio[small].std() == pytest.approx(np.log(4 / 3) / 3**0.5, rel=0.02)  # of a uniform distribution
    place = boxes[small, :2] / (1 - sizes[small])
    assert place.mean(0) == pytest.approx([0.5, 0.5], abs=0.01)
    assert place.std(0) == pytest.approx([12**-0.5] * 2, rel=0.02)


def test_a_box_without_luck_is_the_largest_in_the_middle():
    """Of so wide an image hardly any box can have nearly the whole area."""
    boxes = boxes_of(50, 10, 40, 0.99)
    assert boxes == pytest.approx(np.tile([0, 1 / 3, 1, 2 / 3], (50, 1)), abs=1e-6)


# Tables.


def test_boxes_depend_on_seed_and_epoch_alone():
    def draw(seed: int, epoch: int) -> Tensor:
        return aug.draw_tables(64, 32, 32, PARTS, seed, epoch).boxes

    assert torch.equal(draw(1, 2), draw(1, 2))
    assert not any(torch.equal(draw(1, 2), other) for other in (draw(1, 3), draw(2, 2)))
    expected = draw_boxes(generator(1, 2, 5), 64, 32, 32, 0.2)
    assert np.array_equal(draw(1, 2).numpy(), expected)


def test_other_streams_stay_as_they_were():
    without = aug.draw_tables(64, 32, 32, ALL, seed=5, epoch=1)
    with_parts = aug.draw_tables(64, 32, 32, replace(ALL, random_resized_crop=0.3), seed=5, epoch=1)
    assert without.boxes is None
    assert with_parts.crop_yx is None  # in its place
    for name in ("flip", "cutout_yx", "colour"):
        assert torch.equal(getattr(without, name), getattr(with_parts, name))


# Composition.


@pytest.mark.parametrize(("side", "own_side"), [(None, None), (12, None), (None, 16), (12, 16), (16, 16)])
def test_apply_cuts_out_flips_and_normalises(random_images, side, own_side):
    images = random_images(30, 20, 20)
    augment = replace(PARTS, flip=True)
    own = own_side or 20
    tables = aug.draw_tables(30, own, own, augment, seed=1, epoch=0)
    batch = aug.apply(torch.from_numpy(images), tables, augment, BYTES, side, own_side)
    size = side or own
    assert batch.shape == (30, 3, size, size)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for number, found in enumerate(batch):
        expected = crop_one(images[number], tables.boxes[number], size, size).astype(float)
        expected = expected[:, ::-1] if tables.flip[number] else expected
        np.testing.assert_allclose(found.permute(1, 2, 0), expected, atol=1.01)


def test_images_that_are_stored_larger_are_brought_to_size_first(random_images):
    images = torch.from_numpy(random_images(10, 20, 20))
    augment = AugmentSection(crop=2, cutout=4)
    tables = aug.draw_tables(10, 16, 16, augment, seed=1, epoch=0)
    found = aug.apply(images, tables, augment, BYTES, None, 16)
    assert torch.equal(found, aug.apply(aug.resize(images, 16), tables, augment, BYTES))


def test_cutout_is_in_pixels_of_the_training_images(random_images):
    images = torch.from_numpy(random_images(10, 40, 40) // 2 + 1)
    augment = replace(PARTS, cutout=8)
    tables = aug.draw_tables(10, 32, 32, augment, seed=1, epoch=0)
    for side, hole in ((None, 8), (32, 8), (16, 4)):
        batch = aug.apply(images, tables, augment, BYTES, side, 32)
        assert ((batch == 0).sum((2, 3)) == hole**2).all()


# What does not fit.


def test_the_smallest_part_must_be_a_pixel():
    message = r"random_resized_crop is 0\.01, .* 8x8\. Use .* --random-resized-crop 0\.25"
    with pytest.raises(ConfigError, match=message):
        aug.check_fits(8, 8, replace(OFF, random_resized_crop=0.01))
    aug.check_fits(8, 8, replace(OFF, random_resized_crop=0.25))


def test_the_padding_of_a_crop_that_is_replaced_does_not_matter():
    aug.check_fits(8, 8, AugmentSection(crop=9, crop_fill="reflect", cutout=0, random_resized_crop=0.5))
