"""The report in a real browser: Debian's Chromium without a window, driven by Playwright."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Where pages.py is, which makes up run folders.
sys.path.append(str(Path(__file__).parents[1] / "reporting"))

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
# Long enough for a busy machine; a page that works needs a hundredth of it.
PATIENCE_MS = 15_000
REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a module.

    Not for the whole session: Playwright's event loop runs in this thread as long as the browser does, and
    other tests want to run one of their own.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing (pip install '.[test]')")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"there is no browser here (none of {', '.join(BROWSERS)})")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


class Reader:
    """Opens pages and notes what they complain about and what they ask the network for.

    Args:
        browser: to read with.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self.contexts: list[Any] = []
        self.complaints: list[str] = []

    def __call__(self, path: Path, width: int = 1280, height: int = 900, **settings: Any) -> Page:
        """The page in a file, opened from disk; nothing on it moves smoothly unless the settings say so."""
        page = self.new_page(viewport={"width": width, "height": height}, **settings)
        page.goto(path.as_uri())
        return page

    def new_page(self, **settings: Any) -> Page:
        """An empty page whose complaints are noted."""
        context = self._browser.new_context(**{"reduced_motion": "reduce", **settings})
        self.contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(REPORT_VIOLATIONS)
        page = context.new_page()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self._note_request(page, request))
        return page

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning", "assert"}:
            self.complaints.append(f"{kind}: {text}")

    def _note_request(self, page: Page, request: Any) -> None:
        is_page = request.is_navigation_request() and request.url.startswith("file:")
        if not is_page and not request.url.startswith("data:"):
            self.complaints.append(f"request: {request.url}")


@pytest.fixture
def reader(browser: Browser) -> Iterator[Reader]:
    """Opens pages; closes them when the test is over."""
    reader = Reader(browser)
    yield reader
    for context in reader.contexts:
        context.close()


@pytest.fixture
def read(reader: Reader) -> Iterator[Callable[..., Page]]:
    """A function that opens a page; until the end of the test the page must not complain."""
    yield reader
    for context in reader.contexts:
        for page in context.pages:
            page.evaluate("() => 0")  # what is on its way arrives
    assert reader.complaints == []
