"""Random numbers as a function of (seed, epoch), a stream for each kind, and their way to the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Each kind of randomness has a stream of its own, so that turning one off leaves the others as they were. New
# ones come last, so that the others stay what they are.
ORDER, CROP, FLIP, CUTOUT, COLOUR, BOX, TINT, OPERATIONS, MIXUP, CUTMIX, COIN = range(11)


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """The random numbers of one stream in one epoch."""
    return np.random.default_rng([seed, epoch, stream])


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device, without making the host wait for a GPU.

    Only CUDA keeps the source of such a copy alive until it is done, so elsewhere it is an ordinary one.
    """
    return values.to(device, non_blocking=device.type == "cuda")
