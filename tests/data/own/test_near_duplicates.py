"""Copies are found, however they were made; images that merely resemble each other are not."""

import io
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from velodrome.data.imageset import ImagesU8
from velodrome.data.own.facts import facts_of
from velodrome.data.own.near_duplicates import candidate_pairs, difference_hash, exact_groups, near_groups
from velodrome.data.shapes import draw_shapes

Change = Callable[[Image.Image], Image.Image]


def found(groups: list[np.ndarray]) -> list[list[int]]:
    return [group.tolist() for group in groups]


def near(images_u8: ImagesU8, usable: np.ndarray | None = None) -> list[list[int]]:
    digests, thumbnails = facts_of(images_u8)
    return found(
        near_groups(thumbnails, digests, np.ones(len(images_u8), bool) if usable is None else usable)
    )


def enlarged(images_u8: ImagesU8, side: int) -> ImagesU8:
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
            for image in images_u8
        ]
    )


@pytest.fixture(scope="module")
def shapes() -> ImagesU8:
    return draw_shapes(300, 0).images_u8


@pytest.fixture(scope="module")
def pictures(shapes: ImagesU8) -> ImagesU8:
    """Of 64 pixels, which is what images of one's own have or more."""
    return enlarged(shapes, 64)


# Exactly the same


def test_images_with_the_same_pixels_are_a_group(random_images: Callable[..., ImagesU8]) -> None:
    images = random_images(9)
    images[[5, 8]], images[7] = images[2], images[1]
    digests, _ = facts_of(images)
    assert found(exact_groups(digests, np.ones(9, bool))) == [[1, 7], [2, 5, 8]]


def test_unreadable_images_are_in_no_group() -> None:
    digests, thumbnails = facts_of(np.zeros((4, 8, 8, 3), np.uint8))
    usable = np.array([True, False, False, True])
    assert found(exact_groups(digests, usable)) == [[0, 3]]
    assert near_groups(thumbnails, digests, usable) == []


@pytest.mark.parametrize("n", [0, 1, 2])
def test_hardly_any_images(n: int) -> None:
    digests, thumbnails = facts_of(np.zeros((n, 8, 8, 3), np.uint8))
    for usable in (np.ones(n, bool), np.zeros(n, bool)):
        assert near_groups(thumbnails, digests, usable) == []
        assert len(exact_groups(digests, usable)) == (n == 2 and usable.all())


# Nearly the same


def as_jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return change


def resized(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        side = round(factor * image.width)
        return image.resize((side, side), Image.Resampling.BICUBIC).resize(
            image.size, Image.Resampling.BICUBIC
        )

    return change


def brighter(factor: float) -> Change:
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


CHANGES = [as_jpeg(90), as_jpeg(75), as_jpeg(50), resized(0.8), resized(1.3), brighter(1.1), brighter(0.92)]


@pytest.mark.parametrize(
    "change", CHANGES, ids=["q90", "q75", "q50", "smaller", "larger", "brighter", "darker"]
)
def test_copies_are_found(pictures: ImagesU8, change: Change) -> None:
    copies = np.stack([np.asarray(change(Image.fromarray(image))) for image in pictures])
    groups = near(np.concatenate([pictures, copies]))
    right = sum(group == [group[0], group[0] + len(pictures)] for group in groups)
    assert right == len(groups)
    assert right >= 0.95 * len(pictures)


def test_copies_of_tiny_images_are_found(shapes: ImagesU8) -> None:
    copies = np.stack([np.asarray(as_jpeg(90)(Image.fromarray(image))) for image in shapes])
    assert len(near(np.concatenate([shapes, copies]))) >= 0.95 * len(shapes)


def test_different_shapes_are_no_copies() -> None:
    assert near(draw_shapes(4000, 1).images_u8) == []


@pytest.mark.parametrize("background", [255, 128, 0])
def test_different_things_on_one_background_are_no_copies(background: int) -> None:
    """As products in a catalogue are, and letters on paper."""
    rng = np.random.default_rng(0)
    images = np.full((6 * 6 * 3, 64, 64, 3), background, np.uint8)
    for place, image in enumerate(images):
        row, column, size = place // 18 * 8, place % 18 // 3 * 8, 8 + 8 * (place % 3)
        image[row : row + size, column : column + size] = (200, 60, 30)
    images = (images + rng.normal(0, 2, images.shape)).clip(0, 255).astype(np.uint8)
    assert near(images) == []


def test_the_same_thing_before_another_background_is_no_copy() -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0], images[1] = (110, 90, 70), (40, 95, 85)
    images[:, 8:24, 8:24] += 80
    assert near(images) == []


