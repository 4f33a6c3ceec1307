"""Augmentation of whole batches on the device, from tables drawn beforehand.

What happens to an image is fixed by tables of small numbers, one row an image, drawn on the CPU from
(seed, epoch). Applying them is plain indexing and arithmetic, without random numbers, so the CPU and a GPU
see the same images (scaled ones but for a level of 255, as each rounds in its own way), and a resumed run
sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from velodrome.config import AugmentSection
from velodrome.data.colour import constants_on, normalise, recolour, saturate, turn_hue
from velodrome.data.geometry import crop, cutout, draw_boxes, flip, resize, resized_crop, smallest_box_px
from velodrome.data.imageset import Normalisation
from velodrome.data.mixing import draw_mixing, mix
from velodrome.data.randaugment import distort, draw_operations
from velodrome.data.streams import BOX, COLOUR, CROP, CUTOUT, FLIP, OPERATIONS, TINT, generator, to_device
from velodrome.errors import ConfigError

__all__ = [
    "Tables",
    "apply",
    "check_fits",
    "constants_on",
    "crop",
    "cutout",
    "draw_tables",
    "flip",
    "normalise",
    "recolour",
    "resize",
    "resized_crop",
]


@dataclass(frozen=True, eq=False)
class Tables:
    """What is done to each of N images; a table is None where its augmentation is off.

    Attributes:
        crop_yx: (N, 2) int64, top left corner of the crop in the padded image, each in [0, 2 * padding].
        flip: (N,) bool, whether the image is mirrored left to right.
        cutout_yx: (N, 2) int64, top left corner of the cutout square, which lies wholly inside.
        colour: (N, 2) float32, factors of brightness and contrast.
        boxes: (N, 4) float32, top, left, bottom and right of the part that is seen, in shares of the image.
        tint: (N, 2) float32, factor of saturation, and turn of the hue in shares of the circle.
        mixing: (N, 4) float32, as `draw_mixing` describes it.
        operations: (N, rounds, 2) int64, of RandAugment. They stay on the CPU, where batches are sorted by
            them.
    """

    crop_yx: Tensor | None
    flip: Tensor | None
    cutout_yx: Tensor | None
    colour: Tensor | None = None
    boxes: Tensor | None = None
    tint: Tensor | None = None
    mixing: Tensor | None = None
    operations: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tables:
        """The tables of images start to stop."""
        return Tables(*(None if t is None else t[start:stop] for t in self._all()))

    def at(self, rows: Tensor) -> Tables:
        """The tables of some images: `rows` (B,) int64, on the device of the tables."""
        return Tables(*(None if t is None else t[rows.to(t.device)] for t in self._all()))

    def take_over(self, other: Tables) -> None:
        """Let the tensors hold what those of tables for as many images hold; they stay where they are."""
        for ours, theirs in zip(self._all(), other._all(), strict=True):
            if ours is not None and theirs is not None:
                ours.copy_(theirs)

    def to(self, device: torch.device) -> Tables:
        """The tables on the device, but for `operations`."""
        sent = Tables(*(None if t is None else to_device(t, device) for t in self._all()[:-1]))
        return dataclasses.replace(sent, operations=self.operations)

    def _all(self) -> tuple[Tensor | None, ...]:
        """In the order of the fields."""
        placed = (self.crop_yx, self.flip, self.cutout_yx)
        return *placed, self.colour, self.boxes, self.tint, self.mixing, self.operations


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
        ConfigError: an augmentation does not fit the images.
    """
    check_fits(height, width, augment)
    crop_at = flipped = cutout_at = colour = boxes = tint = mixing = operations = None
    if augment.random_resized_crop:
        numbers = generator(seed, epoch, BOX)
        boxes = draw_boxes(numbers, n, height, width, augment.random_resized_crop)
    elif augment.crop:
        crop_at = generator(seed, epoch, CROP).integers(0, 2 * augment.crop + 1, (n, 2))
    if augment.flip and augment.alternate_flip:
        # Drawn once for each image; in two epochs in a row it is seen from both sides (arXiv:2404.00498).
        first = generator(seed, 0, FLIP).random(n) < 0.5
        flipped = (first if order is None else first[order]) ^ (epoch % 2 == 1)
    elif augment.flip:
        flipped = generator(seed, epoch, FLIP).random(n) < 0.5
    if augment.cutout:
        room = (height - augment.cutout + 1, width - augment.cutout + 1)
        cutout_at = generator(seed, epoch, CUTOUT).integers(0, room, (n, 2))
    if augment.brightness or augment.contrast:
        reach = np.array([augment.brightness, augment.contrast])
        colour = (1 + reach * generator(seed, epoch, COLOUR).uniform(-1, 1, (n, 2))).astype(np.float32)
    if augment.saturation or augment.hue:
        reach = np.array([augment.saturation, augment.hue])
        tint = (np.array([1, 0]) + reach * generator(seed, epoch, TINT).uniform(-1, 1, (n, 2))).astype(
            np.float32
        )
    if augment.mixup or augment.cutmix:
        mixing = draw_mixing(n, augment.mixup, augment.cutmix, seed, epoch)
    if augment.randaugment:
        operations = draw_operations(generator(seed, epoch, OPERATIONS), n, augment.randaugment)
    drawn = (crop_at, flipped, cutout_at, colour, boxes, tint, mixing, operations)
    return Tables(*(None if table is None else torch.from_numpy(table) for table in drawn))


