"""Answers for image files, as a table, as JSON, as HTML and as pictures."""

from __future__ import annotations

import html.parser
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from torch import nn

from velodrome import predicting
from velodrome.data.image_files import Failure
from velodrome.data.imageset import Normalisation
from velodrome.errors import ConfigError, RunError
from velodrome.evaluation.predict import Classifier
from velodrome.predicting import Prediction, Predictions, predict_files

CONSTANTS = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


class Network(nn.Module):
    """Sees which colour there is most of; in training mode it answers otherwise."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.layer1 = nn.Conv2d(3, classes, 1, bias=False)
        self.layer2 = nn.ReLU()
        self.unsteady = nn.Dropout(0.9)
        self.fc = nn.Linear(classes, classes, bias=False)
        with torch.no_grad():
            self.layer1.weight.copy_(torch.eye(classes, 3)[:, :, None, None])
            self.fc.weight.copy_(torch.eye(classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.layer2(nn.functional.avg_pool2d(self.layer1(images), 2))
        return self.fc(self.unsteady(maps.mean((2, 3))))


@pytest.fixture
def classifier() -> Classifier:
    return Classifier(Network(), ["red", "green", "blue"], CONSTANTS, (8, 8)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def write(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path, "PNG")
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Answers.


def test_answers_in_the_order_given(classifier, folder):
    paths = [write(folder / f"{n}.png", ("green", "blue", "red")[n % 3]) for n in range(7)][::-1]
    found = predict_files(classifier, paths, batch_size=2)
    assert [prediction.path for prediction in found.predictions] == paths
    assert [prediction.top[0][0] for prediction in found.predictions] == [
        ("green", "blue", "red")[n % 3] for n in range(7)
    ][::-1]
    assert found.failed == ()
    assert all(prediction.overlay is None for prediction in found.predictions)


def test_probabilities_are_those_of_the_classifier(classifier, folder, random_images):
    images = random_images(5)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    expected = classifier.probabilities(images).numpy()
    for prediction, row in zip(predict_files(classifier, folder).predictions, expected, strict=True):
        names, shares = zip(*prediction.top, strict=True)
        assert names == tuple(np.array(classifier.classes)[(-row).argsort()])
        assert shares == pytest.approx(sorted(row, reverse=True), rel=1e-5)
        assert all(type(share) is float for share in shares)


def test_a_model_in_training_mode_answers_the_same_and_stays_in_it(classifier, folder):
    path = write(folder / "a.png")
    expected = predict_files(classifier, path)
    classifier.train()
    assert predict_files(classifier, path) == expected
    assert classifier.network.training


def test_other_sizes_are_brought_to_the_models(classifier, folder):
    path = write(folder / "a.png", "blue", (300, 200))
    assert predict_files(classifier, str(path)).predictions[0].top[0][0] == "blue"


@pytest.mark.parametrize(("top", "kept"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_top_is_cut_to_the_classes_there_are(classifier, folder, top, kept):
    found = predict_files(classifier, write(folder / "a.png"), top=top)
    assert len(found.predictions[0].top) == kept


@pytest.mark.parametrize("setting", ["top", "batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_settings_below_one_are_refused(classifier, folder, setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is {value}, but must be at least 1"):
        predict_files(classifier, folder, **{setting: value})


def test_ties_are_in_the_order_of_the_classes(folder):
    network = Network()
    nn.init.zeros_(network.fc.weight)
    classifier = Classifier(network, ["x", "y", "z"], CONSTANTS, (8, 8))
    (prediction,) = predict_files(classifier, write(folder / "a.png")).predictions
    assert prediction.top == tuple((name, pytest.approx(1 / 3)) for name in "xyz")


def test_classes_that_round_to_zero_are_still_ranked(folder):
    network = Network()
    with torch.no_grad():
        network.fc.weight.copy_(torch.tensor([[1e4, 0, 0], [-1e5, 0, 0], [-1e4, 0, 0]]))
    classifier = Classifier(network, ["best", "worst", "middle"], CONSTANTS, (8, 8))
    (prediction,) = predict_files(classifier, write(folder / "a.png")).predictions
    assert prediction.top == (("best", 1.0), ("middle", 0.0), ("worst", 0.0))


def test_a_model_that_has_diverged_is_an_error(classifier, folder):
    nn.init.constant_(classifier.network.fc.weight, float("nan"))
    with pytest.raises(RunError, match="answers with NaN or infinity"):
        predict_files(classifier, write(folder / "a.png"))


def test_no_more_than_a_batch_is_in_memory(classifier, folder, monkeypatch):
    for number in range(10):
        write(folder / f"{number}.png")
    read = answered = 0
    most = 0
    read_image, answer = predicting.read_image, predicting._answer

    def counted_read(*arguments):
        nonlocal read, most
        read += 1
        most = max(most, read - answered)
        return read_image(*arguments)

    def counted_answer(classifier, images, *rest):
        nonlocal answered
        answered += len(images)
        return answer(classifier, images, *rest)

    monkeypatch.setattr(predicting, "read_image", counted_read)
    monkeypatch.setattr(predicting, "_answer", counted_answer)
    assert len(predict_files(classifier, folder, batch_size=4).predictions) == 10
    assert most == 4


# Failures.


def test_what_cannot_be_read_has_a_line_and_the_others_are_answered(classifier, folder, tmp_path):
    write(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image")
    write(folder / "c.png")
    (tmp_path / "empty").mkdir()
    found = predict_files(classifier, [tmp_path / "gone.png", folder, tmp_path / "empty"], batch_size=1)
    assert [prediction.path.name for prediction in found.predictions] == ["a.png", "c.png"]
    assert found.failed == (
        Failure(tmp_path / "gone.png", "it does not exist"),
        Failure(folder / "b.png", "it is not an image, or of no kind that is known"),
        Failure(tmp_path / "empty", "there is no image in this folder"),
    )


def test_nothing_but_failures(classifier, tmp_path):
    found = predict_files(classifier, tmp_path / "gone.png", explain=tmp_path / "out")
    assert found.predictions == ()
    assert len(found.failed) == 1
    assert "gone.png: it does not exist" in str(found)
    assert "<td" in found._repr_html_()


def test_nothing_at_all(classifier):
    found = predict_files(classifier, [])
    assert found.to_dict() == {"predictions": [], "failed": []}
    assert str(found) == "No images."


# As a table, as JSON, as HTML.

FOUND = Predictions(
    (
        Prediction(Path("a.png"), (("cat", 0.98765), ("dog", 0.01))),
        Prediction(Path("日本.png"), (("hippopotamus", 0.5), ("cat", 0.06)), Path("out/日本.gradcam.png")),
    ),
    (Failure(Path("bad.png"), "it is empty"),),
)


def test_to_dict():
    assert FOUND.to_dict() == {
        "predictions": [
            {
                "path": "a.png",
                "top": [{"class": "cat", "probability": 0.98765}, {"class": "dog", "probability": 0.01}],
            },
            {
                "path": "日本.png",
                "top": [
                    {"class": "hippopotamus", "probability": 0.5},
                    {"class": "cat", "probability": 0.06},
                ],
                "overlay": str(Path("out/日本.gradcam.png")),
            },
        ],
        "failed": [{"path": "bad.png", "reason": "it is empty"}],
    }


def test_the_table_is_aligned():
    assert FOUND.table().splitlines() == [
        "image     1st                 2nd",
        "a.png     cat          98.8%  dog 1.0%",
        "日本.png  hippopotamus 50.0%  cat 6.0%",
    ]
    assert str(FOUND) == FOUND.table() + "\n\nWithout an answer:\nbad.png: it is empty"


def test_long_names_are_cut_in_the_middle():
    long = Predictions((Prediction(Path("folder/" * 30 + "the-file.png"), (("x" * 300, 1.0),)),), ())
    heading, line = str(long).splitlines()
    assert line.startswith("folder/folder/fo…")
    assert "/the-file.png  xxx" in line
    assert line.endswith(" 100.0%")
    assert cell_len(line) == 48 + 2 + 24 + 1 + 6
    assert heading == "image" + " " * 45 + "1st"
    wide = Predictions((Prediction(Path("日" * 300), (("本" * 300, 1.0),)),), ())
    assert cell_len(str(wide).splitlines()[1]) <= 48 + 2 + 24 + 1 + 6


HOSTILE = "a\x1b[31m\nb\u202ec\r\udcff</td><script>alert('\"')</script>"


def test_hostile_names_cannot_rule_the_terminal():
    found = Predictions(
        (Prediction(Path(HOSTILE), ((HOSTILE, 1.0),)),), (Failure(Path(HOSTILE), "it is empty"),)
    )
    assert all(line.isprintable() for line in str(found).split("\n"))
    assert len(str(found).split("\n")) == 5
    assert "a\\x1b[31m\\nb\\u20" in str(found)


def test_hostile_names_cannot_rule_the_notebook():
    seen: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append(tag)

    found = Predictions(
        (Prediction(Path(HOSTILE), ((HOSTILE, 1.0),)),), (Failure(Path(HOSTILE), "it is empty"),)
    )
    page = found._repr_html_()
    Parser().feed(page)
    assert set(seen) == {"table", "tr", "th", "td"}
    page.encode()


def test_a_notebook_shows_a_limited_number_of_rows():
    many = Predictions(tuple(Prediction(Path(f"{n}.png"), (("cat", 1.0),)) for n in range(1300)), ())
    page = many._repr_html_()
    assert page.count("<tr>") == 201
    assert "1,100 more are not shown." in page
    assert "not shown" not in FOUND._repr_html_()


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (12, "12th"),
        (22, "22nd"),
        (113, "113th"),
    ],
)
def test_ordinals(number, word):
    assert predicting._ordinal(number) == word


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_file_names_that_are_not_text(classifier, folder):
    path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png"))
    try:
        write(path)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    found = predict_files(classifier, folder, explain=folder.parent / "out")
    assert found.predictions[0].top[0][0] == "red"
    assert "\\udcff\\udcfe.png" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["predictions"][0]["path"] == str(path)
    assert names_in(folder.parent / "out") == ["image.gradcam.png"]


# Pictures.


def test_a_picture_for_each_image(classifier, folder, tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        write(folder / f"{name}.png", colour)
    (folder / "bad.png").touch()
    found = predict_files(classifier, folder, explain=tmp_path / "new" / "out", top=1, batch_size=1)
    assert [prediction.overlay for prediction in found.predictions] == [
        tmp_path / "new" / "out" / "a.gradcam.png",
        tmp_path / "new" / "out" / "b.gradcam.png",
    ]
    assert names_in(tmp_path / "new" / "out") == ["a.gradcam.png", "b.gradcam.png"]
    for prediction in found.predictions:
        assert len(prediction.top) == 1
        with Image.open(prediction.overlay) as picture:
            assert picture.format == "PNG"
            assert picture.width > 900  # the image and two classes, though one was asked for
    assert predict_files(classifier, folder, top=1).predictions[0].top == found.predictions[0].top


def test_the_map_is_that_of_the_class(classifier, folder, tmp_path):
    """The left half is red, the right half a little green."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:] = (250, 0, 0), (0, 200, 0)
    Image.fromarray(pixels).save(folder / "a.png")
    found = predict_files(classifier, folder, explain=tmp_path / "out")
    assert [name for name, _ in found.predictions[0].top] == ["red", "green", "blue"]
    with Image.open(tmp_path / "out" / "a.gradcam.png") as picture:
        coloured = np.ptp(np.asarray(picture).astype(int), axis=2)
    _, red, green = np.array_split(coloured[60:330], 3, axis=1)
    assert red[:, :120].mean() > 5 * red[:, 180:].mean()
    assert green[:, 180:].mean() > 5 * green[:, :120].mean()


