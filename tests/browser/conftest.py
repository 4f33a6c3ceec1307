"""The report in a real browser: Debian's Chromium without a window, driven by Playwright."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Where pages.py and run_folders.py are, which make up run folders.
sys.path += [str(Path(__file__).parents[1] / name) for name in ("reporting", "comparison")]

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
        self._pages: dict[str, Page] = {}
        self.complaints: list[str] = []

    def __call__(self, path: Path, width: int = 1280, height: int = 900, **settings: Any) -> Page:
        """The page in a file, opened from disk; nothing on it moves smoothly unless the settings say so.

        A window with these settings may be used again by the next test, which is quicker than a new one.
        """
        key = repr(sorted(settings.items()))
        if key not in self._pages:
            self._pages[key] = self.new_page(**settings)
        page = self._pages[key]
        page.mouse.move(0, 0)
        page.set_viewport_size({"width": width, "height": height})
        page.goto(path.as_uri())
        return page

    def new_page(self, **settings: Any) -> Page:
        """An empty page whose complaints are noted, in a window of its own."""
        context = self._browser.new_context(**{"reduced_motion": "reduce", **settings})
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(REPORT_VIOLATIONS)
        page = context.new_page()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", self._note_request)
        return page

    def wait_for_complaints(self) -> None:
        """Until what the pages have said so far has arrived here."""
        for context in self._browser.contexts:
            for page in context.pages:
                page.evaluate("() => 0")

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning", "assert"}:
            self.complaints.append(f"{kind}: {text}")

    def _note_request(self, request: Any) -> None:
        is_page = request.is_navigation_request() and request.url.startswith("file:")
        if not is_page and not request.url.startswith("data:"):
            self.complaints.append(f"request: {request.url}")


@pytest.fixture(scope="module")
def _reader(browser: Browser) -> Reader:
    return Reader(browser)


@pytest.fixture
def reader(_reader: Reader) -> Reader:
    """Opens pages."""
    _reader.complaints.clear()
    return _reader


@pytest.fixture
def read(reader: Reader) -> Iterator[Reader]:
    """Opens pages; until the end of the test they must not complain."""
    yield reader
    reader.wait_for_complaints()
    assert reader.complaints == []
