"""Learning rates of every step, against torch's schedulers and against what the recipe asks for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from velodrome.config import TrainSection
from velodrome.errors import ConfigError
from velodrome.training.schedule import (
    cosine,
    extend,
    make_schedule,
    one_cycle,
    resolve_lr,
    squeeze_schedule,
)


def torch_lrs(make: type[LRScheduler], total: int, lr: float = 1.0, **settings: object) -> list[float]:
    """The learning rates that torch uses in steps 0 to total - 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer, **settings)
    lrs = []
    for step in range(total):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    return lrs


def schedule_of(total: int, **settings: object) -> list[float]:
    lr_at = make_schedule(resolve_lr(TrainSection(epochs=1, **settings)), steps_per_epoch=total)
    return [lr_at(step) for step in range(total)]


# Where peak * total is exactly 1, torch divides by zero; see the test after the next.
GRID = [
    (peak, total)
    for peak, total in itertools.product([0.0, 0.05, 5 / 24, 0.3, 0.5, 0.75, 1.0], [1, 2, 3, 5, 24, 97])
    if peak * total != 1
]


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
@pytest.mark.parametrize(("div", "final_div"), [(25, 1e4), (8, 1e4), (10, 1), (5, 100), (1, 1)])
@pytest.mark.parametrize(("peak", "total"), GRID)
def test_one_cycle_equals_torch_at_every_step(anneal, div, final_div, peak, total):
    lr_max = 0.037
    expected = torch_lrs(
        OneCycleLR,
        total,
        max_lr=lr_max,
        total_steps=total,
        pct_start=peak,
        div_factor=div,
        final_div_factor=final_div,
        anneal_strategy={"linear": "linear", "cosine": "cos"}[anneal],
        cycle_momentum=False,
    )
    ours = {"lr_max": lr_max, "lr_min": lr_max / div, "lr_final": lr_max / div / final_div}
    found = [one_cycle(step, total, **ours, peak=peak, anneal=anneal) for step in range(total)]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("peak", "total"), [(1.0, 1), (0.5, 2), (0.25, 4)])
def test_a_peak_at_the_first_step_begins_at_the_top(peak, total):
    lrs = [one_cycle(s, total, lr_max=1.0, lr_min=0.1, lr_final=0.2, peak=peak) for s in range(total)]
    assert lrs[0] == 1.0
    assert total == 1 or lrs[-1] == pytest.approx(0.2, rel=1e-12)


def test_the_reference_recipe_with_annihilation():
    lr, steps = 0.037, 24 * 98
    lrs = schedule_of(steps, anneal="cosine", lr=lr, lr_min=lr / 8, lr_final=lr / 8 / 1e4, peak=5 / 24)
    assert lrs[0] == pytest.approx(0.004625, rel=1e-12)
    assert lrs[-1] == pytest.approx(lr / 8 / 1e4, abs=1e-6)
    assert lrs[-1] == min(lrs)


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
@pytest.mark.parametrize("epochs", [3, 24])
def test_the_peak_stands_at_five_twentyfourths_of_all_steps(anneal, epochs):
    steps = epochs * 96
    lrs = schedule_of(steps, lr=0.4, anneal=anneal)
    top = 5 * steps // 24 - 1  # the last step of the first 5/24
    assert lrs[top] == pytest.approx(0.4, rel=1e-12)
    assert max(range(steps), key=lrs.__getitem__) == top
    assert lrs[: top + 1] == sorted(lrs[: top + 1])
    assert lrs[top:] == sorted(lrs[top:], reverse=True)


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [5, 98, 24 * 98])
def test_without_annihilation_the_rate_never_goes_below_its_minimum(anneal, steps):
    lrs = schedule_of(steps, lr=0.1, lr_min=0.015, anneal=anneal)
    assert min(lrs) == pytest.approx(0.015, rel=1e-12)  # to the rounding of one subtraction
    assert lrs[-1] == pytest.approx(0.015, rel=1e-12)


