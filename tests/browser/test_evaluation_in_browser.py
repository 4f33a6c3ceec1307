"""The page of an evaluation on other images in a browser."""

import itertools
import json

import pytest
from example_runs import CLASSES, write_example

from velodrome.reporting.evaluation_page import write_evaluation_page


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    example = write_example(tmp_path_factory.mktemp("evaluations") / "photos-1234", wrong=30)
    path = example.folder.evaluation
    row = {"images": 40, "accuracy": 0.9, "change": -0.15, "change_ci95": [-0.3, -0.01]}
    changes = {
        "data": "/home/ada/photos",
        "classes": CLASSES,
        "per_class": [{"name": name, "images": 42, "recall": 0.75} for name in CLASSES],
        "compared_with": {
            "data": "shapes",
            "images": 200,
            "accuracy": 0.9,
            "per_class": [{"name": name, **row} for name in CLASSES],
        },
        "accuracy_change": -0.1,
        "accuracy_change_ci95": [-0.2, -0.01],
        "failed": [{"path": "a.png", "reason": "it is cut short"}],
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return example


@pytest.fixture(scope="module")
def report(example):
    return write_evaluation_page(example.folder, "first-light")


def test_the_page_is_whole_and_silent(report, read):
    page = read(report)
    headings = ["Changes", "Classes", "Mistakes", "Calibration", "Files that cannot be read"]
    assert page.locator("h2").all_inner_texts() == headings
    assert page.title() == "first-light on photos · velodrome"
    for link in page.get_by_role("navigation", name="Sections").get_by_role("link").all():
        link.click()
        assert page.locator(link.get_attribute("href")).bounding_box()["y"] < 900
    page.keyboard.press("Home")
    page.get_by_role("link", name="Skip to the mistakes").focus()
    page.keyboard.press("Enter")
    assert page.url.endswith("#mistakes")


def test_a_cell_of_the_matrix_shows_its_mistakes(example, report, read):
    page = read(report)
    pairs = itertools.permutations(range(len(CLASSES)), 2)
    pair = next(pair for pair in pairs if example.pair(*pair))
    page.locator(f"#matrix [data-true='{pair[0]}'][data-predicted='{pair[1]}']").click()
    assert page.locator("#cards > li").count() == len(example.pair(*pair))


@pytest.mark.parametrize("width", [320, 700, 1280])
def test_nothing_is_wider_than_the_window(report, read, width):
    page = read(report, width=width)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
