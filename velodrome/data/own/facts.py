"""What is kept about every prepared image besides its pixels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from velodrome.data.imageset import ImagesU8
from velodrome.data.pixels import box_in_padding

DIGEST_BYTES = 16
# Height and width of thumbnails.
THUMBNAIL = 8
# Images are looked at so many at a time, so that what is computed of them stays small.
BLOCK = 64
# The facts of an image as they are sent between processes and kept in files.
ROW = np.dtype(
    [
        ("readable", np.bool_),
        ("size", np.int32, (2,)),
        ("digest", np.uint8, (DIGEST_BYTES,)),
        ("thumbnail", np.uint8, (THUMBNAIL, THUMBNAIL, 3)),
    ]
)
Rows = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of N images, one row an image.

    Attributes:
        readable: (N,) bool.
        sizes: (N, 2) int32, height and width in pixels of the upright file, 0 where it is unreadable.
        digests: (N, 16) uint8, blake2b of the stored pixels, 0 where the file is unreadable.
        thumbnails: (N, 8, 8, 3) uint8, means of blocks of the stored pixels, 0 where the file is unreadable.
    """

    readable: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    digests: NDArray[np.uint8]
    thumbnails: NDArray[np.uint8]

    @classmethod
    def of(cls, rows: Rows) -> Facts:
        """The facts in (N,) `ROW`."""
        return cls(*(np.ascontiguousarray(rows[name]) for name in ROW.names or ()))


def facts_of(
    images_u8: ImagesU8, sizes: NDArray[np.int32] | None = None, fit: str = "crop"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Digests (N, 16) and thumbnails (N, 8, 8, 3) of images, as in `Facts`.

    Args:
        images_u8: (N, H, W, 3) uint8; where H or W is below 8, thumbnails repeat pixels.
        sizes: (N, 2), the heights and widths of the files; 0 where one cannot be read.
        fit: how they came to H and W. What an image was padded with is left out of its thumbnail, as it is
            the same in all images of that shape.
    """
    digests = np.empty((len(images_u8), DIGEST_BYTES), np.uint8)
    thumbnails = np.empty((len(images_u8), THUMBNAIL, THUMBNAIL, 3), np.uint8)
    for start in range(0, len(images_u8), BLOCK):
        block = np.ascontiguousarray(images_u8[start : start + BLOCK])
        found = b"".join(blake2b(image, digest_size=DIGEST_BYTES).digest() for image in block)
        digests[start : start + BLOCK] = np.frombuffer(found, np.uint8).reshape(-1, DIGEST_BYTES)
        thumbnails[start : start + BLOCK] = _thumbnails(block)
    if fit == "pad" and sizes is not None:
        side = images_u8.shape[1:3]
        for number in np.flatnonzero((sizes[:, 0] != sizes[:, 1]) & (sizes > 0).all(1)):
            height, width = sizes[number].tolist()
            rows, columns = box_in_padding((height, width), (side[0], side[1]))
            thumbnails[number] = _thumbnails(images_u8[number : number + 1, rows, columns])[0]
    return digests, thumbnails


def _thumbnails(images_u8: ImagesU8) -> NDArray[np.uint8]:
    """Means of 8 x 8 blocks, as equal as they can be: (N, H, W, 3) -> (N, 8, 8, 3)."""
    rows, columns = (_parts(side) for side in images_u8.shape[1:3])
    strips = np.stack([images_u8[:, start:stop].sum(1, dtype=np.uint32) for start, stop in rows], 1)
    sums = np.add.reduceat(strips, [start for start, _ in columns], axis=2)
    heights, widths = ([stop - start for start, stop in parts] for parts in (rows, columns))
    counts = np.outer(heights, widths).astype(np.uint32)[..., None]
    return ((sums + counts // 2) / counts).astype(np.uint8)  # rounded; exact in float64


def _parts(side: int) -> list[tuple[int, int]]:
    """Start and stop of 8 parts of `side` pixels, none of them empty."""
    edges = [number * side // THUMBNAIL for number in range(THUMBNAIL + 1)]
    return [(start, max(stop, start + 1)) for start, stop in itertools.pairwise(edges)]
