"""Augmentation of whole batches on the device, from tables drawn beforehand.

What happens to an image is fixed by tables of small numbers, one row an image, drawn on the CPU from
(seed, epoch). Applying them is plain indexing, without random numbers, so the CPU and a GPU see the same
images (scaled ones but for a level of 255, as each rounds in its own way), and a resumed run sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from velodrome.config import AugmentSection
from velodrome.data.imageset import Normalisation
from velodrome.errors import ConfigError

# Each kind of randomness has a stream of its own, so that turning one off leaves the others as they were.
ORDER, CROP, FLIP, CUTOUT, COLOUR = range(5)
# Shares of red, green and blue in grey (ITU-R BT.601), rounded as in torchvision.
GREY = (0.2989, 0.587, 0.114)


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """The random numbers of one stream in one epoch."""
    return np.random.default_rng([seed, epoch, stream])


@dataclass(frozen=True, eq=False)
class Tables:
    """What is done to each of N images; a table is None where its augmentation is off.

    Attributes:
        crop_yx: (N, 2) int64, top left corner of the crop in the padded image, each in [0, 2 * padding].
        flip: (N,) bool, whether the image is mirrored left to right.
        cutout_yx: (N, 2) int64, top left corner of the cutout square, which lies wholly inside.
        colour: (N, 2) float32, factors of brightness and contrast.
    """

    crop_yx: Tensor | None
    flip: Tensor | None
    cutout_yx: Tensor | None
    colour: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tables:
        """The tables of images start to stop."""
        return Tables(*(None if t is None else t[start:stop] for t in self._all()))

    def at(self, rows: Tensor) -> Tables:
        """The tables of some images: `rows` (B,) int64, on the same device."""
        return Tables(*(None if t is None else t[rows] for t in self._all()))

    def take_over(self, other: Tables) -> None:
        """Let the tensors hold what those of tables for as many images hold; they stay where they are."""
        for ours, theirs in zip(self._all(), other._all(), strict=True):
            if ours is not None and theirs is not None:
                ours.copy_(theirs)

    def to(self, device: torch.device) -> Tables:
        """The tables on the device."""
        return Tables(*(None if t is None else to_device(t, device) for t in self._all()))

    def _all(self) -> tuple[Tensor | None, ...]:
        return self.crop_yx, self.flip, self.cutout_yx, self.colour


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Small values on the device, without making the host wait for a GPU.

    Only CUDA keeps the source of such a copy alive until it is done, so elsewhere it is an ordinary one.
    """
    return values.to(device, non_blocking=device.type == "cuda")


@functools.lru_cache
def constants_on(device: torch.device, normalisation: Normalisation) -> Tensor:
    """Mean and standard deviation of pixels in [0, 1], and the shares of colours in grey: (3, 3) float32.

    They are sent to the device once, and stay there: a step that is captured as a CUDA graph cannot send.
    """
    with torch.inference_mode(mode=False):  # whoever asks first, training may use them
        return torch.tensor([normalisation.mean, normalisation.std, GREY]).to(device)


def draw_tables(
    n: int,
    height: int,
    width: int,
    augment: AugmentSection,
    seed: int,
    epoch: int,
    order: NDArray[np.int64] | None = None,
) -> Tables:
    """Draw the tables of one epoch, on the CPU.

    Args:
        n: images in the epoch.
        height: of the images, in pixels.
        width: of the images, in pixels.
        augment: which augmentations, and how strong.
        seed: of the run.
        epoch: from 0.
        order: (N,) the image at each position of the epoch; as they come without. Only `alternate_flip` goes
            by images.

    Raises:
        ConfigError: the cutout or the reflected padding does not fit the images.
    """
    check_fits(height, width, augment)
    crop = flip = cutout_at = colour = None
    if augment.crop:
        crop = generator(seed, epoch, CROP).integers(0, 2 * augment.crop + 1, (n, 2))
    if augment.flip and augment.alternate_flip:
        # Drawn once for each image; in two epochs in a row it is seen from both sides (arXiv:2404.00498).
        first = generator(seed, 0, FLIP).random(n) < 0.5
        flip = (first if order is None else first[order]) ^ (epoch % 2 == 1)
    elif augment.flip:
        flip = generator(seed, epoch, FLIP).random(n) < 0.5
    if augment.cutout:
        room = (height - augment.cutout + 1, width - augment.cutout + 1)
        cutout_at = generator(seed, epoch, CUTOUT).integers(0, room, (n, 2))
    if augment.brightness or augment.contrast:
        reach = np.array([augment.brightness, augment.contrast])
        colour = (1 + reach * generator(seed, epoch, COLOUR).uniform(-1, 1, (n, 2))).astype(np.float32)
    return Tables(*(None if t is None else torch.from_numpy(t) for t in (crop, flip, cutout_at, colour)))


def check_fits(height: int, width: int, augment: AugmentSection) -> None:
    """Check that cutout and reflected padding are possible on images of this size.

    Raises:
        ConfigError: they are not.
    """
    side = min(height, width)
    if augment.cutout > side:
        raise ConfigError(
            f"cutout is {augment.cutout}, but must fit into the images, which are {height}x{width}.",
            f"Use --cutout {side} or smaller.",
        )
    if augment.crop_fill == "reflect" and augment.crop >= side:
        raise ConfigError(
            f"crop is {augment.crop}, but padding by reflection must be smaller than the images, "
            f"which are {height}x{width}.",
            f"Use --crop {side - 1} or smaller, or --crop-fill zero.",
        )


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


def apply(
    images_u8: Tensor,
    tables: Tables,
    augment: AugmentSection,
    normalisation: Normalisation,
    side: int | None = None,
) -> Tensor:
    """Crop, flip, scale to `side`, normalise, recolour and cut out, in this order, as the tables say.

    Args:
        images_u8: (N, H, W, 3) uint8.
        tables: of these N images, on the same device.
        augment: the padding, its fill and the cutout's size, in pixels of these images.
        normalisation: of the training images.
        side: height and width of the result; that of the images without. The cutout is scaled with them.

    Returns:
        (N, 3, H, W) float32, channels_last.
    """
    height, width = images_u8.shape[1:3]
    if tables.crop_yx is not None:
        images_u8 = crop(images_u8, tables.crop_yx, augment.crop, augment.crop_fill)
    if tables.flip is not None:
        images_u8 = flip(images_u8, tables.flip)
    if side is not None:
        images_u8 = resize(images_u8, side)
    images = normalise(images_u8, normalisation)
    if tables.colour is not None:
        images = recolour(images, tables.colour, normalisation)
    if tables.cutout_yx is not None:
        place, size = tables.cutout_yx, augment.cutout
        if side is not None:
            place = torch.stack([place[:, 0] * side // height, place[:, 1] * side // width], 1)
            size = max(1, round(size * side / max(height, width)))
        images = cutout(images, place, size)
    return images


def _reflected(index: Tensor, size: int) -> Tensor:
    """Fold indices beyond [0, size) back at the border pixels: -1 -> 1, size -> size - 2."""
    last = size - 1
    return last - (last - index.abs()).abs()
