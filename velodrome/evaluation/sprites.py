"""Many images in one, and how many of which size a page can hold. Never imports torch.

A page stays below 8 MB: its images and heat maps take no more than 2,000 images of 32 x 32 pixels without
loss, which is 3.7 MB, or 5 MB as text.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from velodrome.data.imageset import ImagesU8

# A page shows no image larger than this.
LARGEST_TILE = 96
# Images up to this side are kept as they are. Of larger ones nobody sees what is lost.
LARGEST_WITHOUT_LOSS = 48
QUALITY = 85
# Without loss: a fifth of the time that Pillow's defaults take, for files that are 2% larger.
EFFORT, METHOD = 20, 2
# A WebP file can have no longer side.
LONGEST_SIDE = 16_383

# In pixels without loss, of 1.7 bytes and 0.1 of a heat map. With loss a pixel takes a quarter of that.
BUDGET = 2000 * 32 * 32
LOSSY_SHARE = 4
MOST_MISTAKES, FEWEST_MISTAKES = 1500, 500
# A page with samples of more classes helps nobody.
MOST_CLASSES = 1000
# How large images are at most, and how many samples and right answers a class has: what fits first is taken.
LAYOUTS = ((96, 10, 3), (64, 10, 3), (64, 5, 2), (48, 5, 2), (48, 3, 1), (48, 1, 1))


@dataclass(frozen=True)
class Plan:
    """What a page can hold.

    Attributes:
        tile: (height, width) of an image in pixels.
        is_lossless: whether every pixel stays as it is.
        classes: how many of them have samples and right answers.
        samples: training images of each class.
        best: right answers of each class.
        mistakes: how many at most.
    """

    tile: tuple[int, int]
    is_lossless: bool
    classes: int
    samples: int
    best: int
    mistakes: int


def plan_page(classes: int, size: tuple[int, int]) -> Plan:
    """What a page can hold of so many classes and of images of that size, (height, width) in pixels."""
    classes = min(classes, MOST_CLASSES)
    # As they are, where they are small and enough of them fit; else smaller and fewer, until they do.
    layouts = [(*layout, loss) for loss in (False, True) for layout in LAYOUTS]
    for longest, samples, best, with_loss in layouts:
        tile = tile_of(size, longest)
        if not with_loss and (tile != size or max(size) > LARGEST_WITHOUT_LOSS):
            continue
        pixels = BUDGET * (LOSSY_SHARE if with_loss else 1)
        mistakes = pixels // (tile[0] * tile[1]) - classes * (samples + best)
        if mistakes >= FEWEST_MISTAKES:
            break
    mistakes = min(MOST_MISTAKES, max(FEWEST_MISTAKES, mistakes))
    return Plan(tile, not with_loss, classes, samples, best, mistakes)


def tile_of(size: tuple[int, int], longest: int = LARGEST_TILE) -> tuple[int, int]:
    """The size of an image, (height, width), when neither side is longer than `longest`."""
    shrink = min(1.0, longest / max(size))
    return max(1, round(shrink * size[0])), max(1, round(shrink * size[1]))


def tiles(images_u8: ImagesU8, tile: tuple[int, int]) -> ImagesU8:
    """Images in the size of a tile, (N, H, W, 3) -> (N, h, w, 3) uint8; made smaller with antialiasing."""
    if images_u8.shape[1:3] == tile:
        return images_u8
    height, width = tile
    smaller = np.empty((len(images_u8), height, width, 3), np.uint8)
    for place, image in zip(smaller, images_u8, strict=True):
        place[:] = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    return smaller


def columns_for(rows: int, height: int) -> int:
    """Beside each other how many of `rows` strips must stand, so that none ends below what a file can hold.

    Args:
        rows: how many strips there are.
        height: of a strip in pixels.
    """
    return -(-rows // (LONGEST_SIDE // height))


def sprite(images_u8: ImagesU8, columns: int, *, lossless: bool = True) -> bytes:
    """All images in one, `columns` in a row, as a WebP file: (N, H, W, 3) uint8."""
    n, height, width, _ = images_u8.shape
    rows = max(1, -(-n // columns))
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:n] = images_u8
    grid = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)  # (rows, H, columns, W, 3)
    file = io.BytesIO()
    whole = Image.fromarray(grid.reshape(rows * height, columns * width, 3))
    effort = {"quality": EFFORT, "method": METHOD} if lossless else {"quality": QUALITY}
    whole.save(file, "WEBP", lossless=lossless, **effort)
    return file.getvalue()
