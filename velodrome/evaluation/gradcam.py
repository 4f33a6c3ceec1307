"""Grad-CAM: where in an image a network sees what speaks for a class."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from velodrome.device import autocast
from velodrome.errors import ConfigError, did_you_mean
from velodrome.evaluation.predict import at_once, device_of, evaluating

# The stage whose maps are shown unless another is asked for: 8x8 of a 32x32 image.
DEFAULT_LAYER = "layer2"
# Images of 32 x 32 pixels at a time: what a stage and all after it keep for the gradient is some MB of each.
BATCH_SIZE = 100


def gradcam(
    network: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    layer: str = DEFAULT_LAYER,
    precision: str = "fp32",
) -> Tensor:
    """Class activation maps by gradient (Selvaraju et al., arXiv:1610.02391), any number of classes an image.

    A channel of the stage counts as much as the mean gradient of the class's logit over its positions; the
    map is the weighted sum of the channels, where positive. The network is run in evaluation mode, without
    torch.compile; its modes, gradients and hooks are afterwards as they were.

    Args:
        network: (N, 3, H, W) -> (N, classes) logits; it may have been compiled.
        images: (N, 3, H, W) float, normalised, on the network's device.
        targets: (N, K) int64, the classes to explain.
        layer: name of a stage whose output has positions, (N, C, h, w).
        precision: "fp32", "bf16" or "fp16"; the sums are in float32 in any case.

    Returns:
        (N, K, h, w) float32, at least 0, on the same device.

    Raises:
        ConfigError: the network has no such stage, or its output has no positions.
    """
    network = _unwrapped(network)
    stage = find_stage(network, layer)
    # A caller's inference_mode would make tensors that know no gradient, here and in what is saved for it.
    with torch.inference_mode(False), torch.enable_grad(), evaluating(network):
        size = at_once(BATCH_SIZE, images.shape[2:], images.device)
        parts = zip(torch.split(images, size), torch.split(targets, size), strict=True)
        maps = [_maps_of_batch(network, stage, *part, layer=layer, precision=precision) for part in parts]
    return torch.cat(maps)


def find_stage(network: nn.Module, layer: str) -> nn.Module:
    """The sub-module called `layer`.

    Raises:
        ConfigError: there is none.
    """
    network = _unwrapped(network)
    stages: dict[str, nn.Module] = dict(network.named_modules())
    if layer not in stages or not layer:
        outer = [name for name, _ in network.named_children()]
        raise ConfigError(
            f"layer is {layer!r}, but the network has no such stage.", did_you_mean(layer, outer)
        )
    return stages[layer]


def check_stage(network: nn.Module, image_size: tuple[int, int], layer: str) -> None:
    """Check that there are maps of this stage, by one of a black image.

    Args:
        network: (N, 3, H, W) -> (N, classes) logits.
        image_size: (H, W).
        layer: name of the stage.

    Raises:
        ConfigError: the network has no such stage, or its output has no positions.
    """
    device = device_of(network)
    gradcam(
        network,
        torch.zeros(1, 3, *image_size, device=device),
        torch.zeros(1, 1, dtype=torch.int64, device=device),
        layer=layer,
    )


def _unwrapped(network: nn.Module) -> nn.Module:
    """What torch.compile has wrapped, or the network itself."""
    inner: nn.Module = getattr(network, "_orig_mod", network)
    return inner


def _maps_of_batch(
    network: nn.Module, stage: nn.Module, images: Tensor, targets: Tensor, *, layer: str, precision: str
) -> Tensor:
    """(N, K, h, w) float32 for a batch that fits into memory."""
    # Without gradients of their own, the weights let the graph begin at the stage, not at the image.
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    buffers = {name: buffer.detach() for name, buffer in network.named_buffers()}
    with _output_of(stage, layer) as seen, autocast(images.device, precision):
        logits = functional_call(network, {**weights, **buffers}, (images.clone(),))
    activation = seen[0]  # (N, C, h, w)
    chosen = logits.float().gather(1, targets.clone()).sum(0)  # (K,): no image changes another's logits
    maps = []
    for logit in chosen:
        (gradient,) = torch.autograd.grad(logit, activation, retain_graph=True)
        channel_weights = gradient.float().mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        maps.append((channel_weights * activation.detach().float()).sum(1).relu())  # (N, h, w)
    return torch.stack(maps, 1)


@contextlib.contextmanager
def _output_of(stage: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """A list that holds the stage's output, from which on gradients flow, once the network has run."""
    seen: list[Tensor] = []

    def start_here(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"layer is {layer!r}, whose output is {shape}, but must be (N, channels, height, width).",
                "Choose a stage before the image becomes a vector, for instance layer2.",
            )
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # what follows may change it in place, which a leaf does not allow

    with _nothing_compiled():
        handle = stage.register_forward_hook(start_here)
        try:
            yield seen
        finally:
            handle.remove()


def _nothing_compiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled modules run as they are written: compiled code asks for no hooks that came after it."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled; to import the compiler takes a second
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager
