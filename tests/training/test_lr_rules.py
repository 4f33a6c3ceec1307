"""What is read from curves whose answer is known: made from a formula, and hidden in noise 200 times over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from velodrome.training.lr_rules import (
    CEILING,
    WIDTH,
    Suggestions,
    Values,
    fall_of,
    minimum,
    running_mean,
    slide,
    slopes,
    smooth,
    steepest,
    suggest,
    valley,
)

Rule = Callable[[Values, Values], float]

SEEDS = range(200)
LEVEL, DEPTH, CENTRE = 2.3, 1.0, 0.02
KNEE = 1.0
LENGTHS = [90, 20]


def lrs_of(steps: int) -> Values:
    """What a test of so many steps with SGD goes through."""
    half = min(2.0, (steps - 1) / 16)
    return np.geomspace(0.1 * 10**-half, 0.1 * 10**half, steps)


def fall_and_rise(lrs: Values) -> Values:
    """Flat, then a fall around CENTRE (logistic in the logarithm), then a rise as a power of the lr."""
    return LEVEL - DEPTH / (1 + (CENTRE / lrs) ** 2) + 0.3 * lrs**1.5


def flat_bottom(lrs: Values) -> Values:
    """A fall that is over well before KNEE, where a quadratic rise begins."""
    return LEVEL - DEPTH / (1 + (0.01 / lrs) ** 2) + 1.5 * np.maximum(0, np.log10(lrs / KNEE)) ** 2


def noisy(losses: Values, noise: float) -> Iterator[Values]:
    for seed in SEEDS:
        yield losses + noise * np.random.default_rng(seed).standard_normal(len(losses))


def lowest_of(curve: Callable[[Values], Values]) -> float:
    fine = np.geomspace(1e-3, 10, 40_001)
    return float(fine[curve(fine).argmin()])


LOWEST = lowest_of(fall_and_rise)


def half_way(steps: int) -> float:
    """Half way from the first learning rate to that of the minimum, which is what `valley` looks for."""
    return float(np.sqrt(lrs_of(steps)[0] * LOWEST))


def share_within(
    factor: float, rule: Rule, answer: float, steps: int, noise: float, curve: Callable[[Values], Values]
) -> tuple[float, float]:
    """Shares of the seeds for which the rule finds the answer to within a factor: raw and smoothed."""
    lrs = lrs_of(steps)
    found = [(rule(lrs, losses), rule(lrs, smooth(lrs, losses))) for losses in noisy(curve(lrs), noise)]
    off = np.abs(np.log(np.array(found) / answer))
    raw, smoothed = (off <= np.log(factor)).mean(axis=0)
    return float(raw), float(smoothed)


# The rules, without noise.


@pytest.mark.parametrize("steps", LENGTHS)
def test_the_answers_without_noise_are_exact_to_a_step(steps):
    lrs = lrs_of(steps)
    step = lrs[1] / lrs[0]
    for losses in (fall_and_rise(lrs), smooth(lrs, fall_and_rise(lrs))):
        assert minimum(lrs, losses) == pytest.approx(LOWEST, rel=step - 1)
        assert steepest(lrs, losses) == pytest.approx(CENTRE, rel=step - 1)
        assert 1 / step**2 < valley(lrs, losses) / half_way(steps) < step**2  # it is cut to whole steps twice


def test_the_foot_of_the_rise_is_found_a_window_before_it():
    lrs = lrs_of(90)
    window = (lrs[1] / lrs[0]) ** 15
    assert slide(lrs, flat_bottom(lrs)) == pytest.approx(KNEE / window, rel=0.25)


def test_the_slope_is_that_of_the_curve():
    lrs = lrs_of(90)
    expected = np.gradient(fall_and_rise(lrs), np.log(lrs))
    np.testing.assert_allclose(slopes(lrs, fall_and_rise(lrs)), expected, rtol=1e-12)
    np.testing.assert_allclose(slopes(lrs, 3 * np.log(lrs)), 3.0, rtol=1e-9)


def test_the_steepest_fall_is_the_one_before_the_minimum():
    lrs = lrs_of(20)
    losses = np.array([2.0] * 8 + [1.9, 1.5, 1.3, 1.2, 1.1, 1.0, 9.0, 9.0, 4.0, 4.0, 4.0, 4.0])
    assert steepest(lrs, losses) == lrs[9]


def test_the_steepest_of_a_curve_that_only_rises_is_at_its_start():
    lrs = lrs_of(20)
    assert steepest(lrs, np.linspace(1.0, 2.0, 20)) in lrs[:2]


def test_all_rules_are_suggested_by_name():
    lrs = lrs_of(90)
    losses = fall_and_rise(lrs)
    lowest = minimum(lrs, losses)
    assert suggest(lrs, losses) == Suggestions(
        valley=valley(lrs, losses),
        slide=slide(lrs, losses),
        steepest=steepest(lrs, losses),
        minimum_tenth=lowest / 10,
        minimum=lowest,
    )


# The rules, with noise. The bounds are what was measured (in brackets), less a little.


@pytest.mark.parametrize(
    ("steps", "noise", "factor", "bound", "raw_bound"),
    [
        (90, 0.03, 1.5, 0.99, 0.85),  # 1.00, raw 0.78
        (90, 0.1, 2.0, 0.97, 0.85),  # 0.995, raw 0.805
        (90, 0.3, 3.0, 0.97, 0.88),  # 0.995, raw 0.82
        (20, 0.03, 1.5, 0.92, 0.78),  # 0.96, raw 0.71
        (20, 0.1, 2.0, 0.84, 0.80),  # 0.89, raw 0.75
        (20, 0.3, 3.0, 0.84, 0.80),  # 0.89, raw 0.75
    ],
)
def test_the_minimum_in_noise(steps, noise, factor, bound, raw_bound):
    raw, smoothed = share_within(factor, minimum, LOWEST, steps, noise, fall_and_rise)
    assert smoothed >= bound
    assert raw <= raw_bound


@pytest.mark.parametrize(
    ("steps", "noise", "factor", "bound", "raw_bound"),
    [
        (90, 0.03, 1.5, 0.99, 0.75),  # 1.00, raw 0.67
        (90, 0.1, 2.0, 0.99, 0.56),  # 1.00, raw 0.485
        (90, 0.3, 3.0, 0.89, 0.48),  # 0.93, raw 0.40
        (20, 0.03, 1.5, 0.97, 0.92),  # 0.995, raw 0.87
        (20, 0.1, 2.0, 0.91, 0.88),  # 0.95, raw 0.83
        (20, 0.3, 3.0, 0.78, 0.71),  # 0.835, raw 0.645
    ],
)
def test_the_steepest_fall_in_noise(steps, noise, factor, bound, raw_bound):
    raw, smoothed = share_within(factor, steepest, CENTRE, steps, noise, fall_and_rise)
    assert smoothed >= bound
    assert raw <= raw_bound


@pytest.mark.parametrize(
    ("steps", "noise", "factor", "bound", "raw_bound"),
    [
        (90, 0.1, 2.0, 0.94, 0.03),  # 0.975, raw 0.00
        (90, 0.3, 3.0, 0.85, 0.04),  # 0.895, raw 0.005
        (20, 0.03, 1.5, 0.91, 0.75),  # 0.955, raw 0.67
        (20, 0.1, 2.0, 0.81, 0.77),  # 0.86, raw 0.70
        (20, 0.3, 3.0, 0.83, 0.50),  # 0.88, raw 0.425
    ],
)
def test_the_valley_in_noise(steps, noise, factor, bound, raw_bound):
    raw, smoothed = share_within(factor, valley, half_way(steps), steps, noise, fall_and_rise)
    assert smoothed >= bound
    assert raw <= raw_bound


@pytest.mark.parametrize(("noise", "factor", "bound"), [(0.003, 1.5, 0.98), (0.01, 2.0, 0.94)])  # 1.00, 0.98
def test_the_foot_of_the_rise_in_a_little_noise(noise, factor, bound):
    lrs = lrs_of(90)
    answer = KNEE / (lrs[1] / lrs[0]) ** 15
    off = [abs(np.log(slide(lrs, losses) / answer)) for losses in noisy(flat_bottom(lrs), noise)]
    assert np.mean(np.array(off) <= np.log(factor)) >= bound


# The rules, against their definitions.


def valley_by_definition(losses: list[float]) -> int:
    """The position of the suggestion, from the longest strictly decreasing subsequence."""
    longest: list[int] = []  # that ends at each position
    for last, loss in enumerate(losses):
        before = (longest[first] for first in range(last) if losses[first] > loss)
        longest.append(1 + max(before, default=0))
    length = max(longest)
    if length == 1:
        return 0
    start = longest.index(length) - length
    return start + int(length / 3) + int(length / 3 / 2)


def slide_by_definition(losses: list[float]) -> int:
    """The position of the suggestion, from the slopes 15 steps apart, counted from the end."""
    n = len(losses)
    slope = [losses[1] - losses[0]]
    slope += [(losses[i + 1] - losses[i - 1]) / 2 for i in range(1, n - 1)]
    slope.append(losses[-1] - losses[-2])
    for left in range(n - 16, -1, -1):
        if abs(slope[left + 15] - slope[left]) <= 0.005:
            return min(left + 1, n - 16)
    return 0


LISTS = st.one_of(
    st.lists(st.floats(-0.05, 0.05), min_size=20, max_size=60),
    st.lists(st.floats(0.1, 3.0), min_size=20, max_size=60),
    st.lists(st.integers(0, 5).map(float), min_size=20, max_size=60),  # with ties
)


@given(LISTS)
@example([float(-i) for i in range(60)])
@example([float(i) for i in range(60)])
@settings(deadline=None)
def test_valley_is_the_published_rule(losses):
    lrs = lrs_of(len(losses))
    assert valley(lrs, np.array(losses)) == lrs[valley_by_definition(losses)]


@given(LISTS)
@example([0.0] * 60)
@example([float(i**2) for i in range(60)])
@settings(deadline=None)
def test_slide_is_the_published_rule(losses):
    lrs = lrs_of(len(losses))
    assert slide(lrs, np.array(losses)) == lrs[slide_by_definition(losses)]


def test_slide_of_a_curve_shorter_than_its_window_is_at_its_start():
    lrs = lrs_of(10)
    assert slide(lrs, fall_and_rise(lrs)) == lrs[0]


# Means.


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.sampled_from([0.0, 0.5, 0.8, 0.98]))
@settings(deadline=None)
def test_the_running_mean_weighs_by_age(losses, beta):
    expected = [
        np.average(losses[:n], weights=[beta ** (n - 1 - i) for i in range(n)])
        for n in range(1, len(losses) + 1)
    ]
    np.testing.assert_allclose(running_mean(losses, beta), expected, rtol=1e-9, atol=1e-12)


def test_the_running_mean_of_nothing_is_nothing():
    assert running_mean([], 0.9).shape == (0,)


@pytest.mark.parametrize("steps", [90, 20, 10])
def test_smoothing_leaves_a_constant_as_it_is(steps):
    lrs = lrs_of(steps)
    np.testing.assert_allclose(smooth(lrs, np.full(steps, 2.3)), 2.3, rtol=1e-12)


@pytest.mark.parametrize("steps", [90, 50])
def test_smoothing_leaves_a_straight_line_alone_in_the_middle(steps):
    lrs = lrs_of(steps)
    line = 2.3 - 0.1 * np.log10(lrs / lrs[0])
    middle = (lrs > lrs[0] * 10**1.6) & (lrs < lrs[-1] / 10**1.6)  # eight times the width from both ends
    assert middle.any()
    np.testing.assert_allclose(smooth(lrs, line)[middle], line[middle], atol=1e-4)


@pytest.mark.parametrize("steps", LENGTHS)
def test_smoothing_pulls_neither_end_towards_zero(steps):
    lrs = lrs_of(steps)
    ends = np.array([smooth(lrs, losses)[[0, -1]] for losses in noisy(np.full(steps, 2.3), 0.1)])
    assert ends.mean(axis=0) == pytest.approx([2.3, 2.3], abs=0.012)  # four standard errors


@pytest.mark.parametrize("steps", LENGTHS)
def test_smoothing_does_not_lag_behind_a_fall(steps):
    lrs = lrs_of(steps)
    losses = LEVEL - DEPTH / (1 + (0.1 / lrs) ** 4)
    step = np.log10(lrs[1] / lrs[0])

    def middle_of(curve: Values) -> float:
        return float(np.log10(lrs[np.argmin(np.abs(curve - (LEVEL - DEPTH / 2)))]))

    assert middle_of(smooth(lrs, losses)) == pytest.approx(-1.0, abs=step)


def test_weights_depend_on_the_distance_in_decades_not_on_the_steps_between():
    coarse = lrs_of(41)
    fine = np.geomspace(coarse[0], coarse[-1], 401)
    few, many = (smooth(lrs, fall_and_rise(lrs)) for lrs in (coarse, fine))
    np.testing.assert_allclose(few[8:-8], many[::10][8:-8], atol=0.02)


def test_a_loss_weighs_less_by_e_at_the_distance_of_the_width():
    lrs = np.geomspace(1e-3, 1e-3 * 10 ** (WIDTH * 20), 21)  # one width a step
    losses = np.full(21, 2.0)
    losses[10] = 2.1
    extra = smooth(lrs, losses) - 2.0
    np.testing.assert_allclose(extra[11:15] / extra[10:14], np.exp(-1), rtol=1e-3)


def test_losses_far_above_the_start_are_cut():
    lrs = lrs_of(20)
    losses = fall_and_rise(lrs)
    losses[-2:] = [5.0, 6.0]
    high = losses.copy()
    high[-2:] = [1e3, 1e9]
    np.testing.assert_array_equal(smooth(lrs, high), smooth(lrs, losses))
    assert smooth(lrs, high).max() <= CEILING * LEVEL


def test_what_is_smoothed_is_left_as_it_was():
    lrs = lrs_of(20)
    losses = np.linspace(1.0, 100.0, 20)
    before = losses.copy()
    smooth(lrs, losses)
    np.testing.assert_array_equal(losses, before)


@pytest.mark.parametrize("shift", [-2.0, -10.0])
def test_losses_below_zero_are_not_cut_at_the_start(shift):
    """As of a negative log-likelihood with a density, which nothing bounds from below."""
    lrs = lrs_of(90)
    losses = fall_and_rise(lrs)
    falling = losses[lrs < LOWEST]
    found = smooth(lrs, losses + shift - LEVEL)
    assert minimum(lrs, found) == pytest.approx(LOWEST, rel=0.12)
    np.testing.assert_allclose(
        smooth(lrs[: len(falling)], falling + shift - LEVEL),
        smooth(lrs[: len(falling)], falling) + shift - LEVEL,
        rtol=1e-9,
    )


# How far the loss fell.


# Of 200 seeds, at 3 standard errors: the lowest of a whole curve is lower than chance makes a single point.
FALSE_ALARMS = 0.03


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("steps", LENGTHS)
def test_noise_is_not_taken_for_a_fall(steps, noise):
    lrs = lrs_of(steps)
    falls = [fall_of(lrs, losses) for losses in noisy(np.full(steps, LEVEL), noise)]
    assert np.mean([fall.is_real for fall in falls]) <= FALSE_ALARMS
    assert np.mean([fall.is_below(LEVEL) for fall in falls]) <= 0.01


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("steps", LENGTHS)
def test_noise_before_a_rise_is_not_taken_for_a_fall(steps, noise):
    lrs = lrs_of(steps)
    rising = LEVEL + 0.02 * (steps / 20) * np.maximum(0, np.arange(steps) - 2)
    falls = [fall_of(lrs, losses) for losses in noisy(rising, noise)]
    assert np.mean([fall.is_real for fall in falls]) <= FALSE_ALARMS
    assert np.mean([fall.is_below(LEVEL) for fall in falls]) <= 0.01


@pytest.mark.parametrize(
    ("steps", "noise", "bound"),
    [(90, 0.01, 1.0), (90, 0.05, 1.0), (90, 0.3, 0.99), (20, 0.01, 1.0), (20, 0.05, 1.0)],
)
def test_a_clear_fall_is_seen(steps, noise, bound):
    lrs = lrs_of(steps)
    falls = [fall_of(lrs, losses) for losses in noisy(fall_and_rise(lrs), noise)]
    assert np.mean([fall.is_real for fall in falls]) >= bound
    assert np.mean([fall.is_below(LEVEL) for fall in falls]) >= bound


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_the_noise_of_a_step_is_told(noise):
    lrs = lrs_of(90)
    told = [fall_of(lrs, losses).noise for losses in noisy(fall_and_rise(lrs), noise)]
    assert np.median(told) == pytest.approx(noise, rel=0.1)


def test_levels_of_a_fall_without_noise():
    lrs = lrs_of(90)
    fall = fall_of(lrs, fall_and_rise(lrs))
    assert fall.start == pytest.approx(LEVEL, abs=0.01)
    assert fall.lowest == pytest.approx(fall_and_rise(lrs).min(), abs=0.1)
    assert fall.lowest == smooth(lrs, fall_and_rise(lrs)).min()


def test_a_fall_of_a_few_thousandths_is_none():
    lrs = lrs_of(90)
    barely = LEVEL - 0.004 * LEVEL / (1 + (CENTRE / lrs) ** 2)
    assert not fall_of(lrs, barely).is_real
    assert not fall_of(lrs, barely).is_below(LEVEL)


def test_a_fall_to_the_level_of_guessing_is_not_below_it():
    lrs = lrs_of(90)
    for losses in itertools.islice(noisy(fall_and_rise(lrs), 0.02), 20):
        fall = fall_of(lrs, losses)
        assert fall.is_real
        assert not fall.is_below(fall.lowest)
        assert fall.is_below(LEVEL)


@pytest.mark.parametrize("steps", [3, 4, 10])
def test_the_shortest_curves_have_a_fall_too(steps):
    lrs = np.geomspace(0.01, 1.0, steps)
    assert not fall_of(lrs, np.full(steps, LEVEL)).is_real
    assert fall_of(lrs, np.linspace(LEVEL, 0.3, steps)).lowest < LEVEL
