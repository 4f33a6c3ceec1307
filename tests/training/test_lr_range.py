"""The range test itself: which steps it takes, when it stops, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import velodrome as vd
from velodrome.config import AugmentSection, TrainSection
from velodrome.data.imageset import channel_statistics
from velodrome.data.loader import Loader
from velodrome.errors import ConfigError
from velodrome.training.lr_range import (
    DIVERGED,
    FEWEST_STEPS,
    LOOK_EVERY,
    MEMORY,
    MIDDLE,
    STEPS_PER_DECADE,
    Batch,
    Sweep,
    cut,
    follow,
    geometric,
    sweep_module,
    sweep_recipe,
    usual_range,
)
from velodrome.training.lr_rules import running_mean, smooth
from velodrome.training.optim import make_optimizer
from velodrome.training.schedule import resolve_lr
from velodrome.training.state import Meter, TrainState

N, BATCH = 40, 16
PER_EPOCH = 3  # 16, 16 and 8 images
CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# The learning rates.


def test_learning_rates_rise_by_a_constant_factor():
    lrs = geometric(1e-3, 10, 90)
    assert lrs.dtype == np.float64
    assert lrs.shape == (90,)
    assert (lrs[0], lrs[-1]) == (1e-3, 10)
    np.testing.assert_allclose(lrs[1:] / lrs[:-1], 10 ** (4 / 89), rtol=1e-12)


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (-1e-3, 1), (1, 1), (10, 1e-3), (1e-3, INF), (NAN, 1), (1e-3, NAN)],
)
def test_a_range_that_does_not_rise_is_refused(start, end):
    with pytest.raises(ConfigError) as caught:
        geometric(start, end, 90)
    assert f"{start:g} to {end:g}" in caught.value.problem
    assert "begin above 0 and rise" in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("steps", [-1, 0, 1, FEWEST_STEPS - 1])
def test_too_few_steps_are_refused(steps):
    with pytest.raises(ConfigError, match=f"steps is {steps}, but must be at least {FEWEST_STEPS}"):
        geometric(1e-3, 10, steps)
    assert len(geometric(1e-3, 10, FEWEST_STEPS)) == FEWEST_STEPS


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_a_whole_test_goes_over_four_decades(optimizer):
    start, end = usual_range(optimizer, 90)
    assert start == pytest.approx(MIDDLE[optimizer] / 100)
    assert end == pytest.approx(MIDDLE[optimizer] * 100)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [*range(FEWEST_STEPS, 36), 60, 90, 500])
def test_a_range_has_enough_steps_in_each_decade(optimizer, steps):
    lrs = geometric(*usual_range(optimizer, steps), steps)
    assert 1 / np.log10(lrs[1] / lrs[0]) >= STEPS_PER_DECADE * (1 - 1e-12)
    assert math.sqrt(lrs[0] * lrs[-1]) == pytest.approx(MIDDLE[optimizer])


def test_short_tests_have_a_shorter_range():
    decades = [
        math.log10(end / start) for start, end in (usual_range("sgd", steps) for steps in range(10, 91))
    ]
    assert decades == sorted(decades)
    assert decades[0] < 1.2
    assert decades[10] < decades[20] < decades[-1] == pytest.approx(4)


# What of a curve says something.

LRS = geometric(1e-3, 10, 90)


def first_far_above(losses: list[float]) -> int:
    """The position of the first loss whose running mean is far above the lowest before."""
    means = running_mean(losses, MEMORY)
    return next(i for i in range(len(means)) if means[i] > DIVERGED * means[: i + 1].min())


def assert_is_start_of(curve: Sweep, losses: list[float], steps: int) -> None:
    assert curve.losses.tolist() == losses[:steps]
    assert curve.lrs.tolist() == LRS[:steps].tolist()


def test_a_curve_that_stays_is_kept_whole():
    losses = np.linspace(2.3, 1.0, 90).tolist()
    curve = cut(LRS, losses)
    assert curve.ending == "completed"
    assert_is_start_of(curve, losses, 90)
    np.testing.assert_array_equal(curve.smoothed, smooth(LRS, np.array(losses)))


def test_a_curve_ends_with_the_loss_that_diverges():
    losses = [2.0] * 20 + [2.0 * 1.5**i for i in range(30)]
    end = first_far_above(losses) + 1
    assert 20 < end < 40
    curve = cut(LRS, losses)
    assert curve.ending == "diverged"
    assert_is_start_of(curve, losses, end)


def test_a_single_high_loss_is_no_divergence():
    losses = [2.0] * 20 + [20.0] + [2.0] * 20
    assert cut(LRS, losses).ending == "completed"
    assert len(cut(LRS, losses).losses) == 41


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [0, 1, 20, 49])
def test_everything_from_the_first_loss_on_that_is_not_finite_is_dropped(bad, at):
    losses = np.linspace(2.3, 2.0, 50).tolist()
    losses[at] = bad
    curve = cut(LRS, losses)
    assert curve.ending == "not finite"
    assert_is_start_of(curve, losses, at)
    assert np.isfinite(curve.losses).all()


def test_divergence_counts_where_it_comes_before_a_loss_that_is_not_finite():
    losses = [2.0] * 20 + [50.0] * 5 + [NAN] * 5
    curve = cut(LRS, losses)
    assert curve.ending == "diverged"
    assert_is_start_of(curve, losses, first_far_above(losses[:25]) + 1)


def test_no_losses_are_an_empty_curve():
    curve = cut(LRS, [])
    assert (curve.lrs.shape, curve.losses.shape, curve.ending) == ((0,), (0,), "completed")
    assert curve.losses.dtype == np.float64


def test_losses_below_zero_that_fall_are_no_divergence():
    losses = np.linspace(-1.0, -8.0, 90).tolist()
    assert cut(LRS, losses).ending == "completed"
    risen = losses[:60] + [100.0] * 10
    assert cut(LRS, risen).ending == "diverged"


@pytest.mark.parametrize("seed", range(5))
def test_losses_that_fall_through_zero_are_no_divergence(seed):
    """As those of a negative log-likelihood with a density; a multiple of nearly zero is soon reached."""
    losses = np.linspace(2.0, -2.0, 90) + 0.2 * np.random.default_rng(seed).standard_normal(90)
    assert cut(LRS, losses.tolist()).ending == "completed"


# Following a test.


class Steps:
    """Steps with losses that are known, which count how often each is asked for and read."""

    def __init__(self, losses: list[float]) -> None:
        self.losses, self.taken, self.reads = losses, 0, 0

    def __iter__(self) -> Iterator[None]:
        for _ in self.losses:
            self.taken += 1
            yield

    def read(self) -> list[float]:
        self.reads += 1
        return self.losses[: self.taken]

    def follow(self) -> list[Sweep]:
        return list(follow(iter(self), self.read, LRS[: len(self.losses)]))


@pytest.mark.parametrize("count", [10, 12, 45, 89, 90])
def test_a_test_goes_through_all_its_steps_and_reads_seldom(count):
    steps = Steps(np.linspace(2.3, 1.0, count).tolist())
    curves = steps.follow()
    assert steps.taken == count
    assert steps.reads == len(curves) <= count / LOOK_EVERY + 1
    assert [len(curve.losses) for curve in curves] == sorted(
        {*range(LOOK_EVERY, count + 1, LOOK_EVERY), count}
    )
    assert {curve.ending for curve in curves} == {"completed"}
    assert curves[-1].losses.tolist() == steps.losses


@pytest.mark.parametrize("at", [1, 3, 4, 5, 33, 88, 89])
@pytest.mark.parametrize("bad", [NAN, 1e6])
def test_a_test_stops_soon_after_it_has_diverged(at, bad):
    losses = [2.0] * at + [bad] * (90 - at)
    steps = Steps(losses)
    curves = steps.follow()
    whole = cut(LRS, losses)
    assert curves[-1].ending == whole.ending != "completed"
    assert curves[-1].losses.tolist() == whole.losses.tolist()
    assert steps.taken <= len(whole.losses) + LOOK_EVERY
    assert {curve.ending for curve in curves[:-1]} <= {"completed"}


def test_no_step_is_taken_before_it_is_asked_for():
    steps = Steps([2.0] * 90)
    curves = follow(iter(steps), steps.read, LRS)
    assert steps.taken == 0
    next(curves)
    assert steps.taken == LOOK_EVERY


@pytest.mark.parametrize("stopped_after", [1, 3, 7])
def test_the_result_of_steps_that_end_by_themselves_is_what_they_saw(stopped_after):
    losses = [2.0] * (stopped_after - 1) + [NAN]
    steps = Steps(losses)
    *_, curve = follow(iter(steps), steps.read, LRS)
    assert curve.ending == "not finite"
    assert curve.losses.tolist() == losses[:-1]


# The test of a recipe.


@pytest.fixture
def loader(coloured_images) -> Loader:
    images = coloured_images(N)
    mild = AugmentSection(crop=1, flip=True, cutout=2)
    return Loader(images, channel_statistics(images.images_u8), mild, BATCH, 5, CPU)


def section(**settings: object) -> TrainSection:
    return resolve_lr(TrainSection(**{"epochs": 1, "batch_size": BATCH, "lr": 123.0} | settings))


def make_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    return network.to(memory_format=torch.channels_last)


def start(train: TrainSection, network: nn.Module | None = None) -> TrainState:
    network = network or make_network()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(network, make_optimizer(network, train), scaler, Meter(PER_EPOCH, CPU))


def used_by(optimizer: torch.optim.Optimizer) -> list[list[float]]:
    """A list which will hold the learning rates of all groups in each step."""
    used: list[list[float]] = []
    optimizer.register_step_pre_hook(
        lambda optimizer, _args, _kwargs: used.append([group["lr"] for group in optimizer.param_groups])
    )
    return used


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_a_recipe_is_swept_through_the_learning_rates_in_order(loader, optimizer):
    train = section(optimizer=optimizer)
    state, lrs = start(train), geometric(1e-4, 0.1, 20)  # almost seven epochs
    used = used_by(state.optimizer)
    *_, curve = sweep_recipe(state, loader, train, lrs, precision="fp32", seed=5)
    assert used == [[lr] * 3 for lr in lrs.tolist()]
    assert curve.ending == "completed"
    assert curve.lrs.tolist() == lrs.tolist()
    assert state.step == len(curve.losses) == 20


def test_losses_of_a_recipe_equal_those_of_a_plain_loop(loader):
    train, lrs = section(weight_decay=0.01), geometric(1e-3, 0.3, 20)
    *_, curve = sweep_recipe(start(train), loader, train, lrs, precision="fp32", seed=5)

    network = make_network().train()
    weights = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True, foreach=False)
    losses = []
    for step, lr in enumerate(lrs):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        images, labels = loader.epoch(step // PER_EPOCH)[step % PER_EPOCH]
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert curve.losses.tolist() == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("steps", [10, 12, 13, 90])
def test_curves_so_far_are_starts_of_the_result(loader, steps):
    train, lrs = section(), geometric(1e-4, 0.1, steps)
    curves = list(sweep_recipe(start(train), loader, train, lrs, precision="fp32", seed=5))
    lengths = [len(curve.losses) for curve in curves]
    assert lengths == sorted({*range(LOOK_EVERY, steps + 1, LOOK_EVERY), steps})
    for curve in curves:
        assert curve.losses.tolist() == curves[-1].losses[: len(curve.losses)].tolist()


def test_a_recipe_that_diverges_stops_early(loader):
    train, lrs = section(), geometric(1e-2, 1e9, 60)
    state = start(train)
    *_, curve = sweep_recipe(state, loader, train, lrs, precision="fp32", seed=5)
    assert curve.ending != "completed"
    assert FEWEST_STEPS <= len(curve.losses) < 40
    assert state.step <= len(curve.losses) + LOOK_EVERY


class Failing(nn.Module):
    """The tiny network, whose answers are not numbers from one training step on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.network, self.step, self.calls = make_network(), step, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.network(images)
        return logits * (NAN if self.calls > self.step else 1.0)


