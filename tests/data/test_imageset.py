"""Image sets, and the constants that normalise them."""

import numpy as np
import pytest

from velodrome.data.imageset import Normalisation, channel_statistics


# The sums are taken in blocks of 256 x 1024 pixels: less than one, exactly one, one and a pixel, and more.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (7, 5, 9), (256, 32, 32), (262145, 1, 1), (8200, 2, 33), (3, 512, 512)]
)
def test_channel_statistics_equal_those_in_float64(random_images, shape):
    images = random_images(*shape)
    images[..., 2] //= 5  # so that no two channels are alike
    pixels = np.ascontiguousarray(images.reshape(-1, 3).T) / 255.0  # row by row NumPy rounds the least
    found = channel_statistics(images)
    np.testing.assert_allclose(found.mean, pixels.mean(1), rtol=1e-12)
    spread = pixels.std(1)
    np.testing.assert_allclose(found.std, np.where(spread > 0, spread, 1), rtol=1e-12)


def test_a_constant_channel_is_not_divided_by_zero(random_images):
    images = random_images(4)
    images[..., 1] = 51
    found = channel_statistics(images)
    assert found.mean[1] == pytest.approx(0.2, rel=1e-12)
    assert found.std[1] == 1.0
    assert found.std[0] < 1.0


def test_the_cifar10_way_of_counting_all_pixels_at_once():
    """The spread is that of all pixels, not the mean of the spreads of single images."""
    images = np.zeros((2, 3, 3, 3), dtype=np.uint8)
    images[1] = 255
    found = channel_statistics(images)
    assert found.mean == (0.5, 0.5, 0.5)
    assert found.std == (0.5, 0.5, 0.5)


def by_histogram(images: np.ndarray) -> Normalisation:
    """The same by another way: from how often each of the 256 values occurs."""
    values, means, stds = np.arange(256) / 255.0, [], []
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        share = counts / counts.sum()
        means.append(share @ values)
        stds.append(np.sqrt(share @ (values - means[-1]) ** 2))
    return Normalisation(tuple(means), tuple(stds))


def test_channel_statistics_equal_those_of_a_histogram(random_images):
    images = random_images(301, 32, 32)
    images[..., 0] = np.where(images[..., 0] < 250, 254, 255)  # bright, with little spread
    images[0, 0, 0, 1:] = 0
    images[..., 2] //= 128
    found, expected = channel_statistics(images), by_histogram(images)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-12)


def test_the_largest_sums_do_not_overflow():
    """A block of nothing but 255 has the largest sums; one darker pixel still makes a spread."""
    images = np.full((520, 32, 32, 3), 255, dtype=np.uint8)
    assert channel_statistics(images) == Normalisation((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    images[300, 5, 5] = 254
    n = 520 * 32 * 32
    found = channel_statistics(images)
    np.testing.assert_allclose(found.mean, 1 - 1 / 255 / n, rtol=1e-15)
    np.testing.assert_allclose(found.std, np.sqrt((1 / n) * (1 - 1 / n)) / 255, rtol=1e-14)


def test_images_that_do_not_lie_side_by_side_in_memory(random_images):
    images = random_images(40, 9, 7)
    parts = images[::3, 1:, ::2]
    assert channel_statistics(parts) == channel_statistics(parts.copy())
    assert np.array_equal(images, random_images(40, 9, 7)), "the images were changed"


def test_take_keeps_images_labels_and_paths_together(coloured_images):
    images = coloured_images(9)
    taken = images.take(np.array([7, 0, 7]))
    assert len(taken) == 3
    assert np.array_equal(taken.images_u8, images.images_u8[[7, 0, 7]])
    assert taken.labels.tolist() == [1, 0, 1]
    assert list(taken.paths) == ["made/00007.png", "made/00000.png", "made/00007.png"]
    assert taken.classes == images.classes
