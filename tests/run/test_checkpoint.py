"""Checkpoints: read back as written, and never lost to a damaged file or an interrupted write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from velodrome.errors import RunError, VelodromeWarning
from velodrome.events import CheckpointSaved, to_json
from velodrome.run.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint, save_weights
from velodrome.run.folder import RunFolder

Groups = dict[str, dict[str, Tensor]]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    return RunFolder(tmp_path / "run")


def groups(value: float) -> Groups:
    return {
        "model": {"fc.weight": torch.full((3, 4), value), "norm.batches": torch.tensor(7)},
        "training": {"optimizer.0.step": torch.tensor(value), "meter.images": torch.zeros(5)},
    }


def save(folder: RunFolder, step: int) -> str:
    return save_checkpoint(folder, step, groups(float(step)), {"step": step, "history": [{"val_acc": None}]})


def load(folder: RunFolder) -> Checkpoint | None:
    return load_checkpoint(folder, restore=lambda checkpoint: None)


def loaded_step(folder: RunFolder) -> int:
    """Which checkpoint is read, after checking that its tensors and numbers belong together."""
    checkpoint = load(folder)
    assert checkpoint is not None
    step = checkpoint.numbers["step"]
    assert checkpoint.name == f"step-{step:08d}"
    assert torch.equal(checkpoint.tensors["model"]["fc.weight"], torch.full((3, 4), float(step)))
    return int(step)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_round_trip(folder):
    assert save(folder, 98) == "step-00000098"
    checkpoint = load(folder)
    assert checkpoint.name == "step-00000098"
    assert checkpoint.numbers["step"] == 98
    assert checkpoint.numbers["history"] == [{"val_acc": None}]
    assert checkpoint.tensors.keys() == {"model", "training"}
    for group, tensors in groups(98.0).items():
        assert checkpoint.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.tensors[group][name], tensor)
            assert checkpoint.tensors[group][name].dtype == tensor.dtype


def test_none_where_none_was_written(folder):
    assert load(folder) is None
    folder.checkpoints.rmdir()
    assert load(folder) is None


def test_the_files_and_the_pointer(folder):
    save(folder, 98)
    path = folder.checkpoints / "step-00000098"
    assert names(folder) == ["last.json", "step-00000098"]
    assert json.loads((folder.checkpoints / "last.json").read_text()) == {"checkpoint": "step-00000098"}
    sums = json.loads((path / "state.json").read_text())["sha256"]
    assert sums == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("*.safetensors")
    }
    assert len(sums) == 2


def test_the_newest_is_read_and_the_last_two_are_kept(folder):
    for step in (3, 98, 196, 1000):
        save(folder, step)
        assert loaded_step(folder) == step
    assert names(folder) == ["last.json", "step-00000196", "step-00001000"]
    assert json.loads((folder.checkpoints / "last.json").read_text()) == {"checkpoint": "step-00001000"}


def test_a_step_may_be_saved_again(folder):
    save_checkpoint(folder, 5, groups(1.0), {"step": 1})
    save(folder, 5)
    assert loaded_step(folder) == 5


# Damage.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


DAMAGE = {
    "model truncated": ("model.safetensors", truncate),
    "model bit": ("model.safetensors", flip_a_bit),
    "model empty": ("model.safetensors", empty),
    "model missing": ("model.safetensors", remove),
    "training bit": ("training.safetensors", flip_a_bit),
    "training missing": ("training.safetensors", remove),
    "state truncated": ("state.json", truncate),
    "state empty": ("state.json", empty),
    "state missing": ("state.json", remove),
    "foreign list": ("state.json", write("[1, 2]")),
    "foreign text": ("state.json", write('"hello"')),
    "foreign object": ("state.json", write('{"name": "something else"}')),
    "odd checksums": ("state.json", write('{"format": 1, "sha256": ["model.safetensors"]}')),
    "later format": ("state.json", write('{"format": 2, "sha256": {}}')),
    "not text": ("state.json", lambda path: path.write_bytes(b"\xff\xfe{}")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_is_read_where_the_last_is_damaged(folder, damage):
    save(folder, 98)
    save(folder, 196)
    file, harm = DAMAGE[damage]
    harm(folder.checkpoints / "step-00000196" / file)
    with pytest.warns(VelodromeWarning, match=r"step-00000196: .*Going on from step-00000098\.$"):
        assert loaded_step(folder) == 98


def test_one_that_is_another_runs_is_passed_over(folder):
    save(folder, 98)
    save(folder, 196)

    def restore(checkpoint: Checkpoint) -> None:
        if checkpoint.name == "step-00000196":
            raise RunError("it is another run's.", "Resume that.")

    with pytest.warns(VelodromeWarning, match=r"step-00000196: it is another run's"):
        checkpoint = load_checkpoint(folder, restore)
    assert checkpoint.name == "step-00000098"


def test_none_left_of_those_that_were_is_an_error(folder):
    folder.events.write_text(json.dumps(to_json(CheckpointSaved("step-00000098", 98))) + "\n")
    with pytest.raises(RunError, match=r"No checkpoint is left in .*there have been some"):
        load(folder)


def test_foreign_things_among_the_checkpoints_are_passed_over(folder):
    save(folder, 98)
    (folder.checkpoints / "step-00000200").mkdir()
    (folder.checkpoints / "step-notes.txt").write_text("mine")
    (folder.checkpoints / ".step-00000300.tmp").mkdir()
    with pytest.warns(VelodromeWarning, match="step-00000200"):
        assert loaded_step(folder) == 98


def test_a_checksum_cannot_lead_outside_the_checkpoint(folder, tmp_path):
    save(folder, 98)
    path = folder.checkpoints / "step-00000098"
    outside = tmp_path / "outside.safetensors"
    shutil.copy(path / "model.safetensors", outside)
    state = json.loads((path / "state.json").read_text())
    state["sha256"] = {str(outside): state["sha256"]["model.safetensors"]}
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(RunError):
        load(folder)


def test_all_damaged_is_an_error_that_names_each(folder):
    save(folder, 98)
    save(folder, 196)
    flip_a_bit(folder.checkpoints / "step-00000098" / "model.safetensors")
    remove(folder.checkpoints / "step-00000196" / "training.safetensors")
    with pytest.raises(RunError) as caught:
        load(folder)
    text = str(caught.value)
    assert "step-00000098: the checksum of model.safetensors does not match" in text
    assert "step-00000196: " in text
    assert "training.safetensors" in text
    assert "start a new run" in text


# Interrupted writes. A save brings seven things to the disk: three files, their folder, the renamed folder,
# the pointer and its folder; the checkpoint itself is whole after the fourth and in place before the fifth.


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_full_disk_leaves_the_checkpoint_before_it(folder, monkeypatch, failing):
    save(folder, 1)
    save(folder, 2)
    fsync, calls = os.fsync, []

    def fails_once(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails_once)
        with pytest.raises(RunError, match=r"cannot be written: No space left on device"):
            save(folder, 3)
    assert len(calls) >= failing
    assert loaded_step(folder) == (2 if failing <= 4 else 3)
    assert not [name for name in names(folder) if name.endswith(".tmp")]
    assert json.loads((folder.checkpoints / "last.json").read_text())["checkpoint"] in names(folder)
    save(folder, 4)
    assert loaded_step(folder) == 4


@pytest.mark.parametrize("method", ["mkdir", "rename", "open"])
def test_an_error_of_the_file_system_leaves_the_checkpoint_before_it(folder, monkeypatch, method):
    save(folder, 1)

    def fails(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, method, fails)
        with pytest.raises(RunError, match=r"step-00000002 cannot be written: Permission denied.*resume"):
            save(folder, 2)
    assert loaded_step(folder) == 1
    assert names(folder) == ["last.json", "step-00000001"]


def test_what_a_kill_left_behind_is_in_nobodys_way(folder):
    save(folder, 1)
    left = folder.checkpoints / ".step-00000002.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert loaded_step(folder) == 1
    save(folder, 2)
    assert loaded_step(folder) == 2
    assert not left.exists()


# Weights.


ABOUT = {"classes": ["cat", "naïve"], "mean": [0.1, 0.2, 0.3], "model": {"width": 8}}


def test_weights_and_what_is_said_about_them_come_back(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(path, groups(2.0)["model"], ABOUT)
    tensors, about = load_weights(path)
    assert about == ABOUT
    assert tensors.keys() == {"fc.weight", "norm.batches"}
    assert torch.equal(tensors["fc.weight"], torch.full((3, 4), 2.0))
    assert tensors["norm.batches"].dtype == torch.int64


def test_equal_weights_make_equal_bytes(tmp_path):
    one, other, different = (tmp_path / name for name in "abc")
    save_weights(one, groups(2.0)["model"], ABOUT)
    backwards = dict(reversed(groups(2.0)["model"].items()))
    save_weights(other, backwards, dict(reversed(ABOUT.items())))
    save_weights(different, groups(3.0)["model"], ABOUT)
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes() != different.read_bytes()


@pytest.mark.parametrize("harm", [truncate, empty, remove, write("not weights")])
def test_damaged_weights_are_refused(tmp_path, harm):
    path = tmp_path / "model.safetensors"
    save_weights(path, groups(2.0)["model"], ABOUT)
    harm(path)
    with pytest.raises(RunError, match=r"model\.safetensors cannot be read"):
        load_weights(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"velodrome": "not JSON"}])
def test_weights_of_another_program_are_refused(tmp_path, metadata):
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(groups(2.0)["model"], path, metadata)
    with pytest.raises(RunError, match="cannot be read"):
        load_weights(path)


def test_weights_that_cannot_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_weights(path, groups(2.0)["model"], ABOUT)

    def fails(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(RunError, match="No space left"):
            save_weights(path, groups(3.0)["model"], ABOUT)
    assert torch.equal(load_weights(path)[0]["fc.weight"], torch.full((3, 4), 2.0))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_after_going_back_behind_a_damaged_checkpoint_it_makes_room(folder):
    for step in (10, 20):
        save(folder, step)
    truncate(folder.checkpoints / "step-00000020" / "model.safetensors")
    with pytest.warns(VelodromeWarning, match="step-00000020"):
        assert loaded_step(folder) == 10
    save(folder, 12)
    assert names(folder) == ["last.json", "step-00000010", "step-00000012"]
    assert loaded_step(folder) == 12
