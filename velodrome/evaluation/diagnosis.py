"""What went wrong in a run and what to try next, by rules applied to its files. Never imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from velodrome.evaluation import diagnosis_answers as answers
from velodrome.evaluation import diagnosis_rules as training
from velodrome.evaluation.diagnosis_evidence import (
    SEVERITIES,
    CannotCheckError,
    Finding,
    gather_evidence,
)
from velodrome.run.folder import RunFolder, write_json

# What comes first is to be mended first.
RULES = (
    training.stopped_early,
    training.lr_too_high,
    training.lr_too_low,
    training.unstable_start,
    training.overfitting,
    training.underfitting,
    answers.duplicates,
    answers.label_noise,
    answers.uneven_classes,
    answers.class_behind,
    answers.calibration,
    answers.small_test_set,
)


@dataclass(frozen=True)
class Diagnosis:
    """What the rules found in a run.

    Attributes:
        findings: the gravest first; empty where nothing is the matter.
        checked: names of the rules that could be applied.
        unchecked: names of the other rules, each with the reason.
    """

    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    unchecked: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The content of diagnosis.json."""
        return {
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "checked": list(self.checked),
            "unchecked": dict(self.unchecked),
        }


def diagnose(folder: RunFolder, *, live: bool = False) -> Diagnosis:
    """Apply every rule to a run, be it complete, stopped or going on. Writes nothing.

    Args:
        folder: of the run; what it lacks is the reason why a rule could not be checked.
        live: training is going on, so that it has not been stopped.

    Raises:
        RunError: a file of the run is damaged.
    """
    evidence = gather_evidence(folder, live=live)
    findings: list[Finding] = []
    checked: list[str] = []
    unchecked: dict[str, str] = {}
    for rule in RULES:
        try:
            finding = rule(evidence)
        except CannotCheckError as error:
            unchecked[rule.__name__] = str(error)
            continue
        checked.append(rule.__name__)
        if finding is not None:
            findings.append(finding)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(tuple(findings), tuple(checked), unchecked)


def write_diagnosis(folder: RunFolder, *, live: bool = False) -> Diagnosis:
    """Apply every rule to a run and write diagnosis.json; arguments are as for `diagnose`.

    Raises:
        RunError: a file of the run is damaged, or diagnosis.json cannot be written.
    """
    found = diagnose(folder, live=live)
    write_json(folder.diagnosis, found.to_dict())
    return found
