"""The report, from run folders that the tests make up."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import (
    HOSTILE,
    Page,
    finding,
    history_rows,
    started,
    write_complete_run,
    write_diagnosis,
    write_evaluation,
    write_events,
    write_history,
    write_lr_find,
    write_run,
)

from velodrome.errors import RunError
from velodrome.reporting.page import render, write_report
from velodrome.run.folder import HISTORY_COLUMNS, RunFolder


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "first-light")


@pytest.fixture
def complete(tmp_path):
    return write_complete_run(tmp_path / "complete")


def test_a_complete_run_shows_everything(complete):
    page = Page(render(complete))
    for text in (
        "complete",
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
    assert page.find("p", class_="missing") == [
        {"class": "missing", "id": "no-images", "hidden": None},
        {"class": "missing"},  # in <noscript>
        {"class": "missing", "id": "none", "hidden": None},
    ]
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
        ("evaluation.json", "There is no reliability diagram: evaluation.json is missing."),
        ("diagnosis.json", "There is no diagnosis: diagnosis.json is missing."),
        ("probabilities.npy", "Probabilities are not shown: probabilities.npy is missing."),
        ("label_errors.csv", "Likely label errors are not marked: label_errors.csv is missing."),
        ("gallery/mistakes.json", "no images and no heat maps: gallery/mistakes.json is missing."),
        ("gallery/mistakes.webp", "no images and no heat maps: gallery/mistakes.webp is missing."),
        ("gallery/maps.npy", "There are no heat maps: gallery/maps.npy is missing."),
        ("gallery/samples.json", "no samples of the images: gallery/samples.json is missing."),
        ("gallery/samples.webp", "no samples of the images: gallery/samples.webp is missing."),
        ("gallery/augmented.webp", "augmented images are not shown: gallery/augmented.webp is missing."),
    ],
)
def test_a_missing_part_is_said(complete, name, words):
    (complete.path / name).unlink()
    assert words in Page(render(complete)).text


@pytest.mark.parametrize(
    "name", ["evaluation.json", "diagnosis.json", "gallery/mistakes.json", "gallery/samples.json"]
)
def test_how_to_get_a_missing_part_is_said(complete, name):
    (complete.path / name).unlink()
    assert "velodrome evaluate RUN makes" in Page(render(complete)).text
    complete.result.unlink()
    text = Page(render(complete)).text
    assert re.search(r"(It is|They are) written when the run ends\.", text)
    assert "velodrome evaluate" not in text


@pytest.mark.parametrize(
    "name", ["evaluation.json", "diagnosis.json", "gallery/mistakes.json", "gallery/samples.json"]
)
@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "{}", '"x"', "[" * 100_000, b"\xff", '{"a": NaN}'], ids=range(8)
)
def test_a_damaged_part_is_said(complete, name, content):
    (complete.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    text = Page(render(complete)).text
    assert f"{name} is damaged: " in text
    assert str(complete.path) not in text


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
    folder = write_complete_run(path, classes=[name, "other " + name, "a third"])
    folder.config.write_text(f"name: {name}", encoding="utf-8", errors="surrogatepass")
    folder.environment.write_text(json.dumps({name: name, "nested": {name: [name]}, "command": name}))
    summary = json.loads(folder.summary.read_text())
    summary["layers"][0].update(name=name, type=name, output_shape=name, params=name)
    folder.summary.write_text(json.dumps(summary))
    result = json.loads(folder.result.read_text())
    result.update(dict.fromkeys(("recipe", "data", "device", "precision", "seed", "test_loss"), name))
    folder.result.write_text(json.dumps(result))
    write_lr_find(folder, rule=name, suggestions={name: 0.1}, confidence={"level": name, "reasons": [name]})
    write_diagnosis(
        folder, dict.fromkeys(finding("note"), name), checked=[name], unchecked={name: name, "other": name}
    )
    mistakes = json.loads(folder.mistakes.read_text())
    folder.mistakes.write_text(json.dumps({**mistakes, "layer": name}))
    example = {"test": name, "train": name, "same_label": name}
    write_evaluation(folder, data=name, duplicates={"images": 1, "examples": [example]})
    return folder


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_only_text(tmp_path, name):
    # UTF-8 cannot hold half of a surrogate pair, so a file never yields one; JSON can.
    in_files = name.replace("\ud800", "")
    folder = hostile_run(tmp_path / "run", in_files)
    if in_files != name:
        folder.environment.write_text(json.dumps({"cpu": name}))
    html = render(folder)
    page, plain = Page(html), Page(render(hostile_run(tmp_path / "plain", "plain")))
    html.encode()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", html)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert len(page.scripts) == len(plain.scripts)
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    shown = " ".join(name.replace("\x07", "\ufffd").replace("\ud800", "\ufffd").split())
    assert shown in page.text
    assert page.gallery_data()["classes"][0] == in_files


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
@pytest.mark.parametrize(
    "name", ["<script>alert(1)<", "\"a\" 'b' & c", "two\nlines", "\u202etfel", "x" * 250]
)
def test_hostile_folder_names_are_only_text(tmp_path, name):
    page = Page(render(write_run(tmp_path / name)))
    assert " ".join(name.split()) in page.text
    assert len(page.find("script")) == 4 + 1 + 3  # charts, gallery, the page's own


def test_nothing_is_loaded_from_elsewhere(complete):
    write_lr_find(complete)
    html = render(complete)
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert attributes.get("src", "data:image/").startswith("data:image/")
        if tag == "image":
            assert attributes["href"].startswith("data:image/webp;base64,")
        elif "download" in attributes:
            assert attributes["href"].startswith("data:text/csv;base64,")
        else:
            assert attributes.get("href", "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize(("live", "count"), [(False, 3), (True, 4)])
def test_the_page_allows_its_own_scripts_and_no_other(complete, live, count):
    html = render(complete, live=live)
    scripts = [text for text in Page(html).scripts if "use strict" in text]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    (meta,) = Page(html).find("meta", http_equiv="Content-Security-Policy")
    policy = dict(part.strip().split(" ", 1) for part in meta["content"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests),
    }
    assert len(scripts) == count


def test_only_a_live_page_reloads_itself(folder):
    said = "Training is going on; this page reloads itself."
    for finished in (True, False):
        if not finished:
            folder.result.unlink()
        html = render(folder)
        assert said not in Page(html).text
        assert "location.reload" not in html
        assert 'http-equiv="refresh"' not in html
        live = render(folder, live=True)
        assert said in Page(live).text
        assert "This run is not finished" not in Page(live).text
        assert "location.reload" in live
        assert Page(live).find("meta", http_equiv="refresh") == [{"http-equiv": "refresh", "content": "10"}]
    assert write_report(folder, live=True).read_text(encoding="utf-8") == live


def test_sections_are_in_order(complete):
    write_lr_find(complete)
    page = Page(render(complete))
    sections = [found["id"] for found in page.find("section")]
    assert sections == [
        *("diagnosis", "curves", "rate", "classes", "mistakes", "calibration", "data", "model", "epochs"),
        *("reproduce", "settings", "environment"),
    ]
    links = [found["href"] for found in page.find("a") if "class" not in found and "download" not in found]
    assert links == [f"#{section}" for section in sections]


def test_charts_and_tables_speak(complete):
    tags = Page(render(complete)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    pictures = [attributes for tag, attributes in tags if tag == "svg" and "role" in attributes]
    assert len(pictures) == 4 + 1 + 3 + 3  # charts, reliability, samples of each class, augmented images
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert attributes.get("aria-label") or set(attributes["aria-labelledby"].split()) <= set(ids)
    for tag, attributes in tags:
        if tag == "img":
            assert "alt" in attributes
        if tag == "button":
            assert attributes["type"] == "button"
    for tag, attributes in tags:
        if tag == "th":
            assert attributes["scope"] in {"row", "col"}
        if tag == "a" and "download" not in attributes:
            assert attributes["href"].removeprefix("#") in ids


def test_torch_is_not_imported(folder):
    code = (
        "import sys; from pathlib import Path; from velodrome.run.folder import RunFolder;"
        "from velodrome.reporting.page import write_report; write_report(RunFolder(Path(sys.argv[1])));"
        "assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=True, cwd=root)
    assert folder.report.exists()
