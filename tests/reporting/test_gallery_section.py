"""The gallery of mistakes: what the page's script is given."""

import base64
import csv
import io
import json

import numpy as np
import pytest
from pages import (
    CLASSES,
    HOSTILE,
    Page,
    webp,
    write_complete_run,
    write_label_errors,
    write_mistakes,
    write_predictions,
    write_probabilities,
)

from velodrome.reporting.gallery import MOST_MISTAKES, PARTS
from velodrome.reporting.page import render


@pytest.fixture
def folder(tmp_path):
    """Ten answers, of which the last is a mistake: a cat that was taken for a dog."""
    return write_complete_run(tmp_path / "first-light")


def test_everything_about_an_image_is_there(folder):
    data = Page(render(folder)).gallery_data()
    assert data["classes"] == CLASSES
    assert data["index"] == [9, 0, 1, 2]
    assert data["path"] == ["9.png", "0.png", "1.png", "2.png"]
    assert (data["true"], data["predicted"]) == ([0, 0, 1, 2], [1, 0, 1, 2])
    assert data["loss"] == [2.0, 0.1, 0.1, 0.1]
    assert [ranked[0] for ranked in data["top"]] == [1, 0, 2]
    assert [part[0] / PARTS for part in data["chance"]] == pytest.approx([0.7, 0.25, 0.05], abs=1e-3)
    assert data["mistakes"] == 1
    assert data["suggested"] == {"9": 1}
    assert data["image"] == {"height": 4, "width": 6, "columns": 2}
    values = np.frombuffer(base64.b64decode(data["map"].pop("values")), np.uint8)
    assert (values.reshape(4, 2, 2, 3) == np.load(folder.maps)).all()
    assert data["map"] == {"height": 2, "width": 3}


def test_the_images_are_in_the_page_once(folder):
    html = render(folder)
    (sprite,) = Page(html).find("img", id="sprite")
    assert sprite["src"] == "data:image/webp;base64," + base64.b64encode(webp()).decode()
    assert html.count(sprite["src"]) == 1


def test_label_errors_can_be_downloaded(folder):
    (link,) = Page(render(folder)).find("a", id="label-errors")
    assert link["download"] == "label_errors.csv"
    content = base64.b64decode(link["href"].removeprefix("data:text/csv;base64,"))
    assert content == folder.label_errors.read_bytes()
    write_label_errors(folder)
    page = Page(render(folder))
    assert not page.find("a", id="label-errors")
    assert page.gallery_data()["suggested"] == {}


@pytest.mark.parametrize(
    "content",
    [
        b"index\n1\n",
        b"index,suggested_label\n1,zebra\n",
        b"index,suggested_label\nx,cat\n",
        b"index,suggested_label\n10,cat\n",
        b"index,suggested_label\n-1,cat\n",
        b"index,suggested_label\n1\n",
        b"\xff\xfe",
        b'index,suggested_label\n1,"cat' + b"x" * 200_000,
    ],
    ids=range(8),
)
def test_damaged_label_errors_are_said(folder, content):
    folder.label_errors.write_bytes(content)
    page = Page(render(folder))
    assert "Likely label errors are not marked: label_errors.csv is damaged" in page.text
    assert page.gallery_data()["suggested"] == {}
    assert page.gallery_data()["image"]


# A folder without gallery/, or with a damaged one


def assert_is_from_the_answers_alone(page):
    data = page.gallery_data()
    assert data["index"] == [9, 0, 3, 6, 1, 4, 7, 2, 5, 8]  # the mistake, then the best of each class
    assert data["image"] is data["map"] is None
    assert "src" not in page.find("img", id="sprite")[0]


def test_without_pictures_there_are_cards_too(folder):
    folder.mistakes.unlink()
    page = Page(render(folder))
    assert_is_from_the_answers_alone(page)
    assert page.gallery_data()["top"]
    assert "There are no images and no heat maps: gallery/mistakes.json is missing." in page.text


@pytest.mark.parametrize(
    "changes",
    [
        {"indices": None},
        {"indices": [9, "0"]},
        {"indices": [9, 0.5]},
        {"indices": [9, True]},
        {"indices": [9, 10]},
        {"indices": [9, -1]},
        {"columns": 0},
        {"columns": "2"},
        {"image_size": [32, -1]},
        {"map_size": None},
    ],
    ids=repr,
)
def test_a_damaged_gallery_is_said(folder, changes):
    write_mistakes(folder, [9, 0, 1, 2])
    folder.mistakes.write_text(json.dumps({**json.loads(folder.mistakes.read_text()), **changes}))
    page = Page(render(folder))
    assert "There are no images and no heat maps: gallery/mistakes.json is damaged" in page.text
    assert_is_from_the_answers_alone(page)


