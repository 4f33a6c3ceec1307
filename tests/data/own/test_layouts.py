"""Folders of every layout become a list of images with classes and splits, and what is wrong is said."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velodrome.data.image_files import Failure
from velodrome.data.own.layouts import list_data
from velodrome.data.own.listing import Listing, class_name, class_order, kinds_of_files, unique_names
from velodrome.data.own.walking import identities
from velodrome.errors import DataError, visible

REPLACED = "\N{REPLACEMENT CHARACTER}"


def tree(root: Path, *names: str) -> Path:
    """Files of one byte, as images are not read."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(root: Path) -> Listing:
    return list_data(root, root.parent / "workspace")


def rows(listing: Listing) -> list[tuple[str, str, str | None]]:
    return [(entry.name, listing.classes[entry.label], entry.split) for entry in listing.entries]


def problem_of(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        listed(root)
    assert caught.value.problem.endswith(".")
    assert caught.value.remedy.endswith((".", "?"))
    assert not (root.parent / "workspace").exists()
    return caught.value.problem


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


# Layouts.


def test_a_folder_for_each_class(data):
    listing = listed(tree(data, "dog/b.jpg", "dog/a.PNG", "cat/deep/er/c.webp", "cat/a.png"))
    assert rows(listing) == [
        ("cat/a.png", "cat", None),
        ("cat/deep/er/c.webp", "cat", None),
        ("dog/a.PNG", "dog", None),
        ("dog/b.jpg", "dog", None),
    ]
    assert listing.root == data
    assert listing.classes == ("cat", "dog")
    assert listing.entries[1].path == data / "cat" / "deep" / "er" / "c.webp"
    assert listing.failures == ()
    assert listing.notes == ()


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_class_folders_in_splits(data, train, val, test):
    names = [f"{split}/{label}/{split}.png" for split in (train, val, test) for label in ("cat", "dog")]
    listing = listed(tree(data, *names))
    assert {entry.split for entry in listing.entries} == {"train", "val", "test"}
    for entry in listing.entries:
        assert entry.name.lower().startswith(entry.split)
    assert listing.classes == ("cat", "dog")
    assert listing.notes == ()


def test_without_a_test_split_val_is_reported_on(data):
    listing = listed(tree(data, "train/cat/1.png", "train/dog/1.png", "valid/cat/1.png"))
    assert [entry.split for entry in listing.entries] == ["train", "train", "test"]
    assert listing.notes == ("There is no test split, so val is reported on in its place.",)


def test_train_alone_is_no_split(data):
    listing = listed(tree(data, "train/cat/1.png", "train/dog/1.png"))
    assert rows(listing) == [("train/cat/1.png", "cat", None), ("train/dog/1.png", "dog", None)]
    listing = listed(tree(data, "train/cat/1.png", "docs/readme.txt"))
    assert [entry.split for entry in listing.entries] == [None, None]
    assert "Only train is there, so images to test on will be held out from it." in listing.notes


@pytest.mark.parametrize("outer", ["", "inner/", "photos-main/data/", "__MACOSX/../inner/"])
def test_an_only_folder_is_entered(data, outer):
    tree(data, f"{outer}cat/1.png", f"{outer}dog/2.png", "__MACOSX/._x.png", "README.md")
    listing = listed(data)
    assert [label for _, label, _ in rows(listing)] == ["cat", "dog"]
    assert listing.notes == ("Left out, as they are no images: 1 .md.",)


def test_a_class_that_is_only_in_the_test_images_is_a_class(data):
    listing = listed(tree(data, "train/cat/1.png", "train/dog/1.png", "test/owl/1.png"))
    assert listing.classes == ("cat", "dog", "owl")


def test_a_class_may_be_called_train(data):
    listing = listed(tree(data, "train/1.png", "bus/1.png", "car/1.png"))
    assert listing.classes == ("bus", "car", "train")
    assert {entry.split for entry in listing.entries} == {None}


def test_folders_beside_the_splits_are_left_out(data):
    listing = listed(tree(data, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "more/1.png"))
    assert [entry.split for entry in listing.entries] == ["test", "train", "train"]
    assert listing.notes == ("Left out, as they lie beside the splits: more.",)


def test_what_belongs_to_the_system_is_ignored(data):
    tree(
        data,
        "cat/1.png",
        "dog/2.png",
        "cat/.hidden.png",
        ".git/a.png",
        "@eaDir/thumb.png",
        "cat/@eaDir/1.png",
    )
    tree(
        data,
        "Thumbs.db",
        "cat/Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        "lost+found/x.png",
        "cat/__MACOSX/3.png",
    )
    listing = listed(data)
    assert [entry.name for entry in listing.entries] == ["cat/1.png", "dog/2.png"]
    assert listing.notes == ()


def test_files_of_other_kinds_are_counted(data):
    tree(
        data, "cat/1.png", "dog/2.png", "cat/a.txt", "cat/deep/b.TXT", "dog/c.json", "LICENSE", "empty/d.xml"
    )
    assert listed(data).notes == (
        "Without an image, and so no classes: empty.",
        "Left out, as they are no images: 2 .txt, 1 without a suffix, 1 .json, 1 .xml.",
    )
    assert kinds_of_files({f".{number}": number for number in range(1, 8)}) == (
        "7 .7, 6 .6, 5 .5, 4 .4, 3 .3, 3 of other kinds"
    )


# Links.


def test_links_are_followed(data, tmp_path):
    tree(tmp_path, "elsewhere/deep/1.png", "elsewhere/x.png", "photos/cat/2.png")
    (data / "dog").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "one.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (data / "cat" / "broken.png").symlink_to(tmp_path / "nothing.png")
    assert [entry.name for entry in listed(data).entries] == [
        "cat/2.png",
        "cat/broken.png",  # to fail when it is read, as a damaged one
        "cat/one.png",
        "dog/deep/1.png",
        "dog/x.png",
    ]


def test_nothing_goes_in_circles_or_into_another_class(data):
    tree(data, "cat/1.png", "dog/2.png")
    for name, goal in {"self": "cat", "up": ".", "other": "dog"}.items():
        (data / "cat" / name).symlink_to(data / goal)
    assert [entry.name for entry in listed(data).entries] == ["cat/1.png", "dog/2.png"]


def test_links_to_one_another_are_no_folders(data):
    tree(data, "cat/1.png", "dog/2.png")
    (data / "cat" / "a").symlink_to(data / "cat" / "b.png")
    (data / "cat" / "b.png").symlink_to(data / "cat" / "a")
    assert [entry.name for entry in listed(data).entries] == ["cat/1.png", "cat/b.png", "dog/2.png"]
    assert identities([data / "gone", data / "cat", data / "cat" / "a"]) == identities([data / "cat"])


def test_a_folder_that_holds_only_itself(data):
    (data / "again").symlink_to(data)
    assert "has no image in it" in problem_of(data)


def test_folders_may_be_nested_deeper_than_calls(data, monkeypatch):
    tree(data, "dog/1.png", "cat/1.png")
    monkeypatch.chdir(data / "cat")
    for _ in range(1100):
        Path("d").mkdir()
        os.chdir("d")
    Path("a.png").touch()
    assert len(listed(data).entries) == 3
    Path("a.png").unlink()
    for _ in range(1100):  # what clears up after the tests nests its calls
        os.chdir("..")
        Path("d").rmdir()


# Names.


def test_names_that_are_no_utf8_become_text_and_stay_unique(data):
    tree(data, "cat/x.png", "dog/1.png")
    for raw in (b"\xff.png", b"\xfe.png"):
        (Path(os.fsdecode(os.fsencode(data / "cat") + b"/" + raw))).write_bytes(b"x")
    names = [entry.name for entry in listed(data).entries]
    assert names == ["cat/x.png", f"cat/{REPLACED}.png", f"cat/{REPLACED}.png (2)", "dog/1.png"]
    "".join(names).encode()
    assert list(unique_names(["a", "a", "a (2)", "a"])) == ["a", "a (2)", "a (2) (2)", "a (3)"]
    assert list(unique_names(["\ud800"])) == [REPLACED * 3]


def test_class_names_are_text_in_normal_form(data):
    listing = listed(tree(data, unicodedata.normalize("NFD", "café/1.png"), "日本/1.png", "a\tb/1.png"))
    assert listing.classes == ("a\\tb", "café", "日本")
    assert class_name(os.fsdecode(b"\xff")) == REPLACED


@pytest.mark.parametrize(
    ("one", "two"),
    [("Cat", "cat"), ("ÄPFEL", "äpfel"), ("caf\u00e9", "cafe\u0301"), ("Cafe\u0301", "caf\u00e9")],
)
def test_classes_that_nearly_have_one_name(data, one, two):
    problem = problem_of(tree(data, f"{one}/1.png", f"{two}/1.png", "dog/1.png"))
    assert "differ in upper and lower case only" in problem or "the same text written in two ways" in problem
    for name in (one, two):
        assert name in problem or ascii(name) in problem


def test_names_that_only_look_alike_to_machines_are_two(data):
    assert listed(tree(data, "Maße/1.png", "Masse/1.png")).classes == ("Masse", "Maße")


def test_classes_that_are_numbers_are_ordered_by_number(data):
    assert listed(tree(data, "10/1.png", "9/1.png", "-1/1.png")).classes == ("-1", "9", "10")
    assert listed(tree(data, "b/1.png")).classes == ("-1", "10", "9", "b")
    assert class_order({"01", "1", "0"}) == ("0", "01", "1")
    assert class_order({"9" * 5000, "1"}) == ("1", "9" * 5000)
    assert class_order({"²", "1"}) == ("1", "²")


# Errors.


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "has no image in it"),
        (["notes.txt", "more/notes.md"], "only other files: 1 .md, 1 .txt"),
        (
            ["1.png", "2.png", "3.png", "4.png"],
            "has 4 images (1.png, 2.png, 3.png and 1 more), but no folders",
        ),
        (["train/1.png", "test/2.png"], "has 2 images (test/2.png, train/1.png), but no folders"),
        (
            ["cat/1.png", "dog/1.png", "3.png"],
            "has 1 image beside the class folders, and so without a class: 3.png",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/x.png"],
            "has 1 image beside the class folders, and so without a class: test/x.png",
        ),
        (["cat/1.png", "cat/2.png"], "has one class only, cat"),
        (["train/cat/1.png", "test/cat/2.png"], "has one class only, cat"),
        (["test/cat/1.png", "test/dog/1.png"], "has images in test, but none in train"),
        (["test/cat/1.png", "val/dog/1.png"], "has images in test and val, but none in train"),
        (["cat/1.png", "dog/1.png", "test/1.png"], "has the folder test beside others (cat, dog)"),
        (["train/cat/1.png", "train/dog/1.png", "owl/1.png"], "has the folder train beside others (owl)"),
        (
            ["train/cat/1.png", "val/cat/1.png", "valid/cat/1.png"],
            "has the folders val and valid, which are both names of one split, val",
        ),
    ],
)
def test_what_is_wrong_is_said(data, names, words):
    problem = problem_of(tree(data, *names))
    assert problem.startswith(f"Data {data} ")
    assert words in problem


