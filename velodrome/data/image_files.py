"""Image files from outside: found in folders, read whatever their kind, and cut to the size of a model.

Nothing about such a file is trusted: a name may hold control characters, its bytes may be damaged on purpose.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from velodrome.data.imageset import ImagesU8
from velodrome.errors import DataError, visible

# Pillow knows these by name, but starts Ghostscript for the first and cannot decode the others by itself.
NOT_READ = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
# Some decoders take the whole file into memory. As many pixels as are decoded take less, even uncompressed.
MOST_BYTES = 2**30
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

# Python prints what a library logs where nobody has set up logging, as in the command line.
logging.getLogger("PIL").addHandler(logging.NullHandler())
# The filters of warnings, and stderr, belong to the whole process.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Failure:
    """A file or folder without an answer.

    Attributes:
        path: as it was given or found.
        reason: such as "it is empty"; holds no control characters.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{visible(str(self.path))}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Views:
    """An image as the model is shown it, and as people like to see it.

    Attributes:
        shown: (H, W, 3) uint8, in the model's size.
        crop: (h, w, 3) uint8, the same part of the image, sharper where the file is.
        whole: (h, w, 3) uint8, the upright image with what was cut off.
    """

    shown: ImagesU8
    crop: ImagesU8
    whole: ImagesU8


class UnreadableImageError(DataError):
    """A file is not an image that can be used.

    Args:
        path: of the file.
        reason: completes "Image X cannot be read: ".
        remedy: a sentence that says what to do.
    """

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        super().__init__(f"Image {visible(str(path))} cannot be read: {reason}.", remedy)
        self.reason = reason


def find_images(paths: Iterable[Path]) -> list[Path | Failure]:
    """The image files at `paths`, each once, and a Failure in the place of what gives none.

    A file that is named is taken whatever it is called. A folder is walked in sorted order, into its folders
    and through links, each of them once; there, files count whose suffix is that of an image, and hidden ones
    do not.

    Args:
        paths: files and folders.
    """
    found: dict[Path, Path | Failure] = {}
    for path in paths:
        for item in _images_at(path):
            found.setdefault((item.path if isinstance(item, Failure) else item).absolute(), item)
    return list(found.values())


def read_image(path: Path, size: tuple[int, int]) -> ImagesU8:
    """An image file as a model wants it, by the rules that hold for training images too.

    Of an animation the first frame counts. The image is turned upright as its EXIF tag says. Transparent
    parts are laid on white. Values of 16 bits are scaled from [0, 65535]; whole numbers beyond these, from
    their minimum and maximum. Floats are scaled from the first of [0, 1], [0, 255] and [0, 65535] that holds
    all of them, else from their minimum and maximum; NaN is black. Colour profiles are not applied.

    An image of the model's size is taken as it is. Of any other, the largest part of the model's aspect ratio
    in the middle is resized, bicubic with antialiasing (`PIL.ImageOps.fit`).

    Args:
        path: of any file that Pillow can decode; EPS is left out, because that would start a program.
        size: (height, width) of the model's images in pixels.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        UnreadableImageError: it is no file, no image, empty, damaged, not permitted or too large. This is a
            DataError.
    """
    return _pixels(_fitted(_open_upright(path), size))


def read_views(path: Path, size: tuple[int, int], longest: int) -> Views:
    """An image file as `read_image` gives it, with the views that pictures for people are made of.

    Args:
        path: of the file.
        size: (height, width) of the model's images in pixels.
        longest: the longer side of `crop` and `whole` is at most this many pixels.

    Raises:
        UnreadableImageError: as in `read_image`.
    """
    image = _open_upright(path)
    height, width = size
    scale = min(image.height / height, image.width / width, longest / max(size))
    crop_size = max(1, round(scale * height)), max(1, round(scale * width))
    shrink = min(1, longest / max(image.size))
    whole_size = max(1, round(shrink * image.width)), max(1, round(shrink * image.height))
    whole = image.resize(whole_size, Image.Resampling.BICUBIC) if shrink < 1 else image
    return Views(*(_pixels(view) for view in (_fitted(image, size), _fitted(image, crop_size), whole)))


