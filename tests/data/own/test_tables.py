"""Tables in CSV and Parquet become a list of images, and what is wrong with them is said with its line."""

from __future__ import annotations

import importlib
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from velodrome.data.image_files import Failure
from velodrome.data.own import csv_files, parquet_files, unpacking
from velodrome.data.own.csv_files import has_image_columns, read_csv
from velodrome.data.own.layouts import list_data
from velodrome.data.own.listing import Listing
from velodrome.errors import DataError, visible

SMALL = "path,label\na.png,cat\nb.png,dog\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with images, of which only the names count."""
    for name in ("a.png", "b.png", "c.png", "in/d.png", "in/e, f.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"x")
    return tmp_path / "data"


def listed(data: Path, content: str | bytes, name: str = "labels.csv") -> Listing:
    path = data / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list_data(path, data.parent / "workspace")


def rows(listing: Listing) -> list[tuple[str, str, str | None]]:
    return [(entry.name, listing.classes[entry.label], entry.split) for entry in listing.entries]


def error_of(data: Path, content: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        listed(data, content)
    assert visible(str(caught.value)) == str(caught.value)
    assert str(data / "labels.csv") in caught.value.problem
    return str(caught.value)


# CSV.


def test_images_in_the_order_of_the_table(data):
    listing = listed(data, "path,label\nin/d.png,dog\nb.png,cat\na.png,dog\n")
    assert rows(listing) == [("in/d.png", "dog", None), ("b.png", "cat", None), ("a.png", "dog", None)]
    assert listing.root == data / "labels.csv"
    assert listing.entries[0].path == data / "in" / "d.png"
    assert listing.notes == ()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["labels.csv", "labels.TSV"])
def test_every_usual_way_to_write_it(data, separator, end, mark, name):
    lines = [
        ["index", "Path", " label ", "loss"],
        ["0", "a.png", "cat", "1"],
        [],
        ["1", '"in/e, f.png"', " dog ", ""],
    ]
    content = mark + end.join(separator.join(cells) for cells in lines).encode()
    assert rows(listed(data, content, name)) == [("a.png", "cat", None), ("in/e, f.png", "dog", None)]


@pytest.mark.parametrize("path", ["path", "file", "filename", "file_name", "image", "FILE"])
@pytest.mark.parametrize("label", ["label", "class", "Class"])
def test_other_names_of_the_columns(data, path, label):
    assert len(listed(data, f"{label},{path}\ncat,a.png\ndog,b.png\n").entries) == 2


def test_the_exact_names_go_first(data):
    listing = listed(data, "image,path,class,label\nx.png,a.png,1,cat\ny.png,b.png,2,dog\n")
    assert rows(listing) == [("a.png", "cat", None), ("b.png", "dog", None)]


def test_a_runs_own_tables_can_be_read(data):
    header = "index,path,label,given_label,suggested_label,given_probability,suggested_probability,margin"
    listing = listed(data, f"{header}\n3,a.png,dog,cat,dog,0.1,0.9,-0.8\n7,b.png,cat,cat,dog,0.2,0.7,-0.5\n")
    assert rows(listing) == [("a.png", "dog", None), ("b.png", "cat", None)]


def test_splits(data):
    listing = listed(data, "path,label,split\na.png,cat,Train\nb.png,dog,validation\nc.png,dog, TEST \n")
    assert [entry.split for entry in listing.entries] == ["train", "val", "test"]
    listing = listed(data, "path,label,split\na.png,cat,train\nb.png,dog,valid\n")
    assert [entry.split for entry in listing.entries] == ["train", "test"]
    assert listing.notes == ("There is no test split, so val is reported on in its place.",)
    listing = listed(data, "path,label,split\na.png,cat,\nb.png,dog,\n")
    assert [entry.split for entry in listing.entries] == [None, None]
    listing = listed(data, "path,label,split\na.png,cat,train\nb.png,dog,train\n")
    assert [entry.split for entry in listing.entries] == [None, None]


def test_paths_may_be_written_in_many_ways(data, tmp_path):
    (tmp_path / "far.png").write_bytes(b"x")
    written = ["./a.png", "in/../b.png", "in\\d.png", " c.png ", str(data / "in" / "e, f.png"), "../far.png"]
    table = "path,label\n" + "".join(f'"{path}",{number}\n' for number, path in enumerate(written))
    listing = listed(data, table)
    assert [entry.name for entry in listing.entries] == [
        "a.png",
        "b.png",
        "in/d.png",
        "c.png",
        "in/e, f.png",
        (tmp_path / "far.png").as_posix(),
    ]
    assert all(entry.path.exists() for entry in listing.entries)
    assert listing.failures == ()


def test_the_table_may_be_named_from_elsewhere(data, monkeypatch):
    listed(data, SMALL)
    monkeypatch.chdir(data / "in")
    listing = list_data(Path("../labels.csv"), data.parent / "workspace")
    assert [entry.name for entry in listing.entries] == ["a.png", "b.png"]


def test_missing_files_are_failures(data):
    listing = listed(data, "path,label\ngone.png,cat\na.png,cat\nb.png,dog\nb.png/x,dog\n")
    assert len(listing.entries) == 2
    assert listing.failures == (
        Failure(data / "gone.png", "it does not exist"),
        Failure(data / "b.png" / "x", "not a directory"),
    )


def test_rows_that_are_repeated_count_once(data):
    listing = listed(data, SMALL + "a.png,cat\n./a.png,cat\n")
    assert len(listing.entries) == 2
    assert listing.notes == ("Named more than once, and taken once: 2 images.",)


def test_labels_are_text_with_numbers_in_order(data):
    listing = listed(data, "path,label\na.png,10\nb.png,9\nc.png,2\n")
    assert listing.classes == ("2", "9", "10")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty. Name the columns in the first line"),
        ("\n \n", "is empty"),
        (
            "a.png,cat\nb.png,dog\n",
            "has no column path and no column label; its first line reads a.png, cat.",
        ),
        ("path,name\na.png,cat\n", "has no column label; its first line reads path, name."),
        ("label\ncat\n", "has no column path; its first line reads label."),
        ("\npath,label\na.png,cat\n", "its first line reads nothing."),
        (
            "path,label," + "x" * 200_000,
            "has no column path and no column label; its first line reads nothing.",
        ),
        ("path,label,Path\na.png,cat,b.png\n", "has 2 columns called path."),
        ("path,label\n", "names no image: labels.csv has no rows. Add a row for each image."),
        ("path,label\na.png,cat\nb.png,\n", "line 3, has no label."),
        ("path,label\na.png,cat\n ,dog\n", "line 3, has no path."),
        (
            "path,label\na.png,cat\nb.png,dog,owl\n",
            "line 3, has 3 cells, but the first line names 2 columns.",
        ),
        ("path,label\n\n\nb.png\n", "line 4, has 1 cell, but the first line names 2 columns."),
        ('path,label\na.png,"c\nat"\n"b.png",dog,x\n', "line 4, has 3 cells"),
        (
            'path,label\na.png,"cat\nb.png,dog\n',
            "is not proper CSV: unexpected end of data. Put a cell in quotes",
        ),
        ('path,label\n"a"b.png,cat\n', "line 2, is not proper CSV"),
        (
            "path,label\n" + "x" * 200_000 + ",cat\n",
            "line 2, is not proper CSV: field larger than field limit",
        ),
        (
            b"path,label\na.png,cat\n\xe4.png,dog\n",
            "must be text in the encoding UTF-8, but is in another, as line 3",
        ),
        (
            "path,label\na.png,cat\n".encode("utf-16"),
            "but is in UTF-16. Save it as UTF-8; in Excel, the kind of",
        ),
        ("path,label\na.png,cat\nb\0.png,dog\n", "line 3, holds a null character"),
        ("path,label\na.png,cat\nb.png,cat\n", "has one class only, cat"),
        (
            "path,label\na.png,cat\nb.png,Cat\n",
            "has the classes Cat and cat, which differ in upper and lower case",
        ),
        (SMALL + "a.png,dog\n", "gives a.png two classes: cat and dog (line 2 and line 4)."),
        (
            "path,label,split\na.png,cat,train\nb.png,dog,test\na.png,cat,test\n",
            "gives a.png two splits: train and test (line 2 and line 4).",
        ),
        (
            "path,label,split\na.png,cat,tarin\n",
            "line 2, has the split tarin, but it must be train, val or test. Did",
        ),
        ("path,label,split\na.png,cat,train\nb.png,dog,\n", "line 3, has no split, but line 2 has."),
        (
            "path,label,split\na.png,cat,test\nb.png,dog,val\n",
            "has images in test and val, but none in train",
        ),
        ("path,label\nx.png,cat\ny.png,dog\n", "names 2 images, but none of them is there: "),
    ],
)
def test_what_is_wrong_is_said(data, content, words):
    assert words in error_of(data, content)


