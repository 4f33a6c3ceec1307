"""The page in a browser: it is silent, is read with the keyboard, fits every width, and can be printed."""

import re

import pytest
from example_runs import EPOCHS, write_example
from pages import history_rows, write_complete_run, write_history, write_run

from velodrome.reporting import curves
from velodrome.reporting.page import write_report
from velodrome.run.folder import RunFolder

NARROW = 700  # where twelve images are on a page of the gallery, in place of 24: quicker to draw
SECTIONS = [
    "Diagnosis",
    "Curves",
    "Learning rate",
    "Classes",
    "Mistakes",
    "Calibration",
    "Data",
    "Model",
    "Epochs",
    "Reproduce & cite",
    "Settings",
    "Environment",
]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("runs") / "first-light", wrong=30)


@pytest.fixture(scope="module")
def report(example):
    return write_report(example.folder)


def is_visible(page, text):
    return page.get_by_text(text).first.is_visible()


# No complaint, no request


def test_what_a_page_complains_about_is_noticed(tmp_path, reader):
    path = tmp_path / "page.html"
    path.write_text(
        """<meta http-equiv="Content-Security-Policy" content="script-src 'unsafe-inline'; img-src http:">
        <script>console.warn("careful"); setTimeout(() => { throw new Error("broken"); });</script>
        <img src="http://127.0.0.1:9/picture.png"><img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">"""
    )
    reader(path).wait_for_timeout(100)
    complaints = "\n".join(reader.complaints)
    for part in (
        "warning: careful",
        "broken",
        "request: http://127.0.0.1:9/",
        "policy violated: img-src data",
    ):
        assert part in complaints


def test_the_page_is_whole_and_silent(report, read):
    page = read(report)
    assert page.locator("h2").all_inner_texts() == SECTIONS
    assert page.locator("#cards > li").count() == 24
    pictures = "() => [...document.images].map((image) => image.complete && image.naturalWidth > 0)"
    assert page.evaluate(pictures) == [True, True]  # the range test and the sprite
    for link in page.get_by_role("navigation", name="Sections").get_by_role("link").all():
        link.click()
        assert page.locator(link.get_attribute("href")).bounding_box()["y"] < 900
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    page.keyboard.press("End")


def test_without_scripts_sentences_and_tables_are_there(example, report, read):
    page = read(report, java_script_enabled=False)
    assert page.locator("h2").all_inner_texts() == SECTIONS
    (sentence,) = page.locator("noscript").all()
    assert sentence.is_visible()
    assert sentence.inner_text().startswith("The gallery needs JavaScript.")
    assert not page.locator("#gallery").is_visible()
    assert not is_visible(page, "A click shows the images")
    assert page.get_by_role("region", name="Confusion matrix").get_by_role("row").count() == 6
    assert page.get_by_role("region", name="Figures of every epoch").get_by_role("row").count() == 1 + EPOCHS
    for drawing in page.locator("svg[role=img]").all():
        assert drawing.is_visible()
    last = page.locator("figure.chart").first.locator(".value").all_inner_texts()
    assert last == [percent(history_rows(EPOCHS)[-1][key]) for key in ("train_acc", "test_acc")]


# The keyboard

REACHABLE = """() => {
  const found = document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]");
  window.reachable = [...found].filter((element) =>
    !element.disabled && element.tabIndex >= 0 && element.checkVisibility({ visibilityProperty: true }));
  return reachable.map((element) => element.outerHTML.slice(0, 80));
}"""
FOCUSED = """() => {
  const element = document.activeElement, frame = element.getBoundingClientRect();
  const outlines = [getComputedStyle(element), getComputedStyle(element, "::after")];
  return {
    number: window.reachable.indexOf(element),
    isMarked: outlines.some((style) => style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2),
    isOnScreen: frame.bottom > 0 && frame.top < innerHeight && frame.right > 0 && frame.left < innerWidth,
  };
}"""


def test_tab_reaches_everything_once_and_shows_where_it_is(report, read):
    page = read(report)
    reachable = page.evaluate(REACHABLE)
    assert {re.match(r"<(\w+)", element)[1] for element in reachable} == {
        *("a", "button", "input", "select", "summary", "div", "pre", "figure")
    }
    for number, element in enumerate(reachable):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        assert focused == {"number": number, "isMarked": True, "isOnScreen": True}, element
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement === document.body")  # and out again
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(FOCUSED)["number"] == len(reachable) - 1


