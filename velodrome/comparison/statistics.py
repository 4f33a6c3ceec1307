"""Whether two recipes differ: paired and unpaired t intervals, McNemar's test, Holm's correction.

Pure Python, since the core has no scipy; `tests/reference` compares it with scipy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from velodrome.spread import incomplete_beta, t_quantile_975, t_two_sided


@dataclass(frozen=True)
class Difference:
    """A difference of two means, second minus first, in the unit of the values.

    Attributes:
        mean: of the difference.
        ci95: its 95% confidence interval; None where the values have no spread, so that none can be given.
        p: two-sided p-value of no difference; None likewise, unless the difference is 0 throughout.
    """

    mean: float
    ci95: tuple[float, float] | None
    p: float | None


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean of the differences of n pairs, n >= 2, by Student's t.

    Args:
        first: values of the first of each pair.
        second: values of the second, in the same order.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return _by_t(statistics.fmean(differences), error, len(differences) - 1)


def unpaired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The difference of two means of at least 2 values each, which may spread differently.

    Welch's t test: B. L. Welch, "The generalization of 'Student's' problem when several different population
    variances are involved", Biometrika 34 (1947).
    """
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    mean = statistics.fmean(second) - statistics.fmean(first)
    shares = [part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)]
    degrees = sum(parts) ** 2 / sum(shares) if sum(shares) else 1.0
    return _by_t(mean, math.sqrt(sum(parts)), degrees)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947); exact by the binomial distribution.

    Args:
        only_first: images that only the first network gets wrong.
        only_second: images that only the second one gets wrong.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    if 2 * fewer >= n - 1:  # as even as can be; the two tails would overlap
        return 1.0
    return min(1.0, 2 * incomplete_beta(0.5, n - fewer, fewer + 1))


def mcnemar_interval(only_first: int, only_second: int, images: int) -> tuple[float, float]:
    """95% interval of the difference of two shares of the same images, first minus second, by Wald.

    Args:
        only_first: images that count for the first share alone.
        only_second: images that count for the second alone.
        images: all of them, at least 1.
    """
    mean = (only_first - only_second) / images
    error = math.sqrt(max(0.0, (only_first + only_second) / images - mean**2) / images)
    half = statistics.NormalDist().inv_cdf(0.975) * error
    return mean - half, mean + half


def holm(ps: Sequence[float]) -> list[float]:
    """Corrected p-values, so that among all of them the chance of any false finding stays at the level.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    corrected, so_far = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        so_far = max(so_far, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = so_far
    return corrected


def _by_t(mean: float, error: float, degrees: float) -> Difference:
    if error <= 1e-12:  # nothing but rounding: without a spread there is nothing to measure the mean by
        return Difference(mean, None, 1.0 if abs(mean) <= 1e-12 else None)
    half = t_quantile_975(degrees) * error
    return Difference(mean, (mean - half, mean + half), t_two_sided(mean / error, degrees))
