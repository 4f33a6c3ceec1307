"""How repeated measurements spread: mean with its confidence interval, median with its range."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Figures of n measurements of the same thing, in its unit.

    Attributes:
        n: how many measurements, at least 1.
        mean: of them.
        sd: standard deviation of a single measurement (n - 1 in the denominator), None for one.
        ci95: 95% confidence interval of the mean by Student's t, None for one measurement.
        median: of them.
        min: the lowest.
        max: the highest.
    """

    n: int
    mean: float
    sd: float | None
    ci95: tuple[float, float] | None
    median: float
    min: float
    max: float


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """The spread of the values that are not None; None where there is no value at all."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, n = statistics.fmean(known), len(known)
    sd = statistics.stdev(known) if n > 1 else None
    interval = None
    if sd is not None:
        half = t_quantile_975(n - 1) * sd / math.sqrt(n)
        interval = (mean - half, mean + half)
    return Spread(n, mean, sd, interval, statistics.median(known), min(known), max(known))


def t_quantile_975(degrees: int) -> float:
    """The 97.5% quantile of Student's t with so many degrees of freedom, at least 1."""
    low, high = 1.9, 12.8  # between the normal distribution and one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_probability(middle, degrees) < 0.95 else (low, middle)
    return (low + high) / 2


def _central_probability(t: float, degrees: int) -> float:
    """P(|T| < t), exactly: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cos2, is_odd = math.cos(angle) ** 2, degrees % 2 == 1
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0 if degrees == 1 else term
    for k in range(3 if is_odd else 2, degrees - 1, 2):
        term *= (k - 1) / k * cos2
        total += term
    tail = math.sin(angle) * total
    return 2 / math.pi * (angle + tail) if is_odd else tail
