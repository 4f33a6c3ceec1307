"""Image sets that were read and verified once, kept in the user cache folder so that they are ready sooner.

Reading a data set means hashing, unpickling and reordering its published files, or drawing its images. What
came out of that is kept in `ready/cifar10.safetensors`, with a record of the files that it came from and a
checksum. It is used while those files are as they were; anything else means reading them again. The cache may
be deleted at any time, and where it cannot be written, all goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pooch  # type: ignore[import-untyped]
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from velodrome.data.imageset import ImageSet

# To be raised whenever reading the same files gives other image sets than before, or they are kept otherwise.
FORMAT = 1
# Large enough for a thread to be worth its while, small enough for the threads to finish together.
PIECE_BYTES = 4 * 2**20

TrainAndTest = tuple[ImageSet, ImageSet]
Tensors = dict[str, NDArray[Any]]


def ready_folder() -> Path:
    """The folder of the cache; apart from the data folder, which may be shared and which we never change."""
    return Path(pooch.os_cache("velodrome")) / "ready"


def read_cached(name: str, sources: Mapping[Path, str], read: Callable[[], TrainAndTest]) -> TrainAndTest:
    """What `read` returns, or what it returned before if no source file has changed since.

    The sources are only looked at, not read: a file whose path, size, time of change and version are all
    those of the record counts as the same. The cache holds what came from verified files and has a
    checksum of its own, so it never gives other images than the published ones.

    Args:
        name: of the data set, which has one place in the cache.
        sources: every file that the images come from -> its version: the published md5, which `read` compares
            it with; or, for a module that draws them, what else the images depend on.
        read: returns the training and the test images; its errors are passed on.

    Returns:
        Training and test images, whose arrays are writeable and belong to the caller.
    """
    # Before reading, so that a file which is replaced meanwhile is found to differ from the record.
    record = _record_of(sources)
    path = ready_folder() / f"{name}.safetensors"
    if record is None or not path.is_absolute():  # who has no home folder gets "~/.cache", as it stands
        return read()
    ready = _load(path, record)
    if ready is None:
        ready = read()
        _save(path, record, ready)
    return ready


def _record_of(sources: Mapping[Path, str]) -> str | None:
    """The format and the state of the source files, as JSON; None where one of them is missing."""
    files = []
    try:
        for path, version in sources.items():
            found = path.stat()
            # Resolved, so that a file is the same one however its path was written.
            files.append([str(path.resolve()), found.st_size, found.st_mtime_ns, version])
    except OSError:
        return None
    return json.dumps({"format": FORMAT, "sources": files})


def _load(path: Path, record: str) -> TrainAndTest | None:
    """What was saved with this record; None where nothing was, or where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            if about.get("record") != record:
                return None
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError):
        return None
    return _image_sets(tensors) if about.get("sha256") == _sha256_of(tensors, record) else None


def _save(path: Path, record: str, ready: TrainAndTest) -> None:
    """Write `path`, whole or not at all; without fsync, because the checksum finds what a power cut tore."""
    # One name for all processes, so that kills leave no more than one behind. Those that write at once write
    # the same bytes, and until all have, the checksum does not fit.
    temporary = path.with_name(f".{path.name}.tmp")
    # No space, no permission, no such place: the next run reads the files again, that is all.
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = _tensors(ready)
        try:
            save_file(tensors, temporary, {"record": record, "sha256": _sha256_of(tensors, record)})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _tensors(ready: TrainAndTest) -> Tensors:
    train, test = ready
    names = {"classes": train.classes, "train": list(train.paths), "test": list(test.paths)}
    return {
        "train_images": np.asarray(train.images_u8),  # (N, H, W, 3) uint8
        "train_labels": train.labels,  # (N,) int64
        "test_images": np.asarray(test.images_u8),
        "test_labels": test.labels,
        "names": np.frombuffer(json.dumps(names).encode(), np.uint8),  # too many for the header
    }


def _image_sets(tensors: Tensors) -> TrainAndTest:
    names = json.loads(tensors["names"].tobytes())
    classes = tuple(names["classes"])
    return (
        ImageSet(tensors["train_images"], tensors["train_labels"], classes, names["train"]),
        ImageSet(tensors["test_images"], tensors["test_labels"], classes, names["test"]),
    )


def _sha256_of(tensors: Tensors, record: str) -> str:
    """The checksum of the record and of all names, types, shapes and values.

    Hashing releases the interpreter lock, so it is done in pieces, side by side.
    """
    kinds = [(name, str(tensor.dtype), tensor.shape) for name, tensor in sorted(tensors.items())]
    contents = [tensors[name].reshape(-1).view(np.uint8) for name, _, _ in kinds]
    pieces = [
        content[start : start + PIECE_BYTES]
        for content in contents
        for start in range(0, len(content), PIECE_BYTES)
    ]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        sums = list(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
    return hashlib.sha256(json.dumps([record, kinds]).encode() + b"".join(sums)).hexdigest()
