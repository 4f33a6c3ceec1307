"""The batches of an epoch: which images, in which order, with which labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from velodrome.config import AugmentSection
from velodrome.data.augment import apply, draw_tables, normalise
from velodrome.data.imageset import ImageSet, Normalisation
from velodrome.data.loader import Loader, batches_in_order
from velodrome.errors import ConfigError

CPU = torch.device("cpu")
OFF = AugmentSection(crop=0, flip=False, cutout=0)
MILD = AugmentSection(crop=2, flip=True, cutout=3)
# With these constants a normalised pixel is the byte itself.
BYTES = Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
N = 23


@pytest.fixture
def numbered() -> ImageSet:
    """Image i has the value i everywhere and the label i % 4."""
    values = np.arange(N, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(N, dtype=np.int64) % 4
    return ImageSet(np.tile(values, (1, 8, 6, 3)), labels, tuple("abcd"), [str(i) for i in range(N)])


def make_loader(
    images: ImageSet, augment: AugmentSection = OFF, batch_size: int = 8, seed: int = 0
) -> Loader:
    return Loader(images, BYTES, augment, batch_size, seed, CPU)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(8, [8, 8, 7]), (1, [1] * 23), (23, [23]), (50, [23]), (22, [22, 1])]
)
def test_the_last_smaller_batch_is_kept(numbered, batch_size, sizes):
    loader = make_loader(numbered, batch_size=batch_size)
    epoch = loader.epoch(0)
    assert loader.steps_per_epoch == len(epoch) == len(sizes)
    assert [len(epoch[step][1]) for step in range(len(epoch))] == sizes


def test_every_image_once_an_epoch_with_its_label(numbered):
    epoch = make_loader(numbered).epoch(3)
    batches = [epoch[step] for step in range(len(epoch))]
    shown = [round(float(image[0, 0, 0])) for images, _ in batches for image in images]
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(shown) == list(range(N))
    assert labels.tolist() == [number % 4 for number in shown]
    assert labels.dtype == torch.int64


def test_the_order_is_a_function_of_seed_and_epoch(numbered):
    def order(seed: int, epoch: int) -> list[int]:
        return make_loader(numbered, seed=seed).epoch(epoch).order.tolist()

    assert order(0, 1) == order(0, 1)
    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1), list(range(N))]
    assert len({tuple(o) for o in orders}) == 5


def test_a_batch_can_be_made_alone(numbered):
    in_sequence = [make_loader(numbered, MILD).epoch(5)[step] for step in range(3)]
    alone = make_loader(numbered, MILD)
    for step in (2, 0, 1):
        images, labels = alone.epoch(5)[step]
        assert torch.equal(images, in_sequence[step][0])
        assert torch.equal(labels, in_sequence[step][1])


def test_images_do_not_depend_on_the_batch_size(numbered):
    def all_images(batch_size: int) -> torch.Tensor:
        epoch = make_loader(numbered, MILD, batch_size).epoch(1)
        return torch.cat([epoch[step][0] for step in range(len(epoch))])

    assert torch.equal(all_images(8), all_images(5))


def test_batches_are_augmented_by_the_tables_of_their_positions(coloured_images):
    images = coloured_images(N, 8, 6)
    epoch = make_loader(images, MILD, seed=7).epoch(2)
    tables = draw_tables(N, 8, 6, MILD, seed=7, epoch=2)
    whole = apply(torch.from_numpy(images.images_u8[epoch.order]), tables, MILD, BYTES)
    batch, _ = epoch[1]
    assert torch.equal(batch, whole[8:16])
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_epochs_augment_differently(coloured_images):
    loader = make_loader(coloured_images(N), MILD)
    shown = [loader.epoch(epoch).tables for epoch in (0, 1)]
    assert not torch.equal(shown[0].crop_yx, shown[1].crop_yx)


def test_augmentation_must_fit(numbered):
    with pytest.raises(ConfigError, match="cutout is 7"):
        make_loader(numbered, AugmentSection(crop=0, cutout=7))


def test_batches_in_order_are_all_images_unaugmented(coloured_images):
    images = coloured_images(10)
    batches = list(batches_in_order(images, BYTES, 4, CPU))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_allclose(torch.cat(batches), images.images_u8.transpose(0, 3, 1, 2), rtol=1e-6)
    assert torch.equal(torch.cat(batches), normalise(torch.from_numpy(images.images_u8), BYTES))
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)
