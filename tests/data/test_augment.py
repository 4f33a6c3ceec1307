"""Augmentation of whole batches against a plain reference that treats one image at a time."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from velodrome.config import AugmentSection
from velodrome.data import augment as aug
from velodrome.data.imageset import Normalisation
from velodrome.errors import ConfigError

CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
OFF = AugmentSection(crop=0, flip=False, cutout=0)
REFERENCE = AugmentSection()  # crop 4, flip, cutout 8, zero fill
COLOURED = AugmentSection(brightness=0.2, contrast=0.3)

Image = NDArray[np.uint8]


def crop_one(image: Image, yx: Tensor, padding: int, fill: str) -> Image:
    mode = {"zero": "constant", "reflect": "reflect"}[fill]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    (top, left), (height, width, _) = yx.tolist(), image.shape
    return padded[top : top + height, left : left + width]


def normalise_one(image: Image) -> NDArray[np.float64]:
    """(H, W, 3) uint8 -> (3, H, W) float64."""
    return ((image / 255 - np.array(CIFAR10.mean)) / np.array(CIFAR10.std)).transpose(2, 0, 1)


def cutout_one(image: NDArray[np.float64], yx: Tensor, size: int) -> NDArray[np.float64]:
    (top, left), holed = yx.tolist(), image.copy()
    holed[:, top : top + size, left : left + size] = 0
    return holed


def apply_one(image: Image, row: aug.Tables, augment: AugmentSection) -> NDArray[np.float64]:
    """Crop, flip, normalise, cut out; `row` holds the tables of this image alone."""
    if row.crop_yx is not None:
        image = crop_one(image, row.crop_yx[0], augment.crop, augment.crop_fill)
    if row.flip is not None and row.flip[0]:
        image = image[:, ::-1]
    normalised = normalise_one(image)
    return normalised if row.cutout_yx is None else cutout_one(normalised, row.cutout_yx[0], augment.cutout)


def every(rows: int, columns: int) -> Tensor:
    """(rows * columns, 2) int64: all pairs (y, x)."""
    return torch.tensor(list(itertools.product(range(rows), range(columns))))


def all_tables(tables: aug.Tables) -> dict[str, Tensor | None]:
    names = ("crop", "flip", "cutout", "colour")
    return dict(zip(names, (tables.crop_yx, tables.flip, tables.cutout_yx, tables.colour), strict=True))


# Placement.


@pytest.mark.parametrize(
    ("height", "width", "padding", "fill"),
    [
        (8, 8, 4, "zero"),
        (8, 8, 4, "reflect"),
        (5, 9, 3, "zero"),
        (5, 9, 4, "reflect"),  # the most that reflects
        (9, 5, 4, "reflect"),
        (3, 4, 6, "zero"),  # windows that show nothing but padding
        (1, 1, 2, "zero"),
        (6, 7, 0, "zero"),
        (6, 7, 0, "reflect"),
    ],
)
def test_crop_at_every_offset(random_images, height, width, padding, fill):
    offsets = every(2 * padding + 1, 2 * padding + 1)
    images = random_images(len(offsets), height, width)
    cropped = aug.crop(torch.from_numpy(images), offsets, padding, fill)
    assert cropped.dtype == torch.uint8
    expected = [crop_one(image, yx, padding, fill) for image, yx in zip(images, offsets, strict=True)]
    assert np.array_equal(cropped.numpy(), np.stack(expected))


def test_crop_fills_with_black():
    white = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    cropped = aug.crop(
        white, torch.tensor([[0, 3]]), 2, "zero"
    )  # two rows above, one column beyond the right
    assert cropped[0, ..., 0].tolist() == [[0] * 4, [0] * 4, [255, 255, 255, 0], [255, 255, 255, 0]]


def test_flip_mirrors_the_flagged_images_only(random_images):
    images = random_images(4, 5, 6)
    flipped = aug.flip(torch.from_numpy(images), torch.tensor([True, False, False, True])).numpy()
    assert np.array_equal(flipped[[0, 3]], images[[0, 3], :, ::-1])
    assert np.array_equal(flipped[[1, 2]], images[[1, 2]])
    assert flipped.dtype == np.uint8


def test_normalise(random_images):
    images = random_images(3, 5, 6)
    given = torch.from_numpy(images.copy())
    normalised = aug.normalise(given, CIFAR10)
    np.testing.assert_allclose(normalised, [normalise_one(image) for image in images], atol=1e-6)
    assert np.array_equal(given.numpy(), images)  # the loader's own images are left alone


@pytest.mark.parametrize(("height", "width", "size"), [(9, 9, 4), (5, 8, 3), (8, 5, 1), (4, 4, 4)])
def test_cutout_at_every_offset(height, width, size):
    offsets = every(height - size + 1, width - size + 1)
    images = torch.rand(len(offsets), 3, height, width, generator=torch.Generator().manual_seed(0)) + 1
    holed = aug.cutout(images, offsets, size)
    expected = [cutout_one(image.numpy(), yx, size) for image, yx in zip(images, offsets, strict=True)]
    assert np.array_equal(holed.numpy(), np.stack(expected))
    assert ((holed == 0).sum((2, 3)) == size * size).all()


# Composition.


@pytest.mark.parametrize(
    "augment",
    [
        REFERENCE,
        AugmentSection(crop_fill="reflect", crop=5, cutout=3),
        AugmentSection(crop=4, flip=False, cutout=0),
        AugmentSection(crop=0, flip=True, cutout=0),
        AugmentSection(crop=0, flip=False, cutout=8),
        AugmentSection(crop=0, flip=True, cutout=5),
        OFF,
    ],
    ids=["reference", "reflect", "crop", "flip", "cutout", "flip and cutout", "off"],
)
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 14)])
def test_apply_equals_the_reference_image_by_image(random_images, augment, height, width):
    n = 50
    images = random_images(n, height, width)
    tables = aug.draw_tables(n, height, width, augment, seed=3, epoch=2)
    batch = aug.apply(torch.from_numpy(images), tables, augment, CIFAR10)
    expected = [apply_one(images[i], tables.rows(i, i + 1), augment) for i in range(n)]
    np.testing.assert_allclose(batch, np.stack(expected), atol=1e-6)
    # Normalised pixels are never 0: 255 times these means is not a whole number.
    assert ((batch == 0).sum((2, 3)) == augment.cutout**2).all()


def test_reference_cannot_tell_crop_before_flip_by_chance(random_images):
    """The test above would notice another order: flipping before the crop gives other images."""
    image, yx = random_images(1, 16, 16)[0], torch.tensor([4, 1])
    assert not np.array_equal(
        crop_one(image, yx, 4, "zero")[:, ::-1], crop_one(image[:, ::-1], yx, 4, "zero")
    )


@pytest.mark.parametrize("augment", [REFERENCE, OFF])
def test_batches_are_float32_in_channels_last_order(random_images, augment):
    images = torch.from_numpy(random_images(4, 12, 10))
    batch = aug.apply(images, aug.draw_tables(4, 12, 10, augment, 0, 0), augment, CIFAR10)
    assert batch.shape == (4, 3, 12, 10)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_brightness_multiplies_and_contrast_stretches_around_grey():
    grey = torch.full((1, 4, 4, 3), 100, dtype=torch.uint8)
    halves = torch.cat([grey[:, :2] - 50, grey[:, 2:] + 50], 1)  # of mean 100
    constants = Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # leaves 0 to 255

    def recoloured(images: Tensor, brightness: float, contrast: float) -> list[float]:
        found = aug.recolour(
            aug.normalise(images, constants), torch.tensor([[brightness, contrast]]), constants
        )
        return found[0, 0, 1:3, 0].tolist()  # either side of the middle

    assert recoloured(grey, 1.5, 0.3) == pytest.approx([150, 150], rel=1e-3)
    assert recoloured(halves, 1.0, 2.0) == pytest.approx([0, 200], abs=0.1)
    assert recoloured(halves, 2.0, 0.5) == pytest.approx([150, 250], rel=1e-3)
    assert recoloured(halves, 1.0, 1.0) == pytest.approx([50, 150], rel=1e-3)


# Tables.


def test_tables_hold_what_they_promise():
    tables = aug.draw_tables(500, 32, 20, REFERENCE, seed=0, epoch=0)
    assert tables.crop_yx.shape == tables.cutout_yx.shape == (500, 2)
    assert tables.crop_yx.dtype == tables.cutout_yx.dtype == torch.int64
    assert tables.flip.shape == (500,)
    assert tables.flip.dtype == torch.bool
    assert tables.crop_yx.min(0).values.tolist() == [0, 0]
    assert tables.crop_yx.max(0).values.tolist() == [8, 8]
    assert tables.cutout_yx.min(0).values.tolist() == [0, 0]
    assert tables.cutout_yx.max(0).values.tolist() == [24, 12]


def test_factors_of_colour_fill_their_range():
    n = 20_000
    augment = AugmentSection(brightness=0.2, contrast=0.5)
    factors = aug.draw_tables(n, 32, 32, augment, seed=0, epoch=0).colour
    assert (factors.dtype, factors.shape) == (torch.float32, (n, 2))
    share = (factors - 1) / torch.tensor([0.2, 0.5])  # uniform in [-1, 1]
    assert share.abs().max() <= 1 + 1e-6
    assert share.mean(0).abs().max() < 5 / (3 * n) ** 0.5
    assert (share.square().mean(0) - 1 / 3).abs().max() < 0.02
    one = aug.draw_tables(n, 32, 32, AugmentSection(contrast=0.5), seed=0, epoch=0).colour
    assert one[:, 0].eq(1).all()
    assert torch.equal(one[:, 1], factors[:, 1])


def test_half_of_the_images_are_flipped():
    n = 40_000
    flips = int(aug.draw_tables(n, 32, 32, REFERENCE, seed=0, epoch=0).flip.sum())
    assert abs(flips - n / 2) < 5 * (n / 4) ** 0.5  # five standard deviations of a fair coin


@pytest.mark.parametrize(("name", "side"), [("crop", 9), ("cutout", 25)])
def test_offsets_are_uniform(name, side):
    n = 50_000
    yx = all_tables(aug.draw_tables(n, 32, 32, REFERENCE, seed=0, epoch=0))[name]
    counts = torch.bincount(yx[:, 0] * side + yx[:, 1], minlength=side**2).double()
    assert len(counts) == side**2
    expected, freedom = n / side**2, side**2 - 1
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - freedom) < 6 * (2 * freedom) ** 0.5


def test_streams_do_not_follow_one_another():
    n = 20_000
    tables = aug.draw_tables(n, 32, 32, COLOURED, seed=0, epoch=0)
    columns = [*tables.crop_yx.T, tables.flip, *tables.cutout_yx.T, *tables.colour.T]
    correlations = torch.corrcoef(torch.stack(columns).double()) - torch.eye(7)
    assert correlations.abs().max() < 5 / n**0.5


def test_tables_depend_on_seed_and_epoch_alone():
    def draw(seed: int, epoch: int) -> dict[str, Tensor | None]:
        return all_tables(aug.draw_tables(64, 32, 32, COLOURED, seed, epoch))

    first = draw(1, 2)
    torch.manual_seed(123)
    torch.rand(7)
    again = draw(1, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (draw(1, 3), draw(2, 2), draw(2, 1)):
        assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("off", "augment"),
    [
        ("crop", replace(COLOURED, crop=0)),
        ("flip", replace(COLOURED, flip=False)),
        ("cutout", replace(COLOURED, cutout=0)),
        ("colour", REFERENCE),
    ],
)
def test_turning_one_off_leaves_the_others_as_they_were(off, augment):
    with_all = all_tables(aug.draw_tables(64, 32, 32, COLOURED, seed=5, epoch=1))
    without = all_tables(aug.draw_tables(64, 32, 32, augment, seed=5, epoch=1))
    assert without.pop(off) is None
    assert all(torch.equal(with_all[name], table) for name, table in without.items())


def test_rows_are_those_images():
    tables = aug.draw_tables(10, 32, 32, replace(COLOURED, flip=False), seed=0, epoch=0)
    part = tables.rows(3, 7)
    assert torch.equal(part.colour, tables.colour[3:7])
    assert torch.equal(part.crop_yx, tables.crop_yx[3:7])
    assert torch.equal(part.cutout_yx, tables.cutout_yx[3:7])
    assert part.flip is None


# Sides by turns.

ALTERNATE = AugmentSection(alternate_flip=True)


def test_sides_by_turns_are_drawn_once_for_each_image():
    order = np.random.default_rng(0).permutation(100)
    plain = [aug.draw_tables(100, 32, 32, ALTERNATE, 7, epoch).flip for epoch in range(4)]
    assert torch.equal(plain[1], ~plain[0])
    assert torch.equal(plain[2], plain[0])
    assert torch.equal(plain[3], plain[1])
    for epoch in range(4):
        tables = aug.draw_tables(100, 32, 32, ALTERNATE, 7, epoch, order)
        assert torch.equal(tables.flip, plain[epoch][order])
        assert tables.flip.dtype == torch.bool
    assert not torch.equal(aug.draw_tables(100, 32, 32, ALTERNATE, 8, 0).flip, plain[0])


def test_half_of_the_images_begin_mirrored():
    n = 40_000
    flips = int(aug.draw_tables(n, 32, 32, ALTERNATE, seed=0, epoch=0).flip.sum())
    assert abs(flips - n / 2) < 5 * (n / 4) ** 0.5


@pytest.mark.parametrize("epoch", [0, 1])
def test_sides_by_turns_leave_the_other_tables_as_they_were(epoch):
    order = np.random.default_rng(0).permutation(64)
    without, with_turns, off = (
        all_tables(aug.draw_tables(64, 32, 32, augment, 5, epoch, order))
        for augment in (REFERENCE, ALTERNATE, replace(ALTERNATE, flip=False))
    )
    assert off["flip"] is None
    assert not torch.equal(with_turns["flip"], without["flip"]) or epoch == 0
    for name in ("crop", "cutout"):
        assert torch.equal(without[name], with_turns[name])
        assert torch.equal(without[name], off[name])


# Other sizes.


def resized_in_floats(images: Image, side: int) -> Tensor:
    """(N, H, W, C) uint8 -> (N, side, side, C) float32, by torch's interpolation of floats."""
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()
    scaled = F.interpolate(floats, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return scaled.permute(0, 2, 3, 1)


@pytest.mark.parametrize("side", [1, 9, 20, 24, 28, 31, 33, 48])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 40)])
def test_resized_bytes_are_those_of_floats(random_images, height, width, side):
    images = random_images(6, height, width)
    images[0] = 255
    images[1] = 0
    given_images = torch.from_numpy(images.copy())
    found = aug.resize(given_images, side)
    assert found.dtype == torch.uint8
    assert found.shape == (6, side, side, 3)
    exact = resized_in_floats(images, side)
    assert (found.float() - exact.round()).abs().max() <= 1
    assert (found.float() - exact).abs().mean() < 0.35  # rounding once, not twice, would be 0.25
    assert (found[0] == 255).all()
    assert (found[1] == 0).all()
    assert np.array_equal(given_images.numpy(), images)


