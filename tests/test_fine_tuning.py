"""Starting from the weights of another run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import velodrome as vd
from velodrome.cli import main
from velodrome.errors import ConfigError, RunError
from velodrome.fine_tuning import network_of
from velodrome.job import prepare
from velodrome.run.checkpoint import load_weights

SMALL = {"limit_train": 200, "limit_test": 50, "batch_size": 50, "lr": 0.01, "epochs": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = vd.recipes.quick(**SMALL, width=3, runs_dir=tmp_path_factory.mktemp("runs"), name="base")
    return vd.train(config, progress=False).path


def test_a_run_of_the_same_classes_starts_where_the_other_ended(base: Path) -> None:
    job = prepare(vd.recipes.quick(**SMALL, width=3, init=base), progress=False)
    tensors, _ = load_weights(base / "model.safetensors")
    own = job.state.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in tensors.items())


def test_other_classes_get_a_new_classifier(base: Path, tmp_path: Path) -> None:
    from own_images import textures

    config = vd.recipes.folder(data=str(textures(tmp_path / "data", 10)), width=3, lr=0.01, init=base)
    job = prepare(config, progress=False)
    tensors, _ = load_weights(base / "model.safetensors")
    own = job.state.model.state_dict()
    assert own["fc.weight"].shape == (3, 24)
    assert all(torch.equal(own[name], value) for name, value in tensors.items() if name != "fc.weight")


def test_the_command_takes_the_network_of_the_run(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", "shapes", "--init", str(base), "--print-config", "--json"]
    assert main(words) == 0
    assert '"width": 3' in capsys.readouterr().out


def test_the_network_is_known_without_the_weights_and_without_torch(base: Path) -> None:
    code = f"""
import sys
sys.modules["torch"] = None  # to import it is an error from here on
from velodrome.cli import main
sys.exit(main(["train", "--data", "shapes", "--init", {str(base)!r}, "--print-config"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nwidth: 3\n" in done.stdout


@pytest.mark.parametrize("content", [b"", b"\0" * 100, None])
def test_weights_that_cannot_be_read_are_named(base: Path, tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(base / "config.yaml", tmp_path / "other")
    if content is not None:
        (tmp_path / "other" / "model.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"model\.safetensors cannot be read"):
        network_of(tmp_path / "other")


def test_another_network_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"width is 5, but the run .* has 3"):
        prepare(vd.recipes.quick(**SMALL, width=5, init=base), progress=False)


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        prepare(vd.recipes.quick(**SMALL, init=tmp_path / "nothing"), progress=False)


def test_a_resumed_run_does_not_need_the_other_any_more(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(base, other)
    run = vd.train(
        vd.recipes.quick(**SMALL, width=3, init=other, freeze_epochs=1, runs_dir=tmp_path), progress=False
    )
    shutil.rmtree(other)
    assert vd.resume(run.path, epochs=2, progress=False).result["epochs"] == 2


def test_a_run_that_died_before_its_first_checkpoint_starts_from_the_other_again(
    base: Path, tmp_path: Path
) -> None:
    settings = {**SMALL, "width": 3, "init": base, "freeze_epochs": 1, "runs_dir": tmp_path}
    run = vd.train(vd.recipes.quick(**settings), progress=False)
    weights = (run.path / "model.safetensors").read_bytes()
    for path in run.path.iterdir():
        if path.name not in ("config.yaml", "environment.json", "summary.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = vd.resume(run.path, progress=False)
    assert (again.path / "model.safetensors").read_bytes() == weights


def test_a_frozen_body_stays_as_it_was(base: Path, tmp_path: Path) -> None:
    run = vd.train(
        vd.recipes.quick(**SMALL, width=3, init=base, freeze_epochs=1, runs_dir=tmp_path), progress=False
    )
    before, _ = load_weights(base / "model.safetensors")
    after, _ = load_weights(run.path / "model.safetensors")
    learned = {name for name in before if not torch.equal(before[name], after[name])}
    assert "fc.weight" in learned
    assert all(name == "fc.weight" or "running" in name or "num_batches" in name for name in learned)
