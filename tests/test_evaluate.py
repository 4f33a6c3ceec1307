"""Evaluating and looking at a finished run, through the API and the command."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import velodrome as vd
from velodrome.cli import main
from velodrome.data.imageset import Normalisation
from velodrome.data.shapes import draw_shapes
from velodrome.errors import ConfigError, DataError, RunError, VelodromeWarning
from velodrome.evaluating import _folder_name, _other_images, is_own_data
from velodrome.evaluation.predict import Classifier
from velodrome.reports import show
from velodrome.run.answers import read_answers
from velodrome.run.folder import RunFolder
from velodrome.run.lock import locked

OWN_FILES = ("predictions.csv", "probabilities.npy", "evaluation.json", "label_errors.csv", "diagnosis.json")
PICTURES = (
    *("mistakes.json", "mistakes.webp", "maps.npy"),
    *("samples.json", "samples.webp", "augmented.webp"),
)


@dataclass(frozen=True)
class Done:
    """What a command left on its streams."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""

    def run_command(*words: object) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run_command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> vd.Run:
    settings = {"limit_train": 600, "limit_test": 150, "batch_size": 64, "width": 4, "epochs": 3, "lr": 0.1}
    config = vd.recipes.quick(runs_dir=tmp_path_factory.mktemp("evaluate") / "runs", **settings)
    return vd.train(config, progress=False)


@pytest.fixture
def run(trained: vd.Run, tmp_path: Path) -> vd.Run:
    return vd.Run(RunFolder(shutil.copytree(trained.path, tmp_path / "run")))


@pytest.fixture
def photos(trained: vd.Run, tmp_path: Path) -> Path:
    """The first 30 test images as PNG files, in a folder for each class."""
    images = trained.test_images()
    for index in range(30):
        folder = tmp_path / "photos" / images.classes[images.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images_u8[index]).save(folder / f"{index:03}.png")
    return tmp_path / "photos"


def test_a_run_is_opened_by_its_path(trained: vd.Run) -> None:
    assert vd.Run(str(trained.path)).result == trained.result
    with pytest.raises(RunError, match="Run nowhere does not exist"):
        vd.Run("nowhere")


def test_evaluation_agrees_with_the_result(trained: vd.Run) -> None:
    result, evaluation = trained.result, trained.evaluation
    assert evaluation["accuracy"] == result["test_accuracy"]
    assert evaluation["accuracy_tta"] == result["test_accuracy_tta"]
    assert evaluation["nll"] == result["test_loss"]
    assert evaluation["data"] == "shapes"
    assert np.sum(evaluation["confusion"]) == evaluation["images"] == 150
    assert evaluation["duplicates"]["images"] == 0
    answers = read_answers(trained.folder, evaluation["classes"])
    assert len(answers.wrong) == round(150 * (1 - evaluation["accuracy"]))


def test_evaluating_again_gives_the_same_files(command: Command, run: vd.Run) -> None:
    before = {name: (run.path / name).read_bytes() for name in OWN_FILES}
    before |= {name: (run.folder.gallery / name).read_bytes() for name in PICTURES}
    for name in OWN_FILES:
        (run.path / name).unlink()
    for name in PICTURES:
        (run.folder.gallery / name).unlink()
    done = command("evaluate", str(run.path), "--device", "cpu")
    assert (done.returncode, done.stderr) == (0, f"Evaluating {run.path} on shapes ...\n")
    assert f"{run.result['test_accuracy']:.2%}" in done.stdout
    for name in OWN_FILES:
        assert (run.path / name).read_bytes() == before[name], name
    for name in PICTURES:
        assert (run.folder.gallery / name).read_bytes() == before[name], name


