"""The parts of `speed94` together, through the command: a tiny network on drawn shapes, in this process."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import velodrome as vd
from velodrome.cli import main
from velodrome.errors import EXIT_BAD_INPUT, EXIT_DONE
from velodrome.run.folder import RunFolder

# The numbers of the recipe are measured, and no business of these tests.
TINY = {
    **{"data": "shapes", "limit_train": 100, "limit_test": 40, "batch_size": 32, "width": 2, "epochs": 2},
    **{"precision": "fp32", "device": "cpu", "resolutions": "12:1,20:1"},
}
WITHOUT_LR = [word for key, value in TINY.items() for word in ("--" + key.replace("_", "-"), str(value))]
FLAGS = [*WITHOUT_LR, "--lr", "0.1", "--lr-min", "auto"]


@dataclass(frozen=True)
class Done:
    """What a command left on its streams."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> vd.Run:
    runs = tmp_path_factory.mktemp("speed94") / "runs"
    words = ["--runs-dir", str(runs), "--name", "tiny", "--val-fraction", "0.2", "--quiet"]
    assert main(["train", "speed94", *FLAGS, *words]) == EXIT_DONE
    return vd.Run(runs / "tiny")


@pytest.fixture
def run(trained: vd.Run, tmp_path: Path) -> vd.Run:
    return vd.Run(RunFolder(shutil.copytree(trained.path, tmp_path / "run")))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run_command(*words: object) -> Done:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Done(code, *capsys.readouterr())

    return run_command


def test_what_the_recipe_is_made_of() -> None:
    config = vd.recipes.speed94()
    assert (config.model.model, config.train.optimizer) == ("speednet", "muon")
    assert config.augment.alternate_flip
    assert config.augment.flip
    assert config.data.data == "cifar10"
    assert config.data.val_fraction == 0


def test_the_result_of_a_run(trained: vd.Run) -> None:
    assert trained.result["recipe"] == "speed94"
    assert trained.result["params"] == sum(p.numel() for p in trained.model().network.parameters())
    assert trained.result["val_accuracy"] is not None
    assert trained.result["train_pflop"] > 0
    assert trained.result["predict_seconds"] > 0
    about = json.loads((trained.folder.gallery / "samples.json").read_text())
    assert about["image_size"] == [32, 32]
    assert about["augmented"]["image_size"] == [12, 12]  # as the network sees them at first


def test_a_report_of_a_run(command: Command, run: vd.Run) -> None:
    run.folder.report.unlink()
    done = command("report", run.path)
    assert (done.code, done.err) == (EXIT_DONE, "")
    page = run.folder.report.read_text()
    assert f"{run.result['test_accuracy']:.2%}" in page
    assert "speednet" in page


def test_evaluating_again_gives_the_same_figures(command: Command, run: vd.Run) -> None:
    before = {name: (run.path / name).read_bytes() for name in ("evaluation.json", "predictions.csv")}
    run.folder.evaluation.unlink()
    done = command("evaluate", run.path, "--json", "--quiet", "--device", "cpu")
    assert (done.code, done.err) == (EXIT_DONE, "")
    assert json.loads(done.out)["accuracy_tta"] == run.result["test_accuracy_tta"]
    for name, content in before.items():
        assert (run.path / name).read_bytes() == content, name


def test_predicting_an_image(command: Command, run: vd.Run, tmp_path: Path) -> None:
    images = run.test_images()
    Image.fromarray(images.images_u8[0]).save(tmp_path / "zero.png")
    done = command("predict", run.path, tmp_path / "zero.png", "--json", "--explain", tmp_path / "maps")
    assert (done.code, done.err) == (EXIT_DONE, "")
    (answer,) = json.loads(done.out)["predictions"]
    with run.folder.predictions.open() as file:
        first = next(csv.DictReader(file))
    assert answer["top"][0]["class"] == first["prediction"]
    assert answer["top"][0]["probability"] == pytest.approx(float(first["probability"]), abs=1e-4)
    assert list((tmp_path / "maps").iterdir())


def test_resume_of_a_finished_run_says_so(command: Command, run: vd.Run) -> None:
    done = command("resume", run.path)
    assert done.code == EXIT_DONE
    assert "finished already" in done.err