def test_a_table_that_is_too_large_or_may_not_be_read(data, monkeypatch):
    monkeypatch.setattr(csv_files, "MOST_BYTES", 10)
    assert "is larger than 1 GiB" in error_of(data, SMALL)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: permission denied"):
        read_csv(data / "labels.csv")
    assert not has_image_columns(data / "labels.csv")


def test_which_files_name_the_columns_of_images(data):
    for content, is_fitting in {
        SMALL: True,
        "path;class": True,
        "x,y\n": False,
        "": False,
        "\xff": False,
    }.items():
        (data / "x.csv").write_text(content, encoding="latin-1")
        assert has_image_columns(data / "x.csv") == is_fitting


# Parquet.


@pytest.fixture
def parquet():
    """A function that writes a table."""
    pytest.importorskip("pyarrow")
    arrow, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")

    def write(path: Path, columns: dict[str, list], names: list[str] | None = None, **kinds: object) -> Path:
        table = arrow.table(
            {name: arrow.array(values, type=kinds.get(name)) for name, values in columns.items()}
        )
        if names is not None:
            features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return write


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 3), colour).save(file, "PNG")
    return file.getvalue()


def held(*colours: str | None) -> list[dict[str, bytes | str | None]]:
    return [{"bytes": png(colour) if colour else None, "path": None} for colour in colours]