def test_a_damaged_sprite_is_said(folder):
    folder.mistakes_image.write_bytes(webp()[:-1])
    page = Page(render(folder))
    assert "no images and no heat maps: gallery/mistakes.webp is damaged: its end is missing." in page.text
    assert_is_from_the_answers_alone(page)


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        as_npy(np.zeros((4, 2, 2, 3)))[:-1],
        as_npy(np.zeros((4, 2, 2, 3))),
        as_npy(np.zeros((3, 2, 2, 3), np.uint8)),
        as_npy(np.zeros((4, 2, 3, 2), np.uint8)),
        as_npy(np.zeros((), np.uint8)),
        as_npy(np.array([{"a": 1}])),
    ],
    ids=range(8),
)
def test_damaged_maps_are_said(folder, content):
    folder.maps.write_bytes(content)
    page = Page(render(folder))
    assert "There are no heat maps: gallery/maps.npy is damaged" in page.text
    assert page.gallery_data()["map"] is None
    assert page.gallery_data()["image"]


def test_without_probabilities_there_are_no_bars(folder):
    folder.probabilities.unlink()
    page = Page(render(folder))
    data = page.gallery_data()
    assert data["top"] is data["chance"] is None
    assert not page.find("option", value="confident")
    assert page.find("option", value="loss")


def test_numbers_that_are_none_are_said_to_be_none(folder):
    rows = [[np.nan] * 3] * 10
    write_probabilities(folder, rows)
    write_predictions(folder, [("cat", "dog")] * 10, [float("nan"), float("inf"), *[1.0] * 8])
    write_mistakes(folder, [0, 1, 2])
    data = Page(render(folder)).gallery_data()
    assert data["loss"] == [None, None, 1.0]
    assert data["chance"] == [[-1] * 3] * 3
    assert data["top"][0] == [1] * 3  # the prediction, whatever its probability
    folder.mistakes.unlink()
    assert Page(render(folder)).gallery_data()["index"] == list(range(10))


def test_of_two_equal_probabilities_the_prediction_is_the_first(folder):
    write_probabilities(folder, [*[[1, 0, 0]] * 9, [0.5, 0.5, 0]])
    assert [ranked[0] for ranked in Page(render(folder)).gallery_data()["top"]] == [1, 0, 2]


def test_without_a_mistake_the_page_says_so(folder):
    write_predictions(folder, [(name, name) for name in CLASSES] * 3 + [("cat", "cat")])
    write_mistakes(folder, [0, 1, 2])
    page = Page(render(folder))
    assert "Every test image is recognised." in page.text
    assert page.gallery_data()["mistakes"] == 0


@pytest.mark.parametrize("name", HOSTILE[:-1], ids=range(len(HOSTILE) - 1))
def test_hostile_paths_are_only_data(folder, name):
    with folder.predictions.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with folder.predictions.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([rows[0], *([row[0], name, *row[2:]] for row in rows[1:])])
    html = render(folder)
    page = Page(html)
    assert page.gallery_data()["path"] == [name] * 4
    assert html.count("</script>") == len(page.scripts)
    assert "evil.example" not in " ".join(page.texts)


def test_many_mistakes_make_a_small_page_fast(folder):
    count, classes = 4000, 100
    names = [f"class {number}" for number in range(classes)]
    result = json.loads(folder.result.read_text())
    folder.result.write_text(json.dumps({**result, "classes": names}))
    pairs = [(names[i % classes], names[(i + 1) % classes]) for i in range(count)]
    write_predictions(folder, pairs)
    write_probabilities(folder, np.full((count, classes), 1 / classes))
    write_mistakes(folder, list(range(MOST_MISTAKES)), size=(32, 32), map_size=(8, 8))
    html = render(folder)
    data = Page(html).gallery_data()
    assert len(data["index"]) == MOST_MISTAKES
    assert data["mistakes"] == count
    assert len(html) < 900_000  # without the images


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", np.zeros((2, 2), np.float16)], ids=range(3))
def test_damaged_probabilities_are_said(folder, content):
    if isinstance(content, bytes):
        folder.probabilities.write_bytes(content)
    else:
        np.save(folder.probabilities, content)
    page = Page(render(folder))
    assert "Probabilities are not shown: probabilities.npy " in page.text
    assert str(folder.path) not in page.text
