"""The drawn data set: the same every time, balanced, varied, and with no image in both splits."""

from __future__ import annotations

import numpy as np
import pytest

from velodrome.data import shapes
from velodrome.data.imageset import ImageSet
from velodrome.errors import DataError


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return shapes.draw_shapes(1000, seed=0)


def test_layout(train: ImageSet) -> None:
    assert train.images_u8.shape == (1000, 32, 32, 3)
    assert train.images_u8.dtype == np.uint8
    assert train.images_u8.flags.c_contiguous
    assert train.labels.shape == (1000,)
    assert train.labels.dtype == np.int64
    assert train.classes == shapes.CLASSES
    assert len(set(shapes.CLASSES)) == 10
    assert train.paths[12] == "shapes/train/00012.png"
    assert len(set(train.paths)) == 1000


def test_the_same_bytes_every_time(train: ImageSet) -> None:
    again = shapes.draw_shapes(1000, seed=0)
    assert np.array_equal(train.images_u8, again.images_u8)
    assert np.array_equal(train.labels, again.labels)


@pytest.mark.parametrize("n", [1, 7, 100, 101, 250])
def test_fewer_images_are_the_first_of_more(train: ImageSet, n: int) -> None:
    few = shapes.draw_shapes(n, seed=0)
    assert len(few) == n
    assert np.array_equal(few.images_u8, train.images_u8[:n])
    assert np.array_equal(few.labels, train.labels[:n])
    assert list(few.paths) == list(train.paths[:n])


def test_each_block_of_ten_holds_each_class_once(train: ImageSet) -> None:
    blocks = train.labels.reshape(-1, 10)
    assert np.array_equal(np.sort(blocks, axis=1), np.tile(np.arange(10), (100, 1)))
    assert len(np.unique(blocks, axis=0)) > 90  # and not always in the same order


@pytest.mark.parametrize("n", [3, 15, 128])
def test_classes_differ_by_at_most_one(n: int) -> None:
    counts = np.bincount(shapes.draw_shapes(n, seed=1).labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_seeds_and_splits_share_no_image(train: ImageSet) -> None:
    _, test = shapes.load_shapes(n_train=10, n_test=500, seed=0)
    other_seed = shapes.draw_shapes(500, seed=1)
    everything = np.concatenate([train.images_u8, test.images_u8, other_seed.images_u8])
    assert len(np.unique(everything.reshape(len(everything), -1), axis=0)) == len(everything)
    assert test.paths[0] == "shapes/test/00000.png"
    assert not np.array_equal(test.labels, train.labels[:500])


def test_load_gives_both_splits() -> None:
    train, test = shapes.load_shapes(n_train=120, n_test=30, seed=5)
    assert (len(train), len(test)) == (120, 30)
    assert np.array_equal(train.images_u8, shapes.draw_shapes(120, 5, "train").images_u8)
    assert np.array_equal(test.images_u8, shapes.draw_shapes(30, 5, "test").images_u8)


def test_a_user_draws_them_once_until_numpy_is_another(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    drawn: list[int] = []

    def draw_few() -> tuple[ImageSet, ImageSet]:
        drawn.append(1)
        return shapes.draw_shapes(120, 5, "train"), shapes.draw_shapes(30, 5, "test")

    monkeypatch.setattr(shapes, "load_shapes", draw_few)
    for found in (shapes.ready_shapes(), shapes.ready_shapes()):
        for kept, split in zip(found, ("train", "test"), strict=True):
            fresh = shapes.draw_shapes(len(kept), 5, split)
            assert np.array_equal(kept.images_u8, fresh.images_u8)
            assert np.array_equal(kept.labels, fresh.labels)
            assert (kept.classes, list(kept.paths)) == (fresh.classes, list(fresh.paths))
    assert len(drawn) == 1
    monkeypatch.setattr(np, "__version__", "99.0")
    shapes.ready_shapes()
    assert len(drawn) == 2


def test_images_are_neither_blank_nor_alike(train: ImageSet) -> None:
    pixels = train.images_u8.astype(np.float32)
    assert pixels.std(axis=(1, 2, 3)).min() > 5
    assert pixels.mean(axis=(1, 2, 3)).std() > 10
    for channel in range(3):
        assert 50 < pixels[..., channel].mean() < 200


def test_every_class_is_seen_in_the_mean_image(train: ImageSet) -> None:
    # A shape is lighter than its background, as a rule: so the middle is lighter than the corners.
    luminance = train.images_u8.mean(axis=3)
    for label in range(10):
        mean_image = luminance[train.labels == label].mean(axis=0)
        corners = mean_image[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
        assert mean_image[10:22, 10:22].mean() > corners + 15


@pytest.mark.parametrize("shape", shapes._SHAPES, ids=shapes.CLASSES)
@pytest.mark.parametrize("free", [0.0, 1.0])
def test_a_shape_fills_a_part_of_its_circle_and_is_its_own_mirror_image(
    shape: shapes.Shape, free: float
) -> None:
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 151), np.linspace(-1.5, 1.5, 151))
    x, y = x[None].astype(np.float32), y[None].astype(np.float32)
    distance = shape(x, y, np.full((1, 1, 1), free, dtype=np.float32))
    assert distance.dtype == np.float32
    inside = distance < 0
    assert 0.2 < inside.sum() / (np.hypot(x, y) < 1).sum() < 0.95
    assert not inside[np.hypot(x, y) > 1.2].any()
    # An edge of about one pixel needs a slope of about one.
    slope = np.hypot(*np.gradient(distance[0], 0.02))
    assert 0.9 < np.median(slope[np.abs(distance[0]) < 0.05]) < 1.1
    # A flip is an augmentation, so no shape may be left- or right-handed.
    # Points on the edge itself may round either way.
    sideways = (inside != inside[:, :, ::-1]).mean()
    upright = (inside != inside[:, ::-1, :]).mean()
    assert min(sideways, upright) < 0.005


@pytest.mark.parametrize("n", [0, -1])
def test_no_images_is_an_error(n: int) -> None:
    with pytest.raises(DataError, match=f"is {n}, and must be at least 1"):
        shapes.draw_shapes(n, seed=0)


def test_negative_seed_is_an_error() -> None:
    with pytest.raises(DataError, match="is -3"):
        shapes.draw_shapes(10, seed=-3)


def test_unknown_split_is_an_error() -> None:
    with pytest.raises(DataError, match="Did you mean train"):
        shapes.draw_shapes(10, seed=0, split="trian")
