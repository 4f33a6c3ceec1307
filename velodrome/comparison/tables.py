"""A comparison as text for a terminal, as CSV, and as a table for a notebook."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from velodrome.comparison.groups import FIGURES, Variant, shown
from velodrome.comparison.mistakes import MistakesOfTwo
from velodrome.reporting import text
from velodrome.spread import Spread

if TYPE_CHECKING:
    from velodrome.comparison.comparing import Comparison

COLUMNS = ("variant", "n", "test acc", "sd", "95% CI", "with TTA", "train acc", "test loss", "time")
NONE = "-"
# Of more variants the best are shown.
MOST_ROWS = 30
MOST_VALUES = 8
LONGEST_NAME = 60


def to_text(found: Comparison) -> str:
    """The whole comparison for a terminal; plain ASCII but for names."""
    rows = rows_to_show(found)
    lines = [heading(found), "", *_aligned(COLUMNS, [cells(variant) for variant in rows])]
    if len(rows) < len(found.variants):
        lines.append(
            f"... the baseline and the best {len(rows) - 1} of {len(found.variants) - 1} others by test "
            "accuracy; all are in --json, --csv and --output."
        )
    if found.differing:
        lines += ["", "What differs:", *_differences(found)]
    if found.contrasts:
        of = {contrast.variant: contrast for contrast in found.contrasts}
        lines += ["", *(f"- {of[variant.label].statement}" for variant in rows[1:])]
    lines += [f"- {sentence_about(two)}" for two in found.mistakes]
    if found.notes:
        lines += ["", *(f"Note: {note}" for note in found.notes)]
    if found.left_out:
        lines += ["", "Left out:", *(f"- {run.name} {run.problem}." for run in found.left_out)]
    return "\n".join(lines)


def heading(found: Comparison) -> str:
    """How much is compared: "6 runs in 2 variants, shapes, 200 test images"."""
    runs, variants = len(found.runs), len(found.variants)
    return (
        f"{runs} run{'s' if runs > 1 else ''} in {variants} variant{'s' if variants > 1 else ''}, "
        f"{'; '.join(found.test_sets)}"
    )


def sentence_about(two: MistakesOfTwo) -> str:
    """How many images only a variant, only the baseline, and both get wrong."""
    ours, theirs = len(two.only_variant), len(two.only_baseline)
    return (
        f"{two.variant}, by the majority of runs: {text.images(ours)} wrong that the baseline gets right, "
        f"{theirs:,} right that it gets wrong, {two.both:,} wrong in both."
    )


def rows_to_show(found: Comparison) -> Sequence[Variant]:
    """All variants in their order, or the baseline and the best others, best first."""
    if len(found.variants) <= MOST_ROWS:
        return found.variants
    best = sorted(found.variants[1:], key=lambda variant: -variant.accuracy)[: MOST_ROWS - 1]
    return (found.baseline, *best)


def cells(variant: Variant) -> list[str]:
    """A variant as a row of `COLUMNS`: means, and how the test accuracy spreads."""
    figures = variant.figures
    test = figures["test_accuracy"]
    return [
        variant.label,
        str(variant.n),
        mean_of(test, "percent"),
        NONE if test is None or test.sd is None else f"{100 * test.sd:.2f}",
        interval_text(test),
        mean_of(figures["test_accuracy_tta"], "percent"),
        mean_of(figures["train_accuracy"], "percent"),
        mean_of(figures["test_loss"], "loss"),
        mean_of(figures["train_seconds"], "duration"),
    ]


_WRITERS = {"percent": text.percent, "loss": text.loss, "duration": text.duration}


def mean_of(found: Spread | None, form: str) -> str:
    """The mean in one of the forms of the report."""
    return NONE if found is None else _WRITERS[form](found.mean).replace(text.NONE, NONE)


def interval_text(found: Spread | None) -> str:
    """The 95% interval of mean accuracy in percent: "93.10 to 93.70"; a dash for one run.

    Student's t knows nothing of 0 and 100%; what lies beyond is cut off.
    """
    if found is None or found.ci95 is None:
        return NONE
    low, high = (100 * min(1.0, max(0.0, end)) for end in found.ci95)
    return f"{low:.2f} to {high:.2f}"


def values_of(found: Comparison, key: str) -> list[str]:
    """The values of a setting, that of the baseline first, each once."""
    return list(dict.fromkeys(shown(variant.settings.get(key)) for variant in found.variants))


def _differences(found: Comparison) -> list[str]:
    width = max(map(len, found.differing))
    lines = []
    for key in found.differing:
        baseline, *others = values_of(found, key)
        more = f", and {len(others) - MOST_VALUES} more" if len(others) > MOST_VALUES else ""
        lines.append(f"  {key:<{width}}  {baseline} (baseline), {', '.join(others[:MOST_VALUES])}{more}")
    return lines


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns below their headings: the first to the left, figures to the right; long names are cut."""
    cut = [[_shortened(row[0]), *row[1:]] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cut) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cut
    ]


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def to_csv(found: Comparison) -> str:
    """One row a run, also of those left out."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    settings = found.differing
    writer.writerow(["variant", "run", "seed", *settings, *FIGURES, "status", "problem"])
    for variant in found.variants:
        for trial in variant.trials:
            values = [_plain(variant.settings.get(key)) for key in settings]
            figures = [_plain(trial.run.figure(key)) for key in FIGURES]
            writer.writerow(
                [variant.label, trial.run.path, _plain(trial.run.seed), *values, *figures, "finished", ""]
            )
    empty = [""] * (len(settings) + len(FIGURES))
    for run in found.repeated:
        writer.writerow(["", run.path, _plain(run.seed), *empty, "repeated", "has a newer run of its seed"])
    for run in found.left_out:
        writer.writerow(["", run.path, _plain(run.seed), *empty, run.status, run.problem])
    return file.getvalue()


def _plain(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return "" if value is None else json.dumps(value) if isinstance(value, bool | float) else value


def to_html(found: Comparison) -> str:
    """The table and the statements, for a notebook."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(variant)) + "</tr>"
        for variant in rows_to_show(found)
    )
    of = {contrast.variant: contrast for contrast in found.contrasts}
    sentences = [of[variant.label].statement for variant in rows_to_show(found)[1:]]
    sentences += [*found.notes, *(f"Left out: {run.name} {run.problem}." for run in found.left_out)]
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return f"<p>{html.escape(heading(found))}</p><table><tr>{head}</tr>{rows}</table><ul>{items}</ul>"
