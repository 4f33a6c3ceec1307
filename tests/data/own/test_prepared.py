"""Images prepared once: what read_image gives, whatever happens to the work, the files or the disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from velodrome.data.image_files import Failure, UnreadableImageError, read_image, read_size
from velodrome.data.own import chunks, decoding, prepared, prepared_folder
from velodrome.data.own.listing import Entry
from velodrome.data.own.prepared import (
    Prepared,
    cache_folder,
    clear,
    clear_all,
    facts_of,
    folder_of,
    prepare_images,
)
from velodrome.errors import DataError

SIDE = 8


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of 20 images of noise."""
    write_images(tmp_path / "photos", 20)
    return tmp_path / "photos"


def write_images(folder: Path, n: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(n):
        write_image(folder / f"{number:03}.png", number)


def write_image(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed % 5, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)


def entries_of(root: Path) -> list[Entry]:
    return [Entry(path, path.name, 0, None) for path in sorted(root.glob("*.png"))]


def prepare(root: Path, *, side: int = SIDE, fit: str = "crop", **options: object) -> Prepared:
    return prepare_images(entries_of(root), side, fit, root=root, **options)


def decoded_in(root: Path, **options: object) -> int:
    """How many images had to be decoded to prepare them."""
    told: list[tuple[int, int]] = []
    prepare(root, tell=lambda *numbers: told.append(numbers), **options)
    return told[-1][0] - told[0][0] if told else 0


def check_is_right(found: Prepared, root: Path, fit: str = "crop") -> None:
    """Every image is as `read_image` gives it, and its facts are those of its pixels."""
    digests, thumbnails = facts_of(np.asarray(found.images_u8), found.facts.sizes, fit)
    for row, entry in enumerate(entries_of(root)):
        side = found.images_u8.shape[1]
        np.testing.assert_array_equal(found.images_u8[row], read_image(entry.path, (side, side), fit))
        assert found.facts.sizes[row].tolist() == list(read_size(entry.path))
    np.testing.assert_array_equal(found.facts.digests, digests)
    np.testing.assert_array_equal(found.facts.thumbnails, thumbnails)
    assert found.facts.readable.all()
    assert found.failures == ()


# What is prepared.


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_images_are_those_of_read_image_in_the_order_of_their_entries(root, fit):
    found = prepare(root, fit=fit, side=16)
    assert found.images_u8.shape == (20, 16, 16, 3)
    assert isinstance(found.images_u8, np.memmap)
    assert not found.images_u8.flags.writeable
    check_is_right(found, root, fit)
    backwards = prepare_images(entries_of(root)[::-1], 16, fit, root=root)
    np.testing.assert_array_equal(backwards.images_u8, found.images_u8[::-1])
    np.testing.assert_array_equal(backwards.facts.digests, found.facts.digests[::-1])


@pytest.mark.parametrize("few", [0, 200])
def test_they_are_decoded_once(root, monkeypatch, few):
    monkeypatch.setattr(decoding, "FEW_FILES", few)
    first = prepare(root)
    monkeypatch.setattr(prepared, "decode_files", None)
    again = prepare(root, tell=None)
    assert again.folder == first.folder
    np.testing.assert_array_equal(again.images_u8, first.images_u8)
    check_is_right(again, root)
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "facts.bin",
        "images.u8",
        "record.json",
        "sources.bin",
    ]
    assert list(folder_of(root).iterdir()) == [first.folder]


def test_progress_is_told_from_nothing_to_all(root):
    told = []
    prepare(root, tell=lambda *numbers: told.append(numbers))
    assert told[0] == (0, 20)
    assert told[-1] == (20, 20)
    assert told == sorted(told)
    told.clear()
    prepare(root, tell=lambda *numbers: told.append(numbers))
    assert told == []