def test_a_model_with_a_single_class(folder, tmp_path):
    classifier = Classifier(Network(1), ["only"], CONSTANTS, (8, 8))
    found = predict_files(classifier, write(folder / "a.png"), explain=tmp_path / "out")
    assert found.predictions[0].top == (("only", 1.0),)
    assert found.predictions[0].overlay == tmp_path / "out" / "a.gradcam.png"
    assert found.predictions[0].overlay.exists()


def test_the_same_stem_twice(classifier, folder, tmp_path):
    paths = [folder / name for name in ("x/a.png", "y/a.bmp", "y/A.png", "y/a-2.png", "z/a.png")]
    for path in paths:
        write(path)
    found = predict_files(classifier, paths, explain=tmp_path / "out")
    assert [prediction.overlay.name for prediction in found.predictions] == [
        "x_a.gradcam.png",
        "y_a.gradcam.png",
        "y_A-2.gradcam.png",
        "a-2.gradcam.png",
        "z_a.gradcam.png",
    ]
    assert len(names_in(tmp_path / "out")) == 5


def test_other_files_in_the_folder_are_left_alone(classifier, folder, tmp_path):
    out = tmp_path / "out"
    write(out / "a.png")
    for name in ("kept.gradcam.png", "a.gradcam.png"):
        (out / name).write_bytes(b"old")
    predict_files(classifier, write(folder / "a.png"), explain=out)
    assert names_in(out) == ["a.gradcam.png", "a.png", "kept.gradcam.png"]
    assert (out / "kept.gradcam.png").read_bytes() == b"old"
    assert (out / "a.gradcam.png").read_bytes() != b"old"


