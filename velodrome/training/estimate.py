"""What a run will cost, estimated before it starts."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn
from torch.nn import functional as F

from velodrome.device import autocast, synchronize

# Images of a trial step: enough to keep two cores busy, few enough to be over in a moment.
TRIAL_IMAGES = 64
# What Python and torch take before anything is trained, in GiB.
PROCESS_GIB = 0.45
# Saved activations and their gradients as a multiple of all layer outputs; measured on resnet9 at batch 512.
ACTIVATION_SHARE = 1.0


def images_per_s(model: nn.Module, input_shape: tuple[int, int, int], *, precision: str) -> float:
    """Training speed, measured on a copy of `model` with two small batches of random images.

    Args:
        model: on the device to be measured; not changed.
        input_shape: (C, H, W).
        precision: "fp32", "bf16" or "fp16".
    """
    device = next(model.parameters()).device
    trial = copy.deepcopy(model).train()
    images = torch.rand(TRIAL_IMAGES, *input_shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(TRIAL_IMAGES, dtype=torch.long, device=device)

    def step() -> None:
        with autocast(device, precision):
            logits = trial(images).float()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call, unused-ignore]

    step()  # the first one also chooses kernels and allocates
    synchronize(device)
    start_s = time.perf_counter()
    step()
    step()
    synchronize(device)
    return 2 * TRIAL_IMAGES / (time.perf_counter() - start_s)


def memory_gib(
    *, params: int, activation_mb: float, batch_size: int, precision: str, image_bytes: int
) -> float:
    """Peak memory of training, a rough figure.

    Args:
        params: parameters; each takes weight, gradient and two optimizer slots in float32 at most.
        activation_mb: outputs of all layers for one image in float32, in MB.
        batch_size: images a step.
        precision: half types halve the activations.
        image_bytes: of the data set in memory.
    """
    activations = activation_mb * 1e6 * batch_size * (1.0 if precision == "fp32" else 0.5)
    return PROCESS_GIB + (16 * params + ACTIVATION_SHARE * activations + image_bytes) / 2**30
