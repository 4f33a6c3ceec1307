"""A variant against the baseline: the difference in test accuracy, whether it is one, and that in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from velodrome.comparison.groups import Trial, Variant
from velodrome.comparison.statistics import (
    Difference,
    holm,
    mcnemar_interval,
    mcnemar_p,
    paired_difference,
    unpaired_difference,
)
from velodrome.reporting import text

LEVEL = 0.05
# Of fewer runs each, an interval is so wide that hardly anything shows.
FEW = 3
FEW_SEEDS = " Two seeds show little; take 3 or more."
Method = Literal["paired t", "Welch's t", "McNemar", "none"]
Verdict = Literal["better", "worse", "no difference shown", "not compared"]


@dataclass(frozen=True)
class Contrast:
    """A variant against the baseline, by test accuracy.

    Attributes:
        variant: its label.
        baseline: the label of the baseline.
        method: "paired t": over pairs of runs with the same seed; "Welch's t": over runs with other seeds;
            "McNemar": one run against one, over the test images; "none": see the statement.
        verdict: at the 5% level, after the correction; with McNemar it is about the two runs alone.
        difference: test accuracy of the variant minus that of the baseline, in [-1, 1]; with McNemar that of
            the two runs, None across data.
        ci95: its 95% confidence interval, not corrected; None where there is none.
        p: two-sided p-value, None where there is none.
        p_corrected: by Holm's method, over all comparisons with the baseline.
        pairs: of runs with the same seed.
        runs: how many of the variant and of the baseline were compared.
        seeds: with McNemar, those of the variant's and of the baseline's run.
        only_variant_wrong: with McNemar, images that only the variant's run gets wrong.
        only_baseline_wrong: with McNemar, images that only the baseline's run gets wrong.
        statement: all of this in plain words.
    """

    variant: str
    baseline: str
    method: Method
    verdict: Verdict
    difference: float | None
    ci95: tuple[float, float] | None = None
    p: float | None = None
    p_corrected: float | None = None
    pairs: int = 0
    runs: tuple[int, int] = (0, 0)
    seeds: tuple[int | None, int | None] | None = None
    only_variant_wrong: int | None = None
    only_baseline_wrong: int | None = None
    statement: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All of it, in the types of JSON."""
        return dataclasses.asdict(self)


def contrasts_with_baseline(variants: Sequence[Variant]) -> tuple[Contrast, ...]:
    """Every variant against the first, in their order, p-values corrected for their number."""
    baseline, *others = variants
    found = [_contrast(baseline, variant) for variant in others]
    tested = [index for index, one in enumerate(found) if one.p is not None]
    corrected = holm([p for index in tested if (p := found[index].p) is not None])
    for index, p in zip(tested, corrected, strict=True):
        found[index] = replace(found[index], p_corrected=p)
    return tuple(_with_words(one, len(tested)) for one in found)


def _contrast(baseline: Variant, variant: Variant) -> Contrast:
    """The figures of one comparison, without verdict and words."""
    names = (variant.label, baseline.label)
    runs = (variant.n, baseline.n)
    if variant.test_key != baseline.test_key:
        return Contrast(*names, "none", "not compared", None, runs=runs)
    if min(runs) == 1:
        return _one_run_each(baseline, variant)
    ours, theirs = _accuracies(variant), _accuracies(baseline)
    common = [seed for seed in ours if seed in theirs]
    method: Method
    if len(common) == min(runs):
        method = "paired t"
        found = paired_difference([theirs[seed] for seed in common], [ours[seed] for seed in common])
        runs = (len(common), len(common))
    else:
        method, common = "Welch's t", []
        found = unpaired_difference(list(theirs.values()), list(ours.values()))
    return _of(names, method, found, runs=runs, pairs=len(common))


def _of(names: tuple[str, str], method: Method, found: Difference, **about: Any) -> Contrast:
    # Few runs that differ much give an interval beyond what accuracies can differ by.
    ci95 = found.ci95 and (max(-1.0, found.ci95[0]), min(1.0, found.ci95[1]))
    return Contrast(*names, method, "not compared", found.mean, ci95, found.p, **about)


def _accuracies(variant: Variant) -> dict[int | None, float]:
    """Test accuracy by seed."""
    return {trial.run.seed: trial.run.figure("test_accuracy") or 0.0 for trial in variant.trials}


