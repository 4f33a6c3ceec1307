"""Digests and thumbnails of images."""

from hashlib import blake2b

import numpy as np
import pytest
from PIL import Image

from velodrome.data.own.facts import ROW, Facts, facts_of
from velodrome.data.pixels import fit_image


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (64, 24), (33, 100), (11, 9)])
def test_thumbnails_are_the_means_of_blocks(random_images, shape):
    images = random_images(70, *shape)
    _, thumbnails = facts_of(images)
    assert thumbnails.shape == (70, 8, 8, 3)
    rows, columns = ([number * side // 8 for number in range(9)] for side in shape)
    for y, x in ((0, 0), (3, 5), (7, 7)):
        block = images[:, rows[y] : rows[y + 1], columns[x] : columns[x + 1]]
        expected = np.floor(block.astype(np.float64).mean((1, 2)) + 0.5)
        np.testing.assert_array_equal(thumbnails[:, y, x], expected)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (7, 7)])
def test_thumbnails_of_very_small_images_repeat_pixels(random_images, shape):
    images = random_images(3, *shape)
    _, thumbnails = facts_of(images)
    rows, columns = (np.arange(8) * side // 8 for side in shape)
    np.testing.assert_array_equal(thumbnails, images[:, rows][:, :, columns])


def test_padding_is_left_out_of_thumbnails(random_images):
    sizes = np.array([(41, 222), (200, 100), (50, 50), (0, 0)], np.int32)
    images = np.zeros((4, 64, 64, 3), np.uint8)
    found = []
    for number, (height, width) in enumerate(sizes[:2].tolist()):
        image = Image.fromarray(random_images(1, height, width, seed=number)[0])
        images[number] = fit_image(image, (64, 64), "pad")
        rows, columns = np.nonzero(images[number].any(2))
        content = images[number : number + 1, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        found.append(facts_of(np.ascontiguousarray(content))[1][0])
    images[2] = random_images(1, 64, 64)[0]
    _, thumbnails = facts_of(images, sizes, "pad")
    np.testing.assert_array_equal(thumbnails[:2], found)
    np.testing.assert_array_equal(thumbnails[2:], facts_of(images)[1][2:])
    np.testing.assert_array_equal(facts_of(images, sizes, "crop")[1], facts_of(images)[1])


def test_thumbnails_of_one_colour_have_that_colour():
    images = np.full((2, 50, 41, 3), (0, 128, 255), np.uint8)
    assert (facts_of(images)[1] == (0, 128, 255)).all()


def test_digests_are_those_of_the_pixels(random_images):
    images = random_images(130)
    digests, _ = facts_of(images)
    for image, digest in zip(images, digests, strict=True):
        assert digest.tobytes() == blake2b(image, digest_size=16).digest()
    np.testing.assert_array_equal(facts_of(images[::-1])[0], digests[::-1])


def test_no_images_have_no_facts():
    digests, thumbnails = facts_of(np.zeros((0, 8, 8, 3), np.uint8))
    assert digests.shape == (0, 16)
    assert thumbnails.shape == (0, 8, 8, 3)


def test_facts_of_rows_are_arrays_of_their_own():
    rows = np.zeros(3, ROW)
    rows["size"][1], rows["readable"][1] = (20, 30), True
    facts = Facts.of(np.frombuffer(rows.tobytes(), ROW))
    assert facts.readable.tolist() == [False, True, False]
    assert facts.sizes.tolist() == [[0, 0], [20, 30], [0, 0]]
    assert facts.sizes.dtype == np.int32
    for values in (facts.readable, facts.sizes, facts.digests, facts.thumbnails):
        assert values.flags.c_contiguous
        assert values.flags.writeable