def test_parquet_with_paths(data, parquet):
    path = parquet(
        data / "t.parquet",
        {"file_name": ["b.png", "in/d.png"], "label": ["dog", " cat "], "split": ["train", "test"]},
    )
    assert rows(list_data(path, data / "w")) == [("b.png", "dog", "train"), ("in/d.png", "cat", "test")]
    assert not (data / "w").exists()


def test_parquet_with_categories(data, parquet):
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    table = pandas.DataFrame({"path": ["a.png", "b.png"], "label": pandas.Categorical(["x", "y"])})
    importlib.import_module("pyarrow.parquet").write_table(arrow.Table.from_pandas(table), data / "t.parquet")
    assert rows(list_data(data / "t.parquet", data / "w")) == [("a.png", "x", None), ("b.png", "y", None)]


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("names", [["cat", "dog"], None])
def test_parquet_with_images_as_a_hub_exports_it(data, parquet, column, names):
    path = parquet(
        data / "train-00000.parquet", {column: held("red", "blue", "lime"), "label": [1, 0, 1]}, names
    )
    workspace = data.parent / "workspace"
    listing = list_data(path, workspace)
    assert listing.classes == (("cat", "dog") if names else ("0", "1"))
    assert [entry.label for entry in listing.entries] == [1, 0, 1]
    assert [entry.name for entry in listing.entries] == [
        f"train-00000/000000{number}.png" for number in (1, 2, 3)
    ]
    assert listing.entries[1].path.read_bytes() == png("blue")
    assert listing.entries[0].path.is_relative_to(workspace)
    assert list_data(path, workspace) == listing


def test_only_the_newest_images_of_a_table_are_kept(data, parquet):
    workspace = data.parent / "workspace"
    for colours in (["red", "blue"], ["red", "blue", "lime"]):
        path = parquet(data / "t.parquet", {"image": held(*colours), "label": list(range(len(colours)))})
        listing = list_data(path, workspace)
    assert [item for item in workspace.iterdir() if item.is_dir()] == [listing.entries[0].path.parent]
    assert len(listing.entries) == 3


