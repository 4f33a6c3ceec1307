"""Ten classes of simple shapes, drawn by code: a data set for a first try and for tests.

It needs no download. Each image is 32x32 and in colour, and holds one shape of any rotation, of 9 to 26
pixels across, on a plain, shaded, blotchy, striped or checked background, with small distractors, sometimes
something in front, and noise. A small share of the images is really hard. No class depends on handedness, so
flipping is a safe augmentation.

The shapes are signed distance functions: negative inside, positive outside, so that an edge can be smoothed
over a pixel, and minimum and maximum join and cut. The method is that of Inigo Quilez
(https://iquilezles.org/articles/distfunctions2d/).

The images are a function of (seed, split, index). On one machine they are the same bytes every time; between
CPUs they may differ in a last bit, since NumPy chooses its sine by the CPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from velodrome.data.cache import read_cached
from velodrome.data.imageset import ImageSet, ImagesU8, Labels
from velodrome.errors import DataError, did_you_mean

CLASSES: tuple[str, ...] = (
    "disc",
    "ring",
    "square",
    "triangle",
    "star",
    "cross",
    "crescent",
    "heart",
    "arrow",
    "hourglass",
)
TRAIN_IMAGES = 10_000
TEST_IMAGES = 2_000

Floats = NDArray[np.floating[Any]]  # float32 throughout; the stubs lose that in arithmetic
Shape = Callable[[Floats, Floats, Floats], Floats]

_SIZE = 32
_CHUNK = 100  # images drawn together, from one generator: their planes of 32x32 floats fit the CPU's cache
_STREAMS = {"train": 0, "test": 1}
_MAX_CLUTTER = 4
_MIN_RADIUS, _MAX_RADIUS = 4.5, 13.0  # of the circle around the shape, in pixels
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue (ITU-R BT.601)

# Pixel centres in pixels from the middle of the image, (1, H, 1) and (1, 1, W).
_ROWS: Floats = (np.arange(_SIZE, dtype=np.float32) - (_SIZE - 1) / 2).reshape(1, _SIZE, 1)
_COLUMNS: Floats = _ROWS.reshape(1, 1, _SIZE)


def load_shapes(
    n_train: int = TRAIN_IMAGES, n_test: int = TEST_IMAGES, seed: int = 0
) -> tuple[ImageSet, ImageSet]:
    """The training and the test images, from independent random streams.

    Raises:
        DataError: a number of images is below 1, or the seed is negative.
    """
    return draw_shapes(n_train, seed, "train"), draw_shapes(n_test, seed, "test")


def ready_shapes() -> tuple[ImageSet, ImageSet]:
    """All of `load_shapes()`, drawn once by each user: that takes a second or two of every short run.

    They are drawn again after an update of velodrome or of NumPy.
    """
    return read_cached("shapes", {Path(__file__): f"numpy {np.__version__}"}, load_shapes)


def draw_shapes(n: int, seed: int, split: str = "train") -> ImageSet:
    """Draw the first `n` images of a split: (n, 32, 32, 3) uint8, each block of ten with one of each class.

    Image i is the same for every `n` above i.

    Args:
        n: how many images, at least 1.
        seed: which data set, at least 0.
        split: `train` or `test`.

    Raises:
        DataError: `n`, `seed` or `split` is none of these.
    """
    if n < 1:
        raise DataError(f"The number of shapes images is {n}, and must be at least 1.", "Ask for 1 or more.")
    if seed < 0:
        raise DataError(f"The seed of the shapes is {seed}, and must not be negative.", "Use 0 or more.")
    if split not in _STREAMS:
        raise DataError(f"The shapes have no split {split!r}.", did_you_mean(split, _STREAMS))
    images_u8 = np.empty((n, _SIZE, _SIZE, 3), dtype=np.uint8)
    labels = np.empty(n, dtype=np.int64)

    def draw_into(start: int) -> None:
        stop = min(start + _CHUNK, n)
        chunk_u8, chunk_labels = _draw_chunk(seed, _STREAMS[split], start // _CHUNK)
        images_u8[start:stop] = chunk_u8[: stop - start]
        labels[start:stop] = chunk_labels[: stop - start]

    # NumPy lets go of the interpreter lock in its loops, so threads share the work; more than 8 do not help.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(draw_into, range(0, n, _CHUNK)))
    return ImageSet(images_u8, labels, CLASSES, [f"shapes/{split}/{i:05d}.png" for i in range(n)])


def _draw_chunk(seed: int, stream: int, chunk: int) -> tuple[ImagesU8, Labels]:
    """One chunk: images (M, 32, 32, 3) uint8 and labels (M,) int64, with M = _CHUNK.

    A chunk is always drawn whole: how many numbers its generator gives must not depend on who asks.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, chunk)))
    labels = rng.permuted(np.tile(np.arange(len(CLASSES)), (_CHUNK // len(CLASSES), 1)), axis=1).ravel()
    back, fore, contrast = _colours(rng)
    images = _background(rng, back, contrast)
    _add_clutter(rng, images)
    _add_shape(rng, images, labels, fore, contrast)
    _degrade(rng, images)
    images *= 255.0
    images += 0.5
    np.clip(images, 0.0, 255.0, out=images)
    return np.ascontiguousarray(images.astype(np.uint8).transpose(0, 2, 3, 1)), labels.astype(np.int64)


def _uniform(rng: Generator, low: float, high: float, *shape: int) -> Floats:
    """Uniform in [low, high), (M, *shape) float32."""
    drawn: Floats = rng.random((_CHUNK, *shape), dtype=np.float32)
    return drawn * np.float32(high - low) + np.float32(low)


def _planes(per_image: Floats) -> Floats:
    """(M,) to (M, 1, 1), or (M, 3) to (M, 3, 1, 1): one number per image (and channel) against pixels."""
    return per_image[..., None, None]


def _paint(images: Floats, coverage: Floats, colours: Floats) -> None:
    """Lay colours (M, 3) or (M, 3, H, W) over images (M, 3, H, W), in place, by coverage (M, H, W)."""
    change = (_planes(colours) if colours.ndim == 2 else colours) - images
    change *= coverage[:, None]
    images += change


def _coverage(distance_px: Floats, softness_px: float | Floats = 1.3) -> Floats:
    """How much of each pixel lies inside an edge, 0 to 1: smoothstep over `softness_px` pixels."""
    inside: Floats = np.clip(0.5 - distance_px / softness_px, 0.0, 1.0)
    return inside * inside * (3.0 - 2.0 * inside)


# Colours and background


def _colours(rng: Generator) -> tuple[Floats, Floats, Floats]:
    """Colours behind and in front, (M, 3) in [0, 1], and the distance between them, (M,).

    The shape is lighter than the background, by a drawn least difference of luminance. Were it lighter or
    darker by chance, a small network would need many epochs to find any shape at all; so only one image in
    25 is the other way round, as a hard case.
    """
    back = _uniform(rng, 0.0, 1.0, 3) * _uniform(rng, 0.25, 0.6, 1)
    fore = _uniform(rng, 0.1, 1.0, 3)
    fore /= fore.max(axis=1, keepdims=True)
    darkest = back @ _LUMINANCE + _uniform(rng, 0.14, 0.46)
    luminance = fore @ _LUMINANCE
    to_white = np.clip((darkest - luminance) / (1.001 - luminance), 0.0, 1.0)
    fore += (1.0 - fore) * to_white[:, None]
    contrast = np.sqrt(((fore - back) ** 2) @ _LUMINANCE)
    swapped = (_uniform(rng, 0.0, 1.0) < 1 / 25)[:, None]
    return np.where(swapped, fore, back), np.where(swapped, back, fore), contrast


def _wave(rng: Generator, rows: NDArray[np.bool_], shortest_px: float, longest_px: float) -> Floats:
    """A sine wave over the plane per image, of random direction, wavelength and phase; only for `rows`."""
    angle = _uniform(rng, 0.0, np.pi)[rows]
    number = 2 * np.pi / _uniform(rng, shortest_px, longest_px)[rows]
    phase = _uniform(rng, 0.0, 2 * np.pi)[rows]
    return np.sin(
        _planes(number * np.cos(angle)) * _COLUMNS + _planes(number * np.sin(angle)) * _ROWS + _planes(phase)
    )


def _background(rng: Generator, back: Floats, contrast: Floats) -> Floats:
    """Images (M, 3, H, W) of one colour each, plus a pattern that stays well below the shape's contrast."""
    kind = rng.integers(0, 5, _CHUNK)  # flat, gradient, blotches, stripes, checks
    pattern: Floats = np.zeros((_CHUNK, _SIZE, _SIZE), dtype=np.float32)
    pattern[kind == 1] = _wave(rng, kind == 1, 64.0, 120.0)
    for _ in range(3):
        pattern[kind == 2] += 0.6 * _wave(rng, kind == 2, 12.0, 40.0)
    # Steepened and cut, a sine is a stripe with soft edges; two of them multiplied are checks.
    pattern[kind == 3] = np.clip(3.0 * _wave(rng, kind == 3, 5.0, 14.0), -0.6, 0.6)
    pattern[kind == 4] = np.clip(
        4.0 * _wave(rng, kind == 4, 7.0, 16.0) * _wave(rng, kind == 4, 7.0, 16.0), -0.6, 0.6
    )
    tint = rng.standard_normal((_CHUNK, 3), dtype=np.float32)
    tint /= np.sqrt((tint**2) @ _LUMINANCE)[:, None]
    np.clip(tint, -1.5, 1.5, out=tint)
    strength = np.minimum(_uniform(rng, 0.1, 0.5) * contrast, 0.2)
    return _planes(back) + _planes(tint * strength[:, None]) * pattern[:, None]


def _capsule(start: Floats, along: Floats, radius: Floats) -> Floats:
    """Distance in pixels, (M, H, W), to a thick line from `start` by the vector `along`, (M, 2) as (x, y)."""
    x, y = _COLUMNS - _planes(start[:, 0]), _ROWS - _planes(start[:, 1])
    dx, dy = _planes(along[:, 0]), _planes(along[:, 1])
    nearest = np.clip((x * dx + y * dy) / (dx * dx + dy * dy + 1e-6), 0.0, 1.0)
    return _length(x - dx * nearest, y - dy * nearest) - _planes(radius)


def _add_clutter(rng: Generator, images: Floats) -> None:
    """Lay 0 to 4 dots, short lines or soft blobs on each image; the shape is drawn over them."""
    count = rng.integers(0, _MAX_CLUTTER + 1, _CHUNK)
    for slot in range(_MAX_CLUTTER):
        kind = rng.integers(0, 3, _CHUNK)  # dot, line, blob
        start = _uniform(rng, -16.0, 16.0, 2)
        along = _uniform(rng, -7.0, 7.0, 2) * (kind == 1)[:, None]
        radius = np.where(kind == 1, _uniform(rng, 0.4, 0.9), _uniform(rng, 0.7, 2.0))
        softness = np.where(kind == 2, 4.0, 1.3).astype(np.float32)
        colours = _uniform(rng, 0.0, 0.8, 3)
        drawn = count > slot
        cover = _coverage(_capsule(start[drawn], along[drawn], radius[drawn]), _planes(softness[drawn]))
        part = images[drawn]
        _paint(part, cover, colours[drawn])
        images[drawn] = part


# Shapes. Each takes points x, y, (M, H, W), and a free proportion in [0, 1), (M, 1, 1), and gives the
# distance to its edge, all in units of about the shape's radius. It need only be right near the edge.


def _length(x: Floats, y: Floats) -> Floats:
    length: Floats = np.hypot(x, y)
    return length


def _union(first: Floats, second: Floats) -> Floats:
    smaller: Floats = np.minimum(first, second)
    return smaller


def _intersection(first: Floats, second: Floats) -> Floats:
    larger: Floats = np.maximum(first, second)
    return larger


def _box(x: Floats, y: Floats, half_width: float | Floats, half_height: float | Floats) -> Floats:
    return _intersection(np.abs(x) - half_width, np.abs(y) - half_height)


def _disc(x: Floats, y: Floats, _free: Floats) -> Floats:
    return _length(x, y) - 0.9


def _ring(x: Floats, y: Floats, free: Floats) -> Floats:
    from_middle: Floats = np.abs(_length(x, y) - 0.75)
    return from_middle - (0.13 + 0.1 * free)


def _square(x: Floats, y: Floats, _free: Floats) -> Floats:
    return _box(x, y, 0.76, 0.76)


def _triangle(x: Floats, y: Floats, _free: Floats) -> Floats:
    # Equilateral, mirrored at the y axis: one slanted side and the base.
    return _intersection(math.sqrt(0.75) * np.abs(x) + 0.5 * y, -y) - 0.54


def _star(x: Floats, y: Floats, free: Floats) -> Floats:
    # Folded ten times at the middle: one straight side, from the tip (1.1, 0) to an inner corner.
    fifth = 2 * math.pi / 5
    radius, angle = _length(x, y), np.arctan2(y, x)
    angle = np.abs(angle - fifth * np.round(angle / fifth))
    inner = 0.44 + 0.1 * free
    side_x, side_y = inner * math.cos(fifth / 2) - 1.1, inner * math.sin(fifth / 2)
    across = (radius * np.cos(angle) - 1.1) * side_y - radius * np.sin(angle) * side_x
    return across / _length(side_x, side_y)


def _cross(x: Floats, y: Floats, free: Floats) -> Floats:
    half_width = 0.2 + 0.12 * free
    return _union(_box(x, y, 0.92, half_width), _box(x, y, half_width, 0.92))


def _crescent(x: Floats, y: Floats, free: Floats) -> Floats:
    # A disc with a bite; moved by 0.25, so that what is left lies in the middle.
    disc = _length(x - 0.25, y) - 0.98
    bite = _length(x - 0.75 - 0.12 * free, y) - 0.82
    return _intersection(disc, -bite)


def _heart(x: Floats, y: Floats, _free: Floats) -> Floats:
    # Mirrored at the y axis: a lobe about (0.41, high), and a straight side from it down to the tip (0, 0).
    lobe_radius, across, lean = 0.5, 0.41, math.radians(33)
    sin, cos = math.sin(lean), math.cos(lean)
    high = (lobe_radius + across * cos) / sin  # where the side just touches the lobe
    x, y = np.abs(x), y + 1.1
    lobe = _length(x - across, y - high) - lobe_radius
    # The wedge reaches a little into the lobe, or a seam would show between them.
    wedge = _intersection(cos * x - sin * y, sin * (x - across) + cos * (y - high) - 0.03)
    return _union(lobe, wedge)


def _arrow(x: Floats, y: Floats, free: Floats) -> Floats:
    shaft = _box(x + 0.4, y, 0.6, 0.14 + 0.1 * free)
    # Tip at (1, 0), and back corners at (0, 0.8) and (0, -0.8).
    slanted = (np.abs(y) + 0.8 * (x - 1.0)) / math.hypot(1.0, 0.8)
    return _union(shaft, _intersection(-x, slanted))


def _hourglass(x: Floats, y: Floats, free: Floats) -> Floats:
    # Two triangles, tip to tip: the sides run from a thin waist to (0.8, 0.92).
    waist = 0.06 + 0.08 * free
    slope = (0.8 - waist) / 0.92
    sides = (np.abs(x) - waist - slope * np.abs(y)) / np.sqrt(1.0 + slope * slope)
    return _intersection(np.abs(y) - 0.92, sides)


_SHAPES: tuple[Shape, ...] = (
    _disc,
    _ring,
    _square,
    _triangle,
    _star,
    _cross,
    _crescent,
    _heart,
    _arrow,
    _hourglass,
)


def _add_shape(rng: Generator, images: Floats, labels: Labels, fore: Floats, contrast: Floats) -> None:
    """Draw each image's shape, (M, 3, H, W) in place, and in some images something in front of it."""
    # By the square root, large shapes are more common than small ones.
    radius = _MIN_RADIUS + (_MAX_RADIUS - _MIN_RADIUS) * np.sqrt(_uniform(rng, 0.0, 1.0))
    room = np.maximum(13.5 - radius, 1.5)
    centre = _uniform(rng, -1.0, 1.0, 2) * room[:, None]
    x, y = _local_points(rng, centre, radius)
    free = _planes(_uniform(rng, 0.0, 1.0))
    distance: Floats = np.empty_like(x)
    for label, shape in enumerate(_SHAPES):
        of_class = labels == label
        distance[of_class] = shape(x[of_class], y[of_class], free[of_class])
    distance *= _planes(radius)
    # Half of the shapes are shaded along their own x axis.
    shade = np.maximum(_uniform(rng, -0.3, 0.3), 0.0) * contrast
    fill = _planes(fore) + (_planes(shade) * x)[:, None]
    _paint(images, _coverage(distance), fill)
    _add_occluder(rng, images, centre, radius)


def _local_points(rng: Generator, centre: Floats, radius: Floats) -> tuple[Floats, Floats]:
    """Each pixel as seen from the shape, x and y (M, H, W): moved, turned, sheared, stretched and scaled."""
    angle = _uniform(rng, 0.0, 2 * np.pi)
    stretch = np.exp(_uniform(rng, -0.18, 0.18))
    shear = _planes(_uniform(rng, -0.15, 0.15))
    cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
    dx, dy = _COLUMNS - _planes(centre[:, 0]), _ROWS - _planes(centre[:, 1])
    x = _planes(cos * stretch) * dx + _planes(sin * stretch) * dy
    y = _planes(cos / stretch) * dy - _planes(sin / stretch) * dx
    return x + shear * y, y


def _add_occluder(rng: Generator, images: Floats, centre: Floats, radius: Floats) -> None:
    """Hide a part of a fifth of the shapes behind a bar, (M, 3, H, W) in place; centre in pixels (M, 2)."""
    chosen = _uniform(rng, 0.0, 1.0) < 0.2
    angle = _uniform(rng, 0.0, 2 * np.pi)
    off_centre = _uniform(rng, 0.2, 0.9) * radius
    start = centre + off_centre[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    along = _uniform(rng, -1.0, 1.0, 2) * radius[:, None]
    thickness = _uniform(rng, 0.1, 0.3) * radius
    colours = _uniform(rng, 0.0, 1.0, 3)
    part = images[chosen]
    _paint(part, _coverage(_capsule(start[chosen], along[chosen], thickness[chosen])), colours[chosen])
    images[chosen] = part


def _degrade(rng: Generator, images: Floats) -> None:
    """Blur a quarter of the images, change brightness and contrast, and add noise, (M, 3, H, W) in place."""
    blurred = _uniform(rng, 0.0, 1.0) < 0.25
    images[blurred] = _blur(images[blurred])
    gain, shift = _uniform(rng, 0.6, 1.1), _uniform(rng, -0.1, 0.1)
    images -= 0.5
    images *= gain[:, None, None, None]
    images += (0.5 + shift)[:, None, None, None]
    # Cubed: most images are nearly clean, and a few are very noisy.
    sigma = 0.01 + 0.17 * _uniform(rng, 0.0, 1.0) ** 4
    noise: Floats = rng.standard_normal(images.shape, dtype=np.float32)
    noise *= sigma[:, None, None, None]
    images += noise


def _blur(images: Floats) -> Floats:
    """Binomial 3x3 blur, edges repeated."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    across = 0.25 * (padded[..., :-2] + padded[..., 2:]) + 0.5 * padded[..., 1:-1]
    return 0.25 * (across[:, :, :-2] + across[:, :, 2:]) + 0.5 * across[:, :, 1:-1]
