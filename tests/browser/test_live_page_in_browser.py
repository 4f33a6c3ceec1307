"""While training goes on the page reloads itself, but not under the reader's hands; the last one never."""

import pytest
from example_runs import write_example
from pages import history_rows, write_history, write_run

from velodrome.reporting.page import write_report

RELOAD_S = 10  # how often a live page looks for a newer one
GOING_ON = "Training is going on; this page reloads itself."


@pytest.fixture
def page(read):
    """An empty page on whose clock the test can turn."""
    page = read.new_page(viewport={"width": 700, "height": 900})
    page.clock.install()
    yield page
    page.context.close()


def visit(page, path):
    page.goto(path.as_uri())
    mark(page)


def mark(page):
    """Leave a mark that a reload wipes away."""
    page.evaluate("() => { window.isTheSame = true; }")


def is_the_same(page):
    return page.evaluate("() => window.isTheSame === true")


def wait_for_another(page):
    page.wait_for_function("() => !window.isTheSame && document.readyState === 'complete'")


@pytest.fixture
def going_on(tmp_path):
    """A run of which one epoch is done."""
    folder = write_run(tmp_path / "first-light")
    folder.result.rename(tmp_path / "result.json")
    folder.predictions.unlink()
    write_history(folder, history_rows(1))
    return folder


def test_a_live_page_becomes_the_newer_one_until_the_last(going_on, tmp_path, page):
    visit(page, write_report(going_on, live=True))
    headline = page.locator(".headline span")
    assert page.get_by_text(GOING_ON).is_visible()
    assert headline.inner_text() == "Test accuracy after epoch 1"

    for epoch in (2, 3):
        write_history(going_on, history_rows(epoch))
        write_report(going_on, live=True)
        page.clock.fast_forward(1000 * (RELOAD_S - 2))
        assert is_the_same(page)
        page.clock.fast_forward(3000)
        wait_for_another(page)
        assert headline.inner_text() == f"Test accuracy after epoch {epoch}"
        mark(page)

    (tmp_path / "result.json").rename(going_on.result)
    write_report(going_on)
    page.clock.fast_forward(1000 * (RELOAD_S + 1))
    wait_for_another(page)
    mark(page)
    assert headline.inner_text() == "Test accuracy"
    assert not page.get_by_text(GOING_ON).is_visible()
    page.clock.fast_forward("01:00:00")
    page.clock.run_for(1000)
    assert is_the_same(page)


def test_the_reader_stays_at_the_same_place(going_on, page):
    visit(page, write_report(going_on, live=True))
    page.evaluate("() => scrollTo(0, 700)")
    page.clock.fast_forward(1000 * (RELOAD_S + 1))
    wait_for_another(page)
    page.wait_for_function("() => scrollY === 700")


@pytest.fixture(scope="module")
def with_answers(tmp_path_factory):
    """The live page of a run that has answers from before, and so a gallery."""
    folder = write_example(tmp_path_factory.mktemp("runs") / "first-light", wrong=6).folder
    folder.result.unlink()
    return write_report(folder, live=True)


def dialog(page):
    page.get_by_role("list", name="Images").get_by_role("button").first.click()
    return lambda: page.keyboard.press("Escape")


def search(page):
    page.get_by_role("searchbox", name="Search").press_sequentially("ow")
    return lambda: page.get_by_role("searchbox", name="Search").blur()


def curve(page):
    figure = page.locator("figure.chart").first
    figure.focus()
    return figure.blur


def other_tab(page):
    page.evaluate("() => { Object.defineProperty(document, 'hidden', { value: true, configurable: true }); }")
    return lambda: page.evaluate("() => { delete document.hidden; }")


@pytest.mark.parametrize("busy", [dialog, search, curve, other_tab])
def test_a_live_page_waits_until_nobody_minds(busy, with_answers, page):
    visit(page, with_answers)
    done = busy(page)
    page.clock.run_for(1000 * 4 * RELOAD_S)
    assert is_the_same(page)
    done()
    assert is_the_same(page)
    page.clock.fast_forward(2000)
    wait_for_another(page)


def test_without_scripts_the_browser_reloads(going_on, read):
    path = write_report(going_on, live=True)
    html = path.read_text()
    every = f'http-equiv="refresh" content="{RELOAD_S}"'
    assert html.count(every) == 1
    path.write_text(html.replace(every, 'http-equiv="refresh" content="1"'))
    page = read(path, java_script_enabled=False)
    assert page.locator(".headline span").inner_text() == "Test accuracy after epoch 1"
    write_history(going_on, history_rows(2))
    write_report(going_on)
    page.get_by_text("Test accuracy after epoch 2").wait_for()
