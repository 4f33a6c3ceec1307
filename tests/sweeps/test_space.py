"""The search space: what can be said, and what is refused with which words."""

import random
from pathlib import Path
from typing import Any

import pytest

import velodrome as vd
from velodrome.errors import ConfigError
from velodrome.sweeps.space import Choices, Range, read_space


class FakeTrial:
    """Stands for Optuna's trial: takes the low end, or the first value, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        self.asked[name] = choices
        return choices[0]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool, step: int) -> int:
        self.asked[name] = (low, high, log, step)
        return low

    def suggest_float(self, name: str, low: float, high: float, *, log: bool, step: float | None) -> float:
        self.asked[name] = (low, high, log, step)
        return low


def test_a_file_says_what_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "lr: {from: 1e-2, to: 1, log: true}\n"
        "cutout: [0, 8, 16]\n"
        "epochs: {from: 5, to: 20, step: 5}\n"
        "momentum: {from: 0.5, to: 0.9}\n"
        "optimizer: [sgd, adam]\n"
        "flip: [true, false]\n"
        "ghost_batch: [none, 32]\n"
    )
    space = read_space(path)
    assert space.parts == (
        Range("lr", 0.01, 1.0, log=True),
        Choices("cutout", (0, 8, 16)),
        Range("epochs", 5, 20, step=5),
        Range("momentum", 0.5, 0.9),
        Choices("optimizer", ("sgd", "adam")),
        Choices("flip", (True, False)),
        Choices("ghost_batch", (None, 32)),
    )
    trial = FakeTrial()
    values = space.suggest(trial)  # type: ignore[arg-type]
    assert values == {
        **{"lr": 0.01, "cutout": 0, "epochs": 5, "momentum": 0.5, "optimizer": "sgd"},
        **{"flip": True, "ghost_batch": None},
    }
    assert trial.asked["lr"] == (0.01, 1.0, True, None)
    assert trial.asked["epochs"] == (5, 20, False, 5)
    assert space.largest("epochs") == 20
    assert space.largest("width") is None
    assert read_space(space.to_json()).parts == space.parts
    config = space.configure(vd.recipes.quick(), values)
    assert (config.train.lr, config.augment.cutout, config.model.ghost_batch) == (0.01, 0, None)


def test_whole_numbers_stay_whole_and_others_do_not() -> None:
    space = read_space({"width": {"from": "8", "to": 64.0, "log": True}, "lr": {"from": 1, "to": 2}})
    width, lr = space.parts
    assert (repr(width.ends), repr(lr.ends)) == ("(8, 64)", "(1.0, 2.0)")


BAD = [
    ({}, "names no setting to search"),
    ({"batchsize": [1, 2]}, "search: batchsize is not a setting. Did you mean batch_size?"),
    ({3: [1, 2]}, "search: 3 is not a setting"),
    ({"lr": 0.1}, "lr is 0.1, but must be a list of values or a range {from: A, to: B}"),
    ({"lr": {"from": 0.1}}, "lr does not say 'to'"),
    ({"lr": {"from": 0.1, "upto": 1}}, "lr has 'upto', which is no part of a range. Did you mean to?"),
    ({"lr": {"from": 1, "to": 0.1}}, "lr goes from 1 to 0.1, but must end above where it begins. Swap them"),
    ({"lr": {"from": 0.1, "to": 0.1}}, "lr goes from 0.1 to 0.1, but must end above"),
    ({"lr": {"from": -1, "to": 1}}, "lr is -1, but must be auto or a number above 0. For instance --lr"),
    ({"lr": {"from": "auto", "to": 1}}, "lr has a range with auto, but must have numbers in one"),
    ({"lr": {"from": 0.1, "to": ".inf"}}, "lr is '.inf', but must be"),
    (
        {"l1": {"from": 0, "to": 1, "log": True}},
        "l1 goes from 0 with log: true, but must then begin above 0.",
    ),
    ({"lr": {"from": 0.1, "to": 1, "log": 2}}, "lr has log: 2, but must have true or false"),
    ({"lr": {"from": 0.1, "to": 1, "log": True, "step": 0.1}}, "lr has both log and step"),
    ({"epochs": {"from": 5, "to": 21, "step": 5}}, "does not lead to 21. Use to: 20."),
    (
        {"epochs": {"from": 5, "to": 20, "step": 0}},
        "step 0, but must have a whole number above 0 and at most 15",
    ),
    ({"epochs": {"from": 5, "to": 20, "step": 2.5}}, "step 2.5, but must have a whole number"),
    (
        {"lr": {"from": 0.1, "to": 1, "step": "big"}},
        "step big, but must have a number above 0 and at most 0.9",
    ),
    ({"epochs": {"from": 1.5, "to": 20}}, "epochs is 1.5, but must be"),
    ({"epochs": {"from": 0, "to": 20}}, "epochs is 0, but must be"),
    ({"optimizer": {"from": 1, "to": 2}}, "optimizer is 1, but must be"),
    ({"flip": {"from": False, "to": True}}, "flip has a range with false"),
    ({"optimizer": ["sgd", "adagrad"]}, "optimizer is 'adagrad', but must be sgd, adam, adamw or muon"),
    ({"cutout": [8]}, "cutout has 1 value(s), but must have at least 2. For one value that is not searched"),
    ({"cutout": [8, 0, "8"]}, "cutout has the value 8 twice"),
    ({"seed": [0, 1]}, "seed cannot be searched, as it decides which images are held out"),
    ({"data": ["cifar10", "shapes"]}, "data cannot be searched, as all trials must be judged on the same"),
    ({"name": ["a", "b"]}, "name cannot be searched, as it says where results go"),
    ({"recipe": ["quick", "resnet9"]}, "recipe cannot be searched"),
]


@pytest.mark.parametrize(("said", "expected"), BAD, ids=[str(said) for said, _ in BAD])
def test_the_impossible_is_named(said: dict[Any, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_space(said)
    assert expected in str(error.value)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "cannot be read: No such file or directory. Give --search a YAML file."),
        ("lr: [1, 2", "is not valid YAML (line 1)."),
        ("- lr\n", "does not name a setting on each line."),
        ("", "does not name a setting on each line."),
        (b"\xff\xfe", "cannot be read: it is not UTF-8 text."),
    ],
)
def test_a_file_that_is_none(text: str | bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match="Search space") as error:
        read_space(path)
    assert expected in str(error.value)


def test_rules_between_settings_hold_somewhere() -> None:
    config = vd.recipes.quick(lr=0.1)
    possible = read_space({"lr_min": {"from": 0.01, "to": 1}}).first_possible
    with pytest.raises(ConfigError, match=r"lr_min is never possible at 1\.0: lr_min is 1, but must not be"):
        possible(config)
    space = read_space({"lr_min": [0.2, 0.3], "cutout": [0, 8]})
    with pytest.raises(ConfigError, match=r"search: whatever the sweep would try, lr_min is 0\.2, but must"):
        space.first_possible(config)
    # Each value goes with some other.
    space = read_space({"lr": [0.1, 1], "lr_min": [0.05, 0.5]})
    assert space.first_possible(config).train.lr_min == 0.05
    space = read_space({"model": ["resnet9", "speednet"], "activation": ["relu", "gelu"]})
    assert space.first_possible(config).model.activation == "relu"


def test_many_settings_are_checked_by_chance() -> None:
    keys = ("brightness", "contrast", "saturation", "dropout", "label_smoothing")
    said = {key: {"from": 0.0, "to": 0.5} for key in keys} | {"width": list(range(1, 40))}
    random.seed(1)
    state = random.getstate()
    assert read_space(said).first_possible(vd.recipes.quick()).model.width in range(1, 40)
    assert random.getstate() == state


def test_what_is_given_is_not_searched() -> None:
    space = read_space({"lr": [0.1, 1]})
    space.check_not_given({"cutout": "8"})
    with pytest.raises(ConfigError, match="search: lr is searched, but --lr gives it a value"):
        space.check_not_given({"lr": "0.1"})
