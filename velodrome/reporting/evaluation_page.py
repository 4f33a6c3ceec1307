"""The page of an evaluation on other images than the run's own, made from its folder alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velodrome.reporting import calibration, text
from velodrome.reporting.confusion import Predictions, count_answers
from velodrome.reporting.content import answers_of
from velodrome.reporting.evaluation import Evaluation, gather_evaluation, interval
from velodrome.reporting.gallery import Gallery, gather_gallery
from velodrome.reporting.gaps import read_object, unless_gap
from velodrome.reporting.page import load_script, policy_for, templates
from velodrome.reporting.tables import Table, listing, mapping
from velodrome.run.folder import RunFolder, number, write_atomically


@dataclass(frozen=True)
class Changes:
    """How far the accuracy moved from that on the run's own test images.

    Attributes:
        own: what those images are called.
        sentence: the change over all images, and whether chance may explain it.
        table: a row for each class of which both have images, those that fell furthest first.
    """

    own: str
    sentence: str
    table: Table


@dataclass(frozen=True)
class EvaluationContent:
    """All that the page shows; names are those of `Content`, whose templates show it too.

    Attributes:
        name: of the run.
        data: what the images are called, which may be a path.
        short: the last part of it.
        images: how many they are.
        changes: None where the run has no answers to compare with.
        failed: files that cannot be read.
    """

    name: str
    data: str
    short: str
    images: str
    evaluation: Evaluation | None
    changes: Changes | None
    predictions: Predictions | None
    gallery: Gallery | None
    failed: Table
    gaps: Mapping[str, str]
    is_of_other_images: bool = True
    # What only a run has.
    unfinished: None = None
    other_evaluations: None = None


def write_evaluation_page(place: RunFolder, run: str) -> Path:
    """Write the page of an evaluation into its folder and return where it is.

    Args:
        place: the folder.
        run: name of the run.

    Raises:
        RunError: it cannot be written.
    """
    write_atomically(place.report, render_evaluation(place, run))
    return place.report


def render_evaluation(place: RunFolder, run: str) -> str:
    """The page as HTML; arguments as for `write_evaluation_page`."""
    content, made = gather_page(place, run), templates()
    needed = ["page.js", *(["heat.js", "gallery.js"] if content.gallery else [])]
    scripts = [load_script(made, name) for name in needed]
    html = made.get_template("evaluation.html").render(
        run=content, scripts=scripts, policy=policy_for(scripts), reliability=calibration
    )
    return text.printable(html)


def gather_page(place: RunFolder, run: str) -> EvaluationContent:
    """What the page shows; arguments as for `write_evaluation_page`."""
    gaps: dict[str, str] = {}
    found = mapping(unless_gap({}, "", lambda folder: read_object(folder, folder.evaluation), place))
    answers = answers_of(gaps, place, found.get("classes"))
    data = text.words(found.get("data"))
    return EvaluationContent(
        name=run,
        data=data,
        short=Path(data).name or data,
        images=text.count(found.get("images")),
        evaluation=unless_gap(gaps, "evaluation", gather_evaluation, place),
        changes=_changes(found),
        predictions=count_answers(answers) if answers else None,
        gallery=gather_gallery(place, answers, gaps.get("probabilities", "")) if answers else None,
        failed=_failed(found),
        gaps=gaps,
    )


def _changes(found: Mapping[str, Any]) -> Changes | None:
    before = mapping(found.get("compared_with"))
    if not before:
        return None
    now = {text.words(row.get("name")): row for row in map(mapping, listing(found.get("per_class")))}
    rows = map(mapping, listing(before.get("per_class")))
    furthest_first = sorted(rows, key=lambda row: number(row.get("change")) or 0.0)
    table = Table(
        ("Class", "Images", "Accuracy", "On its own test images", "Change", "95% interval"),
        tuple(_class_row(row, now.get(text.words(row.get("name")), {})) for row in furthest_first),
        numbers=1,
    )
    return Changes(text.words(before.get("data")), _in_words(found, before), table)


def _class_row(row: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        text.words(row.get("name")),
        text.count(now.get("images")),
        text.percent(now.get("recall")),
        text.percent(row.get("accuracy")),
        text.points(row.get("change")),
        interval(row.get("change_ci95"), text.points) or text.NONE,
    )


def _in_words(found: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """The change over all images in sentences."""
    ends = [number(end) for end in listing(found.get("accuracy_change_ci95"))]
    change, between = text.points(found.get("accuracy_change")), interval(ends, text.points)
    images, accuracy = text.count(before.get("images")), text.percent(before.get("accuracy"))
    words = (
        f"{change} from the {images} test images of the run ({accuracy}); 95% confidence interval {between}."
    )
    low, high = ends if len(ends) == 2 else (None, None)
    if low is None or high is None:
        return f"{change} from the {images} test images of the run ({accuracy})."
    if low <= 0 <= high:
        return f"{words} Chance alone may explain it."
    comparison = "harder" if high < 0 else "easier"
    return f"{words} That is more than chance explains: these images are {comparison} for it."


def _failed(found: Mapping[str, Any]) -> Table:
    rows = map(mapping, listing(found.get("failed")))
    return Table(
        ("File", "Why"),
        tuple((text.words(row.get("path")), text.words(row.get("reason"))) for row in rows),
        numbers=2,
    )
