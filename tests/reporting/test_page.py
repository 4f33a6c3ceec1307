"""The report, from run folders that the tests make up."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from velodrome.errors import RunError
from velodrome.reporting.confusion import MOST_MATRIX_CLASSES, count_predictions
from velodrome.reporting.page import render, write_report
from velodrome.run.folder import HISTORY_COLUMNS, RunFolder

CLASSES = ["cat", "dog", "ship"]
STEPS = 4
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=http://evil.example/x.png onerror=alert(1)>",
    "\"double\" 'single' & ampersand",
    "line one\nline two\r\nline three",
    "\u202eright to left\u2028 שלום",
    "x" * 300,
    "{{ 7 * 7 }}{% raw %}",
    "bell \x07 and half a pair \ud800",
]


class Page(HTMLParser):
    """Checks that tags are balanced, and collects text, tags and attributes."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts, self.scripts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), f"an attribute of {tag} comes twice"
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        kind = self.open[-1] if self.open else ""
        if kind == "script":
            self.scripts.append(data)
        elif kind != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def hover_data(self):
        return [json.loads(script) for script in self.scripts if script.startswith("{")]

    def path_data(self):
        return [attributes["d"] for tag, attributes in self.tags if tag == "path"]


def history_rows(epochs, **changes):
    rows = []
    for epoch in range(1, epochs + 1):
        row = {
            "epoch": epoch,
            "time_s": 10.0 * epoch,
            "lr": 0.1 / epoch,
            "train_loss": 2.0 / epoch,
            "train_acc": 1 - 0.8 / epoch,
            "val_loss": None,
            "val_acc": None,
            "test_loss": 2.2 / epoch,
            "test_acc": 1 - 0.9 / epoch,
            "images_per_s": 1234.5,
        }
        rows.append({**row, **changes})
    return rows


def write_history(folder, rows):
    with folder.history.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HISTORY_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def write_events(folder, *events):
    folder.events.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def started(**changes):
    names = {"run": "trial", "recipe": "quick", "data": "shapes", "device": "cpu", "precision": "fp32"}
    return {"event": "RunStarted", **names, "params": 4321, "epochs": 3, "steps_per_epoch": STEPS, **changes}


def epoch_done(row, losses=(2.0, 1.5, 1.2, 1.0), lrs=(0.1, 0.2, 0.3, 0.2)):
    return {"event": "EpochDone", **row, "step_losses": losses, "step_lrs": lrs}


def write_predictions(folder, pairs):
    with folder.predictions.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "path", "label", "prediction", "probability", "loss"])
        writer.writerows([i, f"{i}.png", *pair, 0.9, 0.1] for i, pair in enumerate(pairs))


