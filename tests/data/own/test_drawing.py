"""Names in any script are drawn in letters or in numbers, but never as boxes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from PIL import Image, ImageDraw

from velodrome.data.own.drawing import fitting, font, write

CAT = "\N{CJK UNIFIED IDEOGRAPH-732B}"
OWN = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def drawn(text: str, size: int = 15) -> np.ndarray:
    image = Image.new("L", (300, 30), 255)
    write(ImageDraw.Draw(image), (2, 2), text, size, "#000000", 290)
    return np.asarray(image)


def installed(monkeypatch: pytest.MonkeyPatch, *paths: Path, name: str = "Some Font") -> None:
    entries = [SimpleNamespace(fname=str(path), name=name, style="normal", weight=400) for path in paths]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)


@pytest.fixture
def chinese(tmp_path: Path) -> Path:
    """A font in which the sign for a cat looks like an A."""
    made = TTFont(OWN / "DejaVuSans.ttf")
    for table in made["cmap"].tables:
        if table.isUnicode():
            table.cmap[ord(CAT)] = "A"
    made.save(tmp_path / "chinese.ttf")
    return tmp_path / "chinese.ttf"


@pytest.mark.parametrize("text", ["cat", "Käfer", "кошка", "γάτα", "קרט", "قطة", "100 %…"])
def test_what_the_usual_font_has_is_drawn_in_it(text: str) -> None:
    for bold in (False, True):
        found, letters = fitting(text, 15, bold=bold)
        assert (found, letters.path) == (text, font(15, bold=bold).path)


def test_a_font_of_this_machine_is_taken_where_it_has_all_letters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chinese: Path
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed(monkeypatch, tmp_path / "broken.ttf", OWN / "DejaVuSansMono.ttf", chinese)
    assert np.array_equal(drawn(f"{CAT} 2"), drawn("A 2"))
    assert fitting(f"{CAT}\N{CJK UNIFIED IDEOGRAPH-72AC}", 15)[0] == "[U+732B U+72AC]"


def test_without_such_a_font_numbers_stand_for_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, OWN / "DejaVuSansMono.ttf")
    assert fitting(f"big {CAT}{CAT} 2", 15)[0] == "big [U+732B U+732B] 2"
    assert np.array_equal(drawn(CAT), drawn("[U+732B]"))


def test_a_font_of_boxes_is_no_font(monkeypatch: pytest.MonkeyPatch, chinese: Path) -> None:
    installed(monkeypatch, chinese, name=".Last Resort")
    assert fitting(CAT, 15)[0] == "[U+732B]"
    boxes = next(OWN.glob("LastResort*"), None)
    names = {entry.name for entry in font_manager.FontManager().ttflist} if boxes else {"Last Resort"}
    assert any("Last Resort" in name for name in names)  # it is still called so
