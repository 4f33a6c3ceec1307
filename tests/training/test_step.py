"""Forms of a training step: by tables on the device, compiled, warmed up; all train alike."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_network import BATCH, CPU, SEED, STEPS, N, Operations, section, start
from torch import Tensor

import velodrome as vd
from velodrome.config import AugmentSection, ModelSection, TrainSection
from velodrome.data.imageset import ImageSet, channel_statistics
from velodrome.data.loader import Epoch, Kind, Loader
from velodrome.errors import VelodromeWarning
from velodrome.events import EpochDone, StepDone, WarmedUp
from velodrome.models.build import build_model
from velodrome.training import loop
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.optim import make_optimizer
from velodrome.training.schedule import make_schedule
from velodrome.training.state import Meter, TrainState
from velodrome.training.step import Step, TableStep, make_step

ALL = AugmentSection(
    crop=1,
    crop_fill="reflect",
    alternate_flip=True,
    cutout=2,
    brightness=0.1,
    contrast=0.1,
    resolutions="6:1,8:1",
)
OPTIMIZERS = ["sgd", "adam", "adamw", "muon"]


@pytest.fixture
def images(coloured_images) -> ImageSet:
    return coloured_images(N)


def loader_of(
    images: ImageSet, device: torch.device = CPU, augment: AugmentSection = ALL, epochs: int = 2
) -> Loader:
    statistics = channel_statistics(images.images_u8)
    return Loader(images, statistics, augment, BATCH, SEED, device, epochs)


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{kind}.{name}": v.clone() for kind, group in state.tensors().items() for name, v in group.items()
    }


def events_of(
    state: TrainState, loader: Loader, train: TrainSection, compiled: bool = False
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


def table_step(
    state: TrainState, train: TrainSection, loader: Loader, **how: object
) -> tuple[TableStep, None]:
    """In place of `make_step`: by tables, on the CPU."""
    return TableStep(state, train, loader, precision="fp32", seed=SEED, compiled=False), None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_by_tables_it_trains_as_ever(images, monkeypatch, optimizer):
    train = section(optimizer=optimizer, l1=1e-4, label_smoothing=0.1)
    plain, by_tables = start(train), start(train)
    expected = [e for e in events_of(plain, loader_of(images), train) if isinstance(e, EpochDone)]
    monkeypatch.setattr(loop, "make_step", table_step)
    found = [e for e in events_of(by_tables, loader_of(images), train) if isinstance(e, EpochDone)]
    for one, other in zip(found, expected, strict=True):
        assert one.step_losses == pytest.approx(other.step_losses, rel=1e-4)
        assert (one.train_acc, one.lr) == (pytest.approx(other.train_acc, abs=1.01 / N), other.lr)
    for ours, theirs in zip(by_tables.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # its learning rate is in float32


def test_by_tables_it_can_go_on_in_the_middle_of_a_later_epoch(images, monkeypatch):
    train = section()
    monkeypatch.setattr(loop, "make_step", table_step)
    whole = start(train)
    list(events_of(whole, loader_of(images), train))
    state = start(train)
    events = events_of(state, loader_of(images), train)
    while not isinstance(next(events), EpochDone):
        pass
    next(events)
    later = start(train)
    later.restore(
        {k: {n: v.clone() for n, v in g.items()} for k, g in state.tensors().items()}, state.numbers()
    )
    list(events_of(later, loader_of(images), train))
    for ours, theirs in zip(later.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_by_tables_the_host_reads_and_sends_nothing(images, monkeypatch):
    monkeypatch.setattr("velodrome.training.muon.may_be_looked_at", lambda flag: False)  # as on a GPU
    train = section(optimizer="muon")
    state, loader = start(train), loader_of(images)
    step, _ = table_step(state, train, loader)
    step(loader.epoch(0), 0, 0.05)
    epoch = loader.epoch(0)
    with Operations() as operations:
        step(epoch, 1, 0.04)
    assert "convolution" in operations.names
    assert {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh"}.isdisjoint(operations.names)


@pytest.mark.parametrize("make", [Step, TableStep])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trained", [0, 4])
def test_warming_up_leaves_no_trace(images, make, optimizer, trained):
    train = section(optimizer=optimizer)
    state, other, loader = start(train), start(train), loader_of(images)
    for one in (state, other):
        events = events_of(one, loader, train)
        while one.step < trained:
            next(events)
    before = tensors_of(state)
    assert step_of(make, state, train, loader).warm_up(loader) > 0
    after = tensors_of(state)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(not after[name].any() for name in after.keys() - before.keys())
    assert state.meter.done == other.meter.done
    # And the training goes on as if nothing had been.
    ours, theirs = (list(events_of(one, loader, train))[-1] for one in (state, other))
    assert ours.step_losses == pytest.approx(theirs.step_losses, rel=1e-5)


def step_of(make: type[Step], state: TrainState, train: TrainSection, loader: Loader) -> Step:
    more = (loader,) if make is TableStep else ()
    return make(state, train, *more, precision="fp32", seed=SEED, compiled=False)


def test_warming_up_leaves_gradient_scaling_as_it_was(images):
    train, loader = section(), loader_of(images)
    state = start(train)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    state.scaler.scale(torch.ones(()))  # which makes its tensors
    before = state.scaler.state_dict()
    step_of(Step, state, train, loader).warm_up(loader)
    assert state.scaler.state_dict() == before
    list(events_of(state, loader, train))
    assert state.scaler.state_dict() != before


@pytest.mark.parametrize("make", [Step, TableStep])
def test_while_warming_up_no_copy_is_part_of_the_graph_of_gradients(images, monkeypatch, make):
    """A copy that autograd knows of would tie the gradients to the stream that it was made on."""
    copies = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda self: copies.append(clone(self)) or copies[-1])
    train, loader = section(), loader_of(images)
    step_of(make, start(train), train, loader).warm_up(loader)
    assert copies
    assert all(copy.grad_fn is None for copy in copies)


@pytest.mark.parametrize("make", [Step, TableStep])
def test_a_step_is_gone_as_soon_as_nobody_uses_it(images, make):
    train, loader = section(), loader_of(images)
    step = step_of(make, start(train), train, loader)
    step.warm_up(loader)
    gone = weakref.ref(step.state.model)
    gc.disable()
    try:
        del step
        assert gone() is None
    finally:
        gc.enable()


def test_every_kind_of_batch_to_come_is_warmed_up_once(images):
    loader = loader_of(images)
    assert loader.kinds() == {Kind(16, 6): 0, Kind(8, 6): 2, Kind(16, 8): 0, Kind(8, 8): 2}
    assert loader.kinds(2) == {Kind(8, 6): 2, Kind(16, 8): 0, Kind(8, 8): 2}
    assert loader.kinds(STEPS) == loader.kinds(100 * STEPS) == {Kind(16, 8): 0, Kind(8, 8): 2}
    train = section()
    state = start(train)
    seen = []
    state.model.register_forward_pre_hook(lambda _module, inputs: seen.append(tuple(inputs[0].shape)))
    step_of(Step, state, train, loader).warm_up(loader)
    assert seen == [(16, 3, 6, 6), (8, 3, 6, 6), (16, 3, 8, 8), (8, 3, 8, 8)]


def test_a_compiled_run_warms_up_before_its_clock_runs(images, monkeypatch):
    compile_for_real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_for_real(f, backend="eager", **how))
    train = section()
    compiled, plain = start(train), start(train)
    events = events_of(compiled, loader_of(images), train, compiled=True)
    first = next(events)
    assert isinstance(first, WarmedUp)
    assert first.seconds > 0
    assert compiled.clock.elapsed_s() == 0
    *_, last = events
    others = list(events_of(plain, loader_of(images), train))
    assert not any(isinstance(event, WarmedUp) for event in others)
    assert last.step_losses == pytest.approx(others[-1].step_losses, rel=1e-5)
    assert (
        list(events_of(compiled, loader_of(images), train, compiled=True)) == []
    )  # nothing left to warm up for


def test_code_that_is_compiled_serves_the_next_network_too(images, monkeypatch):
    """A bench trains several in one process; were each compiled anew, torch would give up after a while."""
    graphs = count_graphs(monkeypatch)
    train = section()
    for _ in range(3):
        list(events_of(start(train), loader_of(images), train, compiled=True))
    assert len(graphs) == len(loader_of(images).kinds())


def test_many_kinds_of_batches_are_all_compiled(images, monkeypatch):
    graphs = count_graphs(monkeypatch)
    train = section()
    sides = replace(ALL, resolutions=",".join(f"{side}:1" for side in range(3, 9)))
    loader = loader_of(images, augment=sides, epochs=12)
    assert len(loader.kinds()) > 8
    make_step(start(train), train, loader, precision="fp32", seed=SEED, compiled=True)
    assert len(graphs) == len(loader.kinds())


@pytest.mark.parametrize("model", [ModelSection(width=2), vd.recipes.dawnbench(width=2, ghost_batch=4).model])
def test_our_networks_compile_in_one_piece(images, monkeypatch, model):
    graphs = count_graphs(monkeypatch)
    train = section()
    network = build_model(model, classes=3, image_size=8)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(network, make_optimizer(network, train), scaler, Meter(STEPS, CPU))
    loader = loader_of(images, augment=AugmentSection(cutout=2))
    make_step(state, train, loader, precision="bf16", seed=SEED, compiled=True)
    assert len(graphs) == len(loader.kinds())


def count_graphs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Everything that is compiled from now on."""
    graphs = []

    def keep(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compile_for_real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_for_real(f, backend=keep, **how))
    torch.compiler.reset()
    return graphs


