"""The range test of a module against that of torch-lr-finder: the same losses, the same steepest fall."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from velodrome.training.lr_range import Batch, Sweep, geometric, sweep_module
from velodrome.training.lr_rules import steepest

torch_lr_finder = pytest.importorskip("torch_lr_finder")

STEPS = 60


@pytest.fixture(scope="module")
def both() -> tuple[Sweep, object]:
    """Our test and theirs of the same network, with the same batches and learning rates."""
    mpl.use("agg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
        inputs = torch.randn(512, 6)
    batches = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels)

    *_, ours = sweep_module(model, optimizer, batches, loss, geometric(1e-3, 1.0, STEPS))
    theirs = torch_lr_finder.LRFinder(model, optimizer, nn.CrossEntropyLoss(), device="cpu")
    theirs.range_test(batches, end_lr=1.0, num_iter=STEPS, smooth_f=0.0, diverge_th=1e9)
    return ours, theirs


def test_losses_are_those_of_torch_lr_finder(both):
    ours, theirs = both
    assert ours.ending == "completed"
    assert ours.losses.tolist() == pytest.approx(theirs.history["loss"], rel=1e-5)


def test_the_steepest_fall_is_that_of_torch_lr_finder(both):
    ours, theirs = both
    theirs.history = {"lr": ours.lrs.tolist(), "loss": ours.smoothed.tolist()}
    _, expected = theirs.plot(skip_start=0, skip_end=0, ax=mpl.figure.Figure().subplots())
    assert steepest(ours.lrs, ours.smoothed) == expected