@pytest.mark.parametrize("bad_step", [0, 2, 4, 6, 9, 16])
def test_a_recipe_stops_at_a_loss_that_is_not_finite(loader, bad_step):
    train, lrs = section(), geometric(1e-4, 0.1, 20)
    state = start(train, Failing(bad_step))
    *_, curve = sweep_recipe(state, loader, train, lrs, precision="fp32", seed=5)
    assert curve.ending == "not finite"
    assert curve.lrs.tolist() == lrs[:bad_step].tolist()
    assert len(curve.losses) == bad_step
    assert state.step <= bad_step + LOOK_EVERY


def test_a_recipe_does_not_go_on_with_a_weight_that_is_not_finite(loader):
    train, lrs = section(), geometric(1e-4, 0.1, 20)
    state, steps = start(train), itertools.count()
    # At the last step of the third epoch: no loss shows it.
    state.model[0].weight.register_hook(lambda gradient: gradient * (INF if next(steps) == 8 else 1.0))
    *_, curve = sweep_recipe(state, loader, train, lrs, precision="fp32", seed=5)
    assert curve.ending == "not finite"
    assert len(curve.losses) == state.step == 9


# The test of any network: what it does.

LossOf = Callable[[nn.Module, Batch], Tensor]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.5, momentum=0.9, weight_decay=1e-4),
    "adam": lambda params: torch.optim.Adam(params, lr=0.5),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.5, amsgrad=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.5, momentum=0.5),
}


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def make_mlp() -> nn.Module:
    """For regression; with batch norm and dropout, which have a state to leave alone."""
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1)
        )
    )