@pytest.mark.parametrize("few", [0, 200])
def test_what_cannot_be_read_is_black_and_named_also_the_second_time(root, monkeypatch, few):
    monkeypatch.setattr(decoding, "FEW_FILES", few)
    (root / "003.png").write_bytes(b"no image")
    (root / "015.png").write_bytes(b"")
    for found in (prepare(root), prepare(root)):
        assert found.failures == (
            Failure(root / "003.png", "it is not an image, or of no kind that is known"),
            Failure(root / "015.png", "it is empty"),
        )
        assert np.flatnonzero(~found.facts.readable).tolist() == [3, 15]
        for row in (3, 15):
            assert not found.images_u8[row].any()
            assert not found.facts.sizes[row].any()
            assert not found.facts.digests[row].any()
    assert decoded_in(root) == 0


def test_what_may_be_readable_next_time_is_tried_again(root, monkeypatch):
    decode = chunks.decode

    def refuse(path: str, *arguments: object, **keywords: object) -> object:
        if path.endswith("003.png"):
            raise UnreadableImageError(path, "it takes more memory than there is", "", is_lasting=False)
        return decode(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "decode", refuse)
        first = prepare(root)
        assert first.failures == (Failure(root / "003.png", "it takes more memory than there is"),)
        assert decoded_in(root) == 8  # the chunk that it lies in
    check_is_right(prepare(root), root)
    assert decoded_in(root) == 0
    np.testing.assert_array_equal(first.images_u8[0], read_image(root / "000.png", (SIDE, SIDE)))


# When it is prepared anew.


def test_another_size_or_fit_is_another_preparation(root):
    folders = {prepare(root, side=side, fit=fit).folder for side in (8, 16) for fit in ("crop", "pad")}
    assert len(folders) == 4
    for side in (8, 16):
        assert decoded_in(root, side=side) == 0


def change_contents(root: Path) -> None:
    write_image(root / "004.png", 77)


def change_time(root: Path) -> None:
    os.utime(root / "004.png", ns=(5, 5))


def rename(root: Path) -> None:
    (root / "004.png").rename(root / "104.png")


@pytest.mark.parametrize("change", [change_contents, change_time, rename])
def test_a_change_of_the_source_replaces_what_was_prepared(root, change):
    before = prepare(root).folder
    change(root)
    assert decoded_in(root) == 20
    after = prepare(root)
    check_is_right(after, root)
    assert after.folder != before
    assert not before.exists()


def test_parts_of_the_same_source_live_side_by_side(root):
    """As where training images are kept in another size than the others."""
    everything = prepare(root)
    some = prepare_images(entries_of(root)[:7], SIDE, "crop", root=root)
    assert everything.folder.exists()
    np.testing.assert_array_equal(some.images_u8, everything.images_u8[:7])
    fewer = prepare_images(entries_of(root)[:3], SIDE, "crop", root=root)
    assert fewer.folder.exists()
    assert some.folder.exists() != everything.folder.exists()  # the newest of them is kept


def test_contents_count_where_they_are_asked_for(root):
    prepare(root, cache_by="contents")
    change_time(root)
    assert decoded_in(root, cache_by="contents") == 0
    status = (root / "004.png").stat()
    with Image.open(root / "004.png") as image:
        pixels = 255 - np.asarray(image)
    Image.fromarray(pixels).save(root / "004.png", compress_level=0)
    assert status.st_size == (root / "004.png").stat().st_size
    os.utime(root / "004.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert decoded_in(root, cache_by="contents") == 20
    check_is_right(prepare(root, cache_by="contents"), root)


def test_a_data_set_has_one_folder_however_its_path_is_written(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root.parent)
    (tmp_path / "link").symlink_to(root)
    assert {
        folder_of(path) for path in (root, Path("photos"), Path("photos/../photos"), tmp_path / "link")
    } == {folder_of(root)}
    assert folder_of(tmp_path) != folder_of(root)
    before = folder_of(root), folder_of(Path("hf:me/name"))
    monkeypatch.chdir("/")
    assert (folder_of(root), folder_of(Path("hf:me/name"))) == before
    assert before[1].parent == cache_folder()
    assert "photos-" in folder_of(root).name
    assert folder_of(tmp_path / "a\n\x1b b").name.isprintable()


def cut_images(folder: Path) -> None:
    os.truncate(folder / "images.u8", 100)


def lengthen_images(folder: Path) -> None:
    os.truncate(folder / "images.u8", 10**6)


def flip_a_bit_of_the_facts(folder: Path) -> None:
    content = bytearray((folder / "facts.bin").read_bytes())
    content[500] ^= 4
    (folder / "facts.bin").write_bytes(content)


def cut_facts(folder: Path) -> None:
    os.truncate(folder / "facts.bin", 217)


def remove_images(folder: Path) -> None:
    (folder / "images.u8").unlink()


def remove_record(folder: Path) -> None:
    (folder / "record.json").unlink()


def spoil_record(folder: Path) -> None:
    (folder / "record.json").write_bytes(b'{"format": 1, "image_bytes": [')


def hollow_record(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"failures": 7}))


