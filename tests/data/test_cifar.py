"""Reading CIFAR files: tiny ones, pickled as Python 2 and an old NumPy did."""

import dataclasses
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from velodrome.data import cifar
from velodrome.data.cifar import CIFAR10, CIFAR100, CifarFiles, cifar_is_present, load_cifar
from velodrome.errors import DataError

ROWS = 4


def encoded(value: object) -> bytes:
    """The pickle opcodes that Python 2 wrote for `value`; Python 3 has no way to write its strings."""
    match value:
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case int():
            return b"J" + struct.pack("<i", value)
        case list():
            return b"](" + b"".join(map(encoded, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encoded(key) + encoded(item) for key, item in value.items()) + b"u"
        case np.ndarray():
            made = (
                b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + encoded(b"b") + b"\x87R"
            )
            shape = encoded(value.shape[0]) + encoded(value.shape[1]) + b"\x86"
            dtype = b"cnumpy\ndtype\n" + encoded(b"u1") + b"K\x00K\x01\x87R"
            dtype += b"(K\x03" + encoded(b"|") + b"NNN" + encoded(-1) + encoded(-1) + b"K\x00tb"
            return made + b"(K\x01" + shape + dtype + b"\x89" + encoded(value.tobytes()) + b"tb"
    raise TypeError(type(value))


def python2_pickle(value: object) -> bytes:
    return b"\x80\x02" + encoded(value) + b"."


def pixels_of(file_number: int) -> np.ndarray:
    """(ROWS, 3, 32, 32) uint8."""
    return np.random.default_rng(file_number).integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8)


def contents_of(files: CifarFiles) -> dict[str, bytes]:
    """File name -> bytes of a data set in which file i holds the labels i, i + 1, i + 2, i + 3."""
    contents = {
        files.meta: python2_pickle({b"num_vis": 3072, files.classes_key: [b"cat", b"dog", b"great_tit"]})
    }
    for number, name in enumerate(files.train + files.test):
        record = {
            b"batch_label": b"a batch",
            files.labels_key: [number + row for row in range(ROWS)],
            b"data": pixels_of(number).reshape(ROWS, 3072),
            b"filenames": [b"cat_s_%06d.png" % (10 * number + row) for row in range(ROWS)],
        }
        contents[name] = python2_pickle(record)
    return contents


