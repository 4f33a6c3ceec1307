"""What to make of a range test: LRMAX and LRMIN with how sure they are, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from velodrome.training.lr_range import FEWEST_STEPS, STEPS_PER_DECADE, Sweep
from velodrome.training.lr_rules import Fall, Suggestions, Values, fall_of, smooth, suggest
from velodrome.training.schedule import LR_MAX_OVER_MIN

# LRMAX as a multiple of what each rule finds: how far apart the two were where the best LRMAX was known, see
# benchmarks/lr_regret.md. Three opinions, because each rule alone can be off by a factor of three.
LR_MAX_OVER = {"valley": 7.0, "steepest": 2.5, "minimum": 0.5}
RULE = (
    "LRMAX is the geometric mean of three opinions: 7 x valley, 2.5 x steepest and minimum / 2. "
    f"LRMIN is LRMAX / {LR_MAX_OVER_MIN}."
)
# Opinions or repeats that differ by no more than these factors give high or medium confidence.
CLOSE, APART = 3.0, 6.0
# The noise of a step as a share of the fall, above which the curve is hard to read.
ROUGH = 0.5

Level = Literal["high", "medium", "low"]
LEVELS: tuple[Level, ...] = ("low", "medium", "high")


@dataclass(frozen=True)
class Confidence:
    """How far to trust LRMAX.

    Attributes:
        level: in a word.
        reasons: in sentences.
        rules_factor: the highest opinion over the lowest, at least 1.
        repeats_factor: the highest LRMAX of the repeats over the lowest; None with a single test.
    """

    level: Level
    reasons: tuple[str, ...]
    rules_factor: float
    repeats_factor: float | None


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a range test found. Where it refuses, there is a reason in place of the numbers.

    Attributes:
        curve: the mean of all tests, as far as all of them went.
        suggestions: by rule, None where the curve is too short to have any.
        lr_max: LRMAX, None where it refuses.
        lr_min: LRMIN, None where it refuses.
        confidence: in LRMAX, None where it refuses.
        refusal: why there is no LRMAX and what to check, "" where there is one.
    """

    curve: Sweep
    suggestions: Suggestions | None = None
    lr_max: float | None = None
    lr_min: float | None = None
    confidence: Confidence | None = None
    refusal: str = ""


def judge(sweeps: Sequence[Sweep], *, guessing: float | None = None, batches: int | None = None) -> Verdict:
    """LRMAX and LRMIN from one or more range tests over the same learning rates.

    Args:
        sweeps: at least one.
        guessing: the loss of the best answer that does not look at the input; None where it is not known.
        batches: how many different ones there are, None where that is not known.
    """
    curve = mean_of(sweeps)
    if len(curve.losses) < FEWEST_STEPS:
        return Verdict(curve, refusal=_too_short(curve))
    suggestions, fall = suggest(curve.lrs, curve.smoothed), fall_of(curve.lrs, curve.losses)
    refusal = _why_refuse(curve, fall, guessing)
    if refusal:
        return Verdict(curve, suggestions, refusal=refusal)
    lr_max = round_to_two_digits(geometric_mean(opinions(suggestions)))
    confidence = _confidence(sweeps, curve, suggestions, fall, batches)
    return Verdict(curve, suggestions, lr_max, lr_max / LR_MAX_OVER_MIN, confidence)


def mean_of(sweeps: Sequence[Sweep]) -> Sweep:
    """The mean of the curves, as far as all of them go; its ending is that of the shortest."""
    shortest = min(sweeps, key=lambda sweep: len(sweep.losses))
    steps = len(shortest.losses)
    losses: Values = np.mean([sweep.losses[:steps] for sweep in sweeps], axis=0)
    return Sweep(shortest.lrs, losses, shortest.ending)


def opinions(suggestions: Suggestions) -> list[float]:
    """What each rule says of LRMAX."""
    return [factor * getattr(suggestions, rule) for rule, factor in LR_MAX_OVER.items()]


