"""The training loop on a tiny network: what it reports, how it goes on, what it must not wait for."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from tiny_network import BATCH, CPU, MILD, SEED, STEPS, N, make_model, section, start
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from velodrome.config import TrainSection
from velodrome.data.imageset import channel_statistics
from velodrome.data.loader import Loader
from velodrome.errors import RunError, TrainingError
from velodrome.events import EpochDone, StepDone, WarmedUp
from velodrome.training.loop import Scores, fit, raise_if_not_finite
from velodrome.training.optim import make_optimizer
from velodrome.training.schedule import make_schedule
from velodrome.training.state import Clock, Meter, TrainState
from velodrome.training.step import seed_step

SCORES = Scores(None, None, 0.75, 0.5)


def go(
    state: TrainState, loader: Loader, train: TrainSection, precision: str = "fp32", scores: Scores = SCORES
) -> Iterator[StepDone | EpochDone]:
    schedule = make_schedule(train, STEPS)
    return fit(state, loader, schedule, train, precision=precision, seed=SEED, score=lambda _model: scores)


def weights_of(model: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def written(state: TrainState) -> tuple[dict[str, bytes], str]:
    """The state as a checkpoint holds it."""
    return {group: safetensors.torch.save(t) for group, t in state.tensors().items()}, json.dumps(
        state.numbers()
    )


def read_back(state: TrainState, saved: tuple[dict[str, bytes], str]) -> TrainState:
    tensors = {group: safetensors.torch.load(data) for group, data in saved[0].items()}
    state.restore(tensors, json.loads(saved[1]))
    return state


# What is learned and reported.


def test_the_loss_falls(loader):
    train = section(epochs=8)
    epochs = [event for event in go(start(train), loader, train) if isinstance(event, EpochDone)]
    assert epochs[-1].train_loss < 0.5 * epochs[0].train_loss
    assert epochs[-1].train_acc > 0.9


def test_the_learning_rate_reported_is_the_one_used(loader):
    train = section(epochs=3, lr_final=0.001)
    state = start(train)
    used = []
    state.optimizer.register_step_pre_hook(
        lambda optimizer, _args, _kwargs: used.append(
            [(group["lr"], group["momentum"]) for group in optimizer.param_groups]
        )
    )
    events = list(go(state, loader, train))
    steps = [event for event in events if isinstance(event, StepDone)]
    epochs = [event for event in events if isinstance(event, EpochDone)]
    lr_at = make_schedule(train, STEPS)
    expected = [lr_at(step) for step in range(3 * STEPS)]
    assert len(set(expected)) == 3 * STEPS
    assert [event.lr for event in steps] == expected
    assert used == [[(lr, 0.9)] * 3 for lr in expected]  # in all groups; momentum is not cycled
    assert [lr for event in epochs for lr in event.step_lrs] == expected
    assert [event.lr for event in epochs] == expected[STEPS - 1 :: STEPS]


def test_steps_and_epochs_are_counted(loader):
    train = section(epochs=2)
    events = list(go(start(train), loader, train))
    assert [(e.step, e.epoch) for e in events if isinstance(e, StepDone)] == [
        (0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)
    ]  # fmt: skip
    assert [type(event).__name__ for event in events] == (["StepDone"] * STEPS + ["EpochDone"]) * 2
    assert [event.epoch for event in events if isinstance(event, EpochDone)] == [1, 2]


def test_figures_equal_those_of_a_plain_loop(loader):
    train = section(epochs=2, weight_decay=0.01)
    ours = [event for event in go(start(train), loader, train) if isinstance(event, EpochDone)]

    model, lr_at = make_model(), make_schedule(train, STEPS)
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": others}]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, foreach=False)
    model.train()
    for number, epoch in enumerate(ours):
        losses, all_losses, right = [], [], []
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(number * STEPS + step)
            images, labels = loader.epoch(number)[step]
            logits = model(images)
            each = F.cross_entropy(logits, labels, reduction="none")
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
            losses.append(float(each.detach().mean()))
            all_losses += each.tolist()
            right += (logits.argmax(1) == labels).tolist()
        assert epoch.step_losses == pytest.approx(losses, rel=1e-4)
        assert epoch.train_loss == pytest.approx(sum(all_losses) / N, rel=1e-4)  # each image counts once
        assert epoch.train_acc == pytest.approx(sum(right) / N)


def test_scores_are_taken_after_each_epoch_and_passed_on(loader):
    train = section(epochs=2)
    state = start(train)
    seen = []

    def score(model: nn.Module) -> Scores:
        seen.append(state.step)
        assert model is state.model
        return Scores(1.5, 0.25, 2.5, 0.125)

    schedule = make_schedule(train, STEPS)
    list(fit(state, loader, schedule, train, precision="fp32", seed=SEED, score=score))
    assert seen == [STEPS, 2 * STEPS]
    row = state.history[-1]
    assert (row.val_loss, row.val_acc, row.test_loss, row.test_acc) == (1.5, 0.25, 2.5, 0.125)


def test_training_mode_is_set_again_after_scoring(loader):
    train = section(epochs=2)
    modes = []
    state = start(train)
    state.model.register_forward_pre_hook(lambda model, _args: modes.append(model.training))
    schedule = make_schedule(train, STEPS)

    def score(model: nn.Module) -> Scores:
        model.eval()
        return SCORES

    list(fit(state, loader, schedule, train, precision="fp32", seed=SEED, score=score))
    assert modes == [True] * 2 * STEPS


def test_time_and_speed(loader):
    train = section(epochs=2)
    begun = time.perf_counter()
    first, second = (event for event in go(start(train), loader, train) if isinstance(event, EpochDone))
    assert 0 < first.time_s < second.time_s < time.perf_counter() - begun
    assert first.images_per_s == pytest.approx(N / first.time_s)
    assert second.images_per_s == pytest.approx(N / (second.time_s - first.time_s))


# The loss.


def first_step(loader: Loader, precision: str = "fp32", **settings: object) -> tuple[float, list[Tensor]]:
    """The loss reported for the first step, and the weights after it."""
    train = section(schedule="constant", momentum=0.0, weight_decay=0.0, **settings)
    state = start(train)
    next(go(state, loader, train, precision))
    return state.meter.step_losses()[0], weights_of(state.model)


def test_label_smoothing_is_that_of_torch(loader):
    images, labels = loader.epoch(0)[0]
    logits = make_model().train()(images)
    expected = float(F.cross_entropy(logits.detach(), labels, label_smoothing=0.2))
    assert first_step(loader, label_smoothing=0.2)[0] == pytest.approx(expected, rel=1e-5)
    assert first_step(loader)[0] != pytest.approx(expected, rel=1e-3)


def test_the_l1_penalty_is_trained_but_not_reported(loader):
    loss, plain = first_step(loader)
    loss_with, penalised = first_step(loader, l1=0.1)
    assert loss_with == loss
    for before, without, with_penalty in zip(make_model().parameters(), plain, penalised, strict=True):
        shrunk = 0.05 * 0.1 * before.detach().sign() if before.ndim > 1 else 0
        torch.testing.assert_close(with_penalty, without - shrunk, rtol=1e-4, atol=1e-6)


def test_bf16_computes_in_half_precision_and_keeps_weights_in_float32(loader):
    loss, _ = first_step(loader)
    loss_half, weights = first_step(loader, precision="bf16")
    assert loss_half != loss
    assert loss_half == pytest.approx(loss, rel=0.03)
    assert {weight.dtype for weight in weights} == {torch.float32}


# Going on.


RUNS = {
    "fp32": ("fp32", 0.0, section()),
    "bf16": ("bf16", 0.0, section()),
    "dropout": ("fp32", 0.5, section(optimizer="adam", lr=0.01, l1=1e-3)),
    "bf16, dropout": ("bf16", 0.5, section(optimizer="adamw", lr=0.01, label_smoothing=0.1)),
    "muon": ("bf16", 0.0, section(optimizer="muon", head_lr_scale=0.1, bias_lr_scale=10.0)),
}


def assert_same_end(one: TrainState, other: TrainState) -> None:
    """Bitwise the same weights, statistics, optimizer and figures; times may differ."""
    for group, tensors in one.tensors().items():
        others = other.tensors()[group]
        assert tensors.keys() == others.keys()
        assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    timeless = {"time_s": 0.0, "images_per_s": 0.0, "step_losses": (), "step_lrs": ()}
    assert [replace(row, **timeless) for row in one.history] == [
        replace(row, **timeless) for row in other.history
    ]
    assert one.history[-1].step_losses == other.history[-1].step_losses
    assert (one.epoch, one.step) == (other.epoch, other.step) == (2, 2 * STEPS)


# After 2 steps of the first epoch, its last step, its end, the next epoch's first and last step.
@pytest.mark.parametrize("events_before", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(loader, run, events_before):
    precision, dropout, train = RUNS[run]
    uninterrupted = start(train, dropout=dropout)
    list(go(uninterrupted, loader, train, precision))

    stopped = start(train, dropout=dropout)
    events = go(stopped, loader, train, precision)
    for _ in range(events_before):
        next(events)
    saved = written(stopped)
    events.close()
    torch.manual_seed(99)  # whatever happened in between

    resumed = read_back(start(train, dropout=dropout), saved)
    assert resumed.step == stopped.step
    list(go(resumed, loader, train, precision))
    assert_same_end(resumed, uninterrupted)

    list(go(stopped, loader, train, precision))
    assert_same_end(stopped, uninterrupted)


def test_dropout_is_a_function_of_seed_and_step():
    def drawn(seed: int, step: int) -> tuple[float, ...]:
        seed_step(seed, step, torch.device("cpu"))
        return tuple(torch.rand(4).tolist())

    assert drawn(1, 7) == drawn(1, 7)
    assert len({drawn(0, 0), drawn(0, 1), drawn(1, 0), drawn(1, 1), drawn(0, 10)}) == 5


def test_a_finished_run_has_nothing_left_to_do(loader):
    train = section()
    state = start(train)
    list(go(state, loader, train))
    assert list(go(state, loader, train)) == []
    assert list(go(read_back(start(train), written(state)), loader, train)) == []


def test_the_clock_goes_on_where_it_stood(loader):
    train = section()
    state = start(train)
    next(go(state, loader, train))
    saved = written(state)
    saved_s = json.loads(saved[1])["train_s"]
    assert saved_s > 0
    assert read_back(start(train), saved).clock.elapsed_s() == saved_s


def test_a_clock_stands_still_when_stopped(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(5.0)
    clock.start()
    now[0] += 2
    assert clock.elapsed_s() == 7.0
    clock.start()  # as when training was left between two steps
    now[0] += 1
    clock.stop()
    now[0] += 10
    assert clock.elapsed_s() == 8.0


def another_network() -> TrainState:
    return start(section(), model=nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))


def another_epoch_length() -> TrainState:
    state = start(section())
    state.meter = Meter(STEPS + 1, CPU)
    return state


@pytest.mark.parametrize("make", [another_network, another_epoch_length])
def test_a_state_that_does_not_fit_is_refused(loader, make):
    train = section()
    state = start(train)
    next(go(state, loader, train))
    with pytest.raises(RunError, match=r"does not fit the run's config\.yaml"):
        read_back(make(), written(state))


# When the loss is not finite.


class Failing(nn.Module):
    """The tiny network, whose answer in one training step is not a number."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.network, self.step, self.calls = make_model(), step, 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        self.calls += 1
        return logits * (torch.nan if self.calls == self.step + 1 else 1.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("bad_step", [0, 3, 4])
def test_a_step_whose_loss_is_not_finite_changes_no_weight(loader, optimizer, bad_step):
    train = section(optimizer=optimizer, lr=0.0123, schedule="constant")
    state = start(train, model=Failing(bad_step))
    after, events = [weights_of(state.model)], go(state, loader, train)

    def train_on() -> None:
        after.extend(weights_of(state.model) for event in events if isinstance(event, StepDone))

    with pytest.raises(TrainingError, match=rf"not finite at step {bad_step} \(learning rate 0\.0123\)"):
        train_on()
    changed = [
        any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(after)
    ]
    assert len(changed) == (bad_step // STEPS + 1) * STEPS  # it is told at the end of that epoch
    assert [step for step, moved in enumerate(changed) if not moved] == [bad_step]
    assert all(weight.isfinite().all() for weight in state.model.parameters())
    assert len(state.history) == state.epoch == bad_step // STEPS


def test_it_is_told_in_the_middle_of_an_epoch_when_asked(loader):
    train = section()
    state = start(train, model=Failing(1))
    schedule = make_schedule(train, STEPS)
    events = go(state, loader, train)
    next(events)
    assert raise_if_not_finite(state, schedule).loss == pytest.approx(state.meter.step_losses()[0])
    next(events)
    with pytest.raises(TrainingError, match=f"step 1 .learning rate {schedule(1):.3g}.*lower --lr"):
        raise_if_not_finite(state, schedule)


def test_a_weight_that_is_not_finite_is_noticed_before_the_next_loss_shows_it(loader):
    train = section(schedule="constant")
    state = start(train)
    state.model[0].weight.register_hook(lambda gradient: gradient * torch.inf)
    next(go(state, loader, train))
    assert state.meter.read().bad_step is None
    with pytest.raises(TrainingError, match=r"A weight is not finite at step 0 \(learning rate 0\.05\)"):
        raise_if_not_finite(state, make_schedule(train, STEPS))


def test_a_learning_rate_out_of_all_bounds_is_an_error(loader):
    train = section(lr=1e30, schedule="constant")
    state = start(train)
    with pytest.raises(TrainingError, match=r"not finite at step [12] \(learning rate 1e\+30\)"):
        list(go(state, loader, train))


# What the loop must not wait for.


class Operations(TorchDispatchMode):
    """Notes the name of every operation while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# Operations whose result, or the size of it, the host must know before it goes on.
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2"}
READING = ["item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__"]


@pytest.mark.parametrize(
    ("precision", "train"),
    [
        ("fp32", section(l1=1e-3, label_smoothing=0.1)),
        ("bf16", section()),
        ("fp32", section(optimizer="adam")),
        ("fp32", section(optimizer="adamw")),
        ("bf16", section(optimizer="muon")),
    ],
    ids=["sgd", "bf16", "adam", "adamw", "muon"],
)
def test_no_step_waits_for_the_device(loader, monkeypatch, precision, train):
    monkeypatch.setattr("velodrome.training.muon.may_be_looked_at", lambda flag: False)  # as on a GPU
    state = start(train, dropout=0.1)
    events = go(state, loader, train, precision)
    next(events)  # the epoch's tables are sent to the device before its first step
    read = []
    for name in READING:
        original = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor,
            name,
            lambda *args, _n=name, _o=original, **kwargs: (read.append(_n), _o(*args, **kwargs))[1],
        )
    with Operations() as operations:
        assert [type(next(events)) for _ in range(STEPS - 1)] == [StepDone] * (STEPS - 1)
    assert "convolution" in operations.names  # the operations of the step were seen
    assert WAITING.isdisjoint(operations.names)
    assert read == []
    with Operations() as operations:
        assert isinstance(next(events), EpochDone)
    assert "_local_scalar_dense" in operations.names  # and reading figures is seen where it happens


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("resolutions", [None, "6:1,8:1"])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_no_step_waits_for_a_gpu(coloured_images, optimizer, resolutions):
    device = torch.device("cuda")
    images, train = coloured_images(N), section(optimizer=optimizer)
    augment = replace(MILD, resolutions=resolutions)
    loader = Loader(images, channel_statistics(images.images_u8), augment, BATCH, SEED, device)
    model = make_model().to(device)
    scaler = torch.amp.GradScaler("cuda", enabled=False)
    events = go(TrainState(model, make_optimizer(model, train), scaler, Meter(STEPS, device)), loader, train)
    assert isinstance(next(events), WarmedUp)
    next(events)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(events)
    finally:
        torch.cuda.set_sync_debug_mode("default")
