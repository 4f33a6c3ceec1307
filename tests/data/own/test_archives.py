"""Archives are unpacked whole or not at all, and nothing in them leads out of the folder."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from collections import namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velodrome.data.own import archives, unpacking
from velodrome.data.own.archives import is_archive, unpack
from velodrome.errors import DataError, visible

CONTENTS = {
    "in/cat/1.png": b"first",
    "in/dog/2.JPG": b"second " * 1000,
    "in/labels.csv": b"",
    "in/readme.txt": b"x",
}
TAKEN = {name: CONTENTS[name] for name in ("in/cat/1.png", "in/dog/2.JPG", "in/labels.csv")}
KINDS = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".TAR.GZ", ".Zip"]


def pack(path: Path, contents: Mapping[str, bytes] = CONTENTS) -> Path:
    """An archive of the kind that the name says."""
    name = path.name.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are there twice
            for member, content in contents.items():
                file.writestr(member, content)
        return path
    kinds = {"gz": "gz", "tgz": "gz", "bz2": "bz2", "tbz2": "bz2", "xz": "xz", "txz": "xz", "tar": ""}
    with tarfile.open(path, f"w:{kinds[name.rpartition('.')[2]]}") as file:
        for member, content in contents.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def with_members(path: Path, *infos: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as file:
        for info in infos:
            file.addfile(info, io.BytesIO(bytes(max(0, info.size))) if info.isreg() else None)
    return path


def contents_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != unpacking.RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def problem_of(archive: Path) -> str:
    """What is said of an archive; nothing of it may remain, and nothing may be outside."""
    workspace, before = archive.parent / "workspace", everything_below(archive.parent)
    with pytest.raises(DataError) as caught:
        unpack(archive, workspace)
    assert visible(str(caught.value)) == str(caught.value)
    assert str(archive) in caught.value.problem
    if workspace.exists():
        assert [item for item in workspace.iterdir() if not item.name.endswith(".lock")] == []
    assert everything_below(archive.parent) == before
    return str(caught.value)


def everything_below(folder: Path) -> set[Path]:
    workspace = folder / "workspace"
    return {item for item in folder.rglob("*") if not item.is_relative_to(workspace)}


# What is unpacked.


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_tables_are_unpacked(tmp_path, kind):
    archive = pack(tmp_path / f"photos of me{kind}")
    assert is_archive(archive)
    folder = unpack(archive, tmp_path / "deep" / "workspace")
    assert contents_of(folder) == TAKEN
    assert folder.parent == tmp_path / "deep" / "workspace"
    assert folder.name.startswith("photos_of_me-")
    assert unpacking.left_out_of(folder) == {".txt": 1}


@pytest.mark.parametrize("name", ["a.png", "a.gz", "a.csv.gz", "a.7z", "a.rar", "zip", "a.zip.part"])
def test_other_files_are_no_archives(name):
    assert not is_archive(Path(name))


def test_the_kind_of_compression_is_seen_in_the_file(tmp_path):
    pack(tmp_path / "a.tar.gz").rename(tmp_path / "b.tar")
    assert contents_of(unpack(tmp_path / "b.tar", tmp_path / "w")) == TAKEN


def test_hidden_files_and_those_of_systems_are_left_out(tmp_path):
    names = ["__MACOSX/._1.png", ".git/2.png", "cat/.3.png", "@eaDir/4.png", "cat/5.png", "./cat//6.png"]
    folder = unpack(pack(tmp_path / "a.zip", dict.fromkeys(names, b"x")), tmp_path / "w")
    assert sorted(contents_of(folder)) == ["cat/5.png", "cat/6.png"]


def test_files_get_no_permissions_from_an_archive(tmp_path):
    info = tarfile.TarInfo("cat/1.png")
    info.mode, info.size = 0o6777, 3
    folder = unpack(with_members(tmp_path / "a.tar", info), tmp_path / "w")
    assert (folder / "cat" / "1.png").stat().st_mode & 0o7111 == 0


def test_backslashes_separate_folders(tmp_path):
    archive = pack(tmp_path / "a.zip", {"cat\\deep\\1.png": b"x", "dog\\": b""})
    assert contents_of(unpack(archive, tmp_path / "w")) == {"cat/deep/1.png": b"x"}


@pytest.mark.parametrize("name", ["katzenfüße/ü.png", "日本/語.png"])
@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_names_in_utf8(tmp_path, name, kind):
    assert contents_of(unpack(pack(tmp_path / f"a{kind}", {name: b"x"}), tmp_path / "w")) == {name: b"x"}


@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "füße/日.png"), ("cp437", "füße/é.png")])
def test_names_in_a_zip_that_does_not_say_how_they_are_encoded(tmp_path, encoding, name):
    raw = name.encode(encoding)
    stand_in = "x" * (len(raw) - 4) + ".png"
    content = pack(tmp_path / "a.zip", {stand_in: b"x"}).read_bytes()
    assert content.count(stand_in.encode()) == 2
    (tmp_path / "a.zip").write_bytes(content.replace(stand_in.encode(), raw))
    assert list(contents_of(unpack(tmp_path / "a.zip", tmp_path / "w"))) == [name]


def test_names_in_a_tar_that_are_no_utf8(tmp_path):
    archive = pack(tmp_path / "a.tar", {os.fsdecode(b"cat/\xff.png"): b"x"})
    folder = unpack(archive, tmp_path / "w")
    assert [os.fsencode(item.name) for item in (folder / "cat").iterdir()] == [b"\xff.png"]


# Once.


def test_what_is_unpacked_is_used_again(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.tar.gz")
    folder = unpack(archive, tmp_path / "w")
    monkeypatch.setattr(archives, "opened_archive", None)
    assert unpack(archive, tmp_path / "w") == folder
    monkeypatch.chdir(tmp_path)
    assert unpack(Path("a.tar.gz"), tmp_path / "w") == folder


def test_a_changed_archive_is_unpacked_anew(tmp_path):
    first = unpack(pack(tmp_path / "a.zip"), tmp_path / "w")
    second = unpack(pack(tmp_path / "a.zip", {"other.png": b"x"}), tmp_path / "w")
    assert first != second
    assert contents_of(second) == {"other.png": b"x"}


def folders_in(workspace: Path) -> list[Path]:
    return [item for item in workspace.iterdir() if item.is_dir()]


def test_only_the_newest_version_of_an_archive_is_kept(tmp_path):
    other = unpack(pack(tmp_path / "a.tar"), tmp_path / "w")
    for content in (b"x", b"xx", b"xxx"):
        newest = unpack(pack(tmp_path / "a.zip", {"1.png": content}), tmp_path / "w")
        assert sorted(folders_in(tmp_path / "w")) == sorted([other, newest])
    assert contents_of(newest) == {"1.png": b"xxx"}
    assert contents_of(other) == TAKEN


@contextlib.contextmanager
def another_user(archive: Path, workspace: Path) -> Iterator[Path]:
    """The folder that another process uses, until the block ends."""
    code = (
        "import sys; from pathlib import Path; from velodrome.data.own import archives\n"
        "print(archives.unpack(Path(sys.argv[1]), Path(sys.argv[2])), flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, archive, workspace]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Path(process.stdout.readline().rstrip("\n"))
        finally:
            process.kill()


@pytest.mark.parametrize("is_there", [True, False])
def test_what_another_process_uses_is_kept_until_it_ends(tmp_path, is_there):
    archive, workspace = pack(tmp_path / "a.zip"), tmp_path / "w"
    if is_there:  # by whomever it was unpacked
        unpack(archive, workspace)
    with another_user(archive, workspace) as used:
        newest = unpack(pack(archive, {"1.png": b"x"}), workspace)
        assert sorted(folders_in(workspace)) == sorted([used, newest])
        assert contents_of(used) == TAKEN
        assert unpack(archive, workspace) == newest
        assert contents_of(used) == TAKEN
    assert unpack(archive, workspace) == newest
    assert folders_in(workspace) == [newest]
    assert len(list(workspace.glob(".*.lock"))) == 2  # of the archive, and ours


def test_two_processes_that_use_one_version(tmp_path):
    archive, workspace = pack(tmp_path / "a.zip"), tmp_path / "w"
    with another_user(archive, workspace) as used:
        with another_user(archive, workspace) as same:
            assert same == used
        unpack(pack(archive, {"1.png": b"x"}), workspace)
        assert contents_of(used) == TAKEN


def test_what_is_unpacked_may_lie_where_nothing_may_be_written(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip")
    folder = unpack(archive, tmp_path / "w")
    unpacking._used_here.clear()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(unpacking.FileLock, "acquire", refuse)
    assert unpack(archive, tmp_path / "w") == folder


def test_a_copy_is_used_again_after_the_cache_was_cleared(tmp_path):
    """The lock beside it went too, and is made again."""
    archive, workspace = pack(tmp_path / "a.zip"), tmp_path / "w"
    unpack(archive, workspace)
    shutil.rmtree(workspace)
    folder = unpack(archive, workspace)
    assert list(workspace.glob(f".{folder.name}.*.lock"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "in" / "cat" / "1.png").unlink(),
        lambda folder: (folder / "in" / "cat" / "1.png").write_bytes(b""),
        lambda folder: shutil.rmtree(folder / "in"),
        lambda folder: (folder / unpacking.RECORD).unlink(),
        lambda folder: (folder / unpacking.RECORD).write_text("{"),
        lambda folder: (folder / unpacking.RECORD).write_text(json.dumps([1])),
        lambda folder: (folder / unpacking.RECORD).write_text("{}"),
    ],
)
def test_what_is_not_complete_any_more_is_unpacked_anew(tmp_path, spoil):
    archive = pack(tmp_path / "a.zip")
    folder = unpack(archive, tmp_path / "w")
    spoil(folder)
    assert unpack(archive, tmp_path / "w") == folder
    assert contents_of(folder) == TAKEN
    assert [item.name for item in (tmp_path / "w").iterdir() if item.is_dir()] == [folder.name]


def test_a_killed_process_leaves_nothing_for_long(tmp_path):
    archive = pack(tmp_path / "a.zip")
    code = (
        "import os, sys; from pathlib import Path; from velodrome.data.own import archives\n"
        "def die(*_):\n    os._exit(9)\n    yield\n"
        "archives.pieces = die\n"
        "archives.unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, archive, tmp_path / "w"], check=False)
    assert killed.returncode == 9
    assert len([item for item in (tmp_path / "w").iterdir() if item.is_dir()]) == 1
    folder = unpack(archive, tmp_path / "w")
    assert contents_of(folder) == TAKEN
    assert [item for item in (tmp_path / "w").iterdir() if item.is_dir()] == [folder]


def test_of_many_at_once_one_unpacks(tmp_path, monkeypatch):
    archive, made, write = pack(tmp_path / "a.zip"), [], archives._write

    def count(*given: object) -> object:
        made.append(given)
        return write(*given)

    monkeypatch.setattr(archives, "_write", count)
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(unpack(archive, tmp_path / "w"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 8
    assert len(set(folders)) == 1
    assert len(made) == 1
    assert contents_of(folders[0]) == TAKEN


# What is refused.


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../evil.png", "holds ../evil.png, which leads out of it"),
        ("a/../../evil.png", "which leads out of it"),
        ("a\\..\\..\\evil.png", "which leads out of it"),
        ("..", "which leads out of it"),
        ("/evil.png", "which is an absolute path"),
        ("\\evil.png", "which is an absolute path"),
        ("C:\\evil.png", "which is an absolute path"),
        ("c:evil.png", "which is an absolute path"),
        ("../evil.txt", "which leads out of it"),
        ("d/" * 60 + "evil.png", "which lies more than 50 folders deep"),
        ("CAT/1.PNG", "holds CAT/1.PNG, which many systems take for the same file as cat/1.png"),
        ("cat/1.png/x.png", "holds cat/1.png/x.png, which lies in a file and not in a folder"),
        ("\x1b[2J/../x.png", "holds \\x1b[2J/../x.png, which"),
    ],
)
def test_names_that_are_refused(tmp_path, kind, name, words):
    archive = pack(tmp_path / f"a{kind}", {"cat/1.png": b"x", name: b"evil"})
    problem = problem_of(archive)
    assert words in problem
    assert "Nothing was unpacked. If you trust the archive, unpack it by hand" in problem
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
@pytest.mark.parametrize("name", ["cat/1.png", "link"])
def test_links_and_devices_in_a_tar(tmp_path, kind, name):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    problem = problem_of(with_members(tmp_path / "a.tar", info))
    assert (
        f"holds {name}, which is {'a link' if info.issym() or info.islnk() else 'no plain file'}" in problem
    )


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip(tmp_path, kind):
    info = zipfile.ZipInfo("cat/1.png")
    info.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    assert "holds cat/1.png, which is " in problem_of(tmp_path / "a.zip")


def test_a_sparse_file_in_a_tar(tmp_path):
    info = tarfile.TarInfo("1.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    assert "which is no plain file" in problem_of(with_members(tmp_path / "a.tar", info))


def patched(path: Path, local: int, central: int, value: bytes) -> Path:
    """A zip file with other bytes at these places of the headers of its first member."""
    content = bytearray(path.read_bytes())
    for start, place in ((content.index(b"PK\3\4"), local), (content.index(b"PK\1\2"), central)):
        content[start + place : start + place + len(value)] = value
    path.write_bytes(content)
    return path


def test_an_encrypted_zip(tmp_path):
    path = patched(pack(tmp_path / "a.zip"), 6, 8, b"\1")
    assert "holds in/cat/1.png, which is encrypted with a password" in problem_of(path)


def test_a_zip_that_is_packed_by_an_unknown_method(tmp_path):
    path = patched(pack(tmp_path / "a.zip"), 8, 10, b"\x09\0")
    assert "which is packed by a method that is not known (9)" in problem_of(path)


def test_a_name_with_a_null_character(tmp_path):
    content = pack(tmp_path / "a.zip", {"cat/X.png": b"x"}).read_bytes()
    (tmp_path / "a.zip").write_bytes(content.replace(b"cat/X.png", b"cat/\0.png"))
    assert "holds cat/\\x00.png, which no file can be called" in problem_of(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", [".zip", ".tar"])
def test_one_name_twice(tmp_path, kind):
    archive = pack(tmp_path / f"a{kind}", {"cat/1.png": b"x", "./cat/1.png": b"y"})
    assert "which it holds twice" in problem_of(archive)


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
def test_too_many_members(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    assert "holds more than 3 files and folders, the most that are unpacked" in problem_of(
        pack(tmp_path / f"a{kind}")
    )


def test_nothing_to_unpack(tmp_path):
    problem = problem_of(pack(tmp_path / "a.zip", {"a.txt": b"", "b.zip": b""}))
    assert "holds no image and no table, only other files: 1 .txt, 1 .zip." in problem
    assert "holds no image and no table, and no other file." in problem_of(pack(tmp_path / "b.zip", {}))


def test_zstd_needs_a_newer_python(tmp_path):
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    problem = problem_of(tmp_path / "a.tar.zst")
    assert "from version 3.14 on" in problem or "truncated or damaged" in problem


# Bombs and room.


@pytest.mark.parametrize("kind", [".zip", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(unpacking, "HARMLESS_BYTES", 2**16)
    archive = pack(tmp_path / f"a{kind}", {"cat/1.png": b"x", "cat/2.png": bytes(2**23)})
    problem = problem_of(archive)
    assert "at most 200 times its own size and 1,100 GB are unpacked. It may be a trap" in problem
    assert not (tmp_path / "workspace").exists()


def test_a_bomb_that_is_no_image_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "HARMLESS_BYTES", 2**16)
    archive = pack(tmp_path / "a.tar.gz", {"bomb.txt": bytes(2**23), "cat/2.png": b"x"})
    assert "It may be a trap" in problem_of(archive)


def test_a_header_that_would_fill_the_memory(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**27
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**16))
    assert "is truncated or damaged: a header has an impossible length" in problem_of(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_size_below_zero_is_not_followed_for_ever(tmp_path, kind):
    info = tarfile.TarInfo("cat/1.png")
    info.type, info.size = kind, -512
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**14))
    assert "is truncated or damaged: " in problem_of(tmp_path / "a.tar")


def test_too_little_room(tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 1000))
    problem = problem_of(pack(tmp_path / "a.zip"))
    assert "takes 0.0 GB unpacked, but " in problem
    assert "has only 0.0 GB free. Make room there" in problem


def test_a_disk_that_fills_up_meanwhile(tmp_path, monkeypatch):
    def fail(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives, "_write", fail)
    problem = problem_of(pack(tmp_path / "a.zip"))
    assert "cannot be unpacked into" in problem
    assert "no space left on device. Make room there" in problem


def test_a_workspace_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be unpacked into .*: not a directory"):
        unpack(pack(tmp_path / "a.zip"), tmp_path / "file" / "workspace")


# Damage.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_truncated_archives(tmp_path, kind, share):
    archive = pack(tmp_path / f"a{kind}", CONTENTS | {"3.png": os.urandom(5000)})
    content = archive.read_bytes()
    end = len(content) if kind.lower() != ".tar" else len(content.rstrip(b"\0"))
    archive.write_bytes(content[: int(share * end)])
    assert "is truncated or damaged: " in problem_of(archive)


def test_a_tar_that_ends_between_two_files(tmp_path):
    content = pack(tmp_path / "a.tar", {"1.png": bytes(512), "2.png": bytes(512)}).read_bytes()
    for end in (1024, 2048):
        (tmp_path / "a.tar").write_bytes(content[:end])
        assert "is truncated or damaged: it breaks off" in problem_of(tmp_path / "a.tar")


def test_a_tar_with_damage_between_two_files(tmp_path):
    content = bytearray(pack(tmp_path / "a.tar", {"1.png": bytes(512), "2.png": bytes(512)}).read_bytes())
    content[1024 + 148] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    assert "is truncated or damaged: it breaks off" in problem_of(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [".zip", ".tar.gz", ".tar.xz"])
def test_a_changed_bit_is_found_by_the_checksum(tmp_path, kind):
    archive = pack(tmp_path / f"a{kind}", {"1.png": os.urandom(20_000), "2.png": os.urandom(20_000)})
    content = bytearray(archive.read_bytes())
    content[len(content) // 3] ^= 1
    archive.write_bytes(content)
    assert "is truncated or damaged: " in problem_of(archive)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(13, "Permission denied"),
            "cannot be read: permission denied. Mend its permissions.",
        ),
        (MemoryError(), "takes more memory than there is"),
    ],
)
def test_an_archive_that_cannot_be_opened(tmp_path, monkeypatch, error, words):
    def refuse(*_: object) -> None:
        raise error

    archive = pack(tmp_path / "a.zip")
    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    assert words in problem_of(archive)


def test_a_zip_whose_member_is_shorter_than_it_says(tmp_path, monkeypatch):
    archive = pack(tmp_path / "a.zip")
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: io.BytesIO(b"x"))
    assert "is truncated or damaged: in/cat/1.png has another size than it says" in problem_of(archive)


def test_a_zip_that_is_none(tmp_path):
    (tmp_path / "a.zip").write_text("<html>Not found</html>")
    assert "is truncated or damaged: file is not a zip file" in problem_of(tmp_path / "a.zip")
    (tmp_path / "a.tar").write_text("<html>Not found</html>")
    assert "is truncated or damaged: " in problem_of(tmp_path / "a.tar")


# Any bytes at all.


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("valid")
    contents = {"cat/1.png": b"abc" * 50, "../x.png": b"", "link.png": b"x", "b.csv": b"path,label\n"}
    found = {}
    for kind in (".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"):
        for number in (1, 4):
            few = dict(list(contents.items())[:number])
            found[f"{number}{kind}"] = pack(folder / f"{number}{kind}", few).read_bytes()
    info = tarfile.TarInfo("cat/" + "long" * 40 + ".png")
    info.pax_headers = {"comment": "x" * 600}
    found["pax.tar"] = with_members(folder / "pax.tar", info).read_bytes()
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_archives_are_unpacked_or_a_data_error(scratch, packed, data):
    name = data.draw(st.sampled_from(sorted(packed)))
    content = bytearray(packed[name])
    interesting = st.sampled_from([0, 1, 0x2E, 0x2F, 0x5C, 0x31, 0x32, 0x35, 0x4C, 0x7F, 0x80, 0xFF])
    place = st.integers(0, len(content) - 1) | st.integers(0, min(600, len(content) - 1))
    changes = st.lists(st.tuples(place, interesting | st.integers(0, 255)), max_size=6)
    for where, value in data.draw(changes):
        content[where] = value
    if name.endswith(".tar") and data.draw(st.booleans()):  # so that changed headers count
        for start in range(0, len(content) - 512, 512):
            if content[start + 257 : start + 262] == b"ustar":
                header = bytes(content[start : start + 512])
                total = sum(header) - sum(header[148:156]) + 8 * 32
                content[start + 148 : start + 156] = b"%06o\0 " % total
    end = data.draw(st.integers(0, len(content)))
    content = content[: end if data.draw(st.booleans()) else None]
    check_bytes(scratch, name, bytes(content))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=st.sampled_from(["a.zip", "a.tar", "a.tgz"]), content=st.binary(max_size=700))
def test_any_bytes_are_unpacked_or_a_data_error(scratch, name, content):
    check_bytes(scratch, name, content)


def check_bytes(scratch: Path, name: str, content: bytes) -> None:
    """Only a DataError may come out, and only the workspace may be written into."""
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "own").mkdir(parents=True)
    archive = scratch / "own" / name
    archive.write_bytes(content)
    workspace = scratch / "own" / "workspace"
    try:
        folder = unpack(archive, workspace)
    except DataError as error:
        assert visible(str(error)) == str(error)  # noqa: PT017
        assert not workspace.exists() or {item.suffix for item in workspace.iterdir()} <= {".lock"}
    else:
        assert contents_of(folder)
        assert all(not item.is_symlink() for item in folder.rglob("*"))
        assert {item.suffix for item in workspace.iterdir()} <= {".lock", ""}
    assert [item.name for item in scratch.iterdir()] == ["own"]
    assert {item.name for item in (scratch / "own").iterdir()} <= {name, "workspace"}