def check_fits(height: int, width: int, augment: AugmentSection) -> None:
    """Check that crops and cutout are possible on images of this size.

    Raises:
        ConfigError: they are not.
    """
    side = min(height, width)
    if augment.cutout > side:
        raise ConfigError(
            f"cutout is {augment.cutout}, but must fit into the images, which are {height}x{width}.",
            f"Use --cutout {side} or smaller.",
        )
    smallest = augment.random_resized_crop
    if smallest:
        if smallest_box_px(height, width, smallest) < 1:
            raise ConfigError(
                f"random_resized_crop is {smallest:g}, but the smallest part must be at least a pixel high "
                f"and wide, and the images are {height}x{width}.",
                "Use a larger share of the area, for instance --random-resized-crop 0.25.",
            )
    elif augment.crop_fill == "reflect" and augment.crop >= side:
        raise ConfigError(
            f"crop is {augment.crop}, but padding by reflection must be smaller than the images, "
            f"which are {height}x{width}.",
            f"Use --crop {side - 1} or smaller, or --crop-fill zero.",
        )


def apply(
    images_u8: Tensor,
    tables: Tables,
    augment: AugmentSection,
    normalisation: Normalisation,
    side: int | None = None,
    own_side: int | None = None,
) -> Tensor:
    """Do to a batch what the tables say.

    That is, in this order: crop or resized crop, flip, scale to `side`, RandAugment, normalise, brightness,
    contrast, saturation, hue, cutout, mixing. Images are mixed after cutout, so that a hole goes with the
    image that it was cut from, as in the training scripts of torchvision and timm; the share of a label is
    the same either way.

    Args:
        images_u8: (N, H, W, 3) uint8.
        tables: of these N images, on the same device.
        augment: the padding, its fill and the cutout's size, in pixels of these images.
        normalisation: of the training images.
        side: height and width of the result; that of the images without. The cutout is scaled with them.
        own_side: height and width for which the tables were drawn, where these images are stored in another
            size; they are brought to it first, unless a part of them is scaled anyway.

    Returns:
        (N, 3, H, W) float32, channels_last.
    """
    height, width = images_u8.shape[1:3] if own_side is None else (own_side, own_side)
    images_u8 = _placed(images_u8, tables, augment, (height, width), side)
    if tables.operations is not None:
        images_u8 = distort(images_u8, tables.operations, augment.randaugment_magnitude)
    images = normalise(images_u8, normalisation)
    if tables.colour is not None:
        images = recolour(images, tables.colour, normalisation)
    if tables.tint is not None:
        images = saturate(images, tables.tint[:, 0], normalisation) if augment.saturation else images
        images = turn_hue(images, tables.tint[:, 1], normalisation) if augment.hue else images
    if tables.cutout_yx is not None:
        place, size = tables.cutout_yx, augment.cutout
        if side is not None:
            place = torch.stack([place[:, 0] * side // height, place[:, 1] * side // width], 1)
            size = max(1, round(size * side / max(height, width)))
        images = cutout(images, place, size)
    return images if tables.mixing is None else mix(images, tables.mixing)


def _placed(
    images_u8: Tensor, tables: Tables, augment: AugmentSection, own: tuple[int, int], side: int | None
) -> Tensor:
    """The part of each image that is seen, from its side, in the size of the batch: (N, H, W, 3) uint8."""
    if tables.boxes is not None:
        images_u8 = resized_crop(images_u8, tables.boxes, *(own if side is None else (side, side)))
    elif tuple(images_u8.shape[1:3]) != own:
        images_u8 = resize(images_u8, own[0])
    if tables.crop_yx is not None:
        images_u8 = crop(images_u8, tables.crop_yx, augment.crop, augment.crop_fill)
    if tables.flip is not None:
        images_u8 = flip(images_u8, tables.flip)
    return images_u8 if side is None else resize(images_u8, side)
