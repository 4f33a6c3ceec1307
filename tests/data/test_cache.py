"""Image sets are kept once they are read, and used only while nothing about their sources has changed."""

import dataclasses
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from velodrome.data import cache, cifar
from velodrome.data.cache import read_cached
from velodrome.data.cifar import CIFAR10, load_cifar
from velodrome.data.imageset import ImageSet
from velodrome.errors import DataError

OLD_NS = 1_600_000_000 * 10**9  # clocks are coarse: a file that is changed now differs from one of then


class Reader:
    """A data set of three source files in a folder, and a count of how often it was read."""

    def __init__(self, folder: Path, images: tuple[ImageSet, ImageSet]) -> None:
        self.images, self.count = images, 0
        self.sources = {}
        folder.mkdir()
        for name in ("meta", "train", "test"):
            path = folder / name
            path.write_bytes(name.encode() * 10)
            os.utime(path, ns=(OLD_NS, OLD_NS))
            self.sources[path] = hashlib.md5(path.read_bytes()).hexdigest()

    def _read(self) -> tuple[ImageSet, ImageSet]:
        self.count += 1
        return self.images

    def load(self, name: str = "made") -> tuple[ImageSet, ImageSet]:
        return read_cached(name, self.sources, self._read)

    def load_was_a_hit(self, name: str = "made") -> bool:
        before = self.count
        assert_same(self.load(name), self.images)
        return self.count == before


@pytest.fixture(autouse=True)
def ready(tmp_path, monkeypatch) -> Path:
    """The folder of the cache, not made yet."""
    folder = tmp_path / "user-cache" / "velodrome" / "ready"
    monkeypatch.setattr(cache, "ready_folder", lambda: folder)
    return folder


@pytest.fixture
def reader(tmp_path, coloured_images) -> Reader:
    return Reader(tmp_path / "sources", (coloured_images(30, seed=1), coloured_images(12, seed=2)))


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch) -> Path:
    """A folder of four tiny CIFAR-10 files an age old; the unpickler is replaced by a simpler format."""
    folder = tmp_path / "root" / CIFAR10.archive.folder
    folder.mkdir(parents=True)
    members = {}
    for number, name in enumerate((CIFAR10.meta, "data_batch_1", "data_batch_2", "test_batch")):
        content = bytes([number]) * 100
        (folder / name).write_bytes(content)
        os.utime(folder / name, ns=(OLD_NS, OLD_NS))
        members[name] = hashlib.md5(content).hexdigest()

    class Unpickler:
        def __init__(self, content: bytes, path: Path) -> None:
            self.number = content[0]

        def load(self) -> dict[bytes, object]:
            if self.number == 0:
                return {CIFAR10.classes_key: [b"cat", b"dog"]}
            stored = cifar._PickledArray()
            pixels = np.random.default_rng(self.number).integers(0, 256, (3, 3072), np.uint8)
            stored.__setstate__((1, pixels.shape, None, False, pixels.tobytes()))
            names = [b"cat_s_%02d%02d.png" % (self.number, row) for row in range(3)]
            return {b"data": stored, CIFAR10.labels_key: [0, 1, 1], b"filenames": names}

    monkeypatch.setattr(cifar, "_PlainUnpickler", Unpickler)
    archive = dataclasses.replace(CIFAR10.archive, members=members, urls=("http://127.0.0.1:9/",))
    files = dataclasses.replace(CIFAR10, archive=archive, train=("data_batch_1", "data_batch_2"))
    monkeypatch.setitem(cifar.PUBLISHED, "cifar10", files)
    return folder


def assert_same(found: tuple[ImageSet, ImageSet], expected: tuple[ImageSet, ImageSet]) -> None:
    """Equal in every value and type, and as free to be written to."""
    for one, other in zip(found, expected, strict=True):
        for array, wanted in ((one.images_u8, other.images_u8), (one.labels, other.labels)):
            assert type(array) is np.ndarray
            assert array.dtype == wanted.dtype
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert array.flags.aligned
            np.testing.assert_array_equal(array, wanted)
        assert (type(one.classes), one.classes) == (tuple, other.classes)
        assert (type(one.paths), one.paths) == (list, other.paths)


