"""Fused optimizers against torch's plain ones; what is penalised; how a step is skipped."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from velodrome.config import TrainSection
from velodrome.training.optim import (
    classifier_of,
    decayed_weights,
    l1_norm,
    make_optimizer,
    parameter_groups,
    set_lr,
    skip_step_where,
)

OPTIMIZERS = ["sgd", "adam", "adamw"]
ALL_OPTIMIZERS = [*OPTIMIZERS, "muon"]


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    return model.to(memory_format=torch.channels_last)


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=generator))


def plain_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """torch's own, one tensor after the other; only the weights of the two layers decay."""
    names = dict(model.named_parameters())
    decayed = [names.pop("0.weight"), names.pop("3.weight")]
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": list(names.values()), "weight_decay": 0.0},
    ]
    plain = {"lr": 0.0, "foreach": False, "fused": False}
    if train.optimizer == "sgd":
        nesterov = train.momentum > 0
        return torch.optim.SGD(groups, momentum=train.momentum, nesterov=nesterov, **plain)
    kind = torch.optim.Adam if train.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, betas=(train.momentum, 0.999), **plain)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all weights and of all that the optimizer remembers."""
    found = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for index, slots in optimizer.state_dict()["state"].items():
        found |= {f"{index}.{slot}": torch.as_tensor(value).clone() for slot, value in slots.items()}
    return found


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.1), (0.8, 0.0), (0.0, 0.1)])
def test_steps_equal_those_of_torch(optimizer, momentum, weight_decay):
    train = TrainSection(optimizer=optimizer, momentum=momentum, weight_decay=weight_decay)
    ours, theirs = make_model(), make_model()
    our_optimizer, their_optimizer = make_optimizer(ours, train), plain_optimizer(theirs, train)
    for step, lr in enumerate([0.1, 0.03, 0.2, 0.05]):
        for model, taken in ((ours, our_optimizer), (theirs, their_optimizer)):
            give_gradients(model, step)
            set_lr(taken, lr)
            taken.step()
    for one, other, start in zip(
        ours.parameters(), theirs.parameters(), make_model().parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert not torch.equal(one, start)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_weights_of_two_dimensions_or_more_decay(optimizer):
    model = make_model()
    start = copy.deepcopy(model)
    taken = make_optimizer(model, TrainSection(optimizer=optimizer, weight_decay=0.1))
    set_lr(taken, 0.5)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    taken.step()
    changed = {
        name
        for (name, weight), before in zip(model.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(weight, before)
    }
    assert changed == {"0.weight", "3.weight"}


def test_frozen_weights_are_neither_trained_nor_penalised():
    model = make_model()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    trained = {id(p) for group in make_optimizer(model, TrainSection()).param_groups for p in group["params"]}
    assert trained == {id(p) for p in (model[0].bias, model[1].weight, model[3].weight, model[3].bias)}
    assert [id(p) for p in decayed_weights(model)] == [id(model[3].weight)]


def test_a_model_of_nothing_but_weights():
    optimizer = make_optimizer(nn.Linear(4, 2, bias=False), TrainSection())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_l1_norm_and_its_gradient():
    model = make_model()
    with torch.no_grad():
        model[3].weight[0, :3] = 0
    weights = decayed_weights(model)
    norm = l1_norm(weights)
    norm.backward()
    expected = sum(
        float(weight.detach().double().abs().sum()) for weight in (model[0].weight, model[3].weight)
    )
    assert float(norm.detach()) == pytest.approx(expected, rel=1e-6)
    for weight in weights:
        assert torch.equal(weight.grad, weight.detach().sign())
    assert model[0].bias.grad is None


@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS)
def test_set_lr_reaches_every_group(optimizer):
    made = make_optimizer(make_model(), TrainSection(optimizer=optimizer))
    assert [group["lr"] for group in made.param_groups] == [0.0, 0.0, 0.0]
    set_lr(made, 0.25)
    assert [group["lr"] for group in made.param_groups] == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS)
def test_the_classifier_and_the_biases_have_learning_rates_of_their_own(optimizer):
    train = TrainSection(optimizer=optimizer, head_lr_scale=0.5, bias_lr_scale=8.0, weight_decay=0.01)
    model = make_model()
    made = make_optimizer(model, train)
    set_lr(made, 0.25)
    names = {id(weight): name for name, weight in model.named_parameters()}
    found = [
        ([names[id(weight)] for weight in group["params"]], group["lr"], group["weight_decay"])
        for group in made.param_groups
    ]
    assert found == [
        (["0.weight"], 0.25, 0.01),
        (["3.weight"], 0.125, 0.01),
        (["0.bias", "1.weight", "1.bias", "3.bias"], 2.0, 0.0),
    ]


def test_set_lr_takes_groups_without_a_scale():
    """Of optimizers that others made."""
    optimizer = torch.optim.SGD([{"params": [p]} for p in make_model().parameters()], lr=1.0)
    set_lr(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS)
def test_only_hidden_weights_of_muon_are_orthogonal(optimizer):
    groups = parameter_groups(make_model(), TrainSection(optimizer=optimizer))
    assert [group.get("orthogonal", False) for group in groups] == [optimizer == "muon", False, False]


def test_the_classifier_is_the_last_linear_layer():
    first, last = nn.Linear(4, 4), nn.Linear(4, 2)
    assert classifier_of(nn.Sequential(first, nn.ReLU(), last, nn.Flatten())) is last.weight
    assert classifier_of(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten())) is None
    groups = parameter_groups(nn.Sequential(first, last), TrainSection(head_lr_scale=3.0))
    assert [[id(weight) for weight in group["params"]] for group in groups] == [
        [id(first.weight)],
        [id(last.weight)],
        [id(first.bias), id(last.bias)],
    ]


def test_without_a_classifier_all_weights_are_hidden_ones():
    groups = parameter_groups(nn.Conv2d(3, 2, 1), TrainSection(head_lr_scale=3.0))
    assert [(len(group["params"]), group["lr_scale"]) for group in groups] == [(1, 1.0), (1, 1.0)]


@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS)
def test_a_skipped_step_changes_nothing(optimizer):
    model = make_model()
    taken = make_optimizer(model, TrainSection(optimizer=optimizer))
    set_lr(taken, 0.1)
    give_gradients(model, 0)
    taken.step()
    before = everything(model, taken)
    for weight in model.parameters():
        weight.grad.fill_(torch.nan)
    skip_step_where(taken, torch.tensor(True))
    taken.step()
    assert equal(everything(model, taken), before)
    give_gradients(model, 1)
    skip_step_where(taken, torch.tensor(False))
    taken.step()
    assert not equal(everything(model, taken), before)
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills it, so that reading it shows
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS)
@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_a_skipped_first_step_leaves_no_trace(optimizer):
    """In fp16 the first steps are skipped as a rule, until the gradients' scale is found."""
    train = TrainSection(optimizer=optimizer)
    skipping, plain = make_model(), make_model()
    optimizers = make_optimizer(skipping, train), make_optimizer(plain, train)
    give_gradients(skipping, 99)
    set_lr(optimizers[0], 0.1)
    skip_step_where(optimizers[0], torch.tensor(True))
    optimizers[0].step()
    for model, taken in zip((skipping, plain), optimizers, strict=True):
        give_gradients(model, 0)
        set_lr(taken, 0.1)
        skip_step_where(taken, torch.tensor(False))
        taken.step()
    assert equal(everything(skipping, optimizers[0]), everything(plain, optimizers[1]))


def test_biases_decay_when_asked_for():
    model = make_model()
    train = TrainSection(weight_decay=0.5, bias_decay_scale=0.25, bias_lr_scale=64.0)
    *_, others = parameter_groups(model, train)
    assert {id(p) for p in others["params"]} == {id(p) for p in model.parameters() if p.ndim == 1}
    assert (others["weight_decay"], others["lr_scale"]) == (0.125, 64.0)
    assert parameter_groups(model, TrainSection(weight_decay=0.5))[-1]["weight_decay"] == 0
