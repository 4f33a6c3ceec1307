"""Pictures for people: an image next to what in it speaks for each of the model's first answers."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from velodrome.data.image_files import Views
from velodrome.data.imageset import ImagesU8
from velodrome.errors import visible

# A multiple of 32, so that the pixels of most models' images come out as equal squares.
PANEL = 288
GAP = 12
CAPTION_HEIGHT = 50
LEGEND_HEIGHT = 30
FONT_SIZE = 17
INK, QUIET, FRAME = "#16191d", "#5a626c", "#ffa400"
# Light in even steps to the eye, from dark to bright, and unlike any grey.
COLOURS = "inferno"


def explain_picture(
    views: Views, maps: NDArray[np.float32], answers: Sequence[tuple[str, float]]
) -> Image.Image:
    """One picture: the image as it is and as the model is shown it, then a panel for each answer.

    Args:
        views: of the image; the whole image is left out where the model is shown just that.
        maps: (K, h, w) float, at least 0, Grad-CAM of each answer; each is scaled by its own maximum.
        answers: K class names, which may hold anything, and their probabilities.

    Returns:
        RGB, about 300 pixels wide for each panel.
    """
    height, width = views.shown.shape[:2]
    shown = _in_panel(views.shown, Image.Resampling.NEAREST)
    panels = [(shown, "As the model sees it", f"{width} × {height} pixels")]
    if not np.array_equal(views.whole, views.shown):
        panels.insert(0, _whole_panel(views))
    crop = _in_panel(views.crop, Image.Resampling.BICUBIC)
    for rank, (heat, (name, probability)) in enumerate(zip(maps, answers, strict=True), 1):
        note = f"{100 * probability:.1f}%" + ("" if heat.max() > 0 else ", nothing here speaks for it")
        panels.append((overlay(crop, heat), f"{rank}. {name}", note))
    size = GAP + len(panels) * (PANEL + GAP), CAPTION_HEIGHT + PANEL + LEGEND_HEIGHT + GAP
    sheet = Image.new("RGB", size, "white")
    for number, (picture, title, note) in enumerate(panels):
        left = GAP + number * (PANEL + GAP)
        sheet.paste(_caption(title, note), (left, 0))
        sheet.paste(picture, (left, CAPTION_HEIGHT))
    _draw_legend(sheet, GAP + (len(panels) - len(answers)) * (PANEL + GAP))
    return sheet


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def overlay(image: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """The image in grey, and over it the colours of a map, the denser the higher its value.

    Args:
        image: RGB.
        heat: (h, w) float, at least 0; scaled by its own maximum, where it has one.
    """
    most = float(heat.max())
    scaled = Image.fromarray((heat / most if most > 0 else heat).astype(np.float32))
    smooth = np.asarray(scaled.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)  # it overshoots
    # Without colours of its own, and a little darker, the image cannot be taken for a part of the map.
    grey = 0.85 * np.asarray(image.convert("L"), np.float32)[:, :, None]
    density = 0.8 * smooth[:, :, None] ** 0.6
    mixed = (1 - density) * grey + density * _colours()[np.rint(255 * smooth).astype(np.uint8)]
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


@functools.cache
def _colours() -> NDArray[np.float32]:
    """(256, 3) float32 in [0, 255]: the colours of the values from 0 to 1."""
    import matplotlib

    table = matplotlib.colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3]
    return (255 * table).astype(np.float32)


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # its fonts are on every machine

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size)


def _in_panel(pixels: ImagesU8, resampling: Image.Resampling) -> Image.Image:
    """The image as large as a panel holds it."""
    image = Image.fromarray(pixels)
    scale = PANEL / max(image.size)
    return image.resize((max(1, round(scale * image.width)), max(1, round(scale * image.height))), resampling)


def _whole_panel(views: Views) -> tuple[Image.Image, str, str]:
    """The whole image and its caption; a frame shows what the model is shown, where that is less."""
    title, note = "The whole image", ""
    picture = _in_panel(views.whole, Image.Resampling.BICUBIC)
    height, width = views.shown.shape[:2]
    scale = min(picture.width / width, picture.height / height)
    left, top = (picture.width - scale * width) / 2, (picture.height - scale * height) / 2
    if max(left, top) >= 1 and min(picture.size) > 8:  # of a thinner strip it would hide everything
        box = (round(left), round(top), round(left + scale * width) - 1, round(top + scale * height) - 1)
        draw = ImageDraw.Draw(picture)
        draw.rectangle(box, outline=INK, width=4)
        draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=FRAME, width=2)
        note = "in the frame: what the model sees"
    return picture, title, note


def _caption(title: str, note: str) -> Image.Image:
    """Two lines of text as wide as a panel."""
    strip = Image.new("RGB", (PANEL, CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(strip)
    bold, plain = _font("DejaVuSans-Bold", FONT_SIZE), _font("DejaVuSans", FONT_SIZE - 3)
    # A name in Hebrew or Arabic must not take the rank to the other end of the line.
    direction = "ltr" if features.check("raqm") else None
    draw.text((0, 6), _cut(title, bold), INK, bold, direction=direction)
    draw.text((0, 28), _cut(note, plain), QUIET, plain)
    return strip


def _cut(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text on one line, its end left out where it would be wider than a panel."""
    text = whole = visible(text[:200])
    while whole and font.getlength(text) > PANEL:
        whole = whole[:-1]
        text = f"{whole}…"
    return text


def _draw_legend(sheet: Image.Image, left: int) -> None:
    """A scale of the colours under the panels of the answers."""
    draw, font = ImageDraw.Draw(sheet), _font("DejaVuSans", FONT_SIZE - 4)
    top, bar = CAPTION_HEIGHT + PANEL + GAP, (80, 12)
    scale = np.broadcast_to(np.linspace(0, 1, bar[0], dtype=np.float32), (bar[1], bar[0]))
    draw.text((left, top), "nothing", QUIET, font)
    left += round(font.getlength("nothing")) + 8
    sheet.paste(overlay(Image.new("RGB", bar, "white"), scale), (left, top + 3))
    draw.text((left + bar[0] + 8, top), "strongest evidence", QUIET, font)
