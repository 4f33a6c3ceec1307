"""What the report shows of the evaluation: diagnosis, classes, calibration, data and the citation."""

import json
import re

import numpy as np
import pytest
from pages import (
    CLASSES,
    Page,
    finding,
    write_complete_run,
    write_diagnosis,
    write_evaluation,
    write_predictions,
    write_samples,
)

from velodrome.reporting.citation import cite
from velodrome.reporting.confusion import MOST_MATRIX_CLASSES, count_answers
from velodrome.reporting.page import render
from velodrome.run.answers import Answers


@pytest.fixture
def folder(tmp_path):
    return write_complete_run(tmp_path / "first-light")


# Headline figures


def test_the_figures_of_the_evaluation_are_headlines(folder):
    text = Page(render(folder)).text
    for figure in (
        "Test accuracy 93.53% 95% confidence interval 91.00% to 95.12%",
        "Test accuracy, TTA 94.12%",
        "Top-5 accuracy 98.76%",
        "Test loss (NLL) 0.2345",
        "Brier score 0.1021",
        "Calibration error (ECE) 3.14%",
    ):
        assert figure in text


def test_figures_that_the_evaluation_lacks_are_left_out(folder):
    write_evaluation(
        folder, top5_accuracy=None, nll=None, accuracy_tta=None, accuracy_ci95=None, calibration=None
    )
    text = Page(render(folder)).text
    for name in ("Top-5", "NLL", "TTA", "confidence interval", "ECE"):
        assert name not in text
    assert "evaluation.json has no bins with images" in text


def test_evaluations_on_other_data_are_listed(folder):
    assert "On other data" not in Page(render(folder)).text
    place = folder.evaluations / "photos"
    place.mkdir(parents=True)
    content = {"data": "my photos", "images": 321, "accuracy": 0.5, "accuracy_change": 0.01}
    (place / "evaluation.json").write_text(json.dumps(content))
    (folder.evaluations / "torn").mkdir()
    (folder.evaluations / "torn" / "evaluation.json").write_text("{")
    text = Page(render(folder)).text
    assert "my photos 321 50.00% +1.00 points –" in text
    assert "torn – – – –" in text
    assert "With its mistakes" not in text
    (place / "report.html").write_text("a page")
    assert "With its mistakes, in the run folder: evaluations/photos/report.html" in Page(render(folder)).text


# Diagnosis


def test_findings_are_shown_the_gravest_first(folder):
    findings = [finding(severity, title=f"It is a {severity}") for severity in ("note", "problem", "warning")]
    write_diagnosis(
        folder, *findings, finding("unheard-of", title="Last"), unchecked={"lr_range": "no test was run"}
    )
    page = Page(render(folder))
    shown = [found["data-severity"] for found in page.find("li", class_="finding")]
    assert shown == ["problem", "warning", "note", "note"]
    assert "Problem It is a problem Train accuracy 99.8%" in page.text
    assert "What to try Try --cutout 12." in page.text
    assert page.text.index("It is a note") < page.text.index("Last")
    assert "2 rules checked, 1 not Checked: overfitting, lr too high ." in page.text
    assert "lr range no test was run" in page.text
    shapes = {found["d"] for found in page.find("path") if found["d"].endswith("z")}
    assert len(shapes) == 3  # one for each severity, so that nobody needs the colour


def test_no_findings_are_good_news(folder):
    write_diagnosis(folder)
    assert "Nothing was found by 2 rules." in Page(render(folder)).text
    write_diagnosis(folder, checked=["overfitting"])
    assert "Nothing was found by 1 rule." in Page(render(folder)).text


@pytest.mark.parametrize("value", [None, 3, "x", [1], [None], [{}], {"a": 1}], ids=repr)
def test_whatever_a_diagnosis_holds_there_is_a_page(folder, value):
    folder.diagnosis.write_text(json.dumps({"findings": value, "checked": value, "unchecked": value}))
    assert "Diagnosis" in Page(render(folder)).text


