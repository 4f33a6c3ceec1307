"""Test images that are in the training set too."""

from __future__ import annotations

import json
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velodrome.data.duplicates import Duplicate, exact_duplicates
from velodrome.data.imageset import ImageSet, ImagesU8

CLASSES = ("cat", "dog")


def image_set(images_u8: ImagesU8, labels: list[int], classes: tuple[str, ...] = CLASSES) -> ImageSet:
    return ImageSet(images_u8, np.array(labels, np.int64), classes, [str(i) for i in range(len(labels))])


@pytest.fixture
def train(random_images) -> ImageSet:
    """Images 1 and 4 are the same, with different labels."""
    images = random_images(6)
    images[4] = images[1]
    return image_set(images, [0, 0, 0, 1, 1, 1])


def test_duplicates_and_their_first_match(train, random_images):
    images = random_images(5, seed=1)
    images[1], images[3], images[4] = train.images_u8[4], train.images_u8[5], train.images_u8[5]
    found = exact_duplicates(image_set(images, [0, 1, 0, 0, 1]), train)
    assert found.found == (Duplicate(1, 1, False), Duplicate(3, 5, False), Duplicate(4, 5, True))
    assert len(found) == 3


def test_a_set_against_itself(train):
    found = exact_duplicates(train, train)
    assert [(pair.test, pair.train) for pair in found.found] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 1),
        (5, 5),
    ]
    assert [pair.same_label for pair in found.found] == [True, True, True, True, False, True]


def test_one_bit_makes_a_difference(train):
    images = train.images_u8.copy()
    images[:, 7, 7, 2] ^= 1
    assert len(exact_duplicates(image_set(images, [0] * 6), train)) == 0


def test_the_same_bytes_in_another_shape_are_another_image(train):
    reshaped = image_set(train.images_u8.reshape(6, 4, 16, 3), [0] * 6)
    assert len(exact_duplicates(reshaped, train)) == 0


def test_labels_are_compared_by_name(train):
    turned = image_set(train.images_u8[:1], [1], ("dog", "cat"))
    assert exact_duplicates(turned, train).found == (Duplicate(0, 0, True),)


def test_checksums_that_are_there_already_are_compared_whatever_the_size(train, random_images, monkeypatch):
    def never(*_args: object, **_options: object) -> None:
        raise AssertionError("images are hashed again")

    monkeypatch.setattr("velodrome.data.duplicates.blake2b", never)
    known = replace(train, digests=np.arange(6, dtype=np.uint8)[:, None])
    test = image_set(random_images(3, height=4, width=4), [1, 0, 0])
    test = replace(test, digests=np.array([[9], [5], [1]], np.uint8))
    assert exact_duplicates(test, known).found == (Duplicate(1, 5, False), Duplicate(2, 1, True))
    assert exact_duplicates(test.take(np.array([2])), known).found == (Duplicate(0, 1, True),)


def test_sets_without_images(train, random_images):
    nothing = image_set(random_images(0), [])
    assert len(exact_duplicates(nothing, train)) == 0
    assert len(exact_duplicates(train, nothing)) == 0


def test_dictionary_has_the_first_twenty(random_images):
    images = image_set(random_images(25), [0] * 25)
    figures = exact_duplicates(images, images).to_dict()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["images"] == 25
    assert figures["examples"] == [{"test": i, "train": i, "same_label": True} for i in range(20)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_found_as_by_comparing_all_with_all(test_values, train_values):
    def flat(values: list[int]) -> ImageSet:
        shades = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
        return image_set(
            np.ascontiguousarray(np.broadcast_to(shades, (len(values), 2, 2, 3))), [0] * len(values)
        )

    found = exact_duplicates(flat(test_values), flat(train_values))
    expected = [
        (index, train_values.index(value)) for index, value in enumerate(test_values) if value in train_values
    ]
    assert [(pair.test, pair.train) for pair in found.found] == expected


def test_sixty_thousand_images_are_fast_and_not_copied():
    images = np.random.default_rng(0).integers(0, 256, (60_000, 32, 32, 3), dtype=np.uint8)
    labels = np.zeros(60_000, np.int64)
    paths = [""] * 60_000
    train = ImageSet(images[:50_000], labels[:50_000], CLASSES, paths[:50_000])
    test = ImageSet(images[50_000:], labels[50_000:], CLASSES, paths[50_000:])
    started = time.process_time()
    assert len(exact_duplicates(test, train)) == 0
    assert time.process_time() - started < 1.5
    tracemalloc.start()
    try:
        exact_duplicates(test, ImageSet(images[:5000], labels[:5000], CLASSES, paths[:5000]))
        assert tracemalloc.get_traced_memory()[1] < 5e6  # the images are 46 MB
    finally:
        tracemalloc.stop()
