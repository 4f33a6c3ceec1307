"""Image sets in memory and in files, and the constants that normalise them."""

from pathlib import Path

import numpy as np
import pytest

from velodrome.data import imageset
from velodrome.data.imageset import ImageSet, MappedImages, Normalisation, Splits, channel_statistics


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


# Images in a file.


def mapped(images: np.ndarray, folder: Path) -> MappedImages:
    (folder / "images.u8").write_bytes(images.tobytes())
    return MappedImages(np.memmap(folder / "images.u8", np.uint8, "r", shape=images.shape))


def test_images_in_a_file_look_like_an_array(random_images, tmp_path):
    images = random_images(5, 4, 6)
    in_file = mapped(images, tmp_path)
    assert (in_file.shape, in_file.ndim, in_file.dtype) == (images.shape, images.ndim, images.dtype)
    assert (len(in_file), in_file.nbytes) == (5, images.nbytes)
    np.testing.assert_array_equal(np.asarray(in_file), images)
    np.testing.assert_array_equal(np.stack(list(in_file)), images)


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        np.int64(3),
        slice(None),
        slice(4, 1, -2),
        slice(7, 9),
        np.array([4, 0, 4, -1]),
        np.array([], np.int64),
        np.array([True, False, True, False, True]),
        [2, 1],
    ],
    ids=str,
)
def test_an_index_gives_what_it_gives_of_an_array_and_a_copy(random_images, tmp_path, index):
    images = random_images(5, 4, 6)
    found = mapped(images, tmp_path)[index]
    np.testing.assert_array_equal(found, images[index])
    assert type(found) is np.ndarray
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert found.base is None


@pytest.mark.parametrize("index", [5, -6, np.array([1, 5])], ids=str)
def test_what_is_beyond_the_end_is_an_error(random_images, tmp_path, index):
    with pytest.raises(IndexError):
        mapped(random_images(5), tmp_path)[index]


def test_to_take_images_of_a_file_reads_none(coloured_images, tmp_path):
    images = coloured_images(9)
    in_file = ImageSet(mapped(images.images_u8, tmp_path), images.labels, images.classes, images.paths)
    for indices in (np.array([7, 0, 7, 3]), np.array([2, 2, 0])):
        images, in_file = images.take(indices), in_file.take(indices)
        assert isinstance(in_file.images_u8, MappedImages)
        np.testing.assert_array_equal(in_file.images_u8, images.images_u8)
        assert in_file.labels.tolist() == images.labels.tolist()
        assert list(in_file.paths) == list(images.paths)


@pytest.mark.parametrize("block_bytes", [1, 5000, 2**22])
def test_channel_statistics_of_a_file_are_the_same_numbers(random_images, tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(imageset, "BLOCK_BYTES", block_bytes)
    images = random_images(301, 9, 7)
    rows = np.random.default_rng(0).permutation(301)[:200]
    assert channel_statistics(mapped(images, tmp_path)) == channel_statistics(images)
    assert channel_statistics(mapped(images, tmp_path).take(rows)) == channel_statistics(images[rows])


def own_memory_bytes() -> int:
    """What this process holds besides files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_a_file_of_any_size_is_read_in_little_memory(tmp_path):
    path = tmp_path / "images.u8"
    with path.open("wb") as file:
        file.truncate(96 * 2**20)
    images = MappedImages(np.memmap(path, np.uint8, "r", shape=(8192, 64, 64, 3)))
    order, most = np.random.default_rng(0).permutation(8192), 0
    before = own_memory_bytes()
    for start in range(0, 8192, 128):
        assert not images[order[start : start + 128]].any()
        most = max(most, own_memory_bytes())
    channel_statistics(images.take(order))
    assert max(most, own_memory_bytes()) - before < 20 * 2**20


def test_the_side_of_splits_is_that_of_the_images_that_are_reported_on(random_images):
    train, test = (
        ImageSet(random_images(1, side, side), np.zeros(1, np.int64), ("a",), ["a"]) for side in (10, 8)
    )
    assert Splits("made", train, None, test).side == 8
