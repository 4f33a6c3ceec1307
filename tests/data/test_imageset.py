"""Image sets, and the constants that normalise them."""

import numpy as np
import pytest

from velodrome.data.imageset import channel_statistics


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 9), (8200, 2, 3)])  # the last is counted in two chunks
def test_channel_statistics_equal_those_in_float64(random_images, shape):
    images = random_images(*shape)
    images[..., 2] //= 5  # so that no two channels are alike
    pixels = images.reshape(-1, 3) / 255.0
    found = channel_statistics(images)
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-12)
    spread = pixels.std(0)
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


def test_take_keeps_images_labels_and_paths_together(coloured_images):
    images = coloured_images(9)
    taken = images.take(np.array([7, 0, 7]))
    assert len(taken) == 3
    assert np.array_equal(taken.images_u8, images.images_u8[[7, 0, 7]])
    assert taken.labels.tolist() == [1, 0, 1]
    assert list(taken.paths) == ["made/00007.png", "made/00000.png", "made/00007.png"]
    assert taken.classes == images.classes