def test_the_remedy_shows_the_layouts_and_where_an_image_should_be(data):
    with pytest.raises(
        DataError, match=r"photos/cat/1.png and .*photos/train.*/labels.csv with the columns path"
    ):
        listed(tree(data, "1.png"))
    with pytest.raises(DataError, match=r"Put each into the folder of its class, such as cat/1.png"):
        listed(tree(data, "cat/1.png", "dog/2.png"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shape", "does not exist. Did you mean shapes?"),
        ("cifar-10", "does not exist. Did you mean cifar10?"),
        ("holiday.zip", "does not exist. Check the path, or give cifar10, cifar100, shapes"),
        ("a/shapes", "does not exist. Check the path"),
        ("file.txt/x", "does not exist. Check the path"),
        ("file.txt", "is a file of a kind that is not known. Give a folder with"),
        ("file.png", "is one image, but a data set holds many"),
        ("x" * 300, "cannot be looked at: file name too long"),
        ("a\0b", r"cannot be looked at: embedded null byte"),
    ],
)
def test_what_is_no_data_set(tmp_path, monkeypatch, name, words):
    tree(tmp_path, "file.txt", "file.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        list_data(Path(name), tmp_path / "workspace")
    assert words in str(caught.value)
    assert visible(str(caught.value)) == str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["pipe.csv", "pipe.zip", "pipe"])
