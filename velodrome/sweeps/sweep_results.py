"""What a sweep found: the trials, the best settings, what mattered; as text, JSON, files and figures."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velodrome.config import Config, override, to_yaml
from velodrome.errors import RunError
from velodrome.recipes import by_name
from velodrome.run.folder import write_atomically
from velodrome.run.sinks import percent
from velodrome.sweeps.rows import SweepFolder, TrialRow, best_first, best_of, counts, short, table, to_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a sweep found so far; shows itself in a terminal (`print`) and in a notebook.

    Attributes:
        path: of its folder.
        study: name of the study.
        storage: where the study is kept, without a password.
        space: what is searched, as it stands in the file.
        rows: all trials, by number.
        importance: share of each setting in what told the best trials from the others; empty if not known.
        no_importance: why it is not known.
        run_settings: what is other for a run with the best settings: where results go, what is scored.
    """

    path: Path
    study: str
    storage: str
    space: Mapping[str, Any]
    rows: tuple[TrialRow, ...]
    importance: Mapping[str, float] = field(default_factory=dict)
    no_importance: str | None = None
    run_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> TrialRow | None:
        """The trial with the highest validation accuracy; None before one is complete."""
        return best_of(self.rows)

    @property
    def failed(self) -> tuple[TrialRow, ...]:
        """The trials that failed, for other reasons than that their networks diverged."""
        return tuple(row for row in self.rows if row.status == "failed")

    @property
    def test_accuracy(self) -> float | None:
        """Of the best trial's network, with test-time augmentation; None where it is not scored here."""
        if self.best is None or self.best.run is None:
            return None
        folder = SweepFolder(self.path).run(self.best.run)
        try:
            figure = (folder.read_json(folder.result) or {}).get("test_accuracy_tta")
        except RunError:
            return None
        return float(figure) if isinstance(figure, int | float) else None

    def best_config(self) -> Config:
        """The settings of the best trial, as for any other run.

        Raises:
            RunError: no trial is complete yet.
        """
        if self.best is None:
            raise RunError(f"No trial of {self.path} is complete yet.", "Go on with it, with more --trials.")
        settings = {**self.best.settings, **self.run_settings}
        recipe = by_name(str(settings.pop("recipe")))
        return override(recipe(), settings)

    def plot_history(self) -> Figure:
        """The validation accuracy of each trial, and the best so far, a matplotlib figure."""
        from velodrome.sweeps.figures import draw_history

        return draw_history(self.rows)

    def plot_importance(self) -> Figure:
        """The share of each setting in what told the best trials from the others, a matplotlib figure."""
        from velodrome.sweeps.figures import draw_importance

        trials = sum(row.status in ("complete", "diverged", "pruned") for row in self.rows)
        return draw_importance(self.importance, trials, self.no_importance)

    def save(self) -> None:
        """Write trials.csv, the two figures and, where there is a best trial, best.yaml.

        Raises:
            RunError: something cannot be written.
        """
        from velodrome.reporting.lr_figure import save_figure

        folder = SweepFolder(self.path)
        write_atomically(folder.table, to_csv(self.rows, tuple(self.space)))
        save_figure(self.plot_history(), folder.history)
        save_figure(self.plot_importance(), folder.importance)
        if self.best is not None:
            write_atomically(folder.best, self._best_yaml(self.best))

    def _best_yaml(self, best: TrialRow) -> str:
        searched = ", ".join(f"{key} {short(value)}" for key, value in best.params.items())
        return (
            f"# The best of {len(self.rows)} trials of sweep {self.study}: trial {best.number}, "
            f"{percent(best.accuracy)} validation accuracy.\n"
            f"# Searched: {searched}.\n"
            "# With --val-fraction 0 and where there are no other validation images, all of them are trained "
            "on.\n"
            f"{to_yaml(self.best_config())}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON."""
        best = self.best
        return {
            "study": self.study,
            "storage": self.storage,
            "space": dict(self.space),
            "trials": [row.to_dict() for row in self.rows],
            "best": best and {**best.to_dict(), "test_accuracy_tta": self.test_accuracy},
            "importance": dict(self.importance),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {counts(self.rows)}",
            "",
            *table(self.rows, tuple(self.space)),
            "",
            *self._sentences(),
        ]
        return "\n".join(lines)

    def _sentences(self) -> list[str]:
        """What there is to say beside the table."""
        lines, best = [], self.best
        if best is None:
            lines.append("No trial is complete yet.")
        else:
            tested = (
                "not scored on the test images yet"
                if self.test_accuracy is None
                else f"{percent(self.test_accuracy)} of the test images with test-time augmentation"
            )
            lines += [
                f"Best: trial {best.number}, {percent(best.accuracy)} validation accuracy (flattered "
                f"by the choice), {tested}.",
                f"To train with its settings: velodrome train --config {SweepFolder(self.path).best}",
            ]
        if self.importance:
            shares = ", ".join(f"{key} {share:.0%}" for key, share in self.importance.items())
            lines.append(f"Importance: {shares}.")
        elif self.no_importance:
            lines.append(self.no_importance)
        return lines

    def _repr_html_(self) -> str:
        keys = tuple(self.space)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("trial", "status", "val acc", *keys))
        body = "".join(
            "<tr>"
            + "".join(
                f"<td>{html.escape(cell)}</td>"
                for cell in (
                    str(row.number),
                    row.status,
                    percent(row.accuracy),
                    *(short(row.params.get(key, "-")) for key in keys),
                )
            )
            + "</tr>"
            for row in best_first(self.rows)
        )
        items = "".join(f"<p>{html.escape(line)}</p>" for line in self._sentences())
        return f"<table><tr>{head}</tr>{body}</table>{items}"