DAMAGE = [
    cut_images,
    lengthen_images,
    flip_a_bit_of_the_facts,
    cut_facts,
    remove_images,
    remove_record,
    spoil_record,
    hollow_record,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_preparation_is_made_anew(root, damage):
    folder = prepare(root).folder
    damage(folder)
    assert decoded_in(root) == 20
    check_is_right(prepare(root), root)


@pytest.mark.parametrize("few", [0, 200])
def test_a_file_that_changes_meanwhile_is_an_error_that_names_it(root, monkeypatch, few):
    monkeypatch.setattr(decoding, "FEW_FILES", few)

    def change(done: int, _total: int) -> None:
        if not done:
            change_contents(root)

    with pytest.raises(DataError, match=r"^Image 004\.png changed while images were read\. Run it again"):
        prepare(root, tell=change)
    check_is_right(prepare(root), root)


# Work that was interrupted.


def interrupted_at(root: Path, done_before: int) -> None:
    """Ctrl-C after so many images."""

    def tell(done: int, _total: int) -> None:
        if done >= done_before:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(root, tell=tell)


@pytest.mark.parametrize("few", [0, 200])
def test_interrupted_work_is_taken_up(root, monkeypatch, few):
    monkeypatch.setattr(prepared, "SECONDS_BETWEEN_NOTES", 0.0)
    monkeypatch.setattr(decoding, "FEW_FILES", few)
    interrupted_at(root, 16)
    assert not any(path.suffix != ".part" for path in folder_of(root).iterdir())
    assert decoded_in(root) in (12, 8)  # one chunk of 8 was noted, perhaps that of 4 too
    check_is_right(prepare(root), root)


@pytest.mark.parametrize("kept", [-1, -100, 50, 3, 0])
def test_a_torn_log_counts_up_to_where_it_is_torn(root, monkeypatch, kept):
    monkeypatch.setattr(prepared, "SECONDS_BETWEEN_NOTES", 0.0)
    interrupted_at(root, 20)
    log = next(folder_of(root).glob("*.part")) / "done.log"
    os.truncate(log, kept if kept >= 0 else log.stat().st_size + kept)
    assert decoded_in(root) == (12 if kept < 0 else 20)
    check_is_right(prepare(root), root)


def test_a_log_with_other_bytes_at_its_end_or_in_its_middle(root, monkeypatch):
    monkeypatch.setattr(prepared, "SECONDS_BETWEEN_NOTES", 0.0)
    for place in (-1, 700):
        interrupted_at(root, 20)
        log = next(folder_of(root).glob("*.part")) / "done.log"
        content = bytearray(log.read_bytes())
        if place < 0:
            content += b"\xff" * 500
        else:
            content[place] ^= 255
        log.write_bytes(content)
        assert decoded_in(root) == (4 if place < 0 else 20)
        check_is_right(prepare(root), root)
        clear(root)


def test_work_without_its_pixels_begins_anew(root, monkeypatch):
    monkeypatch.setattr(prepared, "SECONDS_BETWEEN_NOTES", 0.0)
    interrupted_at(root, 20)
    (next(folder_of(root).glob("*.part")) / "images.u8").unlink()
    assert decoded_in(root) == 20
    check_is_right(prepare(root), root)


# Prepares in a process of its own, slowly: says how far it is in a file.
PREPARE = """
import sys, time
from pathlib import Path
from velodrome.data.own import prepared
from velodrome.data.own.listing import Entry

root, told, pause_s, gate = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
prepared.SECONDS_BETWEEN_NOTES = 0.0

def tell(done, total):
    with told.open("a") as file:
        file.write(f"{done}\\n")
    time.sleep(pause_s)
    while done >= 16 and not gate.exists():
        time.sleep(0.01)

entries = [Entry(path, path.name, 0, None) for path in sorted(root.glob("*.png"))]
prepared.prepare_images(entries, 8, "crop", root=root, tell=tell)
"""


class Preparing:
    """A process that prepares images; with a gate, it waits at 16 images until that file is there."""

    def __init__(self, root: Path, told: Path, pause_s: float, gate: Path) -> None:
        self.told, self._errors = told, told.with_suffix(".errors")
        words = [sys.executable, "-c", PREPARE, str(root), str(told), str(pause_s), str(gate)]
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(words, stderr=errors)

    def errors(self) -> str:
        """What it has said on stderr so far."""
        return self._errors.read_text()

    def progress(self) -> list[int]:
        """What it has told so far."""
        return [int(line) for line in self.told.read_text().split()] if self.told.exists() else []

    def wait(self) -> None:
        """Until it has ended, well."""
        assert self.process.wait(60) == 0, self.errors()


@pytest.fixture
def preparing(tmp_path: Path) -> Iterator[Callable[..., Preparing]]:
    """A function that starts a process that prepares; none is left at the end."""
    with contextlib.ExitStack() as ends:

        def start(root: Path, name: str, pause_s: float = 0.0, gate: Path = tmp_path) -> Preparing:
            found = Preparing(root, tmp_path / f"{name}.told", pause_s, gate)
            ends.enter_context(found.process)
            ends.callback(found.process.kill)
            return found

        yield start


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.005)


