"""The page of an evaluation on other images: what moved, the mistakes, and what could not be read."""

import json

import pytest
from pages import CLASSES, Page, write_complete_run, write_evaluation

from velodrome.reporting.evaluation_page import render_evaluation, write_evaluation_page


def change(name, images, accuracy, change, low, high):
    figures = {"images": images, "accuracy": accuracy, "change": change, "change_ci95": [low, high]}
    return {"name": name, **figures}


PER_CLASS = [
    {"name": name, "images": images, "recall": recall}
    for name, images, recall in zip(CLASSES, (4, 3, 3), (0.75, 1.0, 1.0), strict=True)
]
COMPARED = {
    "data": "shapes",
    "images": 150,
    "accuracy": 0.97,
    "per_class": [
        change("dog", 50, 0.98, 0.02, -0.5, 0.1),
        change("cat", 50, 0.96, -0.21, -0.6, -0.01),
    ],
}


@pytest.fixture
def folder(tmp_path):
    """What `write_complete_run` leaves of an evaluation, but of other images."""
    folder = write_complete_run(tmp_path / "photos-1234")
    for path in (folder.config, folder.history, folder.events, folder.result):
        path.unlink()
    write_on_others(folder)
    return folder


def write_on_others(folder, **changes):
    content = {
        "data": "/home/ada/photos",
        "classes": CLASSES,
        "per_class": PER_CLASS,
        "compared_with": COMPARED,
        "accuracy_change": -0.035,
        "accuracy_change_ci95": [-0.2, -0.001],
        "failed": [],
    }
    write_evaluation(folder, **{**content, **changes})


def text_of(folder):
    return Page(render_evaluation(folder, "first-light")).text


def test_it_says_what_was_evaluated_and_how_it_went(folder):
    text = text_of(folder)
    assert "first-light on photos · velodrome" in text
    assert "run first-light data /home/ada/photos images 10" in text
    assert "Accuracy 93.53% 95% confidence interval 91.00% to 95.12%" in text
    assert "9 of 10 test images are recognised, 1 is not." in text


def test_classes_that_fell_furthest_come_first(folder):
    text = text_of(folder)
    rows = (
        "cat 4 75.00% 96.00% −21.00 points −60.00 points to −1.00 points",
        "dog 3 100.00% 98.00% +2.00 points −50.00 points to +10.00 points",
    )
    assert text.index(rows[0]) < text.index(rows[1])


@pytest.mark.parametrize(
    ("change", "ends", "verdict"),
    [
        (-0.035, [-0.2, -0.001], "That is more than chance explains: these images are harder for it."),
        (0.035, [0.001, 0.2], "That is more than chance explains: these images are easier for it."),
        (-0.035, [-0.2, 0.0], "Chance alone may explain it."),
        (-0.035, None, "−3.50 points from the 150 test images of the run (97.00%). Class"),
    ],
)
def test_the_change_is_put_into_words(folder, change, ends, verdict):
    write_on_others(folder, accuracy_change=change, accuracy_change_ci95=ends)
    text = text_of(folder)
    assert "from the 150 test images of the run (97.00%)" in text
    assert verdict in text


def test_without_answers_of_the_run_nothing_is_compared(folder):
    write_on_others(folder, compared_with=None)
    assert "Changes" not in text_of(folder)


def test_files_that_cannot_be_read_are_named(folder):
    assert "Files that cannot be read" not in text_of(folder)
    write_on_others(folder, failed=[{"path": "photos/a.png", "reason": "it is cut short"}])
    assert (
        "Files that cannot be read They are in no figure. File Why photos/a.png it is cut short"
        in text_of(folder)
    )


def test_mistakes_are_handed_to_the_gallery(folder):
    page = Page(render_evaluation(folder, "first-light"))
    assert page.gallery_data()["index"] == [9, 0, 1, 2]
    assert page.gallery_data()["classes"] == CLASSES


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("evaluation", "evaluation.json is"),
        ("mistakes", "There are no images and no heat maps: gallery/mistakes.json is"),
        ("probabilities", "Probabilities are not shown: probabilities.npy is"),
    ],
)
@pytest.mark.parametrize("damage", [None, b"\xff{"])
def test_what_is_missing_or_damaged_is_named_with_what_makes_it(folder, lost, words, damage):
    path = getattr(folder, lost)
    path.unlink() if damage is None else path.write_bytes(damage)
    text = text_of(folder)
    assert words in text
    assert "velodrome evaluate RUN --data DATA makes" in text


def test_without_answers_there_are_no_mistakes(folder):
    folder.predictions.unlink()
    assert "there are no mistakes to show: predictions.csv is missing" in text_of(folder)


@pytest.mark.parametrize("value", [7, "x", [1, {"name": 3}], {"per_class": 7}, {"per_class": [7]}])
@pytest.mark.parametrize(
    "key", ["compared_with", "per_class", "failed", "accuracy_change_ci95", "data", "classes"]
)
def test_values_of_another_kind_leave_a_page(folder, key, value):
    write_on_others(folder, **{key: value})
    text_of(folder)


def test_it_lies_in_the_folder_of_the_evaluation(folder):
    path = write_evaluation_page(folder, "first-light")
    assert path == folder.path / "report.html"
    assert json.loads(folder.evaluation.read_text())["data"] == "/home/ada/photos"
    Page(path.read_text())
