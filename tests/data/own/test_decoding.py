"""Files decoded by several processes at once, and what happens when one of them does not survive a file."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velodrome.data.image_files import read_image
from velodrome.data.own import decoding
from velodrome.data.own.chunks import Chunk, Goal, Outcome, SourceFile, Trouble, state_of, status_of
from velodrome.data.own.decoding import decode_files, rows_a_chunk
from velodrome.data.own.facts import ROW
from velodrome.errors import DataError

SIDE = 8
# A process that decodes, in which files with certain names are something else.
STRANGE = """
import os, resource, signal, sys, time
from pathlib import Path
from velodrome.data.own import chunks, decode_worker

decode = chunks.decode

def strange(file, *arguments, **keywords):
    path = Path(file)
    if "crash" in path.name:
        os.abort()
    if "endless" in path.name:
        while True:
            pass
    if "slow" in path.name:
        (path.parent / f"pid-{os.getpid()}").touch()
        time.sleep(60)
    return decode(file, *arguments, **keywords)

chunks.decode = strange
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
decode_worker._watch = lambda seconds=2: signal.alarm(min(seconds, 2))
decode_worker.main()
"""


def write_files(folder: Path, n: int, name: str = "{:03}.png") -> list[SourceFile]:
    """Noise in PNG files, each of another size."""
    folder.mkdir(exist_ok=True)
    found = []
    for number in range(n):
        path = folder / name.format(number)
        pixels = np.random.default_rng(number).integers(0, 256, (9 + number % 5, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, compress_level=0)
        found.append(SourceFile(str(path), *state_of(status_of(path))))
    return found


def chunks_of(files: list[SourceFile], size: int = 8) -> list[Chunk]:
    return [Chunk(start, tuple(files[start : start + size])) for start in range(0, len(files), size)]


@pytest.fixture
def goal(tmp_path: Path) -> Goal:
    """A file for the pixels of 400 images."""
    (tmp_path / "pixels").write_bytes(b"\xff" * 400 * SIDE * SIDE * 3)
    return Goal(str(tmp_path / "pixels"), SIDE, "crop")


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that puts strange processes in the place of the usual ones, for any number of files."""

    def use(*arguments: str) -> None:
        script = tmp_path / "strange.py"
        script.write_text(STRANGE)
        monkeypatch.setattr(decoding, "WORKER", (str(script), str(tmp_path), *arguments))
        monkeypatch.setattr(decoding, "FEW_FILES", 0)

    return use


def result_of(chunks: list[Chunk], goal: Goal, workers: int) -> tuple[np.ndarray, np.ndarray, list[Trouble]]:
    """Pixels, facts and troubles, in the order of the rows."""
    outcomes = sorted(decode_files(chunks, goal, workers), key=lambda outcome: outcome.start)
    assert [outcome.start for outcome in outcomes] == [chunk.start for chunk in chunks]
    assert not any(outcome.changed for outcome in outcomes)
    pixels = np.fromfile(goal.pixels, np.uint8).reshape(-1, SIDE, SIDE, 3)
    facts = np.concatenate([outcome.facts for outcome in outcomes])
    return pixels[: len(facts)], facts, [trouble for outcome in outcomes for trouble in outcome.troubles]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_processes_gives_the_pixels_of_read_image(tmp_path, goal, monkeypatch, workers):
    files = write_files(tmp_path / "files", 60)
    Path(files[17].path).write_bytes(b"no image")
    files[17] = SourceFile(files[17].path, *state_of(status_of(files[17].path)))
    files[40] = SourceFile(str(tmp_path / "gone.png"), -1, 0)
    monkeypatch.setattr(decoding, "FEW_FILES", 0 if workers else 200)
    pixels, facts, troubles = result_of(chunks_of(files), goal, workers)
    for row, file in enumerate(files):
        if row in (17, 40):
            assert not pixels[row].any()
            assert facts[row].tobytes() == bytes(ROW.itemsize)
            continue
        np.testing.assert_array_equal(pixels[row], read_image(Path(file.path), (SIDE, SIDE)))
        assert facts[row]["size"].tolist() == [9 + row % 5, 12]
    assert troubles == [
        Trouble(17, "it is not an image, or of no kind that is known", True),
        Trouble(40, "it does not exist", False),
    ]
    assert facts["readable"].sum() == 58


