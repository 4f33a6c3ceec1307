"""A folder of class folders becomes labelled images, and what is wrong with it is named."""

import os

import numpy as np
import pytest
from PIL import Image

from velodrome.data.labelled_folder import read_labelled_folder
from velodrome.errors import DataError

CLASSES = ("cat", "dog", "ship")


def write_image(path, colour=(10, 20, 30), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def read(path):
    return read_labelled_folder(path, CLASSES, (8, 8))


def test_labels_follow_the_models_classes_not_the_folders_order(tmp_path):
    write_image(tmp_path / "ship" / "a.png", (1, 1, 1))
    write_image(tmp_path / "cat" / "deep" / "b.png", (2, 2, 2))
    write_image(tmp_path / "cat" / "a.png", (3, 3, 3))
    images, failed = read(tmp_path)
    assert failed == []
    assert images.classes == CLASSES
    assert images.labels.tolist() == [0, 0, 2]
    assert list(images.paths) == ["cat/a.png", "cat/deep/b.png", "ship/a.png"]
    assert images.images_u8[:, 0, 0, 0].tolist() == [3, 2, 1]
    assert images.images_u8.shape == (3, 8, 8, 3)
    assert images.labels.dtype == np.int64


@pytest.mark.parametrize("part", ["test", "val", "valid", "validation"])
def test_of_a_data_set_in_parts_the_held_out_one_is_taken(tmp_path, part):
    write_image(tmp_path / "train" / "dog" / "a.png")
    write_image(tmp_path / part / "dog" / "b.png")
    images, _ = read(tmp_path)
    assert list(images.paths) == [f"{part}/dog/b.png"]


def test_a_class_may_be_called_test(tmp_path):
    write_image(tmp_path / "test" / "a.png")
    images, _ = read_labelled_folder(tmp_path, ("cat", "test"), (8, 8))
    assert images.labels.tolist() == [1]


def test_hidden_folders_and_files_are_left_out(tmp_path):
    write_image(tmp_path / "dog" / "a.png")
    write_image(tmp_path / "dog" / ".b.png")
    write_image(tmp_path / ".git" / "a.png")
    (tmp_path / "notes.txt").write_text("no class")
    assert len(read(tmp_path)[0]) == 1


def test_what_cannot_be_read_is_listed_and_the_rest_is_there(tmp_path):
    write_image(tmp_path / "dog" / "a.png")
    (tmp_path / "dog" / "b.png").write_bytes(b"")
    (tmp_path / "cat").mkdir()
    images, failed = read(tmp_path)
    assert len(images) == 1
    assert [failure.path.name for failure in failed] == ["b.png"]  # and not "cat": a class may be missing
    assert failed[0].reason


def test_a_name_that_is_no_utf8_can_be_written_down(tmp_path):
    (tmp_path / "dog").mkdir()
    name = os.fsencode(tmp_path / "dog") + b"/\xff.png"
    write_image(tmp_path / "x.png")
    os.rename(tmp_path / "x.png", name)  # noqa: PTH104 (bytes)
    images, _ = read(tmp_path)
    assert list(images.paths) == ["dog/\N{REPLACEMENT CHARACTER}.png"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "neither a data set nor a folder"),
        (lambda path: path.mkdir(), "has no folders in it"),
        (
            lambda path: write_image(path / "dogg" / "a.png"),
            "'dogg', but the model knows no such class. .*dog",
        ),
        (lambda path: (path / "dog").mkdir(parents=True), "has no image that can be read"),
        (write_image, "neither a data set nor a folder"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, make, words):
    path = tmp_path / "photos.png"
    make(path)
    with pytest.raises(DataError, match=words):
        read(path)


def test_a_name_that_no_file_can_have_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="neither a data set nor a folder"):
        read(tmp_path / ("x" * 5000))
