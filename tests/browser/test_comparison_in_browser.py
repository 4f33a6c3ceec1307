"""The page of a comparison in a browser: silent, read with the keyboard, in every width, light and dark."""

import io

import numpy as np
import pytest
from PIL import Image
from run_folders import colour, write_run

from velodrome.comparison.comparing import compare

SECTIONS = ["Verdict", "Accuracy", "What differs", "Curves", "Mistakes", "Runs", "Method"]
NAMES = ["baseline", "cutout=16", "cutout=4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    mistakes = {
        8: [[1, 2, 3, 4, 9], [1, 2, 3, 9], [1, 2, 9]],
        16: [[1, 5], [1, 5], [1]],
        4: [[1, 20], [7], [1]],
    }
    for number, (cutout, wrongs) in enumerate(mistakes.items()):
        for seed, wrong in enumerate(wrongs):
            about = {"seed": seed, "wrong": wrong, "cutout": cutout, "train_seconds": 10.0 + cutout}
            write_run(place / f"{number}-cutout-{cutout}-{seed}", gallery=True, **about)
    (place / "cutout-8-9").mkdir()
    return place


@pytest.fixture(scope="module")
def page_path(runs, tmp_path_factory):
    found = compare(runs, baseline="cutout=8")
    return found.write_page(tmp_path_factory.mktemp("page") / "comparison.html")


def test_the_page_is_whole_and_silent(page_path, read):
    page = read(page_path)
    assert page.title() == "2 variants against the baseline · velodrome"
    assert page.locator("h2").all_inner_texts() == SECTIONS
    for link in page.get_by_role("navigation", name="Sections").get_by_role("link").all():
        link.click()
        assert page.locator(link.get_attribute("href")).bounding_box()["y"] < 900
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert "cutout-8-9" in page.locator("#verdict .pairs").inner_text()
    assert "Is empty" in page.locator("#verdict .pairs").inner_text()


def test_verdicts_say_what_the_comparison_says(runs, page_path, read):
    page = read(page_path)
    found = compare(runs, baseline="cutout=8")
    verdicts = page.locator(".verdict")
    assert verdicts.locator("h3").all_inner_texts() == NAMES[1:]
    for verdict, contrast in zip(verdicts.all(), found.contrasts, strict=True):
        words = verdict.inner_text().replace("\N{NO-BREAK SPACE}", " ")
        assert f"p = {contrast.p:.2g}" in words
        assert contrast.verdict in words


def test_dots_stand_where_the_accuracies_are(runs, page_path, read):
    """Between two ticks a dot divides the lane as its accuracy divides what the ticks say."""
    page = read(page_path)
    labels = page.locator(".axis-of .lane span")
    ticks = [float(text.rstrip("%")) for text in labels.all_inner_texts()]
    boxes = [label.bounding_box() for label in labels.all()]
    at = [box["x"] + box["width"] / 2 for box in boxes]
    found = compare(runs, baseline="cutout=8")
    for variant, place in zip(found.variants, page.locator(".place:not(.axis-of)").all(), strict=True):
        expected = [100 * trial.run.figure("test_accuracy") for trial in variant.trials]
        dots = [dot.bounding_box() for dot in place.locator(".dot").all()]
        middles = [box["x"] + box["width"] / 2 for box in dots]
        assert np.interp(middles, at, ticks) == pytest.approx(expected, abs=0.1)
        lane = place.get_by_role("img")
        assert f"mean {variant.accuracy:.2%}" in lane.get_attribute("aria-label")


def test_curves_are_read_with_the_keyboard(page_path, read):
    page = read(page_path)
    figure = page.locator("figure.chart").filter(
        has=page.get_by_role("heading", name="Test accuracy", exact=True)
    )
    legend = figure.locator(".legend")
    at_rest = legend.inner_text()
    assert at_rest.startswith("at the end")
    assert [entry.split(" ")[0] for entry in figure.locator(".entry").all_inner_texts()] == NAMES
    figure.focus()
    page.keyboard.press("Home")
    assert figure.locator(".when").inner_text() == "epoch 1"
    assert figure.locator(".value").first.inner_text() == "31.11%"  # a third of 93.33%
    page.keyboard.press("Tab")
    assert legend.inner_text() == at_rest
    assert figure.locator(".area").count() == 3