def test_a_pipe_is_not_waited_for(data, name):
    os.mkfifo(data / name)
    with pytest.raises(DataError, match="neither a folder nor a regular file"):
        listed(data / name)
    assert listed(tree(data, "cat/1.png", "dog/2.png")).classes == ("cat", "dog")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch):
    """Takes away the permission to look into folders of this name, also where root may look everywhere."""
    look = os.scandir

    def close(name: str) -> None:
        def refuse(path: str | Path) -> object:
            if os.path.basename(path) == name:  # noqa: PTH119
                raise PermissionError(13, "Permission denied")
            return look(path)

        monkeypatch.setattr(os, "scandir", refuse)

    return close


def test_a_folder_that_may_not_be_looked_into(data, closed):
    tree(data, "cat/1.png", "dog/2.png", "owl/deep/3.png")
    closed("deep")
    listing = listed(data)
    assert listing.failures == (Failure(data / "owl" / "deep", "permission denied"),)
    assert listing.classes == ("cat", "dog")
    assert listing.notes == ()
    closed("photos")
    assert problem_of(data) == f"Folder {data} cannot be looked into: permission denied."


def test_where_no_folder_may_be_looked_into(data, closed):
    tree(data, "a/deep/1.png", "b/deep/1.png")
    closed("deep")
    assert f"has no image that may be read: {data / 'a' / 'deep'}: permission denied." in problem_of(data)