def test_parquet_with_bytes_and_with_missing_images(data, parquet):
    path = parquet(data / "t.parquet", {"image": [png("red"), None, b"GIF8", b"?"], "label": list("abab")})
    listing = list_data(path, data / "w")
    assert [entry.name for entry in listing.entries] == ["t/0000001.png", "t/0000003.gif", "t/0000004.img"]
    assert listing.failures == (Failure(path, "row 2 holds no image"),)


def test_parquet_whose_records_hold_paths(data, parquet):
    records = [
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": png("red"), "path": "x"},
    ]
    path = parquet(data / "t.parquet", {"image": [*records, None], "label": list("abbb")})
    listing = list_data(path, data / "w")
    assert rows(listing) == [("a.png", "a", None), ("t/0000003.png", "b", None)]
    assert [failure.reason for failure in listing.failures] == ["it does not exist", "row 4 holds no image"]


@pytest.mark.parametrize(
    "places",
    [
        [
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ],
        ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
        ["plain/train/0000.parquet", "plain/train/0001.parquet", "plain/test/0000.parquet"],
        ["train.parquet", "train_more.parquet", "TEST.parquet"],
    ],
)
def test_a_folder_of_parquet_files(data, tmp_path, parquet, places):
    for place in places:
        parquet(tmp_path / "hub" / place, {"image": held("red", "blue"), "label": [0, 1]}, ["cat", "dog"])
    (tmp_path / "hub" / "README.md").touch()
    listing = list_data(tmp_path / "hub", tmp_path / "workspace")
    assert sorted(str(entry.split) for entry in listing.entries) == ["test"] * 2 + ["train"] * 4
    assert len({entry.name for entry in listing.entries}) == 6
    assert listing.classes == ("cat", "dog")


def test_tables_that_are_called_as_no_split_are_left_out(data, tmp_path, parquet):
    for name in ("train", "TEST", "unsupervised", "extra"):
        parquet(tmp_path / "hub" / f"{name}-00000.parquet", {"image": held("red", "blue"), "label": [0, 1]})
    listing = list_data(tmp_path / "hub", tmp_path / "workspace")
    assert sorted(str(entry.split) for entry in listing.entries) == ["test"] * 2 + ["train"] * 2
    assert listing.notes == (
        "Left out, as they are called neither train, val nor test: extra-00000.parquet, "
        "unsupervised-00000.parquet.",
    )


@pytest.mark.parametrize("names", [["a.parquet", "b.parquet"], ["a.parquet", "train.csv"]])
def test_tables_of_which_none_is_called_as_a_split_are_unclear(data, parquet, names):
    for name in names:
        if name.endswith(".csv"):
            (data / name).write_text("path,label\na.png,x\n", encoding="utf-8")
        else:
            parquet(data / name, {"path": ["a.png"], "label": ["x"]})
    with pytest.raises(DataError, match=r"has 2 tables .*, so it is unclear which"):
        list_data(data, data.parent / "w")


@pytest.mark.parametrize(
    ("columns", "names", "words"),
    [
        ({"image": held("red"), "x": [1]}, None, "has no column label; its columns are image (struct<"),
        (
            {"image": [1], "label": [1]},
            None,
            "has no column path with text or image with images; its columns are",
        ),
        ({"path": ["a.png"], "label": [None]}, None, "row 1, has no label"),
        ({"path": ["a.png", "b.png"], "label": ["a", " "]}, None, "row 2, has no label"),
        (
            {"path": ["a.png"], "label": [1.5]},
            None,
            "row 1, has the label 1.5, but a label is text or a whole number",
        ),
        ({"path": ["a.png"], "label": [[1, 2]]}, None, "row 1, has the label [1, 2], but a label is"),
        (
            {"path": ["a.png"], "label": [-1]},
            ["a", "b"],
            "has the label -1, but labels are from 0 to 1; -1 often",
        ),
        (
            {"path": ["a.png", "a.png"], "label": [0, 1]},
            None,
            "gives a.png two classes: 0 and 1 (row 1 and row 2).",
        ),
        ({"path": [], "label": []}, None, "has no column path with text"),
        ({"image": held(None, None), "label": [0, 1]}, None, "names 2 images, but none of them is there: "),
    ],
)
def test_what_is_wrong_with_parquet_is_said(data, parquet, columns, names, words):
    path = parquet(data / "t.parquet", columns, names)
    with pytest.raises(DataError) as caught:
        list_data(path, data / "w")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": {"features": {"label": {"names": "ab"}}}}', b"\xff"]
)
def test_damaged_metadata_name_no_classes(metadata):
    assert parquet_files._class_names({b"huggingface": metadata}, "label") == []