# Classes


def answers_of(pairs, classes):
    labels, predictions = np.array(pairs).T
    paths = tuple(f"{i}.png" for i in range(len(pairs)))
    return Answers(tuple(classes), paths, labels, predictions, np.zeros(len(pairs)), None)


def test_confusion_counts():
    answers = answers_of([(0, 0), (0, 1), (0, 1), (0, 2), (1, 0), (1, 1)], ["cat", "dog", "ship", "cow"])
    found = count_answers(answers)
    counts = [[cell.count for cell in row] for row in found.matrix]
    assert counts == [[1, 2, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert (found.right, found.images) == (2, 6)
    assert [score.recall for score in found.scores] == [0.25, 0.5, None, None]
    assert [score.precision for score in found.scores] == [0.5, 1 / 3, 0.0, None]
    assert [score.f1 for score in found.scores] == [2 / 6, 2 / 5, 0.0, None]
    assert found.macro.recall == 0.375
    assert found.macro.precision == pytest.approx((1 / 2 + 1 / 3) / 2)
    mistaken = [score.mistaken and score.mistaken.prediction for score in found.scores]
    assert mistaken == ["dog", "cat", None, None]
    assert [(cell.label, cell.prediction, cell.count) for cell in found.confusions] == [
        ("cat", "dog", 2),
        ("cat", "ship", 1),
        ("dog", "cat", 1),
    ]
    assert found.matrix[0][1].strength == 1
    assert found.matrix[1][1].strength == 0.5
    assert found.matrix[1][0].pair == (1, 0)


def test_without_a_mistake_there_is_a_matrix_too():
    found = count_answers(answers_of([(0, 0), (1, 1)], ["cat", "dog"]))
    assert found.confusions == ()
    assert [[cell.strength for cell in row] for row in found.matrix] == [[1, 0], [0, 1]]
    assert found.macro.f1 == 1


def test_the_table_of_classes_has_precision_recall_and_f1(folder):
    text = Page(render(folder)).text
    assert "cat 4 75.00% 100.00% 85.71% dog 1" in text
    assert "dog 3 100.00% 75.00% 85.71% –" in text
    assert "Mean 10 91.67% 91.67% 90.48%" in text


def test_cells_with_images_are_buttons(folder):
    page = Page(render(folder))
    chosen = [
        (found.get("data-true"), found.get("data-predicted"))
        for found in page.find("button", class_="choose")
    ]
    columns, rows = [(None, str(i)) for i in range(3)], [(str(i), None) for i in range(3)]
    matrix = [rows[0], ("0", "0"), ("0", "1"), rows[1], ("1", "1"), rows[2], ("2", "2")]
    assert chosen == [*columns, *matrix, ("0", "1")]  # the last is the most frequent confusion
    (cell,) = [found for found in page.find("button") if found.get("aria-label") == "cat taken for dog: 1"]
    assert cell["data-predicted"] == "1"


def test_too_many_classes_have_no_matrix(folder):
    names = [f"class {number}" for number in range(MOST_MATRIX_CLASSES + 1)]
    folder.probabilities.unlink()
    write_predictions(folder, [(name, names[0]) for name in names])
    page = Page(render(folder))
    assert "too many for a matrix" in page.text
    assert "class 1 taken for class 0 1" in page.text
    assert {found["data-predicted"] for found in page.find("button", class_="choose")} == {"3"}


def test_classes_keep_the_order_of_the_result(folder):
    folder.probabilities.unlink()
    write_predictions(folder, [("ship", "ship"), ("cat", "zebra"), ("dog", "dog")])
    html = render(folder)
    rows = re.findall(r'<th scope="row">(?:<button[^>]*>)?<bdi class="name" title="(\w+)"', html)
    found = [name for name in rows if name in {*CLASSES, "zebra"}]
    assert found == [*CLASSES, "zebra"] * 2


# Calibration


def test_the_reliability_diagram_speaks(folder):
    page = Page(render(folder))
    assert len(page.find("g", class_="bin")) == 2
    assert (
        "It is surer than it is right (overconfident): mean confidence 95.00%, accuracy 74.00%." in page.text
    )
    assert "Expected calibration error (ECE): 3.14%." in page.text
    assert (
        "Maximum calibration error (MCE): 21.00%, in the bin from 75 to 100%, which has 7 images."
        in page.text
    )
    bin_ = "Confidence 50 to 75%: 3 images, mean confidence 70.00%, accuracy 60.00%"
    assert page.text.count(bin_) == 2  # in the description, and on the bar
    assert "50 to 75% 3 70.00% 60.00% −10.00 points" in page.text


@pytest.mark.parametrize(
    ("confidence", "said"),
    [(0.75, "as sure as it is right"), (0.5, "less sure than it is right"), (0.9, "surer than it is right")],
)
def test_over_and_underconfidence_are_told_apart(folder, confidence, said):
    bins = [{"low": 0.0, "high": 1.0, "images": 4, "confidence": confidence, "accuracy": 0.75}]
    write_evaluation(folder, calibration={"bins": bins})
    assert said in Page(render(folder)).text


@pytest.mark.parametrize(
    "bins",
    [
        None,
        3,
        [],
        [None],
        [{"low": 0, "high": 0, "images": 3, "confidence": 0.5, "accuracy": 0.5}],
        [{"low": 0, "high": 1, "images": 0, "confidence": None, "accuracy": None}],
        [{"low": 0, "high": 1, "images": 3, "confidence": 7, "accuracy": 0.5}],
        [{"low": "a", "high": 1, "images": 3, "confidence": 0.5, "accuracy": 0.5}],
    ],
    ids=range(8),
)
def test_bins_that_cannot_be_drawn_are_not(folder, bins):
    write_evaluation(folder, calibration={"bins": bins})
    assert "There is no reliability diagram: evaluation.json has no bins" in Page(render(folder)).text


# Data


def test_samples_of_each_class_are_windows_onto_one_image(folder):
    html = render(folder)
    page = Page(html)
    labels = [found["aria-label"] for found in page.find("svg", role="img") if "aria-label" in found]
    assert labels[:3] == ["5 training images of cat", "2 training images of dog", "2 training images of ship"]
    assert labels[3:] == [f"An augmented image of {name}" for name in ("cat", "dog", "cat")]
    windows = [found["viewbox"] for found in page.find("svg", role="img") if "aria-label" in found]
    assert windows == ["0 0 60 4", "0 4 60 4", "0 8 60 4", "0 0 6 4", "6 0 6 4", "0 4 6 4"]
    assert html.count("data:image/webp;base64,") == 3  # samples, augmented images, mistakes


def test_samples_of_many_classes_stand_beside_each_other(folder):
    names = [f"class {number}" for number in range(5)]
    write_samples(folder, names, samples=2, columns=6, counts=[2, 2, 1, 2, 0])
    page = Page(render(folder))
    windows = [
        found["viewbox"]
        for found in page.find("svg", role="img")
        if "training" in found.get("aria-label", "")
    ]
    # Three classes in a row of the sprite, each with two places; a strip has room for ten images of 6 x 4.
    assert windows == ["0 0 60 4", "12 0 60 4", "24 0 60 4", "0 4 60 4"]
    inner = [found for found in page.find("svg", height="4") if "x" in found]
    assert [(found["x"], found["y"], found["width"]) for found in inner] == [
        ("0", "0", "12"),
        ("12", "0", "12"),
        ("24", "0", "6"),
        ("0", "4", "12"),
    ]
    (sheet,) = page.find("image", id="samples-sheet")
    assert (sheet["width"], sheet["height"]) == ("36", "8")
    assert "class 4 no training image" in page.text
    assert page.find("svg", aria_label="1 training image of class 2")


def test_of_very_many_classes_the_page_says_how_many_are_shown(folder):
    write_samples(folder, all_classes=1200)
    assert "The first 3 of 1,200 classes." in Page(render(folder)).text
    write_samples(folder, all_classes=3)
    assert "The first 3" not in Page(render(folder)).text


@pytest.mark.parametrize(("side", "is_smooth"), [(32, False), (48, False), (64, True)])
def test_pixels_of_small_images_only_are_shown_as_squares(folder, side, is_smooth):
    write_samples(folder, image_size=[side, side])
    page = Page(render(folder))
    assert bool(page.find("ul", class_="smooth")) == is_smooth


def test_a_class_without_training_images_says_so(folder):
    write_samples(folder, counts=[5, 0, 9])
    page = Page(render(folder))
    assert "dog no training image" in page.text
    assert page.find("svg", aria_label="5 training images of ship")  # no more than there are places


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": None},
        {"image_size": [32]},
        {"image_size": [0, 32]},
        {"image_size": [32.5, 32]},
        {"classes": []},
        {"classes": "cat"},
        {"counts": [1]},
        {"columns": 0},
        {"columns": True},
    ],
    ids=repr,
)
def test_damaged_samples_are_said(folder, changes):
    folder.samples.write_text(json.dumps({**json.loads(folder.samples.read_text()), **changes}))
    assert "There are no samples of the images: gallery/samples.json is damaged" in Page(render(folder)).text


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"GIF89a" + bytes(50), b"RIFF\xff\xff\x00\x00WEBPVP8L"], ids=range(4)
)
def test_a_damaged_image_is_said(folder, content):
    folder.augmented_image.write_bytes(content)
    assert "not shown: gallery/augmented.webp is damaged" in Page(render(folder)).text