def test_what_was_read_once_is_not_read_again(reader, ready):
    assert not reader.load_was_a_hit()
    assert [path.name for path in ready.iterdir()] == ["made.safetensors"]
    assert reader.load_was_a_hit()
    assert reader.load_was_a_hit()


def test_an_array_from_the_cache_belongs_to_its_caller(reader):
    reader.load()
    train, _ = reader.load()
    train.images_u8[:] = 7
    train.labels[:] = 0
    assert reader.load_was_a_hit()


def test_names_of_any_kind_are_kept(reader):
    train, test = reader.images
    odd = ["", "two\nlines", 'a "quote"', "Grünspecht/猫.png", "\\", "a\udcff"]
    reader.images = (dataclasses.replace(train.take(np.arange(6)), paths=odd, classes=("a\n", "é", "")), test)
    reader.images = (reader.images[0], dataclasses.replace(test, classes=("a\n", "é", "")))
    reader.load()
    assert reader.load_was_a_hit()


def test_sets_without_images_and_of_other_shapes_are_kept(reader, coloured_images):
    reader.images = (coloured_images(2, 3, 5), coloured_images(4).take(np.array([], np.int64)))
    reader.load()
    assert reader.load_was_a_hit()


def test_an_image_set_larger_than_one_piece_is_kept(reader, monkeypatch):
    monkeypatch.setattr(cache, "PIECE_BYTES", 100)
    reader.load()
    assert reader.load_was_a_hit()


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("change", ["touched", "same size", "longer", "replaced", "md5"])
def test_a_changed_source_is_read_again_and_then_kept(reader, tmp_path, number, change):
    reader.load()
    path = list(reader.sources)[number]
    match change:
        case "touched":
            os.utime(path, ns=(OLD_NS, OLD_NS + 1000))  # Windows counts in steps of 100 ns
        case "same size":
            path.write_bytes(path.read_bytes()[::-1])
        case "longer":
            path.write_bytes(path.read_bytes() + b"!")
            os.utime(path, ns=(OLD_NS, OLD_NS))
        case "replaced":
            (tmp_path / "other").write_bytes(path.read_bytes())
            (tmp_path / "other").replace(path)
        case "md5":
            reader.sources[path] = "0" * 32
    assert not reader.load_was_a_hit()
    assert reader.load_was_a_hit()


def test_a_source_that_is_replaced_while_it_is_read_is_read_again(reader, monkeypatch):
    def read_slowly() -> tuple[ImageSet, ImageSet]:
        next(iter(reader.sources)).write_bytes(b"newer")
        return reader.images

    read_cached("made", reader.sources, read_slowly)
    assert not reader.load_was_a_hit()


def test_with_a_source_missing_nothing_is_kept_and_the_reader_says_what_is_wrong(reader, ready):
    reader.load()
    saved = (ready / "made.safetensors").read_bytes()
    next(iter(reader.sources)).unlink()
    assert not reader.load_was_a_hit()
    assert not reader.load_was_a_hit()
    assert (ready / "made.safetensors").read_bytes() == saved


def test_errors_of_the_reader_are_passed_on_and_nothing_is_kept(reader, ready):
    def fail() -> tuple[ImageSet, ImageSet]:
        raise DataError("It is damaged.", "Mend it.")

    with pytest.raises(DataError, match="It is damaged"):
        read_cached("made", reader.sources, fail)
    assert not ready.exists()


def test_the_same_files_in_another_root_are_read_by_themselves(reader, tmp_path, coloured_images):
    reader.load()
    other = Reader(tmp_path / "elsewhere", (coloured_images(5, seed=3), coloured_images(6, seed=4)))
    assert list(other.sources.values()) == list(reader.sources.values())
    assert not other.load_was_a_hit()
    assert other.load_was_a_hit()
    assert not reader.load_was_a_hit()