def test_a_killed_preparation_goes_on_where_it_was(tmp_path, preparing):
    write_images(tmp_path / "photos", 400)  # enough for processes that decode
    root = tmp_path / "photos"
    before = 0
    for number in range(3):
        work = preparing(root, f"killed-{number}", 0.03)
        wanted = before + 60
        until(lambda work=work, wanted=wanted: max(work.progress(), default=0) >= wanted)
        work.process.send_signal(signal.SIGKILL)
        work.process.wait()
        assert work.progress()[0] >= before
        before = max(work.progress()) - 8  # the last chunk may not have been noted
    assert not list(folder_of(root).glob("*[!t]"))  # nothing but what ends in .part
    assert 0 < decoded_in(root) <= 400 - before
    check_is_right(prepare(root), root)


def test_two_processes_prepare_once(root, preparing, tmp_path):
    first = preparing(root, "first", gate=tmp_path / "gate")
    until(lambda: 16 in first.progress())
    second = preparing(root, "second")
    until(second.errors)
    (tmp_path / "gate").touch()
    first.wait()
    second.wait()
    assert first.errors() == ""
    assert second.errors() == f"velodrome: {root} is being prepared by another process; waiting for it.\n"
    assert first.progress() == [0, 8, 16, 20]
    assert second.progress() == []
    check_is_right(prepare(root), root)


def test_who_waits_goes_on_where_the_other_one_died(root, preparing, tmp_path):
    first = preparing(root, "first", gate=tmp_path / "gate")
    until(lambda: 16 in first.progress())
    second = preparing(root, "second")
    until(second.errors)
    first.process.kill()
    second.wait()
    assert second.progress() == [8, 16, 20]
    check_is_right(prepare(root), root)


# A disk that is full, or may not be written.


def test_too_little_space_is_found_before_anything_is_written(root, monkeypatch):
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4096))
    with pytest.raises(DataError) as caught:
        prepare(root, side=1024)
    assert caught.value.problem == (
        f"20 images of 1024x1024 pixels take 60.0 MiB in {folder_of(root)}, where 0.0 MiB are free."
    )
    for word in ("XDG_CACHE_HOME", "--image-size"):
        assert word in caught.value.remedy
    assert not any(path.is_file() for path in folder_of(root).rglob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="only there space is taken at once")
