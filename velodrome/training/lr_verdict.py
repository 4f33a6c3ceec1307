"""What to make of a range test: LRMAX and LRMIN with how sure they are, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from velodrome.training.lr_range import FEWEST_STEPS, HALF_RANGE, STEPS, STEPS_PER_DECADE, Sweep
from velodrome.training.lr_rules import SURE, Fall, Suggestions, Values, edge, fall_of, suggest
from velodrome.training.schedule import LR_MAX_OVER_MIN


@dataclass(frozen=True)
class Calibration:
    """How far LRMAX is from what each rule finds, as measured where the best LRMAX was known.

    Attributes:
        valley: LRMAX over the valley, in a test with `USUAL_DENSITY`.
        steepest: over the steepest fall.
        minimum: over the minimum.
        edge: over the learning rate at which the loss is back at its start.
        exponent: of the density, for all but the edge. With fewer steps at each learning rate the loss falls
            later, so that these rules find higher ones.
    """

    valley: float
    steepest: float
    minimum: float
    edge: float
    exponent: float


# From short runs over grids, see benchmarks/lr_regret.md and LOG.md. Several opinions, as each rule alone
# can be off by a factor of three. An optimizer that adapts the length of its steps still takes short ones
# when the test is over: its second moments remember the larger gradients of the start. So it looks more
# stable than it is.
CALIBRATIONS = {
    "plain": Calibration(valley=10.0, steepest=3.8, minimum=0.75, edge=0.13, exponent=0.5),
    "adaptive": Calibration(valley=4.5, steepest=1.6, minimum=0.33, edge=0.03, exponent=0.0),
}
# Steps to a decade of learning rates in the usual test: 90 over four decades.
USUAL_DENSITY = (STEPS - 1) / (2 * HALF_RANGE)

# Opinions or repeats that differ by no more than these factors give high or medium confidence.
CLOSE, APART = 3.0, 6.0
# The noise of a step as a share of the fall, above which the curve is hard to read.
ROUGH = 0.3

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
        edge: the last learning rate at which the smoothed loss stands below its start, None where it stays.
        lr_max: LRMAX, None where it refuses.
        rule: how LRMAX and LRMIN follow from the suggestions, in words.
        confidence: in LRMAX, None where it refuses.
        refusal: why there is no LRMAX and what to check, "" where there is one.
    """

    curve: Sweep
    suggestions: Suggestions | None = None
    edge: float | None = None
    lr_max: float | None = None
    rule: str = ""
    confidence: Confidence | None = None
    refusal: str = ""

    @property
    def lr_min(self) -> float | None:
        """LRMIN, None where it refuses."""
        return None if self.lr_max is None else self.lr_max / LR_MAX_OVER_MIN


@dataclass(frozen=True)
class Guessing:
    """What the best answer gets that never looks at the input.

    Attributes:
        loss: the entropy of the targets.
        accuracy: the share of the largest class in [0, 1]; None where nobody counts.
    """

    loss: float
    accuracy: float | None = None


def judge(
    sweeps: Sequence[Sweep],
    *,
    adaptive: bool,
    guessing: Guessing | None = None,
    batches: int | None = None,
) -> Verdict:
    """LRMAX and LRMIN from one or more range tests over the same learning rates.

    Args:
        sweeps: at least one.
        adaptive: whether the optimizer adapts the length of its steps to the gradients, as Adam does.
        guessing: what an answer gets that never looks at the input; None where it is not known.
        batches: how many different ones there are, None where that is not known.
    """
    curve = mean_of(sweeps)
    if len(curve.losses) < FEWEST_STEPS:
        return Verdict(curve, refusal=_too_short(curve))
    suggestions, fall = suggest(curve.lrs, curve.losses), fall_of(curve.lrs, curve.losses)
    back = edge(curve.lrs, curve.smoothed)
    refusal = _why_refuse(curve, fall, guessing)
    if refusal:
        return Verdict(curve, suggestions, back, refusal=refusal)
    calibration = CALIBRATIONS["adaptive" if adaptive else "plain"]
    said = opinions(curve, calibration)
    each = [geometric_mean(opinions(sweep, calibration)) for sweep in sweeps]
    return Verdict(
        curve,
        suggestions,
        back,
        lr_max=round_to_two_digits(geometric_mean(said)),
        rule=_rule(calibration, curve, back),
        confidence=_confidence(said, each, _warnings(curve, fall, batches)),
    )


def mean_of(sweeps: Sequence[Sweep]) -> Sweep:
    """The mean of the curves, as far as all of them go; its ending is that of the shortest."""
    shortest = min(sweeps, key=lambda sweep: len(sweep.losses))
    steps = len(shortest.losses)
    losses: Values = np.mean([sweep.losses[:steps] for sweep in sweeps], axis=0)
    images, right = (
        sum(getattr(sweep, count) for sweep in sweeps) // len(sweeps) for count in ("images", "right")
    )
    return Sweep(shortest.lrs, losses, shortest.ending, images, right)