def test_linear_slopes_are_straight():
    lrs = schedule_of(25, lr=1.0, lr_min=0.1, peak=5 / 25)
    assert lrs[:5] == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])
    assert lrs[14] == pytest.approx(0.55)  # half way down


@pytest.mark.parametrize("total", [2, 3, 50])
def test_cosine_equals_torch_at_every_step(total):
    expected = torch_lrs(CosineAnnealingLR, total, lr=0.3, T_max=total - 1, eta_min=0.003)
    found = schedule_of(total, schedule="cosine", lr=0.3, lr_final=0.003)
    assert found == pytest.approx(expected, rel=1e-9)


def test_cosine_of_one_step():
    assert cosine(0, 1, lr_max=0.3, lr_final=0.1) == 0.3


def test_constant():
    assert schedule_of(7, schedule="constant", lr=0.2) == [0.2] * 7


@pytest.mark.parametrize("setting", ["lr", "lr_min", "lr_final"])
def test_auto_must_be_resolved_before(setting):
    values = {"lr": 0.1, "lr_min": 0.01, "lr_final": 0.01} | {setting: "auto"}
    with pytest.raises(ConfigError, match="still 'auto'"):
        make_schedule(TrainSection(**values), 10)


def test_without_a_rate_nothing_is_resolved():
    train = TrainSection(lr_min=0.01)
    assert resolve_lr(train) == train


def test_a_rate_that_was_found_stands_in_for_auto_without_annihilation():
    found = resolve_lr(TrainSection(), 0.3)
    assert found.lr == 0.3
    assert found.lr / 10 <= found.lr_min * (1 + 1e-12) <= found.lr / 5  # the recipe's range of LRMIN
    assert found.lr_final == found.lr_min


def test_a_rate_that_was_found_does_not_replace_one_that_was_given():
    assert resolve_lr(TrainSection(lr=0.5), 0.3) == resolve_lr(TrainSection(lr=0.5))


def test_a_schedule_is_squeezed_as_a_whole():
    train = resolve_lr(TrainSection(epochs=20, lr=0.1, lr_min=0.02))
    assert [squeeze_schedule(train, 12)(step) for step in range(12)] == schedule_of(12, lr=0.1, lr_min=0.02)


def test_rates_that_were_given_are_kept():
    assert resolve_lr(TrainSection(lr=0.5)).lr_min == pytest.approx(0.05)
    given = TrainSection(lr=0.5, lr_min=0.3, lr_final=0.0)
    assert resolve_lr(given) == given
    assert resolve_lr(TrainSection(lr=0.5, lr_min=0.3)).lr_final == 0.3


def test_epochs_beyond_the_schedule_keep_its_last_rate():
    train = resolve_lr(TrainSection(epochs=5, schedule_epochs=3, lr=0.1, lr_min=0.02))
    lr_at = make_schedule(train, steps_per_epoch=4)
    assert [lr_at(step) for step in range(12)] == schedule_of(12, lr=0.1, lr_min=0.02)
    assert [lr_at(step) for step in range(12, 20)] == [pytest.approx(0.02)] * 8


def test_a_schedule_may_be_left_before_its_end():
    train = resolve_lr(TrainSection(epochs=1, schedule_epochs=3, lr=0.1, lr_min=0.02))
    lr_at = make_schedule(train, steps_per_epoch=4)
    assert [lr_at(step) for step in range(4)] == schedule_of(12, lr=0.1, lr_min=0.02)[:4]


def test_extending_leaves_the_schedule_of_the_epochs_before_as_it_was():
    once = extend(resolve_lr(TrainSection(epochs=3, lr=0.1)), 4)
    assert (once.epochs, once.schedule_epochs) == (4, 3)
    twice = extend(once, 6)
    assert (twice.epochs, twice.schedule_epochs) == (6, 3)


