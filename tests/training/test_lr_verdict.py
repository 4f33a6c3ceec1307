"""What is made of a range test: LRMAX with its confidence, or a refusal with the right words."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from velodrome.training.lr_range import Sweep, cut
from velodrome.training.lr_rules import Values, edge, suggest
from velodrome.training.lr_verdict import (
    CALIBRATIONS,
    USUAL_DENSITY,
    Guessing,
    geometric_mean,
    judge,
    mean_of,
    opinions,
    round_to_two_digits,
    steps_per_decade,
)

LRS = np.geomspace(1e-3, 10, 90)
GUESSING = Guessing(math.log(10), 0.1)


def losses(
    lrs: Values = LRS, *, best: float = 0.3, depth: float = 0.6, noise: float = 0.02, seed: int = 0
) -> Values:
    """A fall from 2.35 to a minimum at `best`, and a steep rise behind it."""
    fall = depth / (1 + (0.15 * best / lrs) ** 1.2)
    rise = 0.4 * np.maximum(0, np.log(lrs / best)) ** 2 * (lrs / best)
    return 2.35 - fall + rise + noise * np.random.default_rng(seed).normal(size=len(lrs))


def sweep_of(values: Values, lrs: Values = LRS, **counts: int) -> Sweep:
    return replace(cut(lrs, values), **counts)


def judge_curve(values: Values, lrs: Values = LRS, adaptive: bool = False, **more):
    return judge([sweep_of(values, lrs)], adaptive=adaptive, **{"guessing": GUESSING, **more})


def test_a_clear_curve_gives_lrmax_with_confidence():
    verdict = judge_curve(losses())
    assert verdict.refusal == ""
    assert 0.08 < verdict.lr_max < 0.4
    assert verdict.lr_max / 10 * (1 - 1e-9) <= verdict.lr_min <= verdict.lr_max / 5
    assert verdict.confidence.level == "high"
    assert verdict.confidence.repeats_factor is None
    assert verdict.confidence.reasons[0].startswith("The rules put LRMAX between")


def test_lrmax_is_the_mean_of_the_opinions_and_the_rule_says_so():
    sweep = sweep_of(losses())
    found, plain = suggest(sweep.lrs, sweep.losses), CALIBRATIONS["plain"]
    said = [plain.valley * found.valley, plain.steepest * found.steepest, plain.minimum * found.minimum]
    said.append(plain.edge * edge(sweep.lrs, sweep.smoothed))
    assert opinions(sweep, plain) == pytest.approx(said, rel=0.02)
    verdict = judge([sweep], adaptive=False)
    assert verdict.lr_max == pytest.approx(np.prod(said) ** (1 / 4), rel=0.05)
    assert verdict.edge == edge(sweep.lrs, sweep.smoothed)
    assert "10 x valley, 3.8 x steepest, 0.75 x minimum and 0.13 x edge." in verdict.rule
    assert "LRMIN is LRMAX / 10" in verdict.rule


@pytest.mark.parametrize("seed", range(5))
def test_lrmax_moves_with_the_curve(seed):
    low, high = (judge_curve(losses(best=best, seed=seed)).lr_max for best in (0.1, 0.8))
    assert 4 < high / low < 16


def test_an_adaptive_optimizer_gets_a_lower_lrmax_from_the_same_curve():
    plain, adaptive = (judge_curve(losses(), adaptive=adaptive) for adaptive in (False, True))
    assert adaptive.lr_max < 0.6 * plain.lr_max
    assert "4.5 x valley" in adaptive.rule


def test_a_sparse_test_is_corrected_and_says_so():
    lrs = np.geomspace(0.006, 1.5, 20)
    sparse = sweep_of(losses(lrs), lrs)
    assert steps_per_decade(sparse) == pytest.approx(19 / math.log10(1.5 / 0.006))
    density = steps_per_decade(sparse) / USUAL_DENSITY
    uncorrected = replace(CALIBRATIONS["plain"], exponent=0.0)
    assert opinions(sparse, CALIBRATIONS["plain"])[:3] == pytest.approx(
        [density**0.5 * said for said in opinions(sparse, uncorrected)[:3]]
    )
    assert f"{10 * density**0.5:.2g} x valley" in judge([sparse], adaptive=False).rule


def test_where_the_loss_stays_below_its_start_there_is_no_edge():
    lrs = LRS[:60]
    short = sweep_of(losses()[:60], lrs)
    verdict = judge([short], adaptive=False)
    assert verdict.edge is None
    assert len(opinions(short, CALIBRATIONS["plain"])) == 3
    assert "steepest and 0.75 x minimum." in verdict.rule


def test_a_bump_on_the_way_moves_lrmax_little():
    bump = 1.2 * np.exp(-((np.log10(LRS / 0.15) / 0.1) ** 2))
    smooth, bumpy = judge_curve(losses()).lr_max, judge_curve(losses() + bump).lr_max
    assert 0.4 < bumpy / smooth < 2.5


def test_rules_that_disagree_lower_the_confidence():
    split = losses(noise=0)
    split[:60] = 2.35 - 0.2 * (np.arange(60) < 10) + np.linspace(0, 0.001, 60)
    verdict = judge_curve(split)
    if verdict.confidence:
        assert verdict.confidence.rules_factor > 3
        assert verdict.confidence.level != "high"


def test_repeats_that_disagree_lower_the_confidence_and_those_that_agree_do_not():
    alike = judge([sweep_of(losses(seed=seed)) for seed in range(3)], adaptive=False)
    assert alike.confidence.level == "high"
    assert alike.confidence.repeats_factor < 2
    apart = judge([sweep_of(losses(best=best)) for best in (0.03, 0.3, 3.0)], adaptive=False)
    assert apart.confidence.repeats_factor > 6
    assert apart.confidence.level == "low"
    assert any("3 tests gave LRMAX from" in reason for reason in apart.confidence.reasons)


def test_the_mean_of_tests_goes_as_far_as_all_of_them():
    sweeps = [sweep_of(losses(seed=seed), images=100, right=20) for seed in range(3)]
    sweeps[1] = Sweep(sweeps[1].lrs[:40], sweeps[1].losses[:40], "not finite", 50, 20)
    mean = mean_of(sweeps)
    assert (len(mean.losses), mean.ending) == (40, "not finite")
    assert mean.losses == pytest.approx(np.mean([sweep.losses[:40] for sweep in sweeps], axis=0))
    assert (mean.images, mean.right) == (83, 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"best": 30.0}, "still falling at the end of the range"),
        ({"best": 0.01}, "fell from the first step on"),
        ({"noise": 0.4, "depth": 1.0}, "losses of single steps differ by"),
    ],
    ids=str,
)
def test_what_speaks_against_a_curve_is_said_and_costs_confidence(change, words):
    verdict = judge_curve(losses(**change))
    assert any(words in reason for reason in verdict.confidence.reasons)
    assert verdict.confidence.level != "high"


def test_few_steps_to_a_decade_are_said():
    lrs = np.geomspace(1e-3, 10, 16)
    verdict = judge_curve(losses(lrs, noise=0.001), lrs)
    assert any("only 3.8 steps to a decade" in reason for reason in verdict.confidence.reasons)


@pytest.mark.parametrize(("batches", "words"), [(1, "saw one batch again"), (5, "saw 5 batches again")])
def test_batches_that_come_again_and_again_are_said(batches, words):
    verdict = judge_curve(losses(), batches=batches)
    assert any(words in reason for reason in verdict.confidence.reasons)
    assert verdict.confidence.level != "high"
    assert judge_curve(losses(), batches=90).confidence.level == "high"


# Refusals.


def refusal(values: Values, **more) -> str:
    verdict = judge_curve(values, **more)
    assert verdict.lr_max is None
    assert verdict.lr_min is None
    assert verdict.confidence is None
    return verdict.refusal


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
def test_a_loss_that_never_falls_is_refused(noise, seed):
    words = refusal(losses(depth=0.0, best=100.0, noise=noise, seed=seed))
    assert "never fell" in words
    assert "frozen" in words
    assert "labels belong to their images" in words


def test_a_start_above_divergence_is_refused():
    words = refusal(losses(depth=0.0, best=1e-3))
    assert "rose until it had diverged" in words
    assert "begin lower (lr_start)" in words


@pytest.mark.parametrize("finite", [0, 1, 5])
def test_a_loss_that_is_not_finite_from_the_start_is_refused(finite):
    values = losses()
    values[finite:] = math.nan
    words = refusal(values)
    assert f"After {finite} step" in words
    assert "no longer finite" in words
    assert "normalised" in words


def test_a_loss_that_explodes_at_once_is_refused():
    words = refusal(2.35 * 3.0 ** np.arange(90))
    assert "has diverged, too soon" in words


def test_a_fall_to_the_level_of_guessing_is_refused():
    values = losses(depth=0.0, best=100.0) + 0.1 / (1 + (LRS / 0.02) ** 2)
    words = refusal(values)
    assert "hardly better than 2.303" in words
    assert judge_curve(values - 0.3).lr_max is not None
    assert judge_curve(values, guessing=None).lr_max is not None


def test_right_answers_show_learning_where_the_loss_does_not_yet():
    values = losses(depth=0.0, best=100.0) + 0.1 / (1 + (LRS / 0.02) ** 2)
    for right, refused in ((500, True), (520, True), (700, False)):
        sweep = sweep_of(values, images=5000, right=right)
        assert (judge([sweep], adaptive=False, guessing=GUESSING).lr_max is None) == refused


def test_geometric_mean_and_rounding():
    assert geometric_mean([0.01, 1.0]) == pytest.approx(0.1)
    assert [round_to_two_digits(value) for value in (0.123, 12.6, 9.99e-4)] == [0.12, 13.0, 1e-3]