def opinions(curve: Sweep, calibration: Calibration) -> list[float]:
    """What each rule says of LRMAX; the edge only where the test went beyond it."""
    found, back = suggest(curve.lrs, curve.losses), edge(curve.lrs, curve.smoothed)
    factors = _factors(curve, calibration)
    said = [factors[rule] * getattr(found, rule) for rule in ("valley", "steepest", "minimum")]
    return said if back is None else [*said, factors["edge"] * back]


def _factors(curve: Sweep, calibration: Calibration) -> dict[str, float]:
    """LRMAX over what each rule finds in a test of this density."""
    density = steps_per_decade(curve) / USUAL_DENSITY
    factor = math.pow(density, calibration.exponent)
    return {
        **{rule: factor * getattr(calibration, rule) for rule in ("valley", "steepest", "minimum")},
        # A test of fewer steps has fallen less when it comes to the edge, and is back at its start sooner.
        "edge": calibration.edge / density,
    }


def steps_per_decade(curve: Sweep) -> float:
    """How densely a test of at least two steps covers its range."""
    return 1 / float(np.diff(np.log10(curve.lrs))[0])


def _rule(calibration: Calibration, curve: Sweep, back: float | None) -> str:
    """How LRMAX and LRMIN follow from the suggestions."""
    factors = _factors(curve, calibration).items()
    *most, last = (f"{factor:.2g} x {rule}" for rule, factor in factors if rule != "edge" or back is not None)
    return f"LRMAX is the geometric mean of {', '.join(most)} and {last}. LRMIN is LRMAX / {LR_MAX_OVER_MIN}."


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


def _has_learned(curve: Sweep, fall: Fall, guessing: Guessing) -> bool:
    """Whether the answers are better than guessing, by their loss or by how many of them are right.

    The loss alone is a poor judge of a short test: it first has to fall from where an untrained network
    stands, which is above the loss of guessing.
    """
    if fall.is_below(guessing.loss):
        return True
    if not curve.images or guessing.accuracy is None:
        return False
    error = math.sqrt(guessing.accuracy * (1 - guessing.accuracy) / curve.images)
    return curve.right / curve.images - guessing.accuracy > SURE * error


def _why_refuse(curve: Sweep, fall: Fall, guessing: Guessing | None) -> str:
    """Why no learning rate can be read from the curve, "" where one can."""
    span = f"from a learning rate of {curve.lrs[0]:.2g} to {curve.lrs[-1]:.2g}"
    level = f"it stayed near {fall.start:.3f}, where the losses of single steps differ by {fall.noise:.2g}"
    if not fall.is_real and curve.ending != "completed":
        return (
            f"The loss never fell, {span}: {level}, then rose until it had diverged. Either the test begins "
            "above every learning rate that works: begin lower (lr_start). Or batches are too small to show "
            "a fall in so few steps. Or there is nothing to learn: check that labels belong to their images, "
            "and that no layer is frozen."
        )
    if not fall.is_real:
        return (
            f"The loss never fell, {span}: {level}. Check that parameters are trained at all (not frozen, "
            "all of them in the optimizer), that labels belong to their images, and that batches are not too "
            "small to show a fall in so few steps; or end higher (lr_end)."
        )
    if guessing is not None and not _has_learned(curve, fall, guessing):
        return (
            f"The loss fell from {fall.start:.3f} to {fall.lowest:.3f}, hardly better than "
            f"{guessing.loss:.3f}, the loss of an answer that never looks at the image: nothing has been "
            "learned from the images yet. Check that labels belong to their images, and that the network "
            "tells images apart; or take more steps (steps)."
        )
    return ""


def _confidence(said: Sequence[float], each: Sequence[float], warnings: Sequence[str]) -> Confidence:
    """How sure LRMAX is: it loses a level for each thing that speaks against it.

    Args:
        said: LRMAX by each rule.
        each: LRMAX by each test.
        warnings: what else speaks against it.
    """
    rules_factor = max(said) / min(said)
    reasons = [
        f"The rules put LRMAX between {min(said):.2g} and {max(said):.2g}, a factor of {rules_factor:.1f}."
    ]
    lost = _levels_lost(rules_factor)
    repeats_factor = None
    if len(each) > 1:
        repeats_factor = max(each) / min(each)
        lost = max(lost, _levels_lost(repeats_factor))
        reasons.append(
            f"{len(each)} tests gave LRMAX from {min(each):.2g} to {max(each):.2g}, a factor of "
            f"{repeats_factor:.1f}."
        )
    level = LEVELS[max(0, len(LEVELS) - 1 - lost - len(warnings))]
    return Confidence(level, (*reasons, *warnings), rules_factor, repeats_factor)


def _levels_lost(factor: float) -> int:
    return 0 if factor <= CLOSE else 1 if factor <= APART else 2


def _warnings(curve: Sweep, fall: Fall, batches: int | None) -> list[str]:
    """What speaks against trusting the curve."""
    found = []
    smoothed = curve.smoothed
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
    if steps_per_decade(curve) < STEPS_PER_DECADE - 1e-6:
        found.append(
            f"There are only {steps_per_decade(curve):.1f} steps to a decade of learning rates: take more."
        )
    if batches is not None and batches < len(curve.losses) / 4:
        again = "one batch" if batches == 1 else f"{batches} batches"
        found.append(
            f"The test saw {again} again and again: it may have learned them by heart, not what they show."
        )
    return found
