"""The run folder: the only place that knows which file is called what. Never imports torch."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from velodrome.errors import ConfigError, RunError

CHOOSE_ANOTHER = "Choose a folder that you may write to with --runs-dir."
HISTORY_COLUMNS = (
    "epoch",
    "time_s",
    "lr",
    "train_loss",
    "train_acc",
    "val_loss",
    "val_acc",
    "test_loss",
    "test_acc",
    "images_per_s",
)


class RunFolder:
    """A run folder and the names of the files in it.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.history = path / "history.csv"
        self.events = path / "events.jsonl"
        self.lock = path / ".lock"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model.safetensors"
        self.summary = path / "summary.json"
        self.lr_find = path / "lr_find.json"
        self.lr_find_figure = path / "lr_find.png"
        self.lr_schedule_figure = path / "lr_schedule.png"
        self.data_check = path / "data_check.json"  # of own images
        self.contact_sheet = path / "contact_sheet.png"
        self.predictions = path / "predictions.csv"
        self.probabilities = path / "probabilities.npy"
        self.evaluation = path / "evaluation.json"
        self.evaluations = path / "evaluations"  # on other data: a folder each
        self.label_errors = path / "label_errors.csv"
        self.gallery = path / "gallery"
        self.samples = self.gallery / "samples.json"
        self.samples_image = self.gallery / "samples.webp"
        self.augmented_image = self.gallery / "augmented.webp"
        self.mistakes = self.gallery / "mistakes.json"
        self.mistakes_image = self.gallery / "mistakes.webp"
        self.maps = self.gallery / "maps.npy"
        self.diagnosis = path / "diagnosis.json"
        self.result = path / "result.json"
        self.report = path / "report.html"

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.path.name

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete: result.json is written last."""
        return self.result.exists()

    def open_again(self) -> None:
        """Take back that the run is complete, with its answers, and remove what a kill left half written.

        Raises:
            RunError: the folder cannot be written.
        """
        with writing(self.path):
            self.result.unlink(missing_ok=True)
            # First what tells of the others, so that at no moment something tells of what is not there.
            for answers in (self.mistakes, self.evaluation, self.predictions, self.probabilities):
                answers.unlink(missing_ok=True)
            for place in (self.path, self.checkpoints, self.gallery):
                for left in place.glob(".*.tmp"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def recorded_environment(self) -> dict[str, Any]:
        """What environment.json says about the start of the run; nothing where it is damaged or missing."""
        try:
            return self.read_json(self.environment) or {}
        except RunError:
            return {}

    def read_history(self) -> list[dict[str, float | None]]:
        """The rows of history.csv, one an epoch; None where a cell is empty. No rows without the file.

        Raises:
            RunError: the file is damaged.
        """
        if not self.history.exists():
            return []
        try:
            with self.history.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            return [{key: float(row[key]) if row[key] else None for key in HISTORY_COLUMNS} for row in rows]
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise _damaged(self.history, error) from error

    def read_events(self) -> list[dict[str, Any]]:
        """The events so far, oldest first. Damaged lines are left out: a log is no reason to lose a run.

        Raises:
            RunError: the file cannot be read.
        """
        if not self.events.exists():
            return []
        try:
            text = self.events.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise _damaged(self.events, error) from error
        # Not splitlines(): names may contain characters that it takes for line ends.
        return [event for event in map(_json_object, text.split("\n")) if event is not None]

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """The JSON object in one of the folder's files, None where the file is missing.

        Raises:
            RunError: the file is damaged.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if not isinstance(value, dict):
            raise _damaged(path, ValueError("it is not a JSON object"))
        return value


class TrialsFolder:
    """A folder of trials and the names of the files in it; a run folder for each trial lies there too.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "trials.json"
        self.table = path / "trials.csv"
        self.page = path / "trials.html"


def last_start(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """How training began or last went on, with the length that it has by now; empty where nothing is told."""
    replanned: dict[str, Any] = {}
    for event in reversed(events):
        if event.get("event") == "Replanned" and not replanned:
            replanned = {key: event.get(key) for key in ("steps", "epochs")}
        if event.get("event") == "RunStarted":
            return {**event, **replanned}
    return {}


def epochs_told(events: Sequence[Mapping[str, Any]]) -> dict[float | None, Mapping[str, Any]]:
    """The EpochDone of each epoch. After a resume the log tells of some twice; the later telling counts."""
    return {number(event.get("epoch")): event for event in events if event.get("event") == "EpochDone"}


def number(value: object) -> float | None:
    """A value that was read from a file as a finite number, None where it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def create_run(runs_dir: Path, name: str | None, recipe: str, fill: Callable[[RunFolder], None]) -> RunFolder:
    """Make a run folder: `runs_dir/name`, or the recipe and the next free number.

    It is filled under a temporary name and then renamed, so a run folder is there whole or not at all.

    Args:
        runs_dir: made where it is missing.
        name: of the run, None for a number.
        recipe: first part of a numbered name.
        fill: writes what a run folder must hold from its first moment.

    Raises:
        RunError: the name is taken, or the folder cannot be made.
    """
    with _clear_errors(runs_dir, CHOOSE_ANOTHER):
        check_name_is_free(runs_dir, name)
        runs_dir.mkdir(parents=True, exist_ok=True)
        draft = runs_dir / f".{recipe}.{uuid.uuid4().hex[:8]}.tmp"
        draft.mkdir()
        try:
            fill(RunFolder(draft))
            for path in [runs_dir / name] if name else _numbered(runs_dir, recipe):
                try:
                    draft.rename(path)
                    return RunFolder(path)
                except OSError as error:
                    # Of two processes that want the same name, one finds it taken.
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        raise _name_taken(runs_dir / str(name))


