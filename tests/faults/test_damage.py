"""Each file of a run folder is damaged: a run goes on to the same bytes, or one line says what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import (
    announced,
    check_is_complete,
    check_is_one_clear_line,
    checkpoints_of,
    events_of,
    learned,
    snapshot,
    weights_of,
)

import velodrome as vd
from velodrome.errors import RunError, VelodromeError
from velodrome.run.checkpoint import load_checkpoint
from velodrome.run.folder import RunFolder
from velodrome.runs import read_config

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

RunHere = Callable[..., tuple[int, str]]

NEWEST, BEFORE = "checkpoints/step-00000004", "checkpoints/step-00000003"
# What a run can be resumed without: it is written again, or it is only a log.
DISPENSABLE = ("environment.json", "history.csv", "events.jsonl", "summary.json", "checkpoints/last.json")
CHECKPOINT_FILES = ("model.safetensors", "training.safetensors", "state.json")
AT_THE_END = ("model.safetensors", "predictions.csv", "probabilities.npy", "result.json", "report.html")
OF_A_FINISHED_RUN = (
    "config.yaml",
    *DISPENSABLE,
    *(f"checkpoints/step-00000006/{name}" for name in CHECKPOINT_FILES),
    *(f"checkpoints/step-00000005/{name}" for name in CHECKPOINT_FILES),
    *AT_THE_END,
)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    """The lowest bit in the middle: most often another letter or digit, so that a text stays a text."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + np.random.default_rng(0).bytes(5000))


def deleted(path: Path) -> None:
    path.unlink()


Harm = Callable[[Path], None]
each_harm = pytest.mark.parametrize("harm", [half, nothing, flipped, foreign, deleted])


# An interrupted run.


@each_harm
@pytest.mark.parametrize("name", DISPENSABLE)
def test_a_run_goes_on_without_what_can_be_made_again(
    name: str, harm: Harm, interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    harm(interrupted / name)
    assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    assert weights_of(interrupted) == weights_of(tiny_whole)
    assert learned(interrupted) == learned(tiny_whole)
    # Damaged, it would be in the way of the report, which is made from it.
    assert run_here("report", str(interrupted)) == (0, "")
    assert (interrupted / name).read_bytes()


@each_harm
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_run_with_a_damaged_checkpoint_goes_on_from_the_one_before_and_says_so(
    name: str, harm: Harm, interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    harm(interrupted / NEWEST / name)
    code, errors = run_here("resume", str(interrupted), "--quiet")
    assert code == 0, errors
    assert errors.startswith("velodrome: ")
    assert errors.count("\n") == 1
    for words in ("cannot be read", Path(NEWEST).name, Path(BEFORE).name):
        assert words in errors
    assert [event["step"] for event in events_of(interrupted) if event["event"] == "RunStarted"] == [0, 3]
    assert weights_of(interrupted) == weights_of(tiny_whole)
    assert learned(interrupted) == learned(tiny_whole)
    assert [path.name for path in checkpoints_of(interrupted)] == ["step-00000005", "step-00000006"]


@each_harm
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_damaged_checkpoint_that_is_not_the_newest_is_no_news(
    name: str, harm: Harm, interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    harm(interrupted / BEFORE / name)
    assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    check_is_complete(interrupted, tiny_whole)


@each_harm
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_run_without_any_good_checkpoint_is_refused_and_not_changed(
    name: str, harm: Harm, interrupted: Path, run_here: RunHere
) -> None:
    for checkpoint in (NEWEST, BEFORE):
        harm(interrupted / checkpoint / name)
    before = snapshot(interrupted)
    code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, Path(NEWEST).name)
    assert code == 2
    assert Path(BEFORE).name in errors
    assert snapshot(interrupted) == before


@pytest.mark.parametrize("lost", ["checkpoints", "its content", "all but the pointer"])
@pytest.mark.parametrize("log", ["events.jsonl", "history.csv", "both"])
def test_a_run_whose_checkpoints_are_all_gone_is_refused_and_does_not_start_again(
    lost: str, log: str, interrupted: Path, run_here: RunHere
) -> None:
    """It would throw away, without a word, what may still be in a copy; either log gives it away."""
    for gone in {"events.jsonl", "history.csv"} - {log}:
        if log != "both":
            (interrupted / gone).unlink()
    pointer = (interrupted / "checkpoints" / "last.json").read_bytes()
    shutil.rmtree(interrupted / "checkpoints")
    if lost != "checkpoints":
        (interrupted / "checkpoints").mkdir()
    if lost == "all but the pointer":
        (interrupted / "checkpoints" / "last.json").write_bytes(pointer)
    before = snapshot(interrupted)
    code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, "checkpoint")
    assert code == 2
    assert snapshot(interrupted) == before


@pytest.mark.parametrize("harm", [nothing, foreign, deleted])
def test_a_run_without_readable_settings_is_refused_and_not_changed(
    harm: Harm, interrupted: Path, run_here: RunHere
) -> None:
    harm(interrupted / "config.yaml")
    before = snapshot(interrupted)
    code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, "config.yaml")
    assert code == 2
    # A resume has no --config, so that cannot be the remedy.
    assert "--config" not in errors
    assert snapshot(interrupted) == before


