"""Names that users and files bring are text, whatever is in them; the page can be used as with others."""

import csv
import json
import re

import pytest
from example_runs import write_example
from gallery_reading import all_cards, by_loss
from pages import finding, write_diagnosis, write_lr_find

from velodrome.reporting.page import write_report
from velodrome.run.folder import RunFolder

ATTACK = '"><img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
NAMES = [
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "'><svg onload='window.pwned=1'>",
    "</script></style></title><script>window.pwned=1</script><!--",
    "\"double\" 'single' `back` \\ \\u0041 &amp; &lt;",
    "line one\nline two\r\nline three\ttab",
    "\u202eright to left \u2067שלום\u2028\u2029",
    "x" * 300,
    "\U0001f6b2 \U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301\u0301\u0301",
    "bell\x07 nul\x00 delete\x7f escape\x1b[31m",
    "{{ 7 * 7 }}{% raw %}${7 * 7}",
    "__proto__",
]
# All that a folder can be called.
RUN_NAME = '<img src=x onerror=window.pwned=1>\n\u202e"quoted" \'\\ \U0001f6b2 {{ 7 * 7 }}'
WRONG = 36


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A run in which every text is an attack."""
    path = tmp_path_factory.mktemp("runs") / RUN_NAME
    example = write_example(
        path, classes=NAMES, paths=[f"{name}.png" for name in reversed(NAMES)], wrong=WRONG
    )
    folder = example.folder
    folder.config.write_text(f"name: {ATTACK}</code></pre>\n")
    folder.environment.write_text(json.dumps({ATTACK: {ATTACK: ATTACK}, "command": ["velodrome", ATTACK]}))
    attacks = dict.fromkeys(("title", "evidence", "advice"), ATTACK)
    write_diagnosis(folder, finding("problem") | attacks, checked=[ATTACK], unchecked={ATTACK: ATTACK})
    confidence = {"level": ATTACK, "reasons": [ATTACK]}
    write_lr_find(folder, suggestions={ATTACK: 0.1}, rule=ATTACK, confidence=confidence, refusal=ATTACK)
    change(folder.result, data=ATTACK, recipe=ATTACK, device=ATTACK, seed=ATTACK)
    change(folder.mistakes, layer=ATTACK)
    change(folder.summary, layers=[{"name": ATTACK, "type": ATTACK, "params": 1}])
    other = RunFolder(folder.evaluations / "other")
    other.path.mkdir(parents=True)
    other.evaluation.write_text(json.dumps({"data": ATTACK, "images": 9, "accuracy": 0.5}))
    return example


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def report(example, tmp_path_factory):
    return write_report(example.folder, tmp_path_factory.mktemp("pages") / "page.html")


@pytest.fixture
def page(report, read):
    page = read(report, width=700)
    yield page
    assert page.evaluate("() => typeof window.pwned") == "undefined"
    assert page.locator("[onerror], [onload], img[src=x], bdi *, main title:not(svg *)").count() == 0


def as_html(name):
    """A name as HTML can hold it."""
    return re.sub("[\x00-\x08\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", name.replace("\r\n", "\n"))


def texts(page, selector):
    return page.locator(selector).all_text_contents()


def test_tables_show_names_as_they_are(example, page):
    names = [as_html(name) for name in NAMES]
    assert texts(page, "h1 bdi") == [as_html(RUN_NAME)]
    assert page.title().startswith("<img src=x onerror=window.pwned=1>")
    for selector in ("#per-class tbody th", "#matrix thead th", "#matrix tbody th", ".strips .name"):
        assert [text.strip() for text in texts(page, selector)] == [name.strip() for name in names], selector
    assert page.locator("#matrix tbody th .name").evaluate_all("all => all.map((one) => one.title)") == names
    assert texts(page, ".finding h3") == [ATTACK]
    assert texts(page, "#environment tbody th") == [f"{ATTACK}.{ATTACK}", "command"]
    assert texts(page, "#settings code") == [f"name: {ATTACK}</code></pre>\n"]
    assert texts(page, "#model tbody th") == [ATTACK]
    assert texts(page, "#rate .note bdi") == [ATTACK]
    assert texts(page, "#mistakes .lead bdi") == [ATTACK]
    assert texts(page, ".trained bdi") == [ATTACK, ATTACK]
    assert ATTACK in page.get_by_role("region", name="On other data").inner_text()


def test_cards_show_names_as_they_are(example, page):
    shown = by_loss(example, example.mistakes)[:12]
    for card, i in zip(page.locator("#cards > li").all(), shown, strict=True):
        label, prediction = NAMES[example.labels[i]], NAMES[example.predictions[i]]
        assert texts(card, "h3 bdi") == [label, prediction]
        assert texts(card, "figcaption bdi") == [prediction, label]
        assert texts(card, ".path") == [example.paths[i]]
        said = card.locator("canvas").first.get_attribute("aria-label")
        assert said.startswith(f"Image {i}: {label} taken for {prediction} with ")
        bars = texts(card, ".bars bdi")
        assert bars[0] == prediction
        assert set(bars) <= set(NAMES)
    for chooser in ("#label", "#prediction"):
        assert texts(page, f"{chooser} option") == ["any", *NAMES]


def test_every_name_filters(example, page):
    for number, name in enumerate(NAMES):
        page.locator(f"#matrix button[data-true='{number}']:not([data-predicted])").evaluate(
            "one => one.click()"
        )
        expected = [i for i in example.mistakes if example.labels[i] == number]
        assert sorted(all_cards(page)) == sorted(expected)
        assert texts(page, "#chips button") == [f"true class {name}×"]
    page.locator("#sort").select_option("class")
    page.locator("#clear").click()
    page.locator("#sort").select_option("class")
    assert all_cards(page) == sorted(
        example.mistakes, key=lambda i: (example.labels[i], -example.losses[i], i)
    )


def test_every_name_is_found(example, page):
    for name in NAMES:
        words = re.split(r"\s+", name.strip())
        page.locator("#search").fill(" ".join(words))
        expected = [
            i
            for i in example.mistakes
            if all(
                any(word.lower() in text.lower() for text in texts_of(example, i)) or word == str(i)
                for word in words
            )
        ]
        assert 0 < len(expected) < WRONG
        assert sorted(all_cards(page)) == sorted(expected), name


def texts_of(example, i):
    return [NAMES[example.labels[i]], NAMES[example.predictions[i]], example.paths[i]]


@pytest.mark.parametrize("width", [1280, 390])
def test_no_name_makes_the_page_wider_than_the_window(example, report, read, width):
    page = read(report, width=width)
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    long = NAMES.index("x" * 300)
    page.locator("#label").select_option(str(long))
    page.locator("#prediction").select_option(str(next(k for k in range(12) if example.pair(long, k))))
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    page.locator("#cards > li").first.get_by_role("button").click()
    wide = page.get_by_role("dialog").evaluate(
        "one => [one.scrollWidth, one.clientWidth, one.getBoundingClientRect().right]"
    )
    assert wide[0] <= wide[1]
    assert wide[2] <= width


def test_names_from_right_to_left_turn_nothing_else_around(example, report, read):
    page = read(report)
    places = page.locator("#matrix thead th").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().x)"
    )
    assert places == sorted(places)
    rtl = NAMES.index(next(name for name in NAMES if name.startswith("\u202e")))
    page.locator("#label").select_option(str(rtl))
    for card in page.locator("#cards > li").all():
        first, second = (name.bounding_box() for name in card.locator("h3 bdi").all())
        assert (first["y"], first["x"]) < (second["y"], second["x"])
        for bar in card.locator(".bars li").all():
            assert bar.locator("bdi").bounding_box()["x"] < bar.locator("b").bounding_box()["x"]


def test_hostile_label_errors_can_be_saved_and_read_again(example, page):
    with page.expect_download() as download:
        page.locator("#label-errors").click()
    with download.value.path().open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["index"]): row["suggested_label"] for row in rows} == {
        i: NAMES[k] for i, k in example.suggested.items()
    }