@pytest.mark.parametrize("start", ["", "elsewhere/..", "{}/elsewhere/.."])
def test_the_same_files_are_known_however_their_path_is_written(reader, tmp_path, monkeypatch, start):
    reader.load()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    root = Path(start.format(tmp_path))
    reader.sources = {root / path.relative_to(tmp_path): md5 for path, md5 in reader.sources.items()}
    assert reader.load_was_a_hit()


def test_the_same_relative_path_in_another_folder_is_another_file(
    reader, tmp_path, monkeypatch, coloured_images
):
    (tmp_path / "elsewhere").mkdir()
    other = Reader(tmp_path / "elsewhere" / "sources", (coloured_images(5), coloured_images(6)))
    for each, folder in ((reader, tmp_path), (other, tmp_path / "elsewhere")):
        each.sources = {path.relative_to(folder): md5 for path, md5 in each.sources.items()}
        monkeypatch.chdir(folder)
        assert not each.load_was_a_hit()
    assert other.load_was_a_hit()


def test_two_data_sets_are_kept_side_by_side(reader, tmp_path, coloured_images, ready):
    other = Reader(tmp_path / "elsewhere", (coloured_images(5, seed=3), coloured_images(6, seed=4)))
    reader.load("one")
    other.load("two")
    assert reader.load_was_a_hit("one")
    assert other.load_was_a_hit("two")
    assert {path.name for path in ready.iterdir()} == {"one.safetensors", "two.safetensors"}


def test_every_flipped_byte_is_found(reader, ready, coloured_images):
    reader.images = (coloured_images(2, 1, 1, seed=1), coloured_images(1, 1, 1, seed=2))
    reader.load()
    path = ready / "made.safetensors"
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert not reader.load_was_a_hit(), f"byte {position}, {good[position : position + 1]!r}"
    assert reader.load_was_a_hit()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_cache_is_replaced(reader, ready, share):
    reader.load()
    path = ready / "made.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[: int(share * len(good))])
    assert not reader.load_was_a_hit()
    assert reader.load_was_a_hit()


@pytest.mark.parametrize("foreign", ["text", "zeros", "no metadata", "other metadata", "other tensors"])
def test_a_foreign_file_in_its_place_is_replaced(reader, ready, foreign):
    reader.load()
    path = ready / "made.safetensors"
    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    tensors = load_file(path)
    match foreign:
        case "text":
            path.write_text("something else altogether")
        case "zeros":
            path.write_bytes(bytes(len(path.read_bytes())))
        case "no metadata":
            save_file(tensors, path)
        case "other metadata":
            save_file(tensors, path, {"record": about["record"]})
        case "other tensors":
            save_file({"weight": np.zeros(3)}, path, about)
    assert not reader.load_was_a_hit()
    assert reader.load_was_a_hit()


def test_the_same_bytes_in_another_shape_are_not_taken_for_it(reader, ready):
    reader.load()
    path = ready / "made.safetensors"
    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    tensors = load_file(path)
    save_file({**tensors, "train_images": tensors["train_images"].reshape(30, 4, 16, 3)}, path, about)
    assert not reader.load_was_a_hit()


def test_a_cache_of_another_format_is_replaced(reader, monkeypatch):
    reader.load()
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    assert not reader.load_was_a_hit()
    assert reader.load_was_a_hit()


def test_a_file_where_the_folder_should_be_means_no_cache(reader, ready):
    ready.parent.mkdir(parents=True)
    ready.write_text("in the way")
    assert not reader.load_was_a_hit()
    assert not reader.load_was_a_hit()
    assert ready.read_text() == "in the way"


