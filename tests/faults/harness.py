"""What the fault tests share: small runs, in processes of their own or in this one, and what must hold."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from forked import Forked

from velodrome import cli
from velodrome.run.folder import HISTORY_COLUMNS

# A run in a process of its own: 4 steps an epoch, and a checkpoint after every step.
EPOCHS = 12
LAST_STEP = 4 * EPOCHS
FLAGS = (
    *("--data", "shapes", "--limit-train", "200", "--limit-test", "60", "--batch-size", "64"),
    *("--width", "4", "--precision", "fp32", "--lr", "0.05", "--dropout", "0.1"),
    *("--epochs", str(EPOCHS), "--checkpoint-every", "0.0001", "--quiet"),
)
# A run in this process: 2 steps an epoch, and a checkpoint after every step.
TINY = (
    *("--data", "shapes", "--limit-train", "64", "--limit-test", "20", "--batch-size", "32"),
    *("--width", "2", "--precision", "fp32", "--lr", "0.05", "--dropout", "0.1"),
    *("--epochs", "3", "--checkpoint-every", "1e-9", "--quiet"),
)
# After either: checkpoints at the ends of epochs only, so the first comes after the first row of history.csv.
NO_CHECKPOINT_IN_MID_EPOCH = ("--checkpoint-every", "60")
# With more than one thread these runs take longer, the more so where cores are busy.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
DEADLINE_S = 300.0
# How often a process is looked at: a checkpoint takes about 10 ms to write.
GLANCE_S = 0.001


# Processes.

Process = subprocess.Popen[str] | Forked


def start(*words: str, cwd: Path, errors: Path | None = None, **options: Any) -> Process:
    """`velodrome words`, with its stderr in a file, so that no pipe ever holds it up.

    With options for `subprocess.Popen` it is a process that is started from nothing, else a quick one.
    """
    errors = errors or cwd / "errors.txt"
    environment = {**os.environ, **ENVIRONMENT, **options.pop("env", {})}
    if environment == {**os.environ, **ENVIRONMENT} and not options:
        return Forked(words, cwd, errors, environment)
    with errors.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "velodrome", *words],
            cwd=cwd,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=file,
            text=True,
            **options,
        )


def command(*words: str, cwd: Path, **options: Any) -> tuple[int, str]:
    """Exit code and stderr of `python -m velodrome words`."""
    errors = cwd / "errors-of-command.txt"
    process = start(*words, cwd=cwd, errors=errors, **options)
    try:
        code = process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    return code, errors.read_text()


def until(process: Process, condition: Callable[[], bool]) -> bool:
    """Wait for something while a process runs; False where the process ends first."""
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < deadline, "the process hangs"
        time.sleep(GLANCE_S)
    return False


def until_it_stands_still(process: Process) -> None:
    """Wait until a process that was sent SIGSTOP has stopped."""
    state = ("ps", "-o", "state=", "-p", str(process.pid))
    assert until(
        process, lambda: subprocess.run(state, capture_output=True, text=True, check=False).stdout[:1] == "T"
    )


def until_step(process: Process, run: Path, step: int) -> None:
    """Wait until the run has announced a checkpoint of at least that step."""
    reached = until(process, lambda: max(announced(run), default=0) >= step)
    assert reached, f"the process ended with {process.returncode} before step {step}"


# This process.


def here(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and stderr of a command that is run in this process, within seconds."""
    capsys.readouterr()
    with _within(60):
        code = cli.main(words)
    return code, capsys.readouterr().err


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError(f"it hangs: nothing came of it for {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class DiedError(BaseException):
    """The end of a process: whatever it does to the file system from then on does not happen."""


class Operations:
    """What this process does to the file system, counted; one of them, and those after it, go wrong.

    Counts the making, syncing, renaming and removal of files and folders, in the order in which they happen.

    Args:
        folder: what happens outside of it does not count.
        going_wrong: number of the first operation that goes wrong, None for none.
        kind: "death", as by SIGKILL, or "full", where nothing more can be written but files can be removed.
    """

    WRITING = ("open", "fsync", "mkdir")

    def __init__(self, folder: Path, going_wrong: int | None = None, kind: str = "death") -> None:
        self.folder = str(folder)
        self.going_wrong, self.kind = going_wrong, kind
        self.done: list[str] = []
        # What to do, once, after something of this name was renamed.
        self.after: tuple[str, Callable[[], None]] | None = None
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Operations:
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "remove", "rmdir"):
            self._patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        self._patch.setattr(io, "open", self._wrapped("open", io.open))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _wrapped(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **keywords: Any) -> Any:
            if not self._counts(name, *args, **keywords):
                return operation(*args, **keywords)
            self.done.append(f"{name} {args[0]}")
            if self.going_wrong is not None and len(self.done) > self.going_wrong:
                self._go_wrong(name, *args)
            value = operation(*args, **keywords)
            if name == "rename" and self.after and str(args[1]).endswith(self.after[0]):
                self.after[1]()
            return value

        return wrapped

    def _counts(self, name: str, subject: object, mode: object = "r", *_: object, **__: object) -> bool:
        if name == "open" and (isinstance(subject, int) or not set(str(mode)) & set("wax+")):
            return False
        # Others than we make folders too, as torch does where it compiles; rmtree gives names only.
        return not str(subject).startswith(os.sep) or str(subject).startswith(self.folder)

    def _go_wrong(self, name: str, subject: object, *_: object) -> None:
        if self.kind == "full":
            if name in self.WRITING:
                raise OSError(28, "No space left on device", str(subject))
            return
        # A kill while a file is written leaves a part of it; the next operation stands for the whole.
        if name == "fsync" and isinstance(subject, int) and len(self.done) == self.going_wrong + 1:
            status = os.fstat(subject)
            if stat.S_ISREG(status.st_mode):
                os.ftruncate(subject, status.st_size // 2)
        raise DiedError


# What must hold.


def weights_of(run: Path) -> bytes:
    """The bytes of the final weights, a function of the settings alone."""
    return (run / "model.safetensors").read_bytes()


def learned(run: Path) -> list[list[str]]:
    """The columns of history.csv that do not depend on how fast the machine was."""
    columns = [column for column in HISTORY_COLUMNS if column not in ("time_s", "images_per_s")]
    return [[row[column] for column in columns] for row in history_of(run)]


def history_of(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events_of(run: Path) -> list[dict[str, Any]]:
    """The whole lines of events.jsonl; a kill may have torn the last one."""
    path = run / "events.jsonl"
    *lines, _torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [json.loads(line) for line in lines]


def announced(run: Path) -> list[int]:
    """The steps of the checkpoints that the run has announced, in this order."""
    return [event["step"] for event in events_of(run) if event["event"] == "CheckpointSaved"]


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoint folders, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder: the bytes of files, None for folders.

    A lock file is no content, nor is what a kill left half written.
    """
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock" and ".tmp" not in str(path.relative_to(folder))
    }


def check_is_whole(run: Path) -> None:
    """Every file of a run folder, finished or not, can be read; only a last event may be torn."""
    assert isinstance(yaml.safe_load((run / "config.yaml").read_text()), dict)
    for path in (run / "environment.json", run / "summary.json", *run.glob("result.json")):
        assert isinstance(json.loads(path.read_text()), dict)
    if (run / "history.csv").exists():
        epochs = [int(row["epoch"]) for row in history_of(run)]
        assert epochs == list(range(1, len(epochs) + 1))
        assert all(float(row["train_loss"]) > 0 for row in history_of(run))
    check_log(run)
    # A kill while an old one was removed leaves a part of that; the last two are the ones that count.
    for checkpoint in checkpoints_of(run)[-2:]:
        sums = json.loads((checkpoint / "state.json").read_text())["sha256"]
        assert sums == {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in checkpoint.glob("*.safetensors")
        }
    pointer = run / "checkpoints" / "last.json"
    if pointer.exists():
        assert (run / "checkpoints" / json.loads(pointer.read_text())["checkpoint"] / "state.json").exists()


def check_log(run: Path) -> None:
    """Training never goes back behind a checkpoint that was announced."""
    furthest = 0
    for event in events_of(run):
        if event["event"] in ("RunStarted", "CheckpointSaved"):
            assert event["step"] >= furthest, f"{event} after a checkpoint of step {furthest}"
            furthest = event["step"]


def check_is_complete(run: Path, whole: Path) -> None:
    """A run is complete, and it is the one that was never molested."""
    check_is_whole(run)
    assert weights_of(run) == weights_of(whole)
    assert learned(run) == learned(whole)
    assert (run / "report.html").read_text().rstrip().endswith("</html>")
    result, expected = (json.loads((folder / "result.json").read_text()) for folder in (run, whole))
    for timing in ("prepare_seconds", "train_seconds", "predict_seconds", "images_per_s"):
        assert result.pop(timing) > 0
        del expected[timing]
    assert result == expected


def check_is_one_clear_line(code: int, errors: str, *names: str) -> None:
    """Bad input or part of the work: one line that names the thing (by one of `names`) and has a remedy."""
    assert code in (1, 2), f"exit code {code}: {errors}"
    assert errors.startswith("velodrome: "), errors
    assert errors.count("\n") == 1, errors
    assert errors.endswith("\n"), errors
    assert any(name in errors for name in names), f"none of {names} in: {errors}"
    # An error is a sentence on what is wrong and a sentence on what to do.
    assert ". " in errors.rstrip(), f"no remedy in: {errors}"


def check_leaves_nothing(runs: Path) -> None:
    """Where nothing was to be written, nothing is there."""
    assert not runs.exists() or list(runs.iterdir()) == []
