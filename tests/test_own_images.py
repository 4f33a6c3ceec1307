"""A user's own images, from the files to a trained model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from own_images import shapes_folder, textures, write_folders, write_table
from PIL import Image

import velodrome as vd
from velodrome.cli import main
from velodrome.config import Config, override
from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.shapes import draw_shapes
from velodrome.data.sources import load_splits
from velodrome.errors import DataError, VelodromeWarning
from velodrome.job import prepare
from velodrome.training.loop import NO_SCORES, fit


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path: Path, seed: int = 0, **settings: object) -> Splits:
    config = override(Config(), {"data": str(path), **settings})
    return load_splits(config.data, seed, progress=False)


def in_order(images: ImageSet) -> list[tuple[bytes, str]]:
    pairs = zip(images.images_u8, images.labels, strict=True)
    return sorted((image.tobytes(), images.classes[label]) for image, label in pairs)


def test_a_folder_of_png_files_holds_the_images_that_were_written(tmp_path: Path) -> None:
    train, test = draw_shapes(120, 0, "train"), draw_shapes(40, 0, "test")
    write_folders(train, tmp_path / "data" / "train")
    write_folders(test, tmp_path / "data" / "test")
    splits = load(tmp_path / "data")
    assert in_order(splits.train) == in_order(train)
    assert in_order(splits.test) == in_order(test)
    assert splits.train.classes == tuple(sorted(train.classes))
    assert splits.side == 32


def weights_after(config: Config, splits: Splits | None, steps: int) -> dict[str, torch.Tensor]:
    job = prepare(config, splits, progress=False)
    lr_at = lambda step: 0.02  # noqa: E731
    events = fit(
        job.state, job.loader, lr_at, job.config.train, precision="fp32", seed=0, score=lambda _: NO_SCORES
    )
    for _, event in zip(range(steps), events, strict=False):
        assert event is not None
    return {name: value.clone() for name, value in job.state.model.state_dict().items()}


def test_a_table_that_keeps_the_order_trains_to_the_same_bits(tmp_path: Path) -> None:
    parts = {"train": draw_shapes(200, 0, "train"), "test": draw_shapes(40, 0, "test")}
    # Classes of a table are in the order of their names.
    order = np.argsort(np.argsort(parts["train"].classes))
    parts = {
        split: replace(images, labels=order[images.labels], classes=tuple(sorted(images.classes)))
        for split, images in parts.items()
    }
    table = write_table(parts, tmp_path / "data")
    settings = {"width": 4, "batch_size": 16, "lr": 0.02, "epochs": 2, "precision": "fp32"}
    built_in = Splits("built in", parts["train"], None, parts["test"])
    expected = weights_after(vd.recipes.resnet9(**settings), built_in, steps=20)
    found = weights_after(vd.recipes.resnet9(data=str(table), **settings), None, steps=20)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_without_a_test_folder_a_share_of_each_class_is_held_out(tmp_path: Path) -> None:
    path = textures(tmp_path / "data", per_class=20)
    splits = load(path, test_fraction=0.25)
    assert [np.bincount(part.labels).tolist() for part in (splits.train, splits.test)] == [[15] * 3, [5] * 3]
    assert not set(splits.train.paths) & set(splits.test.paths)
    again = load(path, seed=7, test_fraction=0.25)  # the run's seed has no say in what is tested on
    assert again.test.paths == splits.test.paths
    other = load(path, test_fraction=0.25, split_seed=1)
    assert other.test.paths != splits.test.paths


def test_images_that_are_added_leave_most_others_where_they_were(tmp_path: Path) -> None:
    path = textures(tmp_path / "data", per_class=20)
    before = set(load(path).test.paths)
    after = set(load(textures(path, per_class=25)).test.paths)
    assert len(after) == 15
    assert len(before - after) <= 3


def test_corrected_labels_come_back(tmp_path: Path) -> None:
    path = shapes_folder(tmp_path / "data")
    wrong = load(path).test.paths[0]
    table = tmp_path / "label_errors.csv"
    table.write_text(f"index,path,label\n0,{wrong},star\n", encoding="utf-8")
    corrected = load(path, labels=str(table)).test
    assert corrected.classes[corrected.labels[0]] == "star"


def test_bad_files_stop_before_anything_and_are_all_named(tmp_path: Path) -> None:
    path = shapes_folder(tmp_path / "data")
    for name in ("a.png", "b.jpg"):
        (path / "train" / "disc" / name).write_bytes(b"no image at all")
    with pytest.raises(DataError) as error:
        load(path)
    assert "a.png" in str(error.value)
    assert "b.jpg" in str(error.value)
    with pytest.warns(VelodromeWarning):
        splits = load(path, on_bad_image="skip")
    assert len(splits.train) == 200


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shapes_folder(tmp_path / "data")
    words = ["train", "--data", str(path), "--width", "4", "--epochs", "1", "--lr", "0.02", "--quiet"]
    words += ["--runs-dir", str(tmp_path / "runs"), "--name", "one"]
    assert main(words) == 0
    (tmp_path / "runs" / "one" / "result.json").unlink()
    Image.new("RGB", (32, 32)).save(path / "train" / "disc" / "one-more.png")
    assert main(["resume", str(tmp_path / "runs" / "one"), "--quiet"]) == 2
    assert "images" in capsys.readouterr().err


def test_data_check_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shapes_folder(tmp_path / "data")
    words = ["data", "check", str(path), "--runs-dir", str(tmp_path / "runs"), "--json", "--quiet"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = Path(found["path"])
    assert sorted(file.name for file in folder.iterdir()) == ["contact_sheet.png", "data_check.json"]
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 100


def test_data_clear_gives_the_disk_back(
    tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shapes_folder(tmp_path / "data")
    load(path)
    assert any(file.is_file() for file in own_cache.rglob("*.u8"))
    assert main(["data", "clear", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] >= 250 * 32 * 32 * 3
    assert not any(own_cache.rglob("*.u8"))
    assert len(load(path).train) == 200


@pytest.mark.parametrize("own", [shapes_folder, textures])
def test_training_with_no_other_option_is_better_than_chance(
    tmp_path: Path, own: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(tmp_path / "data")  # type: ignore[operator]
    words = ["train", "--data", str(path), "--runs-dir", str(tmp_path / "runs"), "--json", "--quiet"]
    assert main([*words, "--width", "8", "--epochs", "20", "--lr", "0.05"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["recipe"] == "folder"
    assert result["test_accuracy"] > 2 / len(result["classes"])


def test_a_script_may_train_without_a_guard(tmp_path: Path) -> None:
    path = textures(tmp_path / "data", per_class=80)
    script = tmp_path / "script.py"
    script.write_text(
        "import velodrome as vd\n"
        f"run = vd.train(vd.recipes.folder(data={str(path)!r}, width=4, epochs=1, lr=0.02), progress=False)\n"
        "print(run.result['epochs'])\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
