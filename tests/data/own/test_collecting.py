"""What a data set takes of the memory while it is read, split and cut down."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from velodrome.config import DataSection
from velodrome.data.own import array_file
from velodrome.data.own.array_file import BESIDES_BYTES, COPIES
from velodrome.data.own.collecting import collect
from velodrome.data.sources import load_splits
from velodrome.errors import DataError

# Of images that are small, or scaled up.
pytestmark = pytest.mark.filterwarnings("ignore::velodrome.errors.VelodromeWarning")

N, SIDE = 800, 48
# What is there whatever the number of images: modules that are imported, buffers.
ANYWAY_BYTES = 2_000_000


def write_arrays(path: Path, *, given: bool, side: int = SIDE, channels: int = 3) -> Path:
    """Noise of two classes, with or without splits."""
    images = np.random.default_rng(0).integers(0, 256, (N, side, side, channels), np.uint8)
    labels = np.arange(N) % 2
    if given:
        few = N // 5
        np.savez(path, x_train=images[few:], y_train=labels[few:], x_test=images[:few], y_test=labels[:few])
    else:
        np.savez(path, images=images, labels=labels)
    return path


def peak_bytes(data: DataSection) -> int:
    """The most memory that was taken while a data set was loaded."""
    tracemalloc.start()
    try:
        load_splits(data, 0, progress=False)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("settings", [{"val_fraction": 0.0}, {"val_fraction": 0.3, "limit_train": 600}])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("side", "image_size"), [(SIDE, "auto"), (24, SIDE)])
def test_arrays_take_as_many_copies_as_are_counted(tmp_path, settings, given, side, image_size):
    path = write_arrays(tmp_path / "data.npz", given=given, side=side)
    peak = peak_bytes(DataSection(data=str(path), image_size=image_size, **settings))
    assert peak < N * (COPIES * 3 * SIDE**2 + BESIDES_BYTES) + ANYWAY_BYTES


def test_splits_that_are_given_are_not_copied(tmp_path):
    path = write_arrays(tmp_path / "data.npz", given=True)
    assert peak_bytes(DataSection(data=str(path), val_fraction=0.0)) < 1.4 * N * 3 * SIDE**2 + ANYWAY_BYTES


@pytest.mark.parametrize("given", [False, True])
def test_every_split_has_its_own_images(tmp_path, given):
    path = write_arrays(tmp_path / "data.npz", given=given, side=8)
    with np.load(path) as file:
        names = ["x_test", "x_train"] if given else ["images"]
        saved = {image.tobytes() for name in names for image in file[name]}
        tested = {image.tobytes() for image in file["x_test"]} if given else saved
    splits = load_splits(DataSection(data=str(path), image_size=8, val_fraction=0.2), 0, progress=False)
    assert splits.val is not None
    found = [image.tobytes() for part in (splits.train, splits.val, splits.test) for image in part.images_u8]
    assert len(found) == N
    assert set(found) == saved
    assert {image.tobytes() for image in splits.test.images_u8} <= tested


def test_images_that_would_be_too_large_are_refused(tmp_path, monkeypatch):
    path = write_arrays(tmp_path / "data.npz", given=True, side=8)
    needed = N * (COPIES * 3 * 16**2 + BESIDES_BYTES - 3 * 8**2)  # more than what reading takes
    data = DataSection(data=str(path), image_size=16)
    monkeypatch.setattr(array_file, "own_share_bytes", lambda: needed)
    assert collect(data, say=lambda line: None).side == 16
    monkeypatch.setattr(array_file, "own_share_bytes", lambda: needed - 1)
    with pytest.raises(DataError, match="holds 800 images, which are brought to 16 x 16 pixels") as caught:
        collect(data, say=lambda line: None)
    assert "Use a smaller --image-size" in caught.value.remedy
