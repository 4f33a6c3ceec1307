"""Settings: conversion, rules, precedence, YAML and back."""

from pathlib import Path

import pytest
import yaml

from velodrome.config import (
    SETTINGS,
    USUAL_LR,
    Config,
    check,
    describe_kind,
    override,
    read_yaml,
    resolution_parts,
    settings_of_training,
    to_dict,
    to_yaml,
)
from velodrome.errors import ConfigError
from velodrome.recipes import RECIPES, by_name, quick, resnet9
from velodrome.training.lr_range import MIDDLE
from velodrome.training.schedule import resolve_lr


def test_resnet9_is_the_reference_recipe() -> None:
    config = resnet9()
    assert (config.train.epochs, config.train.batch_size, config.train.optimizer) == (24, 512, "sgd")
    assert (config.train.schedule, config.train.peak, config.train.anneal) == ("one-cycle", 5 / 24, "linear")
    assert (config.augment.crop, config.augment.crop_fill, config.augment.flip, config.augment.cutout) == (
        4,
        "zero",
        True,
        8,
    )
    assert (config.model.width, config.model.dropout) == (64, 0.0)
    assert (config.data.data, config.data.val_fraction, config.data.limit_train) == ("cifar10", 0.0, None)


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_and_back(name: str, tmp_path: Path) -> None:
    config = by_name(name)(epochs=7, data_root="some/folder", l1=1e-6, compile=True)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    values = read_yaml(path)
    assert values.pop("recipe") == name
    assert override(by_name(name)(), values) == config
    assert set(values) == set(SETTINGS)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epochs", "12", 12),
        ("epochs", 12.0, 12),
        ("lr", "1e-3", 1e-3),
        ("lr", "auto", "auto"),
        ("peak", "5/24", 5 / 24),
        ("flip", "no", False),
        ("limit_train", "none", None),
        ("runs_dir", "a/b", Path("a/b")),
        ("name", 12, "12"),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("resolutions", "20:2,32:1", "20:2,32:1"),
        ("resolutions", "20 : 0.5 , 32:1e1", "20 : 0.5 , 32:1e1"),
        ("resolutions", "24:1", "24:1"),
        ("resolutions", "none", None),
        ("resolutions", None, None),
        ("alternate_flip", "yes", True),
        ("head_lr_scale", "0.05", 0.05),
        ("bias_lr_scale", 64, 64.0),
        ("optimizer", "muon", "muon"),
        ("model", "speednet", "speednet"),
        ("score_every", "0", 0),
        ("tta", "shift", "shift"),
    ],
)
def test_values_are_converted(key: str, value: object, expected: object) -> None:
    changed = override(Config(), {key: value})
    assert getattr(getattr(changed, SETTINGS[key].section), key) == expected


BAD_RESOLUTIONS = [
    *("", "20", "20:", ":1", "20:1,", ",20:1", "20:1;24:1", "20:1 24:1", "20:1:2", "small:1", "20:some"),
    *("0:1", "-8:1", "20.5:1", "20:0", "20:-1", "20:nan", "20:inf", "20:1,24:0", 20, True, [20, 1]),
]
BAD = [
    ("batch_size", 0, "at least 1"),
    ("batch_size", -5, "at least 1"),
    ("batch_size", "many", "whole number"),
    ("batch_size", 2.5, "whole number"),
    ("batch_size", True, "whole number"),
    ("batch_size", None, "whole number"),
    ("epochs", 0, "at least 1"),
    ("epochs", [1], "whole number"),
    ("lr", 0, "above 0"),
    ("lr", -0.1, "above 0"),
    ("lr", "nan", "above 0"),
    ("lr", "inf", "above 0"),
    ("lr", "1/0", "above 0"),
    ("lr", 10**400, "above 0"),
    ("momentum", 1, "below 1"),
    ("peak", 1.5, "from 0 to 1"),
    ("peak", "24/5", "from 0 to 1"),
    ("optimizer", "sdg", "Did you mean sgd?"),
    ("data", "", "the path of a folder"),
    ("model", "resnet", "Did you mean resnet9?"),
    ("precision", "half", "fp32"),
    ("val_fraction", 1, "below 1"),
    ("name", "../x", "plain folder name"),
    ("name", "", "plain folder name"),
    ("name", "a" * 101, "plain folder name"),
    ("data_root", 3, "a path"),
    ("flip", "maybe", "true or false"),
    ("seed", 2**32, "from 0"),
    *(("resolutions", text, "a list of PIXELS:SHARE such as 20:2") for text in BAD_RESOLUTIONS),
    ("head_lr_scale", 0, "above 0"),
    ("bias_lr_scale", -1, "above 0"),
    ("score_every", -1, "at least 0"),
    ("score_every", 0.5, "whole number"),
    ("tta", "shifted", "Did you mean shift?"),
    ("model", "speedyet", "Did you mean speednet?"),
    ("optimizer", "moun", "Did you mean muon?"),
]


