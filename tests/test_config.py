"""Settings: conversion, rules, precedence, YAML and back."""

from pathlib import Path

import pytest
import yaml

from velodrome.config import SETTINGS, Config, check, override, read_yaml, to_dict, to_yaml
from velodrome.errors import ConfigError
from velodrome.recipes import RECIPES, by_name, quick, resnet9


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
    ],
)
def test_values_are_converted(key: str, value: object, expected: object) -> None:
    changed = override(Config(), {key: value})
    assert getattr(getattr(changed, SETTINGS[key].section), key) == expected


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
    ("data", "cifra10", "Did you mean cifar10?"),
    ("model", "resnet", "Did you mean resnet9?"),
    ("precision", "half", "fp32"),
    ("val_fraction", 1, "below 1"),
    ("name", "../x", "plain folder name"),
    ("name", "", "plain folder name"),
    ("name", "a" * 101, "plain folder name"),
    ("data_root", 3, "a path"),
    ("flip", "maybe", "true or false"),
    ("seed", 2**32, "from 0"),
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
