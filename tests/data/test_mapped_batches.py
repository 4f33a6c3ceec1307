"""Batches of images in a file are those of images in memory; and images stored in another size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from velodrome.config import AugmentSection
from velodrome.data import loader as loading
from velodrome.data.augment import draw_tables, resize
from velodrome.data.imageset import ImageSet, MappedImages, channel_statistics
from velodrome.data.loader import Kind, Loader, free_bytes_on

N, BATCH = 30, 8
CPU = torch.device("cpu")
REFERENCE = AugmentSection(crop=2, cutout=3)
STRONG = AugmentSection(
    random_resized_crop=0.2,
    brightness=0.2,
    contrast=0.2,
    saturation=0.3,
    hue=0.1,
    randaugment=2,
    cutout=3,
    mixup=0.3,
    cutmix=1.0,
)
AUGMENTS = [
    AugmentSection(crop=0, flip=False, cutout=0),
    REFERENCE,
    STRONG,
    replace(STRONG, resolutions="7:1,9:1"),
]


def mapped(images: ImageSet, folder: Path) -> ImageSet:
    """The same images in a file, where they lie in another order among others."""
    rows = np.random.default_rng(0).permutation(len(images) + 5)[: len(images)]
    path = folder / "images.u8"
    shape = (len(images) + 5, *images.images_u8.shape[1:])
    written = np.memmap(path, np.uint8, "w+", shape=shape)
    written[rows] = images.images_u8
    written.flush()
    there = MappedImages(np.memmap(path, np.uint8, "r", shape=shape), rows)
    return replace(images, images_u8=there)


def loader_of(images: ImageSet, augment: AugmentSection, **settings: object) -> Loader:
    return Loader(images, channel_statistics(images.images_u8), augment, BATCH, 3, CPU, 2, **settings)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("side", [None, 8])
@pytest.mark.parametrize("balance", ["none", "sampling"])
def test_batches_are_the_same_bit_for_bit(coloured_images, tmp_path, augment, side, balance):
    images = coloured_images(N, 10, 10)
    images.labels[:3] = 0
    resident = loader_of(images, augment, side=side, balance=balance)
    streamed = loader_of(mapped(images, tmp_path), augment, side=side, balance=balance)
    assert resident.is_resident
    assert not streamed.is_resident
    assert streamed.normalisation == resident.normalisation
    for number in range(3):
        ours, theirs = streamed.epoch(number), resident.epoch(number)
        for step in range(len(ours)):
            for found, expected in zip(ours[step], theirs[step], strict=True):
                assert torch.equal(found, expected)
                assert found.dtype == expected.dtype
            assert ours[step][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_batch_is_the_same_by_its_step_and_by_its_rows(coloured_images, tmp_path, augment, in_file):
    images = coloured_images(N, 10, 10)
    loader = loader_of(mapped(images, tmp_path) if in_file else images, augment)
    epoch = loader.epoch(1)
    for step in range(len(epoch)):
        size, side = loader.kind(1, step)
        rows = torch.arange(step * BATCH, step * BATCH + size)
        for found, expected in zip(epoch.batch_of(rows, side), epoch[step], strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("in_file", [False, True])
def test_tables_of_another_epoch_can_be_taken_over(coloured_images, tmp_path, in_file):
    images = coloured_images(N, 10, 10)
    loader = loader_of(mapped(images, tmp_path) if in_file else images, STRONG)
    epoch = loader.epoch(0)
    epoch.take_over(loader.epoch(5))
    for step in range(len(epoch)):
        for found, expected in zip(epoch.batch(step, None), loader.epoch(5)[step], strict=True):
            assert torch.equal(found, expected)


def test_a_batch_is_a_function_of_seed_and_epoch(coloured_images):
    images = coloured_images(N, 10, 10)

    def batch(seed: int, epoch: int) -> torch.Tensor:
        return loader_of(images, STRONG).with_seed(seed).epoch(epoch)[1][0]

    assert torch.equal(batch(3, 1), batch(3, 1))
    torch.rand(3)  # whatever else is drawn
    assert torch.equal(batch(3, 1), batch(3, 1))
    assert not torch.equal(batch(3, 1), batch(3, 2))
    assert not torch.equal(batch(3, 1), batch(4, 1))


@pytest.mark.parametrize("in_file", [False, True])
def test_the_first_images_are_whole_and_in_the_size_of_training(coloured_images, tmp_path, in_file):
    images = coloured_images(N, 10, 10)
    pixels = torch.from_numpy(images.images_u8)
    there = mapped(images, tmp_path) if in_file else images
    for wanted in (4, 100):
        assert torch.equal(loader_of(there, REFERENCE).first_images(wanted), pixels[:wanted])
        smaller = loader_of(there, REFERENCE, side=8).first_images(wanted)
        assert torch.equal(smaller, resize(pixels[:wanted], 8))


# Images that are stored larger than they are trained on.


def test_batches_have_the_size_of_training(coloured_images):
    loader = loader_of(coloured_images(N, 10, 10), STRONG, side=8)
    assert loader.size == (8, 8)
    assert loader.side_at(0) == 8
    assert loader.kinds() == {Kind(8, 8): 0, Kind(6, 8): 3}
    assert loader.epoch(0)[0][0].shape == (8, 3, 8, 8)
    own = loader_of(coloured_images(N, 10, 10), STRONG)
    assert own.size == (10, 10)
    assert own.side_at(0) is None


def test_resolutions_go_before_the_size_of_training(coloured_images):
    loader = loader_of(coloured_images(N, 10, 10), replace(STRONG, resolutions="5:1,8:1"), side=8)
    assert [loader.epoch(number)[0][0].shape[-1] for number in range(2)] == [5, 8]


def test_tables_are_drawn_for_the_size_of_training(coloured_images):
    loader = loader_of(coloured_images(N, 10, 10), REFERENCE, side=8)
    expected = draw_tables(N, 8, 8, REFERENCE, seed=3, epoch=0)
    assert torch.equal(loader.epoch(0).tables.cutout_yx, expected.cutout_yx)


# Images that are too many for a GPU.


@pytest.mark.parametrize(("spare", "is_resident"), [(0, True), (-1, False)])
def test_images_that_take_more_than_half_of_a_gpu_stay_on_the_host(
    coloured_images, monkeypatch, spare, is_resident
):
    images = coloured_images(N, 10, 10)
    resident = loader_of(images, REFERENCE)
    monkeypatch.setattr(loading, "free_bytes_on", lambda device: 2 * (N * 300 + spare))
    found = loader_of(images, REFERENCE)
    assert found.is_resident == is_resident
    assert found.needs_host != is_resident
    assert torch.equal(found.first_images(N), torch.from_numpy(images.images_u8))
    for number in range(2):
        ours, theirs = found.epoch(number), resident.epoch(number)
        for step in range(len(ours)):
            for one, other in zip(ours[step], theirs[step], strict=True):
                assert torch.equal(one, other)


def test_what_torch_holds_of_a_gpu_for_later_is_free(monkeypatch):
    asked = []
    told = {"mem_get_info": (1000, 9000), "memory_reserved": 700, "memory_allocated": 300}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: asked.append(device) or value)
    gpu = torch.device("cuda", 1)
    assert free_bytes_on(gpu) == 1400
    assert asked == [gpu, gpu, gpu]
    assert free_bytes_on(CPU) == free_bytes_on(torch.device("mps")) == float("inf")


# What a run counts.


def test_whether_the_host_has_a_part_in_batches(coloured_images, tmp_path):
    images = coloured_images(N, 10, 10)
    assert not loader_of(images, REFERENCE).needs_host
    assert not loader_of(images, replace(STRONG, randaugment=0)).needs_host
    assert loader_of(images, STRONG).needs_host
    assert loader_of(mapped(images, tmp_path), REFERENCE).needs_host


@pytest.mark.parametrize(
    ("drop_last", "expected"), [(False, [0, 8, 16, 24, 30, 38, 60]), (True, [0, 8, 16, 24, 32, 40, 64])]
)
def test_images_in_the_first_steps(coloured_images, drop_last, expected):
    loader = loader_of(coloured_images(N), REFERENCE, drop_last=drop_last)
    assert [loader.images_in(steps) for steps in (0, 1, 2, 3, 4, 5, 8)] == expected