def test_more_epochs(command: Command, run: vd.Run) -> None:
    """The schedule of the recipe may end at 0, after which nothing is learned; this is told."""
    done = command("resume", run.path, "--epochs", 3, "--quiet")
    if vd.recipes.speed94().train.lr_final == 0:
        assert done.code == EXIT_BAD_INPUT
        assert "ends at 0" in done.err
    else:
        assert done.code == EXIT_DONE
        assert run.result["epochs"] == 3


def test_a_dry_run(command: Command, tmp_path: Path) -> None:
    done = command("train", "speed94", *FLAGS, "--dry-run", "--json")
    assert (done.code, done.err) == (EXIT_DONE, "")
    plan = json.loads(done.out)
    assert (plan["recipe"], plan["steps"]) == ("speed94", 8)
    assert plan["model"].startswith("speednet, ")
    assert plan["training_s"] >= 0
    assert list(tmp_path.iterdir()) == []


def test_finding_the_learning_rate(command: Command, tmp_path: Path) -> None:
    words = [*WITHOUT_LR, "--limit-train", "400", "--epochs", "1", "--steps", "24", "--verify", "1"]
    done = command("lr-find", "speed94", *words, "--json", "--quiet", "--name", "found")
    found = json.loads((tmp_path / "runs" / "found" / "lr_find.json").read_text())
    assert len(found["curve"]["loss"]) > 10
    # So few steps may tell too little, which is told and no fault of the command.
    if done.code == EXIT_DONE:
        assert json.loads(done.out)["lr_max"] == found["lr_max"] > 0
    else:
        assert found["refusal"] in done.err


def test_training_after_a_search(command: Command, tmp_path: Path) -> None:
    """12 steps an epoch, of which the search takes as many; it may end with the usual learning rate."""
    words = [*FLAGS, "--limit-train", "400", "--epochs", "1", "--lr", "auto", "--lr-min", "auto"]
    done = command("train", "speed94", *words, "--name", "searched", "--json", "--quiet")
    assert done.code == EXIT_DONE, done.err
    assert json.loads(done.out)["epochs"] == 1
    assert "lr: auto" not in (tmp_path / "runs" / "searched" / "config.yaml").read_text()


def test_the_summary_of_the_network(command: Command) -> None:
    done = command("summary", "speednet", "--width", "3", "--classes", "7", "--json")
    assert (done.code, done.err) == (EXIT_DONE, "")
    summary = json.loads(done.out)
    shapes = {layer["name"]: layer["output_shape"] for layer in summary["layers"]}
    assert shapes["whiten"] == [24, 31, 31]
    assert [shapes[f"layer{number}.conv2"] for number in (1, 2, 3)] == [[3, 15, 15], [12, 7, 7], [12, 3, 3]]
    assert shapes["fc"] == [7]
    convs = 9 * (24 * 3 + 9 + 36 + 4 * 144)
    assert summary["totals"]["params"] == 288 + convs + 2 * (2 * 3 + 5 * 12) + 12 * 7
    assert "whiten" in command("summary", "speednet").out


# What cannot be.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["speed94", "--resolutions", "20"], "--resolutions is '20', but must be a list of PIXELS:SHARE"),
        (["speed94", "--tta", "flap"], "Did you mean flip?"),
        (["speed94", "--score-every", "-1"], "--score-every is '-1', but must be a whole number at least 0"),
        (["speed94", "--model", "speedyet"], "Did you mean speednet?"),
        (["speed94", "--optimizer", "moun"], "Did you mean muon?"),
        (["speed49"], "Did you mean speed94?"),
        (["speed94", *FLAGS, "--resolutions", "8:1,32:1"], "resolutions"),
        (
            ["quick", "--data", "shapes", "--width", "2", "--lr", "0.1", "--resolutions", "7:1,32:1"],
            "resolutions",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-2:]),
)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    command: Command, tmp_path: Path, words: list[str], expected: str
) -> None:
    done = command("train", *words, "--quiet")
    assert done.code == EXIT_BAD_INPUT, done.err[-300:]
    assert expected in done.err
    assert (done.err.count("\n"), done.out) == (1, "")
    assert list(tmp_path.iterdir()) == []
