"""The run folder: names, numbering, atomic writes, clear errors."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from velodrome.errors import RunError
from velodrome.run import folder as module
from velodrome.run.folder import RunFolder, create_run, open_run, write_atomically, write_json


def fill(folder: RunFolder) -> None:
    folder.config.write_text("recipe: quick\n")


def test_numbers_go_on_past_gaps_and_other_names(tmp_path: Path) -> None:
    for name in ("quick-1", "quick-7", "quick-x", "quickest-9"):
        (tmp_path / name).mkdir()
    assert create_run(tmp_path, None, "quick", fill).name == "quick-8"
    assert create_run(tmp_path, None, "resnet9", fill).name == "resnet9-1"


def test_a_taken_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="exists already"):
        create_run(tmp_path, "mine", "quick", fill)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_runs_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        create_run(tmp_path / "file" / "runs", None, "quick", fill)


def test_two_that_want_the_same_number_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same_numbers(runs_dir: Path, recipe: str) -> Iterator[Path]:
        return (runs_dir / f"{recipe}-{number}" for number in (1, 1, 2))

    monkeypatch.setattr(module, "_numbered", same_numbers)
    names = [create_run(tmp_path, None, "quick", fill).name for _ in range(2)]
    assert names == ["quick-1", "quick-2"]


def test_a_run_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def full(folder: RunFolder) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left on device"):
        create_run(tmp_path / "runs", "mine", "quick", full)
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_is_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        open_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"has no config\.yaml"):
        open_run(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_json_that_is_not_json_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["epoch,time_s\n1,2\n", "\x00", "epoch\nx\n"])
def test_a_damaged_history_is_named(text: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.history.write_text(text)
    if text == "\x00":
        assert folder.read_history() == []
        return
    with pytest.raises(RunError, match=r"history\.csv is damaged"):
        folder.read_history()


def test_a_torn_last_event_is_left_out_and_odd_names_are_not_line_ends(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.events.write_text('{"run": "a\u2028b"}\n{"run": ', encoding="utf-8")
    assert folder.read_events() == [{"run": "a\u2028b"}]


def test_a_damaged_line_of_the_event_log_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.events.write_bytes(b'{"step": 1}\n[1]\nnonsense\n\xff\x00\n{"step": 2}\n')
    assert folder.read_events() == [{"step": 1}, {"step": 2}]


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert module.free_gib(tmp_path / "a" / "b") > 0
