"""Pictures that explain an answer."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from velodrome.data.image_files import Views
from velodrome.evaluation.overlay import CAPTION_HEIGHT, GAP, PANEL, explain_picture, overlay, png


def map_with(*places: tuple[int, int], value: float = 1.0) -> np.ndarray:
    heat = np.zeros((8, 8), np.float32)
    for place in places:
        heat[place] = value
    return heat


def saturation(image: Image.Image) -> np.ndarray:
    return np.ptp(np.asarray(image).astype(int), axis=2)


def views_of(shown: np.ndarray, crop: np.ndarray | None = None, whole: np.ndarray | None = None) -> Views:
    return Views(shown, shown if crop is None else crop, shown if whole is None else whole)


def panel(picture: Image.Image, number: int) -> Image.Image:
    left = GAP + number * (PANEL + GAP)
    return picture.crop((left, CAPTION_HEIGHT, left + PANEL, CAPTION_HEIGHT + PANEL))


def caption(picture: Image.Image, number: int) -> np.ndarray:
    left = GAP + number * (PANEL + GAP)
    return np.asarray(picture.crop((left, 0, left + PANEL + GAP, CAPTION_HEIGHT)))


@pytest.fixture
def shown(random_images) -> np.ndarray:
    return random_images(1, 32, 32)[0]


# The map over an image.


def test_without_a_map_the_image_is_grey(shown):
    found = overlay(Image.fromarray(shown), np.zeros((8, 8), np.float32))
    assert saturation(found).max() == 0
    grey = np.asarray(Image.fromarray(shown).convert("L"))
    np.testing.assert_allclose(np.asarray(found)[..., 0], 0.85 * grey, atol=0.51)


def test_colours_lie_where_the_map_is(shown):
    image = Image.fromarray(shown).resize((80, 80))
    coloured = saturation(overlay(image, map_with((1, 6))))
    assert coloured[15, 65] > 60  # row 1 of 8 is rows 10 to 19 of 80
    assert coloured[40:, :40].max() == 0


def test_the_map_is_scaled_by_its_own_maximum(shown):
    image = Image.fromarray(shown)
    weak, strong = (overlay(image, map_with((3, 3), value=value)) for value in (1e-6, 1e6))
    np.testing.assert_array_equal(weak, strong)


def test_the_higher_the_value_the_brighter_and_denser():
    steps = np.linspace(0, 1, 8, dtype=np.float32)[None].repeat(8, 0)
    on_black = np.asarray(overlay(Image.new("RGB", (80, 80)), steps).convert("L")).astype(int)[40]
    assert (np.diff(on_black) >= -1).all()
    assert on_black[-1] > 150


def test_the_map_is_smooth():
    found = np.asarray(overlay(Image.new("RGB", (160, 160)), map_with((3, 3), (3, 4)))).astype(int)
    assert np.abs(np.diff(found, axis=0)).max() < 80  # a square of 8x8 would jump by 200
    assert np.abs(np.diff(found, axis=1)).max() < 80  # a square of 8x8 would jump by 200


# The whole picture.


def test_an_image_of_the_models_size_has_three_panels(shown):
    maps = np.stack([map_with((0, 0)), map_with((7, 7))])
    picture = explain_picture(views_of(shown), maps, [("cat", 0.9), ("dog", 0.1)])
    assert picture.width == GAP + 3 * (PANEL + GAP)
    expected = shown.repeat(PANEL // 32, 0).repeat(PANEL // 32, 1)
    np.testing.assert_array_equal(panel(picture, 0), expected)
    first, second = saturation(panel(picture, 1)), saturation(panel(picture, 2))
    assert (first[15, 15] > 60, first[-15, -15]) == (True, 0)
    assert (second[15, 15], second[-15, -15] > 60) == (0, True)


def test_a_larger_image_is_shown_whole_with_a_frame(shown):
    whole = np.full((100, 200, 3), 128, np.uint8)
    crop = np.full((100, 100, 3), 128, np.uint8)
    maps = np.stack([map_with((0, 0))] * 2)
    picture = explain_picture(views_of(shown, crop, whole), maps, [("cat", 0.9), ("dog", 0.1)])
    assert picture.width == GAP + 4 * (PANEL + GAP)
    framed = np.asarray(panel(picture, 0))[: PANEL // 2]
    columns = np.flatnonzero((framed != 128).any(2).all(0))
    # In the middle half of the width, which is the square in an image of 2 to 1.
    assert columns.min() == PANEL // 4
    assert columns.max() == 3 * PANEL // 4 - 1
    assert (framed[20, 20] == 128).all()
    assert saturation(panel(picture, 3)).max() > 60


def test_an_image_of_the_same_aspect_ratio_needs_no_frame(shown):
    whole = np.full((100, 100, 3), 128, np.uint8)
    picture = explain_picture(views_of(shown, whole, whole), map_with((0, 0))[None], [("cat", 1.0)])
    assert (np.asarray(panel(picture, 0)) == 128).all()


def test_a_single_class_has_one_panel(shown):
    picture = explain_picture(views_of(shown), map_with((0, 0))[None], [("only", 1.0)])
    assert picture.width == GAP + 2 * (PANEL + GAP)
    legend = np.asarray(picture.crop((0, CAPTION_HEIGHT + PANEL, *picture.size)))
    assert (legend[:, -GAP:] == 255).all()
    assert (legend != 255).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 288), (288, 1), (3, 200), (16, 64)])
def test_odd_shapes_fit(shown, shape):
    odd = np.full((*shape, 3), 99, np.uint8)
    picture = explain_picture(views_of(shown, whole=odd), map_with((0, 0))[None], [("cat", 1.0)])
    assert (np.asarray(panel(picture, 0)) == 99).any()
    picture = explain_picture(views_of(odd), map_with((0, 0))[None], [("cat", 1.0)])
    assert (np.asarray(panel(picture, 0)) == 99).any()


def test_captions_differ_by_class_and_probability(shown):
    def made(name: str, probability: float, value: float = 1.0) -> np.ndarray:
        heat = map_with((0, 0), value=value)[None]
        return caption(explain_picture(views_of(shown), heat, [(name, probability)]), 1)

    assert not np.array_equal(made("cat", 0.5), made("dog", 0.5))
    assert not np.array_equal(made("cat", 0.5), made("cat", 0.6))
    assert not np.array_equal(made("cat", 0.5), made("cat", 0.5, value=0))  # nothing speaks for it
    np.testing.assert_array_equal(made("cat", 0.5), made("cat", 0.5))


HOSTILE = [
    "",
    "W" * 300,
    "a\nb",
    "\x1b[31m",
    "שלום עולם",
    "\u202eevil",
    "\U0001f469\u200d\U0001f680",
    "日本語" * 99,
    "Z\u0351" * 150,
    "\udcff",
    "<b>",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_on_their_line(shown, name):
    """Nothing reaches the next panel, or the images below."""
    picture = explain_picture(views_of(shown), map_with((0, 0))[None], [(name, 0.5)])
    found = caption(picture, 1)
    assert (found[:, PANEL + 1 :] == 255).all()
    assert (found != 255).any()
    np.testing.assert_array_equal(panel(picture, 0), shown.repeat(9, 0).repeat(9, 1))


@pytest.mark.skipif(not features.check("raqm"), reason="this Pillow cannot write from right to left")
def test_the_rank_stands_left_of_a_name_from_right_to_left(shown):
    def left_end(name: str) -> np.ndarray:
        return caption(explain_picture(views_of(shown), map_with((0, 0))[None], [(name, 0.5)]), 1)[:, :16]

    np.testing.assert_array_equal(left_end("שלום עולם"), left_end("cat"))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(name=st.text(st.characters(), max_size=300))
def test_any_name_can_be_drawn(name):
    shown = np.zeros((4, 4, 3), np.uint8)
    assert explain_picture(views_of(shown), map_with((0, 0))[None], [(name, 0.5)]).mode == "RGB"


def test_png_is_the_picture(shown):
    read = Image.open(io.BytesIO(png(Image.fromarray(shown))))
    assert read.format == "PNG"
    np.testing.assert_array_equal(read, shown)
