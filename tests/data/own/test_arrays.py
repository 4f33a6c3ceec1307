"""Arrays of images become RGB with numbered labels, and what is wrong with them is said with its remedy."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from velodrome.data.image_files import read_image
from velodrome.data.own import array_file
from velodrome.data.own.array_file import BESIDES_BYTES
from velodrome.data.own.arrays import is_array_file, read_arrays
from velodrome.errors import DataError, visible


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(path: Path, **arrays: object) -> Path:
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_arrays(path)
    assert visible(str(caught.value)) == str(caught.value)
    assert str(path) in caught.value.problem
    return str(caught.value)


# Names.


@pytest.mark.parametrize(
    ("images", "labels"), [("images", "labels"), ("x", "y"), ("X", "Y"), ("Images", "LABELS")]
)
def test_images_without_splits(path, images, labels):
    pixels = noise(4, 6, 5, 3)
    found = read_arrays(saved(path, **{images: pixels, labels: np.array([0, 1, 1, 0]), "more": np.zeros(3)}))
    assert found.classes == ("0", "1")
    assert list(found.images_u8) == list(found.labels) == [None]
    np.testing.assert_array_equal(found.images_u8[None], pixels)
    assert found.labels[None].tolist() == [0, 1, 1, 0]
    assert found.labels[None].dtype == np.int64
    assert found.images_u8[None].flags.c_contiguous
    assert found.images_u8[None].flags.writeable


@pytest.mark.parametrize("pattern", ["{}_images {}_labels", "x_{} y_{}", "X_{} y_{}"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_images_in_splits(path, pattern, val):
    arrays = {}
    for number, split in enumerate(("train", val, "test")):
        images, labels = pattern.replace("{}", split).split()
        arrays |= {images: noise(number + 2, 4, 4), labels: np.arange(number + 2)[:, None] % 2}
    found = read_arrays(saved(path, **arrays))
    assert {split: len(labels) for split, labels in found.labels.items()} == {"train": 2, "val": 3, "test": 4}
    assert {split: images.shape for split, images in found.images_u8.items()} == {
        "train": (2, 4, 4, 3),
        "val": (3, 4, 4, 3),
        "test": (4, 4, 4, 3),
    }


def test_splits_are_settled_as_those_of_files(path):
    pair = {"x_train": noise(2, 4, 4), "y_train": [0, 1]}
    assert list(read_arrays(saved(path, **pair)).labels) == [None]
    found = read_arrays(saved(path, **pair, x_val=noise(1, 4, 4), y_val=[0]))
    assert list(found.labels) == ["train", "test"]
    assert found.notes == ("There is no test split, so val is reported on in its place.",)
    saved(path, x_test=noise(2, 4, 4), y_test=[0, 1])
    assert "has images in test, but none in train" in error_of(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["a", "b"],
            "has no arrays with images and labels; its arrays are a, b. Name the arrays images and labels",
        ),
        ([], "its arrays are none at all."),
        (["images"], "has an array images, but none called labels."),
        (["test_labels"], "has an array test_labels, but none called test_images."),
        (
            ["images", "labels", "x", "y"],
            "has the arrays images and x, so it is unclear which of them to use.",
        ),
        (["images", "labels", "x_test", "y_test"], "has the arrays images and x_test, so it is unclear"),
        (["x_val", "y_val", "x_valid", "y_valid"], "has the arrays x_val and x_valid, so it is unclear"),
    ],
)
def test_arrays_that_are_missing_or_too_many(path, names, words):
    saved(path, **{name: noise(2, 4, 4) if "x" in name or "im" in name else np.arange(2) for name in names})
    assert words in error_of(path)


def test_which_files_are_arrays(tmp_path):
    for name in ("b.NPZ", "b.npy"):
        (tmp_path / name).touch()
    (tmp_path / "folder.npz").mkdir()
    assert is_array_file(tmp_path / "b.NPZ")
    for name in ("b.npy", "folder.npz", "missing.npz", "null\0.npz"):
        assert not is_array_file(tmp_path / name)


# Pixels.


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 1)])
def test_grey_is_repeated(path, shape):
    grey = noise(*shape)
    found = read_arrays(saved(path, images=grey, labels=[0, 1, 2])).images_u8[None]
    assert found.shape == (3, 4, 5, 3)
    for channel in range(3):
        np.testing.assert_array_equal(found[..., channel], grey.reshape(3, 4, 5))


def test_transparent_parts_are_laid_on_white_as_those_of_files(path, tmp_path):
    pixels = noise(1100, 4, 4, 4)  # more than are changed at once
    found = read_arrays(saved(path, images=pixels, labels=np.arange(1100) % 2)).images_u8[None]
    for index in (0, 5, 1099):
        Image.fromarray(pixels[index]).save(tmp_path / "x.png")
        np.testing.assert_array_equal(found[index], read_image(tmp_path / "x.png", (4, 4)))


def test_columns_first_in_memory(path):
    pixels = np.asfortranarray(noise(3, 4, 5, 3))
    found = read_arrays(saved(path, images=pixels, labels=[0, 1, 2])).images_u8[None]
    np.testing.assert_array_equal(found, pixels)
    assert found.flags.c_contiguous


# Labels.


def test_numbers_become_sorted_classes(path):
    labels = np.array([[300], [-2], [7], [300]], np.int16)
    found = read_arrays(saved(path, images=noise(4, 4, 4), labels=labels))
    assert found.classes == ("-2", "7", "300")
    assert found.labels[None].tolist() == [2, 0, 1, 2]


def test_numbers_of_any_width(path):
    for dtype in (np.uint8, ">i4", np.int64):
        assert read_arrays(saved(path, x=noise(2, 4, 4), y=np.array([1, 0], dtype))).labels[
            None
        ].tolist() == [1, 0]
    large = np.array([2**64 - 1, 0], np.uint64)
    assert read_arrays(saved(path, x=noise(2, 4, 4), y=large)).classes == ("0", str(2**64 - 1))


def test_numbers_are_the_same_classes_in_all_splits(path):
    arrays = {
        "x_train": noise(2, 4, 4),
        "y_train": [9, 5],
        "x_test": noise(2, 4, 4),
        "y_test": np.array([7, 9], "u1"),
    }
    found = read_arrays(saved(path, **arrays))
    assert found.classes == ("5", "7", "9")
    assert found.labels["test"].tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["U", "S"])
def test_text(path, kind):
    labels = np.array(["dog", "cat", "dog"]).astype(kind)
    found = read_arrays(saved(path, images=noise(3, 4, 4), labels=labels))
    assert found.classes == ("cat", "dog")
    assert found.labels[None].tolist() == [1, 0, 1]
    assert read_arrays(saved(path, images=noise(2, 4, 4), labels=["10", "9"])).classes == ("9", "10")


def test_given_classes(path):
    images, classes = noise(3, 4, 4), np.array(["ship", "Cat", "cat", "none"])
    found = read_arrays(saved(path, images=images, labels=[2, 0, 1], classes=classes))
    assert found.classes == ("ship", "Cat", "cat", "none")
    assert found.labels[None].tolist() == [2, 0, 1]
    found = read_arrays(saved(path, images=images, labels=["cat", "ship", "Cat"], classes=classes))
    assert found.labels[None].tolist() == [2, 0, 1]


# Errors.

TWO = {"images": noise(2, 4, 4), "labels": [0, 1]}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"images": np.zeros((2, 4, 4), np.float32)},
            "values of type float32, but images are whole numbers from 0 to",
        ),
        (
            {"images": np.zeros((2, 4, 4), np.int64)},
            "of type uint8. Save images.astype('uint8'), or (images * 255)",
        ),
        (
            {"images": noise(2, 3, 8, 8)},
            "with channels before height and width. Save images.transpose(0, 2, 3, 1).",
        ),
        ({"images": noise(2, 48)}, "has the shape (2, 48), but images are (number, height, width)"),
        ({"images": noise(2, 4, 4, 2)}, "has the shape (2, 4, 4, 2), but images are"),
        ({"images": noise(2, 4, 4, 3, 1)}, "has the shape (2, 4, 4, 3, 1), but images are"),
        ({"images": np.uint8(3)}, "has the shape (), but images are"),
        ({"images": noise(0, 4, 4), "labels": np.arange(0)}, "so there is no pixel in it"),
        ({"images": noise(2, 0, 4)}, "so there is no pixel in it"),
        (
            {"labels": [0.0, 1.0]},
            "values of type float64, but labels are whole numbers or text. Save labels.astype",
        ),
        ({"labels": [True, False]}, "values of type bool"),
        (
            {"labels": np.eye(2, dtype=int)},
            "there must be one label for each image. If one number in each row is 1",
        ),
        ({"labels": np.int64(3)}, "has the shape (), but labels are (number,) or (number, 1)."),
        ({"labels": np.zeros((2, 1, 1), int)}, "has the shape (2, 1, 1), but labels are"),
        ({"labels": [0, 1, 1]}, "has 2 images and 3 labels, but there must be one label for each image."),
        ({"labels": [1, 1]}, "has one class only, 1,"),
        ({"labels": ["cat", "cat"]}, "has one class only, cat,"),
        ({"labels": ["cat", " "]}, "has an empty label"),
        ({"labels": [b"\xff", b"a"]}, "is truncated or damaged: 'utf-8' codec"),
        (
            {"classes": ["a"]},
            "has the label 1, but beside an array classes of 1 names, labels are whole numbers from 0",
        ),
        (
            {"labels": ["x", "a"], "classes": ["a", "b"]},
            "has the label x, but beside an array classes of 2 names",
        ),
        ({"labels": [-1, 0], "classes": ["a", "b"]}, "has the label -1"),
        ({"labels": [0, 0], "classes": ["a", "b"]}, "has one class only, a,"),
        ({"classes": ["a", "a"]}, "holds the name 'a', which is empty or that of two classes."),
        ({"classes": ["a", ""]}, "holds the name '', which is empty"),
        ({"classes": [[1]]}, "must be a row of text, a name for each class."),
        (
            {"images": np.array([{}, 1], object)},
            "images holds Python objects, which are not read, as that could run",
        ),
        ({"labels": np.array(["a", 1], object)}, "labels holds Python objects"),
        ({"classes": np.array(["a", "b"], object)}, "classes holds Python objects"),
    ],
)
def test_what_is_wrong_is_said(path, arrays, words):
    assert words in error_of(saved(path, **(TWO | arrays)))


def test_splits_that_do_not_fit_together(path):
    train = {"x_train": noise(2, 4, 4), "y_train": [0, 1]}
    saved(path, **train, x_test=noise(2, 5, 4), y_test=[0, 1])
    assert "has x_train of 4 x 4 pixels and x_test of 5 x 4 pixels, but all" in error_of(path)
    saved(path, **train, x_test=noise(2, 4, 4), y_test=["a", "b"])
    assert "has labels that are numbers, and others that are text" in error_of(path)


@pytest.mark.parametrize(("channels", "factor"), [(1, 2), (3, 2), (4, 7 / 3)])
def test_too_many_images_for_the_memory(path, monkeypatch, channels, factor):
    saved(path, images=noise(9, 100, 100, channels), labels=np.arange(9) % 2)
    needed = round(9 * (factor * 30_000 + BESIDES_BYTES))
    monkeypatch.setattr(array_file, "own_share_bytes", lambda: needed)
    assert len(read_arrays(path).labels[None]) == 9
    monkeypatch.setattr(array_file, "own_share_bytes", lambda: needed - 1)
    expected = (
        "holds images of 0.0 GB. Reading and splitting them takes 0.0 GB, more than the 0.0 GB of memory"
    )
    assert expected in error_of(path)


class Evil:
    def __reduce__(self) -> object:
        return os.system, ("exit 1",)


def npy(header: bytes, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + body


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is truncated or damaged"),
        (b"not an array", "is truncated or damaged"),
        (pickle.dumps(Evil()), "is truncated or damaged"),
        (
            npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", pickle.dumps([Evil()])),
            "Python objects",
        ),
        (
            npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (10**12, 9, 9)}\n"),
            "is truncated or damaged",
        ),
        (
            npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000000, 9, 9)}\n"),
            "another size than it",
        ),
        (
            npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -4, 4)}\n", bytes(32)),
            "another size than it",
        ),
        (
            npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4)}\n", bytes(31)),
            "another size than it says",
        ),
        (
            npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4)}\n", bytes(33)),
            "another size than it says",
        ),
        (
            npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os')}\n"),
            "is truncated or damaged",
        ),
        (npy(b"(" * 5000), "is truncated or damaged"),
        (npy(b"{}", version=b"\7\0"), "in version (7, 0) of the format"),
    ],
)
def test_damaged_and_evil_arrays(path, content, words):
    with zipfile.ZipFile(saved(path, labels=np.arange(2)), "a") as file:
        file.writestr("images.npy", content)
    assert words in error_of(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>"])
def test_what_is_no_npz_file(path, content):
    path.write_bytes(content)
    assert "is truncated or damaged: file is not a zip file" in error_of(path)


def test_a_file_that_is_not_there(path):
    assert "it does not exist" in error_of(path)


# Any bytes at all.


def valid() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        for arrays in (
            TWO | {"classes": ["a", "b"]},
            {"x_train": noise(3, 2, 2, 4), "y_train": ["a", "b", "c"]},
        ):
            file = io.BytesIO()
            save(file, **arrays)
            found.append(file.getvalue())
    return found


VALID = valid()


@pytest.fixture(scope="module")
def scratch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.npz"


def check_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        found = read_arrays(path)
    except DataError as error:
        said = str(error)
    else:
        said = ""
        assert all(not re.search(r"[\x00-\x1f\x7f-\x9f]", name) for name in found.classes)
        assert "".join(found.classes).encode()
        for split, images in found.images_u8.items():
            assert images.shape == (len(found.labels[split]), *images.shape[1:3], 3)
            assert 0 <= found.labels[split].min() <= found.labels[split].max() < len(found.classes)
    assert visible(said) == said
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_files_are_arrays_or_a_data_error(scratch_file, data):
    content = bytearray(data.draw(st.sampled_from(VALID)))
    values = st.integers(0, 255) | st.sampled_from(list(b"(),'|<>uifUSO0129 {}"))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), values), max_size=5)):
        content[place] = value
    end = data.draw(st.integers(0, len(content)))
    check_bytes(scratch_file, bytes(content[: end if data.draw(st.booleans()) else None]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_headers_are_arrays_or_a_data_error(scratch_file, data):
    """Behind a correct checksum, as somebody would write who means it."""
    with zipfile.ZipFile(io.BytesIO(data.draw(st.sampled_from(VALID)))) as file:
        members = {name: bytearray(file.read(name)) for name in file.namelist()}
    content = members[data.draw(st.sampled_from(sorted(members)))]
    values = st.integers(0, 255) | st.sampled_from(list(b"(),'|<>uifUSO0129 {}"))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), values), max_size=4)):
        content[place] = value
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, changed in members.items():
            file.writestr(name, bytes(changed))
    check_bytes(scratch_file, packed.getvalue())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_data_error(scratch_file, content):
    check_bytes(scratch_file, content)
