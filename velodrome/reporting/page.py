"""The report: one HTML page about a run, made from its folder alone. Never imports torch."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from velodrome.reporting import calibration, curves, text
from velodrome.reporting.content import gather
from velodrome.run.folder import RunFolder, write_atomically

# The note, in page.html, that only a live page has.
LIVE_MARK = 'id="live"'


@dataclass(frozen=True)
class Script:
    """A script of the page, and the digest by which the page allows it to run."""

    source: Markup
    digest: str


def write_report(folder: RunFolder, output: Path | None = None, *, live: bool = False) -> Path:
    """Write the report of a run and return where it is.

    Args:
        folder: of the run, finished or not.
        output: file to write; report.html in the folder by default.
        live: whether training is going on, so that the page reloads itself.

    Raises:
        RunError: a file that every run has is damaged, or the report cannot be written.
    """
    path = output or folder.report
    write_atomically(path, render(folder, live=live))
    return path


def render(folder: RunFolder, *, live: bool = False) -> str:
    """The report of a run as HTML.

    Args:
        folder: of the run, finished or not.
        live: whether training is going on, so that the page reloads itself.

    Raises:
        RunError: a file that every run has is damaged.
    """
    run, made = gather(folder), templates()
    needed = ["page.js", *(["heat.js", "gallery.js"] if run.gallery else []), *(["live.js"] if live else [])]
    scripts = [load_script(made, name) for name in needed]
    html = made.get_template("page.html").render(
        run=run, live=live, scripts=scripts, policy=policy_for(scripts), box=curves, reliability=calibration
    )
    return text.printable(html)


@functools.cache
def templates() -> Environment:
    """The templates; compiled once, since a live page is made after every epoch."""
    made = Environment(
        loader=PackageLoader("velodrome.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=text.percent, count=text.count)
    return made


def load_script(made: Environment, name: str) -> Script:
    """A script of a page, by the name of its file."""
    assert made.loader is not None
    source = made.loader.get_source(made, name)[0]
    digest = hashlib.sha256(source.encode()).digest()
    return Script(Markup(source), base64.b64encode(digest).decode())


def policy_for(scripts: Sequence[Script]) -> Markup:
    """What the page may do: run its own scripts, load nothing. A second wall, should a name go unescaped."""
    allowed = " ".join(f"'sha256-{script.digest}'" for script in scripts)
    return Markup(
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src {allowed}"
    )
