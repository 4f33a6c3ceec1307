"""Files of every kind become the same pixels, and bad ones a clear error."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, JpegImagePlugin

from velodrome.data import image_files
from velodrome.data.image_files import (
    UPRIGHT,
    Failure,
    UnreadableImageError,
    decode,
    find_images,
    image_suffixes,
    read_image,
    read_size,
    read_views,
    visible,
)
from velodrome.data.pixels import fit_image
from velodrome.errors import DataError

SIZE = (8, 8)
ORANGE = (230, 120, 20)


def noise(height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain(colour: object = ORANGE, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (8, 8), colour)


def only_colour(path: Path) -> tuple[int, ...]:
    """The colour of an image that has but one."""
    colours = np.unique(read_image(path, SIZE).reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return tuple(colours[0].tolist())


def deep(values: object, dtype: object, path: Path) -> Path:
    Image.fromarray(np.array(values, dtype=dtype)).save(path)
    return path


def reason_of(path: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path, SIZE)
    assert str(caught.value).startswith(f"Image {visible(str(path))} cannot be read: {caught.value.reason}. ")
    return caught.value.reason


# Pixels.


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "tga"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_image_of_the_models_size_is_taken_bit_for_bit(tmp_path, suffix, mode):
    pixels = noise()
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"image.{suffix}")
    read = read_image(tmp_path / f"image.{suffix}", SIZE)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, pixels)


MODES_KEPT = {
    "png": ["RGB", "RGBA", "P"],
    "jpg": ["RGB", "CMYK", "YCbCr"],
    "tiff": ["RGB", "RGBA", "P", "CMYK", "LAB"],
    "gif": ["RGB", "P"],
    "webp": ["RGB", "RGBA"],
    "icns": ["RGB", "RGBA", "P"],
}


@pytest.mark.parametrize(
    ("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES_KEPT.items() for mode in modes]
)
def test_every_mode_shows_its_colour(tmp_path, suffix, mode):
    if mode == "LAB":
        image = plain((160, 168, 194), "LAB")  # L* 63, a* 40, b* 66
    else:
        image = plain().quantize(4) if mode == "P" else plain().convert(mode)
    image.save(tmp_path / f"image.{suffix}")
    assert np.abs(read_image(tmp_path / f"image.{suffix}", SIZE) - np.array(ORANGE)).max() <= 8


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, 255),
        ("1", 0, 0),
        ("L", 77, 77),
        ("I;16", 77 * 257, 77),
        ("I;16B", 77 * 257, 77),
        ("I", 77 * 257, 77),
        ("I", 77, 0),  # black: its range is that of 16 bits
        ("F", 0.5, 128),
        ("F", 77.0, 77),
        ("F", 77.0 * 257, 77),
        ("F", float("nan"), 0),
    ],
)
def test_grey_of_any_depth(tmp_path, mode, colour, expected):
    plain(colour, mode).save(tmp_path / "image.tiff")
    assert only_colour(tmp_path / "image.tiff") == (expected,) * 3


def test_16_bit_png(tmp_path):
    path = deep([[0, 257, 32896, 65535]], np.uint16, tmp_path / "image.png")
    assert read_image(path, (1, 4))[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([[0, 0.25, 0.5, 1.0]], np.float32, [0, 64, 128, 255]),
        ([[0, 1.5, 100, 200]], np.float32, [0, 2, 100, 200]),
        ([[0, 257, 2570, 65535]], np.float32, [0, 1, 10, 255]),
        ([[-1.0, 0.0, 1.0, 3.0]], np.float32, [0, 64, 128, 255]),
        ([[1e6, 2e6, 3.1e6, 5e6]], np.float32, [0, 64, 134, 255]),
        ([[np.nan, np.inf, -np.inf, 1.0]], np.float32, [0, 255, 0, 255]),
        ([[-3.4e38, 3.4e38, 0, 0]], np.float32, [0, 255, 128, 128]),
        ([[7e9] * 4], np.float32, [0] * 4),
        ([[-100, 0, 100, 300]], np.int32, [0, 64, 128, 255]),
        ([[0, 100_000, 200_000, 400_000]], np.int32, [0, 64, 128, 255]),
    ],
)
def test_scale_of_floats_and_whole_numbers(tmp_path, values, dtype, expected):
    path = deep(values, dtype, tmp_path / "image.tiff")
    assert read_image(path, (1, 4))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_are_laid_on_white(tmp_path, mode):
    alpha = Image.frombytes("L", (3, 1), bytes([255, 128, 0]))
    image = Image.new("RGB", (3, 1), (102, 102, 102)).convert(mode)  # 102 is in the usual palette
    image.putalpha(alpha)
    path = tmp_path / ("image.tiff" if mode == "PA" else "image.png")
    image.save(path)
    assert read_image(path, (1, 3))[0, :, 0].tolist() == [102, 178, 255]


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_a_transparent_colour_of_a_palette_is_white(tmp_path, suffix):
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, *ORANGE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / f"image.{suffix}", transparency=0)
    read = read_image(tmp_path / f"image.{suffix}", (1, 2))
    assert read[0].tolist() == [[255, 255, 255], list(ORANGE)]


@pytest.mark.parametrize(("mode", "key"), [("L", 10), ("RGB", (10, 10, 10)), ("I;16", 2570)])
def test_a_transparent_colour_without_palette_is_white(tmp_path, mode, key):
    try:
        plain(key, mode).save(tmp_path / "image.png", transparency=key)
    except OSError:
        pytest.skip(f"this Pillow reads a transparent colour of {mode}, but does not write it")
    assert only_colour(tmp_path / "image.png") == (255, 255, 255)
    plain(key, mode).save(tmp_path / "image.png")
    assert only_colour(tmp_path / "image.png") == (10, 10, 10)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png"])
def test_of_an_animation_the_first_frame_counts(tmp_path, suffix):
    frames = [plain(), plain((0, 0, 255)), plain((0, 255, 0))]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"image.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    assert only_colour(tmp_path / f"image.{suffix}") == ORANGE


# Upright.


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, suffix, orientation):
    upright = np.kron(noise(3, 2) // 128 * 255, np.ones((16, 16, 1), np.uint8))
    # How a camera holds the image that it wants to be turned.
    back = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = back.get(orientation, UPRIGHT.get(orientation))
    held = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    held = held if turn is None else held.transpose(turn)
    held.save(tmp_path / f"image.{suffix}", exif=exif, **options)
    read = read_image(tmp_path / f"image.{suffix}", (48, 32))
    assert np.abs(read.astype(int) - upright).max() <= (20 if suffix == "jpg" else 0)


def test_the_meaning_of_orientations_is_pillows_own():
    for orientation, turn in UPRIGHT.items():
        image = Image.fromarray(noise(3, 5))
        image.getexif()[0x112] = orientation
        np.testing.assert_array_equal(ImageOps.exif_transpose(image), image.transpose(turn))


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"x"])
def test_damaged_exif_spoils_no_pixel(tmp_path, exif):
    plain().save(tmp_path / "image.png", exif=exif)
    assert only_colour(tmp_path / "image.png") == ORANGE


# Other sizes.


def test_the_middle_is_taken_whatever_the_aspect_ratio(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = ORANGE
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2).copy()).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        # The pixels next to the cut have a little influence on the outermost.
        assert np.abs(read_image(tmp_path / name, SIZE) - np.array(ORANGE)).max() < 60
        assert np.array_equal(read_image(tmp_path / name, SIZE)[2:-2, 2:-2], np.full((4, 4, 3), ORANGE))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp", "gif", "bmp"])
def test_large_files_are_read_piece_by_piece_and_alike(tmp_path, monkeypatch, suffix):
    Image.fromarray(noise(60, 50)).save(tmp_path / f"image.{suffix}")
    at_once = read_image(tmp_path / f"image.{suffix}", SIZE)
    monkeypatch.setattr(image_files, "AT_ONCE_BYTES", 0)
    np.testing.assert_array_equal(read_image(tmp_path / f"image.{suffix}", SIZE), at_once)


def test_the_size_is_height_then_width(tmp_path):
    Image.fromarray(noise(50, 40)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png", (6, 9)).shape == (6, 9, 3)


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "image.png")
    middle = read_image(tmp_path / "image.png", SIZE)[:, 2:-2]
    assert np.abs(middle.astype(int) - 127).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_tiny_and_thin_images_are_enlarged(tmp_path, shape):
    Image.new("RGB", shape, ORANGE).save(tmp_path / "image.png")
    assert only_colour(tmp_path / "image.png") == ORANGE


def test_views_of_a_large_image(tmp_path):
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = ORANGE
    Image.fromarray(pixels).save(tmp_path / "image.png")
    views = read_views(tmp_path / "image.png", SIZE, longest=50)
    np.testing.assert_array_equal(views.shown, read_image(tmp_path / "image.png", SIZE))
    assert views.crop.shape == (50, 50, 3)
    assert views.whole.shape == (17, 50, 3)
    assert views.crop[25, 25].tolist() == list(ORANGE)
    assert views.whole[8, 2].tolist() == [0, 0, 0]


def test_views_of_an_image_of_the_models_size_are_that_image(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "image.png")
    views = read_views(tmp_path / "image.png", SIZE, longest=50)
    for view in (views.shown, views.crop, views.whole):
        np.testing.assert_array_equal(view, noise())


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (20, 30), (900, 700)])
def test_views_are_never_larger_than_asked_for(tmp_path, shape):
    Image.new("RGB", shape).save(tmp_path / "image.png")
    views = read_views(tmp_path / "image.png", (6, 9), longest=40)
    assert views.shown.shape == (6, 9, 3)
    assert 1 <= min(views.crop.shape[:2]) <= max(views.crop.shape[:2]) <= 40
    assert 1 <= min(views.whole.shape[:2]) <= max(views.whole.shape[:2]) <= 40


# Images of another shape.


@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_cut_out_is_what_pillow_cuts_out(shape, size):
    image = Image.fromarray(noise(*shape))
    expected = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fit_image(image, size, "crop"), expected)


def test_no_other_fits_are_known():
    with pytest.raises(ValueError, match="fit is 'stretch', but must be one of crop, pad, squash"):
        fit_image(plain(), (4, 4), "stretch")


def half_and_half(height: int, width: int, suffix: str, folder: Path) -> Path:
    """The left half of an image is orange, the right half blue."""
    pixels = np.full((height, width, 3), ORANGE, np.uint8)
    pixels[:, width // 2 :] = (20, 40, 200)
    Image.fromarray(pixels).save(folder / f"image.{suffix}", quality=95)
    return folder / f"image.{suffix}"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_padded_images_are_whole_and_in_the_middle_of_black(tmp_path, suffix):
    wide = read_image(half_and_half(100, 400, suffix, tmp_path), (32, 32), "pad").astype(int)
    assert not wide[:12].any()
    assert not wide[20:].any()
    assert np.abs(wide[12:20, :14] - ORANGE).max() <= 3
    assert np.abs(wide[12:20, 18:] - (20, 40, 200)).max() <= 3
    tall = read_image(half_and_half(400, 100, suffix, tmp_path), (32, 32), "pad")
    assert tall.any((0, 2)).tolist() == [False] * 12 + [True] * 8 + [False] * 12


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_squashed_images_are_whole_and_fill_everything(tmp_path, suffix):
    found = read_image(half_and_half(100, 400, suffix, tmp_path), (32, 24), "squash").astype(int)
    assert np.abs(found[:, :10] - ORANGE).max() <= 3
    assert np.abs(found[:, 14:] - (20, 40, 200)).max() <= 3


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_an_image_of_the_models_size_is_itself_however_it_is_fitted(tmp_path, fit):
    Image.fromarray(noise()).save(tmp_path / "image.png")
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", SIZE, fit), noise())


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(30_000, 20), (20, 30_000)])
def test_very_wide_and_very_tall_images(tmp_path, suffix, fit, shape):
    Image.new("RGB", shape, ORANGE).save(tmp_path / f"image.{suffix}")
    found = read_image(tmp_path / f"image.{suffix}", (32, 32), fit).astype(int)
    if fit == "pad":  # one line is left of it
        lines = found.any((1, 2)) if shape[0] > shape[1] else found.any((0, 2))
        assert lines.sum() == 1
    else:
        assert np.abs(found - ORANGE).max() <= 3


def test_an_image_too_wide_to_be_decoded_says_so(tmp_path):
    (tmp_path / "wide.png").write_bytes(png_that_claims(30_000, 3_000))
    assert reason_of(tmp_path / "wide.png").startswith("it has more pixels than the 89,478,485")


# JPEGs that are much larger than what is wanted.


def photo(height: int, width: int) -> Image.Image:
    """Smooth and detailed parts, as in a photo."""
    small = Image.fromarray(noise(height // 25 + 1, width // 25 + 1))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = np.random.default_rng(1).normal(0, 4, (height, width, 1))
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Width and height at which JPEGs are decoded from now on."""
    found, load = [], JpegImagePlugin.JpegImageFile.load

    def noted(image: Image.Image) -> object:
        found.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", noted)
    return found


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        ((200, 200), "crop", (800, 600)),
        ((151, 151), "crop", (800, 600)),  # less than twice the half
        ((150, 150), "crop", (400, 300)),
        ((64, 64), "crop", (200, 150)),
        ((32, 32), "crop", (100, 75)),
        ((32, 64), "squash", (200, 150)),
        ((64, 64), "pad", (200, 150)),
        ((200, 100), "pad", (200, 150)),
        ((8, 8), "squash", (100, 75)),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(tmp_path, monkeypatch, size, fit, expected):
    photo(600, 800).save(tmp_path / "image.jpg")
    sizes = decoded_sizes(monkeypatch)
    assert read_image(tmp_path / "image.jpg", size, fit).shape == (*size, 3)
    assert sizes[-1] == expected


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_of_the_size_is_as_good_as_the_whole(tmp_path, monkeypatch, fit, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    photo(600, 1100).save(tmp_path / "image.jpg", quality=92, exif=exif)
    sizes = decoded_sizes(monkeypatch)
    found = read_image(tmp_path / "image.jpg", (48, 40), fit).astype(int)
    assert sizes[-1][0] < 1100
    monkeypatch.setattr(image_files, "draft", lambda *_: None)
    whole = read_image(tmp_path / "image.jpg", (48, 40), fit)
    assert np.abs(found - whole).mean() < 0.8
    assert np.abs(found - whole).max() < 12


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes_are_decoded_at_a_part_of_their_size_too(tmp_path, monkeypatch, mode):
    photo(400, 400).convert(mode).save(tmp_path / "image.jpg")
    sizes = decoded_sizes(monkeypatch)
    found = read_image(tmp_path / "image.jpg", (32, 32)).astype(int)
    assert sizes[-1] == (100, 100)
    expected = Image.open(tmp_path / "image.jpg").convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(expected)).mean() < 2