def write_run(path, *, epochs=3, classes=CLASSES):
    """A complete run; the first class is taken for the second once."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    rows = history_rows(epochs)
    folder.config.write_text("recipe: quick\n\n# run: Where.\nseed: 7\n", encoding="utf-8")
    write_history(folder, rows)
    write_events(folder, started(), *(epoch_done(row) for row in rows))
    write_predictions(folder, [*[(name, name) for name in classes] * 3, (classes[0], classes[1])])
    layer = {
        "name": "prep",
        "type": "Conv2d",
        "output_shape": [64, 32, 32],
        "params": 1728,
        "macs": 1769472,
        "receptive_field": 3,
        "stride": 1,
    }
    summary = {"layers": [layer], "totals": {"params": 4321, "macs": 1769472, "receptive_field": [3, 5]}}
    folder.summary.write_text(json.dumps(summary))
    environment = {
        "torch": "2.8.0",
        "git": {"commit": "3be7f7b", "dirty": True},
        "command": "velodrome train quick --seed 7",
    }
    folder.environment.write_text(json.dumps(environment))
    result = {
        "test_accuracy": 0.9353,
        "test_accuracy_tta": 0.9412,
        "test_loss": 0.2387,
        "train_accuracy": 0.9931,
        "train_loss": 0.0304,
        "train_seconds": 343.2,
        "epochs": epochs,
        "params": 4321,
        "images_per_s": 3497.2,
        "device": "cpu",
        "precision": "fp32",
        "seed": 7,
        "data": "shapes",
        "recipe": "quick",
        "classes": classes,
    }
    folder.result.write_text(json.dumps(result))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "first-light")


def test_a_complete_run_shows_everything(folder):
    page = Page(render(folder))
    for text in (
        "first-light",
        "93.53%",
        "94.12%",
        "99.31%",
        "5 min 43 s",
        "3,497",
        "4,321",
        "quick",
        "shapes",
    ):
        assert text in page.text
    for text in ("prep", "64 × 32 × 32", "1,769,472", "3 × 5", "git.dirty yes", "seed: 7"):
        assert text in page.text
    assert "9 of 10 test images are recognised, 1 is not." in page.text
    assert "velodrome train --config config.yaml" in page.text
    assert "velodrome train quick --seed 7" in page.text
    assert "missing" not in page.text
    assert "not finished" not in page.text
    assert len(page.hover_data()) == 4


def test_it_is_written_to_the_folder_or_where_one_says(folder, tmp_path):
    assert write_report(folder) == folder.report
    assert folder.report.read_text(encoding="utf-8") == render(folder)
    assert write_report(folder, tmp_path / "other.html").read_bytes() == folder.report.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first-light", "other.html"]


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path):
    with pytest.raises(RunError, match=r"nowhere.*report\.html cannot be written"):
        write_report(folder, tmp_path / "nowhere" / "report.html")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.yaml", "The settings are not known"),
        ("environment.json", "Versions and hardware are not known"),
        ("history.csv", "No epoch is complete yet"),
        ("events.jsonl", ""),
        ("summary.json", "There is no model summary"),
        ("predictions.csv", "There are no predictions"),
        ("result.json", "This run is not finished."),
    ],
)
def test_a_missing_part_is_said(folder, name, words):
    (folder.path / name).unlink()
    assert words in Page(render(folder)).text


def test_a_folder_with_nothing_still_gives_a_page(tmp_path):
    page = Page(render(RunFolder(tmp_path)))
    assert "No epoch is complete yet, so there is no accuracy to show." in page.text
    assert page.hover_data() == []


def test_an_unfinished_run_shows_its_latest_figures(folder):
    folder.result.unlink()
    write_events(folder, started(epochs=24), {"event": "RunStopped", "step": 1200, "reason": "SIGTERM."})
    text = Page(render(folder)).text
    assert "It stopped at step 1,200: SIGTERM. There is no result.json" in text
    assert "Test accuracy after epoch 3 70.00%" in text
    assert "Epochs 3 of 24" in text


def test_what_has_no_value_is_left_out(folder):
    page = Page(render(folder))
    assert "Validation" not in page.text
    write_history(folder, history_rows(3, val_loss=1.0, val_acc=0.5))
    assert "Validation accuracy" in Page(render(folder)).text


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


@pytest.mark.parametrize(
    "content",
    [
        "epoch,time_s\n1,2\n",
        ",".join(HISTORY_COLUMNS) + "\n" + "x" * 20 + "\n",
        ",".join(HISTORY_COLUMNS) + "\n2,,,,,,,,,\n1,,,,,,,,,\n",
        ",".join(HISTORY_COLUMNS) + "\nnan,,,,,,,,,\n",
        ",".join(HISTORY_COLUMNS) + "\n,,,,,,,,,\n",
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_history_is_named(folder, content):
    folder.history.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RunError, match=r"history\.csv is damaged"):
        render(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "[1]"),
        ("summary.json", "{"),
        ("environment.json", ""),
        ("predictions.csv", "index,path\n0,a\n"),
        ("predictions.csv", "label,prediction\ncat\n"),
    ],
)
def test_other_damaged_files_are_named(folder, name, content):
    (folder.path / name).write_text(content)
    with pytest.raises(RunError, match=rf"{re.escape(name)} is damaged"):
        render(folder)


def hostile_run(path, name):
    """A run in which every text that a user may choose is `name`, except the folder's own."""
    folder = write_run(path, classes=[name, "other " + name])
    folder.config.write_text(f"name: {name}", encoding="utf-8", errors="surrogatepass")
    folder.environment.write_text(json.dumps({name: name, "nested": {name: [name]}, "command": name}))
    summary = json.loads(folder.summary.read_text())
    summary["layers"][0].update(name=name, type=name, output_shape=name, params=name)
    folder.summary.write_text(json.dumps(summary))
    result = json.loads(folder.result.read_text())
    result.update(dict.fromkeys(("recipe", "data", "device", "precision", "seed", "test_loss"), name))
    folder.result.write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_only_text(tmp_path, name):
    # UTF-8 cannot hold half of a surrogate pair, so a file never yields one; JSON can.
    in_files = name.replace("\ud800", "")
    folder = hostile_run(tmp_path / "run", in_files)
    if in_files != name:
        folder.environment.write_text(json.dumps({"cpu": name}))
    html = render(folder)
    page, plain = Page(html), Page(render(write_run(tmp_path / "plain", classes=["a", "b"])))
    html.encode()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", html)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert len(page.scripts) == len(plain.scripts)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    shown = " ".join(name.replace("\x07", "\ufffd").replace("\ud800", "\ufffd").split())
    assert shown in page.text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
