"""The page of a comparison as HTML: whole, escaped, and the same figures as the comparison."""

import json

import pytest
from pages import HOSTILE, Page
from run_folders import colour, pixels_of, write_run, write_variants

from velodrome.comparison.comparing import compare
from velodrome.comparison.mistakes import collect_thumbnails
from velodrome.comparison.page_content import content_of
from velodrome.reporting.comparison_curves import Curves, draw_curves
from velodrome.reporting.comparison_page import render_comparison


def page_of(found):
    return Page(render_comparison(content_of(found)))


@pytest.fixture
def two(tmp_path):
    return write_variants(
        tmp_path, cutout8=[[1, 2, 3, 4], [1, 2, 3], [1, 2]], cutout16=[[1, 2], [1, 5], [1, 5]]
    )


def test_the_headline_of_two_variants_is_their_difference(two):
    found = compare([two / "cutout8-*", two / "cutout16-*"])
    page = page_of(found)
    assert "cutout=16 against the baseline" in page.text
    assert (
        "Points of test accuracy +1.67 no difference shown; 95% confidence interval −2.47 to +5.81"
        in page.text
    )
    assert "No difference shown. +1.67 points of test accuracy is within" in page.text


def test_the_headline_of_many_counts_those_that_differ(two):
    write_run(two / "x", cutout=4, wrong=range(40))
    found = compare([two / "cutout8-*", two / "cutout16-*", two / "x"])
    text = page_of(found).text
    assert "Variants that differ from the baseline 0 of 2" in text
    assert "1 more in one run each only" in text


def test_one_variant_and_one_run(tmp_path):
    write_run(tmp_path / "a", wrong=[1])
    text = page_of(compare(tmp_path)).text
    assert "Mean test accuracy 98.33% of one run" in text
    assert "There is one variant only, so there is nothing to compare it with." in text


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\ud800" not in name])
def test_hostile_names_stay_names(tmp_path, name):
    classes = (name, f"{name}2", "cat")
    write_run(tmp_path / "a", classes=classes, data=name)
    write_run(tmp_path / "b", classes=classes, data=name, wrong=[0, 1], init=f"./{name}".replace("\0", ""))
    found = compare(tmp_path)
    page = page_of(found)
    assert page.find("img") == []
    assert len(page.scripts) == 1 + len(page.hover_data())
    json.dumps(found.to_dict())
    assert "Verdict" in page.text


def test_damaged_histories_and_galleries_cost_their_curves_and_pictures(two):
    for run in two.iterdir():
        (run / "history.csv").write_text("nonsense\n1\n")
        (run / "gallery" / "mistakes.webp").write_bytes(b"RIFF")
    page = page_of(compare(two))
    assert "No run has a history" in page.text
    assert page.find("image") == []
    assert "test/00005.png" in page.text  # in place of its picture


def test_thumbnails_come_from_whoever_has_them(two):
    trials = [trial for variant in compare(two).variants for trial in variant.trials]
    found = collect_thumbnails([5, 4, 2, 17], trials)
    assert (found.places, found.height, found.width, found.rows) == ({5: 0, 4: 1, 2: 2}, 8, 8, 1)
    sheet = pixels_of(found.content)
    assert sheet.shape == (8, 24, 3)
    for index, place in found.places.items():
        assert (sheet[:, 8 * place : 8 * place + 8] == colour(index)).all()
    assert collect_thumbnails([17], trials) is None


@pytest.mark.parametrize(
    "change",
    [
        {"columns": 0},
        {"image_size": [8]},
        {"image_size": [10**6, 10**6]},
        {"indices": "5"},
        {"indices": list(range(1000))},
        {"image_size": [64, 64]},
    ],
)
def test_a_gallery_that_does_not_fit_its_description_is_passed_over(two, change):
    path = two / "cutout16-1" / "gallery" / "mistakes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (trial,) = [t for v in compare(two).variants for t in v.trials if t.run.path.name == "cutout16-1"]
    assert collect_thumbnails([5], [trial]) is None


# Curves


def rows(*values, seconds=1.0, column="test_acc"):
    empty = dict.fromkeys(("train_acc", "val_acc", "test_acc", "train_loss", "val_loss", "test_loss"))
    return [
        {"epoch": float(epoch), "time_s": seconds * epoch, **empty, column: value}
        for epoch, value in enumerate(values, 1)
    ]


def test_a_curve_is_the_mean_and_its_band_goes_from_lowest_to_highest():
    two_runs = Curves("v0", "baseline", (rows(0.2, 0.4), rows(0.4, 0.8)))
    one_run = Curves("v1", "other", (rows(0.5, None, 0.9),))
    by_epoch, _ = draw_curves([two_runs, one_run], "acc")
    assert [point.name for point in by_epoch.points] == ["epoch 1", "epoch 2", "epoch 3"]
    assert [point.texts for point in by_epoch.points] == [
        ("30.00%", "50.00%"), ("60.00%", "70.00%"), ("–", "90.00%")
    ]  # fmt: skip
    assert [line.last for line in by_epoch.lines] == ["60.00%", "90.00%"]
    assert [bool(line.area) for line in by_epoch.lines] == [True, False]


def test_against_time_each_line_stands_at_its_own_seconds():
    slow, fast = (
        Curves("v0", "slow", (rows(0.2, 0.6, seconds=20),)),
        Curves("v1", "fast", (rows(0.4, 0.8, seconds=10),)),
    )
    _, in_time = draw_curves([slow, fast], "acc")
    assert [(point.name, *point.texts) for point in in_time.points] == [
        ("10 s", "–", "40.00%"),
        ("20 s", "20.00%", "80.00%"),
        ("40 s", "60.00%", "–"),
    ]


@pytest.mark.parametrize(
    ("seconds", "last"), [(0.001, "0.002 s"), (50, "100 s"), (100, "3.333 min"), (5000, "2.778 h")]
)
def test_time_is_in_a_fitting_unit(seconds, last):
    _, in_time = draw_curves([Curves("v0", "a", (rows(0.2, 0.6, seconds=seconds),))], "acc")
    assert in_time.points[-1].name == last
    assert len(in_time.x_ticks) >= 2


def test_what_is_not_there_is_not_drawn():
    assert draw_curves([Curves("v0", "a", ())], "acc") == ()
    assert draw_curves([Curves("v0", "a", (rows(0.5),))], "loss") == ()
    titles = [d.title for d in draw_curves([Curves("v0", "a", (rows(1.5, column="val_loss"),))], "loss")]
    assert titles == ["Validation loss", "Validation loss against time"]
