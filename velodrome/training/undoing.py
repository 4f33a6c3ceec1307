"""Steps that are taken to warm up, and then never were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from velodrome.training.state import TrainState


@contextlib.contextmanager
def undone(state: TrainState) -> Iterator[None]:
    """Whatever is done to a state within, it is afterwards bit for bit as it was before.

    What the optimizer has made meanwhile becomes 0, as it begins.
    """
    before = {key: value.detach().clone() for key, value in _tensors_of(state).items()}
    done, scaler = state.meter.done, state.scaler.state_dict()
    try:
        yield
    finally:
        with torch.no_grad():
            for key, value in _tensors_of(state).items():
                if key in before:
                    value.copy_(before[key])
                else:
                    value.zero_()
        state.meter.done = done
        state.scaler.load_state_dict(scaler)


def _tensors_of(state: TrainState) -> dict[tuple[str, object], Tensor]:
    """Weights, buffers, the optimizer's memory and the meter, each the tensor itself."""
    found: dict[tuple[str, object], Tensor] = {
        ("model", name): value for name, value in state.model.state_dict(keep_vars=True).items()
    }
    for number, slots in enumerate(state.optimizer.state.values()):
        found |= {("optimizer", (number, slot)): v for slot, v in slots.items() if isinstance(v, Tensor)}
    meter = state.meter
    return found | {("meter", n): v for n, v in enumerate((meter.loss_sum, meter.correct, meter.images))}
