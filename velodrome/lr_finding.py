"""What a search for the learning rate found: as a table, as JSON, as figures, as files."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.errors import ConfigError
from velodrome.run.folder import RunFolder, write_json
from velodrome.training.lr_range import Sweep
from velodrome.training.lr_verdict import Verdict
from velodrome.training.schedule import LR_MAX_OVER_MIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RULE_NAMES = {
    "valley": "valley (middle of the longest fall)",
    "slide": "slide (foot of the final rise)",
    "steepest": "steepest fall",
    "minimum_tenth": "minimum / 10",
    "minimum": "minimum",
}


@dataclass(frozen=True)
class Trial:
    """A short run with one candidate.

    Attributes:
        lr_max: the candidate.
        score: mean loss, the lower the better; None where training diverged.
    """

    lr_max: float
    score: float | None


@dataclass(frozen=True, eq=False)
class LRFinding:
    """What a search for the learning rate found; shows itself in a notebook.

    Attributes:
        verdict: of the range tests.
        sweeps: the range tests.
        trials: the candidates that were tried, from low to high; empty without verification.
        judged_by: what the scores of the trials are, in words.
        schedule_lrs: the learning rate of every step of the run with LRMAX; empty where it is not known.
        steps_per_epoch: of that run.
        about: recipe, data, settings and seconds, for the record.
        path: of the folder that it was written to, if it was.
    """

    verdict: Verdict
    sweeps: tuple[Sweep, ...]
    trials: tuple[Trial, ...] = ()
    judged_by: str = ""
    schedule_lrs: tuple[float, ...] = ()
    steps_per_epoch: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def lr_max(self) -> float | None:
        """LRMAX: the winner of the trials, or what the range tests say; None where there is none."""
        if not self.trials:
            return self.verdict.lr_max
        scored = [(trial.score, trial.lr_max) for trial in self.trials if trial.score is not None]
        return min(scored)[1] if scored else None

    @property
    def lr_min(self) -> float | None:
        """LRMIN, None where there is no LRMAX."""
        return None if self.lr_max is None else self.lr_max / LR_MAX_OVER_MIN

    @property
    def refusal(self) -> str:
        """Why there is no LRMAX and what to check; "" where there is one."""
        if self.trials and self.lr_max is None:
            return (
                f"Training diverged with every candidate, {self.trials[0].lr_max:.2g} to "
                f"{self.trials[-1].lr_max:.2g}. Verify more of them, or try --precision fp32."
            )
        return self.verdict.refusal

    def to_dict(self) -> dict[str, Any]:
        """The content of lr_find.json."""
        verdict, confidence = self.verdict, self.verdict.confidence
        return {
            "lr_max": self.lr_max,
            "lr_min": self.lr_min,
            "rule": verdict.rule or None,
            "suggestions": dataclasses.asdict(verdict.suggestions) if verdict.suggestions else None,
            "edge": verdict.edge,
            "confidence": dataclasses.asdict(confidence) if confidence else None,
            "refusal": self.refusal or None,
            "curve": _curve_to_dict(verdict.curve),
            "ending": verdict.curve.ending,
            "steps": sum(len(sweep.losses) for sweep in self.sweeps),
            "repeats": len(self.sweeps),
            "sweeps": [_curve_to_dict(sweep) for sweep in self.sweeps] if len(self.sweeps) > 1 else [],
            "verify": {
                "judged_by": self.judged_by,
                "trials": [dataclasses.asdict(trial) for trial in self.trials],
            }
            if self.trials
            else None,
            **self.about,
        }

    def plot_curve(self) -> Figure:
        """The losses over the learning rate with every suggestion, a matplotlib figure."""
        from velodrome.reporting.lr_figure import draw_range_test

        return draw_range_test(self.to_dict())

    def plot_schedule(self) -> Figure:
        """The learning rate of every step of the run with LRMAX, a matplotlib figure.

        Raises:
            ConfigError: it is not known, as after a test of a network of one's own, or there is no LRMAX.
        """
        from velodrome.reporting.lr_figure import draw_schedule

        if not self.schedule_lrs:
            raise ConfigError(
                "There is no schedule to draw: this was no test of a recipe, or it found no learning rate.",
                "Use plot_curve, which is always there.",
            )
        return draw_schedule(self.schedule_lrs, self.steps_per_epoch)

    def save(self, folder: Path) -> None:
        """Write lr_find.json, lr_find.png and, where there is a schedule, lr_schedule.png.

        Raises:
            RunError: they cannot be written.
        """
        from velodrome.reporting.lr_figure import save_figure

        run = RunFolder(folder)
        write_json(run.lr_find, self.to_dict())
        save_figure(self.plot_curve(), run.lr_find_figure)
        if self.schedule_lrs:
            save_figure(self.plot_schedule(), run.lr_schedule_figure)

    @property
    def level(self) -> str:
        """How sure LRMAX is: "high", "medium" or "low"; "no" where there is none."""
        return self.verdict.confidence.level if self.verdict.confidence else "no"

    def __repr__(self) -> str:
        if self.lr_max is None:
            return f"LRFinding(refused: {self.refusal!r})"
        return f"LRFinding(lr_max={self.lr_max:.3g}, lr_min={self.lr_min:.3g}, {self.level} confidence)"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{rows}</table>"

    def rows(self) -> list[tuple[str, str]]:
        """The result as a table: names and texts."""
        suggestions = self.verdict.suggestions
        found = dataclasses.asdict(suggestions) if suggestions else {}
        rows = [(RULE_NAMES[name], f"{lr:.2g}") for name, lr in found.items()]
        if self.verdict.edge is not None:
            rows.append(("edge (back at the start)", f"{self.verdict.edge:.2g}"))
        rows += [
            (f"trial {t.lr_max:.2g}", "diverged" if t.score is None else f"{t.score:.4f}")
            for t in self.trials
        ]
        if self.lr_max is None or self.lr_min is None:
            return [*rows, ("LRMAX", "none"), ("why", self.refusal)]
        rows += [("LRMAX", f"{self.lr_max:.2g}"), ("LRMIN", f"{self.lr_min:.2g}")]
        confidence = self.verdict.confidence
        if confidence:
            rows.append(("confidence", " ".join([f"{confidence.level}.", *confidence.reasons])))
        return rows


def _curve_to_dict(sweep: Sweep) -> dict[str, list[float]]:
    """Learning rate, loss and smoothed loss of each step."""
    return {"lr": sweep.lrs.tolist(), "loss": sweep.losses.tolist(), "smoothed": sweep.smoothed.tolist()}
