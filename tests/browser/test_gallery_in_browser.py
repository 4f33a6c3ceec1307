"""The gallery of mistakes as a reader uses it: what is shown is compared with the run folder."""

import base64
import io
import re

import numpy as np
import pytest
from example_runs import CLASSES, HEIGHT, MAP_HEIGHT, MAP_WIDTH, WIDTH, write_example
from PIL import Image

from velodrome.reporting.page import write_report

A_PAGE = 24
ZOOM = 16  # of an image, on its canvas
PAIR = (4, 0)  # owls taken for cats


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("runs") / "first-light")


@pytest.fixture
def page(example, read):
    return read(write_report(example.folder))


def cards(page):
    """The images of the cards on this page, as the cards name them."""
    abouts = page.locator("#cards > li .about").all_inner_texts()
    return [int(re.match(r"#(\d+) ", about)[1]) for about in abouts]


def all_cards(page):
    """The images of the cards on all pages."""
    found = cards(page)
    following = page.get_by_role("button", name="Next", exact=True)
    while following.is_visible() and following.is_enabled():
        following.click()
        found += cards(page)
    return found


def count_line(page):
    return page.get_by_role("status").inner_text()


def chips(page):
    return page.locator("#chips").get_by_role("button")


def cell(page, label, prediction, classes=CLASSES):
    said = "recognised" if label == prediction else f"taken for {classes[prediction]}"
    matrix = page.get_by_role("region", name="Confusion matrix")
    return matrix.get_by_role("button", name=re.compile(f"^{classes[label]} {said}: "))


def sorted_by_loss(example, images):
    return sorted(images, key=lambda i: (-example.losses[i], i))


# The confusion matrix


def assert_shows_the_pair(example, page):
    expected = sorted_by_loss(example, example.pair(*PAIR))
    assert cards(page) == expected
    assert count_line(page) == f"{len(expected)} of {len(example.mistakes)} mistakes"
    assert set(page.locator("#cards h3").all_inner_texts()) == {"owl taken for cat"}
    (chip,) = chips(page).all()
    assert chip.get_attribute("aria-label") == "owl taken for cat: clear this filter"
    # The reader is where the images are, with the eyes and with the keyboard.
    assert chip.evaluate("chip => chip === document.activeElement")
    top = page.locator("#gallery").bounding_box()["y"]
    assert 0 <= top < 200
    assert chip.bounding_box()["y"] < page.viewport_size["height"]


def test_a_click_on_a_cell_shows_that_pair(example, page):
    assert cards(page) == sorted_by_loss(example, example.mistakes)[:A_PAGE]
    cell(page, *PAIR).click()
    assert_shows_the_pair(example, page)
    chips(page).click()
    assert chips(page).count() == 0
    assert all_cards(page) == sorted_by_loss(example, example.mistakes)


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_key_on_a_cell_shows_that_pair(example, page, key):
    cell(page, *PAIR).focus()
    page.keyboard.press(key)
    assert_shows_the_pair(example, page)


def test_every_cell_counts_and_shows_its_images(example, page):
    numbers = page.locator("#matrix tbody td").all_inner_texts()
    counts = np.zeros((len(CLASSES), len(CLASSES)), int)
    np.add.at(counts, (example.labels, example.predictions), 1)
    assert [int(number) for number in numbers] == counts.flatten().tolist()
    assert (counts == 0).sum() >= 4
    for label, prediction in np.argwhere(counts).tolist():
        cell(page, label, prediction).evaluate("button => button.click()")
        pair = (label, prediction)
        expected = [i for i in example.shown if (example.labels[i], example.predictions[i]) == pair]
        assert sorted(cards(page)) == sorted(expected)
    for label, prediction in np.argwhere(counts == 0).tolist():
        assert cell(page, label, prediction).count() == 0


