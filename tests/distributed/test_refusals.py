"""What ranks cannot do together is said in words, on all of them, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rank_processes import TINY, command, command_after, flags, lines_of, ranks

import velodrome
import velodrome as vd
from velodrome import cli
from velodrome.distributed import Place, World, is_said_elsewhere, join, place_told, timeout_s
from velodrome.errors import ConfigError, DeviceError, InterruptedRunError, OtherRankError, RunError
from velodrome.job import prepare
from velodrome.ranks import joined


def be_another_version() -> None:
    velodrome.__version__ = "0.0.7"


def be_told(**env: str) -> None:
    import os

    os.environ.update(env)


def fail_to_load() -> None:
    from velodrome import job
    from velodrome.errors import DataError

    def fail(*_: object, **__: object) -> None:
        raise DataError("The disk of this machine is empty.", "Copy the images to it.")

    job.load_splits = fail


def command_with_own_data(*paths: str) -> int:
    """Each rank trains on data of its own."""
    return command("train", *flags(TINY, data=paths[place_told().rank]))


def test_ranks_with_other_data_say_so_and_end(data: str, other_data: str, tmp_path: Path) -> None:
    with ranks(2, command_with_own_data, data, other_data, place=tmp_path) as run:
        assert run.wait() == [2, 2]
        for rank in (0, 1):
            (line,) = lines_of(run.words(rank))
            assert "Rank 1 has other images" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (be_another_version, f"Rank 1 has velodrome 0.0.7, but rank 0 has {velodrome.__version__}"),
        (fail_to_load, "The disk of this machine is empty. Copy the images to it."),
    ],
)
def test_what_is_wrong_with_one_rank_is_said_by_all(
    tamper: object, words: str, data: str, tmp_path: Path
) -> None:
    with ranks(2, command_after, tamper, "train", *flags(TINY, data=data), place=tmp_path) as run:
        assert run.wait() == [2, 2]
        assert words in run.words(0)
        assert words in run.words(1)
        assert "Traceback" not in run.words(0) + run.words(1)
    assert not (tmp_path / "runs").exists()


def small(**changes: object) -> vd.Config:
    tiny = {**TINY, "data": "shapes", "limit_train": 64, "limit_test": 20}
    return vd.override(vd.recipes.quick(), {**tiny, **changes})


def test_ranks_with_other_settings_say_which(data: str, tmp_path: Path) -> None:
    with ranks(2, seeds_by_rank, data, place=tmp_path) as run:
        assert run.wait() == [2, 2]
        assert [len(lines_of(run.words(rank))) for rank in (0, 1)] == [1, 1]
        assert "Rank 1 has seed 1, but rank 0 has 0." in run.words(0)


def seeds_by_rank(data: str) -> int:
    return command("train", *flags(TINY, data=data, seed=place_told().rank))


@pytest.mark.parametrize(
    ("size", "changes", "words"),
    [
        (3, {}, "batch_size is 32, but must be a multiple of 3.*--batch-size 30 or 33"),
        (
            64,
            {"batch_size": 64, "limit_train": None},
            "batch norm needs 2 images on each of 64.*size 128 or 192",
        ),
        (2, {"ghost_batch": 24}, "ghost_batch is 24, but each of the 2 ranks has 16.*--ghost-batch 16"),
        (2, {"sync_bn": True}, "sync_bn is on, but the device is cpu"),
    ],
)
def test_settings_that_do_not_fit_the_ranks_are_refused(
    size: int, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(small(**changes), world=World(Place(0, size, 0)), progress=False)


def test_ghost_batches_and_statistics_of_all_ranks_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="sync_bn is on, but ghost_batch is 8"):
        prepare(small(sync_bn=True, ghost_batch=8), progress=False)


def be(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, **more: str) -> None:
    told = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), **more}
    for key, value in told.items():
        monkeypatch.setenv(key, value)


def test_other_commands_are_for_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be(monkeypatch, 0, 2)
    assert cli.main(["lr-find", "--data", "shapes"]) == 2
    assert "velodrome lr-find is for one process, but there are 2" in capsys.readouterr().err


def test_a_plan_says_whether_ranks_can_share_the_batches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data: str
) -> None:
    be(monkeypatch, 0, 3)
    assert cli.main(["train", *flags(TINY, data=data), "--dry-run"]) == 2
    assert "must be a multiple of 3" in capsys.readouterr().err


def test_an_environment_that_torchrun_did_not_make_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    be(monkeypatch, 1, 2, MASTER_ADDR="127.0.0.1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ConfigError, match="MASTER_PORT is not set"), join(lambda: torch.device("cpu")):
        pass
    be(monkeypatch, 2, 2, MASTER_PORT="1")
    with pytest.raises(ConfigError, match="RANK is 2"), join(lambda: torch.device("cpu")):
        pass


@pytest.mark.parametrize("env", [{}, {"WORLD_SIZE": "4"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_without_other_ranks_a_process_is_alone(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(key, raising=False)
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    assert place_told() == Place()


@pytest.mark.parametrize("text", ["soon", "10", "0s", ""])
def test_a_timeout_is_a_length_of_time(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELODROME_RANK_TIMEOUT", text)
    with pytest.raises(ConfigError, match=r"VELODROME_RANK_TIMEOUT is .* but must be a length of time"):
        timeout_s()
    monkeypatch.setenv("VELODROME_RANK_TIMEOUT", "90s")
    assert timeout_s() == 90
    monkeypatch.delenv("VELODROME_RANK_TIMEOUT")
    assert timeout_s() == 600


@pytest.mark.parametrize(
    ("kind", "words"), [("mps", "on mps there can be only one"), ("cuda", "local rank 40")]
)
def test_a_device_that_ranks_cannot_share_is_refused(kind: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words), joined(Place(40, 41, 40), torch.device(kind), 1.0):
        pass


def test_what_another_rank_on_the_machine_says_is_not_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told = OtherRankError(0, "The disk is full.", "Free some space.", 1)
    assert (str(told), told.exit_code) == ("Rank 0 stopped: The disk is full. Free some space.", 1)
    be(monkeypatch, 1, 2)
    assert is_said_elsewhere(told)
    assert is_said_elsewhere(InterruptedRunError("Stopped.", "Go on."))
    assert not is_said_elsewhere(RunError("Mine.", "Mend it."))
    be(monkeypatch, 0, 2)
    assert not is_said_elsewhere(told)