def test_an_image_that_is_answered_is_never_overwritten(classifier, folder):
    """The folder of the pictures may be that of the images, and hold pictures from an earlier call."""
    paths = [write(folder / "A.png"), write(folder / "a.gradcam.png"), write(folder / "a-2.GRADCAM.png")]
    before = [path.read_bytes() for path in paths]
    found = predict_files(classifier, paths, explain=folder / ".." / folder.name)
    assert [path.read_bytes() for path in paths] == before
    assert found.predictions[0].overlay.name == "A-3.gradcam.png"


@pytest.mark.parametrize(
    ("stem", "safe"),
    [
        ("a b\nc", "a_b_c"),
        ("..hidden", "hidden"),
        ("-rf", "rf"),
        ("\x1b\u202e", "image"),
        ("x\\y:z*", "x_y_z"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("日本", "日本"),
        ("v1.2", "v1.2"),
        ("x" * 250, "x" * 100),
        ("é" * 120, "é" * 50),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="such names cannot exist there")
def test_pictures_have_safe_names(classifier, folder, tmp_path, stem, safe):
    path = write(folder / f"{stem}.png")
    found = predict_files(classifier, path, explain=tmp_path / "out")
    assert names_in(tmp_path / "out") == [f"{safe}.gradcam.png"]
    assert found.predictions[0].overlay == tmp_path / "out" / f"{safe}.gradcam.png"


def test_of_a_long_folder_as_much_is_kept_as_the_name_leaves(classifier, folder, tmp_path):
    paths = [write(folder / place / "image.png") for place in ("x" * 120, "y" * 120)]
    found = predict_files(classifier, paths, explain=tmp_path / "out")
    assert [prediction.overlay.name for prediction in found.predictions] == [
        f"{'x' * 94}_image.gradcam.png",
        f"{'y' * 94}_image.gradcam.png",
    ]


def test_a_link_in_the_folder_is_replaced_and_not_followed(classifier, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / "a.gradcam.png").symlink_to(tmp_path / "precious")
    predict_files(classifier, write(folder / "a.png"), explain=tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "out" / "a.gradcam.png").is_symlink()


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_else(
    classifier, folder, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(predicting, "_answer", None)
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="cannot be written"):
            predict_files(classifier, write(folder / "a.png"), explain=place)


def test_a_folder_that_is_there_must_be_writable_too(classifier, folder, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir(mode=0o500)
    if os.access(tmp_path / "out", os.W_OK):  # root may write everywhere

        def refuse(**_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(predicting.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(predicting, "_answer", None)
    with pytest.raises(RunError, match="out cannot be written: Permission denied"):
        predict_files(classifier, write(folder / "a.png"), explain=tmp_path / "out")


def test_a_wrong_layer_is_an_error_before_anything_is_written(classifier, folder, tmp_path):
    with pytest.raises(ConfigError, match="layer is 'layer9'"):
        predict_files(classifier, write(folder / "a.png"), explain=tmp_path / "out", layer="layer9")
    assert not (tmp_path / "out").exists()


def test_another_layer(classifier, folder, tmp_path):
    paths = [tmp_path / "two", tmp_path / "one"]
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    for layer, path in zip(("layer2", "layer1"), paths, strict=True):
        predict_files(classifier, folder, explain=path, layer=layer)
    one, two = ((path / "a.gradcam.png").read_bytes() for path in paths)
    assert one != two
