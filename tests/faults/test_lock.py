"""Two processes want one run folder: one has it, the other says so and changes nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import (
    DEADLINE_S,
    FLAGS,
    TINY,
    Process,
    announced,
    check_is_complete,
    check_is_one_clear_line,
    check_is_whole,
    command,
    events_of,
    snapshot,
    start,
    until_it_stands_still,
    until_step,
)

import velodrome as vd
from velodrome import session
from velodrome.run.folder import RunFolder

RunHere = Callable[..., tuple[int, str]]

IN_USE = "in use by another process"


@contextlib.contextmanager
def training(place: Path, *words: str) -> Iterator[Process]:
    """A process that is ended with the block, if it has not ended by itself."""
    process = start(*words, cwd=place, errors=place / "errors-of-the-first.txt")
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def standing_still(process: Process) -> Iterator[None]:
    """So that what changes meanwhile was changed by somebody else, and it cannot end too early."""
    os.kill(process.pid, signal.SIGSTOP)
    until_it_stands_still(process)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)  # unless it has ended meanwhile


def test_a_second_process_is_refused_while_the_first_trains_on_undisturbed(
    tmp_path: Path, whole: Path, run_here: RunHere
) -> None:
    run, copy = tmp_path / "runs" / "run", tmp_path / "copy"
    with training(tmp_path, "train", *FLAGS, "--name", "run") as first:
        until_step(first, run, 8)
        with standing_still(first):
            before = snapshot(run)
            code, errors = command("resume", "runs/run", cwd=tmp_path)
            check_is_one_clear_line(code, errors, "runs/run")
            assert code == 2
            assert IN_USE in errors
            code, errors = run_here("resume", str(run), "--epochs", "30")
            assert (code, IN_USE in errors) == (2, True)
            assert run_here("report", str(run), "--output", str(tmp_path / "page.html")) == (0, "")
            assert snapshot(run) == before
            shutil.copytree(run, copy)
        assert first.wait(DEADLINE_S) == 0, (tmp_path / "errors-of-the-first.txt").read_text()
    check_is_complete(run, whole)
    assert len([event for event in events_of(run) if event["event"] == "RunStarted"]) == 1
    # A copy of a folder in use is not in use.
    check_is_whole(copy)
    assert run_here("resume", str(copy), "--quiet") == (0, "")
    check_is_complete(copy, whole)


def test_a_folder_whose_process_was_killed_is_free_at_once(
    tmp_path: Path, whole: Path, run_here: RunHere
) -> None:
    """The lock is the kernel's: what is left of it in the folder holds nobody up."""
    run = tmp_path / "runs" / "run"
    with training(tmp_path, "train", *FLAGS, "--name", "run") as first:
        until_step(first, run, 5)
        with standing_still(first):
            assert IN_USE in run_here("resume", str(run), "--quiet")[1]
            first.kill()
    with training(tmp_path, "resume", "runs/run", "--quiet") as second:
        until_step(second, run, max(announced(run)) + 5)
        with standing_still(second):
            assert IN_USE in run_here("resume", str(run), "--quiet")[1]
            second.kill()
            second.wait()
        assert run_here("resume", str(run), "--quiet") == (0, "")
    check_is_complete(run, whole)


def test_of_two_resumes_at_the_same_moment_one_trains(
    tmp_path: Path, interrupted: Path, tiny_whole: Path
) -> None:
    words = ("resume", "runs/interrupted")
    both = [start(*words, cwd=tmp_path, errors=tmp_path / f"errors-{number}.txt") for number in (1, 2)]
    try:
        codes = [process.wait(DEADLINE_S) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    errors = [(tmp_path / f"errors-{number}.txt").read_text() for number in (1, 2)]
    assert "Traceback" not in "".join(errors)
    refused = [IN_USE in said for said in errors]
    # On a busy machine the one may come only when the other is through.
    too_late = ["finished already" in said for said in errors]
    assert [refused[number] or too_late[number] for number in (0, 1)].count(True) == 1, errors
    for code, said, was_refused in zip(codes, errors, refused, strict=True):
        if was_refused:
            check_is_one_clear_line(code, said, "runs/interrupted")
        assert code == (2 if was_refused else 0)
    started = [event for event in events_of(interrupted) if event["event"] == "RunStarted"]
    assert len(started) == 2
    check_is_complete(interrupted, tiny_whole)


def test_of_two_runs_of_one_name_at_the_same_moment_one_is_made(tmp_path: Path, tiny_whole: Path) -> None:
    words = ("train", *TINY, "--name", "run")
    both = [start(*words, cwd=tmp_path, errors=tmp_path / f"errors-{number}.txt") for number in (1, 2)]
    try:
        codes = [process.wait(DEADLINE_S) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    errors = [(tmp_path / f"errors-{number}.txt").read_text() for number in (1, 2)]
    assert sorted(codes) == [0, 2], errors
    check_is_one_clear_line(2, errors[codes.index(2)], "runs/run")
    assert "exists already" in errors[codes.index(2)] or IN_USE in errors[codes.index(2)]
    assert errors[codes.index(0)] == ""
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    run = tmp_path / "runs" / "run"
    assert [event["event"] for event in events_of(run)].count("RunStarted") == 1
    check_is_complete(run, tiny_whole)


def test_a_resume_that_gets_the_folder_only_when_the_run_is_complete_leaves_it_alone(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It found the run unfinished, then the lock was given up: what it found has to be asked again."""
    locked, after = session.locked, {}

    @contextlib.contextmanager
    def first_another(folder: RunFolder) -> Iterator[None]:
        monkeypatch.setattr(session, "locked", locked)
        vd.resume(folder.path, progress=False)
        after.update(snapshot(folder.path))
        with locked(folder):
            yield

    monkeypatch.setattr(session, "locked", first_another)
    vd.resume(interrupted, progress=False)
    assert after["result.json"]
    assert snapshot(interrupted) == after


def test_a_lock_that_a_copy_brought_along_locks_nothing(
    interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    """Also not one with something in it."""
    (interrupted / ".lock").write_text("12345\n")
    assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    check_is_complete(interrupted, tiny_whole)


def test_a_lock_that_is_a_folder_is_one_clear_line(interrupted: Path, run_here: RunHere) -> None:
    (interrupted / ".lock").unlink(missing_ok=True)
    (interrupted / ".lock").mkdir()
    code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, str(interrupted))
    assert code == 2


def test_another_run_in_the_same_folder_for_runs_is_free(
    interrupted: Path, tmp_path: Path, run_here: RunHere
) -> None:
    with session.locked(RunFolder(interrupted)):
        code, errors = run_here("resume", str(interrupted), "--quiet")
        assert (code, IN_USE in errors) == (2, True)
        assert run_here("train", *TINY, "--runs-dir", str(tmp_path / "runs"), "--name", "other") == (0, "")