def test_duplicates_are_told(folder):
    assert "No test image is exactly in the training set too." in Page(render(folder)).text
    examples = [{"test": 5, "train": 123, "same_label": True}, {"test": 6, "train": 7, "same_label": False}]
    write_evaluation(folder, duplicates={"images": 12, "examples": examples})
    text = Page(render(folder)).text
    assert "12 test images are exactly in the training set too. 2 of them" in text
    assert "5 123 yes" in text
    write_evaluation(folder, duplicates=None)
    assert "Duplicates" not in Page(render(folder)).text


# Citation


def test_a_run_can_be_cited(folder):
    environment = {
        "velodrome": "0.1.0",
        "started": "2026-11-21T04:46:38+00:00",
        "git": {"commit": "841d1b7" + "0" * 33},
    }
    folder.environment.write_text(json.dumps(environment))
    text = Page(render(folder)).text
    assert (
        "Training run first-light (2026-11-21): velodrome 0.1.0, recipe quick, data shapes, 3 epochs, "
        "seed 7, 93.53% test accuracy, commit 841d1b7000."
    ) in text
    assert "@misc{velodrome-first-light, title = {{Training run first-light}}, year = {2026}," in text
    assert r"93.53\% test accuracy" in text


def test_a_citation_leaves_out_what_is_not_known():
    found = cite("a", {}, {})
    assert found.sentence == "Training run a: velodrome."
    assert found.bibtex == "@misc{velodrome-a,\n  title = {{Training run a}},\n  note = {velodrome}\n}"


@pytest.mark.parametrize("name", ["{", "}", "\\", "a\nb", "50% & more_$#", "\u202e", "", "~^"], ids=repr)
def test_a_citation_is_valid_tex_whatever_the_name(name):
    bibtex = cite(name, {"recipe": name, "epochs": 1}, {"git": {"commit": name, "dirty": True}}).bibtex
    plain = re.sub(r"\\text\w+\{\}|\\[{}%&#_$]", "", bibtex)
    assert plain.count("{") == plain.count("}")
    assert not re.search(r"[\\%&#$~^]", plain)
    assert re.match(r"@misc\{velodrome-[A-Za-z0-9-]+,\n", bibtex)
    assert len(bibtex.splitlines()) == 4
    assert "1 epoch" in bibtex
