"""Starting from the weights of another run."""

from pathlib import Path

import pytest
import torch

import velodrome as vd
from velodrome.cli import main
from velodrome.errors import ConfigError, RunError
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


def test_another_network_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"width is 5, but the run .* has 3"):
        prepare(vd.recipes.quick(**SMALL, width=5, init=base), progress=False)


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        prepare(vd.recipes.quick(**SMALL, init=tmp_path / "nothing"), progress=False)


def test_a_resumed_run_does_not_need_the_other_any_more(base: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(base, other)
    run = vd.train(
        vd.recipes.quick(**SMALL, width=3, init=other, freeze_epochs=1, runs_dir=tmp_path), progress=False
    )
    shutil.rmtree(other)
    assert vd.resume(run.path, epochs=2, progress=False).result["epochs"] == 2


def test_a_frozen_body_stays_as_it_was(base: Path, tmp_path: Path) -> None:
    run = vd.train(
        vd.recipes.quick(**SMALL, width=3, init=base, freeze_epochs=1, runs_dir=tmp_path), progress=False
    )
    before, _ = load_weights(base / "model.safetensors")
    after, _ = load_weights(run.path / "model.safetensors")
    learned = {name for name in before if not torch.equal(before[name], after[name])}
    assert "fc.weight" in learned
    assert all(name == "fc.weight" or "running" in name or "num_batches" in name for name in learned)
