"""How repeated measurements spread: mean with its confidence interval, median with its range."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

# Steps of the continued fraction of the incomplete beta function, and how near to 1 its factors come.
_MOST_STEPS, _NEAR = 10_000, 1e-15


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


def t_two_sided(t: float, degrees: float) -> float:
    """P(|T| >= |t|) of Student's t with so many degrees of freedom, above 0."""
    return incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


@functools.cache
def t_quantile_975(degrees: float) -> float:
    """The 97.5% quantile of Student's t with so many degrees of freedom, at least 1 and not always whole."""
    low, high = 1.9, 12.8  # between the normal distribution and one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_two_sided(middle, degrees) > 0.05 else (low, middle)
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1, a and b above 0.

    By its continued fraction, DLMF 8.17.22, evaluated by Lentz's method (DLMF 3.10(iii)).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction converges slowly, but that of the rest does not
        return 1.0 - incomplete_beta(1 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    """1 / (1 + d1 / (1 + d2 / (1 + ...)))."""
    tiny = 1e-300
    d = 1 / (1 - (a + b) * x / (a + 1) or tiny)
    c, value = 1.0, d
    for m in range(1, _MOST_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            value *= c * d
        if abs(c * d - 1) < _NEAR:
            break
    return value
