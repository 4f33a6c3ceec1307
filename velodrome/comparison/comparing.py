"""`velodrome compare`: run folders beside each other, and what can honestly be said about them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velodrome.comparison import tables
from velodrome.comparison.contrasts import Contrast, contrasts_with_baseline
from velodrome.comparison.groups import (
    Trial,
    Variant,
    differing_settings,
    effective_settings,
    find_baseline,
    sort_into_variants,
    with_names,
)
from velodrome.comparison.mistakes import (
    MOST_LISTED,
    Mistake,
    MistakesOfTwo,
    describe_mistakes,
    mistakes_of_two,
    names_of_images,
)
from velodrome.comparison.page_content import content_of
from velodrome.comparison.read_runs import TrialRun, read_runs
from velodrome.comparison.right_wrong import AnswerReader, RightWrong
from velodrome.errors import PartlyError, RunError, visible
from velodrome.reporting.comparison_page import write_comparison
from velodrome.run.folder import number

# Of more variants the first and the best others are drawn, and their mistakes listed.
MOST_SHOWN = 8
# Answers that were computed again in another precision have an accuracy that is so near, in [0, 1].
ROUNDING = 0.002


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs beside each other; shows itself in a terminal (`print`) and in a notebook.

    Attributes:
        variants: the baseline first.
        left_out: runs that are in no figure; `problem` of each says why.
        repeated: finished runs with the settings and the seed of a newer one, which counts in their place.
        notes: sentences about what to keep in mind.
    """

    variants: tuple[Variant, ...]
    left_out: tuple[TrialRun, ...] = ()
    repeated: tuple[TrialRun, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> Variant:
        """What the others are compared with."""
        return self.variants[0]

    @property
    def runs(self) -> tuple[TrialRun, ...]:
        """The runs that the figures are about."""
        return tuple(trial.run for variant in self.variants for trial in variant.trials)

    @property
    def is_across_data(self) -> bool:
        """Whether some were tested on other images than others."""
        return len({variant.test_key for variant in self.variants}) > 1

    @property
    def test_sets(self) -> tuple[str, ...]:
        """What the runs were tested on: "shapes, 200 test images"; several across data."""
        firsts = {variant.test_key: variant.trials[0] for variant in self.variants}.values()
        return tuple(f"{_data_of(trial)}, {len(trial.answers):,} test images" for trial in firsts)

    @functools.cached_property
    def differing(self) -> tuple[str, ...]:
        """The settings that are not the same in all variants."""
        return tuple(differing_settings(self.variants))

    @functools.cached_property
    def contrasts(self) -> tuple[Contrast, ...]:
        """Every variant against the baseline, in the order of the variants."""
        return contrasts_with_baseline(self.variants)

    @functools.cached_property
    def shown(self) -> tuple[Variant, ...]:
        """The variants that are drawn: all, or the baseline and the best others by test accuracy."""
        if len(self.variants) <= MOST_SHOWN:
            return self.variants
        best = sorted(self.variants[1:], key=lambda variant: -variant.accuracy)[: MOST_SHOWN - 1]
        return (self.baseline, *best)

    @functools.cached_property
    def mistakes(self) -> tuple[MistakesOfTwo, ...]:
        """What the variants that are shown and the baseline get wrong, where they have the same images."""
        return tuple(
            mistakes_of_two(variant, self.baseline)
            for variant in self.shown[1:]
            if variant.test_key == self.baseline.test_key
        )

    def listed_mistakes(self, found: MistakesOfTwo) -> tuple[tuple[Mistake, ...], tuple[Mistake, ...]]:
        """The clearest images that only the variant, and that only the baseline gets wrong."""
        images = self._images
        if images is None:
            return (), ()
        variant = next(one for one in self.variants if one.label == found.variant)
        return (
            describe_mistakes(found.only_variant[:MOST_LISTED], variant, self.baseline, images),
            describe_mistakes(found.only_baseline[:MOST_LISTED], self.baseline, variant, images),
        )

    @functools.cached_property
    def _images(self) -> Any:
        return names_of_images(self.baseline)

    def what_is_missing(self) -> PartlyError | None:
        """That not all of what was named could be compared, as an error to end with; None where all was."""
        missing = [run for run in self.left_out if run.status != "not a run"]
        if not missing:
            return None
        total = len(self.runs) + len(self.repeated) + len(missing)
        return PartlyError(
            f"{len(missing)} of {total} runs {'is' if len(missing) == 1 else 'are'} left out: "
            f"{missing[0].name} {missing[0].problem}.",
            "The figures are for the others.",
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it, in the types of JSON; of the mistakes the clearest, of many variants those shown."""
        return {
            "baseline": self.baseline.label,
            "test_sets": list(self.test_sets),
            "across_data": self.is_across_data,
            "differing": list(self.differing),
            "variants": [self._variant(variant) for variant in self.variants],
            "contrasts": [contrast.to_dict() for contrast in self.contrasts],
            "mistakes": [self._mistakes(found) for found in self.mistakes],
            "left_out": [_left_out(run) for run in self.left_out],
            "repeated": [str(run.path) for run in self.repeated],
            "notes": list(self.notes),
        }

    def _variant(self, variant: Variant) -> dict[str, Any]:
        return {
            "label": variant.label,
            "n": variant.n,
            "settings": {key: variant.settings.get(key) for key in self.differing},
            "figures": {key: found and dataclasses.asdict(found) for key, found in variant.figures.items()},
            "runs": [
                {"path": str(trial.run.path), "seed": trial.run.seed}
                | {key: trial.run.figure(key) for key in variant.figures}
                for trial in variant.trials
            ],
        }

    def _mistakes(self, found: MistakesOfTwo) -> dict[str, Any]:
        ours, theirs = self.listed_mistakes(found)
        return {
            "variant": found.variant,
            "both": found.both,
            "only_variant": len(found.only_variant),
            "only_baseline": len(found.only_baseline),
            "only_variant_images": [dataclasses.asdict(mistake) for mistake in ours],
            "only_baseline_images": [dataclasses.asdict(mistake) for mistake in theirs],
        }

    def to_csv(self) -> str:
        """One row a run, also of those that are left out: variant, what differs, seed, figures, problem."""
        return tables.to_csv(self)

    def write_page(self, path: Path | str) -> Path:
        """Write one self-contained HTML page and return where it is.

        Raises:
            RunError: it cannot be written.
        """
        return write_comparison(content_of(self), Path(path))

    def __str__(self) -> str:
        return tables.to_text(self)

    def _repr_html_(self) -> str:
        return tables.to_html(self)


def compare(
    runs: Path | str | Iterable[Path | str], *, baseline: str | None = None, across_data: bool = False
) -> Comparison:
    """Compare runs by what sets them apart; those that differ in their seed alone are one variant.

    Args:
        runs: run folders, folders that hold run folders, such as that of trials, or globs.
        baseline: what the others are compared with: name or path of a run, or settings such as "cutout=16";
            the variant of the first run without.
        across_data: take runs with other test images too; they are not compared with the baseline.

    Returns:
        All that was found. `left_out` says which runs cannot be compared, and why.

    Raises:
        RunError: there is no such run, none that can be compared, or they were tested on other images.
        ConfigError: there is no such baseline.
    """
    found = read_runs([runs] if isinstance(runs, Path | str) else runs)
    trials, left_out = _with_answers(found)
    if not trials:
        raise _nothing_left(left_out)
    if not across_data:
        _check_same_images(trials)
    trials, repeated = _newest_of_each_seed(trials)
    nameless = sort_into_variants(trials)
    variants = with_names(nameless, find_baseline(nameless, baseline))
    return Comparison(variants, tuple(left_out), tuple(repeated), tuple(_notes(variants, repeated)))


def _with_answers(runs: Sequence[TrialRun]) -> tuple[list[Trial], list[TrialRun]]:
    """The finished runs with their answers, and the runs that cannot be compared."""
    trials, left_out, reader = [], [], AnswerReader()
    for run in runs:
        if run.status != "finished":
            left_out.append(run)
            continue
        try:
            answers = reader.read(run.folder)
            _check_belongs(run, answers)
        except RunError as error:
            problem = visible(error.problem).replace(f"{run.path}/", "").rstrip(".")
            left_out.append(dataclasses.replace(run, status="damaged", problem=f"is damaged: {problem}"))
            continue
        key = f"{run.result.get('data')}:{answers.key}"
        trials.append(Trial(run, effective_settings(run), answers, key))
    return trials, left_out


def _check_belongs(run: TrialRun, answers: RightWrong) -> None:
    """Check that the answers are those of the result; another precision may have changed a few since.

    Raises:
        RunError: they are of something else, or not all there.
    """
    told, counted = run.figure("test_accuracy") or 0.0, 1 - float(answers.is_wrong.mean())
    if abs(told - counted) > ROUNDING + 2 / len(answers):
        raise RunError(
            f"predictions.csv has {counted:.2%} right answers, but result.json says {told:.2%}.",
            "velodrome evaluate makes both again.",
        )


def _nothing_left(left_out: Sequence[TrialRun]) -> RunError:
    if not left_out:
        return RunError(
            "There is no run to compare.", "Give run folders, for instance runs/quick-1 runs/quick-2."
        )
    first = left_out[0]
    rest = "" if len(left_out) == 1 else f" Nor can {len(left_out) - 1} more."
    return RunError(
        f"No run can be compared: {first.name} {first.problem}.{rest}",
        "Give runs that have finished; velodrome resume goes on with one.",
    )


def _check_same_images(trials: Sequence[Trial]) -> None:
    """Check that all runs were tested on the same images.

    Raises:
        RunError: they were not; names the difference.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.test_key, []).append(trial)
    if len(groups) == 1:
        return
    (first, *_), (second, *_), *_ = groups.values()
    data = [_data_of(trial) for trial in (first, second)]
    counts = [len(trial.answers) for trial in (first, second)]
    if data[0] != data[1]:
        what = f"on {data[0]}, {second.run.name} on {data[1]}"
    elif counts[0] != counts[1]:
        what = f"on {counts[0]:,} images of {data[0]}, {second.run.name} on {counts[1]:,}"
    else:
        what = f"on other images, or with other labels, than {second.run.name}, both of {data[0]}"
    sizes = " and ".join(f"{len(group)}" for group in groups.values())
    raise RunError(
        f"These runs have {len(groups)} different test sets ({sizes} runs): {first.run.name} was tested "
        f"{what}.",
        "Compare runs with the same test images, or add --across-data to see them beside each other.",
    )


def _data_of(trial: Trial) -> str:
    return visible(str(trial.run.result.get("data")))


def _newest_of_each_seed(trials: Sequence[Trial]) -> tuple[list[Trial], list[TrialRun]]:
    """The trials without those that a newer one repeats, and the runs of these.

    The same settings and the same seed give the same run, which must not count as two.
    """
    newest: dict[tuple[int, int | None], Trial] = {}
    variants = sort_into_variants(trials)
    of = {id(trial): number for number, variant in enumerate(variants) for trial in variant.trials}
    for trial in trials:
        key = (of[id(trial)], trial.run.seed)
        before = newest.get(key)
        if before is None or trial.run.finished_ns > before.run.finished_ns:
            newest[key] = trial
    kept = {id(trial) for trial in newest.values()}
    return [t for t in trials if id(t) in kept], [t.run for t in trials if id(t) not in kept]


def _notes(variants: Sequence[Variant], repeated: Sequence[TrialRun]) -> list[str]:
    """What to keep in mind."""
    notes = []
    runs = [trial.run for variant in variants for trial in variant.trials]
    if len({variant.test_key for variant in variants}) > 1:
        notes.append(
            "These runs were tested on different images: their accuracies stand beside each other, but a "
            "difference between them says nothing."
        )
    if len(variants) == 1:
        notes.append(
            "There is one variant only, so nothing is compared: its runs differ in their seed alone."
        )
    elif max(variant.n for variant in variants) == 1:
        notes.append("Each variant has one run only: how much of a difference the seed makes is not known.")
    if repeated:
        what = "run is" if len(repeated) == 1 else "runs are"
        names = ", ".join(run.name for run in repeated[:3]) + (", ..." if len(repeated) > 3 else "")
        notes.append(
            f"{len(repeated)} {what} left out, as a newer one has the same settings and the same "
            f"seed: {names}."
        )
    machines = {_machine(run) for run in runs}
    if len(machines) > 1:
        shown = "; ".join(sorted(machines)[:3]) + ("; ..." if len(machines) > 3 else "")
        notes.append(f"Times are from {len(machines)} kinds of machines and cannot be compared: {shown}.")
    return notes


def _machine(run: TrialRun) -> str:
    about = run.environment
    threads = number(about.get("threads"))
    return f"{visible(str(about.get('device_name') or 'unknown'))} with {threads or 0:g} threads"


def _left_out(run: TrialRun) -> dict[str, Any]:
    return {"path": str(run.path), "status": run.status, "problem": run.problem}
