"""Which size a user's images are brought to where nobody says, and what that costs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from velodrome.data.image_files import UnreadableImageError, read_image, read_size
from velodrome.data.own.decoding import FEW_FILES, usable_cores
from velodrome.data.own.facts import ROW
from velodrome.data.own.listing import Entry

SMALLEST, LARGEST = 32, 64
# Networks halve images three times.
MULTIPLE = 8
# Files whose decoding is timed, and for how long at most.
TIMED_FILES, TIMED_S = 200, 0.3


def choose_side(sizes: NDArray[np.int32]) -> tuple[int, str]:
    """The side of a model's images, and a sentence that says why.

    It is the median of the shorter sides, rounded up to a multiple of 8, but at least 32 and at most 64.

    Args:
        sizes: (N, 2) int32, heights and widths in pixels.
    """
    if not len(sizes):
        return SMALLEST, f"{SMALLEST} pixels: no image could be looked at"
    median = float(np.median(sizes.min(1)))
    side = min(max(math.ceil(median / MULTIPLE) * MULTIPLE, SMALLEST), LARGEST)
    why = f"{side} pixels: the median image is {median:,.0f} pixels on its shorter side"
    if median > side:
        why += f"; --image-size {2 * side} shows more and takes four times as long"
    return side, why


def sample_sizes(entries: Sequence[Entry], most: int = 500) -> NDArray[np.int32]:
    """Heights and widths of files, from their headers; those that cannot be read are left out.

    Args:
        entries: of which at most `most`, spread evenly, are looked at.
        most: files.

    Returns:
        (M, 2) int32, in pixels, of upright images.
    """
    sizes = []
    for entry in _spread(entries, most):
        with contextlib.suppress(UnreadableImageError):
            sizes.append(read_size(entry.path))
    return np.array(sizes, np.int32).reshape(-1, 2)


def estimate(entries: Sequence[Entry], side: int) -> tuple[float, float]:
    """What it takes to prepare images: bytes on the disk, and seconds by the speed of a few of them.

    Args:
        entries: at least one.
        side: height and width in pixels.
    """
    size_bytes = len(entries) * (side**2 * 3 + ROW.itemsize)
    sample = _spread(entries, TIMED_FILES)
    done, start_s = 0, time.perf_counter()
    # In no order, so that those that the time suffices for lie everywhere.
    for number in np.random.default_rng(0).permutation(len(sample)):
        with contextlib.suppress(UnreadableImageError):
            read_image(sample[number].path, (side, side))
        done += 1
        if time.perf_counter() - start_s > TIMED_S:
            break
    seconds_each = (time.perf_counter() - start_s) / done
    workers = usable_cores() if len(entries) >= FEW_FILES else 1
    return size_bytes, len(entries) * seconds_each / workers


def _spread(entries: Sequence[Entry], most: int) -> list[Entry]:
    """At most so many, at equal distances."""
    places = np.linspace(0, len(entries) - 1, min(most, len(entries))).round().astype(int)
    return [entries[place] for place in places]