def regression_data(n: int = 512) -> TensorDataset:
    inputs = seeded(lambda: torch.randn(n, 6))
    targets = 3 * inputs[:, :1] - 2 * inputs[:, 1:2] + inputs[:, 2:3] + 2
    return TensorDataset(inputs, targets)


def regression_batches() -> list[Batch]:
    return list(zip(*(tensor.split(32) for tensor in regression_data().tensors), strict=True))


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets)


class Classifier(nn.Module):
    """A transformer encoder layer between an embedding and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, 3)."""
        logits: Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return logits


def token_batches() -> list[Batch]:
    """The class of a sequence is in its first token."""
    tokens = seeded(lambda: torch.randint(0, 12, (512, 5)))
    return list(zip(tokens.split(32), (tokens[:, 0] % 3).split(32), strict=True))


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def last(curves: Iterator[Sweep]) -> Sweep:
    *_, curve = curves
    return curve


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_module_is_swept_as_by_a_plain_loop(name):
    model, batches, lrs = make_mlp(), regression_batches(), geometric(1e-4, 0.01, 20)
    model[3] = nn.Identity()  # instead of dropout
    optimizer = OPTIMIZERS[name](model.parameters())
    other, other_optimizer = copy.deepcopy((model, optimizer))
    curve = last(sweep_module(model, optimizer, batches, squared_error, lrs))
    losses = []
    for lr, batch in zip(lrs, itertools.cycle(batches), strict=False):
        other_optimizer.param_groups[0]["lr"] = float(lr)
        loss = squared_error(other.train(), batch)
        other_optimizer.zero_grad()
        loss.backward()
        other_optimizer.step()
        losses.append(float(loss.detach()))
    assert curve.ending == "completed"
    assert curve.lrs.tolist() == lrs.tolist()
    assert curve.losses.tolist() == pytest.approx(losses, rel=1e-5)


