"""What was found in a user's own images stands in the report."""

import json

import pytest
from pages import Page, write_run

from velodrome.reporting.page import render

CHECK = {
    "why_image_size": "64 pixels: the median image is 110 pixels on its shorter side",
    "splits": {"train": 480, "val": 0, "test": 120},
    "classes": [{"name": "cat"}, {"name": "dog"}],
    "sizes": {"height": {"min": 40, "max": 300}, "width": {"min": 64, "max": 64}},
    "unreadable": [{"path": "cat/1.png", "reason": "it is empty"}],
    "findings": [
        {
            "level": "warning",
            "title": "1 file cannot be read",
            "text": "599 images can. The others are left out.",
            "remedy": "Repair it.",
            "examples": ["cat/1.png: it is empty"],
        },
        {"level": "note", "title": "Of 600 images, 120 are held out to test on"},
    ],
}


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "first-light")


def test_findings_and_sizes_are_shown(folder):
    folder.data_check.write_text(json.dumps(CHECK))
    page = Page(render(folder))
    assert [one["class"] for one in page.find("li", class_="finding")][-2:] == [
        *("finding warning", "finding note")
    ]
    for words in (
        *("480", "120", "40 to 300 px", "64 px", "Image size: 64 pixels: the median image is 110 pixels"),
        *("1 file cannot be read", "599 images can.", "Repair it.", "cat/1.png: it is empty", "1 example"),
        "Of 600 images, 120 are held out to test on",
    ):
        assert words in page.text
    assert "2 examples" not in page.text


def test_where_nothing_was_found_it_says_so(folder):
    folder.data_check.write_text(json.dumps({**CHECK, "findings": []}))
    text = Page(render(folder)).text
    assert "What was found in the images before training Nothing." in " ".join(text.split())


@pytest.mark.parametrize("content", [None, "[", "[]", "7"])
def test_published_data_and_damage_leave_it_out(folder, content):
    if content is not None:
        folder.data_check.write_text(content)
    assert "What was found in the images" not in render(folder)


@pytest.mark.parametrize(
    "value", [None, 3, "<b>x", [1], {"min": "<b>x"}, [{"level": ["<b>x"]}], [[]]], ids=repr
)
def test_whatever_the_check_holds_is_only_text(folder, value):
    folder.data_check.write_text(json.dumps(dict.fromkeys(CHECK, value)))
    assert "<b>x" not in render(folder)
    finding = dict.fromkeys(("level", "title", "text", "remedy", "examples"), value)
    folder.data_check.write_text(json.dumps({**CHECK, "findings": [finding]}))
    assert "<b>x" not in render(folder)