def test_headings_of_the_matrix_show_the_mistakes_of_a_class(example, page):
    page.get_by_role("button", name="Mistakes of true class sea lion").click()
    expected = [i for i in example.mistakes if example.labels[i] == 2]
    assert all_cards(page) == sorted_by_loss(example, expected)
    assert chips(page).all_inner_texts() == ["true class sea lion×"]
    page.get_by_role("button", name="Mistakes taken for frog").click()
    expected = [i for i in example.mistakes if example.predictions[i] == 3]
    assert all_cards(page) == sorted_by_loss(example, expected)
    assert chips(page).all_inner_texts() == ["taken for frog×"]


def test_a_frequent_confusion_shows_its_images(example, page):
    page.get_by_role("list").get_by_role("button", name=re.compile("^owl taken for cat")).click()
    assert_shows_the_pair(example, page)


def test_a_cell_clears_what_was_searched_before(example, page):
    page.get_by_role("searchbox", name="Search").fill("no such image")
    page.get_by_role("button", name=re.compile("^Right answers")).click()
    cell(page, *PAIR).click()
    assert_shows_the_pair(example, page)


def test_arrow_keys_move_in_the_matrix(page):
    def focused():
        return page.evaluate("() => document.activeElement.getAttribute('aria-label')")

    cell(page, 4, 4).focus()
    said = []
    for key in ("ArrowLeft", "ArrowUp", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
        said.append(re.sub(r": \d+$", "", focused()))
    assert said == [
        "owl taken for frog",
        "frog recognised",
        "frog taken for owl",
        "sea lion taken for owl",
        "dog taken for owl",
        "cat taken for owl",
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


@pytest.mark.parametrize("query", ["owl", "SEA  lion", "roll-b", "img_a", "cat roll-a", "{index}", "#{index}"])
def test_search_finds_classes_paths_and_indices(example, page, query):
    query = query.format(index=example.mistakes[30])
    page.get_by_role("searchbox", name="Search").press_sequentially(query)
    expected = [i for i in sorted_by_loss(example, example.mistakes) if is_found(example, i, query)]
    assert 0 < len(expected) < len(example.mistakes)
    assert count_line(page) == f"{len(expected)} of {len(example.mistakes)} mistakes"
    assert all_cards(page) == expected


def test_where_nothing_is_found_the_page_says_so(example, page):
    nothing = page.get_by_text("No image in this page is like that.")
    assert not nothing.is_visible()
    page.get_by_role("searchbox", name="Search").fill("owl zebra")
    assert nothing.is_visible()
    assert cards(page) == []
    assert count_line(page) == f"0 of {len(example.mistakes)} mistakes"
    assert not page.get_by_role("navigation", name="Pages of images").is_visible()
    page.get_by_role("button", name="Reset").click()
    assert not nothing.is_visible()
    assert all_cards(page) == sorted_by_loss(example, example.mistakes)


ORDERS = {
    "loss, highest first": lambda example, i: (-example.losses[i], i),
    "confidence, highest first": lambda example, i: (-example.confidence(i), -example.losses[i], i),
    "confidence, lowest first": lambda example, i: (example.confidence(i), -example.losses[i], i),
    "true class": lambda example, i: (example.labels[i], -example.losses[i], i),
    "index": lambda example, i: i,
}


def test_every_order_is_kept_over_all_pages(example, page):
    order = page.get_by_label("Sort by")
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
        for i in sorted_by_loss(example, [i for i in example.mistakes if example.labels[i] == label])[:3]
    ]
    errors = [i for i in example.shown if i in example.suggested]
    best = sorted(example.right, key=lambda i: (example.labels[i], example.losses[i], i))
    return {
        "Mistakes": (sorted_by_loss(example, example.mistakes), "60 of 60 mistakes"),
        "Worst of each class": (worst, "15 of 15 worst of each class"),
        # One of the likely label errors is a right answer, and not among the best.
        "Likely label errors": (
            sorted_by_loss(example, errors),
            "9 of 9 likely label errors; 9 of 10 are in this page",
        ),
        "Right answers": (best, "15 of 15 right answers"),
    }


def test_each_view_shows_its_images(example, page):
    views = views_of(example)
    group = page.get_by_role("group", name="Which images")
    for name, (expected, line) in views.items():
        button = group.get_by_role("button", name=re.compile(f"^{name}"))
        button.click()
        assert button.inner_text() == f"{name} {len(expected)}"
        assert count_line(page) == line
        assert all_cards(page) == expected, name
        pressed = group.locator("[aria-pressed=true]").all_inner_texts()
        assert pressed == [f"{name} {len(expected)}"]


def test_filters_and_search_work_together(example, page):
    page.get_by_label("True class").select_option("owl")
    page.get_by_label("Taken for").select_option("cat")
    page.get_by_role("searchbox", name="Search").fill("roll-c")
    page.get_by_label("Sort by").select_option("index")
    pair = example.pair(*PAIR)
    expected = sorted(i for i in pair if "roll-c" in example.paths[i])
    assert 0 < len(expected) < len(pair)
    assert cards(page) == expected
    chips(page).click()
    assert cards(page) == sorted(i for i in example.mistakes if "roll-c" in example.paths[i])
    page.get_by_role("button", name="Reset").click()
    assert page.get_by_role("searchbox", name="Search").input_value() == ""
    assert page.get_by_label("Sort by").input_value() == "loss"
    assert cards(page) == sorted_by_loss(example, example.mistakes)[:A_PAGE]


def test_the_count_is_told_to_those_who_do_not_see_it(page):
    status = page.get_by_role("status")
    assert status.get_attribute("aria-live") == "polite"
    assert status.inner_text() == "60 of 60 mistakes"
    page.get_by_label("True class").select_option("owl")
    assert page.get_by_role("status").element_handle() == status.element_handle()
    assert re.fullmatch(r"\d+ of 60 mistakes", status.inner_text())


def test_pages_are_turned(example, page):
    expected = sorted_by_loss(example, example.mistakes)
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
    for card, i in zip(page.locator("#cards > li").all()[:10], cards(page), strict=False):
        shown = pixels(panes(card)[0])
        assert np.array_equal(shown, enlarged(example.images[example.shown.index(i)]))


def test_heat_maps_are_of_the_predicted_and_of_the_true_class(example, page):
    page.get_by_label("Heat map").fill("100")
    most = page.locator("#legend").evaluate(
        "legend => [...legend.getContext('2d').getImageData(255, 0, 1, 1).data.slice(0, 3)]"
    )
    for n in [place_of(example, (False, False)), 5, 30]:
        card = on_page(example, page, example.shown[n])
        image, *heats = panes(card)
        assert np.array_equal(pixels(image), enlarged(example.images[n]))
        for heat, values in zip(heats, example.maps[n], strict=True):
            assert_is_coloured_as(pixels(heat), example.images[n], values, most)
        captions = card.locator("figcaption").all_inner_texts()
        names = [CLASSES[numbers[example.shown[n]]] for numbers in (example.predictions, example.labels)]
        assert captions == ["image", f"predicted {names[0]}", f"true {names[1]}"]


def assert_is_coloured_as(shown, image, values, most):
    """Where the map is strongest, the strongest colour; far from there the image."""
    tall, wide = HEIGHT * ZOOM // MAP_HEIGHT, WIDTH * ZOOM // MAP_WIDTH
    centres = shown[tall // 2 :: tall, wide // 2 :: wide].astype(int)
    plain = enlarged(image)[tall // 2 :: tall, wide // 2 :: wide].astype(int)
    peak = np.unravel_index(values.argmax(), values.shape)
    rows, columns = np.indices(values.shape)
    far = np.maximum(abs(rows - peak[0]), abs(columns - peak[1])) >= 3
    assert abs(centres[peak] - most).max() <= 20
    assert abs(centres - plain)[far].max() <= 20
    near = (abs(rows - peak[0]) + abs(columns - peak[1])) <= 1
    assert abs(centres - plain)[near].max(1).min() > 20


@pytest.mark.parametrize("which", [0, 1])
def test_a_map_of_zeros_says_that_nothing_speaks_for_the_class(example, page, which):
    n = place_of(example, (which == 0, which == 1))
    i = example.shown[n]
    card = on_page(example, page, i)
    zero = panes(card)[1 + which]
    assert np.array_equal(pixels(zero), enlarged(example.images[n]))
    other = pixels(panes(card)[2 - which])
    assert not np.array_equal(other, enlarged(example.images[n]))
    name = CLASSES[(example.predictions, example.labels)[which][i]]
    assert zero.get_attribute("aria-label") == f"Grad-CAM for {name}: no position speaks for {name}"
    assert card.get_by_text("no position", exact=True).count() == 1
    assert card.get_by_text("no position", exact=True).is_visible()


def test_the_slider_blends_the_heat_maps(example, page):
    n = place_of(example, (False, False))
    heat = panes(on_page(example, page, example.shown[n]))[1]
    half = pixels(heat)
    slider = page.get_by_label("Heat map")
    for strength, is_image in (("0", True), ("100", False)):
        slider.fill(strength)
        page.evaluate("() => new Promise(requestAnimationFrame)")
        assert np.array_equal(pixels(heat), enlarged(example.images[n])) is is_image
        assert not np.array_equal(pixels(heat), half)


def test_pictures_are_described(example, page):
    n = place_of(example, (False, False))
    i = example.shown[n]
    label, predicted = CLASSES[example.labels[i]], CLASSES[example.predictions[i]]
    image, *heats = panes(on_page(example, page, i))
    assert image.get_attribute("role") == "img"
    said = image.get_attribute("aria-label")
    assert said.startswith(f"Image {i}: {label} taken for {predicted} with ")
    sure = float(said.split(" with ")[1].rstrip("%"))
    assert sure == pytest.approx(100 * example.confidence(i), abs=0.051)
    rows, columns = ("upper", "middle", "middle", "lower"), ("left", "left", "centre", "centre", "right", "right")
    for heat, values, name in zip(heats, example.maps[n], (predicted, label), strict=True):
        row, column = np.unravel_index(values.argmax(), values.shape)
        place = f"in the {rows[row]} {columns[column]}".replace("in the middle centre", "in the centre")
        assert heat.get_attribute("aria-label") == f"Grad-CAM for {name}: strongest {place}"


def test_bars_are_the_highest_probabilities(example, page):
    shown = cards(page)
    for card, i in zip(page.locator("#cards > li").all(), shown, strict=True):
        probabilities = example.probabilities[i].astype(float)
        ranked = np.argsort(-probabilities, kind="stable").tolist()[:3]
        if example.labels[i] not in ranked:
            ranked.append(int(example.labels[i]))
        bars = card.get_by_role("list", name="Probabilities").get_by_role("listitem").all()
        assert [bar.locator("bdi").inner_text() for bar in bars] == [CLASSES[k] for k in ranked]
        for bar, k in zip(bars, ranked, strict=True):
            share = probabilities[k]
            assert float(bar.locator("b").inner_text().rstrip("%")) == pytest.approx(100 * share, abs=0.051)
            filled = bar.locator(".bar").evaluate("bar => parseFloat(getComputedStyle(bar).backgroundSize)")
            assert filled == pytest.approx(100 * share, abs=0.02)


def test_a_likely_label_error_names_the_better_label(example, page):
    page.get_by_role("button", name=re.compile("^Likely label errors")).click()
    for card, i in zip(page.locator("#cards > li").all(), cards(page), strict=True):
        better = CLASSES[example.suggested[i]]
        assert card.get_by_text("Likely label error: rather").inner_text() == f"Likely label error: rather {better}"
    page.get_by_role("button", name=re.compile("^Right answers")).click()
    assert page.get_by_text("Likely label error: rather").count() == 0


def test_the_label_errors_can_be_saved(example, page):
    with page.expect_download() as download:
        page.get_by_role("link", name="label_errors.csv").click()
    assert download.value.suggested_filename == "label_errors.csv"
    assert download.value.path().read_bytes() == example.folder.label_errors.read_bytes()


# One image large


def test_the_large_view_is_read_with_the_keyboard(example, page):
    expected = sorted_by_loss(example, example.mistakes)
    dialog = page.get_by_role("dialog")

    def image_shown():
        return int(re.search(r"#(\d+) ", dialog.locator(".about").inner_text())[1])

    def focused_card():
        return page.evaluate("() => document.activeElement.closest('li')?.querySelector('.about').innerText")

    opener = page.locator("#cards > li").nth(22).get_by_role("button")
    opener.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    assert image_shown() == expected[22]
    assert np.array_equal(
        pixels(panes(dialog)[0]), enlarged(example.images[example.shown.index(expected[22])])
    )
    page.keyboard.press("ArrowLeft")
    assert image_shown() == expected[21]
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert image_shown() == expected[25]  # on the second page of cards
    assert dialog.get_by_text("26 of 60").is_visible()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert cards(page) == expected[A_PAGE : 2 * A_PAGE]
    assert focused_card().startswith(f"#{expected[25]} ")


def test_the_large_view_ends_at_the_first_and_the_last(page):
    dialog = page.get_by_role("dialog")
    page.locator("#cards > li").first.get_by_role("button").click()
    back, on = (dialog.get_by_role("button", name=name) for name in ("Previous image", "Next image"))
    assert back.is_disabled()
    page.keyboard.press("ArrowLeft")
    assert dialog.get_by_text("1 of 60", exact=True).is_visible()
    page.keyboard.press("End")
    assert dialog.get_by_text("60 of 60", exact=True).is_visible()
    assert on.is_disabled()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")  # the arrows still work where a button was disabled
    assert dialog.get_by_text("59 of 60", exact=True).is_visible()
    on.click()  # which disables it
    page.keyboard.press("Home")
    assert dialog.get_by_text("1 of 60", exact=True).is_visible()
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


def test_a_click_on_a_card_opens_it_and_one_outside_closes_it(example, page):
    dialog = page.get_by_role("dialog")
    panes(page.locator("#cards > li").nth(3))[1].click(force=True)  # the button lies over the whole card
    assert dialog.is_visible()
    assert dialog.get_by_text("4 of 60", exact=True).is_visible()
    page.mouse.click(5, 5)
    assert not dialog.is_visible()
    assert page.evaluate("() => [...document.querySelectorAll('.card-open')].indexOf(document.activeElement)") == 3


def test_what_was_filtered_is_what_the_large_view_turns(example, page):
    cell(page, *PAIR).click()
    expected = sorted_by_loss(example, example.pair(*PAIR))
    page.locator("#cards > li").first.get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    found = []
    for _ in expected:
        found.append(int(re.search(r"#(\d+) ", dialog.locator(".about").inner_text())[1]))
        page.keyboard.press("ArrowRight")
    assert found == expected


# Many mistakes


def test_a_page_of_1500_mistakes_is_quick(tmp_path, read):
    example = write_example(tmp_path / "many", right=400, wrong=1600)
    page = read(write_report(example.folder))
    assert count_line(page) == "1,500 of 1,500 mistakes; 1,500 of 1,600 are in this page"
    assert cards(page) == sorted_by_loss(example, example.mistakes)[:A_PAGE]
    # Far more than it takes, for busy machines; it is to notice what takes seconds.
    assert page.evaluate("() => performance.getEntriesByType('navigation')[0].loadEventEnd") < 3000
    started_to_drawn = """() => {
      const search = document.getElementById("search"), start = performance.now();
      search.value = "owl cat";
      search.dispatchEvent(new Event("input"));
      return new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))));
    }"""
    assert page.evaluate(started_to_drawn) < 1000
    assert len(cards(page)) == A_PAGE
