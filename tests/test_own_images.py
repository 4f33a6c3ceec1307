"""A user's own images, from the files to a trained model."""

import json
import shutil
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
from velodrome.data.duplicates import exact_duplicates
from velodrome.data.imageset import ImageSet, Splits
from velodrome.data.shapes import draw_shapes
from velodrome.data.sources import load_splits
from velodrome.errors import ConfigError, DataError, VelodromeWarning
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


def data_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["train", *words, "--dry-run", "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)["data"]


def test_what_is_found_is_what_is_there_after_corrections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = textures(tmp_path / "data", per_class=20)
    shutil.copy(path / "dots" / "000.jpg", path / "waves" / "wrong.jpg")
    with pytest.warns(VelodromeWarning, match="more than one class"):
        before = load(path)
    table = tmp_path / "corrections.csv"
    table.write_text("path,label\nwaves/wrong.jpg,dots\n", encoding="utf-8")
    after = load(path, labels=str(table)).found
    assert before.found["conflicts"]
    assert after["conflicts"] == []
    assert [row["train"] + row["test"] for row in after["classes"]] == [21, 20, 20]
    words = ["data", "check", str(path), "--labels", str(table), "--runs-dir", str(tmp_path / "runs")]
    capsys.readouterr()
    assert main([*words, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conflicts"] == []


def test_a_dry_run_says_what_is_left_to_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(textures(tmp_path / "data", per_class=20)), "--width", "4"]
    assert data_line(words, capsys).endswith("; would be prepared first, once")
    load(tmp_path / "data")
    assert data_line(words, capsys) == "data: 48 training, 12 test images of 64x64, 3 classes"
    cropped = [*words, "--random-resized-crop", "0.5"]  # which needs larger ones
    assert data_line(cropped, capsys).endswith("; would be prepared first, once")
    load_splits(override(Config(), {"data": str(tmp_path / "data")}).data, 0, enlarged=True, progress=False)
    assert data_line(cropped, capsys) == "data: 48 training, 12 test images of 64x64, 3 classes"


def test_a_dry_run_says_that_an_archive_is_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", textures(tmp_path / "data", 10)))
    words = ["--data", str(path), "--width", "4"]
    assert data_line(words, capsys).endswith("; unpacked in the cache, would be prepared first, once")
    load(path)
    assert data_line(words, capsys) == "packed.zip: 24 training, 6 test images of 64x64, 3 classes"


def test_a_dry_run_of_arrays_prepares_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = draw_shapes(100, 0)
    np.savez(tmp_path / "arrays.npz", images=images.images_u8, labels=images.labels)
    words = ["--data", str(tmp_path / "arrays.npz"), "--width", "4"]
    assert data_line(words, capsys).startswith("arrays.npz: 80 training, 20 test images of 32x32")
    assert "prepared" not in data_line(words, capsys)


def test_the_same_image_is_the_same_in_whatever_size_it_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "data"
    shapes_folder(path)
    leaked = next((path / "train").rglob("*.png"))
    shutil.copy(leaked, path / "test" / leaked.parent.name / "leaked.png")
    config = override(Config(), {"data": str(path)})
    with pytest.warns(VelodromeWarning, match="1 is the same as a training image and 0 nearly the same"):
        splits = load_splits(config.data, 0, enlarged=True, progress=False)
    assert [part.images_u8.shape[1] for part in (splits.train, splits.test)] == [40, 32]
    (found,) = exact_duplicates(splits.test, splits.train).found
    assert Path(splits.test.paths[found.test]).name == "leaked.png"
    assert Path(splits.train.paths[found.train]).name == leaked.name


def test_images_to_train_on_are_as_those_of_a_larger_size_and_those_to_test_on_are_not(
    tmp_path: Path,
) -> None:
    path = textures(tmp_path / "data", per_class=12)
    plain, larger = load(path), load(path, image_size=80)
    enlarged = load_splits(override(Config(), {"data": str(path)}).data, 0, enlarged=True, progress=False)
    assert np.array_equal(enlarged.train.images_u8, larger.train.images_u8)
    assert np.array_equal(enlarged.test.images_u8, plain.test.images_u8)
    assert enlarged.train.paths == plain.train.paths


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


def test_a_run_is_not_judged_by_images_that_it_was_not_made_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = textures(tmp_path / "data", per_class=20), tmp_path / "runs" / "one"
    words = ["train", "--data", str(path), "--width", "4", "--epochs", "1", "--lr", "0.02", "--quiet"]
    assert main([*words, "--runs-dir", str(tmp_path / "runs"), "--name", "one"]) == 0
    before = (run / "predictions.csv").read_bytes()
    held_out = vd.Run(run).test_images().paths[0]
    (path / held_out).unlink()
    for more in ([], ["--data", str(path)]):
        assert main(["evaluate", str(run), *more, "--quiet"]) == 2
        message = capsys.readouterr().err
        assert f"Run {run} was made with other images or labels than {path} holds now." in message
        assert f"velodrome evaluate {run} --data FOLDER" in message
    with pytest.raises(DataError, match="other images or labels"):
        vd.Run(run).mistakes()
    assert (run / "predictions.csv").read_bytes() == before


def test_a_run_does_not_go_on_with_other_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, run = tmp_path / "fix.csv", tmp_path / "runs" / "one"
    table.write_text("path,label\nshapes/train/00000.png,star\n", encoding="utf-8")
    words = [
        "train",
        "--data",
        "shapes",
        "--labels",
        str(table),
        "--limit-train",
        "100",
        "--limit-test",
        "20",
    ]
    words += ["--batch-size", "50", "--width", "4", "--epochs", "1", "--lr", "0.02", "--quiet"]
    assert main([*words, "--runs-dir", str(tmp_path / "runs"), "--name", "one"]) == 0
    (run / "result.json").unlink()
    table.write_text("path,label\nshapes/train/00000.png,ring\n", encoding="utf-8")
    assert main(["resume", str(run), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert f"Run {run} was made with other images or labels than shapes holds now. Bring them" in message
    table.write_text("path,label\nshapes/train/00000.png,star\n", encoding="utf-8")
    assert main(["resume", str(run), "--quiet"]) == 0


def test_a_run_goes_on_with_images_that_have_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = shapes_folder(tmp_path / "data"), tmp_path / "runs" / "one"
    words = ["train", "--data", str(path), "--width", "4", "--epochs", "1", "--lr", "0.02", "--quiet"]
    assert main([*words, "--runs-dir", str(tmp_path / "runs"), "--name", "one"]) == 0
    path.rename(tmp_path / "moved")
    assert main(["evaluate", str(run), "--quiet"]) == 2
    assert f"name the new place in the line `data:` of {run / 'config.yaml'}" in capsys.readouterr().err
    before = (run / "model.safetensors").read_bytes()
    (run / "result.json").unlink()
    assert main(["resume", str(run), "--quiet"]) == 2
    assert f"If it has moved: velodrome resume {run} --data PATH" in capsys.readouterr().err
    others = textures(tmp_path / "others", per_class=10)
    assert main(["resume", str(run), "--quiet", "--data", str(others)]) == 2
    assert f"Run {run} was made with other images" in capsys.readouterr().err
    assert main(["resume", str(run), "--quiet", "--data", str(tmp_path / "moved")]) == 0
    assert (run / "model.safetensors").read_bytes() == before
    assert main(["evaluate", str(run), "--quiet"]) == 0  # the run knows where they are now


def test_data_check_says_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shapes_folder(tmp_path / "data")
    words = ["data", "check", str(path), "--runs-dir", str(tmp_path / "runs"), "--json", "--quiet"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = Path(found["path"])
    assert sorted(file.name for file in folder.iterdir()) == ["contact_sheet.png", "data_check.json"]
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 100


def test_own_images_are_checked_and_cleared_from_python(tmp_path: Path) -> None:
    path = textures(tmp_path / "data", per_class=10)
    settings = {"image_size": 24, "runs_dir": tmp_path / "runs"}
    checks = [
        vd.check_data(path, progress=False, **settings),
        vd.check_data(str(path), progress=False, **settings),
        vd.check_data(vd.recipes.folder(data=str(path), **settings), progress=False),
    ]
    assert [check.to_dict()["images"] for check in checks] == [30, 30, 30]
    assert {check.own.side for check in checks} == {24}
    assert [check.path.name for check in checks] == ["data-check-1", "data-check-2", "data-check-3"]
    assert "dots" in checks[0]._repr_html_()
    assert vd.clear_data(path) > 30 * 24 * 24 * 3
    assert vd.clear_data(str(path)) == 0
    with pytest.raises(ConfigError, match="image_siz"):
        vd.check_data(path, image_siz=24)
    with pytest.raises(ConfigError, match="'shapes'"):
        vd.check_data("shapes")
    with pytest.raises(ConfigError, match="'shapes'"):
        vd.clear_data("shapes")


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


def trained_on(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    words = ["train", "--data", str(path), "--runs-dir", str(path.parent / "runs"), "--json", "--quiet"]
    assert main([*words, *options]) == 0
    result: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_training_with_no_other_option_recognises_most_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = trained_on(textures(tmp_path / "data", per_class=18, sides=(32, 40)), capsys)
    assert result["recipe"] == "folder"
    assert result["test_accuracy"] > 0.7
    assert (tmp_path / "runs" / "folder-1" / "lr_find.json").exists()


def test_a_narrow_network_learns_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = trained_on(shapes_folder(tmp_path / "data"), capsys, "--width", "8", "--epochs", "20")
    assert result["test_accuracy"] > 2 / 10


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
