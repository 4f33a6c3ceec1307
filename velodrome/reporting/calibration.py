"""The reliability diagram: of the images answered with 80%, how many are right?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from velodrome.reporting import text
from velodrome.reporting.curves import Tick
from velodrome.reporting.tables import Table, listing, mapping
from velodrome.run.folder import number

# The diagram in SVG units: a square of shares, and under it the strip that counts the images of each bin.
WIDTH, HEIGHT = 400, 470
LEFT, TOP, SIDE = 52, 12, 336
STRIP_TOP, STRIP_HEIGHT = 376, 56

# Differences below this share are no more than noise to the eye.
_SMALL = 0.01


@dataclass(frozen=True)
class Bar:
    """A bin of the diagram, in SVG units.

    Attributes:
        x: its left side.
        width: of the bar.
        accuracy_y: the height of its accuracy.
        confidence_x: where its mean confidence lies, on the x axis.
        confidence_y: the height of its mean confidence, where a calibrated model would be.
        count_height: of its bar in the strip, whose scale is logarithmic.
        title: the bin in words.
        is_over: whether the model was more confident than right.
    """

    x: float
    width: float
    accuracy_y: float
    confidence_x: float
    confidence_y: float
    count_height: float
    title: str
    is_over: bool

    @property
    def gap_y(self) -> float:
        """The top of the gap between accuracy and confidence."""
        return min(self.accuracy_y, self.confidence_y)

    @property
    def gap_height(self) -> float:
        """The height of that gap."""
        return round(abs(self.accuracy_y - self.confidence_y), 1)


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be trusted.

    Attributes:
        bars: of the bins with images.
        ticks: shares from 0% to 100%, with their distance from the origin.
        sentences: what the diagram says, in words.
        ece: expected calibration error as a percentage, a dash where it is not known.
        most: images of the fullest bin.
        table: every bin with images.
    """

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    sentences: tuple[str, ...]
    ece: str
    most: str
    table: Table


@dataclass(frozen=True)
class _Bin:
    low: float
    high: float
    images: int
    confidence: float
    accuracy: float

    @property
    def name(self) -> str:
        return f"{100 * self.low:.0f} to {100 * self.high:.0f}%"

    @property
    def error(self) -> float:
        return abs(self.accuracy - self.confidence)


def read_calibration(found: Mapping[str, Any]) -> Calibration | None:
    """The part "calibration" of evaluation.json as a drawing and in words, None where it has no bins.

    Args:
        found: the JSON object; empty where there is none.
    """
    bins = [bin_ for value in listing(found.get("bins")) if (bin_ := _read_bin(mapping(value)))]
    if not bins:
        return None
    most = max(bin_.images for bin_ in bins)
    return Calibration(
        bars=tuple(_bar(bin_, most) for bin_ in bins),
        ticks=tuple(Tick(round(share * SIDE / 100, 1), f"{share}%") for share in range(0, 101, 20)),
        sentences=tuple(_sentences(found, bins)),
        ece=text.percent(found.get("ece")),
        most=text.count(most),
        table=Table(
            ("Confidence", "Images", "Mean confidence", "Accuracy", "Difference"),
            tuple(_row(bin_) for bin_ in bins),
            numbers=1,
        ),
    )


def _read_bin(value: Mapping[str, Any]) -> _Bin | None:
    """A bin with images, None for one without and for what is no bin."""
    images = number(value.get("images"))
    shares = [number(value.get(key)) for key in ("low", "high", "confidence", "accuracy")]
    inside = [share for share in shares if share is not None and 0 <= share <= 1]
    if len(inside) < 4 or images is None or images < 1 or inside[0] >= inside[1]:
        return None
    low, high, confidence, accuracy = inside
    return _Bin(low, high, int(images), confidence, accuracy)


def _bar(bin_: _Bin, most: int) -> Bar:
    return Bar(
        x=round(LEFT + bin_.low * SIDE + 1, 1),
        width=round((bin_.high - bin_.low) * SIDE - 2, 1),
        accuracy_y=_height(bin_.accuracy),
        confidence_x=round(LEFT + bin_.confidence * SIDE, 1),
        confidence_y=_height(bin_.confidence),
        count_height=round(STRIP_HEIGHT * math.log2(1 + bin_.images) / math.log2(1 + most), 1),
        title=f"Confidence {bin_.name}: {text.images(bin_.images)}, mean confidence "
        f"{text.percent(bin_.confidence)}, accuracy {text.percent(bin_.accuracy)}",
        is_over=bin_.confidence > bin_.accuracy,
    )


def _height(share: float) -> float:
    return round(TOP + (1 - share) * SIDE, 1)


def _row(bin_: _Bin) -> tuple[str, ...]:
    return (
        bin_.name,
        text.count(bin_.images),
        text.percent(bin_.confidence),
        text.percent(bin_.accuracy),
        text.points(bin_.accuracy - bin_.confidence),
    )


def _sentences(found: Mapping[str, Any], bins: Sequence[_Bin]) -> list[str]:
    images = sum(bin_.images for bin_ in bins)
    accuracy = sum(bin_.images * bin_.accuracy for bin_ in bins) / images
    confidence = number(found.get("mean_confidence"))
    if confidence is None:
        confidence = sum(bin_.images * bin_.confidence for bin_ in bins) / images
    worst = max(bins, key=lambda bin_: bin_.error)
    sentences = [_verdict(confidence, accuracy)]
    if (ece := text.percent(found.get("ece"))) != text.NONE:
        sentences.append(
            f"Expected calibration error (ECE): {ece}. So far are confidence and accuracy apart, "
            "on average over the images."
        )
    if (mce := text.percent(found.get("mce"))) != text.NONE:
        sentences.append(
            f"Maximum calibration error (MCE): {mce}, in the bin from {worst.name}, "
            f"which has {text.images(worst.images)}."
        )
    fullest = max(bins, key=lambda bin_: bin_.images)
    sentences.append(
        f"{text.percent(fullest.images / images)} of the images were answered with "
        f"a confidence of {fullest.name}."
    )
    return sentences


def _verdict(confidence: float, accuracy: float) -> str:
    figures = f"mean confidence {text.percent(confidence)}, accuracy {text.percent(accuracy)}"
    if abs(confidence - accuracy) < _SMALL:
        return f"On the whole it is as sure as it is right: {figures}."
    if confidence > accuracy:
        return f"It is surer than it is right (overconfident): {figures}."
    return f"It is less sure than it is right (underconfident): {figures}."
