"""Colours of whole batches: normalisation, brightness, contrast, saturation and hue."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from velodrome.data.imageset import Normalisation

# Shares of red, green and blue in grey (ITU-R BT.601), rounded as in torchvision.
GREY = (0.2989, 0.587, 0.114)


@functools.lru_cache
def constants_on(device: torch.device, normalisation: Normalisation) -> Tensor:
    """Mean and standard deviation of pixels in [0, 1], and the shares of colours in grey: (3, 3) float32.

    They are sent to the device once, and stay there: a step that is captured as a CUDA graph cannot send.
    """
    with torch.inference_mode(mode=False):  # whoever asks first, training may use them
        return torch.tensor([normalisation.mean, normalisation.std, GREY]).to(device)


def normalise(images_u8: Tensor, normalisation: Normalisation) -> Tensor:
    """Scale pixels to [0, 1], subtract the mean, divide by the standard deviation.

    Args:
        images_u8: (N, H, W, 3) uint8.
        normalisation: per-channel constants of pixels in [0, 1].

    Returns:
        (N, 3, H, W) float32 in channels_last memory order (the input's own, so nothing is moved).
    """
    mean, std, _ = constants_on(images_u8.device, normalisation) * 255
    return images_u8.float().sub_(mean).mul_(1 / std).permute(0, 3, 1, 2)


def recolour(images: Tensor, colour: Tensor, normalisation: Normalisation) -> Tensor:
    """Change brightness, then contrast, as torchvision's ColorJitter does, but without clipping at white.

    Args:
        images: (N, 3, H, W) float, normalised; changed in place.
        colour: (N, 2) float. By the first factor all pixels of an image are multiplied, by the second their
            distance to the mean grey of the image.
        normalisation: that of `images`.

    Returns:
        `images`.
    """
    mean, std, grey = constants_on(images.device, normalisation)  # (3,) each
    brightness, contrast = colour[:, :1], colour[:, 1:]  # (N, 1)
    # (N, 1) mean grey of the pixels in [0, 1], brightened
    centre = brightness * ((images.mean((2, 3)) * std + mean) * grey).sum(1, keepdim=True)
    # A pixel p becomes contrast * (brightness * p - centre) + centre; here for p = image * std + mean.
    factor = contrast * brightness  # (N, 1)
    shift = ((factor - 1) * mean + (1 - contrast) * centre) / std  # (N, 3)
    return images.mul_(factor[:, :, None, None]).add_(shift[:, :, None, None])


def saturate(images: Tensor, factors: Tensor, normalisation: Normalisation) -> Tensor:
    """Multiply the distance of each pixel to its own grey, as torchvision does, but without clipping.

    Args:
        images: (N, 3, H, W) float, normalised; changed in place.
        factors: (N,) float.
        normalisation: that of `images`.

    Returns:
        `images`.
    """
    mean, std, grey = constants_on(images.device, normalisation)  # (3,) each
    pixels, factor = images.permute(0, 2, 3, 1), factors[:, None, None, None]
    greys = (pixels * (grey * std)).sum(3, keepdim=True) + (grey * mean).sum()  # (N, H, W, 1) in [0, 1]
    # A pixel p becomes factor * p + (1 - factor) * grey; here for p = image * std + mean.
    pixels.mul_(factor).add_((1 - factor) * (greys - mean) / std)
    return images


def turn_hue(images: Tensor, turns: Tensor, normalisation: Normalisation) -> Tensor:
    """Turn the hue of all pixels, as in HSV, where value and saturation stay.

    Neither depends on the range of the pixels, so nothing is clipped; within [0, 1] it is what torchvision's
    adjust_hue does.

    Args:
        images: (N, 3, H, W) float, normalised.
        turns: (N,) float, in shares of the whole circle.
        normalisation: that of `images`.

    Returns:
        (N, 3, H, W) float, channels_last.
    """
    mean, std, _ = constants_on(images.device, normalisation)  # (3,) each
    pixels = images.permute(0, 2, 3, 1) * std + mean  # (N, H, W, 3)
    red, green, blue = pixels.unbind(3)
    value, lowest = pixels.amax(3), pixels.amin(3)  # (N, H, W)
    chroma = value - lowest
    divisor = torch.where(chroma == 0, 1, chroma)
    # In sixths of the circle: from red at 0 over green at 2 and blue at 4.
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * turns[:, None, None]
    # Each channel is full within a sixth of its own hue, and falls to the lowest value within the next one.
    offsets = torch.arange(5, 0, -2, device=images.device)
    away = (hue[..., None] + offsets).remainder_(6)  # (N, H, W, 3)
    missing = torch.minimum(away, 4 - away).clamp_(0, 1).mul_(chroma[..., None])
    turned: Tensor = (value[..., None] - missing).sub_(mean).div_(std)
    return turned.permute(0, 3, 1, 2)
