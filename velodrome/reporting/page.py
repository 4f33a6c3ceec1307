"""The report: one HTML page about a run, made from its folder alone. Never imports torch."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from velodrome.reporting import curves, text
from velodrome.reporting.content import gather
from velodrome.run.folder import RunFolder, write_atomically


def write_report(folder: RunFolder, output: Path | None = None) -> Path:
    """Write the report of a run and return where it is.

    Args:
        folder: of the run, finished or not.
        output: file to write; report.html in the folder by default.

    Raises:
        RunError: a file of the run is damaged, or the report cannot be written.
    """
    path = output or folder.report
    write_atomically(path, render(folder))
    return path


def render(folder: RunFolder) -> str:
    """The report of a run as HTML.

    Raises:
        RunError: a file of the run is damaged.
    """
    loader = PackageLoader("velodrome.reporting", "templates")
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters.update(percent=text.percent, count=text.count)
    script = loader.get_source(templates, "page.js")[0]
    # The page may run this one script and load nothing: a second wall, should a name ever go unescaped.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = templates.get_template("page.html").render(
        run=gather(folder), script=Markup(script), script_digest=digest, box=curves
    )
    return text.printable(html)
