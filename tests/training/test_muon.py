"""Muon against plain implementations written out here, and against torch's SGD."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from velodrome.config import TrainSection
from velodrome.training.muon import Muon, orthogonalised
from velodrome.training.optim import make_optimizer, set_lr

FP32 = torch.float32
MOMENTUM = 0.6
GRADIENTS = {"finite": 1.0, "nan": torch.nan, "infinite": torch.inf}


def quintic(x: Tensor) -> Tensor:
    """What three rounds make of each singular value."""
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


def newton_schulz(matrix: Tensor) -> Tensor:
    """The iteration as it is published, on the whole matrix: (rows, columns) -> the same shape."""
    x = matrix.T if len(matrix) > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if len(matrix) > matrix.shape[1] else x


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)


# Orthogonalisation.


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (1, 7), (7, 1), (1, 1), (64, 27), (24, 216)])
def test_a_matrix_becomes_what_the_plain_iteration_makes_of_it(shape):
    x = noise(*shape)
    (found,) = orthogonalised([x], FP32)
    assert found.dtype == FP32
    torch.testing.assert_close(found, newton_schulz(x), rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.sampled_from([(2, 3, 3, 3), (3, 2, 3, 3), (5, 2), (2, 5), (40, 2, 3, 3), (4, 4)]),
        min_size=1,
        max_size=7,
    ),
    size=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_tensors_of_all_shapes_are_orthogonalised_each_for_itself(shapes, size, seed):
    steps = [size * noise(*shape, seed=seed + place) for place, shape in enumerate(shapes)]
    found = orthogonalised(steps, FP32)
    assert [tensor.shape for tensor in found] == [step.shape for step in steps]
    for tensor, step in zip(found, steps, strict=True):
        torch.testing.assert_close(flat(tensor), newton_schulz(flat(step)), rtol=0, atol=1e-5)


def test_memory_order_does_not_matter():
    steps = [noise(8, 3, 3, 3), noise(8, 3, 3, 3, seed=1), noise(3, 8, 3, 3, seed=2)]
    moved = [step.contiguous(memory_format=torch.channels_last) for step in steps]
    for one, other in zip(orthogonalised(steps, FP32), orthogonalised(moved, FP32), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_singular_values_are_near_one_and_singular_vectors_stay(shape):
    left, _, right = torch.linalg.svd(noise(*shape).double(), full_matrices=False)
    values = torch.logspace(-2, 0, 12, dtype=torch.float64)
    values /= values.norm() / (1 - 1e-9)  # of a matrix of norm 1
    (found,) = orthogonalised([(5 * left @ values.diag() @ right).float()], FP32)
    inner = left.T @ found.double() @ right.T  # (12, 12)
    torch.testing.assert_close(inner, quintic(values).diag(), rtol=0, atol=1e-4)
    enough = values > 0.01
    assert ((inner.diagonal() > 0.4) & (inner.diagonal() < 1.21))[enough].all()


def test_steps_of_zero_stay_zero():
    found = orthogonalised([torch.zeros(3, 2, 3, 3), torch.zeros(9, 2)], FP32)
    assert [tensor.abs().max().item() for tensor in found] == [0.0, 0.0]


def test_half_precision_is_near():
    steps = [noise(16, 8, 3, 3), noise(32, 2, 3, 3)]
    pairs = zip(orthogonalised(steps, torch.bfloat16), orthogonalised(steps, FP32), strict=True)
    for half, single in pairs:
        assert half.dtype == FP32
        assert not torch.equal(half, single)
        assert float((half - single).norm() / single.norm()) < 0.03


# Steps.


def make_weights(channels_last: bool = False) -> list[nn.Parameter]:
    """Two banks of filters of one shape, one of another, and what SGD trains: a matrix and a vector."""
    shapes = [(6, 3, 3, 3), (6, 3, 3, 3), (4, 6, 3, 3), (5, 4), (7,)]
    tensors = [noise(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    if channels_last:
        tensors[:3] = [tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors[:3]]
    return [nn.Parameter(tensor) for tensor in tensors]


def make_muon(weights: list[nn.Parameter], momentum: float = MOMENTUM, dtype: torch.dtype = FP32) -> Muon:
    groups = [
        {"params": weights[:3], "orthogonal": True, "weight_decay": 0.3},  # which does nothing
        {"params": weights[3:4], "weight_decay": 0.1, "lr_scale": 0.5},
        {"params": weights[4:], "weight_decay": 0.0, "lr_scale": 20.0},
    ]
    return Muon(groups, momentum=momentum, dtype=dtype)


def give_gradients(weights: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    for place, weight in enumerate(weights):
        weight.grad = torch.empty_like(weight).copy_(
            scale * noise(*weight.shape, seed=1000 * (seed + 1) + place)
        )


def take_steps(
    weights: list[nn.Parameter], muon: torch.optim.Optimizer, lrs: tuple[float, ...], first: int = 0
) -> None:
    for step, lr in enumerate(lrs, first):
        give_gradients(weights, step)
        set_lr(muon, lr)
        muon.step()


LRS = (0.1, 0.02, 0.3, 0.15)


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_equal_those_of_a_plain_implementation(momentum, channels_last):
    weights = make_weights(channels_last)
    take_steps(weights, make_muon(weights, momentum), LRS)

    expected = make_weights()
    buffers = [torch.zeros_like(weight) for weight in expected]
    for step, lr in enumerate(LRS):
        give_gradients(expected, step)
        for place, (weight, buffer) in enumerate(zip(expected, buffers, strict=True)):
            gradient = weight.grad + 0.1 * weight.detach() if place == 3 else weight.grad
            buffer.mul_(momentum).add_(gradient)
            change = gradient + momentum * buffer  # Nesterov's
            own_lr = lr * (1.0, 1.0, 1.0, 0.5, 20.0)[place]
            with torch.no_grad():
                if place < 3:
                    change = newton_schulz(flat(change)).view(weight.shape)
                    weight.mul_(math.sqrt(len(weight)) / weight.norm())
                weight.sub_(own_lr * change)
    for found, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_groups_that_are_not_orthogonal_take_the_steps_of_torchs_sgd(momentum):
    weights, others = make_weights(), make_weights()
    take_steps(weights, make_muon(weights, momentum), LRS)
    groups = [
        {"params": others[3:4], "weight_decay": 0.1, "lr_scale": 0.5},
        {"params": others[4:], "weight_decay": 0.0, "lr_scale": 20.0},
    ]
    sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, foreach=False)
    take_steps(others, sgd, LRS)
    for ours, theirs, start in zip(weights[3:], others[3:], make_weights()[3:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert not torch.equal(ours, start)


def test_a_bank_of_filters_is_held_at_the_root_of_their_number():
    weights = make_weights()
    muon = make_muon(weights)
    for step in range(30):
        take_steps(weights, muon, (0.2,), step)
        for weight in weights[:3]:
            # The norm is set before the step, whose singular values are 1.2 at most.
            assert abs(float(weight.detach().norm()) / math.sqrt(len(weight)) - 1) < 0.2 * 1.21


def test_a_step_of_no_length_sets_the_norm_and_keeps_the_direction():
    weights = make_weights()
    muon = make_muon(weights)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    set_lr(muon, 0.2)
    muon.step()
    for weight, old in zip(weights[:3], make_weights()[:3], strict=True):
        expected = old * math.sqrt(len(old)) / old.norm()
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)


def test_the_length_of_filters_and_of_their_gradients_means_nothing():
    weights, longer = make_weights(), make_weights()
    with torch.no_grad():
        for weight in longer[:3]:
            weight.mul_(8.0)
    give_gradients(weights, 0)
    give_gradients(longer, 0, scale=8.0)
    for these in (weights, longer):
        muon = make_muon(these)
        set_lr(muon, 0.1)
        muon.step()
    for one, other in zip(weights[:3], longer[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("without", [(1,), (4,), (0, 1, 2), range(5)], ids=str)
def test_weights_without_a_gradient_are_left_alone(without):
    """Even where they are all of a group, as with torch's own optimizers."""
    weights = make_weights()
    muon = make_muon(weights)
    give_gradients(weights, 0)
    for place in without:
        weights[place].grad = None
    set_lr(muon, 0.1)
    muon.step()
    changed = [not torch.equal(new, old) for new, old in zip(weights, make_weights(), strict=True)]
    assert changed == [place not in without for place in range(5)]