def test_pictures_for_people_are_as_sharp_as_the_file(tmp_path):
    photo(800, 800).save(tmp_path / "image.jpg", quality=95)
    views = read_views(tmp_path / "image.jpg", (32, 32), longest=400)
    np.testing.assert_array_equal(views.shown, read_image(tmp_path / "image.jpg", (32, 32)))
    sharp = Image.open(tmp_path / "image.jpg").resize((400, 400), Image.Resampling.BICUBIC)
    for view in (views.crop, views.whole):
        assert np.abs(view.astype(int) - np.asarray(sharp)).max() <= 1


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_views_show_what_the_model_is_shown(tmp_path, fit):
    path = half_and_half(100, 400, "png", tmp_path)
    views = read_views(path, (32, 32), 128, fit)
    np.testing.assert_array_equal(views.shown, read_image(path, (32, 32), fit))
    np.testing.assert_array_equal(views.crop, read_image(path, views.crop.shape[:2], fit))
    assert views.whole.shape == (32, 128, 3)


# What is known of a file besides its pixels.


@pytest.mark.parametrize(("suffix", "orientation"), [("jpg", 1), ("jpg", 6), ("png", 8), ("png", 3)])
def test_the_size_of_an_upright_file(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"image.{suffix}"
    photo(120, 200).save(path, exif=exif)
    expected = (200, 120) if orientation in (6, 8) else (120, 200)
    assert read_size(path) == expected
    decoded = decode(path, SIZE)
    assert decoded.size == expected
    assert decoded.status.st_mtime_ns == path.stat().st_mtime_ns
    np.testing.assert_array_equal(decoded.image_u8, read_image(path, SIZE))


def test_no_size_of_what_is_no_image(tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    with pytest.raises(UnreadableImageError, match="it is not an image"):
        read_size(tmp_path / "notes.png")


def test_reasons_that_lie_in_the_file_are_told_from_others(tmp_path, monkeypatch):
    photo(64, 64).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "lzw.tiff").write_bytes(damaged_tiff())
    (tmp_path / "empty.jpg").touch()
    found = {}
    for name in ("half.jpg", "lzw.tiff", "empty.jpg", "gone.jpg"):
        with pytest.raises(UnreadableImageError) as caught:
            decode(tmp_path / name, SIZE)
        found[name] = caught.value.is_lasting
    for error in (MemoryError(), OSError(5, "Input/output error")):
        monkeypatch.setattr(Image, "open", lambda *_, raised=error, **__: (_ for _ in ()).throw(raised))
        with pytest.raises(UnreadableImageError) as caught:
            decode(tmp_path / "whole.jpg", SIZE)
        found[type(error).__name__] = caught.value.is_lasting
    assert found == {
        "half.jpg": True,
        "lzw.tiff": True,
        "empty.jpg": True,
        "gone.jpg": False,
        "MemoryError": False,
        "OSError": False,
    }


# Files that are none.


def test_what_is_no_image_says_so(tmp_path):
    (tmp_path / "notes.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert reason_of(tmp_path / "notes.png") == "it is not an image, or of no kind that is known"
    assert reason_of(tmp_path / "empty.png") == "it is empty"
    assert reason_of(tmp_path / "folder.png") == "it is a folder"
    assert reason_of(tmp_path / "missing.png") == "it does not exist"
    assert reason_of(tmp_path / "a\0b.png") == "embedded null byte"
    assert reason_of(tmp_path / ("x" * 300)) == "file name too long"
    assert issubclass(UnreadableImageError, DataError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(tmp_path / "pipe.png") == "it is not a regular file"


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    plain().save(tmp_path / "image.png")
    (tmp_path / "image.png").chmod(0)
    if os.access(tmp_path / "image.png", os.R_OK):  # root may read everything

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(image_files, "open", refuse, raising=False)
    assert reason_of(tmp_path / "image.png") == "permission denied"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "gif", "bmp"])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason_of(path).startswith(("it is truncated or damaged: ", "it is not an image"))


def test_eps_is_not_opened_as_that_would_start_a_program(tmp_path):
    plain().save(tmp_path / "image.eps")
    assert reason_of(tmp_path / "image.eps").startswith("it is not an image")
    assert ".eps" not in image_suffixes()


def test_an_enormous_file_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MOST_BYTES", 10)
    plain().save(tmp_path / "image.png")
    assert reason_of(tmp_path / "image.png") == "it is 0.0 GiB large, but at most 1 GiB is read"


def test_an_image_without_pixels(tmp_path, monkeypatch):
    """Pillow refuses them in the formats that it knows today."""
    plain().save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "open", lambda *_args, **_kwargs: Image.new("RGB", (0, 5)))
    assert reason_of(tmp_path / "image.png") == "it has no pixels"


