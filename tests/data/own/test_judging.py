"""A user's images by which a model is judged that knows its classes already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velodrome.config import Config, override
from velodrome.data.image_files import Failure
from velodrome.data.imageset import ImageSet
from velodrome.data.own.own_data import read_to_judge
from velodrome.errors import DataError

CLASSES = ("cat", "dog", "ship")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos"


def write_image(path: Path, value: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (value, 20, 30)).save(path)


def write_images(root: Path, *names: str) -> None:
    for value, name in enumerate(names):
        write_image(root / name, value)


def judge(
    path: Path, known: Sequence[str] = CLASSES, fit: str = "crop"
) -> tuple[ImageSet, tuple[Failure, ...]]:
    config = override(Config(), {"data": str(path), "image_size": 8, "image_fit": fit})
    return read_to_judge(config.data, known, say=lambda _: None)


def rows(path: Path, known: Sequence[str] = CLASSES) -> list[tuple[str, str]]:
    images, failed = judge(path, known)
    assert failed == ()
    return [(name, images.classes[label]) for name, label in zip(images.paths, images.labels, strict=True)]


def test_all_images_of_a_folder_without_splits(root: Path) -> None:
    write_images(root, "ship/a.png", "cat/deep/b.png", "cat/a.png")
    images, _ = judge(root)
    assert list(images.paths) == ["cat/a.png", "cat/deep/b.png", "ship/a.png"]
    assert [images.classes[label] for label in images.labels] == ["cat", "cat", "ship"]
    assert images.images_u8[:, 0, 0, 0].tolist() == [2, 1, 0]
    assert images.images_u8.shape == (3, 8, 8, 3)


def test_images_have_the_models_fit(root: Path) -> None:
    write_images(root, "dog/a.png")
    assert judge(root, fit="crop")[0].images_u8[0, 0, 0].tolist() == [0, 20, 30]
    assert judge(root, fit="pad")[0].images_u8[0, 0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("part", ["test", "val", "valid", "Validation"])
def test_of_splits_the_held_out_one_is_taken(root: Path, part: str) -> None:
    write_images(root, "train/dog/a.png", "train/horse/a.png", f"{part}/dog/b.png")
    assert rows(root) == [(f"{part}/dog/b.png", "dog")]


def test_of_test_and_val_test_is_taken_if_there_is_an_image(root: Path) -> None:
    write_images(root, "train/dog/a.png", "val/dog/b.png", "test/dog/c.png")
    assert rows(root) == [("test/dog/c.png", "dog")]
    (root / "test" / "dog" / "c.png").unlink()
    assert rows(root) == [("val/dog/b.png", "dog")]


def test_images_to_train_on_need_not_be_there(root: Path) -> None:
    write_images(root, "test/dog/a.png", "test/cat/b.png")
    assert rows(root) == [("test/cat/b.png", "cat"), ("test/dog/a.png", "dog")]


def test_train_alone_is_no_split(root: Path) -> None:
    write_images(root, "train/dog/a.png", "train/cat/b.png")
    assert rows(root) == [("train/cat/b.png", "cat"), ("train/dog/a.png", "dog")]


@pytest.mark.parametrize("names", [["dog/a.png"], ["dog/deep/a.png"], ["dog/a.png", "dog/deep/b.png"]])
def test_one_class_is_enough(root: Path, names: list[str]) -> None:
    write_images(root, *names)
    assert rows(root) == [(name, "dog") for name in names]


def test_an_outer_folder_may_be_called_as_a_class(root: Path) -> None:
    write_images(root, "dog/dog/a.png", "dog/cat/b.png")
    assert rows(root) == [("dog/cat/b.png", "cat"), ("dog/dog/a.png", "dog")]


@pytest.mark.parametrize("names", [["test/a.png"], ["cat/b.png", "test/a.png"]])
def test_a_class_may_be_called_test(root: Path, names: list[str]) -> None:
    write_images(root, *names)
    assert rows(root, ("cat", "test")) == [(name, name.split("/")[0]) for name in names]


def test_a_model_of_trains_is_judged_by_the_split_test(root: Path) -> None:
    write_images(root, "train/train/a.png", "train/car/b.png", "test/train/c.png")
    assert rows(root, ("car", "train")) == [("test/train/c.png", "train")]


def test_hidden_things_and_folders_without_images_are_left_out(root: Path) -> None:
    write_images(root, "dog/a.png", "dog/.b.png", ".git/a.png")
    (root / "horse").mkdir()
    (root / "notes.txt").write_text("no class")
    assert rows(root) == [("dog/a.png", "dog")]


def test_what_cannot_be_read_is_listed_and_the_rest_is_there(root: Path) -> None:
    write_images(root, "dog/a.png", "train/dog/c.png")
    (root / "dog" / "a.png").rename(root / "b.png")
    write_images(root, "test/dog/a.png")
    (root / "b.png").unlink()
    (root / "test" / "dog" / "b.png").write_bytes(b"")
    (root / "train" / "dog" / "bad.png").write_bytes(b"")  # which nobody asks about
    images, failed = judge(root)
    assert list(images.paths) == ["test/dog/a.png"]
    assert [failure.path.name for failure in failed] == ["b.png"]
    assert failed[0].reason


def test_a_name_that_is_no_utf8_can_be_written_down(root: Path) -> None:
    write_images(root, "dog/x.png")
    os.rename(root / "dog" / "x.png", os.fsencode(root) + b"/dog/\xff.png")  # noqa: PTH104 (bytes)
    assert rows(root) == [("dog/\N{REPLACEMENT CHARACTER}.png", "dog")]


def test_of_a_table_the_rows_to_train_on_do_not_matter(root: Path) -> None:
    write_images(root, "a.png", "b.png")
    (root / "t.csv").write_text(
        "path,label,split\na.png,dog,test\ngone.png,dog,train\nc.png,horse,train\nb.png,cat,test\n"
    )
    assert rows(root / "t.csv") == [("a.png", "dog"), ("b.png", "cat")]
    assert rows(root) == [("a.png", "dog"), ("b.png", "cat")]


def test_a_table_of_one_class_without_splits(root: Path) -> None:
    write_images(root, "a.png", "b.png")
    (root / "t.csv").write_text("path,label\na.png,dog\nb.png,dog\ngone.png,dog\n")
    images, failed = judge(root / "t.csv")
    assert list(images.paths) == ["a.png", "b.png"]
    assert [failure.path.name for failure in failed] == ["gone.png"]


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ({"images": "cat"}, ["0", "1"]),
        ({"train_images": "horse", "test_images": "dog"}, ["test/0", "test/1"]),
        ({"train_images": "horse", "val_images": "dog"}, ["test/0", "test/1"]),
        ({"x_test": "dog"}, ["test/0", "test/1"]),
        ({"train_images": "dog"}, ["0", "1"]),
    ],
)
def test_arrays(tmp_path: Path, parts: dict[str, str], names: list[str]) -> None:
    arrays = {}
    for images, label in parts.items():
        arrays[images] = np.full((2, 8, 8, 3), 7, np.uint8)
        arrays[images.replace("images", "labels").replace("x_", "y_")] = np.array([label] * 2)
    np.savez(tmp_path / "a.npz", **arrays)
    assert rows(tmp_path / "a.npz") == [(name, list(parts.values())[-1]) for name in names]


def test_classes_of_arrays_that_no_image_has_may_be_any(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=[1, 1], classes=["horse", "dog"])
    assert rows(tmp_path / "a.npz") == [("0", "dog"), ("1", "dog")]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "has no image in it"),
        (lambda path: write_images(path, "dogg/a.png"), "has the class 'dogg', .* Did you mean dog"),
        (lambda path: write_images(path, "test/dgo/a.png", "train/dog/a.png"), "has the class 'dgo'"),
        (lambda path: (path / "dog").mkdir(parents=True), "has no image in it"),
        (lambda path: write_images(path, "a.png"), "no folders that say their classes"),
    ],
)
def test_what_is_wrong_is_said(root: Path, make: object, words: str) -> None:
    make(root)  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        judge(root)


def test_unknown_classes_of_arrays_and_tables(root: Path) -> None:
    write_images(root, "a.png")
    (root / "t.csv").write_text("path,label\na.png,dogs\n")
    np.savez(root / "a.npz", images=np.zeros((1, 8, 8), np.uint8), labels=["dogs"])
    for name in ("t.csv", "a.npz"):
        with pytest.raises(DataError, match="has the class 'dogs', but the model knows no such class"):
            judge(root / name)


def test_where_no_image_can_be_read(root: Path) -> None:
    (root / "dog").mkdir(parents=True)
    (root / "dog" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"has no image that can be read; the first: .*a\.png"):
        judge(root)


def test_a_name_that_no_file_can_have_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be looked at"):
        judge(tmp_path / ("x" * 5000))
