"""Published archives: found in the data folder or downloaded, verified, and put in place whole."""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from velodrome.errors import DataError

if TYPE_CHECKING:
    from tqdm import tqdm

# A source under this speed for one window is left for the next one: at 250 kB/s, 170 MB take 11 minutes.
MIN_BYTES_PER_S = 250_000
WINDOW_S = 10.0
CONNECT_TIMEOUT_S = 6.0
READ_TIMEOUT_S = 20.0
# Small, because the speed is looked at once a chunk.
CHUNK_BYTES = 16 * 1024

# The archive was verified first, so only our own table can be wrong.
REPORT = "The archive is as published, so this is a fault of velodrome: please report it."


@dataclass(frozen=True)
class Archive:
    """A published .tar.gz and the folder that it holds.

    Attributes:
        title: what people call the data set.
        filename: the name of the archive, also in the data folder.
        md5: of the archive, in hexadecimal.
        size_bytes: of the archive.
        folder: the folder in the archive, also in the data folder.
        members: file name in that folder -> md5. Nothing else is taken out of the archive.
        urls: where it can be had, fastest first; the last is the publisher's own.
    """

    title: str
    filename: str
    md5: str
    size_bytes: int
    folder: str
    members: Mapping[str, str]
    urls: tuple[str, ...]


class _TooSlowError(Exception):
    """The source gives fewer bytes a second than the least that was asked for."""


class _WrongBytesError(Exception):
    """The source gave another file than the published one."""


