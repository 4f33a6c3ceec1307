"""Answers of many runs: read quickly, and the same as by the book."""

import numpy as np
import pytest
from run_folders import CLASSES, write_answers, write_run

from velodrome.comparison.right_wrong import AnswerReader
from velodrome.errors import RunError
from velodrome.run.answers import read_answers
from velodrome.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(write_run(tmp_path / "run", wrong=[4, 7, 59]))


@pytest.mark.parametrize("classes", [CLASSES, ("cat, tame", 'a "dog"', "line\nbreak"), ("é", "日本", "x y")])
def test_the_same_as_by_the_book(folder, classes):
    write_answers(folder, [0, 5, 58], 60, classes)
    found, expected = AnswerReader().read(folder), read_answers(folder)
    assert np.flatnonzero(found.is_wrong).tolist() == [0, 5, 58]
    assert [found.classes[k] for k in found.predictions] == [
        expected.classes[k] for k in expected.predictions
    ]


def test_the_key_tells_images_and_labels_apart_but_not_answers(tmp_path):
    def key(name, **changes):
        return AnswerReader().read(RunFolder(write_run(tmp_path / name, **changes))).key

    first = key("a", wrong=[1])
    assert key("b", wrong=[2, 3]) == first
    assert key("c", images=59) != first
    assert key("d", classes=("dog", "cat", "sea lion")) != first


def test_a_comma_in_a_prediction_alone_does_not_change_the_key(tmp_path, folder):
    """The file is then read by a parser."""
    first = AnswerReader().read(folder).key
    text = folder.predictions.read_text().replace("test/00004.png,dog,sea lion", 'test/00004.png,dog,"a, b"')
    folder.predictions.write_text(text)
    found = AnswerReader().read(folder)
    assert found.key == first
    assert found.is_wrong[4]
    assert "a, b" in found.classes


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no predictions.csv"),
        (b"", "no rows"),
        (b"index,path,label,prediction,probability,loss\n", "no rows"),
        (b"index,path,label,prediction,probability,loss\n0,a,cat,dog,0.9", "lost its end"),
        (b"index,path,label,prediction,probability,loss\n0,a,cat\n", "damaged"),
        (b"other,columns\n0,1\n", "damaged"),
    ],
)
def test_damage_is_told(folder, content, words):
    folder.predictions.unlink()
    if content is not None:
        folder.predictions.write_bytes(content)
    with pytest.raises(RunError, match=words):
        AnswerReader().read(folder)