def test_flat_images_are_the_same_only_where_they_are() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(118, 122, (50, 32, 32, 3), dtype=np.uint8)
    images[7] = images[3]
    assert near(images) == []
    assert found(exact_groups(facts_of(images)[0], np.ones(50, bool))) == [[3, 7]]


def test_a_group_holds_exact_copies_and_copies_of_copies(pictures: ImagesU8) -> None:
    first = pictures[4].astype(int)
    chain = [np.clip(first + step, 0, 255) for step in (0, 16, 32, 48)]  # the ends are too unlike
    images = np.concatenate([pictures[:4], np.stack(chain).astype(np.uint8), pictures[4:5], pictures[5:9]])
    assert near(images) == [[4, 5, 6, 7, 8]]
    assert near(images[[4, 7]]) == []


def test_an_unreadable_image_joins_nothing(pictures: ImagesU8) -> None:
    images = np.stack([pictures[0], np.clip(pictures[0].astype(int) + 6, 0, 255).astype(np.uint8)] * 2)
    assert near(images) == [[0, 1, 2, 3]]
    assert near(images, np.array([True, True, True, False])) == [[0, 1, 2]]
    assert near(images, np.array([True, False, True, False])) == []


# How they are looked for


def test_a_bit_says_that_a_block_is_lighter_than_the_next() -> None:
    thumbnail = np.zeros((1, 8, 8, 3), np.uint8)
    thumbnail[0, 0, 0], thumbnail[0, 5, 7] = 200, 100
    assert np.flatnonzero(difference_hash(thumbnail)).tolist() == [0, 47]


@given(st.sets(st.integers(0, 63), max_size=3), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_every_pair_within_three_bits_is_compared(flipped: set[int], seed: int) -> None:
    bits = np.random.default_rng(seed).random((40, 64)) < 0.5
    bits[31] = bits[7]
    bits[31, list(flipped)] ^= True
    pairs = {
        frozenset(pair)
        for first, second in candidate_pairs(bits)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    }
    assert {7, 31} in pairs


def seconds_for(thumbnails: np.ndarray) -> tuple[float, list[np.ndarray]]:
    digests = np.random.default_rng(0).integers(0, 256, (len(thumbnails), 16)).astype(np.uint8)
    began = time.perf_counter()
    groups = near_groups(thumbnails, digests, np.ones(len(thumbnails), bool))
    return time.perf_counter() - began, groups


# Times are ten times what it takes, for busy machines; they are to notice what grows with the square.


def test_50_000_images_take_seconds() -> None:
    thumbnails = np.random.default_rng(0).integers(0, 256, (50_000, 8, 8, 3), dtype=np.uint8)
    thumbnails[49_999] = thumbnails[123] ^ 1
    seconds, groups = seconds_for(thumbnails)
    assert found(groups) == [[123, 49_999]]
    assert seconds < 20


def test_thousands_of_images_that_are_alike_are_one_group() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(20, 230, (8, 8, 3))
    thumbnails = (one + rng.normal(0, 2, (10_000, 8, 8, 3))).astype(np.uint8)
    seconds, groups = seconds_for(thumbnails)
    assert [len(group) for group in groups] == [10_000]
    assert seconds < 10


def test_thousands_of_images_with_one_hash_take_seconds_too() -> None:
    rng = np.random.default_rng(0)
    slopes = np.linspace(0, 200, 8)[:, None] * rng.uniform(0.2, 1, (10_000, 8, 1, 3))
    seconds, groups = seconds_for(slopes.astype(np.uint8))
    assert groups == []
    assert seconds < 10