def test_extending_by_nothing_changes_nothing_that_is_trained():
    train = resolve_lr(TrainSection(epochs=3, lr=0.1, lr_final=0.0))
    before, after = make_schedule(train, 5), make_schedule(extend(train, 3), 5)
    assert [before(step) for step in range(15)] == [after(step) for step in range(15)]


def test_fewer_epochs_are_refused():
    with pytest.raises(ConfigError, match="epochs is 2, but the run has 3"):
        extend(resolve_lr(TrainSection(epochs=3, lr=0.1)), 2)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
def test_extending_a_schedule_that_ends_at_zero_is_refused(schedule):
    with pytest.raises(ConfigError, match="ends at 0"):
        extend(resolve_lr(TrainSection(epochs=3, lr=0.1, schedule=schedule, lr_final=0.0)), 4)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
@pytest.mark.parametrize(
    ("total", "flat_end", "flat"), [(12, 0.25, 3), (432, 2 / 18, 48), (10, 0.99, 9), (3, 0.1, 0)]
)
def test_the_last_steps_keep_the_final_learning_rate(schedule, total, flat_end, flat):
    settings = {"schedule": schedule, "lr": 0.8, "lr_min": 0.1, "lr_final": 0.2}
    lrs = schedule_of(total, **settings, flat_end=flat_end, peak=0.005)
    assert lrs[total - flat :] == [0.2] * flat
    moving = total - flat
    expected = schedule_of(moving, **settings, peak=0.005 * total / moving)
    assert lrs[:moving] == pytest.approx(expected, rel=1e-12)


def test_no_flat_end_changes_no_bit():
    settings = {"lr": 0.37, "peak": 5 / 24}
    plain = [
        one_cycle(step, 97, lr_max=0.37, lr_min=0.037, lr_final=0.037, peak=5 / 24) for step in range(97)
    ]
    assert schedule_of(97, **settings) == plain


# Steps that are put right half way, by a time budget.


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
@pytest.mark.parametrize("steps", [61, 80, 100, 140])
def test_what_is_left_of_a_schedule_is_stretched_over_other_steps(schedule: str, steps: int) -> None:
    settings = {"lr": 1.0, "schedule": schedule}
    planned = schedule_of(100, **settings)
    lrs = schedule_of(steps, steps=steps, replanned="60:100", **settings)
    assert lrs[:60] == planned[:60]
    assert lrs[-1] == pytest.approx(planned[-1])
    # As far after the share of the steps that are left as it was planned after that share.
    share = (steps - 60) / (100 - 60)
    for step in range(60, steps):
        position = 59 + (step - 59) / share
        low, high = planned[math.floor(position + 1e-9)], planned[min(99, math.ceil(position - 1e-9))]
        assert min(low, high) - 1e-9 <= lrs[step] <= max(low, high) + 1e-9
    assert all(one >= other for one, other in itertools.pairwise(lrs[60:]))


def test_a_schedule_that_is_replanned_as_it_was_stays_so() -> None:
    plain = schedule_of(50, lr=0.3, flat_end=0.1)
    assert schedule_of(50, lr=0.3, flat_end=0.1, steps=50, replanned="30:50") == pytest.approx(plain)


def test_a_run_that_was_cut_off_at_once_has_no_more_steps() -> None:
    assert schedule_of(30, lr=1.0, steps=30, replanned="30:50") == schedule_of(50, lr=1.0)[:30]


@pytest.mark.parametrize("steps", [52, 69, 80, 96, 131])
@pytest.mark.parametrize("lr_final", [0.0, 0.1])
def test_a_stretched_schedule_stays_within_its_ends(steps: int, lr_final: float) -> None:
    settings = {"lr": 1.0, "lr_final": lr_final, "flat_end": 2 / 18, "peak": 0.25}
    lrs = schedule_of(steps, steps=steps, replanned="50:90", **settings)
    assert min(lrs[50:]) == lrs[-1] == lr_final
    assert max(lrs) <= 1