def image_suffixes() -> frozenset[str]:
    """The suffixes of files that can be read, in lower case and with their dot."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _formats())


# Files and folders.


def _images_at(path: Path) -> Iterator[Path | Failure]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:  # a ValueError where it holds a null character
        yield Failure(path, _reason(error))
        return
    if not is_folder:
        yield path
        return
    is_empty = True
    for item in _walk(path):
        is_empty = False
        yield item
    if is_empty:
        yield Failure(path, "there is no image in this folder")


def _walk(folder: Path) -> Iterator[Path | Failure]:
    """The images in a folder and below it, and the folders that may not be looked into."""
    suffixes, entered = image_suffixes(), set()
    todo = [folder]  # a list of our own, as folders may be nested deeper than calls
    while todo:
        path = todo.pop()
        if not os.path.isdir(path):  # noqa: PTH112  Path.is_dir raises where it may not look
            yield path
            continue
        try:
            status = path.stat()
            inside = sorted(path.iterdir(), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            yield Failure(path, _reason(error))
            continue
        if (status.st_dev, status.st_ino) not in entered:
            entered.add((status.st_dev, status.st_ino))
            todo += [
                entry
                for entry in inside
                if not entry.name.startswith(".")
                and (entry.suffix.lower() in suffixes or os.path.isdir(entry))  # noqa: PTH112
            ]


def _reason(error: Exception) -> str:
    """What an error of the system or of Pillow says, in a few words on one line."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = visible((words or type(error).__name__).splitlines()[0]).rstrip(".")
    return words[:1].lower() + words[1:100]


# Decoding.


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in NOT_READ]


def _open_upright(path: Path) -> Image.Image:
    """The first frame of a file: upright, RGB, in full size."""
    try:
        with _open_file(path) as file, _one_at_a_time, _warnings_kept_back():
            return _decode(path, file)
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(
            path,
            f"it has more pixels than the {Image.MAX_IMAGE_PIXELS:,} that are decoded",
            "Make it smaller first. So large an image may be a trap that fills the memory.",
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            path, "it is not an image, or of no kind that is known", "Convert it to PNG or JPEG."
        ) from error
    except MemoryError as error:
        raise UnreadableImageError(
            path, "it takes more memory than there is", "Make it smaller first."
        ) from error
    # Damaged bytes make decoders raise nearly everything: SyntaxError, KeyError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(
            path, f"it is truncated or damaged: {_reason(error)}", "Restore it from where it came from."
        ) from error


def _open_file(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, for ever
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise UnreadableImageError(path, f"it is {kind}", "Give the path of an image file.")
        if not status.st_size:
            raise UnreadableImageError(path, "it is empty", "Restore it from where it came from.")
        if status.st_size > MOST_BYTES:
            size = f"{status.st_size / 2**30:.1f} GiB"
            raise UnreadableImageError(
                path, f"it is {size} large, but at most 1 GiB is read", "Make it smaller."
            )
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise UnreadableImageError(path, _reason(error), "Check the path and its permissions.") from error


def _decode(path: Path, file: BinaryIO) -> Image.Image:
    image: Image.Image = Image.open(file, formats=_formats())
    if not all(image.size):
        raise UnreadableImageError(path, "it has no pixels", "Restore it from where it came from.")
    # Where a process has closed its stderr, the file itself may be in that place.
    is_noisy = image.format == "TIFF" and file.fileno() != 2
    with _without_stderr() if is_noisy else contextlib.nullcontext():
        image.load()
    # Not ImageOps.exif_transpose: it also writes the other tags anew, and fails where one is damaged.
    turn = UPRIGHT.get(_orientation(image))
    image = _to_rgb(image)
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _warnings_kept_back() -> Iterator[None]:
    """Pillow's warnings are not shown, whatever the user's filters; that of a bomb is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Nothing reaches stderr. libtiff prints there, past Python, and Pillow has no other way to stop it."""
    try:
        kept = os.dup(2)
    except OSError:  # closed already
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _orientation(image: Image.Image) -> int:
    """The EXIF tag, 1 where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged tags spoil no pixel
        return 1


# Pixels.


def _to_rgb(image: Image.Image) -> Image.Image:
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


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of an RGB image, resized to (height, width)."""
    if image.size == (size[1], size[0]):
        return image
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)


def _pixels(image: Image.Image) -> ImagesU8:
    return np.array(image)