def test_momentum_that_the_optimizer_has_is_used():
    model, batches = make_mlp(), regression_batches()
    lrs = geometric(1e-3, 1e-2, 10)
    curves = []
    for warm in (False, True):
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        if warm:
            for weight in model.parameters():
                optimizer.state[weight]["momentum_buffer"] = torch.ones_like(weight)
        curves.append(seeded(lambda o=optimizer: last(sweep_module(model, o, batches, squared_error, lrs))))
    assert curves[0].losses[0] == curves[1].losses[0]
    assert curves[0].losses[2] != curves[1].losses[2]


@pytest.mark.parametrize(
    ("given", "shares"),
    [((0.1, 0.01), (1, 0.1)), ((0.01, 0.1), (0.1, 1)), ((0.0, 0.1), (0, 1)), ((0.0, 0.0), (1, 1))],
)
def test_groups_keep_the_ratio_of_their_learning_rates(given, shares):
    model = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Linear(1, 1, bias=False))
    groups = [{"params": [layer.weight], "lr": lr} for layer, lr in zip(model, given, strict=True)]
    weights: list[list[Tensor]] = []

    def slope_of_one(model: nn.Module, batch: Batch) -> Tensor:
        weights.append([layer.weight.detach().clone() for layer in model])
        return sum(layer.weight.sum() for layer in model) + 1000 + 0 * batch.sum()

    lrs = geometric(1e-3, 1e-1, 10)
    last(sweep_module(model, torch.optim.SGD(groups), [torch.ones(1)], slope_of_one, lrs))
    for before, after, lr in zip(weights, weights[1:], lrs, strict=False):
        for share, old, new in zip(shares, before, after, strict=True):
            torch.testing.assert_close(old - new, torch.full_like(old, share * lr), rtol=1e-3, atol=1e-6)


