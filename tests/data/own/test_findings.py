"""What is wrong with a data set is said, with figures, names and remedies; and nothing else is."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len

from velodrome.data.image_files import Failure
from velodrome.data.imageset import ImagesU8
from velodrome.data.own.facts import Facts, facts_of
from velodrome.data.own.findings import Findings, examine
from velodrome.data.shapes import draw_shapes
from velodrome.errors import DataError

CLASSES = ("cat", "dog", "owl")
TRAIN, VAL, TEST = "train", "val", "test"


def examined(
    counts: Sequence[tuple[int, int, int]],
    *,
    classes: Sequence[str] = CLASSES,
    same: Sequence[tuple[int, int]] = (),
    nearly: Sequence[tuple[int, int]] = (),
    bad: Sequence[int] = (),
    sizes: dict[int, tuple[int, int]] | None = None,
    **settings: object,
) -> Findings:
    """The findings of drawn images.

    Args:
        counts: of each class, how many images are to train on, to validate on and to test on.
        classes: their names.
        same: pairs of images of which the second becomes the first.
        nearly: the same, but a little brighter.
        bad: images that cannot be read.
        sizes: height and width of some images; the others have 40 pixels a side.
        settings: of `examine`.
    """
    cells = [
        (label, split) for label, row in enumerate(counts) for split, n in enumerate(row) for _ in range(n)
    ]
    labels = np.array([label for label, _ in cells], np.int64)
    splits = np.array([(TRAIN, VAL, TEST)[split] for _, split in cells], dtype="<U5")
    names = [f"{CLASSES[0]}s/{number}.png" for number in range(len(cells))]
    facts = facts_for(len(cells), same, nearly, bad, sizes or {})
    failures = [Failure(Path("data") / names[index], "it is empty") for index in bad]
    options = {"side": 32, "splits_given": True, "failures": failures, **settings}
    return examine(classes=classes, labels=labels, splits=splits, names=names, facts=facts, **options)


def facts_for(
    n: int,
    same: Sequence[tuple[int, int]],
    nearly: Sequence[tuple[int, int]],
    bad: Sequence[int],
    sizes: dict[int, tuple[int, int]],
) -> Facts:
    images: ImagesU8 = draw_shapes(max(n, 1), 0).images_u8[:n].copy()
    for first, second in same:
        images[second] = images[first]
    for first, second in nearly:
        images[second] = np.clip(images[first].astype(int) + 5, 0, 255)
    digests, thumbnails = facts_of(images)
    readable = np.ones(n, bool)
    readable[list(bad)] = False
    all_sizes = np.full((n, 2), 40, np.int32)
    for index, size in sizes.items():
        all_sizes[index] = size
    for row in (all_sizes, digests, thumbnails):
        row[~readable] = 0
    return Facts(readable, all_sizes, digests, thumbnails)


def rules(findings: Findings, level: str | None = None) -> list[str]:
    return [finding.rule for finding in findings.found if level in (None, finding.level)]


def the(findings: Findings, rule: str):
    (found,) = [finding for finding in findings.found if finding.rule == rule]
    return found


HEALTHY = [(30, 5, 10)] * 3


def test_a_healthy_data_set_has_nothing_wrong() -> None:
    findings = examined(HEALTHY)
    assert findings.found == findings.errors == findings.problems == ()
    assert findings.lines() == findings.warnings() == []
    findings.raise_errors()


# Errors


def test_unreadable_files_stop_training_and_are_all_named() -> None:
    findings = examined(HEALTHY, bad=range(0, 40, 2))
    assert rules(findings, "error") == ["unreadable"]
    with pytest.raises(DataError) as error:
        findings.raise_errors()
    lines = str(error.value).splitlines()
    assert [line.strip() for line in lines if line.endswith("it is empty")] == [
        f"data/cats/{number}.png: it is empty" for number in range(0, 40, 2)
    ]
    assert "20 files cannot be read. 115 images can be." in str(error.value)
    assert "--on-bad-image skip" in str(error.value)


def test_unreadable_files_may_be_skipped() -> None:
    findings = examined(HEALTHY, bad=[3], on_bad_image="skip")
    findings.raise_errors()
    (line,) = findings.warnings()
    assert line.startswith("1 file cannot be read. 134 images can be. The others are left out.")
    assert "data/cats/3.png: it is empty" in line


@pytest.mark.parametrize(
    ("counts", "rule"),
    [
        ([(0, 0, 9)] * 3, "empty_splits"),
        ([(9, 0, 0)] * 3, "empty_splits"),
        ([(9, 0, 9), (0, 0, 0), (0, 0, 0)], "too_few_classes"),
        ([(9, 0, 9), (9, 0, 9), (0, 0, 9)], "untrained_classes"),
        ([(9, 0, 9), (9, 0, 9), (0, 0, 0)], "untrained_classes"),
    ],
    ids=range(5),
)
def test_what_stops_training(counts: list[tuple[int, int, int]], rule: str) -> None:
    findings = examined(counts)
    assert rule in rules(findings, "error")
    with pytest.raises(DataError, match=the(findings, rule).title):
        findings.raise_errors()


def test_a_validation_set_is_something_to_judge_by() -> None:
    assert "empty_splits" not in rules(examined([(20, 10, 0)] * 3))


def test_a_class_of_one_image_cannot_be_split() -> None:
    counts = [(30, 0, 10), (30, 0, 10), (1, 0, 0)]
    findings = examined(counts, splits_given=False)
    assert rules(findings, "error") == ["single_images"]
    assert the(findings, "single_images").examples == ("owl",)
    assert rules(findings, "warning") == ["uneven_classes"]  # each thing is said once
    given = examined(counts, splits_given=True)
    assert rules(given, "error") == []
    assert {"missing_from_split", "few_images"} <= set(rules(given, "warning"))


def test_a_class_whose_files_cannot_be_read_is_not_there() -> None:
    findings = examined([(3, 0, 2), (9, 0, 9), (9, 0, 9)], bad=[0, 1, 2])
    assert {"unreadable", "untrained_classes"} <= set(rules(findings, "error"))


def test_all_reasons_are_given_at_once() -> None:
    findings = examined([(0, 0, 9), (9, 0, 9), (9, 0, 9)], bad=[20])
    with pytest.raises(DataError) as error:
        findings.raise_errors()
    text = str(error.value)
    assert "1 file cannot be read" in text
    assert "1 class has no image to train on" in text
    assert "Such as cat." in text
    assert error.value.remedy


# Warnings


def test_leaks_are_named_with_what_they_are_the_same_as() -> None:
    # Of the first class, 0 to 29 are trained on, 30 to 34 are for validation, 35 to 44 for the test.
    findings = examined(HEALTHY, same=[(2, 36), (36, 37), (40, 41)], nearly=[(7, 33)])
    leaks = the(findings, "leaks")
    assert leaks.level == "warning"
    assert leaks.title == "3 images to judge by are trained on too"
    assert "Of 45 that are held out, 2 are the same as a training image and 1 nearly the same." in leaks.text
    assert leaks.examples == (
        "cats/36.png = cats/2.png",
        "cats/37.png = cats/2.png",
        "cats/33.png ≈ cats/7.png",
    )
    found = findings.to_dict()["leaks"]
    assert found[0] == {"path": "cats/36.png", "split": "test", "train_path": "cats/2.png", "exact": True}
    assert found[2] == {"path": "cats/33.png", "split": "val", "train_path": "cats/7.png", "exact": False}


def test_of_many_copies_a_leak_shows_the_closest() -> None:
    findings = examined(HEALTHY, nearly=[(2, 3), (3, 4), (4, 36)])
    (leak,) = findings.contents.leaks
    assert (leak.held_out, leak.train, leak.is_exact) == (36, 4, False)


def test_copies_within_a_split_are_noted() -> None:
    findings = examined(HEALTHY, same=[(2, 5), (5, 9)], nearly=[(11, 12), (2, 20)])
    assert rules(findings) == ["duplicates"]
    assert the(findings, "duplicates").level == "note"
    assert the(findings, "duplicates").title == "4 images are copies of others"
    assert the(findings, "duplicates").text.startswith(
        "2 are the same as another and 2 nearly the same, in 2"
    )
    found = findings.to_dict()
    assert found["exact_duplicates"] == [["cats/2.png", "cats/5.png", "cats/9.png"]]
    assert found["near_duplicates"] == [
        ["cats/2.png", "cats/5.png", "cats/9.png", "cats/20.png"],
        ["cats/11.png", "cats/12.png"],
    ]


def test_the_same_image_with_two_classes_is_named_with_them() -> None:
    # The second class begins at 45.
    findings = examined(HEALTHY, same=[(2, 50), (50, 51)], nearly=[(11, 60)])
    conflicts = the(findings, "conflicts")
    assert conflicts.examples == (
        "cats/2.png (cat) = cats/50.png (dog)",
        "cats/11.png (cat) ≈ cats/60.png (dog)",
    )
    assert "--labels FILE" in conflicts.remedy
    first, second = findings.to_dict()["conflicts"]
    assert first["exact"]
    assert [image["class"] for image in first["images"]] == ["cat", "dog", "dog"]
    assert not second["exact"]


def test_classes_that_cannot_be_judged() -> None:
    findings = examined([(20, 5, 10), (20, 5, 0), (20, 5, 10)])
    missing = the(findings, "missing_from_split")
    assert missing.title == "1 class has no image to test on"
    assert missing.examples == ("dog",)
    findings = examined([(20, 5, 10), (20, 0, 10), (20, 0, 10)])
    assert the(findings, "missing_from_split").title == "2 classes have no image to validate on"
    assert "missing_from_split" not in rules(examined([(20, 0, 10)] * 3))  # nobody is validated


def test_classes_of_few_images() -> None:
    findings = examined([(20, 0, 5), (5, 0, 4), (8, 0, 2)])
    few = the(findings, "few_images")
    assert (few.level, few.title, few.examples) == ("warning", "1 class has fewer than 10 images", ("dog",))
    assert "The smallest has 9." in few.text


@pytest.mark.parametrize(("smallest", "level"), [(20, None), (12, "note"), (7, "warning")])
def test_uneven_classes(smallest: int, level: str | None) -> None:
    findings = examined([(90, 0, 10), (40, 0, 10), (smallest, 0, 10)])
    if level is None:
        assert "uneven_classes" not in rules(findings)
        return
    uneven = the(findings, "uneven_classes")
    assert uneven.level == level
    assert uneven.text == f"cat has 90, owl {smallest}."
    assert "--balance" in uneven.remedy
    assert findings.to_dict()["imbalance"] == pytest.approx(90 / smallest)


# Notes


def test_small_and_wide_images() -> None:
    sizes = {0: (24, 400), 1: (20, 20), 2: (182, 90), 3: (180, 90)}
    findings = examined(HEALTHY, sizes=sizes)
    assert the(findings, "small_images").examples == ("cats/0.png", "cats/1.png")
    assert the(findings, "small_images").level == "note"
    assert the(findings, "wide_images").examples == ("cats/0.png", "cats/2.png")
    padded = examined(HEALTHY, sizes=sizes, fit="pad")
    assert the(padded, "small_images").examples == ("cats/1.png",)  # the other fills the square one way
    assert "wide_images" not in rules(padded)


def test_images_that_are_hardly_enlarged_are_not_worth_a_word() -> None:
    assert "small_images" not in rules(examined(HEALTHY, sizes=dict.fromkeys(range(20), (26, 30))))


def test_many_small_images_are_worth_a_warning() -> None:
    findings = examined(HEALTHY, side=64)
    assert the(findings, "small_images").level == "warning"
    assert the(findings, "small_images").title == "135 images are much smaller than 64 × 64 pixels"


def test_notes_of_the_listing_come_last() -> None:
    findings = examined(HEALTHY, same=[(0, 1)], notes=["3 .txt files are left out.", "No split."])
    assert findings.assumptions() == ["3 .txt files are left out.", "No split."]
    assert rules(findings) == ["duplicates", "listing", "listing"]
    assert findings.lines()[1:] == ["note: 3 .txt files are left out.", "note: No split."]


def test_the_gravest_come_first() -> None:
    findings = examined([(20, 0, 9), (5, 0, 2), (0, 0, 9)], same=[(0, 1)])
    levels = [finding.level for finding in findings.found]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert len(set(levels)) == 3
    assert findings.problems == tuple(finding for finding in findings.found if finding.level != "note")


# As text and as JSON


def test_the_table() -> None:
    findings = examined([(30, 0, 10), (1200, 0, 400), (25, 0, 5)], bad=[0, 1], on_bad_image="skip")
    assert findings.table().splitlines() == [
        "class      images  train  test  unreadable",
        "cat            38     28    10           2",
        "dog         1,600  1,200   400           0",
        "owl            30     25     5           0",
        "3 classes   1,668  1,253   415           2",
        "All images have 40 × 40 pixels.",
    ]


def test_names_of_any_kind_keep_the_table_straight() -> None:
    names = ["猫と犬", "e\u0301te\u0301", "\x1b[31mred\n", "x" * 200, "\u202eשלום", "👩‍👩‍👧"]
    findings = examined([(20, 3, 10)] * 6, classes=names)
    rows = findings.table().splitlines()[:-1]
    assert "\x1b" not in findings.table()
    assert len({cell_len(row) for row in rows}) == 1
    assert len(rows) == 8


def test_many_classes_are_summarised() -> None:
    names = [f"class {number}" for number in range(60)]
    findings = examined([(number % 60 + 1, 0, 1) for number in range(60)], classes=names)
    rows = findings.table().splitlines()
    assert len(rows) == 1 + 10 + 1 + 10 + 1 + 1
    assert rows[1].split() == ["class", "59", "61", "60", "1"]
    assert rows[11] == "… 40 more classes of 12 to 51 images …"
    assert rows[21].split() == ["class", "0", "2", "1", "1"]
    assert rows[22].startswith("60 classes")


def test_json_holds_everything() -> None:
    findings = examined(
        HEALTHY, bad=[134], same=[(0, 1)], sizes={2: (10, 20), 3: (80, 60)}, notes=["Some note."]
    )
    found = json.loads(json.dumps(findings.to_dict()))
    assert found["images"] == 134
    assert found["splits"] == {"train": 90, "val": 15, "test": 29}
    assert found["classes"][2] == {"name": "owl", "train": 30, "val": 5, "test": 9, "unreadable": 1}
    assert found["unreadable"] == [{"path": "data/cats/134.png", "reason": "it is empty"}]
    assert found["sizes"]["height"] == {"min": 10, "median": 40, "max": 80}
    assert found["sizes"]["width"] == {"min": 20, "median": 40, "max": 60}
    assert found["sizes"]["aspect_ratio"] == {"min": 0.75, "median": 1, "max": 2}
    assert found["sizes"]["most_common"][0] == {"height": 40, "width": 40, "images": 132}
    assert found["notes"] == ["Some note."]
    assert [finding["rule"] for finding in found["findings"]] == rules(findings)
    assert set(found["findings"][0]) == {"rule", "level", "title", "text", "remedy", "examples"}


def test_where_nothing_can_be_read() -> None:
    findings = examined([(2, 0, 1)] * 3, bad=range(9))
    assert {"unreadable", "empty_splits", "too_few_classes"} == set(rules(findings, "error"))
    assert findings.to_dict()["sizes"] is None
    assert findings.table().splitlines()[-1].startswith("3 classes")


def test_names_in_findings_are_made_visible() -> None:
    findings = examined([*HEALTHY[:2], (0, 0, 3)], classes=["cat", "dog", "ow\x1bl"])
    assert "\x1b" not in "".join(findings.lines())
    assert the(findings, "untrained_classes").examples == ("ow\x1bl",)  # JSON escapes it
