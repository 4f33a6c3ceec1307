"""The gallery of mistakes as a reader uses it: what is shown is compared with the run folder."""

import base64
import io
import re

import numpy as np
import pytest
from example_runs import CLASSES, HEIGHT, MAP_HEIGHT, MAP_WIDTH, WIDTH, write_example
from gallery_reading import all_cards, by_loss, cards, index_in
from PIL import Image

from velodrome.reporting.page import write_report

MISTAKES = 36
A_PAGE = 12  # images on a page at the width of these tests, which keeps them quick; 24 on a wide screen
NARROW = 700
ZOOM = 16  # of an image, on its canvas
PAIR = (0, 1)  # cats taken for dogs


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("runs") / "first-light", wrong=MISTAKES)


@pytest.fixture(scope="module")
def report(example):
    return write_report(example.folder)


@pytest.fixture
def page(report, read):
    return read(report, width=NARROW)


def counts(page):
    """The numbers that the page says: how many images it shows, and of how many."""
    return [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", count_line(page))]


def count_line(page):
    return page.get_by_role("status").inner_text()


def view(page, key):
    """One of the buttons that say which images to show."""
    return page.locator(f"#views button[data-view={key}]")


def chips(page):
    return page.locator("#chips").get_by_role("button")


def chooser(page, label):
    return page.locator("label").filter(has_text=re.compile(f"^{label}")).get_by_role("combobox")


def filter_by(page, label, name):
    chooser(page, label).select_option(label=name)


def cell(page, label, prediction, classes=CLASSES):
    said = "recognised" if label == prediction else f"taken for {classes[prediction]}"
    matrix = page.get_by_role("region", name="Confusion matrix")
    return matrix.get_by_role("button", name=re.compile(f"^{classes[label]} {said}: "))


# The confusion matrix


def assert_shows_the_pair(example, page):
    expected = by_loss(example, example.pair(*PAIR))
    assert cards(page) == expected
    assert 3 <= len(expected) <= A_PAGE
    assert counts(page) == [len(expected), MISTAKES]
    assert set(page.locator("#cards h3").all_inner_texts()) == {"cat taken for dog"}
    (chip,) = chips(page).all()
    assert chip.get_attribute("aria-label") == "cat taken for dog: clear this filter"
    # The reader is where the images are, with the eyes and with the keyboard.
    assert chip.evaluate("chip => chip === document.activeElement")
    top = page.locator("#gallery").bounding_box()["y"]
    assert 0 <= top < 200
    assert chip.bounding_box()["y"] < page.viewport_size["height"]


def test_a_click_on_a_cell_shows_that_pair(example, page):
    assert cards(page) == by_loss(example, example.mistakes)[:A_PAGE]
    cell(page, *PAIR).click()
    assert_shows_the_pair(example, page)
    chips(page).click()
    assert chips(page).count() == 0
    assert all_cards(page) == by_loss(example, example.mistakes)


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_key_on_a_cell_shows_that_pair(example, page, key):
    cell(page, *PAIR).focus()
    page.keyboard.press(key)
    assert_shows_the_pair(example, page)


def test_every_cell_counts_and_shows_its_images(example, page):
    numbers = page.locator("#matrix tbody td").all_inner_texts()
    table = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(table, (example.labels, example.predictions), 1)
    assert [int(number) for number in numbers] == table.flatten().tolist()
    assert (table == 0).any()
    for label, prediction in np.argwhere(table).tolist():
        cell(page, label, prediction).evaluate("button => button.click()")
        pair = (label, prediction)
        expected = [i for i in example.shown if (example.labels[i], example.predictions[i]) == pair]
        assert sorted(cards(page)) == sorted(expected)
    for label, prediction in np.argwhere(table == 0).tolist():
        assert cell(page, label, prediction).count() == 0


def test_headings_of_the_matrix_show_the_mistakes_of_a_class(example, page):
    page.get_by_role("button", name="Mistakes of true class sea lion").click()
    expected = [i for i in example.mistakes if example.labels[i] == 2]
    assert all_cards(page) == by_loss(example, expected)
    assert chips(page).all_text_contents() == ["true class sea lion×"]
    page.get_by_role("button", name="Mistakes taken for frog").click()
    expected = [i for i in example.mistakes if example.predictions[i] == 3]
    assert all_cards(page) == by_loss(example, expected)
    assert chips(page).all_text_contents() == ["taken for frog×"]


def test_a_frequent_confusion_shows_its_images(example, page):
    page.get_by_role("listitem").get_by_role("button", name=re.compile(r"^cat taken for dog \d+$")).click()
    assert_shows_the_pair(example, page)


def test_a_cell_clears_what_was_searched_before(example, page):
    page.get_by_role("searchbox", name="Search").fill("no such image")
    view(page, "best").click()
    cell(page, *PAIR).click()
    assert_shows_the_pair(example, page)


def test_arrow_keys_move_in_the_matrix(page):
    def focused():
        return page.evaluate("() => document.activeElement.getAttribute('aria-label')")

    cell(page, 4, 4).focus()
    said = []
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
        said.append(re.sub(r": \d+$", "", focused()))
    assert said == [
        "owl taken for frog",
        "frog recognised",
        "frog taken for owl",
        "sea lion taken for owl",
        "cat taken for owl",  # no dog was
        "Mistakes taken for owl",
        "Mistakes taken for owl",
    ]


# Search, filters, order


def is_found(example, i, query):
    texts = [CLASSES[example.labels[i]], CLASSES[example.predictions[i]], example.paths[i]]
    return all(
        any(word in text.lower() for text in texts) or word.removeprefix("#") == str(i)
        for word in query.lower().split()
    )


def test_search_finds_classes_paths_and_indices(example, page):
    box = page.get_by_role("searchbox", name="Search")
    some = example.mistakes[20]
    for query in ("owl", "SEA  lion", "roll-b", "cat roll-a", f"{some}", f"#{some}", example.paths[some]):
        box.fill(query)
        expected = [i for i in by_loss(example, example.mistakes) if is_found(example, i, query)]
        assert 0 < len(expected) < MISTAKES
        assert counts(page) == [len(expected), MISTAKES], query
        assert all_cards(page) == expected, query


def test_where_nothing_is_found_the_page_says_so(example, page):
    nothing = page.get_by_text("No image in this page is like that.")
    assert not nothing.is_visible()
    page.get_by_role("searchbox", name="Search").fill("owl zebra")
    assert nothing.is_visible()
    assert cards(page) == []
    assert counts(page) == [0, MISTAKES]
    assert not page.get_by_role("navigation", name="Pages of images").is_visible()
    page.get_by_role("button", name="Reset").click()
    assert not nothing.is_visible()
    assert all_cards(page) == by_loss(example, example.mistakes)


ORDERS = {
    "loss, highest first": lambda example, i: (-example.losses[i], i),
    "confidence, highest first": lambda example, i: (-example.confidence(i), -example.losses[i], i),
    "confidence, lowest first": lambda example, i: (example.confidence(i), -example.losses[i], i),
    "true class": lambda example, i: (example.labels[i], -example.losses[i], i),
    "index": lambda example, i: i,
}


def test_every_order_is_kept_over_all_pages(example, page):
    order = chooser(page, "Sort by")
    assert order.locator("option").all_inner_texts() == list(ORDERS)
    for name, key in ORDERS.items():
        order.select_option(label=name)
        found = all_cards(page)
        assert found == sorted(example.mistakes, key=lambda i, key=key: key(example, i)), name
        assert page.locator("#page").inner_text() == "Page 3 of 3"


def views_of(example):
    """What each button shows, in its order."""
    worst = [
        i
        for label in range(len(CLASSES))
        for i in by_loss(example, [i for i in example.mistakes if example.labels[i] == label])[:3]
    ]
    return {
        "mistakes": by_loss(example, example.mistakes),
        "worst": worst,
        "errors": by_loss(example, [i for i in example.shown if i in example.suggested]),
        "best": sorted(example.right, key=lambda i: (example.labels[i], example.losses[i], i)),
    }


def test_each_view_shows_its_images(example, page):
    for key, expected in views_of(example).items():
        view(page, key).click()
        assert view(page, key).inner_text().endswith(f" {len(expected)}")
        # One of the likely label errors is a right answer, and not among the best.
        beyond = [len(expected), len(example.suggested)] if key == "errors" else []
        assert counts(page) == [len(expected), len(expected), *beyond]
        assert all_cards(page) == expected, key
        (pressed,) = page.locator("#views [aria-pressed=true]").all()
        assert pressed.get_attribute("data-view") == key


def test_filters_and_search_work_together(example, page):
    filter_by(page, "True class", "cat")
    filter_by(page, "Predicted class", "dog")
    page.get_by_role("searchbox", name="Search").fill("roll-a")
    chooser(page, "Sort by").select_option("index")
    pair = example.pair(*PAIR)
    expected = sorted(i for i in pair if "roll-a" in example.paths[i])
    assert 0 < len(expected) < len(pair)
    assert cards(page) == expected
    chips(page).click()
    assert cards(page) == sorted(i for i in example.mistakes if "roll-a" in example.paths[i])
    page.get_by_role("button", name="Reset").click()
    assert page.get_by_role("searchbox", name="Search").input_value() == ""
    assert chooser(page, "Sort by").input_value() == "loss"
    assert cards(page) == by_loss(example, example.mistakes)[:A_PAGE]


def test_the_count_is_told_to_those_who_do_not_see_it(example, page):
    status = page.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    assert status.inner_text() == f"{MISTAKES} of {MISTAKES} mistakes"
    element = status.element_handle()
    filter_by(page, "True class", "owl")
    # The same element tells the new count: a new one would not be read out.
    assert element.inner_text() == f"{sum(example.labels[example.mistakes] == 4)} of {MISTAKES} mistakes"


def test_pages_are_turned(example, page):
    expected = by_loss(example, example.mistakes)
    back, on = (page.get_by_role("button", name=name, exact=True) for name in ("Previous", "Next"))
    assert back.is_disabled()
    on.click()
    assert cards(page) == expected[A_PAGE : 2 * A_PAGE]
    assert page.locator("#gallery").bounding_box()["y"] >= 0
    assert page.evaluate("() => document.activeElement.id") == "found"
    on.click()
    assert cards(page) == expected[2 * A_PAGE :]
    assert on.is_disabled()
    back.click()
    assert page.locator("#page").inner_text() == "Page 2 of 3"


# A card


def pixels(canvas):
    """The pixels of a canvas as (H, W, 3) uint8."""
    _, content = canvas.evaluate("canvas => canvas.toDataURL('image/png')").split(",")
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.getchannel("A").getextrema() == (255, 255)
        return np.asarray(image.convert("RGB"))


def enlarged(image):
    return image.repeat(ZOOM, 0).repeat(ZOOM, 1)


def panes(card):
    return card.locator("canvas").all()


def on_page(example, page, i):
    """The card of an image, wherever it is."""
    page.get_by_role("searchbox", name="Search").fill(f"#{i}")
    return page.locator("#cards > li").filter(has_text=re.compile(f"#{i} "))


def place_of(example, is_zero):
    """The first mistake whose maps are zero, of the predicted and of the true class, as `is_zero` says."""
    zero = ~example.maps.any((2, 3))
    return next(n for n in range(len(example.mistakes)) if tuple(zero[n]) == is_zero)


def test_images_are_those_of_the_sprite_pixel_for_pixel(example, page):
    for card, i in zip(page.locator("#cards > li").all(), cards(page), strict=True):
        shown = pixels(panes(card)[0])
        assert np.array_equal(shown, enlarged(example.images[example.shown.index(i)]))


def test_heat_maps_are_of_the_predicted_and_of_the_true_class(example, page):
    move_to(page, page.get_by_role("slider", name="Heat map"), "100")
    most = page.locator("#legend").evaluate(
        "legend => [...legend.getContext('2d').getImageData(255, 0, 1, 1).data.slice(0, 3)]"
    )
    for n in [place_of(example, (False, False)), 5, 20]:
        card = on_page(example, page, example.shown[n])
        image, *heats = panes(card)
        assert np.array_equal(pixels(image), enlarged(example.images[n]))
        for heat, values in zip(heats, example.maps[n], strict=True):
            assert_is_coloured_as(pixels(heat), example.images[n], values, most)
        captions = card.locator("figcaption").all_inner_texts()
        names = [CLASSES[numbers[example.shown[n]]] for numbers in (example.predictions, example.labels)]
        assert [caption.replace(" ", "") for caption in captions] == [
            "image",
            *(
                f"{role}{name}".replace(" ", "")
                for role, name in zip(("predicted", "true"), names, strict=True)
            ),
        ]


def assert_is_coloured_as(shown, image, values, most):
    """Where the map is strongest, the strongest colour; less beside it; far from there the grey image."""
    tall, wide = HEIGHT * ZOOM // MAP_HEIGHT, WIDTH * ZOOM // MAP_WIDTH
    centres = shown[tall // 2 :: tall, wide // 2 :: wide].astype(int)
    peak = np.unravel_index(values.argmax(), values.shape)
    rows, columns = np.indices(values.shape)
    down, across = abs(rows - peak[0]), abs(columns - peak[1])
    assert abs(centres[peak] - most).max() <= 20
    assert colourfulness(centres)[down + across == 1].min() > 30
    far = np.maximum(down, across) >= 3
    assert colourfulness(centres)[far].max() <= 20
    assert_is_grey(shown[tall // 2 :: tall, wide // 2 :: wide][far], colours_at(image, tall, wide)[far], 20)


def colours_at(image, tall, wide):
    return enlarged(image)[tall // 2 :: tall, wide // 2 :: wide]


def colourfulness(pixels_u8):
    return np.ptp(pixels_u8.astype(int), -1)


def assert_is_grey(shown, image, tolerance=2):
    """The image without its colours, perhaps darker."""
    assert colourfulness(shown).max() <= tolerance
    brightness = (image @ np.array([0.2126, 0.7152, 0.0722])).flatten()
    grey = shown.mean(-1).flatten()
    share = brightness @ grey / (brightness @ brightness)
    assert 0.5 < share <= 1.01
    assert abs(grey - share * brightness).max() <= tolerance


@pytest.mark.parametrize("which", [0, 1])
def test_a_map_of_zeros_says_that_nothing_speaks_for_the_class(example, page, which):
    n = place_of(example, (which == 0, which == 1))
    i = example.shown[n]
    card = on_page(example, page, i)
    zero, other = panes(card)[1 + which], panes(card)[2 - which]
    assert_is_grey(pixels(zero), enlarged(example.images[n]))
    assert colourfulness(pixels(other)).max() > 100
    name = CLASSES[(example.predictions, example.labels)[which][i]]
    assert zero.get_attribute("aria-label") == f"Grad-CAM for {name}: no position speaks for {name}"
    (said,) = card.get_by_text("no position", exact=True).all()
    assert said.is_visible()


def test_the_slider_blends_the_heat_maps(example, page):
    n = place_of(example, (False, False))
    heat = panes(on_page(example, page, example.shown[n]))[1]
    at_first = pixels(heat)
    slider = page.get_by_role("slider", name="Heat map")
    move_to(page, slider, "0")
    assert_is_grey(pixels(heat), enlarged(example.images[n]))
    move_to(page, slider, "100")
    assert colourfulness(pixels(heat)).max() > colourfulness(at_first).max() > 50


def move_to(page, slider, value):
    """Move a slider and wait until the page has drawn what follows of it."""
    slider.fill(value)
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def test_pictures_are_described(example, page):
    n = place_of(example, (False, False))
    i = example.shown[n]
    label, predicted = CLASSES[example.labels[i]], CLASSES[example.predictions[i]]
    image, *heats = panes(on_page(example, page, i))
    assert image.get_attribute("role") == "img"
    said = image.get_attribute("aria-label")
    assert said.startswith(f"Image {i}: {label} taken for {predicted} with ")
    sure = float(said.split(" with ")[1].rstrip("%"))
    assert sure == pytest.approx(100 * example.confidence(i), abs=0.06)
    rows, columns = (
        ("upper", "middle", "middle", "lower"),
        ("left", "left", "centre", "centre", "right", "right"),
    )
    for heat, values, name in zip(heats, example.maps[n], (predicted, label), strict=True):
        row, column = np.unravel_index(values.argmax(), values.shape)
        place = f"in the {rows[row]} {columns[column]}".replace("in the middle centre", "in the centre")
        assert heat.get_attribute("aria-label") == f"Grad-CAM for {name}: strongest {place}"


BARS = """() => [...document.querySelectorAll("#cards > li")].map((card) =>
  [...card.querySelectorAll("[aria-label=Probabilities] li")].map((bar) => [
    bar.querySelector("bdi").innerText,
    parseFloat(bar.querySelector("b").innerText),
    parseFloat(getComputedStyle(bar.querySelector(".bar")).backgroundSize),
  ]))"""


def test_bars_are_the_highest_probabilities(example, page):
    for bars, i in zip(page.evaluate(BARS), cards(page), strict=True):
        percent = 100 * example.probabilities[i].astype(float)
        ranked = np.argsort(-percent, kind="stable").tolist()[:3]
        if example.labels[i] not in ranked:
            ranked.append(int(example.labels[i]))
        assert [name for name, _, _ in bars] == [CLASSES[k] for k in ranked]
        assert [said for _, said, _ in bars] == pytest.approx(percent[ranked].tolist(), abs=0.06)
        assert [filled for _, _, filled in bars] == pytest.approx(percent[ranked].tolist(), abs=0.02)


def test_a_likely_label_error_names_the_better_label(example, page):
    view(page, "errors").click()
    for card, i in zip(page.locator("#cards > li").all(), cards(page), strict=True):
        assert card.locator(".mark").locator("bdi").inner_text() == CLASSES[example.suggested[i]]
    view(page, "best").click()
    assert page.locator(".mark").count() == 0


def test_the_label_errors_can_be_saved(example, page):
    with page.expect_download() as download:
        page.get_by_role("link", name="label_errors.csv").click()
    assert download.value.suggested_filename == "label_errors.csv"
    assert download.value.path().read_bytes() == example.folder.label_errors.read_bytes()


# One image large


def test_the_large_view_is_read_with_the_keyboard(example, page):
    expected = by_loss(example, example.mistakes)
    dialog = page.get_by_role("dialog")

    def image_shown():
        return index_in(dialog.locator(".about").inner_text())

    def focused_card():
        return page.evaluate("() => document.activeElement.closest('li')?.querySelector('.about').innerText")

    opener = page.locator("#cards > li").nth(10).get_by_role("button")
    opener.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    assert image_shown() == expected[10]
    assert np.array_equal(
        pixels(panes(dialog)[0]), enlarged(example.images[example.shown.index(expected[10])])
    )
    page.keyboard.press("ArrowLeft")
    assert image_shown() == expected[9]
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert image_shown() == expected[13]  # on the second page of cards
    assert dialog.get_by_text("14 of 36").is_visible()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert cards(page) == expected[A_PAGE : 2 * A_PAGE]
    assert focused_card().startswith(f"#{expected[13]} ")


def test_the_large_view_ends_at_the_first_and_the_last(page):
    dialog = page.get_by_role("dialog")
    page.locator("#cards > li").first.get_by_role("button").click()
    back, on = (dialog.get_by_role("button", name=name) for name in ("Previous image", "Next image"))
    assert back.is_disabled()
    page.keyboard.press("ArrowLeft")
    assert dialog.get_by_text("1 of 36", exact=True).is_visible()
    page.keyboard.press("End")
    assert dialog.get_by_text("36 of 36", exact=True).is_visible()
    assert on.is_disabled()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")  # the arrows still work where a button was disabled
    assert dialog.get_by_text("35 of 36", exact=True).is_visible()
    on.click()  # which disables it
    page.keyboard.press("Home")
    assert dialog.get_by_text("1 of 36", exact=True).is_visible()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


def test_a_click_on_a_card_opens_it_and_one_outside_closes_it(example, page):
    dialog = page.get_by_role("dialog")
    panes(page.locator("#cards > li").nth(3))[1].click(force=True)  # the button lies over the whole card
    assert dialog.is_visible()
    assert dialog.get_by_text("4 of 36", exact=True).is_visible()
    page.mouse.click(5, 5)
    assert not dialog.is_visible()
    assert (
        page.evaluate("() => [...document.querySelectorAll('.card-open')].indexOf(document.activeElement)")
        == 3
    )


def test_what_was_filtered_is_what_the_large_view_turns(example, page):
    cell(page, *PAIR).click()
    expected = by_loss(example, example.pair(*PAIR))
    page.locator("#cards > li").first.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    found = []
    for _ in expected:
        found.append(index_in(dialog.locator(".about").inner_text()))
        page.keyboard.press("ArrowRight")
    assert found == expected


# Many mistakes


def test_a_page_of_1500_mistakes_is_quick(tmp_path, read):
    example = write_example(tmp_path / "many", right=400, wrong=1600)
    page = read(write_report(example.folder))
    assert counts(page) == [1500, 1500, 1500, 1600]
    assert cards(page) == by_loss(example, example.mistakes)[:24]
    # Far more than it takes, for busy machines; it is to notice what takes seconds.
    assert page.evaluate("() => performance.getEntriesByType('navigation')[0].loadEventEnd") < 5000
    started_to_drawn = """() => {
      const search = document.getElementById("search"), start = performance.now();
      search.value = "owl cat";
      search.dispatchEvent(new Event("input"));
      const finish = (done) => setTimeout(() => done(performance.now() - start));
      return new Promise((done) => requestAnimationFrame(() => finish(done)));
    }"""
    assert page.evaluate(started_to_drawn) < 2000
    assert len(cards(page)) == 24