@pytest.mark.parametrize(("key", "value", "rule"), BAD)
def test_a_bad_value_names_key_value_and_rule(key: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resnet9(**{key: value})
    message = str(caught.value)
    assert key in message
    assert str(value) in message
    assert rule in message
    assert "\n" not in message


def test_flags_are_named_as_flags_and_files_by_their_name() -> None:
    with pytest.raises(ConfigError, match=r"^--batch-size is '0', but"):
        override(Config(), {"batch_size": "0"}, "flags")
    with pytest.raises(ConfigError, match=r"^my.yaml: batch_size is 0, but"):
        override(Config(), {"batch_size": 0}, "my.yaml")


def test_an_unknown_key_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"epoch is not a setting. Did you mean epochs\?"):
        resnet9(epoch=3)
    with pytest.raises(ConfigError, match="Choose from"):
        resnet9(zzzzzz=3)


@pytest.mark.parametrize("key", ["lr_min", "lr_final"])
def test_low_rates_must_not_be_above_the_highest(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0.2, but must not be above lr, which is 0.1"):
        check(override(Config(), {"lr": 0.1, key: 0.2}))
    check(override(Config(), {"lr": 0.1, key: 0.1}))


def test_batch_must_not_exceed_a_limited_training_set() -> None:
    with pytest.raises(ConfigError, match="batch_size is 512"):
        resnet9(limit_train=511)
    resnet9(limit_train=512)


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'resnet' is not a recipe. Did you mean resnet9\?"):
        by_name("resnet")


@pytest.mark.parametrize("text", ["- a\n- b", "just words", "", "a: [", "x: \x00"])
def test_a_bad_file_is_one_clear_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(path)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "b")


def test_printed_settings_are_plain_yaml() -> None:
    flat = to_dict(quick())
    assert yaml.safe_load(to_yaml(quick())) == flat
    assert flat["recipe"] == "quick"


def test_resolutions_are_sides_with_their_shares() -> None:
    assert resolution_parts("20:2,24:2,28:1,32:1") == [(20, 2.0), (24, 2.0), (28, 1.0), (32, 1.0)]
    assert resolution_parts(" 8 : 0.25 ,32:1e1,8:3") == [(8, 0.25), (32, 10.0), (8, 3.0)]


@pytest.mark.parametrize("text", [text for text in BAD_RESOLUTIONS if isinstance(text, str)])
def test_bad_resolutions_are_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any will do: the words come with the setting)
        resolution_parts(text)


def test_a_bad_value_of_a_text_has_a_remedy_that_works() -> None:
    with pytest.raises(ConfigError, match=r"resolutions is '20', but must be a list") as caught:
        quick(resolutions="20")
    assert "my-run" not in str(caught.value)
    advice = str(caught.value).partition("For instance --resolutions ")[2].rstrip(".")
    assert quick(resolutions=advice).augment.resolutions == advice


@pytest.mark.parametrize("text", ["24:1", "20:2,24:2", "16:0.5,32:0.5"])
def test_resolutions_in_yaml(text: str, tmp_path: Path) -> None:
    """PIXELS:SHARE is a number to base 60 in YAML 1.1, unless it is quoted."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(quick(resolutions=text)))
    assert read_yaml(path)["resolutions"] == text


@pytest.mark.parametrize("key", ["lr_min", "lr_final"])
def test_low_rates_may_be_a_percentage_of_the_highest(key: str, tmp_path: Path) -> None:
    config = override(resnet9(), {key: "2.5%"}, "flags")
    assert getattr(config.train, key) == "2.5%"
    (tmp_path / "settings.yaml").write_text(to_yaml(config))
    values = read_yaml(tmp_path / "settings.yaml")
    assert values.pop("recipe") == "resnet9"
    assert override(resnet9(), values, "settings.yaml") == config
    assert getattr(resolve_lr(config.train, 0.4), key) == pytest.approx(0.01)
    assert getattr(resolve_lr(resnet9(lr=0.2, **{key: "0%"}).train), key) == 0
    for bad in ("101%", "-1%", "%", "x%", "nan%"):
        with pytest.raises(ConfigError, match="or a percentage of lr such as 10%"):
            override(resnet9(), {key: bad}, "flags")


def test_every_optimizer_has_its_usual_learning_rates() -> None:
    optimizers = set(describe_kind(SETTINGS["optimizer"]).replace(" or ", ", ").split(", "))
    assert set(USUAL_LR) == optimizers
    assert set(MIDDLE) == optimizers


def test_what_a_run_depends_on() -> None:
    """A run does not go on with another of these."""
    new = {"resolutions", "alternate_flip", "head_lr_scale", "bias_lr_scale", "model", "optimizer"}
    assert new <= set(settings_of_training(quick()))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("lr", [1e-3, 10.0])
def test_the_learning_rate_of_a_recipe_can_be_any(name: str, lr: float) -> None:
    assert by_name(name)(lr=lr).train.lr == lr
