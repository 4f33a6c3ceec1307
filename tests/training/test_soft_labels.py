"""Training with shares of classes in place of labels, and with weights of classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_network import BATCH, CPU, SEED, STEPS, N, Operations, make_model, section, start
from torch.nn import functional as F

from velodrome.config import AugmentSection, TrainSection
from velodrome.data.imageset import ImageSet, MappedImages, channel_statistics
from velodrome.data.loader import Loader
from velodrome.events import EpochDone
from velodrome.training import loop
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.lr_range import sweep_recipe
from velodrome.training.schedule import make_schedule
from velodrome.training.state import Meter, TrainState
from velodrome.training.step import Step, TableStep, make_step, mean_cross_entropy

MIXED = AugmentSection(crop=1, cutout=2, mixup=0.3, cutmix=1.0)
PLAIN = AugmentSection(crop=1, cutout=2)


@pytest.fixture
def images(coloured_images) -> ImageSet:
    """20 of one class, 12 and 8 of the others."""
    return coloured_images(N).take(np.r_[0:N:3, 0:18:3, 1:36:3, 2:26:3])


def loader_of(images: ImageSet, augment: AugmentSection, balance: str = "none") -> Loader:
    return Loader(images, channel_statistics(images.images_u8), augment, BATCH, SEED, CPU, balance=balance)


def epochs_of(
    state: TrainState, loader: Loader, train: TrainSection, *, compiled: bool = False
) -> list[EpochDone]:
    events = fit(
        state,
        loader,
        make_schedule(train, STEPS),
        train,
        precision="fp32",
        seed=SEED,
        score=lambda _model: NO_SCORES,
        compiled=compiled,
    )
    return [event for event in events if isinstance(event, EpochDone)]


# The loss.


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_labels_and_their_shares_have_the_same_loss(smoothing, weighted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 4, generator=generator)
    labels = torch.arange(20) % 3
    weights = torch.tensor([0.5, 1.0, 3.0, 0.0]) if weighted else None
    expected = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    torch.testing.assert_close(mean_cross_entropy(logits, labels, smoothing, weights), expected)
    shares = F.one_hot(labels, 4).float()
    torch.testing.assert_close(mean_cross_entropy(logits, shares, smoothing, weights), expected)


def test_weights_count_by_shares():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    shares = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    shares = shares / shares.sum(1, keepdim=True)
    weights = torch.tensor([0.5, 1.0, 3.0])
    weighed = shares * weights
    expected = -(weighed * logits.log_softmax(1)).sum() / weighed.sum()
    torch.testing.assert_close(mean_cross_entropy(logits, shares, 0.0, weights), expected)


# The meter.


def test_the_class_with_the_larger_share_is_the_right_answer():
    logits = torch.eye(3)[[0, 1, 2, 2]]
    shares = torch.tensor([[0.6, 0.4, 0], [0.7, 0.3, 0], [0, 0, 1], [0.2, 0.3, 0.5]])
    for record in ("record", "record_at"):
        meter = Meter(2, CPU)
        if record == "record":
            meter.record(torch.tensor(1.0), logits, shares)
        else:
            meter.record_at(torch.tensor(0), torch.tensor(1.0), logits, shares)
            meter.done = 1
        assert meter.read().accuracy == 0.75
        assert meter.read().loss == 1


# Training.


@pytest.mark.parametrize("augment", [PLAIN, MIXED], ids=["labels", "shares"])
@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_figures_equal_those_of_a_plain_loop(images, augment, balance, smoothing):
    train = section(label_smoothing=smoothing, weight_decay=0.0)
    loader = loader_of(images, augment, balance)
    ours = epochs_of(start(train), loader, train)

    model, lr_at = make_model(), make_schedule(train, STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=False)
    model.train()
    counts = np.bincount(images.labels)
    weights = torch.tensor(N / (3 * counts)).float() if balance == "weights" else torch.ones(3)
    for number, epoch in enumerate(ours):
        losses, right = [], 0
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = lr_at(number * STEPS + step)
            batch, labels = loader.epoch(number)[step]
            shares = labels if labels.ndim == 2 else F.one_hot(labels, 3).float()
            smooth = (1 - smoothing) * shares + smoothing / 3
            logits = model(batch)
            loss = -(smooth * weights * logits.log_softmax(1)).sum() / (shares * weights).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            right += int((logits.argmax(1) == shares.argmax(1)).sum())
        assert epoch.step_losses == pytest.approx(losses, rel=1e-4)
        assert epoch.train_acc == pytest.approx(right / N)


@pytest.mark.parametrize("augment", [PLAIN, MIXED], ids=["labels", "shares"])
@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_by_tables_it_trains_as_ever(images, monkeypatch, augment, balance):
    train = section(label_smoothing=0.1)
    loader = loader_of(images, augment, balance)
    expected = epochs_of(start(train), loader, train)

    def table_step(state: TrainState, train: TrainSection, loader: Loader, **how: object):
        return TableStep(state, train, loader, precision="fp32", seed=SEED, compiled=False), None

    monkeypatch.setattr(loop, "make_step", table_step)
    for one, other in zip(epochs_of(start(train), loader, train), expected, strict=True):
        assert one.step_losses == pytest.approx(other.step_losses, rel=1e-4)
        assert one.train_acc == pytest.approx(other.train_acc, abs=1.01 / N)


@pytest.mark.parametrize("balance", ["none", "weights"])
def test_compiled_it_trains_as_ever(images, monkeypatch, balance):
    compile_for_real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_for_real(f, backend="aot_eager", **how))
    torch.compiler.reset()
    train = section(label_smoothing=0.1)
    loader = loader_of(images, MIXED, balance)
    expected = epochs_of(start(train), loader, train)
    for one, other in zip(epochs_of(start(train), loader, train, compiled=True), expected, strict=True):
        assert one.step_losses == pytest.approx(other.step_losses, rel=1e-4)


def test_classes_of_one_size_need_no_weights(coloured_images):
    images = coloured_images(39)
    train = section()
    plain, weighed = start(train), start(train)
    epochs_of(plain, loader_of(images, PLAIN), train)
    epochs_of(weighed, loader_of(images, PLAIN, "weights"), train)
    for ours, theirs in zip(plain.model.parameters(), weighed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_range_test_takes_shares(images):
    train = section()
    lrs = torch.logspace(-3, -1, 12).double().numpy()
    *_, curve = sweep_recipe(
        start(train), loader_of(images, MIXED, "weights"), train, lrs, precision="fp32", seed=SEED
    )
    assert np.isfinite(curve.losses).all()
    assert 0 <= curve.right <= curve.images == sum([16, 16, 8] * 4)


# What is captured.


def test_by_tables_the_host_reads_and_sends_nothing(images):
    train = section(label_smoothing=0.1)
    strong = replace(MIXED, random_resized_crop=0.2, saturation=0.2, hue=0.1, brightness=0.1)
    loader, state = loader_of(images, strong, "weights"), start(train)
    step = TableStep(state, train, loader, precision="fp32", seed=SEED, compiled=False)
    step(loader.epoch(0), 0, 0.05)
    epoch = loader.epoch(0)
    with Operations() as operations:
        step(epoch, 1, 0.04)
    assert {"bmm", "lerp", "convolution"} <= set(operations.names)
    assert {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh"}.isdisjoint(operations.names)


@pytest.mark.parametrize(
    ("augment", "in_file", "expected"),
    [
        (PLAIN, False, TableStep),
        (MIXED, False, TableStep),
        (AugmentSection(crop=1, cutout=2, randaugment=1), False, Step),
        (PLAIN, True, Step),
    ],
)
def test_batches_in_which_the_host_has_a_part_are_not_captured(
    images, monkeypatch, augment, in_file, expected
):
    """On a device that is called what it is not."""
    monkeypatch.setattr(torch, "compile", lambda f, **how: f)
    for kind in (Step, TableStep):
        monkeypatch.setattr(kind, "warm_up", lambda self, loader: 0.0)
    if in_file:
        images = ImageSet(MappedImages(images.images_u8), images.labels, images.classes, images.paths)
    train, loader = section(), loader_of(images, augment)
    epoch = loader.epoch(0)
    monkeypatch.setattr(loader, "device", torch.device("cuda"))
    monkeypatch.setattr(loader, "epoch", lambda number: epoch)
    step, _ = make_step(start(train), train, loader, precision="fp32", seed=SEED, compiled=True)
    assert type(step) is expected