def test_batches_are_taken_in_order_and_again_from_the_start():
    met = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        met.append(batch)
        return squared_error(model, regression_batches()[0])

    model = make_mlp()
    last(sweep_module(model, OPTIMIZERS["sgd"](model.parameters()), [0, 1, 2, 3], loss, LRS[:14]))
    assert met == [0, 1, 2, 3] * 3 + [0, 1]


def test_no_more_batches_are_taken_than_there_are_steps():
    batches, taken = regression_batches(), itertools.count()
    limited = (batches[next(taken)] for _ in range(10))
    model = make_mlp()
    curve = last(sweep_module(model, OPTIMIZERS["sgd"](model.parameters()), limited, squared_error, LRS[:10]))
    assert len(curve.losses) == 10
    assert next(taken) == 10


def test_a_module_in_evaluation_mode_is_trained_nonetheless():
    modes = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        modes.append((model.training, torch.is_grad_enabled()))
        return squared_error(model, batch)

    model = make_mlp().eval()
    with torch.no_grad():
        last(sweep_module(model, OPTIMIZERS["sgd"](model.parameters()), regression_batches(), loss, LRS[:10]))
    assert modes == [(True, True)] * 10


@pytest.mark.parametrize(
    "batches", [lambda: iter(regression_batches()[:7]), lambda: (b for b in regression_batches()[:7])]
)
def test_an_iterator_that_runs_out_is_an_error(batches):
    model = make_mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(
        ConfigError, match=r"ran out after 7 of 20 steps\. Pass what can be gone through again"
    ):
        vd.lr_range_test(model, optimizer, batches(), squared_error, steps=20)


def test_no_batches_at_all_are_an_error():
    model = make_mlp()
    with pytest.raises(ConfigError, match="ran out after 0 of 20 steps"):
        vd.lr_range_test(model, OPTIMIZERS["sgd"](model.parameters()), [], squared_error, steps=20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_start": 0.0}, "0 to 10"),
        ({"lr_start": 1.0, "lr_end": 0.1}, "1 to 0.1"),
        ({"steps": 9}, "steps is 9, but must be at least 10"),
    ],
)
def test_a_range_that_makes_no_sense_is_an_error(settings, message):
    model = make_mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with pytest.raises(ConfigError, match=message):
        vd.lr_range_test(model, optimizer, regression_batches(), squared_error, **settings)


# The test of any network: what it finds.


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("make", "batches", "loss"),
    [(make_mlp, regression_batches, squared_error), (Classifier, token_batches, cross_entropy)],
    ids=["mlp", "transformer"],
)
def test_a_learning_rate_is_found_that_trains(name, make, batches, loss):
    model = seeded(make)
    optimizer = OPTIMIZERS[name](model.parameters())
    found = seeded(lambda: vd.lr_range_test(model, optimizer, batches(), loss))
    assert found.refusal == ""
    assert found.lr_max is not None
    assert 1e-5 < found.lr_max < 10
    assert found.lr_min == pytest.approx(found.lr_max / 10)
    assert found.verdict.confidence is not None
    assert found.to_dict()["optimizer"] == type(optimizer).__name__

    for group in optimizer.param_groups:
        group["lr"] = found.lr_max / 2
    losses = []
    for batch in [*batches(), *batches(), *batches()]:
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert np.mean(losses[-8:]) < 0.8 * losses[0]


def test_a_data_loader_is_gone_through_again_and_again():
    model = make_mlp()
    batches = DataLoader(regression_data(), batch_size=64, shuffle=True)  # 8 batches
    found = vd.lr_range_test(model, OPTIMIZERS["sgd"](model.parameters()), batches, squared_error, lr_end=0.1)
    assert len(found.sweeps[0].losses) == 90
    assert found.lr_max is not None
    assert any("8 batches again and again" in reason for reason in found.verdict.confidence.reasons)