def test_the_page_is_made_without_torch(run: vd.Run) -> None:
    before = vd.report(run.path).read_bytes()
    run.folder.report.unlink()
    code = f"""
import sys
sys.modules["torch"] = None  # to import it is an error from here on
from velodrome.cli import main
sys.exit(main(["report", {str(run.path)!r}]))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert run.folder.report.read_bytes() == before


def test_json_is_evaluation_json(command: Command, run: vd.Run) -> None:
    done = command("evaluate", str(run.path), "--json", "--quiet", "--layer", "layer3")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == run.evaluation
    about = json.loads(run.folder.mistakes.read_text())
    assert (about["layer"], about["map_size"]) == ("layer3", [4, 4])


def test_a_stage_that_is_not_there_changes_nothing(run: vd.Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"layer is 'layer7', but the network has no such stage\. .*layer"):
        vd.evaluate(run, layer="layer7", progress=False)
    with pytest.raises(ConfigError, match="layer is 'fc', whose output"):
        vd.evaluate(run, layer="fc", progress=False)
    del before[run.folder.lock]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_corrected_labels_are_never_written_over(run: vd.Run) -> None:
    header = "index,path,label,given_label,suggested_label,given_probability,suggested_probability,margin\n"
    corrected = header + "3,a.png,disc,ring,disc,0.1,0.9,-0.8\n"
    run.folder.label_errors.write_text(corrected)
    with pytest.warns(VelodromeWarning, match=r"label_errors\.csv holds corrected labels"):
        vd.evaluate(run, progress=False)
    assert run.folder.label_errors.read_text() == corrected


def test_columns_and_broken_files_of_others_are_left_alone_too(run: vd.Run) -> None:
    for text in ("index,path,label,note\n3,a.png,disc,mine\n", "\ufeff", "\0"):
        run.folder.label_errors.write_text(text)
        with pytest.warns(VelodromeWarning, match=r"label_errors\.csv holds corrected labels"):
            vd.evaluate(run, progress=False)
        assert run.folder.label_errors.read_text() == text


def test_a_run_that_has_not_finished_is_not_evaluated(command: Command, run: vd.Run) -> None:
    run.folder.result.unlink()
    done = command("evaluate", run.path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "has not finished, so there is nothing to evaluate yet. Go on with: velodrome resume" in done.stderr
    )


def test_a_run_that_goes_on_has_no_answers_from_before(run: vd.Run) -> None:
    (run.folder.gallery / ".maps.npy.12345678.tmp").write_bytes(b"torn")
    run.folder.open_again()
    page = vd.report(run.path).read_text()
    assert "There are no predictions yet" in page
    assert run.result == run.evaluation == {}
    assert not list(run.path.rglob("*.tmp"))


def gallery_of(page: Path) -> dict[str, object]:
    found = re.search(r'id="gallery-data">(.*?)</script>', page.read_text())
    return json.loads(found[1])


def test_probabilities_keep_their_classes_without_the_result(run: vd.Run) -> None:
    names = ["ring", "arrow", "square"]  # not in the order of the alphabet
    run.folder.predictions.write_text(
        "index,path,label,prediction,probability,loss\n0,a.png,ring,square,0.7,2.3\n"
    )
    np.save(run.folder.probabilities, np.array([[0.1, 0.2, 0.7]], np.float16))
    for path in (run.folder.evaluation, run.folder.result):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "classes": names}))
    complete = gallery_of(vd.report(run.path))
    assert [names[ranked[0]] for ranked in complete["top"]] == ["square", "arrow", "ring"]
    run.folder.result.unlink()
    assert gallery_of(vd.report(run.path))["top"] == complete["top"]
    run.folder.evaluation.unlink()  # whose probabilities they are is not known any more
    assert gallery_of(vd.report(run.path))["top"] is None


def test_a_page_that_is_made_during_training_reloads_itself(run: vd.Run) -> None:
    with locked(run.folder):
        assert "location.reload" not in vd.report(run.path).read_text()
        run.folder.result.unlink()
        assert "location.reload" in vd.report(run.path).read_text()
    assert "location.reload" not in vd.report(run.path).read_text()


def test_resume_of_a_finished_run_mends_its_page(run: vd.Run) -> None:
    show(run.folder, live=True)  # as a kill right after result.json leaves it
    vd.resume(run.path, progress=False)
    assert "location.reload" not in run.folder.report.read_text()


def test_other_images_in_a_folder(run: vd.Run, photos: Path) -> None:
    before = run.folder.predictions.read_bytes()
    found = vd.evaluate(run, data=photos, progress=False)
    with run.folder.predictions.open() as file:
        own = list(csv.DictReader(file))[:30]
    right = sum(row["label"] == row["prediction"] for row in own)
    assert found.accuracy == right / 30
    content = found.to_dict()
    assert content["data"] == str(photos)
    compared = content["compared_with"]
    assert compared["data"] == "shapes"
    assert (compared["images"], compared["accuracy"]) == (150, run.result["test_accuracy"])
    for row in compared["per_class"]:
        answers = [one["label"] == one["prediction"] for one in own if one["label"] == row["name"]]
        assert row["change"] == pytest.approx(np.mean(answers) - row["accuracy"])
        assert row["change_ci95"][0] <= row["change"] <= row["change_ci95"][1]
    assert {row["name"] for row in compared["per_class"]} == {one["label"] for one in own}
    change, (low, high) = found.change
    assert change == pytest.approx(right / 30 - run.result["test_accuracy"])
    assert low < change < high
    assert content["accuracy_change_ci95"] == [low, high]
    assert "change from the run's own test images" in dict(found.rows())
    # The same pixels get the same probabilities, image by image.
    with (found.path / "predictions.csv").open() as file:
        theirs = {Path(row["path"]).name: row["probability"] for row in csv.DictReader(file)}
    expected = [float(row["probability"]) for row in own]
    # In batches of other sizes the last bits of bf16 differ.
    assert [float(theirs[f"{index:03}.png"]) for index in range(30)] == pytest.approx(expected, abs=2e-2)
    assert found.path.parent == run.folder.evaluations
    assert run.folder.predictions.read_bytes() == before
    assert vd.evaluate(run, data=photos, progress=False).path == found.path
    assert "On other data" in run.folder.report.read_text()
    assert len(found.table().splitlines()) == 11
    # Its own page has a gallery of its own.
    gallery = gallery_of(found.page)
    assert gallery["mistakes"] == 30 - right
    assert {Path(path).name for path in gallery["path"]} <= {f"{index:03}.png" for index in range(30)}
    assert (found.path / "gallery" / "maps.npy").exists()
    assert f"{run.path.name} on photos" in found.page.read_text()


def test_the_page_of_an_evaluation_is_written_again_with_that_of_the_run(
    run: vd.Run, photos: Path, tmp_path: Path
) -> None:
    page = vd.evaluate(run, data=photos, progress=False).page
    before = page.read_bytes()
    page.unlink()
    assert str(page.relative_to(run.path)) not in vd.report(run.path, tmp_path / "elsewhere.html").read_text()
    assert not page.exists()
    assert str(page.relative_to(run.path)) in vd.report(run.path).read_text()
    assert page.read_bytes() == before


def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_evaluated(
    command: Command, run: vd.Run, photos: Path
) -> None:
    next(photos.glob("*")).joinpath("broken.png").write_bytes(b"\x89PNG")
    done = command("evaluate", str(run.path), "--data", str(photos), "--quiet")
    assert done.returncode == 1
    assert "broken.png cannot be read: " in done.stderr
    assert "1 of 31 files cannot be read." in done.stderr
    assert "accuracy" in done.stdout
    as_json = command("evaluate", str(run.path), "--data", str(photos), "--quiet", "--json")
    assert [Path(file["path"]).name for file in json.loads(as_json.stdout)["failed"]] == ["broken.png"]


def test_data_of_other_classes_are_refused(command: Command, run: vd.Run, photos: Path) -> None:
    (photos / "zebra").mkdir()
    Image.new("RGB", (32, 32)).save(photos / "zebra" / "a.png")
    with pytest.raises(DataError, match="has the class 'zebra', but the model knows no such class"):
        vd.evaluate(run, data=photos, progress=False)
    assert not run.folder.evaluations.exists()
    done = command("evaluate", str(run.path), "--data", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere does not exist. Check the path" in done.stderr


def predictions_in(folder: Path) -> dict[str, str]:
    """The answers in a folder, by the name of the file."""
    with (folder / "predictions.csv").open() as file:
        return {Path(row["path"]).name: row["prediction"] for row in csv.DictReader(file)}


def as_table(photos: Path, goal: Path) -> Path:
    rows = [f"{file},{file.parent.name}" for file in sorted(photos.glob("*/*.png"))]
    path = goal / "table.csv"
    path.write_text("\n".join(["path,label", *rows]))
    return path


def as_archive(photos: Path, goal: Path) -> Path:
    return Path(shutil.make_archive(str(goal / "packed"), "zip", photos))


def as_splits(photos: Path, goal: Path) -> Path:
    """Images to train on that nobody can read, and those to test on."""
    (goal / "splits" / "train" / "disc").mkdir(parents=True)
    (goal / "splits" / "train" / "disc" / "broken.png").write_bytes(b"")
    shutil.copytree(photos, goal / "splits" / "test")
    return goal / "splits"


@pytest.mark.parametrize("written", [as_table, as_archive, as_splits])
def test_all_that_train_takes_is_the_same_to_evaluate(
    run: vd.Run, photos: Path, tmp_path: Path, written: Callable[[Path, Path], Path]
) -> None:
    expected = vd.evaluate(run, data=photos, progress=False)
    found = vd.evaluate(run, data=written(photos, tmp_path), progress=False)
    assert found.failed == ()
    assert predictions_in(found.path) == predictions_in(expected.path)
    assert found.figures.nll == expected.figures.nll


def test_arrays_are_evaluated_with_their_classes_by_name(run: vd.Run, tmp_path: Path) -> None:
    images = run.test_images()
    labels = np.array(images.classes)[images.labels[:40]]
    np.savez(tmp_path / "arrays.npz", test_images=images.images_u8[:40], test_labels=labels)
    found = vd.evaluate(run, data=tmp_path / "arrays.npz", progress=False)
    answers = run.answers()
    assert found.accuracy == (answers.labels == answers.predictions)[:40].mean()


def test_one_class_is_enough(run: vd.Run, photos: Path) -> None:
    for folder in list(photos.iterdir())[1:]:
        shutil.rmtree(folder)
    (name,) = [folder.name for folder in photos.iterdir()]
    found = vd.evaluate(run, data=photos, progress=False)
    assert {row.name: row.images for row in found.figures.per_class if row.images} == {
        name: len(list(photos.glob("*/*")))
    }


def test_named_data_come_in_the_size_of_the_model() -> None:
    shapes = draw_shapes(1, 0)
    network = torch.nn.Identity()
    classifier = Classifier(network, shapes.classes, Normalisation((0, 0, 0), (1, 1, 1)), (24, 24), "crop")
    images, failed = _other_images(vd.Config(), classifier, "shapes", progress=False)
    assert images.images_u8.shape[1:] == (24, 24, 3)
    assert failed == ()


def test_folders_of_a_hubs_data_do_not_depend_on_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _folder_name("hf:somebody/cats")
    monkeypatch.chdir(tmp_path)
    assert _folder_name("hf:somebody/cats") == before
    assert _folder_name("hf:somebody/dogs") != before


def test_own_data_are_known_however_their_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "shapes").mkdir()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    config = vd.override(vd.Config(), {"data": str(tmp_path / "photos")})
    assert all(
        is_own_data(config, data) for data in ("photos", "./photos/", "link", str(tmp_path / "photos"))
    )
    assert not any(is_own_data(config, data) for data in ("shapes", "nowhere", ".", "cifar10"))
    shapes = vd.override(vd.Config(), {"data": "shapes"})
    assert is_own_data(shapes, "shapes")
    assert not is_own_data(shapes, "./shapes")  # a folder of that name


def test_a_run_in_use_is_left_alone(run: vd.Run) -> None:
    with locked(run.folder), pytest.raises(RunError, match="in use by another process"):
        vd.evaluate(run.path, progress=False)


def test_mistakes_come_with_their_images(trained: vd.Run) -> None:
    answers, test = trained.answers(), trained.test_images()
    mistakes = trained.mistakes()
    assert mistakes.indices == sorted(answers.wrong.tolist(), key=lambda index: -answers.losses[index])
    first = mistakes[0]
    assert np.array_equal(first.image_u8, test.images_u8[first.index])
    assert first.label == test.classes[test.labels[first.index]] != first.prediction
    same = trained.mistakes("confidence", label=first.label, prediction=first.prediction, n=2)
    assert {(row.label, row.prediction) for row in same} == {(first.label, first.prediction)}
    assert trained.confused_pairs()[0].images == max(pair.images for pair in trained.confused_pairs())
    with pytest.raises(ConfigError, match="n is -1, but must be at least 0"):
        trained.mistakes(n=-1)
    with pytest.raises(ConfigError, match="'sphere' is not a class"):
        trained.mistakes(label="sphere")


def test_what_a_notebook_shows_is_escaped(trained: vd.Run) -> None:
    mistakes = trained.mistakes(n=3)
    shown = mistakes._repr_html_()
    assert shown.count("<img") == len(mistakes) == 3
    assert trained.mistakes(n=0)._repr_html_()
    maps = trained.gradcam(mistakes)
    assert maps._repr_html_().startswith("<img")
    assert maps.maps.shape == (3, 2, 8, 8)
    assert maps.classes == tuple((row.prediction, row.label) for row in mistakes)
    figures = (mistakes.plot(), maps.plot(), trained.plot_history(), trained.mistakes(n=0).plot())
    for figure in figures:
        figure.canvas.draw()


def test_gradcam_of_any_images_and_classes(trained: vd.Run) -> None:
    images = trained.test_images().images_u8[:4]
    maps = trained.gradcam(images, layer="layer3")
    assert maps.maps.shape == (4, 2, 4, 4)
    assert [names[0] for names in maps.classes] == [name for name, _ in trained.model().predict(images)]
    chosen = trained.gradcam([5, 2], classes=["ring"])
    assert chosen.classes == (("ring",), ("ring",))
    with pytest.raises(ConfigError, match="Image 150 was asked for, but test images are numbered 0 to 149"):
        trained.gradcam([5, 150])
    first = trained.mistakes(n=1)[0]
    one = trained.gradcam(first, classes="ring")
    assert one.classes == (("ring",),)
    assert np.array_equal(one.maps, trained.gradcam([first.index], classes=["ring"]).maps)
    assert np.array_equal(trained.gradcam(images[0]).maps, trained.gradcam(images[:1]).maps)
    with pytest.raises(ConfigError, match=r"There is no class 'rings'\. Did you mean ring"):
        trained.gradcam([1], classes=["rings"])


def test_a_run_that_was_not_evaluated_says_so(run: vd.Run) -> None:
    run.folder.predictions.unlink()
    with pytest.raises(RunError, match=r"has no answers: .* Let it finish, or: velodrome evaluate"):
        run.mistakes()


def test_predict_answers_as_the_run_did(command: Command, run: vd.Run, photos: Path) -> None:
    (photos / "notes.png").write_text("no image")
    done = command("predict", str(run.path), str(photos), "--json", "--top", "2")
    assert done.returncode == 1
    assert "notes.png" in done.stderr
    assert "1 of 31 could not be answered." in done.stderr
    answer = json.loads(done.stdout)
    assert [Path(failure["path"]).name for failure in answer["failed"]] == ["notes.png"]
    answers = run.answers()
    for found in answer["predictions"]:
        index = int(Path(found["path"]).stem)
        assert len(found["top"]) == 2
        assert found["top"][0]["class"] == answers.classes[answers.predictions[index]]


def test_predict_takes_one_path_or_many(run: vd.Run, photos: Path) -> None:
    file = next(photos.glob("*/*.png"))
    one = vd.predict(run, str(file))
    assert one.to_dict() == vd.predict(run, file).to_dict() == vd.predict(run, [file]).to_dict()
    assert len(one.predictions) == 1


def test_predict_as_a_table_and_with_pictures(
    command: Command, run: vd.Run, photos: Path, tmp_path: Path
) -> None:
    file = next(photos.glob("*/*.png"))
    done = command("predict", str(run.path), str(file), "--explain", str(tmp_path / "maps"))
    assert (done.returncode, done.stderr) == (0, "")
    assert file.name in done.stdout
    assert "%" in done.stdout
    (picture,) = (tmp_path / "maps").iterdir()
    with Image.open(picture) as image:
        assert image.width > 300


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--top", "0"], "--top is '0', but must be a whole number at least 1."),
        (["--layer", "layer3"], "--layer is for the pictures of --explain."),
        (["--explain", "out", "--layer", "fc"], "layer is 'fc', whose output is"),
        (["--explain", "out", "--layer", "layer8"], "layer is 'layer8', but the network has no such stage."),
    ],
)
def test_predict_names_what_is_wrong(
    command: Command,
    run: vd.Run,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("predict", str(run.path), str(photos), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_that_the_terminal_lacks_signs_for_are_escaped(run: vd.Run, photos: Path) -> None:
    file = next(photos.glob("*/*.png")).rename(photos / "\N{SNOWMAN}.png")
    for words in (["--json"], []):
        done = subprocess.run(
            [sys.executable, "-m", "velodrome", "predict", str(run.path), str(file), *words],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u2603.png" in done.stdout
        assert not words or json.loads(done.stdout)["predictions"][0]["path"] == str(file)
