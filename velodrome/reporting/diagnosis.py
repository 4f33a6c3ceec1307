"""What the rules found in a run, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from velodrome.reporting import text
from velodrome.reporting.gaps import damaged, read_object
from velodrome.reporting.tables import Fact, listing, mapping
from velodrome.run.folder import RunFolder

# The gravest first; what is of no known severity is a note.
SEVERITIES = ("problem", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """What a rule found: the numbers that triggered it, and what to try next."""

    severity: str
    title: str
    evidence: str
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the gravest first.

    Attributes:
        findings: may be none.
        checked: names of the rules that could be applied.
        unchecked: the other rules, each with the reason why not.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    unchecked: tuple[Fact, ...]


def gather_diagnosis(folder: RunFolder) -> Diagnosis:
    """What diagnosis.json says.

    Raises:
        Gap: it is missing or damaged.
    """
    found = read_object(folder, folder.diagnosis)
    if not isinstance(found.get("findings"), list) or not isinstance(found.get("checked"), list):
        raise damaged(folder, folder.diagnosis, "it has no lists of findings and of rules checked")
    findings = [_finding(mapping(finding)) for finding in found["findings"]]
    unchecked = mapping(found.get("unchecked")).items()
    return Diagnosis(
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        checked=tuple(_rule(name) for name in listing(found["checked"])),
        unchecked=tuple(Fact(_rule(name), text.words(reason)) for name, reason in unchecked),
    )


def _finding(finding: Any) -> Finding:
    severity = finding.get("severity")
    return Finding(
        severity=severity if severity in SEVERITIES else SEVERITIES[-1],
        title=text.words(finding.get("title", finding.get("rule"))),
        evidence=text.words(finding.get("evidence")),
        advice=text.words(finding.get("advice")),
    )


def _rule(name: object) -> str:
    return text.words(name).replace("_", " ").replace("-", " ")
