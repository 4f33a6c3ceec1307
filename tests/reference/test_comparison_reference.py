"""The statistics of comparisons as scipy has them."""

from __future__ import annotations

import numpy as np
import pytest

from velodrome.comparison.statistics import (
    holm,
    mcnemar_p,
    paired_difference,
    unpaired_difference,
)
from velodrome.spread import incomplete_beta, t_quantile_975, t_two_sided

stats = pytest.importorskip("scipy.stats", reason="scipy comes with scikit-learn, in the extra `reference`")


@pytest.mark.parametrize("n", [2, 3, 5, 10, 100])
@pytest.mark.parametrize("shift", [0.0, 0.003, 0.1])
def test_paired_differences(n, shift):
    rng = np.random.default_rng(n)
    first = rng.normal(0.93, 0.002, n)
    second = first + rng.normal(shift, 0.001, n)
    found, expected = paired_difference(first, second), stats.ttest_rel(second, first)
    assert found.mean == pytest.approx(np.mean(second - first))
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)


@pytest.mark.parametrize("sizes", [(2, 2), (2, 7), (5, 3), (30, 40)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_unpaired_differences(sizes, spread):
    rng = np.random.default_rng(sum(sizes))
    first, second = rng.normal(0, 1, sizes[0]), rng.normal(0.5, spread, sizes[1])
    found, expected = unpaired_difference(first, second), stats.ttest_ind(second, first, equal_var=False)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.ci95 == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 10), (3, 12), (6, 5), (260, 200), (4000, 4300)])
def test_mcnemar(counts):
    total = sum(counts)
    expected = stats.binomtest(counts[0], total, 0.5).pvalue if total else 1.0
    assert mcnemar_p(*counts) == pytest.approx(expected, rel=1e-9)


def test_holm_by_its_definition():
    ps = [0.01, 0.04, 0.03, 0.005, 0.9]
    # The step-down procedure: sorted p-values against level / (m - rank), until one is above.
    for level in np.linspace(0.001, 0.999, 200):
        order = np.argsort(ps)
        rejected = set()
        for rank, index in enumerate(order):
            if ps[index] > level / (len(ps) - rank):
                break
            rejected.add(int(index))
        assert {index for index, p in enumerate(holm(ps)) if p <= level} == rejected


@pytest.mark.parametrize("degrees", [1, 1.5, 2, 7.3, 100, 1e6])
def test_students_t(degrees):
    assert t_quantile_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)
    for t in (0.0, 0.1, 2.0, 30.0):
        assert t_two_sided(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-8, abs=1e-300)


def test_the_incomplete_beta_function():
    special = pytest.importorskip("scipy.special")
    for a in (0.5, 1.0, 3.0, 40.0, 5000.0):
        for b in (0.5, 2.0, 60.0, 5000.0):
            for x in (0.0, 1e-6, 0.1, 0.5, 0.7, 0.999, 1.0):
                expected = special.betainc(a, b, x)
                assert incomplete_beta(x, a, b) == pytest.approx(expected, rel=1e-7, abs=1e-14)