def test_weights_stay_in_their_order_in_memory():
    weights = make_weights(channels_last=True)
    take_steps(weights, muon := make_muon(weights), LRS[:1])
    for weight in weights[:3]:
        for tensor in (weight, muon.state[weight]["momentum_buffer"]):
            assert tensor.is_contiguous(memory_format=torch.channels_last)


# Steps that are left out.


def everything(weights: list[nn.Parameter], muon: Muon) -> list[bytes]:
    """All weights and momenta, bit for bit: -0.0 and NaN are told from one another."""
    momenta = [muon.state[weight]["momentum_buffer"] for weight in weights]
    return [tensor.detach().contiguous().numpy().tobytes() for tensor in (*weights, *momenta)]


@pytest.mark.parametrize("looks", [True, False], ids=["as on the CPU", "as on a GPU"])
@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_step_that_is_left_out_changes_no_bit(kind, steps_before, looks, monkeypatch):
    monkeypatch.setattr("velodrome.training.muon.may_be_looked_at", lambda flag: looks)
    weights = make_weights(channels_last=True)
    with torch.no_grad():
        weights[3][0, 0] = weights[4][0] = -0.0
    muon = make_muon(weights)
    take_steps(weights, muon, LRS[:steps_before])
    before = everything(weights, muon)
    give_gradients(weights, 9)
    for weight in weights:
        weight.grad[0] *= GRADIENTS[kind]
    muon.found_inf = torch.tensor(1.0)
    muon.step()
    assert everything(weights, muon) == before
    muon.found_inf = torch.tensor(0.0)
    give_gradients(weights, 10)
    muon.step()
    assert everything(weights, muon) != before
    assert all(weight.isfinite().all() for weight in weights)


