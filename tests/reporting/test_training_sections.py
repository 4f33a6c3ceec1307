"""What the report shows of the training: curves and the learning rate."""

import json

import pytest
from pages import (
    STEPS,
    Page,
    epoch_done,
    history_rows,
    started,
    write_events,
    write_history,
    write_lr_find,
    write_run,
)

from velodrome.reporting.page import render


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "first-light")


def test_after_a_resume_the_later_telling_of_an_epoch_counts(folder):
    rows = history_rows(2)
    write_history(folder, rows)
    write_events(
        folder,
        *(epoch_done(row, losses=(9.0,) * STEPS) for row in history_rows(3)),
        *(epoch_done(row) for row in rows),
    )
    steps = Page(render(folder)).hover_data()[-1]["points"]
    assert len(steps) == 2 * STEPS
    assert [point[2][0] for point in steps[:STEPS]] == ["2.0000", "1.5000", "1.2000", "1.0000"]


@pytest.mark.parametrize("epochs", [0, 1, 2, 30])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_loss": 0.5, "test_loss": 0.5, "train_acc": 1.0, "test_acc": 1.0},
        {"train_loss": 0.0, "test_loss": 0.0, "train_acc": 0.0, "test_acc": 0.0},
        {"train_loss": float("nan"), "test_loss": float("inf"), "test_acc": None},
        {"train_loss": 1e300, "test_loss": 1e29, "train_acc": -1e-12},
    ],
)
def test_charts_hold_numbers_whatever_the_history(folder, epochs, changes):
    rows = history_rows(epochs, **changes)
    write_history(folder, rows)
    losses = [changes.get("train_loss", 1.0), float("nan"), 1.0, 1.0]
    write_events(folder, *(epoch_done(row, losses) for row in rows))
    page = Page(render(folder))
    for text in [*page.path_data(), json.dumps(page.hover_data())]:
        assert "nan" not in text.lower()
        assert "inf" not in text.lower()
    assert bool(page.hover_data()) == (epochs > 0)
    for _, attributes in page.tags:
        for key in ("x", "y", "cx", "cy"):
            assert -1 <= float(attributes.get(key, 0)) <= 500


def test_many_steps_keep_their_peaks_and_the_page_small(folder):
    rows = history_rows(5)
    write_history(folder, rows)
    losses = [1.0] * 4000
    losses[1234] = 77.0
    write_events(folder, *(epoch_done(row, losses, [0.1] * 4000) for row in rows))
    html = render(folder)
    assert "77.0000" in html
    assert len(html) < 400_000


def test_a_range_test_is_shown_with_its_figure(folder):
    assert "Found by a range test" not in Page(render(folder)).text
    write_lr_find(folder)
    page = Page(render(folder))
    for text in ("0.210", "0.0210", "medium", "minimum tenth", "0.0340", "The rules put LRMAX", "2 min 31 s"):
        assert text in page.text
    (image,) = page.find("img", class_="figure")
    assert image["src"].startswith("data:image/png;base64,")
    assert "learning rate" in image["alt"]
    assert ("a", {"href": "#rate"}) in page.tags


def test_a_range_test_that_refused_says_why(folder):
    nothing = dict.fromkeys(("lr_max", "lr_min", "suggestions", "confidence", "rule"))
    write_lr_find(folder, **nothing, refusal="The loss never fell.")
    folder.lr_find_figure.unlink()
    text = Page(render(folder)).text
    assert "The range test found no learning rate. The loss never fell." in text
    assert "lr_find.png is missing" in text


def test_steps_of_a_last_epoch_that_was_cut_short_come_after_those_before(folder):
    rows = history_rows(3)
    write_history(folder, rows)
    write_events(folder, started(), *map(epoch_done, rows[:2]), epoch_done(rows[2], (0.9,), (0.1,)))
    steps = Page(render(folder)).hover_data()[-1]["points"]
    assert len(steps) == 2 * STEPS + 1
    places = [point[0] for point in steps]
    assert places == sorted(set(places))


@pytest.mark.parametrize("value", [None, "<b>x</b>", 3, [1], {"a": "<b>"}, float("nan")], ids=repr)
def test_whatever_a_range_test_holds_is_only_text(folder, value):
    keys = ("lr_max", "lr_min", "suggestions", "confidence", "rule", "refusal", "steps", "seconds")
    write_lr_find(folder, **dict.fromkeys(keys, value))
    assert "<b>x" not in render(folder)
