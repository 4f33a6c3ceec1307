"""The pixels of images of any kind: brought to RGB, and cut, bordered or distorted to the size of a model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

# How images of another shape come to that of a model.
FITS = ("crop", "pad", "squash")
# An image that is to be resized has at least so many times the pixels of the result, in either direction.
DRAFT_MARGIN = 2
BICUBIC = Image.Resampling.BICUBIC
# How to turn an image upright, by the value of its EXIF tag.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Those that lie on their side.
LYING = frozenset({5, 6, 7, 8})


def orientation_of(image: Image.Image) -> int:
    """The EXIF tag, 1 where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged tags spoil no pixel
        return 1


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Height and width of an upright image, from the width and height that it is held in."""
    width, height = size
    return (width, height) if orientation in LYING else (height, width)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB; transparent parts are laid on white."""
    # Of a palette in an icon (ICNS), Pillow knows only the colours.
    is_opaque = (image.mode == "P" and image.palette is None) or not image.has_transparency_data
    if image.mode == "RGB" and is_opaque:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_of_deep(image).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        changed = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert changed is not None  # it is only where the image itself is changed
        return changed
    if is_opaque:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layered, mask=layered.getchannel("A"))
    return white


def _grey_of_deep(image: Image.Image) -> Image.Image:
    """An image with values of 16 bits, 32 bits or floats with 8 bits; see `read_image` for the scale."""
    values = np.asarray(image).astype(np.float32)
    low, high = _range_of(values, is_float=image.mode == "F")
    if low or not math.isclose(high, 255):
        values = (values - np.float32(low)) * np.float32(255 / (high - low))
    grey = np.rint(np.clip(np.nan_to_num(values, nan=0), 0, 255)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[np.asarray(image) == transparent] = 255
    return Image.fromarray(grey)


def _range_of(values: NDArray[np.float32], *, is_float: bool) -> tuple[float, float]:
    """The values that become black and white."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    usual = (1.0, 255.0, 65535.0) if is_float else (65535.0,)
    for most in usual:
        if low >= 0 and high <= most:
            return 0.0, most
    return low, high if high > low else low + 1


def fit_image(
    image: Image.Image, size: tuple[int, int], fit: str, extent: tuple[float, float] | None = None
) -> Image.Image:
    """An RGB image in another size, bicubic with antialiasing; itself where it has that size.

    Args:
        image: RGB, of any size.
        size: (height, width) of the result.
        fit: "crop": the largest part of the wanted aspect ratio in the middle; "pad": the whole image, in
            the middle of black; "squash": the whole image, whatever becomes of its aspect ratio.
        extent: (height, width) that count of it, from its top left corner; all of it without.

    Raises:
        ValueError: there is no such fit.
    """
    height, width = size
    if extent is None:
        extent = (image.height, image.width)
        if extent == size:
            return image
    inside = _size_inside(extent, size, fit)
    box = _middle(extent, size) if fit == "crop" else (0, 0, extent[1], extent[0])
    resized = image.resize(inside[::-1], BICUBIC, box)
    if inside == size:
        return resized
    padded = Image.new("RGB", (width, height))
    padded.paste(resized, ((width - inside[1]) // 2, (height - inside[0]) // 2))
    return padded


def box_in_padding(extent: tuple[float, float], size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns that an image has within the black that `fit_image` pads it with.

    Args:
        extent: (height, width) of the image.
        size: (height, width) of the result.
    """
    starts = [
        ((whole - part) // 2, part)
        for whole, part in zip(size, _size_inside(extent, size, "pad"), strict=True)
    ]
    rows, columns = (slice(start, start + part) for start, part in starts)
    return rows, columns


def _middle(extent: tuple[float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest part with the aspect ratio of `size`, in the middle."""
    height, width = extent
    wanted = size[1] / size[0]
    if width / height >= wanted:
        left = (width - wanted * height) / 2
        return left, 0, left + wanted * height, height
    top = (height - width / wanted) / 2
    return 0, top, width, top + width / wanted


def _size_inside(extent: tuple[float, float], size: tuple[int, int], fit: str) -> tuple[int, int]:
    """Height and width that the part of an image that is not cut off has in one of `size`."""
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}, but must be one of {', '.join(FITS)}")
    if fit != "pad":
        return size
    shrink = max(have / want for have, want in zip(extent, size, strict=True))
    height, width = (max(1, round(have / shrink)) for have in extent)
    return height, width


def draft(image: Image.Image, size: tuple[int, int], fit: str) -> tuple[float, float] | None:
    """Have a JPEG decoded at a half, a quarter or an eighth of its size, where that is enough for the model.

    The decoder adds pixels up before it makes them, which takes a part of the time. What it makes still has
    `DRAFT_MARGIN` times the height and width that are wanted, so that the resizing that follows is as good.

    Args:
        image: opened, but not loaded yet; not turned upright either.
        size: (height, width) of the model's images, as the file holds them.
        fit: as in `fit_image`.

    Returns:
        The height and width that count of what will be decoded, where that is smaller than the file; a part
        of a pixel at its end may be made up. None where it is not.
    """
    height, width = (DRAFT_MARGIN * side for side in _size_inside((image.height, image.width), size, fit))
    if min(image.height // height, image.width // width) < 2:
        return None
    drafted = image.draft(None, (width, height))
    return drafted and (drafted[1][3], drafted[1][2])