def test_too_little_memory_is_a_failure_of_one_image(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    plain().save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "open", refuse)
    assert reason_of(tmp_path / "image.png") == "it takes more memory than there is"


def test_errors_show_hostile_names_escaped(tmp_path):
    with pytest.raises(UnreadableImageError) as caught:
        read_image(tmp_path / "a\x1b[31m\n\u202eb.png", SIZE)
    assert str(caught.value).isprintable()
    assert "a\\x1b[31m\\n\\u202eb.png" in str(caught.value)


# Bombs.


def png_that_claims(width: int, height: int) -> bytes:
    """A small file that would fill the memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize("side", [9_500, 13_000, 40_000])
@pytest.mark.parametrize("action", ["always", "error", "ignore"])
def test_bombs_are_refused_without_a_warning(tmp_path, side, action):
    """Up to twice the limit Pillow only warns."""
    (tmp_path / "bomb.png").write_bytes(png_that_claims(side, side))
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter(action)
        assert reason_of(tmp_path / "bomb.png") == "it has more pixels than the 89,478,485 that are decoded"
    assert leaked == []


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    """An image that would be fine is refused under a lower limit, before its pixels are looked at."""

    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    plain().save(tmp_path / "image.bmp")
    assert only_colour(tmp_path / "image.bmp") == ORANGE
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    monkeypatch.setattr(Image.Image, "load", fail)
    assert reason_of(tmp_path / "image.bmp") == "it has more pixels than the 63 that are decoded"


def test_a_user_who_lifts_the_limit_is_obeyed(tmp_path, monkeypatch):
    plain().save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert only_colour(tmp_path / "image.png") == ORANGE


def test_many_threads_at_once(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(9_500, 9_500))
    plain().save(tmp_path / "image.png")

    def read(number: int) -> str | tuple[int, ...]:
        return reason_of(tmp_path / "bomb.png") if number % 2 else only_colour(tmp_path / "image.png")

    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(200)))
    assert set(found[::2]) == {ORANGE}
    assert {str(reason)[:19] for reason in found[1::2]} == {"it has more pixels "}
    assert warnings.filters == filters


# What must not reach the terminal.


def damaged_tiff() -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(file, "TIFF", compression="tiff_lzw")
    data = bytearray(file.getvalue())
    data[40:80] = b"\xff" * 40
    return bytes(data)


def test_libtiff_is_kept_from_printing(tmp_path, capfd):
    (tmp_path / "image.tiff").write_bytes(damaged_tiff())
    with pytest.raises(OSError, match="-2"):
        Image.open(tmp_path / "image.tiff").load()
    assert capfd.readouterr().err != ""  # so there is something to keep back
    assert reason_of(tmp_path / "image.tiff").startswith("it is truncated or damaged")
    assert capfd.readouterr().err == ""
    os.write(2, b"stderr is back")
    assert capfd.readouterr().err == "stderr is back"


def test_nothing_is_printed_from_a_plain_process(tmp_path):
    """Python prints what Pillow logs, and its warnings, only where no test catches them."""
    image = plain()
    image.save(tmp_path / "samples.tiff")
    data = bytearray((tmp_path / "samples.tiff").read_bytes())
    at = data.index(struct.pack("<HHI", 277, 3, 1))  # SamplesPerPixel
    data[at + 8 : at + 10] = struct.pack("<H", 9999)
    (tmp_path / "samples.tiff").write_bytes(data)
    palette = plain().quantize(4)
    palette.save(tmp_path / "palette.png", transparency=bytes([100, 200]))
    (tmp_path / "bomb.png").write_bytes(png_that_claims(9_500, 9_500))
    plain().save(tmp_path / "exif.webp", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    (tmp_path / "lzw.tiff").write_bytes(damaged_tiff())
    code = """
