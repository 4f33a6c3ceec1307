"""What the range test before training found."""

from __future__ import annotations

from dataclasses import dataclass

from velodrome.reporting import text
from velodrome.reporting.gaps import Gap, data_uri, read_bytes
from velodrome.reporting.tables import Fact, Table, listing, mapping, with_values
from velodrome.run.folder import RunFolder


@dataclass(frozen=True)
class LearningRate:
    """What lr_find.json says; `figure` is lr_find.png as a data URI, None where it is missing."""

    facts: tuple[Fact, ...]
    suggestions: Table
    sentences: tuple[str, ...]
    refusal: str | None
    figure: str | None


def gather_learning_rate(folder: RunFolder) -> LearningRate | None:
    """What the range test found, None where none was run.

    Raises:
        RunError: lr_find.json is damaged.
    """
    found = folder.read_json(folder.lr_find)
    if found is None:
        return None
    confidence, suggested = mapping(found.get("confidence")), mapping(found.get("suggestions"))
    facts = (
        Fact("LRMAX", text.rate(found.get("lr_max"))),
        Fact("LRMIN", text.rate(found.get("lr_min"))),
        Fact("Confidence", text.words(confidence.get("level"))),
        Fact("Steps of the test", text.count(found.get("steps"))),
        Fact("Time", text.duration(found.get("seconds"))),
    )
    said = [*listing(confidence.get("reasons")), found.get("rule")]
    rows = tuple((text.words(rule).replace("_", " "), text.rate(lr)) for rule, lr in suggested.items())
    return LearningRate(
        facts=with_values(facts),
        # Where the test found nothing, what its rules say of the curve means nothing either.
        suggestions=Table(("Rule", "Learning rate"), () if found.get("refusal") else rows, numbers=1),
        sentences=tuple(sentence for sentence in said if isinstance(sentence, str)),
        refusal=text.words(found["refusal"]) if found.get("refusal") else None,
        figure=_figure(folder),
    )


def _figure(folder: RunFolder) -> str | None:
    try:
        return data_uri("image/png", read_bytes(folder, folder.lr_find_figure))
    except Gap:
        return None
