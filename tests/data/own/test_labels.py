"""A table of corrected labels is laid over a data set, and nothing in it is passed over in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.own.labels import apply_corrections, read_corrections
from velodrome.errors import DataError

CLASSES = ("cat", "dog", "ship")
SOURCE = Path("label_errors.csv")


def image_set(*names: str) -> ImageSet:
    labels = np.arange(len(names), dtype=np.int64) % 3
    return ImageSet(np.zeros((len(names), 2, 2, 3), np.uint8), labels, CLASSES, list(names))


@pytest.fixture
def splits() -> Splits:
    return Splits("photos", image_set("a", "b", "c"), image_set("v"), image_set("x", "y"))


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "label_errors.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_runs_own_table_is_read(tmp_path):
    header = "index,path,label,given_label,suggested_label,given_probability,suggested_probability,margin"
    path = table(
        tmp_path, header, "3,test/a b.png,dog,cat,dog,0.1,0.9,-0.8", '7,"x, y",cat,cat,dog,0.2,0.7,-0.5'
    )
    assert read_corrections(path) == {"test/a b.png": "dog", "x, y": "cat"}
    assert read_corrections(table(tmp_path, header)) == {}


def test_labels_are_changed_in_all_splits(splits):
    before = splits.train.labels.copy()
    changed, count = apply_corrections(splits, {"b": "ship", "v": "dog", "x": "cat", "y": "ship"}, SOURCE)
    assert count == 3  # x is a cat already
    assert changed.train.labels.tolist() == [0, 2, 2]
    assert changed.val is not None
    assert changed.val.labels.tolist() == [1]
    assert changed.test.labels.tolist() == [0, 2]
    np.testing.assert_array_equal(splits.train.labels, before)
    assert changed.train.images_u8 is splits.train.images_u8
    assert changed.train.paths == ["a", "b", "c"]
    assert changed.name == "photos"


def test_without_validation_images(splits):
    changed, count = apply_corrections(Splits("x", splits.train, None, splits.test), {"a": "dog"}, SOURCE)
    assert count == 1
    assert changed.val is None


def test_no_corrections_change_nothing(splits):
    changed, count = apply_corrections(splits, {}, SOURCE)
    assert count == 0
    assert changed.train.labels.tolist() == [0, 1, 2]


def test_names_of_no_image_are_listed(splits):
    with pytest.raises(DataError) as caught:
        apply_corrections(
            splits, {"a": "cat"} | {f"n{number:02}\n": "dog" for number in range(1, 13)}, SOURCE
        )
    names = ", ".join(f"n{number:02}\\n" for number in range(1, 11))
    assert f"names 12 images that the data set does not have: {names} and 2 more." in str(caught.value)
    assert "label_errors.csv" in str(caught.value)
    with pytest.raises(DataError, match="names 1 image that the data set does not have: q"):
        apply_corrections(splits, {"q": "cat"}, SOURCE)


def test_a_name_of_several_images(splits):
    doubled = Splits("x", image_set("a", "b", "a"), None, splits.test)
    with pytest.raises(DataError, match="names a, but 2 images of the data set are called so"):
        apply_corrections(doubled, {"a": "dog"}, SOURCE)


def test_an_unknown_class(splits):
    with pytest.raises(
        DataError, match=r"gives b the class dgo, but the data set has no such class\. Did you mean dog\?"
    ):
        apply_corrections(splits, {"b": "dgo"}, SOURCE)


def test_one_image_with_two_classes(tmp_path):
    path = table(tmp_path, "path,label", "a,cat", "b,dog", "a,dog")
    with pytest.raises(DataError, match="gives a two classes, cat in line 2 and dog in line 4"):
        read_corrections(path)
    assert read_corrections(table(tmp_path, "path,label", "a,cat", "a,cat")) == {"a": "cat"}


@pytest.mark.parametrize("name", ["gone.csv", ".", "x" * 5000])
def test_what_is_no_table(tmp_path, name):
    with pytest.raises(DataError, match=r"is not there, or is no file\. Give a CSV file"):
        read_corrections(tmp_path / name)


def test_what_is_wrong_in_the_table_is_said(tmp_path):
    with pytest.raises(DataError, match="has no column path"):
        read_corrections(table(tmp_path, "index,label", "1,cat"))
