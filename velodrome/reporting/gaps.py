"""Files that a run folder may lack. A part of the page that cannot be made says so; the others are made."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from velodrome.errors import RunError
from velodrome.run.folder import RunFolder

T = TypeVar("T")


class Gap(Exception):  # noqa: N818 - not an error: the page tells its reader
    """A part of the page cannot be shown; the message is a sentence that says which file is the reason."""


def unless_gap(
    gaps: dict[str, str], part: str, read: Callable[[RunFolder], T], folder: RunFolder
) -> T | None:
    """What `read` makes of the folder; where that cannot be made, None and the reason in `gaps`."""
    try:
        return read(folder)
    except Gap as gap:
        gaps[part] = str(gap)
        return None


def name_of(folder: RunFolder, path: Path) -> str:
    """How the page calls a file of the folder: "gallery/maps.npy"."""
    return path.relative_to(folder.path).as_posix()


def missing(folder: RunFolder, path: Path) -> Gap:
    """The file is not there."""
    return Gap(f"{name_of(folder, path)} is missing.")


def damaged(folder: RunFolder, path: Path, problem: object) -> Gap:
    """The file is there, but it is not what it should be."""
    return Gap(f"{name_of(folder, path)} is damaged: {problem}.")


def read_object(folder: RunFolder, path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        Gap: the file is missing or holds something else.
    """
    try:
        found = folder.read_json(path)
    except RecursionError as error:
        raise damaged(folder, path, "it is nested too deeply") from error
    except RunError as error:
        raise damaged(folder, path, error.__cause__ or "it is not a JSON object") from error
    if found is None:
        raise missing(folder, path)
    return found


def read_image(folder: RunFolder, path: Path) -> str:
    """A WebP file as a data URI.

    Raises:
        Gap: the file is missing, cut short, or of another format.
    """
    content = read_bytes(folder, path)
    # RIFF, the number of bytes that follow, WEBP
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise damaged(folder, path, "it is no WebP image")
    if int.from_bytes(content[4:8], "little") + 8 > len(content):
        raise damaged(folder, path, "its end is missing")
    return data_uri("image/webp", content)


def read_size(folder: RunFolder, path: Path, found: Mapping[str, Any], key: str) -> tuple[int, int]:
    """Height and width of something, which a JSON object has under `key`.

    Args:
        folder: of the run.
        path: the file that the object is from.
        found: the object.
        key: such as "image_size".

    Raises:
        Gap: it is not two whole numbers from 1 up.
    """
    sides = found.get(key)
    numbers = [whole(side) for side in sides] if isinstance(sides, list) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise damaged(folder, path, f"{key} is not a height and a width")
    return numbers[0], numbers[1]


def whole(value: object) -> int | None:
    """The value where it is a whole number from 1 up, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def read_bytes(folder: RunFolder, path: Path) -> bytes:
    """The content of a file.

    Raises:
        Gap: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise missing(folder, path) from error
    except OSError as error:
        raise Gap(f"{name_of(folder, path)} cannot be read: {error.strerror or error}.") from error


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as a page can hold them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