def test_names_that_are_no_text_are_found(tmp_path, goal, monkeypatch):
    try:
        files = write_files(tmp_path / "files", 3, "\udcff\n{:03}.png")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system takes no such names")
    monkeypatch.setattr(decoding, "FEW_FILES", 0)
    assert result_of(chunks_of(files), goal, 1)[2] == []


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_are_not_as_they_were_are_found(tmp_path, goal, monkeypatch, workers):
    files = write_files(tmp_path / "files", 30)
    os.utime(files[3].path, ns=(1, files[3].mtime_ns + 1))
    with Path(files[21].path).open("ab") as file:
        file.write(b"more")
    Path(files[25].path).unlink()
    monkeypatch.setattr(decoding, "FEW_FILES", 0 if workers else 200)
    outcomes = list(decode_files(chunks_of(files), goal, workers))
    assert sorted(row for outcome in outcomes for row in outcome.changed) == [3, 21, 25]
    assert not any(outcome.troubles for outcome in outcomes)


# Processes that do not survive.


def test_a_crash_costs_one_file(tmp_path, goal, strange):
    strange()
    files = write_files(tmp_path / "files", 20) + write_files(tmp_path / "files", 2, "crash-{}.png")
    files += write_files(tmp_path / "more", 20)
    pixels, facts, troubles = result_of(chunks_of(files), goal, 2)
    assert troubles == [Trouble(row, "its decoder crashed", False) for row in (20, 21)]
    assert np.flatnonzero(~facts["readable"]).tolist() == [20, 21]
    for row in (0, 19, 22, 41):
        np.testing.assert_array_equal(pixels[row], read_image(Path(files[row].path), (SIDE, SIDE)))


def test_a_decoder_that_never_ends_costs_one_file(tmp_path, goal, strange):
    strange()
    files = write_files(tmp_path / "files", 3) + write_files(tmp_path / "files", 1, "endless-{}.png")
    _, facts, troubles = result_of(chunks_of(files), goal, 1)
    assert troubles == [Trouble(3, "its decoder had not ended after 60 seconds", False)]
    assert facts["readable"].tolist() == [True] * 3 + [False]


def test_where_everything_crashes_it_is_not_the_files(tmp_path, goal, strange, monkeypatch):
    strange()
    monkeypatch.setattr(decoding, "MOST_LOSSES", 2)
    files = write_files(tmp_path / "files", 10, "crash-{}.png")
    with pytest.raises(
        DataError, match=r"More than 2 images break decoders, such as .*: its decoder crashed"
    ):
        list(decode_files(chunks_of(files), goal, 1))


def test_a_full_disk_is_an_error_of_the_system(tmp_path, goal, strange):
    strange("5000")  # bytes that a file may have
    files = write_files(tmp_path / "files", 60)
    with pytest.raises(OSError, match="File too large") as caught:
        list(decode_files(chunks_of(files), goal, 2))
    assert caught.value.filename == goal.pixels


@pytest.mark.parametrize("worker", [("-c", "raise SystemExit(1)"), ("-m", "no_such_module")])
def test_where_no_process_starts_everything_is_done_here(tmp_path, goal, monkeypatch, worker):
    monkeypatch.setattr(decoding, "WORKER", worker)
    monkeypatch.setattr(decoding, "FEW_FILES", 0)
    files = write_files(tmp_path / "files", 20)
    pixels, facts, _ = result_of(chunks_of(files), goal, 2)
    assert facts["readable"].all()
    np.testing.assert_array_equal(pixels[19], read_image(Path(files[19].path), (SIDE, SIDE)))