import sys
from pathlib import Path
from velodrome.data.image_files import UnreadableImageError, read_image
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, read_image(path, (8, 8)).shape)
    except UnreadableImageError as error:
        print(path.name, error.reason.split(":")[0])
"""
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "bomb.png it has more pixels than the 89,478,485 that are decoded",
        "exif.webp (8, 8, 3)",
        "lzw.tiff it is truncated or damaged",
        "palette.png (8, 8, 3)",
        "samples.tiff it is not an image, or of no kind that is known",
    ]


def test_a_process_is_made_quiet_for_good(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(9_500, 9_500))
    (tmp_path / "lzw.tiff").write_bytes(damaged_tiff())
    palette = plain().quantize(4)
    palette.save(tmp_path / "palette.png", transparency=bytes([100, 200]))
    code = """
import sys, warnings
from pathlib import Path
from velodrome.data.image_files import UnreadableImageError, decode
from velodrome.data.quiet import quiet_process
quiet_process()
warnings.warn("of no interest")
print("nor this", file=sys.stderr)
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, decode(path, (8, 8), is_quiet=True).image_u8.tobytes().hex())
    except UnreadableImageError as error:
        print(path.name, error.reason.split(":")[0])
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    assert run.stdout.splitlines() == [
        "bomb.png it has more pixels than the 89,478,485 that are decoded",
        "lzw.tiff it is truncated or damaged",
        f"palette.png {read_image(tmp_path / 'palette.png', SIZE).tobytes().hex()}",
    ]


