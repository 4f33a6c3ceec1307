"""A stop is agreed by all ranks; the failure of one ends all of them, soon and in words."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from rank_processes import (
    LONG,
    TINY,
    children_of,
    command,
    command_with_page,
    ended,
    flags,
    has_checkpoint,
    last_step,
    lines_of,
    ranks,
    torchrun,
    until,
)

import velodrome as vd
from velodrome.errors import VelodromeWarning
from velodrome.run.checkpoint import load_checkpoint, load_weights
from velodrome.run.folder import open_run

# Seconds in which all ranks have ended, when nothing else keeps the machine busy: a few.
SOON_S = 30.0


def test_a_signal_to_any_rank_stops_all_at_the_same_step(data: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "run"
    with ranks(2, command, "train", *flags(LONG, data=data, name="run"), place=tmp_path) as run:
        until(lambda: has_checkpoint(path), "a checkpoint")
        run.send(1, signal.SIGINT)
        assert run.wait() == [130, 130]
        assert run.words(1) == ""
        (line,) = lines_of(run.words(0))
    assert f"Stopped at step {last_step(path)} of 4000; all up to there is saved." in line
    assert "velodrome resume runs/run" in line


def test_a_run_goes_on_with_another_number_of_ranks_and_says_so(data: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "run"
    words = flags(TINY, data=data, name="run", epochs=3)
    with ranks(
        2, command_stopped_in_the_second_epoch, signal.SIGUSR1, "train", *words, place=tmp_path
    ) as run:
        assert run.wait() == [75, 75]
    assert load_checkpoint(open_run(path), lambda _checkpoint: None).numbers["ranks"] == 2
    assert last_step(path) == 6
    before = (path / "history.csv").read_text().splitlines()
    with pytest.warns(
        VelodromeWarning, match=r"began with 2 rank\(s\) and goes on with 1.*32 images in place"
    ):
        vd.resume(path, progress=False)
    after = (path / "history.csv").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == 4
    with ranks(4, command, "resume", "runs/run", "--epochs", "4", "--quiet", place=tmp_path) as run:
        assert run.wait() == [0] * 4, run.words(0)
        assert "goes on with 4" in run.words(0)
        assert [run.words(rank) for rank in (1, 2, 3)] == [""] * 3
    assert (path / "history.csv").read_text().splitlines()[:4] == after
    assert vd.load(path).image_size == (32, 32)


def test_stopped_and_resumed_ranks_have_the_weights_of_those_that_never_stopped(
    data: str, tmp_path: Path
) -> None:
    words = flags(TINY, data=data, dropout=0.2)
    runs = tmp_path / "runs"
    with ranks(2, command, "train", *words, "--name", "whole", place=tmp_path) as run:
        assert run.wait() == [0, 0]
    stopped = ["train", *words, "--name", "stopped"]
    with ranks(2, command_stopped_in_the_second_epoch, signal.SIGTERM, *stopped, place=tmp_path) as run:
        assert run.wait() == [75, 75]
    assert last_step(runs / "stopped") == 6
    with ranks(2, command, "resume", "runs/stopped", "--quiet", place=tmp_path) as run:
        assert run.wait() == [0, 0]
        assert run.words(1) == ""
        assert lines_of(run.words(0)) == []  # no note: nothing is different
    ours, theirs = (load_weights(runs / name / "model.safetensors")[0] for name in ("stopped", "whole"))
    for name, tensor in ours.items():
        # Running statistics are averaged at the stop too, which costs a last bit.
        exact = {} if "running" in name else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(tensor, theirs[name], **exact)


def command_stopped_in_the_second_epoch(number: int, *words: str) -> int:
    """The last rank gets a signal there, after which all ask at once."""
    from velodrome.run import stopping
    from velodrome.training import step

    stopping.ASK_S = 0.0
    taken = step.RankStep.__call__

    def counted(self: step.RankStep, epoch: object, index: int, lr: float) -> None:
        taken(self, epoch, index, lr)
        if self.state.step == 5 and self.world.rank == self.world.size - 1:
            os.kill(os.getpid(), number)

    step.RankStep.__call__ = counted
    return command(*words)


def test_torchrun_passes_a_stop_on_and_the_same_command_goes_on(data: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "job"
    words = ["train", *flags(LONG, data=data, name="job", epochs=30, resume="auto")]
    with ended(torchrun(2, *words, place=tmp_path)) as job:
        until(lambda: has_checkpoint(path), "a checkpoint")
        job.send_signal(signal.SIGTERM)
        assert job.wait(SOON_S) != 0
    assert not (path / "result.json").exists()
    assert "all up to there is saved" in (tmp_path / "torchrun.txt").read_text()
    assert 0 < last_step(path) < 120
    for _ in range(2):  # the second time nothing is left to do
        with ranks(2, command_with_page, *words, place=tmp_path) as run:
            assert run.wait() == [0, 0], run.words(0)
            assert run.words(0).startswith("runs/job: ")
            assert run.words(1) == ""
    assert (path / "report.html").exists()
    assert (path / "events.jsonl").read_text().count('"RunStarted"') == 2


def test_where_a_rank_is_killed_all_end_soon_and_say_why(data: str, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "run"
    with ended(torchrun(2, "train", *flags(LONG, data=data, name="run"), place=tmp_path)) as job:
        until(lambda: has_checkpoint(path), "a checkpoint")
        first, second = children_of(job.pid)[-2:]
        os.kill(second, signal.SIGKILL)
        began_s = time.monotonic()
        assert job.wait(SOON_S) != 0
        assert time.monotonic() - began_s < SOON_S
        until(lambda: not Path(f"/proc/{first}").exists(), "the end of the other rank")
    (line,) = lines_of((tmp_path / "torchrun.txt").read_text())
    assert "Another rank has ended, and training cannot go on without it." in line
    assert "Signal 9 (SIGKILL)" in (tmp_path / "torchrun.txt").read_text()  # torchrun's own words
    assert last_step(path) > 0


def test_nobody_waits_for_a_rank_that_hangs_longer_than_the_timeout(data: str, tmp_path: Path) -> None:
    words = flags(LONG, data=data, name="run")
    with ranks(2, command, "train", *words, place=tmp_path, VELODROME_RANK_TIMEOUT="3s") as run:
        until(lambda: has_checkpoint(tmp_path / "runs" / "run"), "a checkpoint")
        run.send(1, signal.SIGSTOP)
        run.processes[0].join(SOON_S)
        assert run.processes[0].exitcode == 1
        (line,) = lines_of(run.words(0))
    assert "Another rank has not answered for 3 s." in line
    assert "VELODROME_RANK_TIMEOUT=1h" in line


def test_nobody_waits_for_a_rank_that_never_comes(data: str, tmp_path: Path) -> None:
    words = flags(TINY, data=data)
    with ranks(2, command, "train", *words, place=tmp_path, here=1, VELODROME_RANK_TIMEOUT="1s") as run:
        assert run.wait(SOON_S) == [1]
        assert "Another rank has not answered for 1 s." in run.words(0)
    assert not (tmp_path / "runs").exists()
