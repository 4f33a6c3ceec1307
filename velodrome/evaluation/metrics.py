"""Figures that say how good answers are."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from velodrome.errors import DataError, visible

BINS = 15  # of the reliability diagram, as in Guo et al. 2017
TOP = 5
NORMAL_975 = 1.959963984540054  # the 97.5% quantile of the normal distribution: two-sided 95% intervals

Interval = tuple[float, float]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share in [0, 1] of images whose highest logit is their label's: (N, classes), (N,) int64."""
    return float((logits.argmax(1) == labels).double().mean())


def mean_loss(logits: Tensor, labels: Tensor) -> float | None:
    """Mean cross-entropy in nats over all images, None where it is not finite: (N, classes), (N,) int64."""
    loss = float(F.cross_entropy(logits.double(), labels))
    return loss if math.isfinite(loss) else None


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose highest probability lies in (low, high].

    Attributes:
        low: in [0, 1), not included itself.
        high: in (0, 1].
        images: how many they are.
        confidence: mean of their highest probabilities, None without images.
        accuracy: share of them that were recognised, None without images.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be trusted: of images answered with 80%, are 80% right?

    Attributes:
        ece: expected calibration error in [0, 1]: |accuracy - confidence|, averaged over all images.
        mce: maximum calibration error in [0, 1]: that of the worst bin, however few images it has.
        mean_confidence: mean of the highest probability of each image.
        bins: reliability data, 15 bins of equal width over [0, 1].

    The three figures are None where some probabilities are not finite; those images are in no bin.
    """

    ece: float | None
    mce: float | None
    mean_confidence: float | None
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class ClassFigures:
    """How one class fared.

    Attributes:
        name: of the class.
        images: that have this label.
        predicted: images that were taken for this class.
        precision: share of `predicted` that are right; None where the class was never predicted.
        recall: share of `images` that were recognised; None where the class has no images.
        f1: harmonic mean of the two, 2 right / (images + predicted); None where both of these are 0.
    """

    name: str
    images: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class MacroFigures:
    """Means over the classes that have images; a class that was never predicted has a precision of 0."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """All figures for N answered images.

    Attributes:
        classes: the names, in the order of `confusion` and `per_class`.
        images: N.
        not_finite: images whose probabilities cannot be told, because logits are NaN or infinite.
        accuracy: share in [0, 1] of images whose highest logit is their label's.
        accuracy_ci95: its 95% interval (Wilson 1927).
        accuracy_tta: accuracy with test-time augmentation, None where it was not computed.
        top5_accuracy: share whose label is among the five highest logits, None with five classes or fewer.
        nll: mean negative log-likelihood in nats, None where it is not finite.
        brier: mean over images of the sum over classes of (probability - truth)**2, in [0, 2] (Brier 1950);
            None where some probabilities are not finite.
        calibration: how far probabilities can be trusted.
        confusion: counts of images; rows are labels, columns are predictions.
        per_class: a row for each class.
        macro: means over classes.
    """

    classes: tuple[str, ...]
    images: int
    not_finite: int
    accuracy: float
    accuracy_ci95: Interval
    accuracy_tta: float | None
    top5_accuracy: float | None
    nll: float | None
    brier: float | None
    calibration: Calibration
    confusion: tuple[tuple[int, ...], ...]
    per_class: tuple[ClassFigures, ...]
    macro: MacroFigures

    def to_dict(self) -> dict[str, Any]:
        """The figures as evaluation.json has them: plain values, lists, and None where there is no number."""
        return {
            "images": self.images,
            "classes": list(self.classes),
            "accuracy": self.accuracy,
            "accuracy_ci95": list(self.accuracy_ci95),
            "accuracy_tta": self.accuracy_tta,
            "top5_accuracy": self.top5_accuracy,
            "nll": self.nll,
            "brier": self.brier,
            "calibration": asdict(self.calibration) | {"bins": [asdict(b) for b in self.calibration.bins]},
            "confusion": [list(row) for row in self.confusion],
            "per_class": [asdict(figures) for figures in self.per_class],
            "macro": asdict(self.macro),
        }

    def rows(self) -> list[tuple[str, str]]:
        """The figures in short, as a table: names and texts without control characters."""
        low, high = self.accuracy_ci95
        rows = [("accuracy", f"{self.accuracy:.2%} (95% CI {low:.2%} to {high:.2%})")]
        if self.not_finite:
            text = (
                f"{self.not_finite:,} of {self.images:,} images have no probabilities: NaN or infinite logits"
            )
            rows.insert(0, ("not finite", text))
        if self.accuracy_tta is not None:
            rows.append(("accuracy with TTA", f"{self.accuracy_tta:.2%}"))
        if self.top5_accuracy is not None:
            rows.append(("top-5 accuracy", f"{self.top5_accuracy:.2%}"))
        return [
            *rows,
            ("negative log-likelihood", _text(self.nll, "{:.4f} nats")),
            ("Brier score", _text(self.brier, "{:.4f}")),
            ("calibration error (ECE)", _text(self.calibration.ece, "{:.2%}")),
            ("worst class", self._class_text(min)),
            ("best class", self._class_text(max)),
            ("most frequent confusion", self._confusion_text()),
        ]

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.rows()
        )
        return f"<table>{rows}</table>"

    def _class_text(self, choose: Callable[..., tuple[float, ClassFigures]]) -> str:
        """The class whose recall is chosen, the first one of equals."""
        rated = [(figures.recall, figures) for figures in self.per_class if figures.recall is not None]
        recall, figures = choose(rated, key=lambda pair: pair[0])
        return f"{visible(figures.name)}: {recall:.1%} of {figures.images:,} recognised"

    def _confusion_text(self) -> str:
        """The most frequent pair of label and wrong prediction, the first one of equals."""
        cells = [
            (count, self.classes[label], self.classes[prediction])
            for label, row in enumerate(self.confusion)
            for prediction, count in enumerate(row)
            if label != prediction and count
        ]
        if not cells:
            return "none"
        count, label, prediction = max(cells, key=lambda cell: cell[0])
        return f"{visible(label)} taken for {visible(prediction)}: {count:,}"


def evaluate(
    logits: Tensor, labels: Tensor, classes: Sequence[str], logits_tta: Tensor | None = None
) -> Evaluation:
    """All figures of merit for the answers to a set of images, computed in float64.

    Args:
        logits: (N, classes) float, on the CPU; N at least 1. NaN counts as the highest logit, as in `argmax`.
        labels: (N,) int64, each in [0, classes).
        classes: the class names, in the order of the logits.
        logits_tta: (N, classes) float: the answers with test-time augmentation, where there are any.

    Raises:
        DataError: there are no images, or logits, labels and classes do not belong together.
    """
    _check(logits, labels, classes, logits_tta)
    logits = logits.double()
    probabilities = logits.softmax(1)
    finite = probabilities.isfinite().all(1)
    predictions = logits.argmax(1)
    right = predictions == labels
    confusion = _confusion(labels, predictions, len(classes))
    per_class = _per_class(confusion, classes)
    return Evaluation(
        classes=tuple(classes),
        images=len(labels),
        not_finite=int((~finite).sum()),
        accuracy=accuracy(logits, labels),
        accuracy_ci95=wilson_interval(int(right.sum()), len(labels)),
        accuracy_tta=None if logits_tta is None else accuracy(logits_tta, labels),
        top5_accuracy=_top_accuracy(logits, labels) if len(classes) > TOP else None,
        nll=mean_loss(logits, labels),
        brier=_brier(probabilities, labels) if finite.all() else None,
        calibration=_calibration(probabilities.amax(1), right, finite),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        per_class=per_class,
        macro=_macro(per_class),
    )


def wilson_interval(right: int, images: int) -> Interval:
    """The 95% interval of a proportion, right for small numbers and near 0 and 1 too.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    Args:
        right: in [0, images].
        images: at least 1.
    """
    z2 = NORMAL_975**2
    centre = right + z2 / 2
    spread = NORMAL_975 * math.sqrt(right * (images - right) / images + z2 / 4)
    low, high = (centre - spread) / (images + z2), (centre + spread) / (images + z2)
    # Rounding must not leave the interval without its own proportion.
    return max(0.0, min(low, right / images)), min(1.0, max(high, right / images))


def accuracy_change(
    new_right: int, new_images: int, old_right: int, old_images: int
) -> tuple[float, Interval]:
    """How far the accuracy moved between two independent sets of images, and the 95% interval of that.

    Newcombe's hybrid score interval, made of two Wilson intervals: method 10 in Newcombe, "Interval
    estimation for the difference between independent proportions", Statistics in Medicine 17 (1998), 873-890.

    Args:
        new_right: recognised among the new images, in [0, new_images].
        new_images: at least 1.
        old_right: recognised among the old images, in [0, old_images].
        old_images: at least 1.

    Returns:
        New accuracy minus old accuracy, in [-1, 1], and (low, high).
    """
    new, (new_low, new_high) = new_right / new_images, wilson_interval(new_right, new_images)
    old, (old_low, old_high) = old_right / old_images, wilson_interval(old_right, old_images)
    change = new - old
    low = change - math.hypot(new - new_low, old_high - old)
    high = change + math.hypot(new_high - new, old - old_low)
    return change, (max(-1.0, low), min(1.0, high))


def _check(logits: Tensor, labels: Tensor, classes: Sequence[str], logits_tta: Tensor | None) -> None:
    """Check that N answers to N labels were given, with a logit for each class."""
    expected = (len(labels), len(classes))
    for name, tensor in {"Logits": logits, "Logits with test-time augmentation": logits_tta}.items():
        if tensor is not None and tuple(tensor.shape) != expected:
            raise DataError(
                f"{name} have shape {tuple(tensor.shape)}, but must have a row for each of the {expected[0]} "
                f"labels and a column for each of the {expected[1]} classes.",
                "Evaluate with the images and classes that the logits answer.",
            )
    if len(labels) == 0:
        raise DataError("There are no images to evaluate.", "Give at least one image.")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"Labels lie in [{int(labels.min())}, {int(labels.max())}], but must lie in "
            f"[0, {len(classes) - 1}], one number for each class.",
            "Evaluate with the classes that the labels count.",
        )


def _confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Counts, (classes, classes) int64: rows are labels, columns are predictions."""
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)