def test_curves_against_time_end_where_their_runs_end(page_path, read):
    page = read(page_path)
    figure = page.locator("figure.chart").filter(
        has=page.get_by_role("heading", name="Test accuracy against time", exact=True)
    )
    assert figure.locator(".value").all_inner_texts() == ["93.33%", "97.22%", "97.78%"]
    figure.focus()
    page.keyboard.press("End")  # 26 s, where only cutout=16 still goes on
    assert figure.locator(".when").inner_text() == "26 s"
    assert figure.locator(".value").all_inner_texts() == ["–", "97.22%", "–"]


def test_thumbnails_are_those_of_the_images(page_path, read):
    page = read(page_path)
    pair = page.locator(".pair").first
    assert (
        "cutout=16 against the baseline: 1 image only it gets wrong, 3 only the baseline, 1 both"
        in pair.inner_text()
    )
    pictures = pair.locator(".thumbs li svg")
    assert pictures.count() == 4
    shown = []
    for picture in pictures.all():
        pixels = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"))
        shown.append(tuple(pixels[pixels.shape[0] // 2, pixels.shape[1] // 2].tolist()))
    assert shown == [colour(index) for index in (5, 2, 9, 3)]
    first = pair.locator(".thumbs li").first
    assert first.inner_text().split("\n") == [
        "sea lion",
        "taken for cat (2)",
        "2 of 3 runs err, 0 of 3 of the other",
    ]


def test_tab_reaches_everything_and_comes_out_again(page_path, read):
    page = read(page_path)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        tag = page.evaluate("() => document.activeElement.tagName")
        if tag == "BODY":
            break
        reached.append(tag)
    assert reached[0] == "A"
    assert set(reached) >= {"A", "DIV", "FIGURE", "SUMMARY"}
    assert tag == "BODY"


@pytest.mark.parametrize("width", [320, 768, 1280, 1920])
def test_nothing_is_wider_than_the_window(page_path, read, width):
    page = read(page_path, width=width)
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


CONTRASTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (c) => { const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]); };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05); };
  const paper = rgb(getComputedStyle(document.documentElement).backgroundColor);
  const texts = [...document.querySelectorAll("p, td, th, b, small, span, h3, bdi, summary")]
    .filter((one) => one.checkVisibility()).map((one) => ratio(rgb(getComputedStyle(one).color), paper));
  const probe = document.body.appendChild(document.createElement("i"));
  const lines = [0, 1, 2, 3, 4, 5, 6, 7].map((number) => {
    probe.className = `v${number}`; probe.style.color = "var(--line)";
    return ratio(rgb(getComputedStyle(probe).color), paper); });
  return { texts: Math.min(...texts), lines: Math.min(...lines) };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_both_schemes(page_path, read, scheme):
    found = read(page_path, color_scheme=scheme).evaluate(CONTRASTS)
    assert found["texts"] >= 4.5
    assert found["lines"] >= 3


def test_without_scripts_everything_is_there(page_path, read):
    page = read(page_path, java_script_enabled=False)
    assert page.locator("h2").all_inner_texts() == SECTIONS
    assert page.locator("figure.chart .value").first.inner_text() == "93.33%"


def test_hostile_names_stay_names(tmp_path, read):
    name = "<script>alert(1)</script><img src=x>"
    write_run(tmp_path / "a")
    write_run(tmp_path / f"b{name.replace('/', '')}", labels=f"{name}.csv", wrong=[3])
    page = read(compare(tmp_path).write_page(tmp_path / "page.html"))
    assert page.locator(".verdict h3").inner_text() == f"labels={name}.csv"
    assert page.locator("img").count() == 0