@pytest.mark.parametrize(
    ("device", "compiled", "dropout", "scaling", "expected"),
    [
        ("cpu", False, 0.0, False, Step),
        ("cpu", True, 0.0, False, Step),
        ("cuda", False, 0.0, False, Step),
        ("cuda", True, 0.5, False, Step),
        ("cuda", True, 0.0, True, Step),
        ("cuda", True, 0.0, False, TableStep),
    ],
)
def test_what_is_captured(images, monkeypatch, device, compiled, dropout, scaling, expected):
    """On a device that is called what it is not."""
    compile_for_real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_for_real(f, backend="eager", **how))
    train = section()
    state = start(train, dropout=dropout)
    state.scaler = torch.amp.GradScaler("cpu", enabled=scaling)
    loader = loader_of(images)
    call_it(device, loader, monkeypatch)
    step, warm_up_s = make_step(state, train, loader, precision="fp32", seed=SEED, compiled=compiled)
    assert type(step) is expected
    assert (warm_up_s is None) == (device == "cpu" and not compiled)


def call_it(device: str, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a loader on the CPU say that it is on another device."""
    epoch = loader.epoch
    monkeypatch.setattr(loader, "device", torch.device(device))

    def on_cpu(number: int) -> Epoch:
        with monkeypatch.context() as patch:
            patch.setattr(loader, "device", CPU)
            return epoch(number)

    monkeypatch.setattr(loader, "epoch", on_cpu)


def test_where_steps_cannot_be_captured_they_are_compiled(images, monkeypatch):
    compile_for_real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compile_for_real(f, backend="eager", **how))

    def fail(*_args: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted\nmore of it")

    monkeypatch.setattr(TableStep, "_run", fail)
    train = section()
    state, other, loader = start(train), start(train), loader_of(images)
    call_it("cuda", loader, monkeypatch)
    before = tensors_of(state)
    with pytest.warns(VelodromeWarning, match=r"only compiled: CUDA error: operation not permitted$"):
        step, _ = make_step(state, train, loader, precision="fp32", seed=SEED, compiled=True)
    assert type(step) is Step
    after = tensors_of(state)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    plain = Step(other, train, precision="fp32", seed=SEED, compiled=False)
    for one, taken in ((step, state), (plain, other)):
        one(loader_of(images).epoch(0), 0, 0.05)
        assert taken.meter.done == 1
    for ours, theirs in zip(state.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", [None, vd.recipes.dawnbench(width=4, ghost_batch=4).model])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_captured_steps_train_as_ever(images, monkeypatch, optimizer, model):
    device, train = torch.device("cuda"), section(optimizer=optimizer)
    loader = loader_of(images, device, AugmentSection(cutout=2) if model else ALL)
    histories = []
    for compiled in (False, True):
        state = start(train, device=device)
        if model:
            state.model = build_model(model, classes=3, image_size=8).to(device)
            state.optimizer = make_optimizer(state.model, train)
        before = tensors_of(state)
        events = events_of(state, loader, train, compiled=compiled)
        assert isinstance(next(events), WarmedUp)
        after = tensors_of(state)
        assert all(torch.equal(after[name], value) for name, value in before.items())
        histories.append([loss for e in events if isinstance(e, EpochDone) for loss in e.step_losses])
    assert histories[1] == pytest.approx(histories[0], rel=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_kind_of_step_is_captured(images):
    device, train = torch.device("cuda"), section(optimizer="muon")
    loader = loader_of(images, device)
    step, _ = make_step(
        start(train, device=device), train, loader, precision="fp32", seed=SEED, compiled=True
    )
    assert isinstance(step, TableStep)
    assert step.graphs.keys() == loader.kinds().keys()
