"""The rules of the diagnosis that look at how training went. Never imports torch.

A rule returns a finding, or None where nothing is the matter; it raises `CannotCheckError` where it cannot
tell. Thresholds were set on runs whose state was known: grids of learning rates, the reference, runs of few
epochs, of few images, without augmentation, with a bad start.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from velodrome.evaluation.diagnosis_evidence import (
    CannotCheckError,
    Evidence,
    Finding,
    Floats,
    moving_mean,
)
from velodrome.run.folder import number

# Training accuracy is measured on augmented images, so a healthy run has a small gap: 4.6 points after 24
# epochs of the reference on CIFAR-10. Without augmentation, on 4,000 or 12,000 of its images, it is 38 or 24.
GAP, WIDE_GAP = 0.08, 0.20
# In one-cycle the accuracy on new images swings by 10 points while the learning rate is high; not so often.
GAP_EPOCHS = 3
# How many standard errors of the accuracy a gap must be, to be no chance of a few images.
SURE = 3.0
# The loss on new images swings by less at the end of a run, where the learning rate is low.
LOSS_RISE = 0.10
# In fewer epochs a rise cannot be told from a swing.
FEWEST_EPOCHS = 6

# Skill: accuracy counted from guessing (0) to all right (1). Three epochs of the reference on CIFAR-10 come
# to 0.82, 24 to 0.97; what has less than a quarter has hardly learned.
HARDLY, LITTLE, ENOUGH = 0.25, 0.60, 0.90
# How much lower the mean loss of the last fifth of the steps must be than that of the fifth before. Even the
# quick recipe on drawn shapes, which is done after 5 epochs, falls by more.
STILL_FALLING = 0.05

# In the grids of benchmarks/lr_regret.md, five times the best LRMAX or a fifth of it costs 2 to 15 points; a
# factor of three costs hardly any.
FAR_OFF = 5.0
# What suits a run depends on batch size, network and images by a factor of two or so.
FAR_BEYOND_DOUBT = 10.0
# The loss of guessing is where untrained networks stand, within 5%; runs that go well never rise above that.
BLOWN_UP = 1.5
# Blown up for this share of all steps, a run is spoilt rather than delayed.
LONG = 0.3
# A rise by this share of the loss of guessing takes back what was learned. Runs that go well rise by 0.3 of
# it at most, with a constant learning rate on few images; 0.1 to 0.2 is usual.
LOST = 0.5
# An unstable start is this far above the loss of guessing and takes so many steps; it is grave where it takes
# that share of all steps. Runs that go well stay below 1.05, a bad initialisation alone is over in 10 steps.
UNSTABLE, UNSTABLE_STEPS, COSTLY = 1.25, 20, 0.05


def overfitting(evidence: Evidence) -> Finding | None:
    """Training images are answered much better than new ones, or the loss on new ones rises again."""
    train, new, name = evidence.train_accuracies, evidence.held_out.accuracies, evidence.held_out.name
    gap, images = float((train - new)[-GAP_EPOCHS:].min()), evidence.held_out.images
    error = math.sqrt(new[-1] * (1 - new[-1]) / images) if images else 0.0
    is_wide = gap > GAP and gap > SURE * error
    rise = _loss_rise(evidence)
    if not is_wide and rise is None:
        return None
    last = float(train[-1] - new[-1])
    sentences = [
        f"Train accuracy {percent(train[-1])}, {name} accuracy {percent(new[-1])}: a gap of {points(last)} "
        f"points (rule: above {points(GAP)} in each of the last {min(GAP_EPOCHS, len(new))} epochs). Train "
        "accuracy is measured on augmented images as they are met, so that a small gap or none is normal."
    ]
    numbers = {"train_accuracy": float(train[-1]), f"{name}_accuracy": float(new[-1]), "gap": last}
    if rise is not None:
        sentences.append(
            f"The {name} loss rose by {rise.share:.0%}, from {rise.lowest:.3g} about epoch {rise.epoch} to "
            f"{rise.last:.3g} at the end, while the train loss fell (rule: more than {LOSS_RISE:.0%}, in "
            "medians of 3 epochs)."
        )
        numbers |= {"lowest_loss": rise.lowest, "last_loss": rise.last}
    limit = number(evidence.settings.get("limit_train"))
    more = f" (--limit-train is {limit:.0f})" if limit else ""
    advice = f"Try {alternatives(regularise(evidence))}. More training images help most{more}."
    if name == "test":
        advice += (
            " Compare settings on images held out with --val-fraction 0.1: what is chosen by test images "
            "looks better on them than it is."
        )
    return Finding(
        "overfitting",
        "problem" if is_wide and gap > WIDE_GAP else "warning",
        "It fits the training images better than new ones",
        " ".join(sentences),
        advice,
        numbers,
    )


@dataclass(frozen=True)
class _Rise:
    """Of the loss on new images: the lowest median of 3 epochs, about which epoch, and the last median."""

    lowest: float
    epoch: int
    last: float

    @property
    def share(self) -> float:
        return self.last / self.lowest - 1


def _loss_rise(evidence: Evidence) -> _Rise | None:
    """How far the loss on new images rose while the train loss fell; None where it did not by much.

    Before the end of training it is not looked at: while the learning rate is high it swings.
    """
    losses, train = evidence.held_out.losses, evidence.column("train_loss")
    if not evidence.is_complete or len(losses) < FEWEST_EPOCHS or np.isnan([losses, train]).any():
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, 3), axis=1)
    best = int(medians.argmin())
    rise = _Rise(float(medians[best]), best + 2, float(medians[-1]))
    limit = (1 + LOSS_RISE) * rise.lowest
    is_real = rise.lowest > 0 and rise.last > limit and losses[-1] > limit and train[-1] < train[best + 1]
    return rise if is_real else None


def underfitting(evidence: Evidence) -> Finding | None:
    """The run ends before it has learned what there is to learn."""
    evidence.must_be_complete()
    skill = evidence.skill
    fall = _last_fall(evidence.curve.losses)
    if skill >= ENOUGH or (skill >= LITTLE and fall < STILL_FALLING):
        return None  # what has settled so high may be as good as these images allow
    name, train = evidence.held_out.name, float(evidence.train_accuracies[-1])
    new = float(evidence.held_out.accuracies[-1])
    fell = f"fell by {fall:.0%}" if fall >= 0.005 else "did not fall"
    is_falling = fall >= STILL_FALLING
    title = "It could learn more" if is_falling else "It learned little, and has come to a halt"
    return Finding(
        "underfitting",
        "problem" if skill < HARDLY else "warning" if skill < LITTLE else "note",
        "It has hardly learned anything" if skill < HARDLY else title,
        f"Train accuracy {percent(train)}, {name} accuracy {percent(new)}: {max(0.0, skill):.0%} of the way "
        f"from guessing ({percent(evidence.chance)}) to all right (rule: below {ENOUGH:.0%}). Over the last "
        f"fifth of the steps the train loss {fell} (rule: from {STILL_FALLING:.0%} on it is still falling).",
        _advice_to_learn(evidence, is_falling=is_falling),
        {"train_accuracy": train, f"{name}_accuracy": new, "skill": skill, "last_fall": fall},
    )


def _last_fall(losses: Floats) -> float:
    """How much lower the mean loss of the last fifth of the steps is than that of the fifth before."""
    fifth = len(losses) // 5
    before, last = losses[-2 * fifth : -fifth].mean(), losses[-fifth:].mean()
    return float(1 - last / before) if before > 0 else 0.0


def _advice_to_learn(evidence: Evidence, *, is_falling: bool) -> str:
    if any(rule(evidence) for rule in (lr_too_high, lr_too_low)):
        return "Mend the learning rate first, then look again."
    width = evidence.setting("width")
    wider = [f"--width {2 * width:.0f}"] if width else []
    if is_falling:
        return f"Try {alternatives([f'--epochs {2 * evidence.epochs}', *wider])}."
    limits = {"dropout": 0.0, "l1": 0.0, "weight_decay": 1e-3, "cutout": 0.0}
    weaker = [f"{flag(key)} {limit:g}" for key, limit in limits.items() if evidence.setting(key) > limit]
    check = "More epochs alone would not help. Check that the labels belong to their images"
    return f"{check}; then try {alternatives([*weaker, *wider])}." if weaker or wider else f"{check}."


def lr_too_high(evidence: Evidence) -> Finding | None:
    """The loss is no longer finite, blew up and stayed there, or rose again after it had fallen."""
    reason = str((evidence.stopped or {}).get("reason"))
    if "not finite" in reason:
        return _too_high(evidence, f"{reason} Rule: every loss and every weight is finite.")
    curve = evidence.curve
    peak, level = float(curve.smoothed.max()), curve.level
    if peak > BLOWN_UP * level and curve.above_level > LONG:
        return _too_high(
            evidence,
            f"The train loss rose to {peak:.3g}, and in {curve.above_level:.0%} of the steps it stood above "
            f"{level:.3g}, the loss of guessing (rule: a loss above {BLOWN_UP:g} times that, and more than "
            f"{LONG:.0%} of the steps).",
            peak_loss=peak,
            above_guessing=curve.above_level,
        )
    if curve.rise > LOST * level:
        return _too_high(
            evidence,
            f"After it had fallen, the train loss rose again by {curve.rise:.3g} (rule: more than "
            f"{LOST * level:.3g}, which is {LOST:g} times the loss of guessing).",
            rise=curve.rise,
        )
    return _far_above_usual(evidence)


def _far_above_usual(evidence: Evidence) -> Finding | None:
    usual, factor, curve = evidence.usual_lr, evidence.lr / evidence.usual_lr.lr, evidence.curve
    if factor >= FAR_OFF and evidence.is_complete and evidence.skill < LITTLE:
        return _too_high(
            evidence,
            f"LRMAX was {evidence.lr:g}, {times(factor)} times {usual.lr:g}, {usual.source}. The train loss "
            f"ended at {curve.smoothed[-1]:.3g}, where guessing has {curve.level:.3g}, and "
            f"{max(0.0, evidence.skill):.0%} of the way from guessing to all right was learned (rule: at "
            f"least {FAR_OFF:g} times, and less than {LITTLE:.0%}).",
            is_sure=factor >= FAR_BEYOND_DOUBT,
            factor=factor,
            last_loss=float(curve.smoothed[-1]),
        )
    return None


def _too_high(evidence: Evidence, sentence: str, *, is_sure: bool = True, **numbers: float) -> Finding:
    lr, usual = evidence.lr, evidence.usual_lr.lr
    lower = usual if usual <= lr / 2 else lr / FAR_OFF
    advice = f"Try --lr {lower:.1g}"
    if evidence.lr_find is None:
        advice += ", or leave --lr out, so that a range test finds it"
    if evidence.settings.get("precision") in ("fp16", "bf16"):
        advice += "; if that does not help, --precision fp32"
    return Finding(
        "lr_too_high",
        "problem" if is_sure else "warning",
        "The learning rate is too high" if is_sure else "The learning rate may be too high",
        sentence,
        f"{advice}.",
        {"lr": lr, **numbers},
    )


def lr_too_low(evidence: Evidence) -> Finding | None:
    """The learning rate is far below that of the range test, or the usual one, and little was learned."""
    evidence.must_be_complete()
    usual, curve, skill = evidence.usual_lr, evidence.curve, evidence.skill
    factor = usual.lr / evidence.lr
    if factor < FAR_OFF or skill >= ENOUGH or curve.smoothed.max() > BLOWN_UP * curve.level:
        return None
    advice = f"Try --lr {usual.lr:g}"
    if evidence.lr_find is None:
        advice += ", or leave --lr out, so that a range test finds it"
    is_sure = skill < LITTLE and factor >= FAR_BEYOND_DOUBT
    return Finding(
        "lr_too_low",
        "problem" if is_sure else "warning" if skill < LITTLE else "note",
        "The learning rate is too low" if is_sure else "The learning rate may be too low",
        f"LRMAX was {evidence.lr:g}, {times(factor)} times less than {usual.lr:g}, {usual.source}. In "
        f"{len(curve.losses):,} steps the train loss went from {curve.smoothed[0]:.3g} to "
        f"{curve.smoothed[-1]:.3g}, and {max(0.0, skill):.0%} of the way from guessing to all right was "
        f"learned (rule: at least {FAR_OFF:g} times, and less than {ENOUGH:.0%}).",
        f"{advice}.",
        {"lr": evidence.lr, "factor": factor, "skill": skill, "last_loss": float(curve.smoothed[-1])},
    )


def unstable_start(evidence: Evidence) -> Finding | None:
    """The loss of the first steps rises far above that of guessing, and takes long to come back."""
    curve = evidence.curve
    losses = moving_mean(curve.losses, 5)
    first = losses[: len(losses) // 3]
    peak = int(first.argmax())
    back = np.flatnonzero(losses[peak:] < curve.level)
    steps = peak + int(back[0]) if len(back) else len(losses)
    if first[peak] <= UNSTABLE * curve.level or steps < UNSTABLE_STEPS or lr_too_high(evidence):
        return None
    share = steps / len(losses)
    lr_min = number(evidence.settings.get("lr_min"))
    softer = (
        [f"--lr-min {lr_min / 3:.1g}"] if lr_min and evidence.settings.get("schedule") == "one-cycle" else []
    )
    return Finding(
        "unstable_start",
        "warning" if share >= COSTLY else "note",
        "Training starts unstably",
        f"In the first {steps} steps, {share:.1%} of all, the train loss did not fall below "
        f"{curve.level:.3g}, the loss of guessing, and rose to {first[peak]:.3g} (rule, on means of 5 steps: "
        f"{UNSTABLE_STEPS} steps or more, and above {UNSTABLE:g} times that loss).",
        f"Try {alternatives([*softer, f'--lr {evidence.lr / 2:.1g}', 'a larger --batch-size'])}.",
        {"peak_loss": float(first[peak]), "steps": steps, "share_of_steps": share},
    )


def stopped_early(evidence: Evidence) -> Finding | None:
    """Training ended before its last epoch, or before its results were written."""
    if evidence.live:
        raise CannotCheckError("the run is still going on")
    if evidence.result is not None:
        return None
    done, planned = len(evidence.history), evidence.epochs
    reason = (evidence.stopped or {}).get("reason")
    if reason is None:
        why = "The log does not say why: it was killed, or the machine went down."
    elif "not finite" in str(reason):
        why = f"{str(reason).rstrip('.')}."
    else:
        why = f"It was stopped by {reason}."
    step = number((evidence.stopped or {}).get("step"))
    at = f" and stopped at step {step:,.0f}" if step is not None else ""
    if "not finite" in str(reason):
        advice = "Going on would end in the same way: see what is said of the learning rate."
    else:
        advice = f"Go on where it stopped: velodrome resume {shlex.quote(str(evidence.path))}"
    return Finding(
        "stopped_early",
        "warning",
        "The run did not come to its end",
        f"It trained {done} of {planned} epochs{at}. {why} Rule: a complete run has all its epochs and a "
        "result.json.",
        advice,
        {"epochs": done, "planned_epochs": planned},
    )


def regularise(evidence: Evidence, most: int = 4) -> list[str]:
    """Flags that make a run fit its training images less, those that help most first."""
    decay = evidence.setting("weight_decay")
    # Decoupled weight decay is multiplied by the learning rate, which is lower with adamw.
    strong = 1e-2 if evidence.settings.get("optimizer") == "adamw" else 1e-3
    cutout, width = evidence.setting("cutout"), evidence.setting("width")
    choices = [
        ("--crop 4", evidence.setting("crop", 4) == 0),
        ("--flip (where a mirrored image keeps its class)", evidence.settings.get("flip") is False),
        (f"--cutout {8 if cutout < 8 else 12}", cutout < 12),
        (f"--weight-decay {5e-4 if decay < 5e-4 < strong else strong:g}", decay < strong),
        ("--dropout 0.2", evidence.setting("dropout") < 0.2),
        (f"--width {width / 2:.0f}", width >= 16),
    ]
    return [words for words, is_open in choices if is_open][:most] or ["fewer --epochs"]


def alternatives(words: Sequence[str]) -> str:
    """A, B or C."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def flag(key: str) -> str:
    """A setting as a command line flag."""
    return "--" + key.replace("_", "-")


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage."""
    return f"{100 * share:.1f}%"


def times(factor: float) -> str:
    """A factor: 5.3, 12, 1,000."""
    return f"{factor:.2g}" if factor < 10 else f"{factor:,.0f}"


def points(share: float) -> str:
    """A difference of shares in percentage points, without the unit."""
    return f"{100 * share:.1f}".removesuffix(".0")
