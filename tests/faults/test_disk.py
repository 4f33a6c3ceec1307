"""A disk that is full, or may not be written or read: one clear line and, once mended, the same bytes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import (
    FLAGS,
    TINY,
    Operations,
    announced,
    check_is_complete,
    check_is_one_clear_line,
    check_is_whole,
    check_leaves_nothing,
    checkpoints_of,
    command,
    events_of,
    learned,
    snapshot,
    start,
    until_step,
    weights_of,
)

RunHere = Callable[..., tuple[int, str]]
GoingWrong = Callable[[int, int], range]

TRAIN = ("train", *TINY, "--name", "run")


def finish(run: Path, whole: Path, run_here: RunHere) -> None:
    """Once there is space, or permission: what was left is whole, and goes on to the same bytes."""
    if run.exists():
        check_is_whole(run)
        assert run_here("resume", str(run), "--quiet") == (0, "")
    else:
        check_leaves_nothing(run.parent)
        assert run_here(*TRAIN, "--runs-dir", str(run.parent)) == (0, "")
    check_is_complete(run, whole)


# A limit to the size of files: the kernel refuses to let one grow beyond it, as a full disk does.


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "code", "file"),
    [
        (0, 2, "config.yaml"),
        (100, 2, "config.yaml"),
        (2_000, 2, "summary.json"),
        (16_000, 1, "step-00000001"),
        (31_000, 1, "step-00000001"),
        (32_200, 1, "model.safetensors"),  # it has more to say of itself than the weights of a checkpoint
        (90_000, 1, "report.html"),  # the weights and 20 pictures fit, the page does not
    ],
)
def test_a_file_that_does_not_fit_on_the_disk_is_one_clear_line(
    size: int, code: int, file: str, tmp_path: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    with files_up_to(size):
        ended, errors = run_here(*TRAIN, "--runs-dir", str(tmp_path / "runs"))
    check_is_one_clear_line(ended, errors, file)
    assert ended == code
    assert "cannot be written" in errors
    # Exit code 2 says that nothing was written.
    assert (tmp_path / "runs" / "run").exists() == (code == 1)
    finish(tmp_path / "runs" / "run", tiny_whole, run_here)


def test_a_log_that_can_grow_no_further_is_one_clear_line(
    interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    log = interrupted / "events.jsonl"
    log.write_bytes(log.read_bytes() + b'{"event": "Note"}\n' * 10_000)
    with files_up_to(log.stat().st_size + 50):
        code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, "events.jsonl")
    assert code == 1
    finish(interrupted, tiny_whole, run_here)


def test_a_disk_that_is_full_from_an_operation_on_is_one_clear_line(
    tmp_path: Path, run_here: RunHere, going_wrong: GoingWrong, no_waiting_for_the_disk: None
) -> None:
    """Nothing more can be written from there on, but files can be removed and renamed."""
    train = (*TRAIN, "--epochs", "1")
    with Operations(tmp_path) as whole_life:
        assert run_here(*train, "--runs-dir", str(tmp_path / "runs"))[0] == 0
    whole = tmp_path / "runs" / "run"
    harm = []
    writing = [n for n, done in enumerate(whole_life.done) if done.startswith(Operations.WRITING)]
    for number in (writing[index] for index in going_wrong(len(writing), 4)):
        operation = whole_life.done[number]
        runs = tmp_path / f"runs-{number}"
        with Operations(tmp_path, number, "full"):
            code, errors = run_here(*train, "--runs-dir", str(runs))
        try:
            check_is_one_clear_line(code, errors, "runs")
            # Exit code 2 says that nothing was written.
            assert (runs / "run").exists() == (code == 1)
            if code == 1:
                check_is_whole(runs / "run")
                # What could not be finished would only take up space.
                assert [path.name for path in runs.rglob("*.tmp")] == []
                assert run_here("resume", str(runs / "run"), "--quiet") == (0, "")
                check_is_complete(runs / "run", whole)
            else:
                check_leaves_nothing(runs)
        except AssertionError as error:
            harm.append(f"full at operation {number}, {operation}: {error}")
        shutil.rmtree(runs, ignore_errors=True)
    assert not harm, "\n".join(harm)


def test_a_full_disk_stops_a_process_with_one_line(
    tmp_path: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    """The same with a process of its own: the weights of a checkpoint just fit, those at the end do not."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(weights_of(tiny_whole)) - 1, resource.RLIM_INFINITY))

    code, errors = command(*TRAIN, cwd=tmp_path, preexec_fn=limited)
    check_is_one_clear_line(code, errors, "runs/run/model.safetensors")
    assert code == 1
    run = tmp_path / "runs" / "run"
    assert max(announced(run)) == max(announced(tiny_whole))
    assert run_here("resume", str(run), "--quiet") == (0, "")
    check_is_complete(run, tiny_whole)


