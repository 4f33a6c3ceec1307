"""What the files of a run say about it, in the terms of the rules of its diagnosis. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from velodrome.config import USUAL_BATCH, USUAL_LR, read_yaml, usual_lr
from velodrome.errors import ConfigError, RunError
from velodrome.run.answers import Answers, read_answers
from velodrome.run.folder import RunFolder, epochs_told, last_start, number

Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")  # the gravest first

# Fewer are no curve.
FEWEST_STEPS = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    Attributes:
        rule: its name.
        severity: how grave it is.
        title: what is the matter, as a clause without a full stop.
        evidence: the numbers that triggered the rule, and its threshold, in sentences.
        advice: what to try next, in sentences.
        numbers: the figures behind the evidence by name; shares in [0, 1].
    """

    rule: str
    severity: Severity
    title: str
    evidence: str
    advice: str
    numbers: Mapping[str, float] = field(default_factory=dict)


class CannotCheckError(Exception):
    """A rule cannot be applied, as what it looks at is not there; says why in a clause."""


@dataclass(frozen=True)
class HeldOut:
    """The images to judge by: those for validation where there are any, else the test images.

    Attributes:
        name: "validation" or "test".
        accuracies: (E,) in [0, 1], after each epoch.
        losses: (E,) mean cross-entropy after each epoch; NaN where it is not known.
        images: how many there are, None where it is not known.
    """

    name: str
    accuracies: Floats
    losses: Floats
    images: int | None