def test_the_same_test_finds_the_same():
    model = make_mlp()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    batches = DataLoader(regression_data(), batch_size=32, shuffle=True)
    one, other = (
        seeded(lambda: vd.lr_range_test(model, optimizer, batches, squared_error)) for _ in range(2)
    )
    assert one.sweeps[0].losses.tolist() == other.sweeps[0].losses.tolist()
    assert one.lr_max == other.lr_max


def test_a_network_of_which_nothing_is_trained_is_refused():
    model, inert = make_mlp(), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([inert], lr=0.1)
    found = vd.lr_range_test(model, optimizer, regression_batches(), squared_error)
    assert found.lr_max is None
    assert "never fell" in found.refusal


def test_losses_of_a_network_in_double_precision_are_kept():
    model = make_mlp().double()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return F.mse_loss(model(inputs.double()), targets.double())

    found = vd.lr_range_test(model, OPTIMIZERS["sgd"](model.parameters()), regression_batches(), loss)
    assert found.lr_max is not None
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}


# The test of any network: what it leaves as it was.


def trained(name: str = "sgd") -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network in the middle of training: with momentum, statistics, gradients and a frozen weight."""
    model = make_mlp()
    model[0].bias.requires_grad_(False)
    optimizer = OPTIMIZERS[name](
        [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[4].parameters()}]
    )
    for batch in regression_batches()[:3]:
        optimizer.zero_grad()
        squared_error(model, batch).backward()
        optimizer.step()
    model[1].eval()
    return model, optimizer


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a test might change, copied."""
    return copy.deepcopy(
        {
            "model": dict(model.state_dict()),
            "gradients": {name: weight.grad for name, weight in model.named_parameters()},
            "trained": {name: weight.requires_grad for name, weight in model.named_parameters()},
            "modes": {name: module.training for name, module in model.named_modules()},
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "grad mode": torch.is_grad_enabled(),
        }
    )


def assert_same(one: Any, other: Any) -> None:
    """Bit for bit the same, through dictionaries and lists."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def fails_after(steps: int) -> LossOf:
    calls = itertools.count()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        if next(calls) == steps:
            raise ZeroDivisionError
        return squared_error(model, batch)

    return loss


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_of_the_caller_is_changed(name, grad):
    model, optimizer = trained(name)
    identities = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    batches = DataLoader(regression_data(), batch_size=32, shuffle=True)
    with torch.set_grad_enabled(grad):
        before = everything(model, optimizer)
        found = vd.lr_range_test(model, optimizer, batches, squared_error, steps=30)
        assert_same(everything(model, optimizer), before)
    assert len(found.sweeps[0].losses) > 5
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == identities


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("after", [0, 3, 12])
def test_nothing_of_the_caller_is_changed_by_a_loss_that_raises(after, grad):
    model, optimizer = trained()
    batches = DataLoader(regression_data(), batch_size=32, shuffle=True)
    with torch.set_grad_enabled(grad):
        before = everything(model, optimizer)
        with pytest.raises(ZeroDivisionError):
            vd.lr_range_test(model, optimizer, batches, fails_after(after), steps=30)
        assert_same(everything(model, optimizer), before)


def test_nothing_of_the_caller_is_changed_by_batches_that_run_out():
    model, optimizer = trained()
    before = everything(model, optimizer)
    with pytest.raises(ConfigError):
        vd.lr_range_test(model, optimizer, iter(regression_batches()[:7]), squared_error, steps=30)
    assert_same(everything(model, optimizer), before)


def test_a_network_that_has_diverged_leaves_the_given_one_alone():
    model, optimizer = trained()
    before = everything(model, optimizer)
    found = vd.lr_range_test(model, optimizer, regression_batches(), squared_error, lr_end=1e12, steps=40)
    assert found.sweeps[0].ending != "completed"
    assert_same(everything(model, optimizer), before)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_an_optimizer_with_a_scheduler_is_left_alone_too():
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    before, schedule = everything(model, optimizer), copy.deepcopy(scheduler.state_dict())
    found = vd.lr_range_test(model, optimizer, regression_batches(), squared_error)
    assert found.lr_max is not None
    assert_same(everything(model, optimizer), before)
    assert scheduler.state_dict() == schedule


def test_hooks_of_the_caller_see_nothing_of_the_test():
    model, optimizer = trained()
    used = used_by(optimizer)
    vd.lr_range_test(model, optimizer, regression_batches(), squared_error, steps=20)
    assert used == []