def geometric_mean(values: Sequence[float]) -> float:
    """The number as far above the low values as below the high ones, counted in factors."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def round_to_two_digits(value: float) -> float:
    """The value to two significant digits: a range test tells no more."""
    return float(f"{value:.1e}")


def _too_short(curve: Sweep) -> str:
    """Why a curve of so few steps says nothing."""
    steps, start = len(curve.losses), f"{curve.lrs[0]:.2g}" if len(curve.lrs) else "its first value"
    what = "is no longer finite" if curve.ending == "not finite" else "has diverged"
    return (
        f"After {steps} step{'' if steps == 1 else 's'} the loss {what}, too soon to learn anything from it. "
        f"Either the test begins, at {start}, above every learning rate that works: begin lower (lr_start). "
        "Or something is wrong before training starts: check that the inputs are normalised, try fp32."
    )


def _why_refuse(curve: Sweep, fall: Fall, guessing: float | None) -> str:
    """Why no learning rate can be read from the curve, "" where one can."""
    span = f"from a learning rate of {curve.lrs[0]:.2g} to {curve.lrs[-1]:.2g}"
    if not fall.is_real and curve.ending != "completed":
        return (
            f"The loss never fell, {span}: it stayed near {fall.start:.3f}, then rose until it had diverged. "
            "Either the test begins above every learning rate that works: begin lower (lr_start). Or there "
            "is nothing to learn: check that labels belong to their images, and that no layer is frozen."
        )
    if not fall.is_real:
        return (
            f"The loss never fell, {span}: it stayed near {fall.start:.3f}, where single steps differ by "
            f"{fall.noise:.2g} anyway. Check that parameters are trained at all (not frozen, all of them in "
            "the optimizer), that labels belong to their images, and that batches are not too small; or end "
            "higher (lr_end)."
        )
    if guessing is not None and not fall.is_below(guessing):
        return (
            f"The loss fell from {fall.start:.3f} to {fall.lowest:.3f}, but not below {guessing:.3f}, which "
            "an answer gets that never looks at the image: nothing has been learned from images. Check that "
            "labels belong to their images, and that the network tells images apart; or take more steps."
        )
    return ""


def _confidence(
    sweeps: Sequence[Sweep], curve: Sweep, suggestions: Suggestions, fall: Fall, batches: int | None
) -> Confidence:
    """How sure LRMAX is: it loses a level for each thing that speaks against it."""
    said = opinions(suggestions)
    rules_factor = max(said) / min(said)
    reasons = [
        f"The rules put LRMAX between {min(said):.2g} and {max(said):.2g}, a factor of {rules_factor:.1f}."
    ]
    lost = _levels_lost(rules_factor)
    repeats_factor = None
    if len(sweeps) > 1:
        each = [_lr_max_of(sweep) for sweep in sweeps]
        found = [value for value in each if value is not None]
        repeats_factor = max(found) / min(found) if found else math.inf
        lost = max(lost, _levels_lost(repeats_factor))
        reasons.append(_about_repeats(found, len(each)))
    for sentence in _warnings(curve, fall, batches):
        reasons.append(sentence)
        lost += 1
    level = LEVELS[max(0, len(LEVELS) - 1 - lost)]
    return Confidence(level, tuple(reasons), rules_factor, repeats_factor)


def _levels_lost(factor: float) -> int:
    return 0 if factor <= CLOSE else 1 if factor <= APART else 2


def _lr_max_of(sweep: Sweep) -> float | None:
    """LRMAX of a single test, None where it is too short for one."""
    if len(sweep.losses) < FEWEST_STEPS:
        return None
    return geometric_mean(opinions(suggest(sweep.lrs, sweep.smoothed)))


def _about_repeats(found: Sequence[float], tests: int) -> str:
    if not found:
        return f"None of the {tests} tests is long enough by itself."
    factor = max(found) / min(found)
    told = f"{tests} tests" if len(found) == tests else f"{len(found)} of {tests} tests"
    return f"{told} gave LRMAX from {min(found):.2g} to {max(found):.2g}, a factor of {factor:.1f}."


def _warnings(curve: Sweep, fall: Fall, batches: int | None) -> list[str]:
    """What speaks against trusting the curve."""
    found = []
    smoothed = smooth(curve.lrs, curve.losses)
    if curve.ending == "completed" and int(smoothed.argmin()) >= len(smoothed) - 2:
        found.append(
            "The loss was still falling at the end of the range: LRMAX may be higher; end higher (lr_end)."
        )
    if int(np.argmax(smoothed < fall.start - 0.1 * (fall.start - fall.lowest))) <= 1:
        found.append("The loss fell from the first step on: LRMAX may be lower; begin lower (lr_start).")
    if fall.noise > ROUGH * (fall.start - fall.lowest):
        share = fall.noise / (fall.start - fall.lowest)
        found.append(
            f"The losses of single steps differ by {share:.0%} of the whole fall: larger batches, more steps "
            "or repeats would show it better."
        )
    steps_per_decade = 1 / float(np.diff(np.log10(curve.lrs))[0])
    if steps_per_decade < STEPS_PER_DECADE - 1e-6:
        found.append(
            f"There are only {steps_per_decade:.1f} steps to a decade of learning rates: take more steps."
        )
    if batches is not None and batches < len(curve.losses) / 4:
        again = "one batch" if batches == 1 else f"{batches} batches"
        found.append(
            f"The test saw {again} again and again: it may have learned them by heart, not what they show."
        )
    return found
