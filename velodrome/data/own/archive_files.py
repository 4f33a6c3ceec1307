"""What zip and tar files hold, compressed or not: one way to look at both. Nothing is written here."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from velodrome.data.own.damage import damage_named
from velodrome.data.own.listing import shown
from velodrome.data.own.unpacking import check_room, most_bytes
from velodrome.errors import DataError

KIND = "Archive"
# Files are read in pieces. A header of a tar is read at once, whatever size it claims, so it must be smaller.
PIECE_BYTES = 2**20
# How compressed files begin.
GZIP, BZIP2, XZ, ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA})


class Member(NamedTuple):
    """A file or folder in an archive.

    Attributes:
        name: as it is written in the archive.
        size: in bytes, unpacked.
        is_folder: whether it is a folder.
        refused: why it is not unpacked, completing "holds X, "; None where it may be.
        handle: what the archive knows it by.
    """

    name: str
    size: int
    is_folder: bool
    refused: str | None
    handle: zipfile.ZipInfo | tarfile.TarInfo


@dataclass(frozen=True)
class Opened:
    """An archive that is open.

    Attributes:
        members: yields all of them; raises whatever it may where the archive is damaged.
        open: gives the bytes of one.
    """

    members: Callable[[], Iterator[Member]]
    open: Callable[[Member], IO[bytes]]


@contextlib.contextmanager
def opened_archive(archive: Path) -> Iterator[Opened]:
    """Open a zip or tar file for as long as the block lasts.

    Args:
        archive: a zip file where its name ends in .zip, else a tar file, whatever it is compressed with.

    Raises:
        DataError: it is no such file, damaged, or compressed in a way that this Python does not know.
    """
    is_zip = archive.name.lower().endswith(".zip")
    with contextlib.ExitStack() as stack:
        with damage_named(archive, KIND):
            opened = (_open_zip if is_zip else _open_tar)(archive, stack)
        yield opened


def pieces(archive: Path, opened: Opened, member: Member) -> Iterator[bytes]:
    """The bytes of a member, no more of them than it claims to have.

    Raises:
        DataError: they are damaged, or more or fewer.
    """
    missing = member.size
    with damage_named(archive, KIND), opened.open(member) as content:
        while missing and (piece := content.read(min(PIECE_BYTES, missing))):
            missing -= len(piece)
            yield piece
        if missing or content.read(1):
            raise ValueError(f"{member.name} has another size than it says")


# Zip.


def _open_zip(archive: Path, stack: contextlib.ExitStack) -> Opened:
    opened = stack.enter_context(zipfile.ZipFile(archive))

    def members() -> Iterator[Member]:
        for info in opened.infolist():
            name = _zip_name(info)
            yield Member(name, info.file_size, name.endswith(("/", "\\")), _refused_in_zip(info), info)

    return Opened(members, lambda member: opened.open(cast(zipfile.ZipInfo, member.handle)))


def _refused_in_zip(info: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "which is a link"
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "which is no plain file"
    if info.flag_bits & 1:
        return "which is encrypted with a password"
    if info.compress_type not in ZIP_METHODS:
        return f"which is packed by a method that is not known ({info.compress_type})"
    return None


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name in UTF-8 where it is that: many programs write it without saying so."""
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return name.encode("cp437").decode("utf-8")
    return name


# Tar.


class _Bounded:
    """A file as `tarfile` reads it, with a limit to what is unpacked and to what is read at once."""

    def __init__(self, file: IO[bytes], archive: Path) -> None:
        self.file = file
        self.archive = archive
        self.packed_bytes = archive.stat().st_size
        self.most_bytes = most_bytes(self.packed_bytes)

    def read(self, count: int) -> bytes:
        if not 0 <= count <= PIECE_BYTES:
            raise ValueError("a header has an impossible length")
        self._check(self.file.tell() + count)
        return self.file.read(count)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._check(place)
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()

    def _check(self, place: int) -> None:
        if place > self.most_bytes + PIECE_BYTES:
            check_room(self.archive, self.archive.parent, KIND, place, self.packed_bytes)


def _open_tar(archive: Path, stack: contextlib.ExitStack) -> Opened:
    bounded = _Bounded(stack.enter_context(_decompressed(archive)), archive)
    file = cast(IO[bytes], bounded)
    opened = stack.enter_context(tarfile.TarFile(fileobj=file, mode="r", errors="surrogateescape"))

    def members() -> Iterator[Member]:
        for info in opened:
            if info.size < 0:  # it would go back and meet itself again, for ever
                raise ValueError(f"{info.name} has a size below 0")
            yield Member(info.name, info.size, info.isdir(), _refused_in_tar(info), info)
        _check_end(opened, bounded)

    def open_member(member: Member) -> IO[bytes]:
        content = opened.extractfile(cast(tarfile.TarInfo, member.handle))
        assert content is not None  # it is a plain file
        return content

    return Opened(members, open_member)


def _refused_in_tar(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "which is a link"
    if info.isdir() or (info.isreg() and not info.issparse()):
        return None
    return "which is no plain file"


def _check_end(opened: tarfile.TarFile, bounded: _Bounded) -> None:
    """Read to the end, where the checksums of compressed files stand. `tarfile` takes damage for the end."""
    bounded.seek(opened.offset)
    if bounded.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError("it breaks off")
    while bounded.read(PIECE_BYTES):
        pass


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(6)
    openers: dict[bytes, Any] = {GZIP: gzip.open, BZIP2: bz2.open, XZ: lzma.open, ZSTD: _open_zstd}
    for magic, opener in openers.items():
        if start.startswith(magic):
            return cast(IO[bytes], opener(archive, "rb"))
    return archive.open("rb")


def _open_zstd(archive: Path, mode: str) -> IO[bytes]:
    try:
        return cast(IO[bytes], importlib.import_module("compression.zstd").open(archive, mode))
    except ImportError as error:
        raise DataError(
            f"{KIND} {shown(archive)} is compressed with zstd, which Python can unpack from version 3.14 on.",
            "Unpack it by hand and give the folder, or pack it as .zip.",
        ) from error
