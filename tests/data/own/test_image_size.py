"""The size that images are brought to where nobody says."""

import numpy as np
import pytest
from PIL import Image

from velodrome.data.own import image_size
from velodrome.data.own.image_size import choose_side, estimate, sample_sizes
from velodrome.data.own.listing import Entry


@pytest.mark.parametrize(
    ("sizes", "side"),
    [
        ([(375, 500)], 64),
        ([(28, 28)], 32),
        ([(32, 32)], 32),
        ([(33, 90)], 40),
        ([(90, 40)], 40),
        ([(57, 57)], 64),
        ([(10, 10), (50, 60), (2000, 3000)], 56),
        ([(40, 40), (42, 42)], 48),
        ([(1, 1)], 32),
    ],
)
def test_the_side_is_the_median_of_the_shorter_sides(sizes, side):
    chosen, why = choose_side(np.array(sizes, np.int32))
    assert chosen == side
    assert why.startswith(f"{side} pixels: the median image is ")


def test_a_sentence_says_why_and_what_else_there_is():
    assert choose_side(np.array([(375, 500)], np.int32)) == (
        64,
        "64 pixels: the median image is 375 pixels on its shorter side; "
        "--image-size 128 shows more and takes four times as long",
    )
    assert choose_side(np.array([(28, 28)], np.int32))[1] == (
        "32 pixels: the median image is 28 pixels on its shorter side"
    )
    assert choose_side(np.zeros((0, 2), np.int32)) == (32, "32 pixels: no image could be looked at")


def files(folder, *sizes):
    """Entries of black images, widths and heights given."""
    entries = []
    for number, size in enumerate(sizes):
        path = folder / f"{number:03}.png"
        Image.new("RGB", size).save(path)
        entries.append(Entry(path, path.name, 0, None))
    return entries


def test_sizes_are_heights_and_widths_from_headers(tmp_path):
    entries = files(tmp_path, (20, 30), (40, 50), (60, 70))
    (tmp_path / "001.png").write_bytes(b"no image")
    # Only the header: its end is gone.
    (tmp_path / "002.png").write_bytes((tmp_path / "002.png").read_bytes()[:50])
    found = sample_sizes(entries)
    assert found.tolist() == [[30, 20], [70, 60]]
    assert found.dtype == np.int32


def test_a_sample_is_spread_evenly(tmp_path):
    entries = files(tmp_path, *((number + 1, 1) for number in range(21)))
    assert sample_sizes(entries, 5)[:, 1].tolist() == [1, 6, 11, 16, 21]
    assert len(sample_sizes(entries, 100)) == 21


def test_no_sizes_where_nothing_can_be_read(tmp_path):
    entries = [Entry(tmp_path / "gone.png", "gone.png", 0, None)]
    assert sample_sizes(entries).shape == (0, 2)


def test_an_estimate_grows_with_the_images(tmp_path, monkeypatch):
    entries = files(tmp_path, (50, 50), (50, 50))
    size_bytes, seconds = estimate(entries * 500, 32)
    assert 1000 * 32 * 32 * 3 < size_bytes < 1.1 * 1000 * 32 * 32 * 3
    assert 0 < seconds < 60
    monkeypatch.setattr(image_size, "TIMED_S", 0.0)
    assert estimate(entries, 32)[1] > 0
    gone = [Entry(tmp_path / "gone.png", "gone.png", 0, None)]
    assert estimate(gone, 32)[0] > 0