# Tables in folders, and archives.


def test_a_table_beside_flat_images_says_their_classes(data):
    tree(data, "images/1.png", "images/2.png")
    (data / "labels.csv").write_text("path,label\nimages/2.png,dog\nimages/1.png,cat\n")
    assert rows(listed(data)) == [("images/2.png", "dog", None), ("images/1.png", "cat", None)]


@pytest.mark.parametrize(
    "content",
    [
        "path,label\ncat/1.png,cat\ndog\\2.png, DOG\n",
        "path,label\n1.png,owl\nelsewhere/2.png,owl\n",
        "path,width\ncat/1.png,64\n",
    ],
    ids=["it agrees", "it names other files", "it has no labels"],
)
def test_a_table_that_agrees_with_class_folders_is_ignored(data, content):
    tree(data, "cat/1.png", "dog/2.png")
    (data / "about.csv").write_text(content)
    listing = listed(data)
    assert listing.classes == ("cat", "dog")
    assert listing.notes == ("Tables are ignored where there are class folders: about.csv.",)


def test_a_table_that_contradicts_folders_is_unclear(data):
    tree(data, "part1/1.png", "part1/2.png", "part2/3.png")
    table = data / "labels.csv"
    table.write_text("path,label\npart1/1.png,cat\npart1/2.png,dog\npart2/3.png,part2\n")
    with pytest.raises(DataError) as caught:
        listed(data)
    assert f"Data {data} has class folders and the table labels.csv" in caught.value.problem
    assert (
        "part1/1.png lies in the folder part1, but the table calls it cat. So it is with 2 of 3 images"
        in (caught.value.problem)
    )
    assert f"Give --data {table} to go by the table. Take the table away" in caught.value.remedy
    assert listed(table).classes == ("cat", "dog", "part2")


def test_a_table_in_a_split_that_contradicts_its_folders_is_unclear(data):
    tree(data, "train/cat/1.png", "train/dog/2.png", "test/cat/3.png")
    (data / "train" / "labels.csv").write_text("path,label\ncat/1.png,dog\n")
    assert "the table train/labels.csv, which contradict each other: train/cat/1.png" in problem_of(data)


def test_a_table_in_parquet_may_contradict_folders_too(data):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tree(data, "cat/1.png", "dog/2.png")
    for name, columns in {
        "labels": {"path": ["cat/1.png"], "label": ["dog"]},
        "images": {"image": [b"\x89PNG"], "label": ["dog"]},
        "sizes": {"path": ["cat/1.png"], "width": [64]},
    }.items():
        parquet.write_table(pyarrow.table(columns), data / f"{name}.parquet")
    assert "the table labels.parquet" in problem_of(data)
    (data / "labels.parquet").unlink()
    (data / "broken.parquet").write_bytes(b"no table")
    assert listed(data).classes == ("cat", "dog")


def test_a_table_beside_class_folders_with_a_row_that_cannot_be_read(data):
    tree(data, "cat/1.png", "dog/2.png")
    (data / "labels.csv").write_text("path,label\ncat/1.png,\n")
    with pytest.raises(DataError, match=r"line 2, has no label.*Or take the table away"):
        listed(data)


def test_tables_that_are_called_as_splits_are(data):
    tree(data, "images/1.png", "images/2.png", "images/3.png")
    (data / "train.csv").write_text("file_name,label\nimages/1.png,cat\nimages/2.png,dog\n")
    (data / "test.csv").write_text("file_name,label\nimages/3.png,dog\n")
    (data / "sample_submission.csv").write_text("id,guess\n1,2\n")
    assert rows(listed(data)) == [
        ("images/3.png", "dog", "test"),
        ("images/1.png", "cat", "train"),
        ("images/2.png", "dog", "train"),
    ]


def test_several_tables_are_unclear(data):
    tree(data, "1.png")
    for name in ("a.csv", "b.csv"):
        (data / name).write_text("path,label\n1.png,cat\n")
    assert "has 2 tables (a.csv, b.csv), so it is unclear" in problem_of(data)


def test_a_table_of_something_else_beside_flat_images(data):
    tree(data, "1.png")
    (data / "a.csv").write_text("x,y\n1,2\n")
    assert "has 1 image (1.png), but no folders that say their classes" in problem_of(data)
    (data / "1.png").unlink()
    assert "a.csv lacks the columns path and label" in problem_of(data)