def find_begun(runs_dir: Path, name: str | None, record: str, mismatch: str) -> Path | None:
    """The folder of that name that a command of several runs began; None where there is nothing of that name.

    Args:
        runs_dir: folder of run folders.
        name: None finds nothing.
        record: name of the file by which it is known.
        mismatch: what is to be said of a folder without it, such as "is not a bench".

    Raises:
        ConfigError: something else has that name.
    """
    if name is None or not os.path.lexists(runs_dir / name):
        return None
    path = runs_dir / name
    if not (path / record).is_file():
        raise ConfigError(f"{path} exists, but {mismatch}: it has no {record}.", "Use another --name.")
    return path


def next_run_folder(runs_dir: Path, name: str | None, recipe: str) -> Path:
    """The folder that `create_run` would make now."""
    return runs_dir / name if name else next(_numbered(runs_dir, recipe))


def free_gib(path: Path) -> float:
    """Free disk space in GiB where `path` is, or would be."""
    return shutil.disk_usage(_nearest_existing(path)).free / 2**30


def check_name_is_free(runs_dir: Path, name: str | None) -> None:
    """Check that no run of that name exists.

    Raises:
        RunError: one does, or the folder cannot be looked into.
    """
    with _clear_errors(runs_dir, CHOOSE_ANOTHER):
        if name is not None and os.path.lexists(runs_dir / name):  # a link to nowhere has the name too
            raise _name_taken(runs_dir / name)


def _name_taken(path: Path) -> RunError:
    return RunError(
        f"Run {path} exists already.",
        f"Choose another --name, or go on with it: velodrome resume {shlex.quote(str(path))}",
    )


def check_can_write(runs_dir: Path) -> None:
    """Check that run folders can be made there, and leave nothing behind.

    Raises:
        RunError: they cannot.
    """
    with _clear_errors(runs_dir, CHOOSE_ANOTHER):
        nearest = _nearest_existing(runs_dir)
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "permission denied")


def _nearest_existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    return next(parent for parent in [path, *path.absolute().parents] if parent.exists())


def open_run(path: Path) -> RunFolder:
    """An existing run folder.

    Raises:
        RunError: there is none at `path`, or it cannot be looked into.
    """
    folder, remedy = RunFolder(path), "Give the path of a run folder, for instance runs/quick-1."
    try:
        if not path.is_dir():
            raise RunError(f"Run {path} does not exist.", remedy)
        if not folder.config.exists():
            raise RunError(f"{path} is not a run folder: it has no config.yaml.", remedy)
    except OSError as error:
        raise RunError(f"Run {path} cannot be read: {error.strerror or error}.", remedy) from error
    return folder


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write `path` into a RunError that says what to do."""
    with _clear_errors(path, "Free some space or mend the permissions, then try again."):
        yield


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that at any moment it is either the old one or the new one, whole.

    Raises:
        RunError: it cannot be written; what was there before is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically.

    Raises:
        RunError: it cannot be written.
    """
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(path: Path) -> None:
    """Make renames in a folder last through a power cut, where the system allows it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _clear_errors(path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}.", remedy) from error


def _numbered(runs_dir: Path, recipe: str) -> Iterator[Path]:
    """runs_dir/recipe-N from one past the highest N there."""
    taken = [path.name.removeprefix(f"{recipe}-") for path in runs_dir.glob(f"{recipe}-*")]
    number = max((int(rest) for rest in taken if rest.isdecimal()), default=0)
    while True:
        number += 1
        yield runs_dir / f"{recipe}-{number}"


def _json_object(line: str) -> dict[str, Any] | None:
    """The JSON object in a line, None where it holds no such thing."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path} is damaged: {error}.", "Restore it from a copy, or make the run again.")