def _one_run_each(baseline: Variant, variant: Variant) -> Contrast:
    """One run against one on the same test images; with the same seed where there are two of that kind."""
    ours, theirs = _pair_of(variant, baseline)
    only_ours = int((ours.answers.is_wrong & ~theirs.answers.is_wrong).sum())
    only_theirs = int((theirs.answers.is_wrong & ~ours.answers.is_wrong).sum())
    images = len(ours.answers)
    return Contrast(
        variant.label,
        baseline.label,
        "McNemar",
        "not compared",
        (only_theirs - only_ours) / images,
        mcnemar_interval(only_theirs, only_ours, images),
        mcnemar_p(only_ours, only_theirs),
        pairs=int(ours.run.seed == theirs.run.seed),
        runs=(1, 1),
        seeds=(ours.run.seed, theirs.run.seed),
        only_variant_wrong=only_ours,
        only_baseline_wrong=only_theirs,
    )


def _pair_of(variant: Variant, baseline: Variant) -> tuple[Trial, Trial]:
    for ours in variant.trials:
        for theirs in baseline.trials:
            if ours.run.seed == theirs.run.seed:
                return ours, theirs
    return variant.trials[0], baseline.trials[0]


# Words.


def _with_words(found: Contrast, tests: int) -> Contrast:
    verdict: Verdict = "not compared"
    if found.p is not None:
        is_one = found.p_corrected is not None and found.p_corrected < LEVEL
        higher: Verdict = "better" if (found.difference or 0) > 0 else "worse"
        verdict = higher if is_one else "no difference shown"
    named = replace(found, verdict=verdict)
    if found.method == "none":
        words = "not compared with the baseline, since it was tested on other images."
    else:
        words = (_about_two_runs if found.method == "McNemar" else _about_means)(named, tests)
    return replace(named, statement=f"{found.variant}: {words}")


def _about_means(found: Contrast, tests: int) -> str:
    difference = points(found.difference or 0.0)
    how = f"{found.runs[0]} runs against {found.runs[1]}, with other seeds"
    if found.pairs:
        how = f"{found.pairs} pairs of runs with the same seed"
    if found.p is None:
        return (
            f"{difference} of test accuracy in every one of {how}; differences that do not vary at all "
            "cannot be judged. Repeat it with more seeds or more test images."
        )
    if found.ci95 is None:
        return f"no difference at all: the same test accuracy in all of {how}."
    low, high = found.ci95
    evidence = f"95% CI {points(low, '')} to {points(high, '')}; {how}; {_p_text(found, tests)}"
    if found.verdict != "no difference shown":
        size = points(abs(found.difference or 0.0), sign=False)
        return f"{found.verdict} than the baseline, by {size} of test accuracy ({evidence})."
    if found.p < LEVEL:
        return (
            f"no difference shown. {difference} of test accuracy ({evidence}) would count if it were the "
            f"only comparison, but among {tests} such a difference turns up by chance."
        )
    reach = points(max(abs(low), abs(high)), sign=False)
    return (
        f"no difference shown. {difference} of test accuracy is within what other seeds alone bring about "
        f"({evidence}). A true difference of up to {reach} would look like this too."
        f"{FEW_SEEDS if min(found.runs) < FEW else ''}"
    )


def _about_two_runs(found: Contrast, tests: int) -> str:
    assert found.seeds is not None, "McNemar's test is about two runs"
    ours, theirs = found.seeds
    which = f"seed {ours} in both" if ours == theirs else f"seed {ours} against the baseline's seed {theirs}"
    low, high = found.ci95 or (0.0, 0.0)
    evidence = (
        f"only the baseline gets {text.images(found.only_baseline_wrong or 0)} wrong, only this one "
        f"{found.only_variant_wrong:,}; 95% CI over test images {points(low, '')} to {points(high, '')}; "
        f"McNemar {_p_text(found, tests)}"
    )
    change = points(found.difference or 0.0)
    start = f"{change} of test accuracy in one run each ({which}; {evidence})."
    if found.verdict == "no difference shown":
        return f"no difference shown. {start} Other test images alone would bring that about."
    return (
        f"{found.verdict} in one run. {start} These two networks differ, but that says nothing about other "
        "seeds: another one may turn it round. Repeat both with 3 seeds or more."
    )


def points(difference: float, unit: str = " points", *, sign: bool = True) -> str:
    """A difference of two shares in percentage points: "+0.31 points"."""
    figure = f"{100 * difference:{'+' if sign else ''}.2f}"
    return ("0.00" if figure in ("+0.00", "-0.00") else figure) + unit


def _p_text(found: Contrast, tests: int) -> str:
    """The p-value, with the corrected one where there are several tests."""
    p, corrected = found.p, found.p_corrected
    assert p is not None, "there was a test"
    if corrected is None or tests == 1:
        return _p(p)
    return f"{_p(p)}, corrected for {tests} comparisons {_p(corrected)}"


def _p(p: float) -> str:
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"
