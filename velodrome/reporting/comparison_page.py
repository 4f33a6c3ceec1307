"""The page of a comparison: one self-contained HTML file in the style of the report. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from velodrome.reporting import curves, text
from velodrome.reporting.curves import Drawing
from velodrome.reporting.page import load_script, policy_for, templates
from velodrome.reporting.samples import Sprite
from velodrome.reporting.tables import Fact, Table
from velodrome.run.folder import write_atomically


@dataclass(frozen=True)
class Verdict:
    """What can be said about a variant against the baseline.

    Attributes:
        role: of the variant, which decides its colour; empty where it is not drawn.
        name: of the variant.
        tone: better, worse, same or none.
        word: the verdict in a word or two.
        change: difference in test accuracy, such as "+0.31 points".
        sentence: the whole statement.
    """

    role: str
    name: str
    tone: str
    word: str
    change: str
    sentence: str


@dataclass(frozen=True)
class Row:
    """A variant on the scale of test accuracy; positions are percentages of its width.

    Attributes:
        role: of the variant, which decides its colour; empty where it is not drawn.
        name: of the variant.
        runs: where each run stands.
        mean: where the mean stands.
        interval: where its 95% interval begins, and how wide it is; None for one run.
        words: all of it for those who do not see it.
        cells: the row of the table.
    """

    role: str
    name: str
    runs: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    words: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """The value of a setting in words, and whether it is another one than that of the baseline."""

    text: str
    is_changed: bool


@dataclass(frozen=True)
class Scale:
    """The axis of test accuracy: (position in percent of the width, label) of each tick."""

    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class MistakeCard:
    """An image that one variant gets wrong and the other does not; `place` in the sheet, None without."""

    place: int | None
    label: str
    taken_for: str
    runs: str
    path: str


@dataclass(frozen=True)
class MistakeList:
    """Images that one variant gets wrong and the other right: how many, and the clearest of them."""

    title: str
    count: int
    cards: tuple[MistakeCard, ...]


@dataclass(frozen=True)
class MistakePair:
    """The mistakes of a variant and of the baseline.

    Attributes:
        role: of the variant.
        name: of the variant.
        both: how many images both get wrong.
        lists: those that only the variant, and those that only the baseline gets wrong.
    """

    role: str
    name: str
    both: int
    lists: tuple[MistakeList, MistakeList]


@dataclass(frozen=True)
class ComparisonContent:
    """All that the page shows, with all figures written out.

    Attributes:
        title: of the page.
        tested_on: what the runs were tested on.
        headline: the figure to print large.
        headline_note: what there is to know about it; may be empty.
        facts: other figures.
        notes: sentences about what to keep in mind.
        verdicts: of every variant against the baseline.
        verdicts_left_out: how many more there are.
        columns: headings of the table of variants.
        rows: of that table, and their places on the scale.
        rows_left_out: how many more there are.
        scale: of test accuracy.
        differing: names of the settings that differ.
        settings: of each variant in `rows`, its name and the values of these.
        accuracy_charts: curves of accuracy.
        loss_charts: curves of loss.
        curves_note: which variants are drawn, where not all are.
        mistakes: of each variant that is drawn against the baseline.
        no_mistakes: why there are none, where there are none.
        sheet: the thumbnails; None where no gallery has one.
        runs: every run with its figures.
        left_out: runs that are in no figure, with the reason.
        method: how all of this was computed, in paragraphs.
    """

    title: str
    tested_on: tuple[str, ...]
    headline: Fact
    headline_note: str
    facts: tuple[Fact, ...]
    notes: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    verdicts_left_out: int
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    rows_left_out: int
    scale: Scale
    differing: tuple[str, ...]
    settings: tuple[tuple[str, tuple[Value, ...]], ...]
    accuracy_charts: tuple[Drawing, ...]
    loss_charts: tuple[Drawing, ...]
    curves_note: str
    mistakes: tuple[MistakePair, ...]
    no_mistakes: str
    sheet: Sprite | None
    runs: Table
    left_out: tuple[Fact, ...]
    method: tuple[str, ...]


def write_comparison(content: ComparisonContent, path: Path) -> Path:
    """Write the page and return where it is.

    Raises:
        RunError: it cannot be written.
    """
    write_atomically(path, render_comparison(content))
    return path


def render_comparison(content: ComparisonContent) -> str:
    """The page as HTML."""
    made = templates()
    scripts = [load_script(made, "page.js")]
    html = made.get_template("comparison.html").render(
        found=content, scripts=scripts, policy=policy_for(scripts), box=curves
    )
    return text.printable(html)
