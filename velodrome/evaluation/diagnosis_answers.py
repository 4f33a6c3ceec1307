"""The rules of the diagnosis that look at the answers for the test images. Never imports torch.

A rule returns a finding, or None where nothing is the matter; it raises `CannotCheckError` where it cannot
tell.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from velodrome.evaluation.diagnosis_evidence import CannotCheckError, Evidence, Finding, Severity
from velodrome.evaluation.diagnosis_rules import (
    ENOUGH,
    HARDLY,
    LITTLE,
    alternatives,
    overfitting,
    percent,
    points,
    regularise,
)
from velodrome.evaluation.mistakes import likely_label_errors
from velodrome.run.folder import number

# How far the recall of a class may lie below the mean of the others. "cat" is 11 points behind in the
# reference on CIFAR-10, which is good to know, and 19 after three epochs, which is usual.
BEHIND, FAR_BEHIND, LOST_CLASS = 0.10, 0.25, 0.50
# The probability of seeing a class so far behind by chance, with as many classes to be the worst.
BY_CHANCE = 0.01
# Expected calibration errors of runs that went well: 0.006 to 0.02 after few epochs, 0.03 after 24; of runs
# that overfit: 0.15 to 0.4.
MISCALIBRATED, BADLY_CALIBRATED = 0.05, 0.15
# How many times the error that perfect probabilities would show on so few images.
CLEARLY = 2.0
# Labels that are doubted without being wrong: 0 to 3 of 2,000 images of drawn shapes, whose labels are right.
A_FEW = 5
# A mistake is sure where the probability of the class answered is so far above that of the label.
SURE_MARGIN = 0.5
# Share of the mistakes in which a label is so doubted: up to 3% on drawn shapes and 22 to 31% on CIFAR-10 as
# they are, 41 to 80% on shapes with 5 to 20% of the labels shuffled. As a share of all images: up to 6%, and
# 4 to 18%.
DOUBTED_MISTAKES, DOUBTED_IMAGES, MANY = 0.38, 0.03, 0.10
# A network that errs more often is not the one to doubt labels: most of those that it doubts are right.
TRUSTED = 0.70
# From this share of the test images on, duplicates move the accuracy by what settings do: a tenth of a point,
# a point.
DUPLICATES, MANY_DUPLICATES = 0.001, 0.01
# Half of a 95% interval, above which most changes of settings disappear in chance.
WIDE = 0.025
# How many times as many images the largest class must have as the smallest one, and how far accuracy must be
# from the mean recall, for the accuracy to mislead.
UNEVEN, MISLEADING = 3.0, 0.05


def class_behind(evidence: Evidence) -> Finding | None:
    """One class is recognised much less often than the others, beyond chance."""
    answers, confusion = evidence.must_have_answers(), evidence.confusion
    images, right = confusion.sum(1), confusion.diagonal()
    present = np.flatnonzero(images)
    if len(present) < 2:
        raise CannotCheckError("the test images are of fewer than two classes")
    skill = (confusion.trace() / len(answers) - evidence.chance) / (1 - evidence.chance)
    if skill < HARDLY:
        raise CannotCheckError("it recognises too little of any class")
    recalls = right / np.maximum(images, 1)
    worst = int(present[recalls[present].argmin()])
    others = float(recalls[present[present != worst]].mean())
    recall, gap = float(recalls[worst]), others - float(recalls[worst])
    # That the worst of many classes is behind is no surprise.
    surprise = len(present) * _chance_of_at_most(int(right[worst]), int(images[worst]), others)
    if gap < BEHIND or surprise > BY_CHANCE:
        return None
    wrong = confusion[worst].copy()
    wrong[worst] = 0
    mostly, name = int(wrong.argmax()), short(answers.classes[worst])
    taken_for = short(answers.classes[mostly])
    return Finding(
        "class_behind",
        "note" if gap < FAR_BEHIND or skill < LITTLE else "problem" if gap >= LOST_CLASS else "warning",
        f"The class {name} is behind the others",
        f"Of {images[worst]:,} images of {name}, {percent(recall)} are recognised; the mean of the other "
        f"classes is {percent(others)} (rule: at least {points(BEHIND)} points behind, and by chance in less "
        f"than {BY_CHANCE:.0%} of cases). {wrong[mostly]:,} are taken for {taken_for}, the most frequent "
        "mistake.",
        f"Look at the images of {name} that are taken for {taken_for}: are their labels right, and can you "
        f"tell the two apart? More training images of {name} help most.",
        {
            "recall": recall,
            "mean_of_others": others,
            "images": int(images[worst]),
            "taken_for": int(wrong[mostly]),
        },
    )


def _chance_of_at_most(hits: int, n: int, share: float) -> float:
    """That of n images no more than `hits` are recognised, where a share is on average (binomial)."""
    if share >= 1:
        return float(hits >= n)
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(share)
        + (n - k) * math.log1p(-share)
        for k in range(hits + 1)
    )
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def calibration(evidence: Evidence) -> Finding | None:
    """The probabilities are not as often right as they say."""
    ece, accuracy = evidence.evaluated("calibration", "ece"), evidence.evaluated("accuracy")
    confidence = evidence.evaluated("calibration", "mean_confidence")
    is_over, smoothing = confidence > accuracy, evidence.setting("label_smoothing")
    by_chance = _ece_by_chance(evidence)
    if ece < MISCALIBRATED or ece < CLEARLY * by_chance:
        return None
    if evidence.skill < HARDLY:
        raise CannotCheckError("it has learned too little for its probabilities to matter")
    if not is_over and smoothing == 0 and evidence.skill < ENOUGH:
        return None  # a run that ends early is not sure yet; `underfitting` says so
    return Finding(
        "calibration",
        _calibration_severity(ece, is_over=is_over),
        f"It is {'surer' if is_over else 'less sure'} of its answers than it should be",
        f"Its answers have a probability of {percent(confidence)} on average, and {percent(accuracy)} of "
        f"them are right. The expected calibration error is {ece:.3f} (rule: at least {MISCALIBRATED:g}, and "
        f"{CLEARLY:g} times the {by_chance:.3f} that chance gives with so many images).",
        _advice_to_calibrate(evidence, smoothing, is_over=is_over),
        {"ece": ece, "ece_by_chance": by_chance, "mean_confidence": confidence, "accuracy": accuracy},
    )


def _advice_to_calibrate(evidence: Evidence, smoothing: float, *, is_over: bool) -> str:
    temperature = "Without training again: divide the logits by a temperature, chosen on validation images."
    if is_over:
        flags = ["--label-smoothing 0.1"] if smoothing == 0 else []
        return f"Try {alternatives([*flags, *regularise(evidence, 2)])}. {temperature}"
    if smoothing > 0:
        return f"Label smoothing does that: try --label-smoothing {smoothing / 2:g} or 0. {temperature}"
    return f"Try a higher --epochs. {temperature}"


def _calibration_severity(ece: float, *, is_over: bool) -> Severity:
    """Too careful is harmless: it is a matter of units. Too sure misleads."""
    if not is_over:
        return "note"
    return "problem" if ece >= BADLY_CALIBRATED else "warning"


def _ece_by_chance(evidence: Evidence) -> float:
    """The calibration error that perfect probabilities would show on so few images, on average.

    In a bin of n images of confidence p the accuracy is off by sqrt(2/pi) standard errors on average.
    """
    parts: list[float] = []
    images = 0.0
    bins: Any = ((evidence.evaluation or {}).get("calibration") or {}).get("bins")
    for part in bins if isinstance(bins, list) else []:
        found = part if isinstance(part, dict) else {}
        n, p = number(found.get("images")), number(found.get("confidence"))
        if n and p is not None:
            images += n
            parts.append(math.sqrt(n * max(0.0, p * (1 - p))))
    if not images:
        raise CannotCheckError("evaluation.json has no reliability data")
    return math.sqrt(2 / math.pi) * math.fsum(parts) / images


def label_noise(evidence: Evidence) -> Finding | None:
    """Many test images look so much like another class that their labels must be doubted."""
    answers = evidence.must_have_answers()
    n, wrong = len(answers), len(answers.wrong)
    if answers.probabilities is None:
        raise CannotCheckError("probabilities.npy is missing")
    if 1 - wrong / n < TRUSTED:
        raise CannotCheckError(f"with {percent(1 - wrong / n)} accuracy its doubts say little about labels")
    if overfitting(evidence) is not None:
        raise CannotCheckError("it overfits, and so is sure of its mistakes too")
    errors = likely_label_errors(answers)
    if len(errors) < A_FEW:
        return None
    doubted = sum(error.margin < -SURE_MARGIN for error in errors)
    is_noise = doubted >= DOUBTED_MISTAKES * wrong and doubted >= DOUBTED_IMAGES * n
    severity: Severity = "problem" if doubted >= MANY * n else "warning"
    title = "Many labels are likely wrong" if is_noise else "Some labels are worth a look"
    which = "all" if doubted == len(errors) else f"{doubted:,}"
    more = (
        "The training images are likely to have such labels too."
        if is_noise
        else "Many others are merely hard."
    )
    return Finding(
        "label_noise",
        severity if is_noise else "note",
        title,
        f"Test images that look like another class than their label's: {len(errors):,} of {n:,} "
        f"({percent(len(errors) / n)}). In {which} of them the other class is more than "
        f"{points(SURE_MARGIN)} points of probability ahead, which makes {doubted / wrong:.0%} of all "
        f"mistakes (rule for many wrong labels: at least {DOUBTED_MISTAKES:.0%} of the mistakes and "
        f"{DOUBTED_IMAGES:.0%} of the images).",
        f"Look at the first rows of label_errors.csv, which are the most suspicious. {more} Its column "
        "label is there to be corrected.",
        {"label_errors": len(errors), "images": n, "doubted": doubted, "mistakes": wrong},
    )


def duplicates(evidence: Evidence) -> Finding | None:
    """Test images are in the training set too."""
    if evidence.evaluation is not None and evidence.evaluation.get("duplicates", 0) is None:
        raise CannotCheckError("training and test images were not compared")
    found, images = int(evidence.evaluated("duplicates", "images")), evidence.evaluated("images")
    if found == 0:
        return None
    share = found / max(found, images)
    examples: Any = (evidence.evaluation or {})["duplicates"].get("examples")
    shown = [part for part in examples if isinstance(part, dict)] if isinstance(examples, list) else []
    pairs = ", ".join(f"{part.get('test')} = {part.get('train')}" for part in shown[:3])
    otherwise = sum(part.get("same_label") is False for part in shown)
    labelled = f" {otherwise} of the first {len(shown)} have another label there." if otherwise else ""
    return Finding(
        "duplicates",
        "problem" if share >= MANY_DUPLICATES else "warning" if share >= DUPLICATES else "note",
        "Test images are in the training set too",
        f"{found:,} of {images:,.0f} test images ({percent(share)}) are, pixel by pixel, in the training set "
        "too (rule: none)"
        + (f", for instance (test = training index) {pairs}." if pairs else ".")
        + labelled,
        f"Take them out of one of the two sets: they measure memory, and can move the accuracy by up to "
        f"{points(share)} points.",
        {"duplicates": found, "images": int(images), "share": share, "other_label": otherwise},
    )


def small_test_set(evidence: Evidence) -> Finding | None:
    """There are too few test images for the accuracy to tell settings apart."""
    low, high = (evidence.evaluated("accuracy_ci95", end) for end in (0, 1))
    images = int(evidence.evaluated("images"))
    if (high - low) / 2 <= WIDE:
        return None
    limit = "a higher --limit-test" if number(evidence.settings.get("limit_test")) else "more test images"
    return Finding(
        "small_test_set",
        "note",
        "There are few test images",
        f"With {images:,} test images the accuracy lies between {percent(low)} and {percent(high)}, which is "
        f"the 95% confidence interval (rule: at most {points(WIDE)} points to either side).",
        f"Use {limit}, or do not take smaller differences between runs for real.",
        {"images": images, "low": low, "high": high},
    )


def uneven_classes(evidence: Evidence) -> Finding | None:
    """The classes are of so different sizes that the accuracy says little about the small ones."""
    confusion = evidence.confusion
    images = confusion.sum(1)
    present = images > 0
    recall = float((confusion.diagonal()[present] / images[present]).mean())
    accuracy = float(confusion.trace() / confusion.sum())
    largest, smallest = int(images[present].max()), int(images[present].min())
    if largest < UNEVEN * smallest or abs(accuracy - recall) < MISLEADING:
        return None
    return Finding(
        "uneven_classes",
        "warning",
        "The accuracy hides how the small classes fare",
        f"The accuracy is {percent(accuracy)}, but the mean over classes is {percent(recall)} (rule: a "
        f"difference of at least {points(MISLEADING)} points). The largest class has {largest:,} test "
        f"images, the smallest {smallest:,} (rule: at least {UNEVEN:g} times as many). Always answering the "
        f"largest would be right in {percent(largest / int(images.sum()))}.",
        "Judge by the mean recall and by the table of classes, and get more images of the small classes.",
        {"accuracy": accuracy, "mean_recall": recall, "largest": largest, "smallest": smallest},
    )


def short(name: str) -> str:
    """A class name in a sentence: in one line, cut off where it is long."""
    words = " ".join(name.split())
    return words if len(words) <= 40 else f"{words[:39]}…"