def test_a_closed_stderr_is_no_obstacle(tmp_path):
    plain().save(tmp_path / "image.tiff")
    code = (
        "import os, sys; from pathlib import Path; from velodrome.data.image_files import read_image; "
        "os.close(2); print(read_image(Path(sys.argv[1]), (8, 8)).shape)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "image.tiff")], stdout=subprocess.PIPE, check=True
    )
    assert run.stdout == b"(8, 8, 3)\n"


# Any bytes at all.


def valid_files() -> list[bytes]:
    """The same image in every kind and mode that Pillow writes."""
    image, found = Image.fromarray(noise(12, 10)), []
    Image.init()
    for kind in sorted(Image.SAVE):
        for mode in ("RGB", "P", "LA", "I", "F"):
            file = io.BytesIO()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)  # of kinds that Pillow will drop
                    image.convert("L" if mode in "IF" else "RGB").convert(mode).save(file, kind)
            except (OSError, ValueError, KeyError):
                continue
            found.append(file.getvalue())
    return found


VALID = valid_files()


@pytest.fixture(scope="module")
def scratch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "image"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_a_data_error(scratch_file, data):
    content = bytearray(data.draw(st.sampled_from(VALID)))
    end = data.draw(st.integers(0, len(content)))
    content = content[: end if data.draw(st.booleans()) else None]
    changes = st.tuples(st.integers(0, max(0, len(content) - 1)), st.integers(0, 255))
    near_start = st.tuples(
        st.integers(0, max(0, min(99, len(content) - 1))), st.sampled_from([0, 1, 127, 255])
    )
    for place, value in data.draw(st.lists(changes | near_start, max_size=8)) if content else ():
        content[place] = value
    scratch_file.write_bytes(content)
    try:
        pixels = read_image(scratch_file, (5, 6))
    except UnreadableImageError:
        return
    assert pixels.shape == (5, 6, 3)


