"""What the page of a comparison shows, with all figures written out. Never imports torch."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from velodrome.comparison.contrasts import Contrast, points
from velodrome.comparison.groups import Trial, Variant, shown
from velodrome.comparison.mistakes import (
    SHEET_COLUMNS,
    Mistake,
    MistakesOfTwo,
    Thumbnails,
    collect_thumbnails,
)
from velodrome.comparison.tables import COLUMNS, cells, rows_to_show
from velodrome.errors import RunError
from velodrome.reporting import text
from velodrome.reporting.comparison_curves import Curves, draw_curves
from velodrome.reporting.comparison_page import (
    ComparisonContent,
    MistakeCard,
    MistakeList,
    MistakePair,
    Row,
    Scale,
    Value,
    Verdict,
)
from velodrome.reporting.curves import nice_ticks, tick_texts
from velodrome.reporting.samples import Sprite
from velodrome.reporting.tables import Fact, Table, with_values

if TYPE_CHECKING:
    from velodrome.comparison.comparing import Comparison

# Beyond so many runs the page would be a burden; the CSV file has them all.
MOST_RUNS = 2000
# Thumbnails are looked for in the galleries of so many runs.
MOST_GALLERIES = 40
TONES = {"better": "better", "worse": "worse", "no difference shown": "same", "not compared": "none"}
RUN_COLUMNS = ("Run", "Variant", "Seed", "Test accuracy", "With TTA", "Train accuracy", "Test loss", "Time")
METHOD = (
    "Runs that differ in their seed alone are one variant. Figures are means over its runs, with the "
    "standard deviation of a single run and the 95% confidence interval of the mean by Student's t.",
    "A variant is compared with the baseline by test accuracy: over pairs of runs with the same seed by a "
    "paired t test where every run of one has a partner, else by Welch's t test. Where one of them has a "
    "single run, McNemar's exact test compares two runs over the test images; that says nothing about other "
    "seeds. Where there are several comparisons, p-values are corrected by Holm's method; intervals are not. "
    "A difference counts where the corrected p-value is below 0.05.",
    "Whoever picks the best of many variants by their test accuracy has chosen on the test set: its figure "
    "is then too good. Choose on validation images.",
)


def content_of(found: Comparison) -> ComparisonContent:
    """All that the page shows; reads histories and galleries of the variants that are drawn."""
    roles = {variant.label: f"v{number}" for number, variant in enumerate(found.shown)}
    rows = rows_to_show(found)
    listed = [(two, *found.listed_mistakes(two)) for two in found.mistakes]
    sheet = _thumbnails(found, listed)
    of = {contrast.variant: contrast for contrast in found.contrasts}
    curves = [Curves(roles[v.label], v.label, tuple(map(_history, v.trials))) for v in found.shown]
    headline, note = _headline(found)
    return ComparisonContent(
        title=_title(found),
        tested_on=found.test_sets,
        headline=headline,
        headline_note=note,
        facts=_facts(found),
        notes=tuple(map(text.with_minus, found.notes)),
        verdicts=tuple(_verdict(of[variant.label], roles) for variant in rows[1:]),
        verdicts_left_out=len(found.variants) - len(rows),
        columns=_COLUMN_NAMES,
        rows=_rows(rows, roles),
        rows_left_out=len(found.variants) - len(rows),
        scale=Scale(tuple(_ticks(rows))),
        differing=found.differing,
        settings=tuple((variant.label, _settings(found, variant)) for variant in rows),
        accuracy_charts=draw_curves(curves, "acc"),
        loss_charts=draw_curves(curves, "loss"),
        curves_note=_curves_note(found),
        mistakes=tuple(_pair(two, ours, theirs, roles, sheet) for two, ours, theirs in listed),
        no_mistakes=_why_no_mistakes(found),
        sheet=_sprite(sheet) if sheet else None,
        runs=_runs(found),
        left_out=tuple(Fact(run.name, f"{run.problem}".capitalize()) for run in found.left_out),
        method=METHOD,
    )


_COLUMN_NAMES = (
    *("Variant", "Runs", "Test accuracy", "SD", "95% CI", "With TTA", "Train accuracy", "Test loss", "Time"),
)
assert len(_COLUMN_NAMES) == len(COLUMNS)


def _title(found: Comparison) -> str:
    if len(found.variants) == 1:
        return "One variant"
    if len(found.variants) == 2:
        return f"{found.variants[1].label} against the baseline"
    return f"{len(found.variants) - 1} variants against the baseline"


def _headline(found: Comparison) -> tuple[Fact, str]:
    """The figure to print large: a difference, or how many of many variants differ."""
    if not found.contrasts:
        accuracy = Fact("Mean test accuracy", text.percent(found.baseline.accuracy))
        return accuracy, "" if found.baseline.n > 1 else "of one run"
    if len(found.contrasts) > 1:
        counts = [contrast.verdict in ("better", "worse") for contrast in found.contrasts]
        alone = [contrast.method == "McNemar" for contrast in found.contrasts]
        differ, in_one = (
            sum(is_one for is_one, single in zip(counts, alone, strict=True) if single == wanted)
            for wanted in (False, True)
        )
        note = "at the 5% level, corrected for their number"
        note += f"; {in_one} more in one run each only" if in_one else ""
        return Fact("Variants that differ from the baseline", f"{differ} of {len(counts)}"), note
    (one,) = found.contrasts
    if one.difference is None:
        return Fact("Test accuracy of the baseline", text.percent(found.baseline.accuracy)), "not comparable"
    interval = ""
    if one.ci95:
        low, high = (points(end, "") for end in one.ci95)
        interval = text.with_minus(f"95% confidence interval {low} to {high}")
    change = text.with_minus(points(one.difference, ""))
    return Fact("Points of test accuracy", change), f"{one.verdict}; {interval}".rstrip("; ")


def _facts(found: Comparison) -> tuple[Fact, ...]:
    baseline = found.baseline
    best = max(found.variants, key=lambda variant: variant.accuracy)
    time_s = sum(run.figure("train_seconds") or 0.0 for run in found.runs)
    return with_values(
        [
            Fact("Runs", text.count(len(found.runs))),
            Fact("Variants", text.count(len(found.variants))),
            Fact("Seeds of the baseline", text.count(baseline.n)),
            Fact("Baseline", text.percent(baseline.accuracy)),
            Fact("Highest mean", text.percent(best.accuracy) if len(found.variants) > 1 else text.NONE),
            Fact("Training time in all", text.duration(time_s)),
            Fact("Left out", text.count(len(found.left_out)) if found.left_out else text.NONE),
        ]
    )


def _verdict(contrast: Contrast, roles: dict[str, str]) -> Verdict:
    words = text.with_minus(contrast.statement.removeprefix(f"{contrast.variant}: "))
    words = re.sub(r"\bp ([=<]) ", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", words)
    one_run = contrast.method == "McNemar" and contrast.verdict in ("better", "worse")
    return Verdict(
        role=roles.get(contrast.variant, ""),
        name=contrast.variant,
        tone=TONES[contrast.verdict],
        word=f"{contrast.verdict} in one run" if one_run else contrast.verdict,
        change="" if contrast.difference is None else text.with_minus(points(contrast.difference)),
        sentence=words[0].upper() + words[1:],
    )


# The scale of test accuracy.


def _ends(rows: Sequence[Variant]) -> tuple[float, float]:
    """The lowest and the highest test accuracy to show, rounded to ticks."""
    marks = _marks(rows)
    return marks[0], marks[-1]


def _marks(rows: Sequence[Variant]) -> list[float]:
    values = [trial.run.figure("test_accuracy") or 0.0 for variant in rows for trial in variant.trials]
    for variant in rows:
        test = variant.figures["test_accuracy"]
        if test and test.ci95:
            values += [min(1.0, max(0.0, end)) for end in test.ci95]
    low, high = min(values), max(values)
    if high - low < 1e-3:
        low, high = low - 5e-4, high + 5e-4
    return nice_ticks(low, high, 5)


def _ticks(rows: Sequence[Variant]) -> list[tuple[float, str]]:
    marks = _marks(rows)
    low, high = marks[0], marks[-1]
    return [
        (_place(mark, low, high), label) for mark, label in zip(marks, tick_texts(marks, True), strict=True)
    ]


def _place(value: float, low: float, high: float) -> float:
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


def _rows(rows: Sequence[Variant], roles: dict[str, str]) -> tuple[Row, ...]:
    low, high = _ends(rows)
    made = []
    for variant in rows:
        test = variant.figures["test_accuracy"]
        interval = None
        if test and test.ci95:
            start, end = (_place(value, low, high) for value in test.ci95)
            interval = (start, round(end - start, 2))
        row = cells(variant)
        accuracies = [trial.run.figure("test_accuracy") or 0.0 for trial in variant.trials]
        ci = f", 95% CI {row[4]}" if interval else ""
        made.append(
            Row(
                role=roles.get(variant.label, ""),
                name=variant.label,
                runs=tuple(_place(accuracy, low, high) for accuracy in accuracies),
                mean=_place(variant.accuracy, low, high),
                interval=interval,
                words=f"{variant.label}: mean {row[2]}{ci}; lowest {min(accuracies):.2%}, highest "
                f"{max(accuracies):.2%}",
                cells=tuple(text.NONE if cell == "-" else cell for cell in row),
            )
        )
    return tuple(made)


def _settings(found: Comparison, variant: Variant) -> tuple[Value, ...]:
    values = (shown(variant.settings.get(key)) for key in found.differing)
    usual = (shown(found.baseline.settings.get(key)) for key in found.differing)
    return tuple(Value(now, now != then) for now, then in zip(values, usual, strict=True))


# Curves and mistakes.


def _history(trial: Trial) -> list[dict[str, float | None]]:
    """The epochs of a run; none where its history is damaged, which costs no more than its curve."""
    try:
        return trial.run.folder.read_history()
    except RunError:
        return []


def _curves_note(found: Comparison) -> str:
    several = any(variant.n > 1 for variant in found.shown)
    band = " The band goes from the lowest to the highest run." if several else ""
    which = ""
    if len(found.shown) < len(found.variants):
        which = f" Drawn are the baseline and the best {len(found.shown) - 1} others by test accuracy."
    return f"Means over the runs of each variant.{band}{which}"


def _why_no_mistakes(found: Comparison) -> str:
    if len(found.variants) == 1:
        return "There is one variant only."
    return "No other variant was tested on the images of the baseline."


Listed = tuple[MistakesOfTwo, tuple[Mistake, ...], tuple[Mistake, ...]]


def _thumbnails(found: Comparison, listed: Sequence[Listed]) -> Thumbnails | None:
    """Pictures of all listed images; whoever gets an image wrong has it in the gallery, if it has room."""
    of = {variant.label: variant for variant in found.shown}
    indices = [mistake.index for _, ours, theirs in listed for mistake in (*ours, *theirs)]
    variants = [*(of[two.variant] for two, *_ in listed), found.baseline]
    in_turn = itertools.chain(*itertools.zip_longest(*(variant.trials for variant in variants)))
    return collect_thumbnails(indices, itertools.islice(filter(None, in_turn), MOST_GALLERIES))


def _sprite(sheet: Thumbnails) -> Sprite:
    uri = f"data:image/webp;base64,{base64.b64encode(sheet.content).decode()}"
    columns = min(SHEET_COLUMNS, len(sheet.places))
    return Sprite(uri, sheet.width, sheet.height, columns, sheet.rows)


def _pair(
    two: MistakesOfTwo,
    ours: Sequence[Mistake],
    theirs: Sequence[Mistake],
    roles: dict[str, str],
    sheet: Thumbnails | None,
) -> MistakePair:
    return MistakePair(
        role=roles[two.variant],
        name=two.variant,
        both=two.both,
        lists=(
            MistakeList(f"Only {two.variant} errs", len(two.only_variant), _cards(ours, sheet)),
            MistakeList("Only the baseline errs", len(two.only_baseline), _cards(theirs, sheet)),
        ),
    )


def _cards(mistakes: Sequence[Mistake], sheet: Thumbnails | None) -> tuple[MistakeCard, ...]:
    return tuple(
        MistakeCard(
            place=sheet.places.get(mistake.index) if sheet else None,
            label=mistake.label,
            taken_for=", ".join(
                name if mistake.wrong == 1 else f"{name} ({runs})" for name, runs in mistake.taken_for[:3]
            ),
            runs=f"{mistake.wrong} of {mistake.runs} runs err, {mistake.other_runs - mistake.right} of "
            f"{mistake.other_runs} of the other",
            path=mistake.path,
        )
        for mistake in mistakes
    )


def _runs(found: Comparison) -> Table:
    pairs = [(variant, trial.run) for variant in found.variants for trial in variant.trials][:MOST_RUNS]
    return Table(
        RUN_COLUMNS,
        tuple(
            (
                run.name,
                variant.label,
                text.words(run.seed),
                text.percent(run.figure("test_accuracy")),
                text.percent(run.figure("test_accuracy_tta")),
                text.percent(run.figure("train_accuracy")),
                text.loss(run.figure("test_loss")),
                text.duration(run.figure("train_seconds")),
            )
            for variant, run in pairs
        ),
        numbers=2,
    )