def md5_of(content: bytes) -> str:
    """The md5 of `content`, in hexadecimal; a check against damage, so FIPS builds may compute it too."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def is_present(archive: Archive, root: Path) -> bool:
    """Whether `install` has nothing to download: the folder or the archive lies in `root`.

    Raises:
        DataError: `root` cannot be looked into.
    """
    try:
        return (root / archive.folder).is_dir() or (root / archive.filename).exists()
    except OSError as error:
        raise _unusable(root, error) from error


def install(archive: Archive, root: Path, *, download: bool, progress: bool) -> None:
    """Put the archive's folder into `root`, complete and verified, or not at all.

    A folder that is there already is left as it is, for the caller to verify. A new one is made under a
    temporary name and renamed, so a kill leaves nothing half-written under the final name, and of two
    processes at once the second uses the folder of the first. An archive that the user put into `root`
    is used and kept; a downloaded one is removed.

    Args:
        archive: what to install.
        root: the data folder; made when missing.
        download: whether the network may be used.
        progress: whether to show a bar on stderr.

    Raises:
        DataError: the archive in `root` is damaged, no source has it, or `root` cannot be written.
    """
    local = root / archive.filename
    try:
        if (root / archive.folder).is_dir():
            return
        if local.exists():
            _verify_local(archive, local)
        elif not download:
            raise DataError(
                f"{archive.title} is not in {root}, and downloading is off.", _by_hand(archive, root)
            )
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{archive.folder}.", dir=root) as scratch_name:
            scratch = Path(scratch_name)
            if not local.exists():
                local = scratch / archive.filename
                _fetch(archive, local, root, progress)
            made = scratch / archive.folder
            _extract(archive, local, made)
            _move_into_place(made, root / archive.folder)
    except OSError as error:
        raise _unusable(root, error) from error


def _unusable(root: Path, error: OSError) -> DataError:
    return DataError(
        f"Data folder {root} cannot be used: {error.strerror or error}.",
        "Choose another folder with --data-root DIR or the environment variable VELODROME_DATA.",
    )


def _by_hand(archive: Archive, root: Path) -> str:
    return (
        f"Fetch {archive.urls[-1]} by hand and put it, still packed, into the folder {root}; "
        "or train on drawn images with --data shapes."
    )


def _md5_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _verify_local(archive: Archive, path: Path) -> None:
    found = _md5_of_file(path)
    if found != archive.md5:
        raise DataError(
            f"{path} is damaged: its md5 is {found}, and that of the published file is {archive.md5}.",
            "Replace that file, or delete it to download it anew.",
        )


def _fetch(archive: Archive, goal: Path, root: Path, progress: bool) -> None:
    """Download the archive to `goal` from the first source that gives the published bytes.

    A first pass leaves slow sources. A second one tries again and takes any speed, since then it is
    probably the user's own line that is slow.

    Raises:
        DataError: no source worked.
    """
    reasons: dict[str, str] = {}
    urls = list(archive.urls)
    for least_bytes_per_s in (MIN_BYTES_PER_S, 0):
        for url in tuple(urls):
            try:
                _fetch_from(url, archive, goal, least_bytes_per_s, progress)
                return
            except _TooSlowError:
                reasons[url] = "too slow"
            except _WrongBytesError as error:
                reasons[url] = f"wrong bytes, md5 {error}"
                urls.remove(url)  # it would be the same file again
            except OSError as error:
                reasons[url] = _network_reason(error)
    tried = "; ".join(f"{urlsplit(url).netloc}: {reason}" for url, reason in reasons.items())
    raise DataError(f"{archive.title} could not be downloaded ({tried}).", _by_hand(archive, root))


def _network_reason(error: OSError) -> str:
    """A few words for a network error; an error of the disk is raised again, as no source can mend it."""
    import requests  # noqa: PLC0415  slow to import, and needed for a download only

    if not isinstance(error, requests.RequestException):
        raise error
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "timed out"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__


class _Meter:
    """What pooch tells its progress to: moves the bar, and gives up on a slow source."""

    def __init__(self, bar: tqdm[NoReturn], least_bytes_per_s: float) -> None:
        self.bar = bar
        self.least_bytes_per_s = least_bytes_per_s
        self.total = 0  # set by pooch from the answer's header
        self.window_start_s: float | None = None  # until the first bytes: connecting is not counted
        self.window_bytes = 0

    def update(self, count: int) -> None:
        """Note that `count` more bytes came.

        Raises:
            _TooSlowError: this window's speed is under the least.
        """
        self.bar.update(count)
        now_s = time.monotonic()
        if self.window_start_s is None:
            self.window_start_s = now_s
            return
        self.window_bytes += count
        elapsed_s = now_s - self.window_start_s
        if elapsed_s >= WINDOW_S:
            if self.window_bytes < self.least_bytes_per_s * elapsed_s:
                raise _TooSlowError
            self.window_start_s = now_s
            self.window_bytes = 0

    def reset(self) -> None:
        """Back to zero; pooch does so before it sets the bar to the exact size."""
        self.bar.reset()

    def close(self) -> None:
        """Leave the bar on the screen; pooch does so only when it is full, and others are wiped."""
        self.bar.leave = True
        self.bar.close()


def _fetch_from(url: str, archive: Archive, goal: Path, least_bytes_per_s: float, progress: bool) -> None:
    """Download `url` to `goal` and compare its md5.

    Raises:
        _TooSlowError: under `least_bytes_per_s`.
        _WrongBytesError: another md5 than published, which is the error's text.
        OSError: from the network (requests.RequestException) or the disk.
    """
    import pooch  # type: ignore[import-untyped]  # noqa: PLC0415  as above
    from tqdm import tqdm  # noqa: PLC0415

    with tqdm(
        desc=f"{archive.title} from {urlsplit(url).netloc}",
        total=archive.size_bytes,
        unit="B",
        unit_scale=True,
        disable=not progress,
        leave=False,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log file needs few lines
    ) as bar:
        fetch = pooch.HTTPDownloader(
            progressbar=_Meter(bar, least_bytes_per_s),
            chunk_size=CHUNK_BYTES,
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            # identity: a server must not offer to unpack the archive on the way.
            headers={"User-Agent": "velodrome", "Accept-Encoding": "identity"},
        )
        fetch(url, str(goal), None)
    found = _md5_of_file(goal)
    if found != archive.md5:
        raise _WrongBytesError(found)


def _extract(archive: Archive, path: Path, made: Path) -> None:
    """Write the members, verified and flushed to disk, into the new folder `made`.

    Only regular files with an expected name are read, and their place is ours to say, so that no name
    in an archive can lead out of the folder.

    Raises:
        DataError: a member is missing or is not the published file.
    """
    names = {f"{archive.folder}/{name}": name for name in archive.members}
    made.mkdir()
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() and member.name in names else None
            if content is None:
                continue
            name = names.pop(member.name)
            data = content.read()
            if md5_of(data) != archive.members[name]:
                raise DataError(f"{path} holds another {name} than was published.", REPORT)
            with (made / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    if names:
        raise DataError(f"{path} lacks {', '.join(names)}.", REPORT)
    _sync_folder(made)


def _move_into_place(made: Path, goal: Path) -> None:
    try:
        made.rename(goal)
    except OSError:
        # A folder is never renamed onto one with files in it: another process was first, and its
        # files went through the same checks.
        if not goal.is_dir():
            raise
    _sync_folder(goal.parent)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's list of names to disk, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
