"""What came of trials: trials.json, and the comparison of all that have finished. Never imports torch."""

from __future__ import annotations

import dataclasses
import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from velodrome.comparison.comparing import Comparison, compare
from velodrome.errors import ConfigError, RunError, visible
from velodrome.run.folder import RunFolder, TrialsFolder, write_atomically, write_json
from velodrome.trial_plan import Variant

Status = Literal["open", "finished", "failed"]


@dataclass(frozen=True)
class Trial:
    """One run of the plan.

    Attributes:
        variant: its label.
        seed: of the run.
        folder: name of its run folder; a trial that failed early has none there.
        status: "open": to be made, or to be gone on with; "finished"; "failed".
        error: why it failed, None where it did not.
    """

    variant: str
    seed: int
    folder: str
    status: Status = "open"
    error: str | None = None

    @property
    def name(self) -> str:
        """The trial as it is shown: "cutout=16, seed 2"."""
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Trials:
    """Variants of a recipe, each trained with several seeds; shows itself in a terminal and in a notebook.

    Attributes:
        path: of the folder.
        settings: of the base, flat, in the types of JSON, without the seed; and the version of velodrome.
        variants: all that were asked for so far; the first is the baseline.
        trials: the runs of the plan, in the order in which they are made.
        comparison: of the finished ones; None while there are none.
        asked: the folders of the trials that were asked for; None for all.
    """

    path: Path
    settings: Mapping[str, Any]
    variants: tuple[Variant, ...] = ()
    trials: tuple[Trial, ...] = ()
    comparison: Comparison | None = None
    asked: frozenset[str] | None = None

    @property
    def failed(self) -> tuple[Trial, ...]:
        """The trials that failed, of those that were asked for."""
        asked = self.asked
        return tuple(
            trial
            for trial in self.trials
            if trial.status == "failed" and (asked is None or trial.folder in asked)
        )

    def run_folder(self, trial: Trial) -> RunFolder:
        """The folder of a trial's run, be it there or not."""
        return RunFolder(self.path / trial.folder)

    def is_finished(self, trial: Trial) -> bool:
        """Whether the run of a trial is known to be complete, and still there."""
        return trial.status == "finished" and self.run_folder(trial).is_finished

    def asked_for(self, variants: Sequence[Variant], seeds: Iterable[int]) -> tuple[Trial, ...]:
        """The trials of these variants with these seeds, one of each variant before a second of any."""
        there = {(trial.variant, trial.seed): trial for trial in self.trials}
        return tuple(
            there.get((variant.label, seed), Trial(variant.label, seed, f"{variant.slug}-seed-{seed}"))
            for seed in seeds
            for variant in variants
        )

    def with_plan(self, variants: Sequence[Variant], trials: Sequence[Trial]) -> Trials:
        """The same with what is not yet in it of some variants and trials."""
        labels = {variant.label for variant in self.variants}
        more = [variant for variant in variants if variant.label not in labels]
        folders = {trial.folder for trial in self.trials}
        new = [trial for trial in trials if trial.folder not in folders]
        return replace(self, variants=(*self.variants, *more), trials=(*self.trials, *new))

    def with_trial(self, trial: Trial) -> Trials:
        """The same with a trial in place of what was known of it."""
        return replace(
            self, trials=tuple(trial if one.folder == trial.folder else one for one in self.trials)
        )

    def compared(self) -> Trials:
        """The same with a comparison of the runs there are, the baseline first.

        Raises:
            RunError: there are finished runs, but none can be compared.
        """
        order = {variant.label: number for number, variant in enumerate(self.variants)}
        trials = sorted(self.trials, key=lambda trial: (order[trial.variant], trial.seed))
        if not any(map(self.is_finished, trials)):
            return replace(self, comparison=None)
        runs = [self.run_folder(trial).path for trial in trials if trial.status != "open"]
        # Whoever varies the test images has them side by side, marked.
        found = compare([path for path in runs if path.is_dir()], across_data=True)
        return replace(self, comparison=self._with_baseline_told(found))

    def _with_baseline_told(self, found: Comparison) -> Comparison:
        """The comparison with a note where no run of the first variant is in it."""
        of_folder = {trial.folder: trial.variant for trial in self.trials}
        compared = [of_folder[run.path.name] for run in found.runs]
        wanted = self.variants[0].label
        if wanted in compared:
            return found
        note = (
            f"No run of the variant {visible(wanted)} can be compared: what is called baseline here is "
            f"{visible(compared[0])}."
        )
        return replace(found, notes=(note, *found.notes))

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Check that these trials go on with what they were begun with.

        Raises:
            ConfigError: a setting of the base, or the version, is another; names it.
        """
        for key, now in settings.items():
            before = self.settings.get(key, now)  # a setting may be newer than the trials
            if before != now:
                raise ConfigError(
                    f"Trials {self.path} were begun with {key} {visible(str(before))}, but now it is "
                    f"{visible(str(now))}.",
                    "Use another --name, or the same as before.",
                )

    def to_dict(self) -> dict[str, Any]:
        """The content of trials.json, with the comparison where there is one."""
        return {
            "path": str(self.path),
            **self._record(),
            "comparison": self.comparison and self.comparison.to_dict(),
        }

    def _record(self) -> dict[str, Any]:
        return {
            "settings": dict(self.settings),
            "variants": [dataclasses.asdict(variant) for variant in self.variants],
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }

    def save(self) -> None:
        """Write trials.json, atomically.

        Raises:
            RunError: it cannot be written.
        """
        write_json(TrialsFolder(self.path).record, self._record())

    def save_comparison(self) -> None:
        """Write trials.csv and trials.html, where there is anything to compare.

        Raises:
            RunError: they cannot be written.
        """
        if self.comparison is not None:
            folder = TrialsFolder(self.path)
            write_atomically(folder.table, self.comparison.to_csv())
            self.comparison.write_page(folder.page)

    @classmethod
    def load(cls, path: Path) -> Trials:
        """The trials in a folder.

        Raises:
            RunError: trials.json is missing or damaged.
        """
        record = TrialsFolder(path).record
        content = RunFolder(path).read_json(record)
        try:
            if content is None:
                raise ValueError("it does not exist")
            return cls(
                path=path,
                settings=dict(content["settings"]),
                variants=tuple(Variant(**variant) for variant in content["variants"]),
                trials=tuple(Trial(**trial) for trial in content["trials"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise RunError(
                f"{record} is damaged: {problem}.", "Restore it from a copy, or use another --name."
            ) from error

    def what_failed(self) -> tuple[str, str] | None:
        """What went wrong and what to do about it, as two sentences; None where nothing did."""
        if not self.failed:
            return None
        names = "; ".join(trial.name for trial in self.failed[:3]) + ("; ..." if len(self.failed) > 3 else "")
        reason = visible(str(self.failed[0].error)).rstrip(".")
        return (
            f"{len(self.failed)} of {len(self.trials)} trials failed ({names}): {reason}.",
            f"All is in {self.path}; the same command with --name {shlex.quote(self.path.name)} tries them "
            "again.",
        )

    def where(self) -> str:
        """Where everything is, and how to look at it."""
        page = TrialsFolder(self.path).page
        look = f" Look at it: python3 -m webbrowser {shlex.quote(str(page))}" if self.comparison else ""
        return f"Everything is in {self.path}.{look}"

    def __str__(self) -> str:
        return "No trial has finished." if self.comparison is None else str(self.comparison)

    def _repr_html_(self) -> str:
        failed = self.what_failed()
        words = f"<p>{html.escape(failed[0])}</p>" if failed else ""
        return (self.comparison._repr_html_() if self.comparison else f"<p>{self}</p>") + words