@dataclass(frozen=True, eq=False)
class Curve:
    """The train loss, step by step.

    Attributes:
        losses: (S,) of every step.
        level: the loss of guessing, log(classes), from which an untrained network should start.
    """

    losses: Floats
    level: float

    @cached_property
    def smoothed(self) -> Floats:
        """Means over 2% of all steps, at least 5."""
        return moving_mean(self.losses, max(5, len(self.losses) // 50))

    @cached_property
    def above_level(self) -> float:
        """The share of the smoothed losses that lie above the level."""
        return float((self.smoothed > self.level).mean())

    @cached_property
    def rise(self) -> float:
        """How far the smoothed loss rose at most, above a lower one, since it first was below the level."""
        fallen = np.flatnonzero(self.smoothed < self.level)
        since = self.smoothed[fallen[0] :] if len(fallen) else self.smoothed[:1]
        return float((since - np.minimum.accumulate(since)).max())


@dataclass(frozen=True)
class UsualLR:
    """The learning rate to compare with, and where it is from, in words."""

    lr: float
    source: str


@dataclass(frozen=True, eq=False)
class Evidence:
    """The files of a run, read; properties raise `CannotCheckError` where something they need is missing.

    Attributes:
        path: of the run folder.
        live: whether training is going on.
        settings: config.yaml.
        history: the rows of history.csv.
        events: the events of events.jsonl.
        result: result.json, None while the run is not complete.
        evaluation: evaluation.json, None where it is missing.
        lr_find: lr_find.json, None where it is missing.
        summary: summary.json, None where it is missing.
        answers: for every test image, None where there are none.
    """

    path: Path
    live: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float | None]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    result: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    lr_find: Mapping[str, Any] | None = None
    summary: Mapping[str, Any] | None = None
    answers: Answers | None = None

    def setting(self, key: str, usual: float = 0.0) -> float:
        """A setting that is a number; `usual` where config.yaml does not have it as one."""
        found = number(self.settings.get(key))
        return usual if found is None else found

    @property
    def epochs(self) -> int:
        """Planned epochs."""
        planned = self.settings.get("epochs", self.started.get("epochs"))
        if not isinstance(planned, int) or planned < 1:
            raise CannotCheckError("config.yaml does not say how many epochs were planned")
        return planned

    @property
    def is_complete(self) -> bool:
        """Whether all planned epochs are trained."""
        return self.result is not None or len(self.history) >= self.epochs

    def must_be_complete(self) -> None:
        """Check that all planned epochs are trained."""
        if not self.is_complete:
            how = "the run is still going on" if self.live else "the run did not come to its end"
            raise CannotCheckError(f"{how}: {len(self.history)} of {self.epochs} epochs are trained")

    def column(self, key: str) -> Floats:
        """A column of history.csv, (E,), NaN where a cell is empty or not finite."""
        if not self.history:
            raise CannotCheckError("history.csv has no complete epoch")
        values = (number(row.get(key)) for row in self.history)
        return np.array([math.nan if value is None else value for value in values])

    @cached_property
    def train_accuracies(self) -> Floats:
        """(E,) in [0, 1], on augmented images as they were met."""
        found = self.column("train_acc")
        if np.isnan(found).any():
            raise CannotCheckError("history.csv lacks training accuracies")
        return found

    @cached_property
    def held_out(self) -> HeldOut:
        """The images to judge by."""
        for key, name in (("val", "validation"), ("test", "test")):
            accuracies = self.column(f"{key}_acc")
            if not np.isnan(accuracies).any():
                images = self._validation_images() if key == "val" else self.test_images
                return HeldOut(name, accuracies, self.column(f"{key}_loss"), images)
        raise CannotCheckError("history.csv lacks accuracies on validation and test images")

    @cached_property
    def started(self) -> Mapping[str, Any]:
        """How training began, or last went on; empty where the log does not say."""
        return last_start(self.events)

    @cached_property
    def stopped(self) -> Mapping[str, Any] | None:
        """How training ended before its last step, None where it went on afterwards or nothing is said."""
        nothing: Mapping[str, Any] = {}
        told = (
            event for event in reversed(self.events) if event.get("event") in ("RunStarted", "RunStopped")
        )
        last = next(told, nothing)
        return last if last.get("event") == "RunStopped" else None

    @cached_property
    def curve(self) -> Curve:
        """The finite train losses of all steps of complete epochs, in order."""
        told = epochs_told(self.events)
        found: list[object] = []
        for row in self.history:
            steps = told.get(row.get("epoch"), {}).get("step_losses")
            found += steps if isinstance(steps, list) else []
        losses = np.array([value for value in map(number, found) if value is not None])
        if len(losses) < FEWEST_STEPS:
            raise CannotCheckError(f"events.jsonl has the losses of {len(losses)} steps, which are too few")
        return Curve(losses, math.log(self.classes))

    @cached_property
    def classes(self) -> int:
        """How many classes there are."""
        for source in (self.evaluation, self.result):
            names = (source or {}).get("classes")
            if isinstance(names, list) and len(names) > 1:
                return len(names)
        try:
            count = (self.summary or {})["layers"][-1]["output_shape"][-1]
        except (KeyError, IndexError, TypeError):
            count = None
        if not isinstance(count, int) or count < 2:
            raise CannotCheckError("no file says how many classes there are")
        return count

    @property
    def chance(self) -> float:
        """The accuracy of guessing, in [0, 1]."""
        return 1 / self.classes

    @cached_property
    def skill(self) -> float:
        """How much was learned: accuracy, on training or new images, from guessing (0) to all right (1)."""
        best = max(float(self.train_accuracies[-1]), float(self.held_out.accuracies[-1]))
        return (best - self.chance) / (1 - self.chance)

    @cached_property
    def lr(self) -> float:
        """LRMAX of the run."""
        found = number(self.settings.get("lr"))
        if found is None or found <= 0:
            raise CannotCheckError("config.yaml does not say which learning rate was used")
        return found

    @cached_property
    def usual_lr(self) -> UsualLR:
        """LRMAX that the range test found, else the usual one."""
        found = number((self.lr_find or {}).get("lr_max"))
        if found is not None and found > 0:
            return UsualLR(found, "which the range test found")
        optimizer = str(self.settings.get("optimizer"))
        if optimizer not in USUAL_LR:
            raise CannotCheckError("no file says which learning rate would be usual")
        batch_size = number(self.settings.get("batch_size")) or USUAL_BATCH
        return UsualLR(usual_lr(optimizer, int(batch_size)), f"the usual one for {optimizer}")

    @property
    def test_images(self) -> int | None:
        """How many test images there are, None where it is not known."""
        return None if self.answers is None else len(self.answers)

    def evaluated(self, *keys: str | int) -> float:
        """A number of evaluation.json, such as ("calibration", "ece") or ("accuracy_ci95", 0)."""
        found: Any = self.evaluation
        if found is None:
            raise CannotCheckError(self._why_missing("evaluation.json"))
        for key in keys:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                found = None
        value = number(found)
        if value is None:
            raise CannotCheckError(f"evaluation.json has no number for {' '.join(map(str, keys))}")
        return value

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes) counts of test images; rows are labels, columns are predictions."""
        answers = self.must_have_answers()
        counts = np.zeros((len(answers.classes),) * 2, np.int64)
        np.add.at(counts, (answers.labels, answers.predictions), 1)
        return counts

    def must_have_answers(self) -> Answers:
        """The answers for every test image."""
        if self.answers is None:
            raise CannotCheckError(self._why_missing("predictions.csv"))
        return self.answers

    def _why_missing(self, file: str) -> str:
        return "the run has not been evaluated yet" if self.result is None else f"{file} is missing"

    def _validation_images(self) -> int | None:
        """From how many images are trained on, as the log does not say how many are held out."""
        share, trained = self.setting("val_fraction"), number(self.started.get("train_images"))
        return round(trained * share / (1 - share)) if trained and 0 < share < 1 else None


def gather_evidence(folder: RunFolder, *, live: bool) -> Evidence:
    """Read the files of a run; those that are missing leave a gap.

    Raises:
        RunError: one of them is damaged.
    """
    result = folder.read_json(folder.result)
    # A run that goes on for more epochs still has the answers that it gave before.
    return Evidence(
        path=folder.path,
        live=live,
        settings=_read_settings(folder),
        history=folder.read_history(),
        events=folder.read_events(),
        result=result,
        evaluation=folder.read_json(folder.evaluation) if result is not None else None,
        lr_find=folder.read_json(folder.lr_find),
        summary=folder.read_json(folder.summary),
        answers=read_answers(folder, result.get("classes")) if result is not None else None,
    )


def moving_mean(values: Floats, window: int) -> Floats:
    """Means over so many neighbours, (S - window + 1,)."""
    return np.convolve(values, np.full(window, 1 / window), "valid")


def _read_settings(folder: RunFolder) -> Mapping[str, Any]:
    if not folder.config.exists():
        return {}
    try:
        return read_yaml(folder.config)
    except ConfigError as error:
        raise RunError(error.problem, "Restore it from a copy.") from error
