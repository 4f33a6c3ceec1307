"""Checkpoints: safetensors and JSON with checksums, no pickle; whole or not there at all.

A checkpoint is a folder `checkpoints/step-00000098/` with `model.safetensors`, `training.safetensors` and
`state.json`, which holds the sha256 of the other two. It is written under a temporary name, brought to the
disk and renamed; then the pointer `checkpoints/last.json`, for readers outside, moves to it. The one before
it is kept, for the day the last cannot be read. Beside the state of the training, `state.json` names the
`seed`, the number of `threads`, the `torch` version and the `cpu`, on which the last bits depend.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from velodrome.errors import RunError, VelodromeWarning
from velodrome.run.folder import RunFolder, sync_folder, write_atomically, write_json

FORMAT = 2
KEEP = 2
NAME = re.compile(r"step-\d{8}")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was read back: groups of tensors by name, all other values, and the name of the checkpoint."""

    name: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    numbers: Mapping[str, Any]


def save_checkpoint(
    folder: RunFolder, step: int, tensors: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, object]
) -> str:
    """Write a checkpoint and move the pointer to it; returns its name.

    Args:
        folder: of the run.
        step: complete steps; names the checkpoint.
        tensors: groups of contiguous CPU tensors; each group becomes one file.
        numbers: JSON values.

    Raises:
        RunError: it cannot be written; the checkpoint before it is still good.
    """
    name = f"step-{step:08d}"
    goal = folder.checkpoints / name
    temporary = folder.checkpoints / f".{name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        checksums = {
            f"{group}.safetensors": _write(
                temporary / f"{group}.safetensors", safetensors.torch.save(dict(members))
            )
            for group, members in tensors.items()
        }
        state = {"format": FORMAT, "sha256": checksums, **numbers}
        state["sha256_of_state"] = _checksum_of(state)
        _write(temporary / "state.json", json.dumps(state, allow_nan=False).encode())
        sync_folder(temporary)
        shutil.rmtree(goal, ignore_errors=True)
        temporary.rename(goal)
        sync_folder(folder.checkpoints)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"Checkpoint {goal} cannot be written: {error.strerror or error}.",
            f"Free some space or mend the permissions, then: velodrome resume {folder.path}",
        ) from error
    write_json(folder.checkpoints / "last.json", {"checkpoint": name})
    _clear_away(folder, name)
    return name


def _clear_away(folder: RunFolder, name: str) -> None:
    """Remove all checkpoints but `name` and those before it that are kept.

    One that is newer than `name` could not be read, or training would not have gone back behind it.
    """
    newest_first = _newest_first(folder)
    kept = [path for path in newest_first if path.name <= name][:KEEP]
    leftovers = folder.checkpoints.glob(".step-*.tmp")  # of a write that was killed
    for path in [*newest_first, *leftovers]:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(folder: RunFolder, restore: Callable[[Checkpoint], None]) -> Checkpoint | None:
    """Restore the newest checkpoint that is whole and fits, and return it; None where none was ever written.

    Warns (VelodromeWarning) where it is not the newest of all.

    Args:
        folder: of the run.
        restore: makes the checkpoint the state of the run; raises RunError where it is another run's.

    Raises:
        RunError: there are checkpoints, but all are damaged, and says what is wrong with each; or there are
            none any more, although the log tells of some.
    """
    remedy = "Restore the folder from a copy, or start a new run."
    problems = []
    for path in _newest_first(folder):
        try:
            checkpoint = _read(path)
            restore(checkpoint)
        except RunError as error:
            problems.append(f"{path.name}: {error.problem.rstrip('.')}")
            continue
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            problems.append(f"{path.name}: {error}")
            continue
        if problems:
            message = f"A checkpoint cannot be read ({'; '.join(problems)}). Going on from {path.name}."
            warnings.warn(message, VelodromeWarning, stacklevel=2)
        return checkpoint
    if problems:
        problem = f"No checkpoint in {folder.checkpoints} can be read ({'; '.join(problems)})."
        raise RunError(problem, remedy)
    if had_checkpoints(folder):
        problem = f"No checkpoint is left in {folder.checkpoints}, but there have been some."
        raise RunError(problem, remedy)
    return None


def had_checkpoints(folder: RunFolder) -> bool:
    """Whether a checkpoint was ever written; before the first, a run may as well start again.

    An epoch gets into history.csv only after its checkpoint.
    """
    announced = any(event.get("event") == "CheckpointSaved" for event in folder.read_events())
    return announced or (folder.checkpoints / "last.json").exists() or bool(folder.read_history())


def save_weights(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
    """Write final weights with one metadata key "velodrome" that holds `about` and a checksum as JSON.

    The same weights and the same `about` give the same bytes.

    Args:
        path: of the file.
        tensors: contiguous CPU tensors by name.
        about: JSON values: what is needed to use the weights; nothing that differs between equal runs.

    Raises:
        RunError: the file cannot be written.
    """
    sealed = {**about, "sha256": _checksum_of_weights(tensors, about)}
    metadata = {"velodrome": json.dumps(sealed, sort_keys=True, ensure_ascii=False)}
    write_atomically(path, safetensors.torch.save(dict(tensors), metadata))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a weights file, and what was written about them.

    Raises:
        RunError: the file is missing, damaged or not one of ours.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["velodrome"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if about.pop("sha256", None) != _checksum_of_weights(tensors, about):
            raise ValueError("the checksum does not match")
        return tensors, about
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            f"Weights {path} cannot be read: {error}.", "Give a run that has finished, or restore the file."
        ) from error


def _checksum_of_weights(tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> str:
    sums = {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
    kinds = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([sums, kinds, about], sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> str:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _newest_first(folder: RunFolder) -> list[Path]:
    """The folders of all checkpoints.

    Raises:
        RunError: one may not look.
    """
    try:
        there = list(folder.checkpoints.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        problem = f"The checkpoints in {folder.checkpoints} cannot be read: {error.strerror or error}."
        raise RunError(problem, "Mend the permissions, then try again.") from error
    checkpoints = [path for path in there if NAME.fullmatch(path.name)]
    return sorted(checkpoints, key=lambda path: path.name, reverse=True)


def _checksum_of(state: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not isinstance(state.get("sha256"), dict):
        raise ValueError("its state.json is not that of a checkpoint")
    if state.get("format") != FORMAT:
        raise ValueError(f"its format is {state.get('format')!r}, but this version reads {FORMAT}")
    if state.pop("sha256_of_state", None) != _checksum_of(state):
        raise ValueError("the checksum of state.json does not match")
    tensors = {}
    for file, expected in state["sha256"].items():
        data = (path / Path(file).name).read_bytes()
        if hashlib.sha256(data).hexdigest() != expected:
            raise ValueError(f"the checksum of {file} does not match")
        tensors[file.removesuffix(".safetensors")] = safetensors.torch.load(data)
    return Checkpoint(path.name, tensors, state)