def test_tab_stays_in_the_large_view(report, read):
    page = read(report, width=NARROW)
    page.get_by_role("list", name="Images").get_by_role("button").nth(1).click()
    inside = []
    for _ in range(6):
        page.keyboard.press("Tab")
        inside.append(
            page.evaluate("() => document.activeElement.closest('dialog') ? document.activeElement.id : ''")
        )
    assert (
        {"viewer-previous", "viewer-next", "viewer-close"}
        <= set(inside)
        <= {*("viewer-previous", "viewer-next", "viewer-close", "viewer", "")}
    )
    assert page.evaluate(
        "() => !document.activeElement.closest('main') || document.querySelector('dialog').open"
    )


def test_skip_links_skip(report, read):
    page = read(report, width=NARROW)
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the diagnosis")
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.closest('section').id") == "diagnosis"
    page.get_by_role("link", name="Skip the matrix").press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.closest('ol').className") == "confusions"


# Values of the drawings


def percent(share):
    return f"{100 * share:.2f}%"


def chart(page, title):
    return page.locator("figure.chart").filter(has=page.get_by_role("heading", name=title, exact=True))


def values_of(figure):
    return [figure.locator(".when").inner_text(), *figure.locator(".value").all_inner_texts()]


def accuracy_at(epoch):
    row = history_rows(EPOCHS)[epoch - 1]
    return [f"epoch {epoch}", percent(row["train_acc"]), percent(row["test_acc"])]


CURSOR = "line => [getComputedStyle(line).visibility, line.getBoundingClientRect().x]"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_pointer_reads_the_values_of_a_curve(report, read, width):
    page = read(report, width=width)
    figure = chart(page, "Accuracy")
    figure.scroll_into_view_if_needed()
    assert values_of(figure) == accuracy_at(EPOCHS)
    frame = figure.locator(".plot").bounding_box()
    for epoch in (1, 5, 6, EPOCHS):
        share = (epoch - 1) / (EPOCHS - 1)
        x = curves.LEFT + share * (curves.WIDTH - curves.LEFT - curves.RIGHT)
        page.mouse.move(frame["x"] + x / curves.WIDTH * frame["width"] + 2, frame["y"] + frame["height"] / 2)
        assert values_of(figure) == accuracy_at(epoch)
        visibility, at = figure.locator(".cursor path").evaluate(CURSOR)
        assert visibility == "visible"
        assert at == pytest.approx(frame["x"] + x / curves.WIDTH * frame["width"], abs=1)
    page.mouse.move(1, 1)
    assert values_of(figure) == accuracy_at(EPOCHS)
    assert figure.locator(".cursor path").evaluate(CURSOR)[0] == "hidden"


def test_arrow_keys_read_the_values_of_a_curve(report, read):
    page = read(report, width=NARROW)
    figure = chart(page, "Accuracy")
    figure.focus()
    assert figure.locator(".legend").get_attribute("aria-live") == "polite"
    for key, epoch in (
        *(("ArrowLeft", 11), ("ArrowLeft", 10), ("ArrowRight", 11), ("Home", 1), ("ArrowLeft", 1)),
        *(("End", 12), ("ArrowRight", 12), ("PageDown", 11)),
    ):
        page.keyboard.press(key)
        assert values_of(figure) == accuracy_at(epoch), key
    page.keyboard.press("Tab")
    assert values_of(figure) == accuracy_at(EPOCHS)


def test_every_step_can_be_read(report, read):
    page = read(report, width=NARROW)
    for title, first in (("Learning rate", ["0.100"]), ("Train loss of every step", ["2.0000", "2.0000"])):
        figure = chart(page, title)
        figure.focus()
        page.keyboard.press("Home")
        assert values_of(figure) == ["step 1", *first]
    figure = chart(page, "Loss")
    figure.focus()
    page.keyboard.press("Home")
    assert values_of(figure) == ["epoch 1", "2.0000", "2.2000"]


