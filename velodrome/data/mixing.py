"""Two images in one, with both their labels: mixup and CutMix.

Mixup is by Zhang et al. (arXiv:1710.09412), CutMix by Yun et al. (arXiv:1905.04899). Here each image is mixed
in a share of its own, with its partner: the image at the mirrored position of the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from velodrome.data.streams import COIN, CUTMIX, MIXUP, generator


def draw_mixing(n: int, mixup: float, cutmix: float, seed: int, epoch: int) -> NDArray[np.float32]:
    """How n images are mixed with their partners.

    Args:
        n: images in the epoch.
        mixup: alpha of the Beta distribution of the shares; 0 is off.
        cutmix: likewise; with both on, a coin is thrown for each image.
        seed: of the run.
        epoch: from 0.

    Returns:
        (n, 4) float32. The first is the partner's share in all pixels, 0 where a rectangle of the partner is
        put in; the second the sides of that rectangle in shares of the image's, 0 where there is none; the
        last two its place from the top and from the left, in shares of the room that it has.
    """
    table = np.zeros((n, 4), np.float32)
    if mixup:
        table[:, 0] = generator(seed, epoch, MIXUP).beta(mixup, mixup, n)
    if cutmix:
        numbers = generator(seed, epoch, CUTMIX)
        table[:, 2:] = numbers.random((n, 2))
        table[:, 1] = np.sqrt(numbers.beta(cutmix, cutmix, n))
    if mixup and cutmix:
        heads = generator(seed, epoch, COIN).random(n) < 0.5
        table[heads, 0] = 0
        table[~heads, 1] = 0
    return table


def mix(images: Tensor, mixing: Tensor) -> Tensor:
    """Mix each image with its partner.

    Args:
        images: (N, C, H, W) float.
        mixing: (N, 4) float32, rows of a table of `draw_mixing`.

    Returns:
        (N, C, H, W) float, channels_last.
    """
    height, width = images.shape[2:]
    high, wide = _sides(mixing, height, width)
    y = torch.arange(height, device=images.device) - _begin(mixing[:, 2:3], high, height)  # (N, H)
    x = torch.arange(width, device=images.device) - _begin(mixing[:, 3:], wide, width)  # (N, W)
    inside = ((y >= 0) & (y < high))[:, :, None] & ((x >= 0) & (x < wide))[:, None, :]  # (N, H, W)
    weights = torch.maximum(mixing[:, :1, None], inside.to(mixing.dtype))
    # With channels last: weights of (N, 1, H, W) would make the result contiguous, channels first.
    pixels = images.permute(0, 2, 3, 1)
    return torch.lerp(pixels, pixels.flip(0), weights[..., None]).permute(0, 3, 1, 2)


def soft_labels(labels: Tensor, mixing: Tensor, classes: int, height: int, width: int) -> Tensor:
    """The share of each class in mixed images.

    Args:
        labels: (N,) int64, of the images as they were.
        mixing: (N, 4) float32, rows of a table of `draw_mixing`.
        classes: their number.
        height: of the images, in pixels: the share of a rectangle is that of its pixels.
        width: of the images, in pixels.

    Returns:
        (N, classes) float32; each row adds up to 1.
    """
    own = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    high, wide = _sides(mixing, height, width)
    shares = torch.maximum(mixing[:, :1], high * wide / (height * width))  # (N, 1), of the partner
    return torch.lerp(own, own.flip(0), shares)


def main_labels(labels: Tensor) -> Tensor:
    """The class with the largest share in each image.

    Args:
        labels: (N, classes) float32 shares, or (N,) int64 where nothing is mixed.

    Returns:
        (N,) int64.
    """
    return labels if labels.ndim == 1 else labels.argmax(1)


def _sides(mixing: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Height and width of the rectangles in whole pixels, each (N, 1) float32."""
    return (mixing[:, 1:2] * height).round(), (mixing[:, 1:2] * width).round()


def _begin(place: Tensor, length: Tensor, size: int) -> Tensor:
    """The first pixel along a side of `size` pixels, so that the rectangle lies wholly inside; (N, 1)."""
    room = size - length
    # A place just below 1 may be rounded up to it.
    return torch.minimum((place * (room + 1)).floor(), room)
