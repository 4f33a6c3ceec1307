"""From the model section of a config to a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velodrome.config import MADE_OF, ModelSection, made_of
from velodrome.models.ghost_norm import use_ghost_batches
from velodrome.models.resnet9 import ResNet9
from velodrome.models.speednet import SpeedNet
from velodrome.models.whitening import PatchWhitening


def build_model(model: ModelSection, *, classes: int, image_size: int, seed: int = 0) -> nn.Module:
    """A new network whose initial weights are a function of `seed`; the caller's random state is left alone.

    Args:
        model: which network, how wide, what it is made of.
        classes: number of logits.
        image_size: side of the (square) images in pixels.
        seed: of the initial weights.

    Raises:
        ConfigError: the network cannot be made for images of that size.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed every GPU as well.
        torch.default_generator.manual_seed(seed)
        network = _make(made_of(model), classes, image_size)
    if model.ghost_batch is not None:
        use_ghost_batches(network, model.ghost_batch)
    # Convolutions of images whose channels lie together are faster on CPUs and on tensor cores alike.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return, unused-ignore]


def _make(model: ModelSection, classes: int, image_size: int) -> nn.Module:
    settings: dict[str, Any] = {"classes": classes, "image_size": image_size}
    settings |= {key: getattr(model, key) for key in ("width", "dropout", "logit_scale")}
    if model.model == "speednet":
        return SpeedNet(**settings)
    return ResNet9(**settings, **{key: getattr(model, key) for key in MADE_OF["resnet9"]})


def fit_to_images(model: nn.Module, images: Tensor) -> None:
    """Set those weights that are computed from training images: the filters of a PatchWhitening.

    Args:
        model: new; one without such layers stays as it is.
        images: (N, 3, H, W) float, normalised training images; `images_to_fit` of them are enough.
    """
    for module in _fitted_modules(model):
        module.fit(images)


def images_to_fit(model: nn.Module) -> int:
    """Of how many training images `fit_to_images` makes use; 0 where there is nothing to fit."""
    return max((module.images for module in _fitted_modules(model)), default=0)


def _fitted_modules(model: nn.Module) -> list[PatchWhitening]:
    return [module for module in model.modules() if isinstance(module, PatchWhitening)]