@pytest.mark.parametrize(
    "name", ["<script>alert(1)<", "\"a\" 'b' & c", "two\nlines", "\u202etfel", "x" * 250]
)
def test_hostile_folder_names_are_only_text(tmp_path, name):
    page = Page(render(write_run(tmp_path / name)))
    assert " ".join(name.split()) in page.text
    assert sum(tag == "script" for tag, _ in page.tags) == 5


def test_nothing_is_loaded_from_elsewhere(folder):
    html = render(folder)
    for tag, attributes in Page(html).tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def write_lr_find(folder, **changes):
    found = {
        "lr_max": 0.21,
        "lr_min": 0.021,
        "suggestions": {"valley": 0.012, "minimum_tenth": 0.034},
        "confidence": {"level": "medium", "reasons": ["The rules put LRMAX between 0.1 and 0.4."]},
        "rule": "LRMAX is the geometric mean.",
        "refusal": None,
        "steps": 90,
        "seconds": 151.2,
    }
    folder.lr_find.write_text(json.dumps(found | changes))
    folder.lr_find_figure.write_bytes(b"\x89PNG and so on")


def test_a_range_test_is_shown_with_its_figure(folder):
    assert "Found by a range test" not in Page(render(folder)).text
    write_lr_find(folder)
    page = Page(render(folder))
    for text in ("0.210", "0.0210", "medium", "minimum tenth", "0.0340", "The rules put LRMAX", "2 min 31 s"):
        assert text in page.text
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
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


@pytest.mark.parametrize("value", [None, "<b>x</b>", 3, [1], {"a": "<b>"}, float("nan")], ids=repr)
def test_whatever_a_range_test_holds_is_only_text(folder, value):
    keys = ("lr_max", "lr_min", "suggestions", "confidence", "rule", "refusal", "steps", "seconds")
    write_lr_find(folder, **dict.fromkeys(keys, value))
    assert "<b>x" not in render(folder)


def test_the_script_is_the_one_that_the_page_allows(folder):
    import base64
    import hashlib

    html = render(folder)
    script = next(text for text in Page(html).scripts if "use strict" in text)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for _, a in Page(html).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert f"script-src 'sha256-{digest}'" in policy


def test_charts_and_tables_speak(folder):
    tags = Page(render(folder)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    pictures = [attributes for tag, attributes in tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(pictures) == 4
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= set(ids)
    for tag, attributes in tags:
        if tag == "th":
            assert attributes["scope"] in {"row", "col"}
        if tag == "a":
            assert attributes["href"].removeprefix("#") in ids


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


def test_too_many_classes_have_no_matrix(folder):
    names = [f"class {number}" for number in range(MOST_MATRIX_CLASSES + 1)]
    write_predictions(folder, [(name, names[0]) for name in names])
    text = Page(render(folder)).text
    assert "too many for a matrix" in text
    assert "class 1 taken for class 0 1" in text


def test_confusion_counts():
    pairs = [("cat", "cat"), ("cat", "dog"), ("cat", "dog"), ("cat", "ship"), ("dog", "cat"), ("dog", "dog")]
    found = count_predictions(pairs, ["cat", "dog", "ship"])
    assert [[cell.count for cell in row] for row in found.matrix] == [[1, 2, 1], [1, 1, 0], [0, 0, 0]]
    assert (found.right, found.images) == (2, 6)
    assert [score.share for score in found.scores] == [0.25, 0.5, None]
    assert [score.mistaken and score.mistaken.prediction for score in found.scores] == ["dog", "cat", None]
    assert [(cell.label, cell.prediction, cell.count) for cell in found.confusions] == [
        ("cat", "dog", 2),
        ("cat", "ship", 1),
        ("dog", "cat", 1),
    ]
    assert found.matrix[0][1].strength == 1
    assert found.matrix[1][1].strength == 0.5


def test_classes_keep_the_order_of_the_result(folder):
    write_predictions(folder, [("ship", "ship"), ("cat", "zebra"), ("dog", "dog")])
    html = render(folder)
    rows = re.findall(r'<th scope="row"><bdi class="name" title="(\w+)"', html)
    found = [name for name in rows if name in {*CLASSES, "zebra"}]
    assert found == [*CLASSES, "zebra"] * 2


def test_torch_is_not_imported(folder):
    code = (
        "import sys; from pathlib import Path; from velodrome.run.folder import RunFolder;"
        "from velodrome.reporting.page import write_report; write_report(RunFolder(Path(sys.argv[1])));"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=True, cwd=root)
    assert folder.report.exists()
