"""RandAugment (Cubuk et al., arXiv:1909.13719): random operations on each image, for whole batches at once.

Operations, their strengths and their results on bytes are those of torchvision, but that moved images are
bilinear. Which image draws which operation is known to the host, so a batch is sorted by operation, and each
operation works on the images next to one another that drew it. All images that are moved are resampled at
once, and all whose levels change by a rule of their own are looked up in tables at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from velodrome.data.colour import GREY
from velodrome.data.streams import to_device

# In groups: those that move an image, those that look each level up in a table, and the other two.
OPERATIONS = (
    "identity",
    "shear x",
    "shear y",
    "translate x",
    "translate y",
    "rotate",
    "brightness",
    "contrast",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "colour",
    "sharpness",
)
MOVING, LEVELS, COLOUR, SHARPNESS = 1, 6, 12, 13  # where the groups begin
# What an operation does at the highest magnitude.
HIGHEST = 30
SHEAR, TRANSLATION, DEGREES, FACTOR, BITS = 0.3, 150 / 331, 30.0, 0.9, 4


def draw_operations(numbers: np.random.Generator, n: int, rounds: int) -> NDArray[np.int64]:
    """Operations for n images: (n, rounds, 2) int64, number in OPERATIONS, and 1 where it works backwards."""
    kinds = numbers.integers(0, len(OPERATIONS), (n, rounds))
    return np.stack([kinds, numbers.integers(0, 2, (n, rounds))], 2)


def distort(images_u8: Tensor, operations: Tensor, magnitude: float) -> Tensor:
    """Do to each image what it drew, one operation after another.

    Args:
        images_u8: (N, H, W, 3) uint8, on any device.
        operations: (N, rounds, 2) int64 on the CPU, rows of a table of `draw_operations`.
        magnitude: from 0 to 30, of all operations.

    Returns:
        (N, H, W, 3) uint8.
    """
    drawn = operations.numpy()
    here = np.arange(len(drawn))  # here[place]: the image that lies there
    for number in range(drawn.shape[1]):
        sorted_by_kind = np.argsort(drawn[:, number, 0], kind="stable")
        images_u8 = _arranged(images_u8, np.argsort(here)[sorted_by_kind])
        here = sorted_by_kind
        kinds, backwards = drawn[here, number].T
        _change(images_u8, kinds, backwards, magnitude / HIGHEST)
    return _arranged(images_u8, np.argsort(here))


def _arranged(images_u8: Tensor, places: NDArray[np.int64]) -> Tensor:
    """The images at those places, in that order: a copy."""
    return images_u8[to_device(torch.from_numpy(places), images_u8.device)]


def _change(
    images_u8: Tensor, kinds: NDArray[np.int64], backwards: NDArray[np.int64], strength: float
) -> None:
    """Do one operation to each image, in place.

    Args:
        images_u8: (N, H, W, 3) uint8.
        kinds: (N,) numbers in OPERATIONS, ascending.
        backwards: (N,) 0 or 1.
        strength: from 0 to 1.
    """
    device, (height, width) = images_u8.device, images_u8.shape[1:3]
    bounds = np.searchsorted(kinds, np.arange(len(OPERATIONS) + 1))
    moved, looked_up = slice(bounds[MOVING], bounds[LEVELS]), slice(bounds[LEVELS], bounds[COLOUR])
    if kinds[moved].size:
        inverse = _inverse_maps(kinds[moved], 1 - 2 * backwards[moved], strength, height, width)
        images_u8[moved] = _moved(images_u8[moved], to_device(torch.from_numpy(inverse), device))
    signs = 1 + FACTOR * strength * (1 - 2 * backwards)
    factors = to_device(torch.from_numpy(signs.astype(np.float32)), device)
    if kinds[looked_up].size:
        tables = torch.cat(list(_level_tables(images_u8, factors, bounds, strength)))
        images_u8[looked_up] = _looked_up(images_u8[looked_up], tables)
    for kind, rule in ((COLOUR, _saturated), (SHARPNESS, _sharpened)):
        part = slice(bounds[kind], bounds[kind + 1])
        if kinds[part].size:
            images_u8[part] = rule(images_u8[part], factors[part])


# Moving.


def _inverse_maps(
    kinds: NDArray[np.int64], signs: NDArray[np.int64], strength: float, height: int, width: int
) -> NDArray[np.float32]:
    """From a place in the result to the place in the image that it shows.

    Args:
        kinds: (M,) numbers of operations that move an image.
        signs: (M,) 1 or -1.
        strength: from 0 to 1.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        (M, 2, 3) float32, in the coordinates of F.affine_grid: x and y from -1 to 1.
    """
    amount = strength * signs
    turn = np.radians(DEGREES * amount)
    one, nothing = np.ones_like(turn), np.zeros_like(turn)
    shear = SHEAR * amount
    # In pixels from the middle: x and y in the image = (a x + b y + c, d x + e y + f). Shears leave the upper
    # and the left border where they are.
    maps = {
        "shear x": (one, shear, shear * height / 2, nothing, one, nothing),
        "shear y": (one, nothing, nothing, shear, one, shear * width / 2),
        "translate x": (one, nothing, -np.trunc(TRANSLATION * width * amount), nothing, one, nothing),
        "translate y": (one, nothing, nothing, nothing, one, -np.trunc(TRANSLATION * height * amount)),
        "rotate": (np.cos(turn), -np.sin(turn), nothing, np.sin(turn), np.cos(turn), nothing),
    }
    every = np.stack([np.stack(maps[name], 1) for name in OPERATIONS[MOVING:LEVELS]])  # (5, M, 6)
    chosen = every[kinds - MOVING, np.arange(len(kinds))].reshape(-1, 2, 3)
    halves = np.array([width / 2, height / 2])
    chosen[:, :, :2] *= halves
    maps_to_image: NDArray[np.float32] = (chosen / halves[:, None]).astype(np.float32)
    return maps_to_image


def _moved(images_u8: Tensor, inverse: Tensor) -> Tensor:
    """Images resampled bilinearly, black where they were not: (M, H, W, 3) uint8."""
    planes = images_u8.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(inverse, list(planes.shape), align_corners=False)
    found = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return found.round_().permute(0, 2, 3, 1).to(torch.uint8)


# Levels by tables.


def _level_tables(
    images_u8: Tensor, factors: Tensor, bounds: NDArray[np.int64], strength: float
) -> Iterator[Tensor]:
    """The tables of all images whose levels are looked up, each (M, 3, 256) uint8, in their order.

    Args:
        images_u8: (N, H, W, 3) uint8, all of them, sorted by operation.
        factors: (N,) float32.
        bounds: where each operation's images begin, and where the last ones end.
        strength: from 0 to 1.
    """
    for kind in range(LEVELS, COLOUR):
        part = slice(bounds[kind], bounds[kind + 1])
        if part.start < part.stop:
            table = _level_table(OPERATIONS[kind], images_u8[part], factors[part, None, None], strength)
            yield table.to(torch.uint8).expand(part.stop - part.start, 3, -1)


def _level_table(operation: str, images_u8: Tensor, factors: Tensor, strength: float) -> Tensor:
    """What becomes of each level: (M or 1, 3 or 1, 256), from 0 to 255, not yet cut off to whole levels.

    Args:
        operation: its name.
        images_u8: (M, H, W, 3) uint8 that drew it.
        factors: (M, 1, 1) float32, of brightness and contrast.
        strength: from 0 to 1, of the other operations.
    """
    grid = torch.arange(256, device=images_u8.device, dtype=torch.float32)
    match operation:
        case "brightness":
            return (grid * factors).clamp_(0, 255)
        case "contrast":
            middle = _greys(images_u8).mean((1, 2))[:, None, None]
            return (grid * factors + middle * (1 - factors)).clamp_(0, 255)
        case "posterize":
            dropped = 1 << round(BITS * strength)
            return ((grid / dropped).floor_() * dropped)[None, None]
        case "solarize":
            return torch.where(grid >= 255 * (1 - strength), 255 - grid, grid)[None, None]
        case "autocontrast":
            return _stretched(images_u8, grid)
        case _:
            return _equalized(images_u8, grid)


def _looked_up(images_u8: Tensor, tables: Tensor) -> Tensor:
    """Each level of (M, H, W, 3) uint8 replaced by that in (M, 3, 256) uint8."""
    # A table after the other: 256 levels for each channel of each image.
    first = torch.arange(0, tables.numel(), 256, device=tables.device, dtype=torch.int32).view(-1, 1, 1, 3)
    return tables.reshape(-1)[images_u8 + first]


def _stretched(images_u8: Tensor, grid: Tensor) -> Tensor:
    """From the darkest to the brightest level of each channel, as autocontrast has it."""
    darkest, brightest = (level.float()[..., None] for level in torch.aminmax(images_u8.flatten(1, 2), dim=1))
    is_flat = darkest == brightest
    darkest = torch.where(is_flat, 0, darkest)
    divisor = torch.where(is_flat, 1, (brightest - darkest) * (1 / 255))
    return ((grid - darkest) / divisor).clamp_(0, 255)


def _equalized(images_u8: Tensor, grid: Tensor) -> Tensor:
    """Each level about as often as any other in each channel, by Pillow's rule."""
    levels = images_u8.flatten(1, 2).mT.long()  # (M, 3, pixels)
    ones = torch.ones((), dtype=torch.int32, device=levels.device).expand_as(levels)
    counts = torch.zeros(len(levels), 3, 256, dtype=torch.int32, device=levels.device)
    counts.scatter_add_(2, levels, ones)
    below = counts.cumsum(2) - counts
    of_brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - of_brightest) // 255
    table = (below + step // 2) // step.clamp(min=1)
    return torch.where(step == 0, grid, table).clamp_(0, 255)


# Colour and sharpness.


def _greys(images_u8: Tensor) -> Tensor:
    """The grey of each pixel in whole levels, (M, H, W) float32."""
    red, green, blue = images_u8.float().unbind(3)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).floor_()


def _saturated(images_u8: Tensor, factors: Tensor) -> Tensor:
    """Pixels further from their own grey or nearer to it: (M, H, W, 3) uint8."""
    factor = factors[:, None, None, None]
    mixed = images_u8 * factor + _greys(images_u8)[..., None] * (1 - factor)
    return mixed.clamp_(0, 255).to(torch.uint8)


def _sharpened(images_u8: Tensor, factors: Tensor) -> Tensor:
    """Pixels further from the mean around them or nearer to it; the border stays: (M, H, W, 3) uint8."""
    if min(images_u8.shape[1:3]) <= 2:
        return images_u8
    pixels = images_u8.float()
    lines = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    around = lines[:, :, :-2] + lines[:, :, 1:-1] + lines[:, :, 2:]
    inner = pixels[:, 1:-1, 1:-1]
    blurred = (around + 4 * inner).div_(13).round_()  # the pixel itself counts five times
    inner.add_((blurred - inner) * (1 - factors[:, None, None, None]))
    return pixels.clamp_(0, 255).to(torch.uint8)
