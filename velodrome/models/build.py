"""From the model section of a config to a network."""

from __future__ import annotations

import torch
from torch import nn

from velodrome.config import ModelSection
from velodrome.models.resnet9 import ResNet9


def build_model(model: ModelSection, *, classes: int, image_size: int, seed: int = 0) -> nn.Module:
    """A new network whose initial weights are a function of `seed`; the caller's random state is left alone.

    Args:
        model: which network, how wide, its dropout.
        classes: number of logits.
        image_size: side of the (square) images in pixels.
        seed: of the initial weights.

    Raises:
        ConfigError: the network cannot be made for images of that size.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed every GPU as well.
        torch.default_generator.manual_seed(seed)
        network = ResNet9(classes=classes, width=model.width, dropout=model.dropout, image_size=image_size)
    # Convolutions of images whose channels lie together are faster on CPUs and on tensor cores alike.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return, unused-ignore]