# Finding.


def tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_keep_their_order_and_folders_are_sorted(tmp_path):
    tree(tmp_path, "z.png", "d/b.PNG", "d/a/x.jpeg", "d/a.webp", "d/c/y.gif", "d/notes.txt", "d/model.h5")
    found = find_images([tmp_path / "z.png", tmp_path / "d", tmp_path / "d" / "notes.txt"])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["z.png", "d/a/x.jpeg", "d/a.webp", "d/b.PNG", "d/c/y.gif", "d/notes.txt"]


def test_hidden_files_and_folders_are_left_out_unless_named(tmp_path):
    tree(tmp_path, ".hidden.png", ".git/a.png", "seen.png")
    assert find_images([tmp_path]) == [tmp_path / "seen.png"]
    assert find_images([tmp_path / ".hidden.png", tmp_path / ".git"]) == [
        tmp_path / ".hidden.png",
        tmp_path / ".git" / "a.png",
    ]


def test_each_file_counts_once(tmp_path, monkeypatch):
    tree(tmp_path, "a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    found = find_images([Path("b.png"), Path(), Path("./a.png"), tmp_path / "b.png"])
    assert found == [Path("b.png"), Path("a.png")]


def test_links_are_followed_but_not_in_circles(tmp_path):
    tree(tmp_path, "elsewhere/e.png", "d/a.png")
    (tmp_path / "d" / "circle").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "nowhere.png").symlink_to(tmp_path / "nothing")
    names = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path / "d"])]
    assert names == ["d/a.png", "d/more/e.png", "d/nowhere.png"]
    assert reason_of(tmp_path / "d" / "nowhere.png") == "it does not exist"