def test_the_reliability_diagram_tells_its_values(report, read):
    page = read(report, width=NARROW)
    texts = [
        "Confidence 50 to 75%: 3 images, mean confidence 70.00%, accuracy 60.00%",
        "Confidence 75 to 100%: 7 images, mean confidence 99.00%, accuracy 80.00%",
    ]
    drawing = page.get_by_role("img", name="Reliability diagram")
    drawing.scroll_into_view_if_needed()
    # What a pointer rests on has the text as its title, also where there is no bar.
    title_at = "([x, y]) => document.elementFromPoint(x, y).closest('g').querySelector('title').textContent"
    tops = []
    for bin_, text in zip(drawing.locator(".bin").all(), texts, strict=True):
        frame = bin_.locator(".reach").bounding_box()
        for share in (0.02, 0.5, 0.98):
            place = [frame["x"] + frame["width"] / 2, frame["y"] + share * frame["height"]]
            assert page.evaluate(title_at, place) == text
        tops.append(bin_.locator(".right").bounding_box()["height"])
    assert tops[0] / tops[1] == pytest.approx(60 / 80, abs=0.01)
    rows = page.get_by_role("region", name="Bins of the reliability diagram").get_by_role("row").all()
    assert [row.inner_text().split("\t") for row in rows[1:]] == [
        ["50 to 75%", "3", "70.00%", "60.00%", "−10.00 points"],
        ["75 to 100%", "7", "99.00%", "80.00%", "−19.00 points"],
    ]


# How it looks