def zipped(path: Path, contents: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in contents.items():
            file.writestr(name, text)
    return path


def test_an_archive_of_class_folders(tmp_path):
    path = zipped(
        tmp_path / "photos.zip", {"in/cat/1.png": "a", "in/dog/2.png": "b", "in/a.txt": "", "x.pdf": ""}
    )
    listing = list_data(path, tmp_path / "workspace")
    assert listing.root == path
    assert rows(listing) == [("in/cat/1.png", "cat", None), ("in/dog/2.png", "dog", None)]
    assert listing.entries[0].path.read_text() == "a"
    assert listing.entries[0].path.is_relative_to(tmp_path / "workspace")
    assert listing.notes == ("Left out, as they are no images: 1 .pdf, 1 .txt.",)
    assert list_data(path, tmp_path / "workspace") == listing


def test_an_archive_of_a_table(tmp_path):
    table = "path,label,split\n1.png,cat,train\n2.png,dog,test\n"
    path = zipped(tmp_path / "photos.zip", {"in/labels.csv": table, "in/1.png": "a", "in/2.png": "b"})
    assert rows(list_data(path, tmp_path / "workspace")) == [
        ("in/1.png", "cat", "train"),
        ("in/2.png", "dog", "test"),
    ]


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "a/../../../secret.png", "..\\secret.png"]
)
def test_a_table_in_an_archive_names_no_files_of_the_user(tmp_path, name):
    tree(tmp_path, "workspace/secret.png", "secret.png")
    path = zipped(tmp_path / "photos.zip", {"labels.csv": f"path,label\n1.png,a\n{name},b\n", "1.png": "a"})
    with pytest.raises(DataError, match=r"line 3, names .*, which lies outside the data set"):
        list_data(path, tmp_path / "workspace")


def test_a_table_that_contradicts_folders_in_an_archive(tmp_path):
    contents = {"cat/1.png": "x", "dog/2.png": "x", "labels.csv": "path,label\ncat/1.png,dog\n"}
    archive = zipped(tmp_path / "pets.zip", contents)
    with pytest.raises(DataError) as caught:
        listed(archive)
    assert f"Data {archive} has class folders and the table labels.csv" in caught.value.problem
    assert caught.value.remedy.startswith("Unpack it and give labels.csv as --data to go by the table.")
    assert "workspace" not in str(caught.value)


def test_errors_name_the_archive_and_not_the_cache(tmp_path):
    path = zipped(tmp_path / "photos.zip", {"cat/1.png": "a"})
    with pytest.raises(DataError) as caught:
        list_data(path, tmp_path / "workspace")
    assert str(caught.value).startswith(f"Data {path} has one class only")


# Any folder at all.

PARTS = [
    "train",
    "Train",
    "test",
    "val",
    "cat",
    "Cat",
    "dog",
    "1",
    "02",
    "__MACOSX",
    "caf\u00e9",
    "cafe\u0301",
]
FILES = ["a.png", "b.jpg", "a.txt", ".a.png", "x", "labels.csv", "train.csv", "Thumbs.db"]
PATHS = st.builds(
    lambda folders, file: "/".join([*folders, file]),
    st.lists(st.sampled_from(PARTS), max_size=3),
    st.sampled_from(FILES),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(names=st.lists(PATHS, max_size=12), links=st.lists(st.tuples(PATHS, PATHS), max_size=2))
def test_any_tree_is_a_listing_or_a_data_error(tmp_path_factory, names, links):
    data = tmp_path_factory.mktemp("fuzz") / "photos"
    data.mkdir()
    tree(data, *names)
    for table in data.rglob("*.csv"):
        table.write_text("path,label,split\na.png,cat,\n../a.png,dog,\ncat/a.png,Cat,\n")
    for source, goal in links:
        (data / source).parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(data / source):
            (data / source).symlink_to((data / goal).parent)
    before = sorted(map(str, data.rglob("*")))
    try:
        listing = listed(data)
    except DataError as error:
        said = str(error)
    else:
        said = " ".join(listing.notes)
        check_sound(listing)
    assert visible(said) == said
    assert sorted(map(str, data.rglob("*"))) == before
    assert not (data.parent / "workspace").exists()


def check_sound(listing: Listing) -> None:
    assert len(listing.classes) >= 2
    assert {entry.label for entry in listing.entries} == set(range(len(listing.classes)))
    assert len({entry.name for entry in listing.entries}) == len(listing.entries)
    splits = {entry.split for entry in listing.entries}
    assert splits == {None} or {"train", "test"} <= splits <= {"train", "val", "test"}
    assert all(os.path.lexists(entry.path) for entry in listing.entries)
