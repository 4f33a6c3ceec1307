"""Runs whose last epoch ends early: steps, schedule, figures, and going on in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import tiny_network
import torch
from tiny_network import BATCH, CPU, MILD, SEED, STEPS, N, start

from velodrome.config import TrainSection
from velodrome.data.imageset import channel_statistics
from velodrome.data.loader import Kind, Loader
from velodrome.errors import ConfigError
from velodrome.events import EpochDone, StepDone
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.lr_range import sweep_recipe
from velodrome.training.schedule import (
    cut_short,
    extend,
    make_schedule,
    squeeze_schedule,
    steps_in_epoch,
    total_steps,
)
from velodrome.training.state import TrainState


def section(**settings: object) -> TrainSection:
    return tiny_network.section(**{"epochs": 3} | settings)


def events_of(state: TrainState, loader: Loader, train: TrainSection) -> Iterator[StepDone | EpochDone]:
    schedule = make_schedule(train, STEPS)
    return fit(state, loader, schedule, train, precision="fp32", seed=SEED, score=lambda _model: NO_SCORES)


@pytest.mark.parametrize(
    ("steps", "expected"), [(None, [3, 3, 3]), (9, [3, 3, 3]), (7, [3, 3, 1]), (6, [3, 3, 0]), (2, [2, 0, 0])]
)
def test_steps_of_each_epoch(steps, expected):
    train = section(steps=steps)
    assert total_steps(train, STEPS) == sum(expected)
    assert [steps_in_epoch(train, epoch, STEPS) for epoch in range(3)] == expected
    assert cut_short(train, STEPS).epochs == sum(count > 0 for count in expected)


def test_more_steps_than_there_are():
    with pytest.raises(ConfigError, match=r"steps is 10, but 3 epochs have 9\. Use --steps 9 or fewer"):
        cut_short(section(steps=10), STEPS)


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 8])
def test_a_run_takes_so_many_steps(loader, steps):
    train = section(steps=steps)
    state = start(train)
    events = list(events_of(state, loader, train))
    taken = [event for event in events if isinstance(event, StepDone)]
    epochs = [event for event in events if isinstance(event, EpochDone)]
    assert [event.step for event in taken] == list(range(steps))
    assert [event.epoch for event in epochs] == list(range(1, -(-steps // STEPS) + 1))
    assert sum(len(epoch.step_losses) for epoch in epochs) == steps
    lr_at = make_schedule(train, STEPS)
    assert [lr for epoch in epochs for lr in epoch.step_lrs] == [lr_at(step) for step in range(steps)]
    assert epochs[-1].lr == lr_at(steps - 1)
    assert (state.step, state.epoch, state.meter.done) == (steps, len(epochs), 0)
    assert list(events_of(state, loader, train)) == []


def test_an_epoch_that_ends_early_has_the_figures_of_its_steps(loader):
    train = section(steps=4)
    last = list(events_of(start(train), loader, train))[-1]
    whole = section(steps=None, epochs=2)
    state = start(whole)
    schedule = make_schedule(train, STEPS)
    events = fit(state, loader, schedule, whole, precision="fp32", seed=SEED, score=lambda _model: NO_SCORES)
    while state.step < 4:
        next(events)
    assert last.train_loss == state.meter.read().loss
    assert last.train_acc == state.meter.read().accuracy
    assert last.images_per_s > 0


def test_the_schedule_spans_the_steps():
    lr_at = make_schedule(section(steps=7), STEPS)
    expected = squeeze_schedule(section(), 7)
    assert [lr_at(step) for step in range(7)] == [expected(step) for step in range(7)]
    assert lr_at(6) == pytest.approx(section().lr_final)
    assert lr_at(8) == lr_at(6)
    # Or as many epochs as it is told to.
    lr_at = make_schedule(section(steps=7, schedule_epochs=1), STEPS)
    expected = squeeze_schedule(section(), 3)
    assert [lr_at(step) for step in range(7)] == [expected(min(step, 2)) for step in range(7)]


def test_it_goes_on_in_the_middle_of_the_last_epoch(loader):
    train = section(steps=8)
    whole = start(train)
    rows = [event for event in events_of(whole, loader, train) if isinstance(event, EpochDone)]
    first = start(train)
    events = events_of(first, loader, train)
    while first.step < 7:
        next(events)
    second = start(train)
    second.restore(
        {kind: {n: v.clone() for n, v in g.items()} for kind, g in first.tensors().items()}, first.numbers()
    )
    last = list(events_of(second, loader, train))[-1]
    assert last.step_losses == rows[-1].step_losses
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_that_ends_early_cannot_be_extended():
    with pytest.raises(ConfigError, match=r"epochs is 4, .* within epoch 3, after 8 steps"):
        extend(section(steps=8), 4)
    assert extend(section(steps=8), 3).epochs == 3


def test_a_range_test_takes_all_of_its_steps(loader):
    train = section(steps=2)
    lrs = torch.logspace(-6, -5, 20).double().numpy()
    *_, curve = sweep_recipe(start(train), loader, train, lrs, precision="fp32", seed=SEED)
    assert len(curve.losses) == 20


def test_sizes_of_images_are_spread_over_the_steps(coloured_images):
    images = coloured_images(N)
    statistics = channel_statistics(images.images_u8)
    augment = replace(MILD, resolutions="6:1,8:1")
    whole = Loader(images, statistics, augment, BATCH, SEED, CPU, 3)
    for loader in (
        Loader(images, statistics, augment, BATCH, SEED, CPU, 3, steps=4),
        whole.spread_over(3, 4),
    ):
        assert loader.total_steps == 4
        assert [loader.side_at(step) for step in range(5)] == [6, 6, 8, 8, 8]
        assert loader.kinds() == {Kind(16, 6): 0, Kind(8, 8): 2, Kind(16, 8): 0}
        assert loader.kinds(3) == loader.kinds(100) == {Kind(16, 8): 0}
    assert whole.total_steps == 9