def test_both_ways_of_leaving_steps_out_take_the_others_alike(monkeypatch):
    both = []
    for looks in (True, False):
        monkeypatch.setattr("velodrome.training.muon.may_be_looked_at", lambda flag, looks=looks: looks)
        weights = make_weights()
        muon = make_muon(weights)
        muon.found_inf = torch.tensor(0.0)
        take_steps(weights, muon, LRS)
        both.append(everything(weights, muon))
    assert both[0] == both[1]


def test_without_a_flag_a_gradient_that_is_no_number_is_seen():
    """The test above would notice if nothing were ever changed by such gradients."""
    weights = make_weights()
    muon = make_muon(weights)
    give_gradients(weights, 0)
    weights[0].grad[0] = torch.nan
    set_lr(muon, 0.1)
    muon.step()
    assert not weights[0].isfinite().any()
    assert weights[1].isfinite().all()


@pytest.mark.parametrize("infinite", [False, True])
def test_the_scale_of_gradients_is_undone(infinite):
    """As in fp16, by torch's own scaler; its scale is a power of two, so no bit may differ."""
    scaled, plain = make_weights(), make_weights()
    optimizers = make_muon(scaled), make_muon(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    start = everything(scaled, optimizers[0])
    for step, lr in enumerate(LRS):
        for weights, muon in zip((scaled, plain), optimizers, strict=True):
            give_gradients(weights, step)
            set_lr(muon, lr)
        scale = float(scaler.scale(torch.ones(())))
        assert scale > 100
        for weight in scaled:
            weight.grad *= scale
        if infinite:
            scaled[0].grad[0] = torch.inf
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[1].step()
    ended = everything(scaled, optimizers[0])
    assert ended == (start if infinite else everything(plain, optimizers[1]))
    assert ended != start or infinite


# Writing down and going on.


def test_a_state_that_is_read_back_goes_on_the_same():
    weights = make_weights(channels_last=True)
    muon = make_muon(weights)
    take_steps(weights, muon, LRS[:2])
    saved = copy.deepcopy(muon.state_dict())
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    other = make_muon(copies)
    other.load_state_dict(saved)
    for these, optimizer in ((weights, muon), (copies, other)):
        take_steps(these, optimizer, LRS[2:], first=2)
    assert everything(copies, other) == everything(weights, muon)
    assert [group["orthogonal"] for group in other.param_groups] == [True, False, False]
    assert [group.get("lr_scale") for group in other.param_groups] == [None, 0.5, 20.0]


def test_a_copy_with_its_weights_goes_on_the_same():
    """As a range test of any network takes them."""
    weights = make_weights()
    muon = make_muon(weights)
    take_steps(weights, muon, LRS[:2])
    copies, other = copy.deepcopy((weights, muon))
    for these, optimizer in ((weights, muon), (copies, other)):
        take_steps(these, optimizer, LRS[2:], first=2)
    assert everything(copies, other) == everything(weights, muon)


# As recipes make it.


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", FP32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_large_products_have_the_precision_of_the_run(precision, dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    muon = make_optimizer(model, TrainSection(optimizer="muon", momentum=0.7), precision)
    assert isinstance(muon, Muon)
    assert muon.param_groups[0]["dtype"] == dtype
    assert {group["momentum"] for group in muon.param_groups} == {0.7}
    momenta = [slots["momentum_buffer"] for slots in muon.state.values()]
    assert len(momenta) == 4
    assert {momentum.dtype for momentum in momenta} == {FP32}
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    set_lr(muon, 0.1)
    muon.step()
    assert all(weight.isfinite().all() and weight.dtype == FP32 for weight in model.parameters())


def test_a_network_that_a_norm_follows_learns_by_it():
    """Filters, which Muon alone trains here, come to tell noise of two directions apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveMaxPool2d(1)
        )
    model.append(nn.Flatten()).append(nn.Linear(4, 2))
    striped = noise(64, 1, 8, 1).expand(64, 1, 8, 8)
    images = torch.where(torch.arange(64)[:, None, None, None] % 2 == 0, striped, striped.mT)
    labels = torch.arange(64) % 2
    muon = make_optimizer(model, TrainSection(optimizer="muon", weight_decay=0.0, momentum=0.6))
    losses = []
    for _ in range(25):
        set_lr(muon, 0.1)
        loss = nn.functional.cross_entropy(model(images), labels)
        muon.zero_grad()
        loss.backward()
        muon.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