def test_a_folder_where_the_file_should_be_means_no_cache(reader, ready):
    (ready / "made.safetensors").mkdir(parents=True)
    assert not reader.load_was_a_hit()
    assert not reader.load_was_a_hit()
    assert [path.name for path in ready.iterdir()] == ["made.safetensors"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_means_no_cache(reader, ready):
    ready.mkdir(parents=True)
    ready.chmod(0o500)
    assert not reader.load_was_a_hit()
    assert not reader.load_was_a_hit()
    ready.chmod(0o700)


def test_a_full_disk_means_no_cache_and_leaves_nothing_behind(reader, ready, monkeypatch):
    def fill_up(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"a part")
        raise cache.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cache, "save_file", fill_up)
    assert not reader.load_was_a_hit()
    assert not reader.load_was_a_hit()
    assert list(ready.iterdir()) == []


def test_ctrl_c_while_writing_leaves_nothing_behind(reader, ready, monkeypatch):
    def interrupt(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reader.load()
    assert list(ready.iterdir()) == []


def test_without_a_home_folder_nothing_is_written_where_the_user_happens_to_be(reader, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(cache, "ready_folder", lambda: Path("~/.cache/velodrome/ready"))
    assert not reader.load_was_a_hit()
    assert list((tmp_path / "here").iterdir()) == []


def test_the_sources_are_never_changed(reader):
    folder = next(iter(reader.sources)).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    reader.load()
    reader.load()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_many_writers_and_readers_at_once_all_get_the_images(reader, ready):
    failures: list[Exception] = []

    def load_often() -> None:
        try:
            for _ in range(8):
                assert_same(reader.load(), reader.images)
                (ready / "made.safetensors").unlink(missing_ok=True)
        except Exception as error:  # whatever it is, the test shall show it
            failures.append(error)

    threads = [threading.Thread(target=load_often) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(path.name == "made.safetensors" for path in ready.iterdir())


def test_the_folder_is_in_the_user_cache(monkeypatch, tmp_path):
    monkeypatch.undo()  # of the folder that these tests use
    folder = cache.ready_folder()
    assert folder.is_absolute()
    assert (folder.name, "velodrome" in folder.parts) == ("ready", True)


def test_cifar_is_unpickled_once(cifar_folder, ready, monkeypatch):
    first = load_cifar("cifar10", cifar_folder.parent, download=False)
    assert (ready / "cifar10.safetensors").is_file()

    def refuse(*_: object) -> None:
        raise AssertionError("a file was read again")

    monkeypatch.setattr(cifar, "_read", refuse)
    again = load_cifar("cifar10", cifar_folder.parent, download=False)
    assert_same(again, first)
    assert (len(again[0]), again[0].paths[4], again[1].classes) == (6, "train/cat_s_0201.png", ("cat", "dog"))


@pytest.mark.parametrize("name", [CIFAR10.meta, "data_batch_1", "data_batch_2", "test_batch"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("deleted", "{} is missing"),
        ("emptied", "{} is damaged: its md5 is d41d8cd98f00b204e9800998ecf8427e"),
        ("truncated", "{} is damaged: its md5 is"),
        ("changed", "{} is damaged: its md5 is"),
        ("a folder", "{} cannot be read"),
    ],
)
def test_damage_to_a_cifar_file_is_reported_as_without_the_cache(cifar_folder, name, damage, message):
    load_cifar("cifar10", cifar_folder.parent)
    path = cifar_folder / name
    good = path.read_bytes()
    path.unlink()
    match damage:
        case "emptied":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(good[:-1])
        case "changed":
            path.write_bytes(good[:-1] + b"!")
        case "a folder":
            path.mkdir()
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            load_cifar("cifar10", cifar_folder.parent)
        assert caught.value.problem.startswith(message.format(path))
        assert f"delete the folder {cifar_folder}" in caught.value.remedy


def test_a_deleted_cifar_folder_is_asked_for_as_without_the_cache(cifar_folder):
    load_cifar("cifar10", cifar_folder.parent)
    cifar_folder.rename(cifar_folder.with_name("gone"))
    with pytest.raises(DataError, match=r"CIFAR-10 is not in .*downloading is off"):
        load_cifar("cifar10", cifar_folder.parent, download=False)
