"""What was found in a user's own images before training on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from velodrome.reporting import text
from velodrome.reporting.gaps import read_object
from velodrome.reporting.tables import Fact, listing, mapping, with_values
from velodrome.run.folder import RunFolder

# By the names that the diagnosis has for them.
_SEVERITIES = {"error": "problem", "warning": "warning", "note": "note"}


@dataclass(frozen=True)
class ImageFinding:
    """Something that stands out; `severity` is "problem", "warning" or "note"."""

    severity: str
    title: str
    evidence: str
    advice: str
    examples: tuple[str, ...]


@dataclass(frozen=True)
class OwnImages:
    """What data_check.json says."""

    facts: tuple[Fact, ...]
    why_image_size: str
    findings: tuple[ImageFinding, ...]


def gather_own_images(folder: RunFolder) -> OwnImages:
    """What was found in the images.

    Raises:
        Gap: they are not a user's own, or data_check.json is damaged.
    """
    found = read_object(folder, folder.data_check)
    splits, height, width = (
        mapping(part)
        for part in (
            found.get("splits"),
            mapping(found.get("sizes")).get("height"),
            mapping(found.get("sizes")).get("width"),
        )
    )
    facts = (
        Fact("To train on", text.count(splits.get("train"))),
        Fact("To choose by", text.count(splits.get("val") or None)),
        Fact("To test on", text.count(splits.get("test"))),
        Fact("Classes", text.count(len(listing(found.get("classes"))) or None)),
        Fact("Heights", _range(height)),
        Fact("Widths", _range(width)),
        Fact("Cannot be read", text.count(len(listing(found.get("unreadable"))) or None)),
    )
    return OwnImages(
        facts=with_values(facts),
        why_image_size=_words(found.get("why_image_size")),
        findings=tuple(_finding(mapping(one)) for one in listing(found.get("findings"))),
    )


def _finding(one: Any) -> ImageFinding:
    return ImageFinding(
        severity=_SEVERITIES.get(str(one.get("level")), "note"),
        title=_words(one.get("title")),
        evidence=_words(one.get("text")),
        advice=_words(one.get("remedy")),
        examples=tuple(text.words(example) for example in listing(one.get("examples"))),
    )


def _words(value: object) -> str:
    return value if isinstance(value, str) else ""


def _range(sides: Any) -> str:
    """From the smallest to the largest: "40 to 300 px"."""
    low, high = text.count(sides.get("min")), text.count(sides.get("max"))
    if text.NONE in (low, high):
        return text.NONE
    return f"{low} px" if low == high else f"{low} to {high} px"