def _top_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose label is among the five highest logits; of equal logits the first is higher."""
    ranked = logits.nan_to_num(
        nan=math.inf, posinf=math.inf, neginf=-math.inf
    )  # NaN is highest, as in argmax
    own = ranked.gather(1, labels[:, None])  # (N, 1)
    earlier = torch.arange(logits.shape[1]) < labels[:, None]
    higher = (ranked > own) | ((ranked == own) & earlier)
    return float((higher.sum(1) < TOP).double().mean())


def _brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over images of the sum over classes of the squared differences to 1 for the label, else 0."""
    truth = F.one_hot(labels, probabilities.shape[1])
    return float((probabilities - truth).square().sum(1).mean())


def _calibration(confidences: Tensor, right: Tensor, finite: Tensor) -> Calibration:
    """Reliability data over images with finite probabilities, and its figures where those are all images.

    Guo et al., "On calibration of modern neural networks", 2017 (arXiv:1706.04599); a bin has its upper edge.

    Args:
        confidences: (N,) float64, the highest probability of each image.
        right: (N,) bool.
        finite: (N,) bool, images to look at.
    """
    edges = torch.arange(BINS + 1, dtype=torch.float64) / BINS
    shown = confidences[finite]
    where = torch.bucketize(shown, edges[1:-1])
    counts = torch.bincount(where, minlength=BINS)
    confidence = torch.bincount(where, shown, minlength=BINS) / counts  # NaN in empty bins
    share = torch.bincount(where, right[finite].double(), minlength=BINS) / counts
    columns = (edges[:-1], edges[1:], counts, confidence, share)
    bins = tuple(
        ReliabilityBin(low, high, images, *((mean, accurate) if images else (None, None)))
        for low, high, images, mean, accurate in zip(*(column.tolist() for column in columns), strict=True)
    )
    if not finite.all():
        return Calibration(None, None, None, bins)
    filled = counts > 0
    gaps = (confidence - share).abs()[filled]
    ece = float((gaps * counts[filled]).sum() / len(shown))
    return Calibration(ece, float(gaps.max()), float(shown.mean()), bins)


def _per_class(confusion: Tensor, classes: Sequence[str]) -> tuple[ClassFigures, ...]:
    columns = (confusion.diagonal(), confusion.sum(1), confusion.sum(0))
    return tuple(
        ClassFigures(
            name=name,
            images=images,
            predicted=predicted,
            precision=_share(right, predicted),
            recall=_share(right, images),
            f1=_share(2 * right, images + predicted),
        )
        for name, right, images, predicted in zip(classes, *(c.tolist() for c in columns), strict=True)
    )


def _macro(per_class: Sequence[ClassFigures]) -> MacroFigures:
    present = [figures for figures in per_class if figures.images]

    def mean(values: list[float | None]) -> float:
        return sum(value or 0.0 for value in values) / len(values)

    return MacroFigures(
        precision=mean([figures.precision for figures in present]),
        recall=mean([figures.recall for figures in present]),
        f1=mean([figures.f1 for figures in present]),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _text(value: float | None, form: str) -> str:
    return "not finite" if value is None else form.format(value)
