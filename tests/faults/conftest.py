"""Runs for the fault tests to harm: whole ones to compare with, and copies to break."""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import pytest

from velodrome import cli
from velodrome.device import threads


@pytest.fixture(autouse=True, scope="module")
def quick_here() -> Iterator[None]:
    """Many small runs in this process: one thread is the fastest."""
    with threads(1):
        yield


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what has nothing to do with a power cut: an fsync takes milliseconds, and a small run has many."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def going_wrong(pytestconfig: pytest.Config) -> Callable[[int, int], range]:
    """A function that says which of so many operations on the file system are to go wrong, one at a time.

    Every so many-th, from anywhere among the first: over the files all kinds of operations have their turn,
    if not as many write one file, and over some runs of the tests all of them; all with --every-operation.
    """
    thorough = pytestconfig.getoption("every_operation")

    def numbers(count: int, every: int) -> range:
        return range(count) if thorough else range(secrets.randbelow(every), count, every)

    return numbers


@pytest.fixture(scope="session")
def start_s() -> list[float]:
    """How long a process takes to start training, in seconds: one number, once `whole` was made."""
    return []


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, start_s: list[float]) -> Path:
    """A run in a process of its own that nobody molested."""
    place = tmp_path_factory.mktemp("whole")
    run = place / "runs" / "whole"
    began_s = time.monotonic()
    process = harness.start("train", *harness.FLAGS, "--name", "whole", cwd=place)
    harness.until(process, (run / "events.jsonl").exists)
    start_s.append(time.monotonic() - began_s)
    assert process.wait(harness.DEADLINE_S) == 0, (place / "errors.txt").read_text()
    assert max(harness.announced(run)) == harness.LAST_STEP
    return run


@pytest.fixture(scope="module")
def _tiny(quick_here: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished and an interrupted run in this process."""
    runs = tmp_path_factory.mktemp("tiny") / "runs"
    with harness.Operations(runs) as operations:
        assert cli.main(["train", *harness.TINY, "--runs-dir", str(runs), "--name", "finished"]) == 0
    fifth = next(n for n, what in enumerate(operations.done) if what.endswith(".step-00000005.tmp"))
    with harness.Operations(runs, fifth + 1), pytest.raises(harness.DiedError):
        cli.main(["train", *harness.TINY, "--runs-dir", str(runs), "--name", "interrupted"])
    assert [path.name for path in harness.checkpoints_of(runs / "interrupted")] == [
        "step-00000003",
        "step-00000004",
    ]
    return runs / "finished", runs / "interrupted"


@pytest.fixture(scope="module")
def tiny_whole(_tiny: tuple[Path, Path]) -> Path:
    """A finished tiny run; not to be changed."""
    return _tiny[0]


@pytest.fixture
def finished(_tiny: tuple[Path, Path], tmp_path: Path) -> Path:
    """A finished tiny run, to be harmed."""
    return Path(shutil.copytree(_tiny[0], tmp_path / "runs" / "finished"))


@pytest.fixture
def interrupted(_tiny: tuple[Path, Path], tmp_path: Path) -> Path:
    """A tiny run that died while it wrote the checkpoint of step 5 of 6, to be harmed."""
    return Path(shutil.copytree(_tiny[1], tmp_path / "runs" / "interrupted"))


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function that runs a command in this process and returns its exit code and its stderr."""
    return functools.partial(harness.here, capsys)