# A small disk, in memory.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder on a disk of its own, to be made larger or read-only; for who may mount."""
    place = tmp_path / "disk"
    place.mkdir()
    if mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", str(place)) != 0:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def mount(*words: str) -> int:
    if shutil.which("mount") is None:
        return -1
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode


def resize(disk: Path, size: str) -> None:
    assert mount("-o", f"remount,size={size}", str(disk)) == 0


@pytest.mark.parametrize(
    ("size", "code"),
    [
        ("8k", 2),  # not even the folder fits
        ("64k", 1),  # the folder does, a checkpoint does not
        ("130k", 1),  # one checkpoint
        ("200k", 1),  # two, but not a third beside them
        ("250k", 1),  # training ends, the report does not fit
    ],
)
def test_a_full_disk_costs_nothing_but_the_wait_for_a_larger_one(
    size: str, code: int, disk: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    resize(disk, size)
    ended, errors = run_here(*TRAIN, "--runs-dir", str(disk / "runs"))
    check_is_one_clear_line(ended, errors, str(disk))
    assert ended == code, errors
    assert "No space left" in errors
    run = disk / "runs" / "run"
    assert run.exists() == (code == 1)
    last = max(announced(run), default=0)
    # It stays full: as clear as before, and nothing is lost.
    if run.exists():
        ended, errors = run_here("resume", str(run), "--quiet")
        check_is_one_clear_line(ended, errors, str(disk))
    resize(disk, "4m")
    finish(run, tiny_whole, run_here)
    assert all(event["step"] >= last for event in events_of(run)[1:] if event["event"] == "RunStarted")


def test_a_disk_that_was_mounted_read_only_is_one_clear_line(
    disk: Path, interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    resize(disk, "4m")
    run = disk / "interrupted"
    shutil.copytree(interrupted, run)
    before = snapshot(disk)
    assert mount("-o", "remount,ro", str(disk)) == 0
    for words in (
        ("resume", str(run), "--quiet"),
        ("report", str(run)),
        (*TRAIN, "--runs-dir", str(disk / "runs")),
    ):
        code, errors = run_here(*words)
        check_is_one_clear_line(code, errors, str(disk))
        assert code == 2
    assert run_here("report", str(run), "--output", str(interrupted / "page.html")) == (0, "")
    assert mount("-o", "remount,rw", str(disk)) == 0
    assert snapshot(disk) == before
    finish(run, tiny_whole, run_here)


# Permissions. Those of files do not bind root, unless it gives up the right to pass them over.


CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
PR_CAPBSET_DROP = 24
LINUX_CAPABILITY_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextlib.contextmanager
def permissions_bind() -> Iterator[None]:
    """Within the block, this thread may do what the permissions of a file say, even where it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc, header, sets = (
        ctypes.CDLL(None, use_errno=True),
        _Header(LINUX_CAPABILITY_VERSION_3, 0),
        (_Sets * 2)(),
    )
    if libc.capget(ctypes.byref(header), sets) != 0:
        pytest.skip("root cannot give up its rights here")
    before = sets[0].effective
    sets[0].effective = before & ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    if libc.capset(ctypes.byref(header), sets) != 0:
        pytest.skip("root cannot give up its rights here")
    try:
        yield
    finally:
        sets[0].effective = before
        libc.capset(ctypes.byref(header), sets)


def give_up_rights() -> None:
    """For a process that is about to start, where permissions then bind even root."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for right in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            if libc.prctl(PR_CAPBSET_DROP, right, 0, 0, 0) != 0:
                os._exit(77)


@contextlib.contextmanager
def permissions(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.mark.parametrize("place", [".", "checkpoints"])
def test_a_folder_that_may_not_be_written_any_more_stops_a_run_with_one_line(
    place: str, tmp_path: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    run = tmp_path / "runs" / "run"
    with Operations(tmp_path) as operations, permissions_bind():
        operations.after = ("step-00000003", lambda: (run / place).chmod(0o500))
        code, errors = run_here(*TRAIN, "--runs-dir", str(run.parent))
    check_is_one_clear_line(code, errors, str(run))
    assert code == 1
    assert "ermission denied" in errors
    (run / place).chmod(0o755)
    assert max(announced(run)) >= 2
    finish(run, tiny_whole, run_here)


@pytest.mark.parametrize("place", [".", "checkpoints"])
def test_a_folder_that_may_not_be_written_is_not_resumed_and_not_changed(
    place: str, interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    before = snapshot(interrupted)
    with permissions(interrupted / place, 0o500), permissions_bind():
        code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, str(interrupted))
    assert "ermission denied" in errors
    if place == ".":
        assert code == 2
        assert snapshot(interrupted) == before
    finish(interrupted, tiny_whole, run_here)


def test_a_finished_run_that_may_not_be_written_is_as_good_as_any(finished: Path, run_here: RunHere) -> None:
    with permissions(finished, 0o500), permissions_bind():
        assert run_here("resume", str(finished), "--quiet") == (0, "")
        code, errors = run_here("report", str(finished))
    check_is_one_clear_line(code, errors, "report.html")


@pytest.mark.parametrize("place", ["", "model.safetensors", "state.json"])
def test_a_checkpoint_that_may_not_be_read_is_passed_over_and_used_once_it_may(
    place: str, interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    """The run goes on from the one before it, and says so; or it does not, and nothing is lost."""
    newest = checkpoints_of(interrupted)[-1]
    (newest / place).chmod(0)
    with permissions_bind():
        code, errors = run_here("resume", str(interrupted), "--quiet")
    assert "cannot be read" in errors
    assert newest.name in errors
    for path in (newest, newest / place):
        if path.exists():
            path.chmod(0o755)
    if code == 0:
        assert "step-00000003" in errors
        assert errors.count("\n") == 1
        assert weights_of(interrupted) == weights_of(tiny_whole)
        assert learned(interrupted) == learned(tiny_whole)
    else:
        # The line about the checkpoint, then the one about what did not work because of it.
        *_, last = errors.splitlines(keepends=True)
        check_is_one_clear_line(code, last, newest.name)
        assert run_here("resume", str(interrupted), "--quiet") == (0, "")
        assert weights_of(interrupted) == weights_of(tiny_whole)


def test_checkpoints_that_may_not_be_read_do_not_start_a_run_again(
    interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    with permissions(interrupted / "checkpoints", 0), permissions_bind():
        code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, "checkpoints")
    assert code == 2
    # They are all there: to start again, or to look for a copy, would be bad advice.
    assert "ermission" in errors
    finish(interrupted, tiny_whole, run_here)


def test_a_run_folder_that_may_not_be_looked_into_is_one_clear_line(
    interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    with permissions(interrupted, 0), permissions_bind():
        for words in (("resume", str(interrupted), "--quiet"), ("report", str(interrupted))):
            code, errors = run_here(*words)
            check_is_one_clear_line(code, errors, str(interrupted))
            assert code == 2
            assert "ermission denied" in errors
    finish(interrupted, tiny_whole, run_here)


def test_settings_that_may_not_be_read_are_one_clear_line(interrupted: Path, run_here: RunHere) -> None:
    with permissions(interrupted / "config.yaml", 0), permissions_bind():
        code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, "config.yaml")
    assert code == 2
    assert "ermission denied" in errors


def test_a_process_that_loses_the_right_to_write_ends_with_one_line_and_is_resumed(
    tmp_path: Path, whole: Path, run_here: RunHere
) -> None:
    run, errors = tmp_path / "runs" / "run", tmp_path / "errors"
    process = start("train", *FLAGS, "--name", "run", cwd=tmp_path, errors=errors, preexec_fn=give_up_rights)
    until_step(process, run, 10)
    with permissions(run, 0o500), permissions(run / "checkpoints", 0o500):
        code = process.wait(60)
        if code == 77:
            pytest.skip("root cannot give up its rights here")
        check_is_one_clear_line(code, errors.read_text(), "runs/run")
        assert code == 1
    assert run_here("resume", str(run), "--quiet") == (0, "")
    check_is_complete(run, whole)


def test_a_folder_for_runs_that_may_not_be_written_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with permissions(runs, 0o500):
        code, errors = command("train", *FLAGS, cwd=tmp_path, preexec_fn=give_up_rights)
    if code == 77:
        pytest.skip("root cannot give up its rights here")
    check_is_one_clear_line(code, errors, "runs")
    assert code == 2
    assert "--runs-dir" in errors
    assert list(runs.iterdir()) == []


# Links.


def test_a_link_to_nowhere_is_no_run(tmp_path: Path, run_here: RunHere) -> None:
    link = tmp_path / "runs" / "link"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    for words in (("resume", str(link)), ("report", str(link))):
        code, errors = run_here(*words)
        check_is_one_clear_line(code, errors, str(link))
        assert code == 2
    assert not (tmp_path / "nowhere").exists()


def test_a_run_cannot_take_the_name_of_a_link_to_nowhere(tmp_path: Path, run_here: RunHere) -> None:
    """Something has that name, and whoever made it wanted it to lead somewhere."""
    link = tmp_path / "runs" / "link"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "nowhere")
    code, errors = run_here("train", *TINY, "--runs-dir", str(link.parent), "--name", "link")
    check_is_one_clear_line(code, errors, str(link))
    assert code == 2
    assert link.is_symlink()
    assert list(link.parent.iterdir()) == [link]


def test_a_folder_for_runs_that_is_a_link_to_nowhere_is_one_clear_line(
    tmp_path: Path, run_here: RunHere
) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "nowhere")
    code, errors = run_here(*TRAIN, "--runs-dir", str(tmp_path / "runs"))
    check_is_one_clear_line(code, errors, str(tmp_path / "runs"))
    assert code == 2
    assert not (tmp_path / "nowhere").exists()


def test_a_run_folder_that_is_a_link_to_another_place_goes_on_there(
    interrupted: Path, tiny_whole: Path, tmp_path: Path, run_here: RunHere
) -> None:
    """A disk got full, and the folder was moved to a larger one."""
    interrupted.rename(tmp_path / "elsewhere")
    interrupted.symlink_to(tmp_path / "elsewhere")
    assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    check_is_complete(tmp_path / "elsewhere", tiny_whole)


def test_a_read_only_file_in_a_folder_that_may_be_written_is_replaced(
    interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    """Only the log is appended to and the lock is held, and so have to be writable."""
    for path in interrupted.rglob("*"):
        if path.is_file() and path.name not in ("events.jsonl", ".lock"):
            path.chmod(0o400)
    with permissions_bind():
        code, errors = run_here("resume", str(interrupted), "--quiet")
    assert (code, errors) == (0, "")
    check_is_complete(interrupted, tiny_whole)