def test_what_gives_no_image_stands_in_its_place(tmp_path):
    tree(tmp_path, "d/notes.txt", "a.png")
    found = find_images([tmp_path / "gone", tmp_path / "a.png", tmp_path / "d", Path("a\0b")])
    assert found == [
        Failure(tmp_path / "gone", "it does not exist"),
        tmp_path / "a.png",
        Failure(tmp_path / "d", "there is no image in this folder"),
        Failure(Path("a\0b"), "embedded null byte"),
    ]


def test_a_folder_that_may_not_be_looked_into_is_a_failure(tmp_path, monkeypatch):
    tree(tmp_path, "d/closed/a.png", "d/open/b.png")
    (tmp_path / "d" / "closed").chmod(0)
    if os.access(tmp_path / "d" / "closed", os.R_OK):  # root may look everywhere
        look = Path.iterdir

        def refuse(path: Path) -> object:
            if path.name == "closed":
                raise PermissionError(13, "Permission denied")
            return look(path)

        monkeypatch.setattr(Path, "iterdir", refuse)
    found = find_images([tmp_path / "d"])
    (tmp_path / "d" / "closed").chmod(0o700)
    assert found == [
        Failure(tmp_path / "d" / "closed", "permission denied"),
        tmp_path / "d" / "open" / "b.png",
    ]


def test_folders_may_be_nested_deeper_than_calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1100):
        Path("d").mkdir()
        os.chdir("d")
    Path("a.png").touch()
    os.chdir(tmp_path)
    assert len(find_images([Path("d")])) == 1
    _remove_nested(tmp_path)


def _remove_nested(root: Path) -> None:
    """`shutil.rmtree`, which clears up after the tests, nests its calls."""
    depth = 0
    os.chdir(root)
    while Path("d").exists():
        os.chdir("d")
        depth += 1
    Path("a.png").unlink()
    for _ in range(depth):
        os.chdir("..")
        Path("d").rmdir()


# Names.


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain name.png", "plain name.png"),
        ("Ünïcödé 日本\u3000語 😀", "Ünïcödé 日本\u3000語 😀"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[2J\x9b\x7f\0", "\\x1b[2J\\x9b\\x7f\\x00"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("\udcff", "\\udcff"),
        ("\u2028\u200b", "\\u2028\\u200b"),
    ],
)
def test_names_are_made_visible(name, shown):
    assert visible(name) == shown


def test_a_failure_is_one_line():
    assert str(Failure(Path("a\x1b\nb.png"), "it is empty")) == "a\\x1b\\nb.png: it is empty"