def test_a_run_whose_settings_were_cut_short_never_goes_on_with_others(
    interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    """Cut at the end of a line, config.yaml is valid and means another run: the recipe fills the gaps."""
    lines = (interrupted / "config.yaml").read_text().splitlines(keepends=True)
    untouched = shutil.copytree(interrupted, interrupted.with_name("untouched"))
    settings = [number for number, line in enumerate(lines) if ": " in line and not line.startswith("#")]
    wrong = []
    for number in settings[1::3]:
        shutil.rmtree(interrupted)
        shutil.copytree(untouched, interrupted)
        (interrupted / "config.yaml").write_text("".join(lines[:number]))
        code, errors = run_here("resume", str(interrupted), "--quiet")
        try:
            if code == 0:
                assert weights_of(interrupted) == weights_of(tiny_whole)
                assert learned(interrupted) == learned(tiny_whole)
            else:
                check_is_one_clear_line(code, errors, "config.yaml", "step-00000004")
        except AssertionError as error:
            wrong.append(f"cut before {lines[number].strip()!r}: {str(error).splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("setting", "other"),
    [
        ("momentum: 0.9", "momentum: 0.1"),
        ("limit_train: 64", "limit_train: 74"),
        ("dropout: 0.1", "dropout: 0.3"),
    ],
)
def test_a_run_whose_settings_are_others_than_its_checkpoints_is_refused(
    setting: str, other: str, interrupted: Path, run_here: RunHere
) -> None:
    """One flipped bit makes such a change; the result would be that of no settings at all."""
    text = (interrupted / "config.yaml").read_text()
    assert setting in text
    (interrupted / "config.yaml").write_text(text.replace(setting, other))
    code, errors = run_here("resume", str(interrupted), "--quiet")
    check_is_one_clear_line(code, errors, "config.yaml")
    assert setting.partition(":")[0] in errors


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_no_flipped_bit_of_the_settings_is_our_fault(mask: int, interrupted: Path) -> None:
    """Another valid setting, or an error that names the file; which it is depends on the place."""
    path = interrupted / "config.yaml"
    data = path.read_bytes()
    nameless = []
    for position in range(0, len(data), 5):
        path.write_bytes(data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :])
        try:
            read_config(RunFolder(interrupted))
        except VelodromeError as error:
            if "config.yaml" not in str(error):
                nameless.append(f"byte {position}: {error}")
    assert not nameless, "\n".join(nameless)


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(interrupted: Path) -> None:
    """The step, a figure of the history, a weight: every byte of it counts."""
    folder, newest = RunFolder(interrupted), interrupted / NEWEST
    shutil.rmtree(interrupted / BEFORE)
    good = load_checkpoint(folder, lambda _checkpoint: None)
    assert good is not None
    unseen = []
    for name, stride in (("state.json", 3), ("model.safetensors", 1997), ("training.safetensors", 1997)):
        path = newest / name
        data = path.read_bytes()
        for position in range(0, len(data), stride):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            try:
                read = load_checkpoint(folder, lambda _checkpoint: None)
            except RunError:
                continue
            assert read is not None
            if read.numbers != good.numbers:
                around = data[max(0, position - 20) : position + 10].decode(errors="replace")
                unseen.append(f"byte {position} of {name}: ...{around}...")
        path.write_bytes(data)
    assert not unseen, f"{len(unseen)} flipped bits unseen, for instance {unseen[len(unseen) // 2]}"


