"""The batches of an epoch: which images, in which order, with which labels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from velodrome.config import AugmentSection
from velodrome.data.augment import apply, draw_tables, normalise, resize
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
    images: ImageSet, augment: AugmentSection = OFF, batch_size: int = 8, seed: int = 0, epochs: int = 1
) -> Loader:
    return Loader(images, BYTES, augment, batch_size, seed, CPU, epochs)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(8, [8, 8, 7]), (1, [1] * 23), (23, [23]), (50, [23]), (22, [22, 1])]
)
def test_the_last_smaller_batch_is_kept(numbered, batch_size, sizes):
    loader = make_loader(numbered, batch_size=batch_size)
    epoch = loader.epoch(0)
    assert loader.steps_per_epoch == len(epoch) == len(sizes)
    assert [len(epoch[step][1]) for step in range(len(epoch))] == sizes


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(8, [8, 8]), (1, [1] * 23), (23, [23]), (22, [22]), (12, [12])]
)
def test_the_last_smaller_batch_can_be_dropped(numbered, batch_size, sizes):
    loader = Loader(numbered, BYTES, OFF, batch_size, 0, CPU, drop_last=True)
    epoch = loader.epoch(0)
    assert loader.steps_per_epoch == len(epoch) == len(sizes)
    assert [len(epoch[step][1]) for step in range(len(epoch))] == sizes
    assert loader.images_per_epoch == sum(sizes)
    kept = make_loader(numbered, batch_size=batch_size)
    assert kept.images_per_epoch == N
    for step in range(len(epoch)):  # what is left are the same batches
        assert torch.equal(epoch[step][0], kept.epoch(0)[step][0])


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


# Images that grow during training, and sides by turns.


def sides_of(loader: Loader, epochs: int) -> list[list[int]]:
    """Side of the images of each batch, by epoch."""
    found = []
    for number in range(epochs):
        epoch = loader.epoch(number)
        shapes = [tuple(epoch[step][0].shape) for step in range(len(epoch))]
        assert [shape[:2] for shape in shapes] == [(8, 3), (8, 3), (7, 3)]
        assert all(height == width for _, _, height, width in shapes)
        found.append([height for _, _, height, _ in shapes])
    return found


def test_images_grow_by_their_shares_of_the_steps(numbered):
    """12 steps: half of them, a third, a sixth. Later epochs keep the last size."""
    loader = make_loader(numbered, replace(OFF, resolutions="4:3,5:2,9:1"), epochs=4)
    assert sides_of(loader, 6) == [[4, 4, 4], [4, 4, 4], [5, 5, 5], [5, 9, 9], [9, 9, 9], [9, 9, 9]]


def test_shares_may_be_any_numbers_and_sides_may_come_again(numbered):
    loader = make_loader(numbered, replace(OFF, resolutions="9:0.5,4:0.25,9:0.25"), epochs=4)
    assert sides_of(loader, 5) == [[9, 9, 9], [9, 9, 9], [4, 4, 4], [9, 9, 9], [9, 9, 9]]


def test_without_resolutions_images_keep_their_size(numbered):
    loader = make_loader(numbered, epochs=2)
    assert loader.side_at(0) is None
    assert loader.epoch(0)[0][0].shape == (8, 3, 8, 6)


def test_batches_are_the_images_resized(coloured_images):
    images = coloured_images(N, 8, 8)
    small, plain = (
        make_loader(images, replace(OFF, flip=True, resolutions=text), epochs=2).epoch(0)
        for text in ("5:1,8:1", None)
    )
    for step in range(3):
        (found, labels), (whole, same_labels) = small[step], plain[step]
        expected = resize(whole.permute(0, 2, 3, 1).round().byte(), 5).permute(0, 3, 1, 2).float()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(labels, same_labels)
        assert found.is_contiguous(memory_format=torch.channels_last)


@given(
    shares=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    epochs=st.integers(1, 70),
)
@example(shares=[1, 48], epochs=49)  # 1 / 49 * 49 is below 1 in floating point
@example(shares=[1, 2], epochs=3)
def test_steps_are_shared_exactly(shares, epochs):
    """A step has the size in whose share its beginning lies."""
    images = ImageSet(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64), ("a",), ["0"])
    text = ",".join(f"{side}:{share}" for side, share in enumerate(shares, 1))
    loader = make_loader(images, replace(OFF, resolutions=text), batch_size=1, epochs=epochs)
    ends = [Fraction(end, sum(shares)) for end in itertools.accumulate(shares)]
    for step in range(epochs):
        expected = next(side for side, end in enumerate(ends, 1) if Fraction(step, epochs) < end)
        assert loader.side_at(step) == expected
    assert loader.side_at(epochs) == loader.side_at(10 * epochs) == len(shares)


def test_with_another_seed_the_sizes_stay(numbered):
    loader = make_loader(numbered, replace(OFF, resolutions="4:1,9:1"), epochs=4)
    assert sides_of(loader.with_seed(7), 5) == sides_of(loader, 5)


ALTERNATE = AugmentSection(crop=0, flip=True, cutout=0, alternate_flip=True)


def seen_flipped(loader: Loader, epoch: int) -> list[bool]:
    """Whether each image, in the order of the set, is mirrored in an epoch."""
    batches = loader.epoch(epoch)
    images = torch.cat([batches[step][0] for step in range(len(batches))])
    flipped = images[:, 0, 0, 0] > images[:, 0, 0, -1]  # the left edge is brighter than the right one
    found = torch.empty(N, dtype=torch.bool)
    found[batches.order] = flipped
    return found.tolist()


@pytest.fixture
def leaning() -> ImageSet:
    """Images that are dark on the left and bright on the right."""
    row = np.linspace(0, 250, 6).astype(np.uint8)
    images_u8 = np.tile(row[None, None, :, None], (N, 8, 1, 3))
    return ImageSet(images_u8, np.zeros(N, np.int64), ("a",), [str(i) for i in range(N)])


@pytest.mark.parametrize("batch_size", [8, 23])
def test_every_image_is_seen_from_both_sides_in_two_epochs_in_a_row(leaning, batch_size):
    loader = make_loader(leaning, ALTERNATE, batch_size, seed=3)
    epochs = [seen_flipped(loader, epoch) for epoch in range(5)]
    assert 0 < sum(epochs[0]) < N
    for now, then in itertools.pairwise(epochs):
        assert now == [not flipped for flipped in then]
    orders = [loader.epoch(epoch).order.tolist() for epoch in range(2)]
    assert orders[0] != orders[1]
    assert seen_flipped(make_loader(leaning, ALTERNATE, 5, seed=3), 3) == epochs[3]
    assert seen_flipped(loader.with_seed(4), 0) not in (epochs[0], epochs[1])


def test_without_it_an_image_may_be_seen_from_one_side_twice(leaning):
    loader = make_loader(leaning, replace(ALTERNATE, alternate_flip=False))
    first, second = (seen_flipped(loader, epoch) for epoch in range(2))
    assert 0 < sum(one == other for one, other in zip(first, second, strict=True)) < N
    still = make_loader(leaning, replace(ALTERNATE, flip=False))
    assert seen_flipped(still, 0) == seen_flipped(still, 1) == [False] * N
