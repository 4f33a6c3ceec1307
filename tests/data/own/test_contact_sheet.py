"""The contact sheet shows the images that it says it shows."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from velodrome.data.image_files import Failure
from velodrome.data.imageset import ImagesU8, MappedImages
from velodrome.data.own.contact_sheet import COLUMNS, GAP, MARGIN, NAME_WIDTH, PAPER, RED, contact_sheet
from velodrome.data.own.contents import Contents
from velodrome.data.own.drawing import font, shortened
from velodrome.data.own.facts import Facts, facts_of
from velodrome.data.own.findings import examine
from velodrome.data.shapes import draw_shapes

# Where the first row of images begins.
TOP = 128


def contents_of(
    images_u8: ImagesU8,
    labels: np.ndarray,
    classes: list[str],
    readable: np.ndarray | None = None,
    failures: tuple[Failure, ...] = (),
) -> Contents:
    n, side = images_u8.shape[:2]
    digests, thumbnails = facts_of(images_u8)
    facts = Facts(
        np.ones(n, bool) if readable is None else readable,
        np.full((n, 2), side, np.int32),
        digests,
        thumbnails,
    )
    return examine(
        classes=classes,
        labels=labels,
        splits=np.where(np.arange(n) % 4 == 3, "test", "train"),
        names=[f"folder/{number}.png" for number in range(n)],
        facts=facts,
        failures=failures,
        side=side,
    ).contents


def drawn(contents: Contents, images_u8: ImagesU8, title: str = "photos") -> np.ndarray:
    content = contact_sheet(contents, lambda rows: images_u8[rows], title)
    assert content.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(content)))


def shapes(n: int, side: int = 32) -> ImagesU8:
    images = draw_shapes(n, 0).images_u8
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in images])


def tile_at(sheet: np.ndarray, row: int, column: int, side: int) -> np.ndarray:
    top, left = TOP + row * (side + GAP), MARGIN + NAME_WIDTH + column * (side + GAP)
    return sheet[top : top + side, left : left + side]


def test_each_class_has_a_row_of_its_images_from_all_over() -> None:
    images, labels = shapes(90), np.arange(90) % 3
    sheet = drawn(contents_of(images, labels, ["a", "b", "c"]), images)
    for label in range(3):
        chosen = np.flatnonzero(labels == label)[np.linspace(0, 29, COLUMNS).round().astype(int)]
        for column, index in enumerate(chosen):
            tile = tile_at(sheet, label, column, 64)
            assert np.array_equal(tile[::2, ::2], images[index])  # every pixel is a square of four
            assert np.array_equal(tile[1::2, 1::2], images[index])


def test_a_class_of_few_images_shows_each_once() -> None:
    images, labels = shapes(5), np.array([0, 0, 0, 1, 1])
    sheet = drawn(contents_of(images, labels, ["a", "b", "none"]), images)
    assert np.array_equal(tile_at(sheet, 1, 1, 64)[::2, ::2], images[4])
    paper = ImageColor.getrgb(PAPER)
    assert (tile_at(sheet, 1, 2, 64) == paper).all()
    assert (tile_at(sheet, 2, 0, 64) == paper).all()


@pytest.mark.parametrize(("side", "tile"), [(8, 72), (28, 84), (48, 96), (64, 64), (96, 96), (224, 96)])
def test_images_of_any_size(side: int, tile: int) -> None:
    images = shapes(8, side)
    sheet = drawn(contents_of(images, np.arange(8) % 2, ["a", "b"]), images)
    assert sheet.shape[1] == 2 * MARGIN + NAME_WIDTH + COLUMNS * (tile + GAP) - GAP
    shown = tile_at(sheet, 0, 0, tile)
    resampling = Image.Resampling.NEAREST if side <= tile else Image.Resampling.LANCZOS
    expected = np.asarray(Image.fromarray(images[0]).resize((tile, tile), resampling))
    assert np.array_equal(shown, expected)


def test_images_in_a_file(tmp_path: Path) -> None:
    images = shapes(12)
    np.save(tmp_path / "images.npy", images)
    mapped = MappedImages(np.load(tmp_path / "images.npy", mmap_mode="r"))
    contents = contents_of(images, np.arange(12) % 2, ["a", "b"])
    assert contact_sheet(contents, mapped.take, "photos") == contact_sheet(
        contents, lambda rows: images[rows], "photos"
    )


def height_of(n: int, classes: int) -> int:
    images = shapes(n)
    contents = contents_of(images, np.arange(n) % classes, [str(number) for number in range(classes)])
    return len(drawn(contents, images))


def test_of_many_classes_the_largest_and_the_smallest_are_shown() -> None:
    rows_of_40, rows_of_41, rows_of_1000 = (height_of(1000, classes) for classes in (40, 41, 1000))
    assert rows_of_40 - rows_of_41 == 20 * (64 + GAP) - 52  # a line says so
    assert rows_of_41 == rows_of_1000


def test_copies_stand_side_by_side() -> None:
    images = shapes(40)
    images[3] = images[0]  # a test image, and of another class
    plain = shapes(40)
    labels = np.arange(40) % 2
    without = drawn(contents_of(plain, labels, ["a", "b"]), plain)
    sheet = drawn(contents_of(images, labels, ["a", "b"]), images)
    below = sheet[len(without) - MARGIN :]
    # Leaks, labels at odds, copies: three pairs.
    tile = images[0].repeat(2, 0).repeat(2, 1)
    shown = [
        np.array_equal(below[top : top + 64, left : left + 64], tile)
        for top in range(len(below) - 64)
        for left in (MARGIN, MARGIN + 64 + GAP)
    ]
    assert sum(shown) == 6


def test_unreadable_files_are_crossed() -> None:
    images = shapes(40)
    readable = np.arange(40) != 5
    failures = tuple(Failure(Path(f"photos/{number}.jpg"), "it is empty") for number in range(40))
    contents = contents_of(images, np.arange(40) % 2, ["a", "b"], readable, failures)
    sheet = drawn(contents, images)
    below = sheet[TOP + 2 * (64 + GAP) :]
    reds = (below == ImageColor.getrgb(RED)).all(2)
    crosses = np.diff(reds.any(1).astype(int)) == 1
    assert crosses.sum() == 3  # rows of five


HOSTILE = ["\x1b[31mred", "x" * 5000, "\u202eשלום", "👩‍👩‍👧 猫", "line\nline", "", "half \ud800"]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_may_hold_anything(name: str) -> None:
    images = shapes(4)
    failures = (Failure(Path(name or "."), "it is " + name.replace("\x1b", "")),)
    contents = contents_of(images, np.arange(4) % 2, [name, "b"], failures=failures)
    assert drawn(contents, images, name).shape[2] == 3


@pytest.mark.parametrize("keep_end", [False, True])
def test_long_text_is_cut_to_its_place(keep_end: bool) -> None:
    letters = font(12)
    text = "a/very/long/path/" * 50 + "image.jpg"
    line = shortened(text, letters, 100, keep_end=keep_end)
    assert letters.getlength(line) <= 100
    assert line.endswith("image.jpg") == keep_end
    assert line.startswith("a/very") != keep_end
    assert line.count("…") == 1
    assert shortened("short", letters, 100, keep_end=keep_end) == "short"


def test_the_same_images_give_the_same_bytes(random_images: Callable[..., ImagesU8]) -> None:
    images = random_images(8, 16, 16)
    contents = contents_of(images, np.arange(8) % 2, ["a", "b"])
    pick = lambda rows: images[rows]  # noqa: E731
    assert contact_sheet(contents, pick, "x") == contact_sheet(contents, pick, "x")
