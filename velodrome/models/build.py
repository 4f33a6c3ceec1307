"""From the model section of a config to a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from velodrome.config import ModelSection
from velodrome.models.resnet9 import ResNet9
from velodrome.models.speednet import SpeedNet
from velodrome.models.whitening import PatchWhitening

NETWORKS: dict[str, type[ResNet9 | SpeedNet]] = {"resnet9": ResNet9, "speednet": SpeedNet}


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
        make = NETWORKS[model.model]
        network = make(classes=classes, width=model.width, dropout=model.dropout, image_size=image_size)
    # Convolutions of images whose channels lie together are faster on CPUs and on tensor cores alike.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return, unused-ignore]


def fit_to_images(model: nn.Module, images: Tensor) -> None:
    """Set those weights that are computed from training images: the filters of a PatchWhitening.

    Args:
        model: new; one without such layers stays as it is.
        images: (N, 3, H, W) float, normalised training images; a few thousand are enough.
    """
    for module in model.modules():
        if isinstance(module, PatchWhitening):
            module.fit(images)


def learns_from_images(model: nn.Module) -> bool:
    """Whether `fit_to_images` would do anything."""
    return any(isinstance(module, PatchWhitening) for module in model.modules())