def test_a_checkpoint_of_a_run_with_another_seed_is_passed_over(
    interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    state = interrupted / NEWEST / "state.json"
    other = json.loads(state.read_text()) | {"seed": 1}
    state.write_text(json.dumps(other))
    code, errors = run_here("resume", str(interrupted), "--quiet")
    assert code == 0, errors
    assert Path(NEWEST).name in errors
    assert weights_of(interrupted) == weights_of(tiny_whole)


def test_a_log_of_garbage_is_kept_and_goes_on(interrupted: Path, tiny_whole: Path, run_here: RunHere) -> None:
    """Nobody is served by a log that is thrown away; what was readable in it still is."""
    log = interrupted / "events.jsonl"
    before = log.read_bytes()
    log.write_bytes(b"\x00\xff noise\n" + before + b'{"event": "CheckpointSa')
    assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    assert weights_of(interrupted) == weights_of(tiny_whole)
    assert before in log.read_bytes()
    found = RunFolder(interrupted).read_events()
    assert [event["step"] for event in found if event["event"] == "CheckpointSaved"] == [1, 2, 3, 4, 5, 6]
    # The first event of the resume did not end up on the torn line.
    assert [event["step"] for event in found if event["event"] == "RunStarted"] == [0, 4]


@pytest.mark.parametrize(
    "name", ["config.yaml", "events.jsonl", "history.csv", "summary.json", "environment.json"]
)
def test_a_folder_in_place_of_a_file_is_one_clear_line_or_no_matter(
    name: str, interrupted: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    (interrupted / name).unlink()
    (interrupted / name).mkdir()
    code, errors = run_here("resume", str(interrupted), "--quiet")
    if code == 0:
        assert weights_of(interrupted) == weights_of(tiny_whole)
    else:
        check_is_one_clear_line(code, errors, name)
    code, errors = run_here("report", str(interrupted), "--output", str(interrupted / "page.html"))
    if code != 0:
        check_is_one_clear_line(code, errors, name)


# The report of an interrupted run.


@each_harm
@pytest.mark.parametrize("name", ["config.yaml", *DISPENSABLE])
def test_the_report_of_an_interrupted_run_is_made_or_one_line_says_why_not(
    name: str, harm: Harm, interrupted: Path, run_here: RunHere
) -> None:
    harm(interrupted / name)
    (interrupted / "report.html").unlink()
    code, errors = run_here("report", str(interrupted))
    if code == 0:
        assert errors == ""
        assert (interrupted / "report.html").read_text().rstrip().endswith("</html>")
    else:
        check_is_one_clear_line(code, errors, name)
        assert not (interrupted / "report.html").exists()


# A finished run.


@each_harm
@pytest.mark.parametrize("name", OF_A_FINISHED_RUN)
def test_a_finished_run_is_complete_after_a_resume_or_one_line_says_what_is_wrong(
    name: str, harm: Harm, finished: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    harm(finished / name)
    code, errors = run_here("resume", str(finished), "--quiet")
    if code == 0:
        assert weights_of(finished) == weights_of(tiny_whole)
        assert all((finished / made).exists() for made in AT_THE_END)
        assert "Traceback" not in errors
    else:
        check_is_one_clear_line(code, errors, name)


@each_harm
@pytest.mark.parametrize("name", OF_A_FINISHED_RUN)
def test_the_report_of_a_finished_run_is_made_or_one_line_says_why_not(
    name: str, harm: Harm, finished: Path, run_here: RunHere
) -> None:
    harm(finished / name)
    code, errors = run_here("report", str(finished))
    if code == 0:
        assert errors == ""
        assert (finished / "report.html").read_text().rstrip().endswith("</html>")
    else:
        check_is_one_clear_line(code, errors, name)


@each_harm
@pytest.mark.parametrize("name", OF_A_FINISHED_RUN)
def test_a_finished_run_is_loaded_as_it_was_trained_or_not_at_all(
    name: str, harm: Harm, finished: Path, tiny_whole: Path
) -> None:
    harm(finished / name)
    if name == "model.safetensors" or not (finished / "config.yaml").exists():
        with pytest.raises(RunError, match=re.escape(name)):
            vd.load(finished)
    else:
        loaded, expected = (vd.load(run).state_dict() for run in (finished, tiny_whole))
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_no_flipped_bit_of_a_result_is_our_fault(finished: Path, run_here: RunHere) -> None:
    """A name or a value may be another one; the last line of `resume` is made of them."""
    path = finished / "result.json"
    data = path.read_bytes()
    faults = []
    for position in range(0, len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        code, errors = run_here("resume", str(finished), "--quiet")
        if code != 0 and (code not in (1, 2) or "result.json" not in errors):
            around = data[max(0, position - 12) : position + 12].decode()
            faults.append(f"byte {position} ({around!r}): exit code {code}")
    assert not faults, f"{len(faults)} bytes, such as {faults[0]}"


def test_a_result_that_is_not_a_result_is_one_clear_line(finished: Path, run_here: RunHere) -> None:
    for text in (
        "{}",
        '{"test_accuracy": null, "test_accuracy_tta": "x", "train_seconds": []}',
        "[]",
        "null",
    ):
        (finished / "result.json").write_text(text)
        code, errors = run_here("resume", str(finished), "--quiet")
        check_is_one_clear_line(code, errors, "result.json")
        code, errors = run_here("report", str(finished))
        if code != 0:
            check_is_one_clear_line(code, errors, "result.json")


def test_a_finished_run_whose_weights_are_lost_gets_them_back(
    finished: Path, tiny_whole: Path, run_here: RunHere
) -> None:
    """They are in the last checkpoint."""
    (finished / "model.safetensors").unlink()
    assert run_here("resume", str(finished), "--quiet") == (0, "")
    assert weights_of(finished) == weights_of(tiny_whole)
    assert announced(finished)[-1] == 6


# The harms themselves.


def test_the_harms_do_harm(tmp_path: Path) -> None:
    for harm in (half, nothing, flipped, foreign, deleted):
        path = tmp_path / "file"
        path.write_bytes(b"0123456789")
        harm(path)
        assert not path.exists() or path.read_bytes() != b"0123456789"


def test_warnings_do_not_leave_the_command(interrupted: Path, run_here: RunHere) -> None:
    """The word about a damaged checkpoint is a line, not a warning of Python's with a place in the source."""
    nothing(interrupted / NEWEST / "state.json")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code, errors = run_here("resume", str(interrupted), "--quiet")
    assert (code, caught) == (0, [])
    assert "Warning" not in errors
    assert ".py:" not in errors
