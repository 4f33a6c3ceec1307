"""Image files from outside: found in folders, read whatever their kind, and brought to the size of a model.

Nothing about such a file is trusted: a name may hold control characters, its bytes may be damaged on purpose.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from velodrome.data.imageset import ImagesU8
from velodrome.data.pixels import (
    BICUBIC,
    LYING,
    UPRIGHT,
    draft,
    fit_image,
    orientation_of,
    to_rgb,
    upright_size,
)
from velodrome.data.quiet import quietly, without_stderr
from velodrome.errors import DataError, visible

# Pillow knows these by name, but starts Ghostscript for the first and cannot decode the others by itself.
NOT_READ = frozenset({"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
# Some decoders take the whole file into memory. As many pixels as are decoded take less, even uncompressed.
MOST_BYTES = 2**30
# Files up to this size are read at once, which takes less time than piece by piece.
AT_ONCE_BYTES = 2**20


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


class Decoded(NamedTuple):
    """An image file as the model wants it, and what it was.

    Attributes:
        image_u8: (height, width, 3) uint8, RGB, in the model's size.
        size: height and width in pixels of the upright file.
        status: of the file, after it was read.
    """

    image_u8: ImagesU8
    size: tuple[int, int]
    status: os.stat_result


class UnreadableImageError(DataError):
    """A file is not an image that can be used.

    Args:
        path: of the file.
        reason: completes "Image X cannot be read: ".
        remedy: a sentence that says what to do.
        is_lasting: whether it lies in the file, so that reading the same bytes again would not help.
    """

    def __init__(self, path: Path | str, reason: str, remedy: str, *, is_lasting: bool = True) -> None:
        super().__init__(f"Image {visible(str(path))} cannot be read: {reason}.", remedy)
        self.reason = reason
        self.is_lasting = is_lasting


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


def read_image(path: Path, size: tuple[int, int], fit: str = "crop") -> ImagesU8:
    """An image file as a model wants it, by the rules that hold for training images too.

    Of an animation the first frame counts. The image is turned upright as its EXIF tag says. Transparent
    parts are laid on white. Values of 16 bits are scaled from [0, 65535]; whole numbers beyond these, from
    their minimum and maximum. Floats are scaled from the first of [0, 1], [0, 255] and [0, 65535] that holds
    all of them, else from their minimum and maximum; NaN is black. Colour profiles are not applied.

    An image of the model's size is taken as it is. Any other is resized, bicubic with antialiasing, after a
    JPEG that is much larger was decoded at a part of its size (see `pixels.draft`).

    Args:
        path: of any file that Pillow can decode; EPS is left out, because that would start a program.
        size: (height, width) of the model's images in pixels.
        fit: "crop": the largest part of the model's aspect ratio in the middle; "pad": the whole image, in
            the middle of black; "squash": the whole image, whatever becomes of its aspect ratio.

    Returns:
        (height, width, 3) uint8, RGB.

    Raises:
        UnreadableImageError: it is no file, no image, empty, damaged, not permitted or too large. This is a
            DataError.
    """
    return decode(path, size, fit).image_u8


def decode(path: Path | str, size: tuple[int, int], fit: str = "crop", *, is_quiet: bool = False) -> Decoded:
    """The same as `read_image`, with what the file was.

    Args:
        path: of the file; a string takes less time, which counts for many small files.
        size: (height, width) of the model's images in pixels.
        fit: as in `read_image`.
        is_quiet: whether this process has called `quiet_process`, so that nothing is to be kept back.

    Raises:
        UnreadableImageError: as in `read_image`.
    """
    opened = _open_upright(path, size, fit, is_quiet=is_quiet)
    return Decoded(_pixels(fit_image(opened.image, size, fit)), opened.size, opened.status)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of an upright image file, from its header.

    Raises:
        UnreadableImageError: as in `read_image`, as far as the header tells.
    """
    with _clear_errors(path), _open_file(path) as file, quietly():
        image = Image.open(io.BufferedReader(file), formats=_formats())
        return upright_size(image.size, orientation_of(image))


def read_views(path: Path, size: tuple[int, int], longest: int, fit: str = "crop") -> Views:
    """An image file as `read_image` gives it, with the views that pictures for people are made of.

    Args:
        path: of the file.
        size: (height, width) of the model's images in pixels.
        longest: the longer side of `crop` and `whole` is at most this many pixels.
        fit: as in `read_image`; `crop` is what the model is shown.

    Raises:
        UnreadableImageError: as in `read_image`.
    """
    opened = _open_upright(path, size, fit)
    shown = fit_image(opened.image, size, fit)
    image = _open_upright(path).image if opened.is_draft else opened.image
    sides = zip((image.height, image.width), size, strict=True)
    scale = min(*(have / want for have, want in sides), longest / max(size))
    crop_size = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
    shrink = min(1, longest / max(image.size))
    whole_size = max(1, round(shrink * image.width)), max(1, round(shrink * image.height))
    whole = image.resize(whole_size, BICUBIC) if shrink < 1 else image
    return Views(*(_pixels(view) for view in (shown, fit_image(image, crop_size, fit), whole)))