def test_a_disk_that_is_full_after_all_leaves_nothing_behind(root, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(DataError, match=r"cannot be used: No space left on device\. Free some space"):
        prepare(root)
    assert not any(path.is_file() for path in folder_of(root).rglob("*"))


def test_a_file_system_that_takes_no_space_at_once_is_no_obstacle(root, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    check_is_right(prepare(root), root)


@pytest.mark.parametrize("number", range(9))
def test_a_disk_that_fills_up_meanwhile_is_a_clear_error(root, monkeypatch, number):
    """At every moment at which something is seen onto the disk."""
    monkeypatch.setattr(prepared, "SECONDS_BETWEEN_NOTES", 0.0)
    done, sync = [], os.fsync

    def fill(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > number:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(DataError, match=r"cannot be used: No space left on device\. Free some space"):
        prepare(root)
    monkeypatch.setattr(os, "fsync", sync)
    assert not list(folder_of(root).glob("*[!t]"))  # nothing but what ends in .part
    check_is_right(prepare(root), root)


def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(root, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"^Cache folder .* cannot be used: .*\. Set the environment variable XDG"
    ):
        prepare(root)


def test_a_cache_folder_that_may_not_be_written(root, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere
    with pytest.raises(
        DataError, match=r"cannot be used: Permission denied\. Set the environment variable XDG"
    ):
        prepare(root)


def test_who_has_no_home_folder_is_told(root, monkeypatch):
    monkeypatch.setattr("velodrome.data.own.prepared_cache.cache_folder", lambda: Path("~/.cache/velodrome"))
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="XDG_CACHE_HOME"):
        prepare(root)
    assert not (root / "~").exists()


def test_a_finished_preparation_may_lie_where_nothing_may_be_written(root, monkeypatch):
    prepare(root)
    for name in ("mkdir", "unlink", "rename"):
        monkeypatch.setattr(Path, name, None)
    check_is_right(prepare(root), root)


# Clearing up.


def test_what_is_cleared_is_gone_and_its_bytes_are_counted(root, tmp_path):
    write_images(tmp_path / "others", 3)
    size = sum(path.stat().st_size for path in prepare(root).folder.iterdir())
    prepare(tmp_path / "others")
    assert clear(root) == size
    assert clear(root) == 0
    assert not folder_of(root).exists()
    assert decoded_in(tmp_path / "others") == 0
    assert decoded_in(root) == 20
    assert clear_all() > size
    assert not folder_of(root).exists()
    assert not folder_of(tmp_path / "others").exists()
    assert clear_all() == 0


def test_what_was_prepared_of_a_folder_that_is_gone_is_cleared(root, monkeypatch, tmp_path):
    prepare(root)
    shutil.rmtree(root)
    (tmp_path / "link").symlink_to(tmp_path)
    for path in (root, Path("photos"), Path("../photos"), tmp_path / "link" / "photos"):
        monkeypatch.chdir(tmp_path / "cache" if ".." in path.parts else tmp_path)
        assert folder_of(path) == folder_of(root)
    monkeypatch.chdir(tmp_path)
    assert clear(Path("photos")) > 0
    assert not folder_of(root).exists()
    assert folder_of(Path("a\0b")).parent == cache_folder()  # which no path is


def test_images_that_are_mapped_outlive_what_is_cleared(root):
    found = prepare(root)
    expected = np.array(found.images_u8)
    clear(root)
    np.testing.assert_array_equal(found.images_u8, expected)


def test_nothing_is_cleared_while_it_is_prepared(root, preparing, tmp_path):
    work = preparing(root, "first", gate=tmp_path / "gate")
    until(work.progress)
    for remove in (lambda: clear(root), clear_all):
        with pytest.raises(DataError, match=r"is in use by another process.*\. Wait until that has ended"):
            remove()
    (tmp_path / "gate").touch()
    work.wait()
    check_is_right(prepare(root), root)
    assert clear(root) > 0


def test_a_folder_of_another_version_is_not_taken_for_ours(root, monkeypatch):
    before = prepare(root).folder
    monkeypatch.setattr(prepared, "FORMAT", 99)
    monkeypatch.setattr(prepared_folder, "FORMAT", 99)
    assert prepare(root).folder != before
