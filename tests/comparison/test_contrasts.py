"""What is said about a variant: the right test for what there is, and no more than it says."""

import statistics

import pytest
from run_folders import write_run

from velodrome.comparison.comparing import compare
from velodrome.comparison.contrasts import points
from velodrome.comparison.statistics import holm, mcnemar_interval, mcnemar_p, paired_difference


def runs_of(place, name, wrong_counts, *, first_seed=0, **settings):
    for seed, count in enumerate(wrong_counts, first_seed):
        write_run(place / f"{name}-{seed}", seed=seed, wrong=range(count), **settings)


def only_contrast(place):
    (contrast,) = compare(place).contrasts
    return contrast


def test_pairs_of_the_same_seed(tmp_path):
    runs_of(tmp_path, "a", [30, 20, 10])
    runs_of(tmp_path, "b", [27, 18, 6], cutout=16)
    found = only_contrast(tmp_path)
    assert (found.method, found.pairs, found.verdict) == ("paired t", 3, "better")
    assert found.difference == pytest.approx(3 / 60)
    assert found.p == found.p_corrected == pytest.approx(0.0351, abs=1e-4)
    assert found.ci95[0] > 0
    assert found.statement == (
        "cutout=16: better than the baseline, by 5.00 points of test accuracy "
        "(95% CI +0.86 to +9.14; 3 pairs of runs with the same seed; p = 0.035)."
    )


def test_other_seeds_are_not_paired(tmp_path):
    runs_of(tmp_path, "a", [30, 20, 10])
    runs_of(tmp_path, "b", [27, 18, 6], first_seed=2, cutout=16)
    found = only_contrast(tmp_path)
    assert (found.method, found.pairs, found.verdict) == ("Welch's t", 0, "no difference shown")
    assert found.p == pytest.approx(0.73, abs=0.01)
    assert "3 runs against 3, with other seeds" in found.statement
    assert "is within what other seeds alone bring about" in found.statement
    reach = max(abs(end) for end in found.ci95)
    assert f"A true difference of up to {points(reach, sign=False)} would look like this" in found.statement


def test_all_partners_of_the_smaller_variant_are_enough_for_pairs(tmp_path):
    runs_of(tmp_path, "a", [30, 20, 10, 12])
    runs_of(tmp_path, "b", [27, 18], cutout=16)
    assert (only_contrast(tmp_path).method, only_contrast(tmp_path).pairs) == ("paired t", 2)


def test_equal_runs(tmp_path):
    runs_of(tmp_path, "a", [3, 4])
    runs_of(tmp_path, "b", [3, 4], cutout=16)
    found = only_contrast(tmp_path)
    assert (found.p, found.ci95, found.verdict) == (1.0, None, "no difference shown")
    assert "no difference at all" in found.statement


def test_a_difference_that_never_varies_is_not_judged(tmp_path):
    runs_of(tmp_path, "a", [4, 5])
    runs_of(tmp_path, "b", [3, 4], cutout=16)
    found = only_contrast(tmp_path)
    assert (found.p, found.p_corrected, found.verdict) == (None, None, "not compared")
    assert "cannot be judged" in found.statement


def test_one_run_against_one(tmp_path):
    write_run(tmp_path / "a", wrong=range(20))
    write_run(tmp_path / "b", wrong=[0, 40], cutout=16)
    found = only_contrast(tmp_path)
    assert (found.method, found.verdict, found.seeds) == ("McNemar", "better", (0, 0))
    assert (found.only_baseline_wrong, found.only_variant_wrong) == (19, 1)
    assert found.difference == pytest.approx(18 / 60)
    assert found.p == pytest.approx(mcnemar_p(19, 1))
    assert "better in one run" in found.statement
    assert "another one may turn it round" in found.statement


def test_one_run_against_several_takes_the_same_seed(tmp_path):
    runs_of(tmp_path, "a", [9, 2, 9])
    write_run(tmp_path / "b", seed=1, wrong=[0, 1], cutout=16)
    found = only_contrast(tmp_path)
    assert (found.method, found.seeds, found.difference, found.p) == ("McNemar", (1, 1), 0, 1)


def test_an_interval_stays_within_what_can_be(tmp_path):
    for seed, wrong in ((0, range(10)), (1, range(50))):
        write_run(tmp_path / f"a-{seed}", seed=seed, wrong=range(60))
        write_run(tmp_path / f"b-{seed}", seed=seed, wrong=wrong, cutout=2)
    (contrast,) = compare(tmp_path).contrasts
    assert contrast.ci95 == (-1.0, 1.0)


def test_several_comparisons_are_corrected(tmp_path):
    runs_of(tmp_path, "a", [30, 20, 10])
    for cutout in (4, 12, 16):
        runs_of(tmp_path, f"b{cutout}", [27, 18, 6], cutout=cutout)
    found = compare(tmp_path / "*").contrasts
    assert [one.p_corrected for one in found] == pytest.approx([3 * one.p for one in found])
    assert {one.verdict for one in found} == {"no difference shown"}
    assert "would count if it were the only comparison, but among 3" in found[0].statement


# The figures behind it; tests/reference has the others.


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_mcnemar_by_hand():
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == mcnemar_p(1, 0) == 1.0
    assert mcnemar_p(5, 0) == pytest.approx(2 / 32)
    assert mcnemar_p(1, 6) == pytest.approx(2 * 8 / 128)
    low, high = mcnemar_interval(30, 10, 100)
    assert (low + high) / 2 == pytest.approx(0.2)
    assert (high - low) / 2 == pytest.approx(1.959964 * (0.4 - 0.04) ** 0.5 / 10)


def test_a_pair_of_pairs_by_hand():
    found = paired_difference([0.1, 0.2], [0.2, 0.4])
    assert found.mean == pytest.approx(0.15)
    half = 12.7062 * statistics.stdev([0.1, 0.2]) / 2**0.5
    assert found.ci95 == pytest.approx((0.15 - half, 0.15 + half), abs=1e-4)
    assert found.p == pytest.approx(0.2048, abs=1e-4)
