"""Data sets by way of the package `datasets`, from local files."""

import io
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velodrome.cli import main
from velodrome.config import Config, override
from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.own.collecting import list_own
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


def write_parquet(
    images: ImageSet, path: Path, labels: list[object] | None = None, kind: object = None
) -> None:
    """As the hub exports a data set; with other labels than its own, and a column of another type."""
    kind = kind or datasets.ClassLabel(names=list(images.classes))
    features = datasets.Features({"image": datasets.Image(), "label": kind})
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


def folders_in(workspace: Path) -> list[Path]:
    return [path for path in workspace.iterdir() if path.is_dir()]


def test_only_the_newest_export_is_kept(tmp_path: Path) -> None:
    for count in (20, 30):
        write_parquet(draw_shapes(count, 0, "train"), tmp_path / "part" / "train.parquet")
        table = hub.export(str(tmp_path / "part"), tmp_path / "work")
    assert folders_in(tmp_path / "work") == [table.parent]
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + 30


def test_of_many_at_once_one_exports(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = datasets.load_dataset(str(exported))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: parts)
    ready, written, write = threading.Barrier(3), [], hub._write

    def count(*given: object) -> None:
        written.append(given)
        write(*given)

    def look(version: object, workspace: object) -> None:
        ready.wait(60)  # none of them finds an export

    monkeypatch.setattr(hub, "_write", count)
    monkeypatch.setattr(hub, "copied_before", look)
    with ThreadPoolExecutor(3) as pool:
        tables = set(pool.map(lambda _: hub.export(str(exported), tmp_path / "work"), range(3)))
    assert len(tables) == 1
    assert len(written) == 1


def test_what_a_killed_export_leaves_is_removed(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub, "_write", die)
        patch.setattr("velodrome.data.own.unpacking.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            hub.export(str(exported), tmp_path / "work")
    assert [path.suffix for path in folders_in(tmp_path / "work")] == [".tmp"]
    table = hub.export(str(exported), tmp_path / "work")
    assert folders_in(tmp_path / "work") == [table.parent]


def splits_of(data: str) -> tuple[Counter[str | None], tuple[str, ...]]:
    listing = list_own(override(Config(), {"data": data}).data)
    return Counter(entry.split for entry in listing.entries), listing.notes


@pytest.mark.parametrize("is_hub", [True, False])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((name, {"train": 20, "test": 21, "val": 22}) for name in ("val", "Valid", "validation", "dev")),
        ("validation_more", {"train": 20, "test": 21, "val": 22}),
        *((name, {"train": 20, "test": 43}) for name in ("EVAL", "evaluation")),
    ],
)
def test_splits_have_the_names_of_local_ones(
    tmp_path: Path, is_hub: bool, name: str, meant: dict[str, int]
) -> None:
    """Whatever else there is, is not trained on, and named."""
    for number, split in enumerate(("train", "testing", name, "unsupervised")):
        images = draw_shapes(20 + number, number, "train")
        write_parquet(images, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    counts, notes = splits_of(f"hf:{tmp_path}" if is_hub else str(tmp_path / "data"))
    assert counts == meant
    assert [note for note in notes if "called neither train, val nor test: unsupervised" in note]


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (
            ["extra", "more"],
            "has the splits extra, more, but none called train, so there is nothing to learn",
        ),
        (
            ["test", "extra"],
            "has the splits test, extra, but none called train, so there is nothing to learn",
        ),
    ],
)
def test_nothing_to_learn_from_is_refused(tmp_path: Path, splits: list[str], words: str) -> None:
    for split in splits:
        write_parquet(draw_shapes(20, 0, "train"), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(DataError, match=words) as caught:
        splits_of(f"hf:{tmp_path}")
    assert f"hf:{tmp_path}" in caught.value.problem


def test_a_model_is_judged_where_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    write_parquet(draw_shapes(20, 0, "train"), tmp_path / "data" / "test-00000-of-00001.parquet")
    known = draw_shapes(20, 0, "train").classes
    assert len(list_own(override(Config(), {"data": f"hf:{tmp_path}"}).data, known).entries) == 20


@pytest.mark.parametrize(
    ("kind", "label", "words"),
    [
        (
            datasets.Value("float32"),
            1.5,
            "the column label of the type float32, but a label is a class label",
        ),
        (datasets.Value("bool"), True, "the column label of the type bool, but a label is"),
        (datasets.Sequence(datasets.ClassLabel(names=["a", "b"])), [0, 1], "the column label of the type"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    tmp_path: Path, kind: object, label: object, words: str
) -> None:
    images = draw_shapes(20, 0, "train")
    write_parquet(images, tmp_path / "part" / "train.parquet", [label] * 20, kind)
    with pytest.raises(DataError, match=words):
        hub.export(str(tmp_path / "part"), tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("kind", "labels"), [("string", ["a", "b"]), ("int32", [3, 4]), ("uint8", [0, 1])])
def test_plain_labels_are_classes(tmp_path: Path, kind: str, labels: list[object]) -> None:
    images = draw_shapes(20, 0, "train")
    write_parquet(images, tmp_path / "part" / "train.parquet", labels * 10, datasets.Value(kind))
    splits = load(f"hf:{tmp_path / 'part'}")
    assert splits.train.classes == tuple(map(str, labels))


def test_images_without_any_label_are_refused(tmp_path: Path) -> None:
    write_parquet(draw_shapes(20, 0, "train"), tmp_path / "part" / "train.parquet", labels=[-1] * 20)
    with pytest.raises(DataError, match="has no image with a label"):
        hub.export(str(tmp_path / "part"), tmp_path / "work")


def test_all_of_it_is_cleared_by_its_name(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(f"hf:{exported}")
    assert main(["data", "clear", f"hf:{exported}"]) == 0
    said = capsys.readouterr().out
    assert f"MB freed: the images of hf:{exported} as files, and what was prepared of them." in said
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert main(["data", "clear", f"hf:{exported}"]) == 0
    assert f"The cache holds nothing of hf:{exported}, so nothing is freed." in capsys.readouterr().out


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
    assert not (tmp_path / "work").exists()


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
