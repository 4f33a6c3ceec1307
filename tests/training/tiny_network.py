"""The small training that the tests of training share, and what they watch it with."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from velodrome.config import AugmentSection, TrainSection
from velodrome.training.optim import make_optimizer
from velodrome.training.schedule import resolve_lr
from velodrome.training.state import Meter, TrainState

N, BATCH, STEPS, SEED = 40, 16, 3, 5  # an epoch: 16, 16 and 8 images
CPU = torch.device("cpu")
MILD = AugmentSection(crop=1, flip=True, cutout=2)


def make_model(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8, 3),
        )
    return model.to(memory_format=torch.channels_last)


def section(**settings: object) -> TrainSection:
    """Two epochs, unless the settings say otherwise."""
    return resolve_lr(TrainSection(**{"epochs": 2, "batch_size": BATCH, "lr": 0.05} | settings))


def start(
    train: TrainSection,
    *,
    dropout: float = 0.0,
    model: nn.Module | None = None,
    device: torch.device = CPU,
) -> TrainState:
    """The state before the first step, of the network here or of another."""
    model = (model or make_model(dropout)).to(device)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    return TrainState(model, make_optimizer(model, train), scaler, Meter(STEPS, device))


class Operations(TorchDispatchMode):
    """Notes the name of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
