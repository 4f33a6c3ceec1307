"""Augmentation of whole batches against a plain reference that treats one image at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from velodrome.config import AugmentSection
from velodrome.data import augment as aug
from velodrome.data.imageset import Normalisation
from velodrome.errors import ConfigError

CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
OFF = AugmentSection(crop=0, flip=False, cutout=0)
REFERENCE = AugmentSection()  # crop 4, flip, cutout 8, zero fill

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
    return {"crop": tables.crop_yx, "flip": tables.flip, "cutout": tables.cutout_yx}


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
    tables = aug.draw_tables(n, 32, 32, REFERENCE, seed=0, epoch=0)
    columns = torch.stack([*tables.crop_yx.T, tables.flip, *tables.cutout_yx.T]).double()
    correlations = torch.corrcoef(columns) - torch.eye(5)
    assert correlations.abs().max() < 5 / n**0.5


def test_tables_depend_on_seed_and_epoch_alone():
    def draw(seed: int, epoch: int) -> dict[str, Tensor | None]:
        return all_tables(aug.draw_tables(64, 32, 32, REFERENCE, seed, epoch))

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
        ("crop", AugmentSection(crop=0)),
        ("flip", AugmentSection(flip=False)),
        ("cutout", AugmentSection(cutout=0)),
    ],
)
def test_turning_one_off_leaves_the_others_as_they_were(off, augment):
    with_all = all_tables(aug.draw_tables(64, 32, 32, REFERENCE, seed=5, epoch=1))
    without = all_tables(aug.draw_tables(64, 32, 32, augment, seed=5, epoch=1))
    assert without.pop(off) is None
    assert all(torch.equal(with_all[name], table) for name, table in without.items())


def test_rows_are_those_images():
    tables = aug.draw_tables(10, 32, 32, AugmentSection(flip=False), seed=0, epoch=0)
    part = tables.rows(3, 7)
    assert torch.equal(part.crop_yx, tables.crop_yx[3:7])
    assert torch.equal(part.cutout_yx, tables.cutout_yx[3:7])
    assert part.flip is None


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
