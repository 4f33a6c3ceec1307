"""Data sets by way of the package `datasets`, from local files."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velodrome.config import Config, override
from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.own.own_data import read_to_judge
from velodrome.data.shapes import draw_shapes
from velodrome.data.sources import load_splits
from velodrome.errors import DataError
from velodrome.integrations import hub

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_parquet(images: ImageSet, path: Path, labels: list[int] | None = None) -> None:
    """As the hub exports a data set."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(images.classes))}
    )
    rows = {
        "image": [{"bytes": png(image), "path": None} for image in images.images_u8],
        "label": labels or images.labels.tolist(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features).to_parquet(str(path))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    place = tmp_path / "exported"
    write_parquet(draw_shapes(200, 0, "train"), place / "data" / "train-00000-of-00001.parquet")
    write_parquet(draw_shapes(100, 0, "test"), place / "data" / "test-00000-of-00001.parquet")
    return place


def load(data: str) -> Splits:
    return load_splits(override(Config(), {"data": data}).data, 0, progress=False)


def in_order(images: ImageSet) -> list[tuple[bytes, str]]:
    pairs = zip(images.images_u8, images.labels, strict=True)
    return [(image.tobytes(), images.classes[label]) for image, label in pairs]


@pytest.mark.parametrize("data", ["hf:{}", "{}"])
def test_an_export_of_the_hub_has_the_images_that_went_into_it(exported: Path, data: str) -> None:
    splits = load(data.format(exported))
    assert in_order(splits.train) == in_order(draw_shapes(200, 0, "train"))
    assert in_order(splits.test) == in_order(draw_shapes(100, 0, "test"))


def test_it_is_written_once(exported: Path, tmp_path: Path) -> None:
    table = hub.export(str(exported), tmp_path / "work")
    before = table.stat().st_mtime_ns
    assert hub.export(str(exported), tmp_path / "work") == table
    assert table.stat().st_mtime_ns == before


def test_images_without_a_label_are_left_out(tmp_path: Path) -> None:
    images = draw_shapes(20, 0, "train")
    write_parquet(images, tmp_path / "part" / "train.parquet", labels=[-1, *images.labels.tolist()[1:]])
    table = hub.export(str(tmp_path / "part"), tmp_path / "work")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + 19


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(str(tmp_path / "part" / "a.parquet"))
    with pytest.raises(DataError, match="has the columns text, label"):
        hub.export(str(tmp_path / "part"), tmp_path / "work")
    assert not any((tmp_path / "work").iterdir())


def test_what_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        hub.export(str(tmp_path / "empty"), tmp_path / "work")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", ["hf:{}", "{}"])
def test_a_model_is_judged_by_the_test_images(exported: Path, data: str) -> None:
    test = draw_shapes(100, 0, "test")
    config = override(Config(), {"data": data.format(exported), "image_size": 32})
    images, failed = read_to_judge(config.data, test.classes, say=lambda _: None)
    assert in_order(images) == in_order(test)
    assert failed == ()