def image_suffixes() -> frozenset[str]:
    """The suffixes of files that can be read, in lower case and with their dot."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _formats())


# Files and folders.


def _images_at(path: Path) -> Iterator[Path | Failure]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError) as error:  # a ValueError where it holds a null character
        yield Failure(path, reason(error))
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
            yield Failure(path, reason(error))
            continue
        if (status.st_dev, status.st_ino) not in entered:
            entered.add((status.st_dev, status.st_ino))
            todo += [
                entry
                for entry in inside
                if not entry.name.startswith(".")
                and (entry.suffix.lower() in suffixes or os.path.isdir(entry))  # noqa: PTH112
            ]


def reason(error: Exception) -> str:
    """What an error of the system or of a decoder says, in a few words on one line."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = visible((words.strip() or type(error).__name__).splitlines()[0]).rstrip(".")
    return words[:1].lower() + words[1:100]


# Decoding.


class _Opened(NamedTuple):
    """An image file in memory.

    Attributes:
        image: upright, RGB, in full size.
        is_draft: whether it has the model's size already, because not all of its pixels were decoded.
        size: height and width in pixels of the upright file.
        status: of the file, after it was read.
    """

    image: Image.Image
    is_draft: bool
    size: tuple[int, int]
    status: os.stat_result


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in NOT_READ)


def _open_upright(
    path: Path | str, size: tuple[int, int] | None = None, fit: str = "crop", *, is_quiet: bool = False
) -> _Opened:
    """The first frame of a file; for a model's `size`, if there is one, perhaps not in full size."""
    with _clear_errors(path), _open_file(path) as file:
        if is_quiet:
            return _load(path, file, size, fit)
        with quietly():
            return _load(path, file, size, fit)


@contextlib.contextmanager
def _clear_errors(path: Path | str) -> Iterator[None]:
    """Turns whatever a decoder raises into an UnreadableImageError."""
    try:
        yield
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
            path, "it takes more memory than there is", "Make it smaller first.", is_lasting=False
        ) from error
    # Damaged bytes make decoders raise nearly everything: SyntaxError, KeyError, struct.error, ...
    except Exception as error:
        raise UnreadableImageError(
            path,
            f"it is truncated or damaged: {reason(error)}",
            "Restore it from where it came from.",
            is_lasting=not (isinstance(error, OSError) and error.errno),  # not the system's, but Pillow's
        ) from error


def _open_file(path: Path | str) -> io.FileIO:
    try:
        status = os.stat(path)  # noqa: PTH116  as it may be a string
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
        return open(path, "rb", buffering=0)  # noqa: PTH123  as above
    except (OSError, ValueError) as error:
        raise UnreadableImageError(
            path, reason(error), "Check the path and its permissions.", is_lasting=False
        ) from error


def _load(path: Path | str, file: io.FileIO, size: tuple[int, int] | None, fit: str) -> _Opened:
    is_small = os.fstat(file.fileno()).st_size <= AT_ONCE_BYTES
    content: BinaryIO = io.BytesIO(file.readall()) if is_small else io.BufferedReader(file)
    image: Image.Image = Image.open(content, formats=_formats())
    if not all(image.size):
        raise UnreadableImageError(path, "it has no pixels", "Restore it from where it came from.")
    whole, extent = image.size, None
    if size is not None and image.format in ("JPEG", "MPO"):
        size = size[::-1] if orientation_of(image) in LYING else size
        extent = draft(image, size, fit)
    # Where a process has closed its stderr, the file itself may be in that place.
    is_noisy = image.format == "TIFF" and file.fileno() != 2
    with without_stderr() if is_noisy else contextlib.nullcontext():
        image.load()
    # Not ImageOps.exif_transpose: it also writes the other tags anew, and fails where one is damaged.
    orientation = orientation_of(image)
    size_of_file = upright_size(whole if extent else image.size, orientation)
    image = to_rgb(image)
    if size is not None and extent is not None:
        image = fit_image(image, size, fit, extent)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    return _Opened(image, extent is not None, size_of_file, os.fstat(file.fileno()))


def _pixels(image: Image.Image) -> ImagesU8:
    return np.array(image)