def test_images_of_that_size_are_left_as_they_are(random_images):
    images = torch.from_numpy(random_images(2, 8, 8))
    assert aug.resize(images, 8) is images
    assert aug.resize(images[:, :, :6], 8).shape == (2, 8, 8, 3)


def test_smaller_images_are_smoothed(random_images):
    """Not sampled: a half of the size is a weighted mean over all pixels."""
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    images[:, ::2, ::2] = 240  # a quarter of all pixels
    small = aug.resize(images, 4)
    assert 40 <= small.min() <= small.max() <= 80


GROWN = AugmentSection(crop=3, crop_fill="reflect", flip=True, cutout=6)


@pytest.mark.parametrize("side", [9, 12, 16, 20, 31, 32, 40])
def test_apply_crops_flips_resizes_and_cuts_out_in_this_order(random_images, side):
    n, own = 12, 32
    images = random_images(n, own, own)
    tables = aug.draw_tables(n, own, own, GROWN, seed=3, epoch=1)
    batch = aug.apply(torch.from_numpy(images), tables, GROWN, CIFAR10, side)
    assert batch.shape == (n, 3, side, side)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    size = round(6 * side / own)
    for number in range(n):
        image = crop_one(images[number], tables.crop_yx[number], 3, "reflect")
        image = image[:, ::-1] if tables.flip[number] else image
        scaled = resized_in_floats(np.ascontiguousarray(image[None]), side)[0].numpy()
        top, left = (int(value * side // own) for value in tables.cutout_yx[number])
        expected = cutout_one(normalise_one(scaled), torch.tensor([top, left]), size)
        hole = np.zeros((3, side, side), dtype=bool)
        hole[:, top : top + size, left : left + size] = True
        assert hole.sum() == 3 * size * size  # the square is whole and inside
        assert np.array_equal(batch[number].numpy() == 0, hole)
        # A level is 1 / 255 before the division by the standard deviation.
        np.testing.assert_allclose(batch[number], expected, atol=1.01 / 255 / min(CIFAR10.std))


@settings(deadline=None, max_examples=60)
@given(own=st.integers(4, 40), size=st.integers(1, 40), side=st.integers(1, 60), data=st.data())
def test_a_scaled_cutout_is_whole_inside_and_of_its_share(own, size, side, data):
    size = min(size, own)
    places = st.integers(0, own - size)
    yx = torch.tensor(data.draw(st.lists(st.tuples(places, places), min_size=1, max_size=4)))
    images = torch.full((len(yx), own, own, 3), 200, dtype=torch.uint8)
    tables = aug.Tables(None, None, yx)
    batch = aug.apply(images, tables, AugmentSection(crop=0, flip=False, cutout=size), CIFAR10, side)
    counts = (batch == 0).sum((2, 3))
    assert len(set(counts.flatten().tolist())) == 1
    scaled = float(counts[0, 0]) ** 0.5
    assert scaled == round(scaled)  # a whole square
    assert abs(scaled - size * side / own) <= (0.5 if size * side / own >= 0.5 else 1)


# What does not fit.


@pytest.mark.parametrize("augment", [AugmentSection(cutout=9), AugmentSection(cutout=12)])
def test_cutout_must_fit(augment):
    with pytest.raises(ConfigError, match=r"cutout is (9|12), .* 8x20\. Use --cutout 8 or smaller"):
        aug.draw_tables(1, 8, 20, augment, seed=0, epoch=0)


def test_reflected_padding_must_be_smaller_than_the_image():
    augment = AugmentSection(crop=8, crop_fill="reflect", cutout=0)
    with pytest.raises(
        ConfigError, match=r"crop is 8, .* 20x8\. Use --crop 7 or smaller, or --crop-fill zero"
    ):
        aug.check_fits(20, 8, augment)


@pytest.mark.parametrize(
    "augment",
    [
        AugmentSection(cutout=8),
        AugmentSection(crop=8, cutout=0),
        AugmentSection(crop=7, crop_fill="reflect", cutout=0),
    ],
)
def test_the_largest_that_fit(random_images, augment):
    images = random_images(20, 8, 8)
    tables = aug.draw_tables(20, 8, 8, augment, seed=0, epoch=0)
    batch = aug.apply(torch.from_numpy(images), tables, augment, CIFAR10)
    expected = [apply_one(images[i], tables.rows(i, i + 1), augment) for i in range(20)]
    np.testing.assert_allclose(batch, np.stack(expected), atol=1e-6)
