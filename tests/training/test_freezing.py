"""First epochs in which only the classifier learns, and a body that learns at a rate of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise

import pytest
import tiny_network
import torch
from tiny_network import SEED, STEPS, make_model, start
from torch import Tensor, nn

from velodrome.config import TrainSection
from velodrome.data.loader import Loader
from velodrome.errors import ConfigError
from velodrome.events import EpochDone, StepDone, WarmedUp
from velodrome.training import loop
from velodrome.training.freezing import freeze_body, is_frozen, stages
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.lr_range import sweep_recipe
from velodrome.training.optim import make_optimizer, parameter_groups
from velodrome.training.schedule import make_schedule
from velodrome.training.state import TrainState
from velodrome.training.step import Step, TableStep, make_step

OPTIMIZERS = ["sgd", "adam", "adamw", "muon"]
HEAD = {"6.weight", "6.bias"}  # of the tiny network


def section(**settings: object) -> TrainSection:
    return tiny_network.section(**{"epochs": 4, "freeze_epochs": 2} | settings)


def events_of(
    state: TrainState, loader: Loader, train: TrainSection, *, compiled: bool = False
) -> Iterator[WarmedUp | StepDone | EpochDone]:
    return fit(
        state,
        loader,
        make_schedule(train, STEPS),
        train,
        precision="fp32",
        seed=SEED,
        score=lambda _model: NO_SCORES,
        compiled=compiled,
    )


def weights_of(state: TrainState) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in state.model.named_parameters()}


def buffers_of(state: TrainState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.model.named_buffers()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# What learns when.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_at_first_only_the_classifier_learns(loader, optimizer):
    train = section(optimizer=optimizer, l1=1e-4)
    state = start(train)
    states = [(weights_of(state), buffers_of(state))]
    states += [
        (weights_of(state), buffers_of(state))
        for event in events_of(state, loader, train)
        if isinstance(event, EpochDone)
    ]
    for epoch, ((before, buffers), (after, later)) in enumerate(pairwise(states)):
        assert changed(before, after) == (HEAD if epoch < 2 else set(before))
        assert {"1.running_mean", "1.running_var"} <= changed(buffers, later)  # statistics go on


def test_nothing_is_computed_backwards_through_the_body(loader):
    train = section()
    state = start(train)
    events = events_of(state, loader, train)
    list(islice(events, 2 * (STEPS + 1)))
    assert not any(
        weight.requires_grad for name, weight in state.model.named_parameters() if name not in HEAD
    )
    needed = []
    state.model[5].register_forward_hook(lambda _module, _args, output: needed.append(output.requires_grad))
    list(events)
    assert needed == [True] * 2 * STEPS
    other = start(train)
    other.model[5].register_forward_hook(lambda _module, _args, output: needed.append(output.requires_grad))
    needed.clear()
    list(islice(events_of(other, loader, train), 2 * (STEPS + 1)))
    assert needed == [False] * 2 * STEPS


@pytest.mark.parametrize("taken", [0, 1, STEPS + 1, 2 * (STEPS + 1) + 2, 100])
def test_the_network_is_handed_back_as_it_came(loader, taken):
    train = section()
    state = start(train)
    state.model[0].weight.requires_grad_(False)
    state.optimizer = make_optimizer(state.model, train)
    events = events_of(state, loader, train)
    list(islice(events, taken))
    events.close()
    learning = {name for name, weight in state.model.named_parameters() if weight.requires_grad}
    assert learning == {name for name, _ in state.model.named_parameters()} - {"0.weight"}


@pytest.mark.parametrize("freeze_epochs", [0, 2, 4, 9])
def test_what_is_frozen_for_good_never_learns(loader, freeze_epochs):
    train = section(freeze_epochs=freeze_epochs)
    model = make_model()
    model[0].weight.requires_grad_(False)
    state = start(train, model=model)
    before = weights_of(state)
    list(events_of(state, loader, train))
    learned = set(before) - {"0.weight"}
    assert changed(before, weights_of(state)) == (HEAD if freeze_epochs >= 4 else learned)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("stopped_after", [1, 4, 6, 8])
def test_a_run_goes_on_as_if_it_had_never_stopped(loader, optimizer, stopped_after):
    train = section(optimizer=optimizer)
    whole = start(train)
    list(events_of(whole, loader, train))
    first = start(train)
    events = events_of(first, loader, train)
    while first.step < stopped_after:
        next(events)
    second = start(train)
    second.restore(
        {kind: {n: v.clone() for n, v in g.items()} for kind, g in first.tensors().items()}, first.numbers()
    )
    list(events_of(second, loader, train))
    assert changed(weights_of(whole), weights_of(second)) == set()
    assert changed(buffers_of(whole), buffers_of(second)) == set()
    # And so does one that goes on in the same process.
    events.close()
    list(events_of(first, loader, train))
    assert changed(weights_of(whole), weights_of(first)) == set()


def test_without_it_training_is_what_it_was(loader):
    plain, frozen = start(section(freeze_epochs=0)), start(section(freeze_epochs=0))
    list(events_of(plain, loader, section(freeze_epochs=0)))
    freeze_body(frozen.model, frozen.optimizer, frozen=True)
    list(events_of(frozen, loader, section(freeze_epochs=0)))
    assert changed(weights_of(plain), weights_of(frozen)) == set()


@pytest.mark.parametrize(
    ("first", "freeze", "expected"),
    [
        (0, 0, [(range(4), False)]),
        (0, 2, [(range(2), True), (range(2, 4), False)]),
        (1, 2, [(range(1, 2), True), (range(2, 4), False)]),
        (2, 2, [(range(2, 4), False)]),
        (3, 2, [(range(3, 4), False)]),
        (0, 4, [(range(4), True)]),
        (0, 9, [(range(4), True)]),
        (4, 2, []),
        (4, 9, []),
    ],
)
def test_stages(first, freeze, expected):
    assert list(stages(section(freeze_epochs=freeze), first)) == expected


def test_a_network_without_a_classifier_cannot_be_frozen():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())
    optimizer = make_optimizer(model, section())
    with pytest.raises(ConfigError, match="freeze_epochs is above 0, but this network has no linear layer"):
        freeze_body(model, optimizer, frozen=True)


def test_a_range_test_is_of_all_parameters(loader):
    train = section()
    state = start(train)
    before = weights_of(state)
    lrs = torch.logspace(-3, -2, 12).double().numpy()
    list(sweep_recipe(state, loader, train, lrs, precision="fp32", seed=SEED))
    assert changed(before, weights_of(state)) == set(before)


# Compiled and captured steps.


def test_compiled_code_is_made_anew_when_the_body_thaws(loader, monkeypatch):
    compile_for_real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_for_real(f, backend="aot_eager", **how))
    torch.compiler.reset()
    train = section()
    compiled, plain = start(train), start(train)
    events = list(events_of(compiled, loader, train, compiled=True))
    others = list(events_of(plain, loader, train))
    kinds = [type(event).__name__ for event in events]
    assert [index for index, kind in enumerate(kinds) if kind == "WarmedUp"] == [0, 1 + 2 * (STEPS + 1)]
    for one, other in zip(
        (e for e in events if isinstance(e, EpochDone)),
        (e for e in others if isinstance(e, EpochDone)),
        strict=True,
    ):
        assert one.step_losses == pytest.approx(other.step_losses, rel=1e-4)
    for name, weight in weights_of(plain).items():
        torch.testing.assert_close(weights_of(compiled)[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("frozen", "expected"), [(True, Step), (False, TableStep)])
def test_steps_with_a_frozen_body_are_not_captured(loader, monkeypatch, frozen, expected):
    """On a device that is called what it is not."""
    monkeypatch.setattr(torch, "compile", lambda f, **how: f)
    monkeypatch.setattr(TableStep, "warm_up", lambda self, loader: 0.0)
    monkeypatch.setattr(Step, "warm_up", lambda self, loader: 0.0)
    train = section()
    state = start(train)
    freeze_body(state.model, state.optimizer, frozen=frozen)
    assert is_frozen(state.optimizer) == frozen
    epoch = loader.epoch(0)
    monkeypatch.setattr(loader, "device", torch.device("cuda"))
    monkeypatch.setattr(loader, "epoch", lambda number: epoch)
    step, _ = make_step(state, train, loader, precision="fp32", seed=SEED, compiled=True)
    assert type(step) is expected


def test_after_thawing_steps_may_go_by_tables(loader, monkeypatch):
    """As on a GPU, where they are captured then."""
    train = section()

    def by_tables_if_thawed(state: TrainState, train: TrainSection, loader: Loader, **how: object):
        kind = Step if is_frozen(state.optimizer) else TableStep
        more = () if kind is Step else (loader,)
        return kind(state, train, *more, precision="fp32", seed=SEED, compiled=False), None

    plain, other = start(train), start(train)
    list(events_of(plain, loader, train))
    monkeypatch.setattr(loop, "make_step", by_tables_if_thawed)
    list(events_of(other, loader, train))
    for name, weight in weights_of(plain).items():
        torch.testing.assert_close(weights_of(other)[name], weight, rtol=1e-3, atol=1e-4)


# Learning rates.


def scales(train: TrainSection) -> dict[int, float]:
    """The factor of the learning rate by parameter, of the tiny network."""
    model = make_model()
    names = {id(weight): name for name, weight in model.named_parameters()}
    return {
        names[id(weight)]: group["lr_scale"]
        for group in parameter_groups(model, train)
        for weight in group["params"]
    }


def test_the_body_learns_at_a_rate_of_its_own():
    found = scales(section(body_lr_scale=0.1, head_lr_scale=3.0, bias_lr_scale=2.0))
    assert found == pytest.approx(
        {"0.weight": 0.1, "1.weight": 0.2, "1.bias": 0.2, "6.weight": 3.0, "6.bias": 2.0}
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_a_rate_of_its_own_groups_are_as_they_were(optimizer):
    model = make_model()
    groups = parameter_groups(model, section(optimizer=optimizer, head_lr_scale=3.0, bias_lr_scale=2.0))
    assert [[id(w) for w in group["params"]] for group in groups] == [
        [id(model[0].weight)],
        [id(model[6].weight)],
        [id(model[1].weight), id(model[1].bias), id(model[6].bias)],
    ]
    assert [group["lr_scale"] for group in groups] == [1.0, 3.0, 2.0]


def test_each_parameter_has_one_group():
    model = make_model()
    groups = parameter_groups(model, section(body_lr_scale=0.5))
    found = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(found) == sorted(id(weight) for weight in model.parameters())
