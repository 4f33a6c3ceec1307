"""What part of an image is seen, from which side and how large; whole batches at once."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# Of random resized crops, as in torchvision: width over height, and how often a box is drawn that must fit.
NARROWEST, WIDEST = 3 / 4, 4 / 3
TRIES = 10


def crop(images_u8: Tensor, crop_yx: Tensor, padding: int, fill: Literal["zero", "reflect"]) -> Tensor:
    """Pad every image by `padding` pixels on each side and cut out a window of the original size.

    Args:
        images_u8: (N, H, W, C) uint8.
        crop_yx: (N, 2) int64, top left corner of the window in the padded image.
        padding: in pixels; with "reflect" smaller than H and W.
        fill: what the padding holds: black, or the image mirrored at its border pixels.

    Returns:
        (N, H, W, C) uint8.
    """
    n, height, width, _ = images_u8.shape
    device = images_u8.device
    y = crop_yx[:, :1] + torch.arange(height, device=device) - padding  # (N, H) rows of the original
    x = crop_yx[:, 1:] + torch.arange(width, device=device) - padding  # (N, W) columns of the original
    inside = None
    if fill == "zero":
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]  # (N, H, W)
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    else:
        y, x = _reflected(y, height), _reflected(x, width)
    image = torch.arange(n, device=device)[:, None, None]
    cropped = images_u8[image, y[:, :, None], x[:, None, :]]
    return cropped if inside is None else cropped * inside[..., None]


def draw_boxes(
    numbers: np.random.Generator, n: int, height: int, width: int, smallest: float
) -> NDArray[np.float32]:
    """Random parts of images, as in torchvision's RandomResizedCrop.

    The share of the area is uniform from `smallest` to 1, the logarithm of width over height uniform between
    those of 3/4 and 4/3. A box that does not fit is drawn again, ten times at most; then it is the largest
    one in the middle.

    Args:
        numbers: to draw from.
        n: boxes.
        height: of the images, in pixels.
        width: of the images, in pixels.
        smallest: share of the area, above 0 and below 1.

    Returns:
        (n, 4) float32: top, left, bottom and right, in shares of the image.
    """
    own = width / height
    area = numbers.uniform(smallest, 1, (n, TRIES))
    ratio = np.exp(numbers.uniform(math.log(NARROWEST), math.log(WIDEST), (n, TRIES)))
    place = numbers.random((n, 2))
    sizes = np.stack([np.sqrt(area * own / ratio), np.sqrt(area * ratio / own)], 2)  # (n, tries, 2) shares
    fits = sizes.max(2) <= 1
    size = np.take_along_axis(sizes, fits.argmax(1)[:, None, None], 1)[:, 0]
    no_luck = ~fits.any(1)
    size[no_luck] = min(1.0, own / NARROWEST), min(1.0, WIDEST / own)
    place[no_luck] = 0.5
    corner = place * (1 - size)
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def smallest_box_px(height: int, width: int, smallest: float) -> float:
    """The shortest side, in pixels, that `draw_boxes` gives a box of this share of the area."""
    area = smallest * height * width
    return math.sqrt(area * min(NARROWEST, 1 / WIDEST))


def resized_crop(images_u8: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """Cut a box out of each image and scale it to height x width pixels: bilinear, rounded to whole levels.

    Where a box has more pixels than that, they are smoothed: the triangle that weighs the pixels around a
    place is as wide as two pixels of the result, as in Pillow, so that all of them count. Rows and columns
    are weighed one after the other, by matrices of each image, which takes two products of matrices for a
    whole batch.

    Args:
        images_u8: (N, H, W, C) uint8.
        boxes: (N, 4) float32: top, left, bottom and right, in shares of the image.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        (N, height, width, C) uint8.
    """
    n, own_height, own_width, channels = images_u8.shape
    rows = _weights(boxes[:, 0], boxes[:, 2], own_height, height)  # (N, height, H)
    columns = _weights(boxes[:, 1], boxes[:, 3], own_width, width)  # (N, width, W)
    lines = images_u8.transpose(2, 3).reshape(n, own_height, channels * own_width).float()
    scaled = (rows @ lines).view(n, height * channels, own_width) @ columns.mT
    levels = scaled.round_().to(torch.uint8).view(n, height, channels, width)
    return levels.transpose(2, 3).contiguous()


def _weights(start: Tensor, stop: Tensor, size: int, count: int) -> Tensor:
    """How much each of `size` pixels counts in each of `count` pixels that span a part of them.

    Args:
        start: (N,) of the part, in shares of the pixels.
        stop: (N,) likewise.
        size: pixels along this side.
        count: of the result.

    Returns:
        (N, count, size) float32; each row adds up to 1.
    """
    pixels = (stop - start) * (size / count)  # (N,) for each one of the result
    middles = torch.arange(count, device=start.device) + 0.5
    places = start[:, None] * size + middles * pixels[:, None]  # (N, count)
    distance = torch.arange(size, device=start.device) + 0.5 - places[..., None]  # (N, count, size)
    weights = distance.abs_().div_(-pixels.clamp(min=1)[:, None, None]).add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))


def flip(images_u8: Tensor, flags: Tensor) -> Tensor:
    """Mirror the flagged images left to right.

    Args:
        images_u8: (N, H, W, C) uint8.
        flags: (N,) bool.

    Returns:
        (N, H, W, C) uint8.
    """
    return torch.where(flags[:, None, None, None], images_u8.flip(2), images_u8)


def resize(images_u8: Tensor, side: int) -> Tensor:
    """Scale images to side x side pixels: bilinear, smoothed where they get smaller, rounded to whole levels.

    Args:
        images_u8: (N, H, W, C) uint8.
        side: in pixels.

    Returns:
        (N, side, side, C) uint8; `images_u8` itself where it has that size.
    """
    if images_u8.shape[1:3] == (side, side):
        return images_u8
    channels_first = images_u8.permute(0, 3, 1, 2)
    # Only the CPU has a kernel for bytes, which is many times faster than that for floats.
    source = channels_first if images_u8.device.type == "cpu" else channels_first.float()
    scaled = F.interpolate(source, (side, side), mode="bilinear", antialias=True)
    scaled = scaled if scaled.dtype == torch.uint8 else scaled.round().clamp(0, 255).byte()
    return scaled.permute(0, 2, 3, 1)


def cutout(images: Tensor, cutout_yx: Tensor, size: int) -> Tensor:
    """Set one square of each image to 0, which after normalisation is the training mean.

    CutOut is by DeVries & Taylor (arXiv:1708.04552); here the square is never clipped by the border.

    Args:
        images: (N, C, H, W) float, normalised.
        cutout_yx: (N, 2) int64, top left corner of the square.
        size: side of the square in pixels.

    Returns:
        (N, C, H, W) float, channels_last.
    """
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device) - cutout_yx[:, :1]  # (N, H) distance below the top edge
    x = torch.arange(width, device=images.device) - cutout_yx[:, 1:]  # (N, W) distance from the left edge
    hole = ((y >= 0) & (y < size))[:, :, None] & ((x >= 0) & (x < size))[:, None, :]  # (N, H, W)
    # With channels last: a mask of (N, 1, H, W) would make the result contiguous, channels first.
    return images.permute(0, 2, 3, 1).masked_fill(hole[..., None], 0).permute(0, 3, 1, 2)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Fold indices beyond [0, size) back at the border pixels: -1 -> 1, size -> size - 2."""
    last = size - 1
    return last - (last - index.abs()).abs()