def packed(folder: str, contents: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def publish(monkeypatch, name: str, files: CifarFiles, contents: dict[str, bytes]) -> bytes:
    """Make `contents` the published files of data set `name`; returns their archive."""
    content = packed(files.archive.folder, contents)
    archive = dataclasses.replace(
        files.archive,
        md5=hashlib.md5(content).hexdigest(),
        members={file: hashlib.md5(data).hexdigest() for file, data in contents.items()},
        urls=("http://127.0.0.1:9/",),
    )
    monkeypatch.setitem(cifar.PUBLISHED, name, dataclasses.replace(files, archive=archive))
    return content


def write(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A good folder of CIFAR-10 files in the data folder `tmp_path`."""
    contents = contents_of(CIFAR10)
    publish(monkeypatch, "cifar10", CIFAR10, contents)
    write(tmp_path / "cifar-10-batches-py", contents)
    return tmp_path / "cifar-10-batches-py"


def test_reads_cifar10(folder):
    train, test = load_cifar("cifar10", folder.parent, download=False)
    assert (len(train), len(test)) == (5 * ROWS, ROWS)
    expected = np.concatenate([pixels_of(number) for number in range(5)]).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(train.images_u8, expected)
    np.testing.assert_array_equal(test.images_u8, pixels_of(5).transpose(0, 2, 3, 1))
    for images in (train, test):
        assert images.images_u8.dtype == np.uint8
        assert images.images_u8.flags.c_contiguous
        assert images.images_u8.flags.writeable
        assert images.labels.dtype == np.int64
        assert images.classes == ("cat", "dog", "great_tit")
    assert train.labels.tolist() == [number + row for number in range(5) for row in range(ROWS)]
    assert test.labels.tolist() == [5, 6, 7, 8]
    assert train.paths[5] == "train/cat_s_000011.png"
    assert test.paths[0] == "test/cat_s_000050.png"


def test_reads_cifar100_with_its_fine_labels(tmp_path, monkeypatch):
    contents = contents_of(CIFAR100)
    publish(monkeypatch, "cifar100", CIFAR100, contents)
    write(tmp_path / "cifar-100-python", contents)
    train, test = load_cifar("cifar100", tmp_path, download=False)
    np.testing.assert_array_equal(train.images_u8, pixels_of(0).transpose(0, 2, 3, 1))
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert test.labels.tolist() == [1, 2, 3, 4]
    assert train.classes == ("cat", "dog", "great_tit")


def test_unpacks_an_archive_that_lies_in_the_root(tmp_path, monkeypatch):
    content = publish(monkeypatch, "cifar10", CIFAR10, contents_of(CIFAR10))
    assert not cifar_is_present("cifar10", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(content)
    assert cifar_is_present("cifar10", tmp_path)
    train, _ = load_cifar("cifar10", tmp_path, download=False)
    assert len(train) == 5 * ROWS
    assert (tmp_path / "cifar-10-batches-py" / "data_batch_1").is_file()


def test_missing_data_without_download(tmp_path, monkeypatch):
    publish(monkeypatch, "cifar10", CIFAR10, contents_of(CIFAR10))
    with pytest.raises(DataError, match=r"CIFAR-10 is not in .*--data shapes"):
        load_cifar("cifar10", tmp_path, download=False)


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_file_is_named_with_both_sums_and_kept(folder, damage):
    path = folder / "data_batch_3"
    good = path.read_bytes()
    middle = len(good) // 2
    changed = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
    path.write_bytes({"truncated": good[:middle], "changed": changed, "empty": b""}[damage])
    bad = path.read_bytes()
    with pytest.raises(DataError) as caught:
        load_cifar("cifar10", folder.parent)
    message = str(caught.value)
    assert "\n" not in message
    for expected in (str(path), hashlib.md5(bad).hexdigest(), hashlib.md5(good).hexdigest()):
        assert expected in caught.value.problem
    assert f"delete the folder {folder}" in caught.value.remedy
    assert path.read_bytes() == bad


def test_a_missing_file_is_named(folder):
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match=r"test_batch is missing\. .*delete the folder"):
        load_cifar("cifar10", folder.parent)


def test_a_folder_in_place_of_a_file_is_named(folder):
    (folder / "test_batch").unlink()
    (folder / "test_batch").mkdir()
    with pytest.raises(DataError, match="test_batch cannot be read"):
        load_cifar("cifar10", folder.parent)


@pytest.mark.parametrize(
    "call",
    [
        b"cos\nsystem\n(S'touch %s'\ntR",
        b'c__builtin__\neval\n(S\'open("%s", "w")\'\ntR',
        b"(S'touch %s'\nios\nsystem\n",
        b"cnumpy.core.multiarray\nscalar\n(S'%s'\ntR",
    ],
)
def test_a_pickle_that_calls_something_is_refused_and_not_run(tmp_path, monkeypatch, call):
    trace = tmp_path / "trace"
    contents = contents_of(CIFAR10)
    contents["data_batch_1"] = b"\x80\x02" + call % bytes(trace) + b"."
    publish(monkeypatch, "cifar10", CIFAR10, contents)
    write(tmp_path / "cifar-10-batches-py", contents)
    with pytest.raises(DataError, match=r"data_batch_1 asks for .* which no CIFAR file needs"):
        load_cifar("cifar10", tmp_path)
    assert not trace.exists()


def test_an_unknown_name_gets_a_suggestion(tmp_path):
    with pytest.raises(DataError, match=r"'cifar11'.*Did you mean cifar10\?"):
        load_cifar("cifar11", tmp_path)
    with pytest.raises(DataError, match="cifar11"):
        cifar_is_present("cifar11", tmp_path)


@pytest.mark.parametrize("files", [CIFAR10, CIFAR100], ids=["cifar10", "cifar100"])
def test_the_tables_are_whole(files):
    assert set(files.archive.members) == {files.meta, *files.train, *files.test}
    sums = [files.archive.md5, *files.archive.members.values()]
    assert len(set(sums)) == len(sums)
    assert all(len(bytes.fromhex(each)) == 16 for each in sums)
    assert len(files.archive.urls) > 1
    assert "toronto" in files.archive.urls[-1]  # the publisher's own server is slow, so it comes last
    assert all(url.startswith("https://") and files.archive.filename in url for url in files.archive.urls)
    assert 160e6 < files.archive.size_bytes < 180e6