def test_what_lies_in_the_users_folder_is_not_taken_for_a_module(tmp_path, goal, monkeypatch):
    (tmp_path / "queue.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoding, "FEW_FILES", 0)
    monkeypatch.setattr(decoding, "decode_chunk", None)  # which is used where no process starts
    assert result_of(chunks_of(write_files(tmp_path / "files", 5)), goal, 1)[1]["readable"].all()


# Their end.


def pids(folder: Path) -> list[int]:
    """The processes that have begun with a slow file."""
    return [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):  # gone meanwhile
        # Where nobody waits for processes without a parent, they stay as zombies.
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_to_close_the_iterator_ends_the_processes_at_once(tmp_path, goal, strange):
    strange()
    files = write_files(tmp_path / "files", 8) + write_files(tmp_path / "files", 16, "slow-{}.png")
    outcomes = decode_files(chunks_of(files), goal, 3)
    next(outcomes)
    assert until(lambda: len(pids(tmp_path / "files")) >= 2)
    start_s = time.monotonic()
    outcomes.close()
    assert time.monotonic() - start_s < 2
    assert not any(map(is_alive, pids(tmp_path / "files")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_process_ends_those_that_it_started_end_too(tmp_path, goal, strange, number):
    strange()
    write_files(tmp_path / "files", 16, "slow-{:02}.png")
    code = """
import signal
import sys
from pathlib import Path
from velodrome.data.own import decoding
from velodrome.data.own.chunks import Chunk, Goal, SourceFile, state_of, status_of

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
decoding.WORKER, decoding.FEW_FILES = (sys.argv[1], "-"), 0
paths = sorted(Path(sys.argv[2]).glob("*.png"))
files = [SourceFile(str(path), *state_of(status_of(path))) for path in paths]
chunks = [Chunk(start, tuple(files[start : start + 8])) for start in (0, 8)]
list(decoding.decode_files(chunks, Goal(sys.argv[3], 8, "crop"), 2))
"""
    words = [str(tmp_path / "strange.py"), str(tmp_path / "files"), goal.pixels]
    process = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.DEVNULL)
    try:
        assert until(lambda: len(pids(tmp_path / "files")) == 2)
        process.send_signal(number)
        assert process.wait(20) != 0
        assert until(lambda: not any(map(is_alive, pids(tmp_path / "files"))))
    finally:
        process.kill()
        process.wait()


# What they say to one another.


def test_chunks_are_as_large_as_is_good():
    assert rows_a_chunk(200, 64) == 8
    assert rows_a_chunk(1_000_000, 64) == 64
    assert rows_a_chunk(1_000_000, 1024) == 1
    assert all(rows_a_chunk(n, 32) >= 1 for n in range(1, 100))


def test_chunks_and_outcomes_survive_the_journey():
    chunk = Chunk(8, (SourceFile("/a\n\udcff.png", 3, 2**62), SourceFile("/b.png", -1, 0)))
    assert chunk.to_line().count(b"\n") == 1
    assert Chunk.from_line(chunk.to_line()) == chunk
    assert chunk.pieces() == [Chunk(8, chunk.files[:1]), Chunk(9, chunk.files[1:])]
    facts = np.zeros(2, ROW)
    facts["size"][1] = (3, 4)
    outcome = Outcome(8, facts, (Trouble(8, "it is \u201cempty\u201d", True),), (9,))
    file = io.BytesIO(2 * outcome.to_bytes())
    for _ in range(2):
        found = Outcome.read_from(file)
        assert (found.start, found.troubles, found.changed) == (8, outcome.troubles, (9,))
        assert found.facts.tobytes() == facts.tobytes()
    with pytest.raises(EOFError):
        Outcome.read_from(file)
    with pytest.raises(EOFError):
        Outcome.read_from(io.BytesIO(outcome.to_bytes()[:-1]))


def test_a_process_that_decodes_does_without_torch():
    code = (
        "import sys, velodrome.data.own.decode_worker;"
        "sys.exit('torch' in sys.modules or 'pooch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