CONTRASTS = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const cache = new Map();
  function rgba(colour) {
    if (!cache.has(colour)) {
      context.clearRect(0, 0, 1, 1);
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      cache.set(colour, [...context.getImageData(0, 0, 1, 1).data]);
    }
    return cache.get(colour);
  }
  const over = ([r, g, b, a], [red, green, blue]) => {
    const share = a / 255;
    return [r * share + red * (1 - share), g * share + green * (1 - share), b * share + blue * (1 - share)];
  };
  function behind(element) {
    if (!element) return [255, 255, 255];
    const colour = rgba(getComputedStyle(element).backgroundColor);
    return colour[3] === 255 ? colour : over(colour, behind(element.parentElement));
  }
  const linear = (part) => part <= 10.31 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05;
  const found = {};
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
    if (!text || element.matches("script, style, option, title, desc, :disabled *, :disabled")) continue;
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const ink = over(rgba(element.closest("svg") ? style.fill : style.color), ground);
    const [low, high] = [light(ink), light(ground)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const name = `${element.closest("section")?.id} ${element.tagName}.${element.getAttribute("class")}`;
    const ratio = high / low / (isLarge ? 3 / 4.5 : 1);
    if (ratio < (found[name]?.[0] ?? Infinity)) found[name] = [ratio, text.slice(0, 40)];
  }
  return found;
}"""
# Parts of the page that are wider than their place, and that keys cannot scroll.
OUT_OF_REACH = """() => {
  const isScrolled = (element) => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
  return [...document.querySelectorAll("main *")]
    .filter((element) => element.scrollWidth > element.clientWidth && isScrolled(element))
    .filter((element) => element.tabIndex < 0)
    .map((element) => element.outerHTML.slice(0, 80));
}"""
# A zero in the confusion matrix is meant to be overlooked: an empty cell says the same.
FAINT = " zero"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_and_fit_at_every_width(report, read, scheme):
    page = read(report, color_scheme=scheme)
    grounds = {"light": "rgb(252, 252, 250)", "dark": "rgb(17, 20, 23)"}
    ground = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert ground == grounds[scheme]
    for width in (1280, 820, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert page.evaluate(OUT_OF_REACH) == []
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 40
        faint = {name: found for name, found in contrasts.items() if found[0] < 4.5 and FAINT not in name}
        assert faint == {}, width


def test_nothing_moves_for_those_who_do_not_want_it(report, read):
    behaviour = "() => getComputedStyle(document.documentElement).scrollBehavior"
    page = read(report, reduced_motion="reduce")
    assert page.evaluate(behaviour) == "auto"
    page.get_by_role("list", name="Images").get_by_role("button").first.click()
    assert page.evaluate("() => document.getAnimations().length") == 0
    assert read(report, reduced_motion="no-preference").evaluate(behaviour) == "smooth"


def test_on_paper_there_are_figures_and_no_controls(report, read):
    page = read(report)
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = false; })")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF-")
    # What is folded cannot be unfolded on paper.
    assert page.evaluate("() => [...document.querySelectorAll('details')].every((part) => part.open)")
    page.emulate_media(media="print")
    for control in ("#views", ".controls", ".state", "#pager", "nav.contents", "#search"):
        assert not page.locator(control).is_visible()
    assert [card.is_visible() for card in page.locator("#cards > li").all()] == [True] * 12 + [False] * 12
    assert is_visible(page, "The first 12 of 30 images.")
    assert not is_visible(page, "A click shows the images")
    assert (
        page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    page.emulate_media(media="screen")
    assert not is_visible(page, "The first 12 of 30 images.")


# What is missing


FEW = 6  # mistakes, which keeps these tests quick


def nothing_but_settings(path):
    path.mkdir()
    (path / "config.yaml").write_text("seed: 7\n")


def killed_in_the_second_epoch(path):
    folder = write_run(path)
    write_history(folder, history_rows(1))
    for file in (folder.result, folder.predictions):
        file.unlink()


def without(*names):
    def make(path):
        folder = write_example(path, wrong=FEW).folder
        for name in names:
            getattr(folder, name).unlink()

    return make


def with_damaged(name, content):
    def make(path):
        getattr(write_example(path, wrong=FEW).folder, name).write_bytes(content)

    return make


def of_many_classes(path):
    write_example(path, classes=[f"owl {number}" for number in range(45)], wrong=90)


def without_a_mistake(path):
    write_example(path, wrong=0)


def with_half_a_sprite(path):
    """As WebP files are that were cut and whose length was mended."""
    file = write_complete_run(path).mistakes_image
    whole = write_example(path.with_name("whole"), wrong=FEW).folder.mistakes_image.read_bytes()
    half = whole[: len(whole) // 2 // 2 * 2]
    file.write_bytes(half[:4] + (len(half) - 8).to_bytes(4, "little") + half[8:])


MISSING = {
    "nothing but settings": (
        nothing_but_settings,
        [
            "No epoch is complete yet, so there is no accuracy to show.",
            "No epoch is complete yet: history.csv is missing or has no rows.",
            "There are no predictions yet: predictions.csv is missing",
            "There is no diagnosis: diagnosis.json is missing.",
            "There is no reliability diagram: evaluation.json is missing.",
            "There are no samples of the images: gallery/samples.json is missing.",
            "There is no model summary: summary.json is missing",
            "The command that started the run is not known",
            "Versions and hardware are not known: environment.json is missing",
        ],
        0,
    ),
    "killed in the second epoch": (
        killed_in_the_second_epoch,
        ["This run is not finished.", "There are no predictions yet", "It is written when the run ends."],
        0,
    ),
    "no gallery": (
        without("mistakes", "mistakes_image", "maps", "samples"),
        [
            "There are no images and no heat maps: gallery/mistakes.json is missing.",
            "There are no samples of the images: gallery/samples.json is missing.",
        ],
        FEW,
    ),
    "no maps": (without("maps"), ["There are no heat maps: gallery/maps.npy is missing."], FEW),
    "no evaluation": (
        without("evaluation"),
        ["There is no reliability diagram: evaluation.json is missing."],
        FEW,
    ),
    "no probabilities": (without("probabilities"), ["Probabilities are not shown: probabilities.npy"], FEW),
    "no label errors": (without("label_errors"), ["are not marked: label_errors.csv is missing."], FEW),
    "no range test figure": (without("lr_find_figure"), ["There is no figure: lr_find.png is missing."], FEW),
    "no matrix": (of_many_classes, ["45 classes are too many for a matrix that can be read"], 12),
    "no mistake": (without_a_mistake, ["Every test image is recognised."], 12),
    "damaged sprite": (with_half_a_sprite, ["There are no images: gallery/mistakes.webp is damaged."], 1),
    "damaged maps": (
        with_damaged("maps", b"nonsense"),
        ["There are no heat maps: gallery/maps.npy is damaged"],
        FEW,
    ),
}


EMPTY_SECTIONS = """() => [...document.querySelectorAll("main > section")]
  .filter((section) => section.innerText.trim() === section.querySelector("h2").innerText)
  .map((section) => section.id)"""


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_said(what, tmp_path, read):
    make, sentences, cards = MISSING[what]
    path = tmp_path / "first-light"
    make(path)
    page = read(write_report(RunFolder(path)), width=NARROW)
    for sentence in sentences:
        page.get_by_text(sentence).first.wait_for()
    assert page.locator("#cards > li").count() == cards
    assert page.evaluate(EMPTY_SECTIONS) == []
    links = "() => [...document.querySelectorAll('a[href^=\"#\"]')].map((link) => link.getAttribute('href'))"
    for link in page.evaluate(links):
        assert page.locator(link).count() == 1, f"{link} leads nowhere"
    width = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    if cards > 1:
        page.get_by_role("searchbox", name="Search").fill("roll")
        page.locator("#cards > li").first.get_by_role("button").click()
        assert page.get_by_role("dialog").is_visible()
