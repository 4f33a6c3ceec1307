"""What the curve of a learning rate range test says: suggestions, and whether it says anything at all.

Plain arithmetic on a few numbers; nothing here trains. The range test is by Smith (arXiv:1506.01186);
`valley` and `slide` are rules of fastai's, `steepest` is also Lightning's and pytorch-lr-finder's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# How far apart, in decades of the learning rate, two losses are when one weighs 1/e in the mean at the other.
WIDTH = 0.2
# Losses above this many times the first ones only say that training has diverged; how far must not weigh.
CEILING = 1.25
# The noise is estimated from the differences between at least so many neighbours.
FEWEST_DIFFERENCES = 10
# A fall counts when it is this many times as large as chance makes it.
SURE = 3.0


@dataclass(frozen=True)
class Suggestions:
    """Learning rates that the curve suggests, each by a rule of its own.

    Attributes:
        valley: the middle of the longest fall.
        slide: the foot of the final rise.
        steepest: where the loss falls fastest.
        minimum_tenth: a tenth of the minimum.
        minimum: where the loss is smallest.
    """

    valley: float
    slide: float
    steepest: float
    minimum_tenth: float
    minimum: float


def suggest(lrs: Values, losses: Values) -> Suggestions:
    """All suggestions of a curve, smoothed first.

    Args:
        lrs: (S,) ascending by a constant factor, S at least 3.
        losses: (S,) finite.
    """
    smoothed = smooth(lrs, losses)
    lowest = minimum(lrs, smoothed)
    return Suggestions(
        valley=valley(lrs, smoothed),
        slide=slide(lrs, smooth(lrs, losses, ceiling=math.inf)),  # which looks for the final rise
        steepest=steepest(lrs, smoothed),
        minimum_tenth=lowest / 10,
        minimum=lowest,
    )


def running_mean(losses: Sequence[float] | Values, beta: float) -> Values:
    """Mean of the losses so far, in which the weight of a loss falls by `beta` with each step after it.

    The weights add up to 1 from the first loss on, as with Adam's moments (arXiv:1412.6980), so the start at
    zero biases nothing. It lags behind a fall; `smooth` does not, but has to know what comes after.

    Args:
        losses: (S,).
        beta: in [0, 1); 0 leaves the losses as they are.

    Returns:
        (S,) float64.
    """
    mean, means = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = beta * mean + (1 - beta) * float(loss)
        means.append(mean / (1 - beta**step))
    return np.array(means)


def smooth(lrs: Values, losses: Values, *, ceiling: float = CEILING) -> Values:
    """Mean of the losses around each learning rate; their weights fall exponentially to both sides.

    Both sides, because a mean of what went before lags: by half a decade in a test of 20 steps. The weights
    add up to 1 everywhere, so neither end is biased. Losses far above the start are cut first.

    Args:
        lrs: (S,) ascending by a constant factor.
        losses: (S,) finite.
        ceiling: losses above this many times the start are cut to there.

    Returns:
        (S,) float64.
    """
    if not len(losses):
        return losses
    start = _start(losses)
    # The ceiling lies above the start for losses below zero, too.
    return _weights(lrs) @ np.minimum(losses, start + (ceiling - 1) * abs(start))


def slopes(lrs: Values, losses: Values) -> Values:
    """Change of the loss with the natural logarithm of the learning rate, (S,), by central differences."""
    return np.asarray(np.gradient(losses, np.log(lrs)))


def minimum(lrs: Values, losses: Values) -> float:
    """The learning rate of the smallest loss."""
    return float(lrs[losses.argmin()])


def steepest(lrs: Values, losses: Values) -> float:
    """The learning rate at which the loss falls fastest, on the way to its minimum."""
    end = max(int(losses.argmin()) + 1, 2)
    return float(lrs[slopes(lrs, losses)[:end].argmin()])


def valley(lrs: Values, losses: Values) -> float:
    """The middle of the longest fall, as fastai defines it (ESRI's rule; fastai's default since 2.4).

    The longest fall is the longest subsequence of losses of which each is below the one before; the
    suggestion stands half way through it. fastai cuts the positions to whole numbers twice, and so does this.
    """
    length = [1] * len(losses)
    start = end = 0
    for i in range(1, len(losses)):
        for j in range(i):
            if losses[i] < losses[j]:
                length[i] = max(length[i], length[j] + 1)
            if length[end] < length[i]:
                end = i
                start = end - length[end]
    third = (end - start) / 3
    return float(lrs[start + int(third) + int(third / 2)])


def edge(lrs: Values, losses: Values) -> float | None:
    """The last learning rate at which the loss stands below its start; None where it stays below to the end.

    Bumps on the way, from which training recovers, do not move it as they move the minimum.
    """
    below = np.flatnonzero(losses < losses[0])
    if not len(below) or below[-1] == len(losses) - 1:
        return None
    return float(lrs[below[-1]])


def slide(lrs: Values, losses: Values, *, width: int = 15, threshold: float = 0.005) -> float:
    """The learning rate at the foot of the final rise, as fastai defines it (Novetta's rule).

    A window of `width` steps slides from the end towards the start until the slopes at its two ends are
    alike; the suggestion is the last left end before that.
    """
    gradient = np.gradient(losses)
    right, left = len(losses) - 1, len(losses) - 1 - width
    found = float(lrs[max(left, 0)])
    while left >= 0 and abs(gradient[right] - gradient[left]) > threshold:
        found = float(lrs[left])
        right, left = right - 1, left - 1
    return found


@dataclass(frozen=True)
class Fall:
    """How far the loss fell, and how much of that may be chance.

    Attributes:
        start: the level at which it began.
        lowest: the smoothed loss at its minimum.
        noise: standard deviation of the loss of one step around the curve, up to the minimum.
        error: standard error of the difference of the two levels.
    """

    start: float
    lowest: float
    noise: float
    error: float

    @property
    def is_real(self) -> bool:
        """Whether it fell, as far as one can tell."""
        # The lowest of many is low by chance too, and a fall of a few thousandths is none.
        return self.start - self.lowest > max(SURE * self.error, 0.005 * abs(self.start))

    def is_below(self, guessing: float) -> bool:
        """Whether the loss got below the level of an answer that does not look at the image."""
        return guessing - self.lowest > max(SURE * self.error, 0.005 * abs(guessing))


def fall_of(lrs: Values, losses: Values) -> Fall:
    """How far the loss fell; (S,) each, S at least 3."""
    smoothed = smooth(lrs, losses)
    lowest = int(smoothed.argmin())
    until = max(lowest + 1, FEWEST_DIFFERENCES)
    # Differences of neighbours: their spread is that of the noise, whatever the curve does.
    noise = math.sqrt(float(np.mean(np.diff(losses[:until]) ** 2)) / 2)
    weights = _weights(lrs)[lowest]
    # The variance of a median of normal values is pi / 2 times that of their mean.
    variance = math.pi / 2 / _steps_of_start(losses) + float(weights @ weights)
    return Fall(_start(losses), float(smoothed[lowest]), noise, noise * math.sqrt(variance))


def _weights(lrs: Values) -> Values:
    """The weights of all losses (columns) in the mean at each learning rate (rows): (S, S), rows sum to 1."""
    decades = np.log10(lrs)
    weights = np.exp(-np.abs(decades[:, None] - decades[None, :]) / WIDTH)
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _start(losses: Values) -> float:
    """The level at which the loss began: the median of its first steps."""
    return float(np.median(losses[: _steps_of_start(losses)]))


def _steps_of_start(losses: Values) -> int:
    return max(3, len(losses) // 10)
