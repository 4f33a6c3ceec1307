"""How to name a run in a text of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from velodrome.reporting import text
from velodrome.reporting.tables import mapping

_SPECIAL_IN_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "{}%&#_$"},
}
COMMIT_LETTERS = 10


@dataclass(frozen=True)
class Citation:
    """The run as a sentence and as a BibTeX entry."""

    sentence: str
    bibtex: str


def cite(name: str, known: Mapping[str, Any], environment: Mapping[str, Any]) -> Citation:
    """How to cite a run; what is not known is left out.

    Args:
        name: of the run.
        known: its figures, as in result.json.
        environment: versions and time, as in environment.json.
    """
    version = text.words(environment.get("velodrome"))
    software = "velodrome" if version == text.NONE else f"velodrome {version}"
    accuracy = text.percent(known.get("test_accuracy"))
    parts = [
        _part("recipe {}", known.get("recipe")),
        _part("data {}", known.get("data")),
        _part("1 epoch" if known.get("epochs") == 1 else "{} epochs", known.get("epochs")),
        _part("seed {}", known.get("seed")),
        f"{accuracy} test accuracy" if accuracy != text.NONE else "",
        _commit(mapping(environment.get("git"))),
    ]
    said = ", ".join(part for part in [software, *parts] if part)
    date = text.words(environment.get("started"))[:10]
    dated = re.fullmatch(r"(\d{4})-\d\d-\d\d", date)
    when = f" ({date})" if dated else ""
    key = re.sub("[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "run"
    year = f"  year = {{{dated[1]}}},\n" if dated else ""
    bibtex = (
        f"@misc{{velodrome-{key},\n  title = {{{{Training run {_tex(name)}}}}},\n{year}"
        f"  note = {{{_tex(said)}}}\n}}"
    )
    return Citation(f"Training run {name}{when}: {said}.", bibtex)


def _part(form: str, value: object) -> str:
    words = text.words(value)
    return "" if words == text.NONE else form.format(words)


def _commit(git: Mapping[str, Any]) -> str:
    commit = text.words(git.get("commit"))
    if commit == text.NONE:
        return ""
    return f"commit {commit[:COMMIT_LETTERS]}" + (" with changes" if git.get("dirty") is True else "")


def _tex(words: str) -> str:
    """Words that mean the same in TeX, on one line."""
    return "".join(_SPECIAL_IN_TEX.get(mark, mark) for mark in " ".join(words.split()))
