"""What training is told about a user's images, and on which side of a split copies of them come to lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from own_images import write_folders
from PIL import Image

from velodrome.config import Config, override
from velodrome.data import sources
from velodrome.data.duplicates import exact_duplicates
from velodrome.data.imageset import ImageSet, MappedImages, Splits
from velodrome.data.own import collecting
from velodrome.data.shapes import draw_shapes
from velodrome.errors import DataError, VelodromeWarning


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def load(path: Path, seed: int = 0, *, enlarged: bool = False, progress: bool = False, **settings) -> Splits:
    config = override(Config(), {"data": str(path), **settings})
    return sources.load_splits(config.data, seed, enlarged=enlarged, progress=progress)


def drawn(folder: Path, n: int = 200, seed: int = 0, part: str = "train") -> Path:
    write_folders(draw_shapes(n, seed, part), folder)
    return folder


def copy_of(path: Path, name: str) -> str:
    shutil.copy(path, path.with_name(name))
    return path.with_name(name).relative_to(path.parents[1]).as_posix()


# What is said.


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "prepared once" not in line]


def test_training_says_which_images_are_taken_for_what(data, capsys):
    drawn(data / "train")
    drawn(data / "val", 100, seed=1, part="test")
    (data / "readme.txt").touch()
    load(data, progress=True)
    lines = said(capsys)
    assert "data: There is no test split, so val is reported on in its place." in lines
    assert "data: Left out, as they are no images: 1 .txt." in lines
    load(data)
    assert capsys.readouterr().err == ""


def test_training_says_it_of_arrays_too(tmp_path, capsys):
    train, val = draw_shapes(200, 0, "train"), draw_shapes(100, 0, "test")
    arrays = {
        "x_train": train.images_u8,
        "y_train": train.labels,
        "x_val": val.images_u8,
        "y_val": val.labels,
    }
    np.savez(tmp_path / "a.npz", **arrays)
    load(tmp_path / "a.npz", progress=True)
    assert "a.npz: There is no test split, so val is reported on in its place." in said(capsys)


def test_training_says_what_is_held_out(data, capsys):
    drawn(data, 300)
    load(data, progress=True, test_fraction=0.1, val_fraction=0.2)
    assert said(capsys) == [
        "data: Of 300 images, 30 are held out to test on, by their names and --split-seed.",
        "data: Of 270 training images, 50 are held out to choose by, as --val-fraction says.",
    ]


def test_what_the_data_say_themselves_is_not_said(data, capsys):
    for part, seed in (("train", 0), ("val", 1), ("test", 2)):
        drawn(data / part, 100, seed)
    load(data, progress=True)
    assert said(capsys) == []


# Copies.


def test_an_image_that_becomes_a_copy_moves_and_no_other(data):
    before = load(drawn(data))
    held_out = before.test.paths[0]
    same_class = next(path for path in before.train.paths if Path(path).parent == Path(held_out).parent)
    shutil.copy(data / same_class, data / held_out)
    after = load(data)
    assert {*before.test.paths} - {*after.test.paths} == {held_out}
    assert {*after.train.paths} - {*before.train.paths} == {held_out}
    assert len(after.train) + len(after.test) == 200


@pytest.mark.parametrize("enlarged", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_no_copy_of_a_training_image_is_tested_on(data, monkeypatch, capsys, enlarged, in_memory):
    monkeypatch.setattr(collecting, "fits_in_memory", lambda _: in_memory)
    shown = min(drawn(data).rglob("*.png"))
    first = shown.relative_to(data).as_posix()
    # By its name, the first of all images would be held out.
    split_seed = next(seed for seed in range(99) if first in load(data, split_seed=seed).test.paths)
    for number in range(8):
        copy_of(shown, f"copy-{number}.png")
    splits = load(data, enlarged=enlarged, progress=True, split_seed=split_seed)
    assert isinstance(splits.train.images_u8, MappedImages) != in_memory
    assert not exact_duplicates(splits.test, splits.train).found
    assert "Not held out but trained on, as the same image is trained on: " in capsys.readouterr().err
    copies = [path for path in splits.train.paths if path.startswith(f"{shown.parent.name}/copy-")]
    assert len(copies) == 8
    assert first in splits.train.paths
    check_pixels(data, splits.train, 40 if enlarged else 32)
    check_pixels(data, splits.test, 32)


def check_pixels(data: Path, images: ImageSet, side: int) -> None:
    for image, path, label in zip(images.images_u8, images.paths, images.labels, strict=True):
        assert path.startswith(f"{images.classes[label]}/")
        with Image.open(data / path) as file:
            pixels = file.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        assert np.abs(image.astype(int) - np.asarray(pixels)).mean() < 10


def test_given_splits_are_as_they_are_and_what_crosses_them_is_counted(data):
    drawn(data / "train")
    drawn(data / "test", 100, seed=1, part="test")
    leaked = next((data / "train").rglob("*.png"))
    shutil.copy(leaked, data / "test" / leaked.parent.name / "leaked.png")
    with pytest.warns(VelodromeWarning, match="1 is the same as a training image"):
        splits = load(data)
    assert len(splits.test) == 101


def test_copies_are_chosen_by_together(data):
    drawn(data)
    for path in sorted(data.rglob("*.png"))[::3]:
        copy_of(path, f"copy-of-{path.name}")
    for seed in range(3):
        splits = load(data, seed, val_fraction=0.3)
        assert not exact_duplicates(splits.val, splits.train).found
        assert any("copy-of" in path for path in splits.val.paths)
        whole = np.bincount(splits.train.labels) + np.bincount(splits.val.labels)
        assert (np.abs(np.bincount(splits.val.labels) - 0.3 * whole) <= 1.5).all()


def test_copies_in_arrays(tmp_path):
    images = draw_shapes(400, 0)
    images_u8 = np.concatenate([images.images_u8, images.images_u8[:100]])
    labels = np.concatenate([images.labels, images.labels[:100]])
    np.savez(tmp_path / "some.npz", images=images_u8, labels=labels)
    splits = load(tmp_path / "some.npz", val_fraction=0.2)
    assert not exact_duplicates(splits.test, splits.train).found
    assert not exact_duplicates(splits.val, splits.train).found
    for part in (splits.train, splits.val, splits.test):
        rows = [int(path) for path in part.paths]
        assert np.array_equal(part.images_u8, images_u8[rows])
        assert np.array_equal(part.labels, labels[rows])


# Paths that end in .npz.


def test_an_npz_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"missing\.npz does not exist\. Check the path, or give cifar10"):
        load(tmp_path / "missing.npz")


def test_a_folder_may_be_called_as_an_npz_file(tmp_path):
    splits = load(drawn(tmp_path / "photos.npz", 100))
    assert len(splits.train) + len(splits.test) == 100