@pytest.mark.parametrize("ratio", [2, 40])
def test_too_large_images_in_parquet(data, parquet, monkeypatch, ratio):
    """Before anything is written, and where the table says less than it holds, as soon as it shows."""
    monkeypatch.setattr(unpacking, "HARMLESS_BYTES", 0)
    monkeypatch.setattr(unpacking, "MOST_RATIO", ratio)
    repeated = {"image": [{"bytes": png("red") * 100, "path": None}] * 50, "label": ["a"] * 50}
    path = parquet(data / "t.parquet", repeated)
    with pytest.raises(DataError, match="It may be a trap that fills the disk"):
        list_data(path, data / "w")
    assert (data / "w").exists() == (ratio == 40)
    assert [item for item in (data / "w").glob("*") if item.is_dir()] == []


def test_without_pyarrow(data, monkeypatch):
    def refuse(name: str) -> None:
        raise ImportError(name)

    (data / "t.parquet").touch()
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(DataError, match="Install it with pip install pyarrow, or save the table as CSV"):
        list_data(data / "t.parquet", data / "w")


# Any bytes at all.

VALID = [
    SMALL.encode(),
    b'\xef\xbb\xbfindex;File;class;split\r\n1;"a.png";cat;train\r\n2;b.png;dog;val\r\n3;c.png;dog;test\r\n',
    b"image\tlabel\na.png\t1\nb.png\t2\nin/d.png\t3\n",
]
PIECES = [
    b",",
    b";",
    b"\t",
    b"\n",
    b"\r",
    b'"',
    b"path",
    b"label",
    b"split",
    b"a.png",
    b"\0",
    b"\xff",
    b"..",
    b"/",
]
MUTATIONS = st.lists(
    st.tuples(st.integers(0, 120), st.sampled_from(PIECES) | st.binary(max_size=3)), max_size=6
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(b"x")
    return folder


def check_bytes(scratch: Path, name: str, content: bytes) -> None:
    (scratch / name).write_bytes(content)
    try:
        listing = list_data(scratch / name, scratch / "workspace")
    except DataError as error:
        said = str(error)
    else:
        said = " ".join(listing.notes)
        assert all(not re.search(r"[\x00-\x1f\x7f-\x9f]", name) for name in listing.classes)
        assert "".join([*listing.classes, *(entry.name for entry in listing.entries)]).encode()
        assert {entry.label for entry in listing.entries} == set(range(len(listing.classes)))
        assert len({entry.name for entry in listing.entries}) == len(listing.entries)
    assert visible(said) == said
    inside = {item.name for item in scratch.iterdir()} - {"workspace"}
    assert inside <= {"a.png", "b.png", "c.png", "labels.csv", "t.parquet"}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=st.sampled_from(VALID), changes=MUTATIONS)
def test_a_damaged_table_is_a_listing_or_a_data_error(scratch, content, changes):
    for place, piece in changes:
        content = content[:place] + piece + content[place + len(piece) // 2 :]
    check_bytes(scratch, "labels.csv", content)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(content=st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join))
def test_any_bytes_are_a_listing_or_a_data_error(scratch, content):
    check_bytes(scratch, "labels.csv", content)


@pytest.fixture(scope="module")
def parquet_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path_factory.mktemp("parquet") / "t.parquet"
    table = arrow.table({"image": held("red", "blue"), "label": [0, 1]})
    importlib.import_module("pyarrow.parquet").write_table(table, path)
    return path.read_bytes()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_parquet_file_is_a_listing_or_a_data_error(scratch, parquet_bytes, data):
    content = bytearray(parquet_bytes)
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = value
    end = data.draw(st.integers(0, len(content)))
    check_bytes(scratch, "t.parquet", bytes(content[: end if data.draw(st.booleans()) else None]))
