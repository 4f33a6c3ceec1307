"""Every setting, in frozen dataclasses by section; from dicts, YAML and flags, and back.

One vocabulary: the field `batch_size` is the YAML key `batch_size`, the keyword `batch_size=` of a recipe
and the flag `--batch-size`. Names are unique over all sections, so files and flags are flat.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from velodrome.errors import ConfigError, did_you_mean

Auto = Literal["auto"]
# Such as "10%", of LRMAX.
Percent = typing.NewType("Percent", str)

# LRMAX by optimizer where a range test is out of the question, from benchmarks/lr_regret.md: for batches of
# this size.
USUAL_LR = {"sgd": 0.1, "adam": 5e-3, "adamw": 5e-3, "muon": 0.1}
USUAL_BATCH = 512


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words ("at least 1") and as a check; an example where no default is one."""

    words: str
    holds: Callable[[Any], bool]
    example: str | None = None


def at_least(low: float) -> Rule:
    """The rule `value >= low`."""
    return Rule(f"at least {low}", lambda value: value >= low)


def above(low: float) -> Rule:
    """The rule `value > low`."""
    return Rule(f"above {low}", lambda value: value > low)


def from_zero_to_below(high: float) -> Rule:
    """The rule `0 <= value < high`."""
    return Rule(f"at least 0 and below {high}", lambda value: 0 <= value < high)


def inside(low: float, high: float) -> Rule:
    """The rule `low < value < high`."""
    return Rule(f"above {low} and below {high}", lambda value: low < value < high)


def between(low: float, high: float) -> Rule:
    """The rule `low <= value <= high`."""
    return Rule(f"from {low} to {high}", lambda value: low <= value <= high)


def share_of(percentage: str) -> float:
    """The number that a percentage such as "10%" stands for.

    Raises:
        ValueError: it is none from 0% to 100%.
    """
    share = float(percentage.removesuffix("%")) / 100
    if not 0 <= share <= 1:
        raise ValueError
    return share


def resolution_parts(text: str) -> list[tuple[int, float]]:
    """What `resolutions` says: sides in pixels, each with its share of the training.

    Raises:
        ValueError: it is not a list of PIXELS:SHARE, or a number is not above 0.
    """
    parts = [
        (int(side), float(share)) for side, _, share in (part.partition(":") for part in text.split(","))
    ]
    if any(side < 1 or not 0 < share < math.inf for side, share in parts):
        raise ValueError
    return parts


def _are_resolutions(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(resolution_parts(text))
    return False


RESOLUTIONS = Rule(
    "a list of PIXELS:SHARE such as 20:2,24:2,28:1,32:1, which gives a third of the training to 20 pixels",
    _are_resolutions,
    "20:2,24:2,28:1,32:1",
)


def replanned_parts(text: str) -> tuple[int, int]:
    """What `replanned` says: up to which step the schedule is another, and of how many steps in all that was.

    Raises:
        ValueError: it is not STEP:STEPS, or the first is not the smaller one.
    """
    done, _, planned = text.partition(":")
    if not 0 < int(done) < int(planned):
        raise ValueError
    return int(done), int(planned)


def _is_replanned(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(replanned_parts(text))
    return False


REPLANNED = Rule("STEP:STEPS, the smaller one first, such as 72:141", _is_replanned, "72:141")
FOLDER_NAME = Rule(
    "a plain folder name: no slash, not empty, not starting with a dot, at most 100 bytes",
    lambda name: (
        0 < len(os.fsencode(name)) <= 100 and not set(name) & set('/\\:\0\n\r*?"<>|') and name[0] not in ".-"
    ),
    "my-run",
)


def seconds_of(text: str) -> float:
    """The seconds in a length of time such as "90s", "10m" or "1h30m".

    Raises:
        ValueError: it is none, or is 0.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    parts = [float(part or 0) for part in found.groups()] if found else [0.0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds:
        raise ValueError
    return seconds


def _is_time(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return seconds_of(text) > 0
    return False


TIME = Rule("a length of time such as 90s, 10m or 1h30m", _is_time, "10m")
# Data sets that velodrome gets by itself. Everything else is a path, or lies at a hub.
NAMED_DATA = ("cifar10", "cifar100", "shapes")
HUB = "hf:"
DATA = Rule(
    f"{', '.join(NAMED_DATA)}, {HUB}NAME, or the path of a folder, a table, an archive or an .npz file",
    lambda name: bool(name.removeprefix(HUB)) and "\0" not in name,
    "photos/",
)


def is_own(data: str) -> bool:
    """Whether a data set is the user's, not one of those that velodrome knows by name."""
    return data not in NAMED_DATA


def setting(default: Any, help: str, rule: Rule | None = None, *, auto: bool = False) -> Any:
    """A dataclass field with its help text and its rule.

    Where `auto` is set, it may be "auto" too until the data are known: whoever has a prepared job has a value
    of the declared type.
    """
    return field(default=default, metadata={"help": help, "rule": rule, "auto": auto})


@dataclass(frozen=True)
class DataSection:
    """Which images."""

    data: str = setting(
        "cifar10",
        "data set: cifar10, cifar100, shapes (drawn by code, needs no download), hf:NAME, or the path of a "
        "folder of images, a table, an archive or an .npz file",
        DATA,
    )
    data_root: Path | None = setting(
        None, "folder that holds or receives data sets; else $VELODROME_DATA, else the user cache folder"
    )
    limit_train: int | None = setting(None, "train on this many images only", at_least(1))
    limit_test: int | None = setting(None, "test on this many images only", at_least(1))
    val_fraction: float = setting(
        0.0,
        "share of the training images held out for validation where there are none for that; auto: a tenth "
        "of 500 and more",
        from_zero_to_below(1),
        auto=True,
    )
    test_fraction: float = setting(
        0.2, "own images without a test set: share of each class held out to test on", inside(0, 1)
    )
    split_seed: int = setting(
        0, "own images without a test set: fixes which of them are held out to test on", between(0, 2**32 - 1)
    )
    labels: Path | None = setting(
        None, "CSV with columns path and label that correct labels, such as a run's label_errors.csv"
    )
    image_size: int = setting(
        "auto",
        "side in pixels that images are brought to; auto: their own, or chosen by the sizes of own images",
        between(8, 1024),
        auto=True,
    )
    image_fit: Literal["crop", "pad", "squash"] = setting(
        "crop", "how images of another shape become squares: cut off, bordered in black, or distorted"
    )
    on_bad_image: Literal["stop", "skip"] = setting(
        "stop", "what to do about own images that cannot be read: stop before anything, or go on without"
    )
    cache_by: Literal["times", "contents"] = setting(
        "times", "own images are read again when their sizes or times change, or only when their contents do"
    )


@dataclass(frozen=True)
class AugmentSection:
    """What is done to every training image, in this order. Test images are left as they are."""

    crop: int = setting(
        4,
        "random crop after padding by this many pixels; 0 turns it off; auto: an eighth of the side",
        at_least(0),
        auto=True,
    )
    crop_fill: Literal["zero", "reflect"] = setting(
        "zero", "what the padding holds: black or the mirror image"
    )
    random_resized_crop: float = setting(
        0.0,
        "in place of crop: a random part of the image of at least this share of its area; 0 turns it off",
        from_zero_to_below(1),
    )
    flip: bool = setting(True, "horizontal flip of half of the images")
    alternate_flip: bool = setting(
        False,
        "with flip: an image and its mirror image by turns, in place of a coin for each time",
    )
    resolutions: str | None = setting(
        None,
        "side of the training images as training goes on, PIXELS:SHARE,...; else their own",
        RESOLUTIONS,
    )
    randaugment: int = setting(
        0, "so many random operations on each image, one after another (RandAugment)", between(0, 10)
    )
    randaugment_magnitude: int = setting(9, "strength of these operations", between(0, 30))
    brightness: float = setting(
        0.0, "pixels times a random factor in 1 - X to 1 + X, one for each image", from_zero_to_below(1)
    )
    contrast: float = setting(
        0.0,
        "distance to the image's mean grey times a random factor in 1 - X to 1 + X",
        from_zero_to_below(1),
    )
    saturation: float = setting(
        0.0,
        "distance to the grey of each pixel times a random factor in 1 - X to 1 + X",
        from_zero_to_below(1),
    )
    hue: float = setting(0.0, "hue turned by a random share in -X to X of the whole circle", between(0, 0.5))
    cutout: int = setting(
        8,
        "side in pixels of the square that is filled with the mean; 0 turns it off; auto: a quarter of the "
        "image's",
        at_least(0),
        auto=True,
    )
    mixup: float = setting(
        0.0, "mean of two images and their labels, in shares of Beta(X, X); 0 turns it off", at_least(0)
    )
    cutmix: float = setting(
        0.0,
        "a rectangle from another image, and its share of the label, in shares of Beta(X, X); 0 turns it "
        "off; with mixup: one of the two for each image",
        at_least(0),
    )

    @property
    def takes_parts(self) -> bool:
        """Whether random parts of images are trained on, which are then kept larger."""
        return self.random_resized_crop > 0


@dataclass(frozen=True)
class ModelSection:
    """Which network."""

    model: Literal["resnet9", "speednet"] = setting("resnet9", "network")
    width: int = setting(
        64,
        "channels of the first stage; the others have 2, 4 and 8 times as many (speednet: 4 and 4)",
        at_least(1),
    )
    dropout: float = setting(
        0.0, "probability of dropping a feature before the classifier", from_zero_to_below(1)
    )
    prep: Literal["conv", "whiten"] | Auto = setting(
        "auto",
        "first layer: learned, or frozen filters that whiten patches; auto: conv, in speednet whiten",
    )
    activation: Literal["relu", "celu", "gelu"] | Auto = setting(
        "auto", "after each batch norm; celu has alpha 0.3; auto: relu, in speednet gelu"
    )
    norm_scale: Literal["learned", "fixed"] | Auto = setting(
        "auto", "batch norm's scales; fixed: 1 throughout; auto: learned, in speednet fixed"
    )
    ghost_batch: int | None = setting(
        None, "images over which batch norm takes its statistics in training; else the batch", at_least(1)
    )
    logit_scale: float = setting(1.0, "factor of the logits", above(0))
    init: Path | None = setting(
        None, "run folder to start from: its network and weights, with a new classifier for other classes"
    )


# What the networks are made of where that is "auto".
MADE_OF: dict[str, dict[str, str]] = {
    "resnet9": {"prep": "conv", "activation": "relu", "norm_scale": "learned"},
    "speednet": {"prep": "whiten", "activation": "gelu", "norm_scale": "fixed"},
}


def made_of(model: ModelSection) -> ModelSection:
    """The section with what its network is made of in place of every "auto"."""
    usual: dict[str, Any] = {k: v for k, v in MADE_OF[model.model].items() if getattr(model, k) == "auto"}
    return dataclasses.replace(model, **usual)


@dataclass(frozen=True)
class TrainSection:
    """How it is trained."""

    epochs: int = setting(
        24, "passes over the training images; auto: the more, the fewer they are", at_least(1), auto=True
    )
    steps: int | None = setting(
        None, "stop after so many steps, within the last epoch; else all", at_least(1)
    )
    time_budget: str | None = setting(
        None, "in place of epochs: as many steps as fit into this time (90s, 1h30m), measured twice", TIME
    )
    replanned: str | None = setting(
        None,
        "written by time_budget, which looks at the clock again half way: up to STEP, the schedule is that "
        "of STEPS (STEP:STEPS)",
        REPLANNED,
    )
    batch_size: int = setting(
        512,
        "images a step; the last batch of an epoch may be smaller; auto: the more, the more they are",
        at_least(1),
        auto=True,
    )
    drop_last: bool = setting(
        False,
        "leave out the last batch of an epoch where it is smaller; its images differ from epoch to epoch",
    )
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = setting(
        "sgd", "sgd has Nesterov momentum; muon is for convolutions, with sgd for the rest"
    )
    schedule: Literal["one-cycle", "cosine", "constant"] = setting(
        "one-cycle", "learning rate over the steps; LRMIN, peak and anneal are for one-cycle"
    )
    schedule_epochs: int | None = setting(
        None, "epochs that the schedule spans, else all; later ones keep its last learning rate", at_least(1)
    )
    lr: float | Auto = setting(
        "auto", "LRMAX, the highest learning rate; auto: found by a range test before training", above(0)
    )
    lr_min: float | Auto | Percent = setting(
        "auto", "LRMIN, the learning rate of the first step; auto: LRMAX/10", above(0)
    )
    lr_final: float | Auto | Percent = setting(
        "auto", "learning rate of the last step; auto: LRMIN, that is no annihilation", at_least(0)
    )
    head_lr_scale: float = setting(1.0, "learning rate of the classifier, as a multiple of lr", above(0))
    bias_lr_scale: float = setting(
        1.0, "learning rate of biases and of batch norm's scales and shifts, as a multiple of lr", above(0)
    )
    peak: float = setting(5 / 24, "where LRMAX stands, as a fraction of all steps", between(0, 1))
    flat_end: float = setting(
        0.0,
        "share of all steps, at the end, that keep the final learning rate of one-cycle or cosine",
        from_zero_to_below(1),
    )
    anneal: Literal["linear", "cosine"] = setting("linear", "shape of the two slopes of one-cycle")
    momentum: float = setting(0.9, "momentum of sgd and muon, beta1 of adam and adamw", from_zero_to_below(1))
    weight_decay: float = setting(
        5e-4,
        "L2 penalty on convolution and linear weights (decoupled with adamw; muon: linear ones only)",
        at_least(0),
    )
    bias_decay_scale: float = setting(
        0.0,
        "L2 penalty on biases and on batch norm's scales and shifts, as a multiple of weight_decay",
        at_least(0),
    )
    l1: float = setting(0.0, "L1 penalty on convolution and linear weights", at_least(0))
    label_smoothing: float = setting(
        0.0, "share of the target spread over all classes", from_zero_to_below(1)
    )
    balance: Literal["none", "weights", "sampling"] | Auto = setting(
        "none",
        "classes of unlike sizes: rare ones weigh more in the loss, or are drawn more often; auto: sampling "
        "where the largest class has over five times the images of the smallest",
    )
    freeze_epochs: int = setting(
        0, "first epochs in which only the classifier learns, for --init", at_least(0)
    )
    body_lr_scale: float = setting(
        1.0, "learning rate of all but the classifier, as a multiple of lr, for --init", above(0)
    )
    sync_bn: bool = setting(
        False,
        "several ranks on GPUs: batch norm takes its statistics over the whole batch, not over each part",
    )
    early_stop: int | None = setting(
        None,
        "stop after so many epochs without a lower validation loss; keeps the weights of the best",
        at_least(1),
    )


@dataclass(frozen=True)
class EvaluateSection:
    """How it is judged."""

    score_every: int = setting(
        1, "epochs between scores on validation and test images; 0: validation ones at the end", at_least(0)
    )
    score_test: Literal["often", "once"] = setting(
        "often", "test images are scored as often as validation images, or once, at the end"
    )
    tta: Literal["flip", "shift"] = setting(
        "flip",
        "test-time augmentation: mean with the mirror image; shift: more views of uncertain images",
    )


@dataclass(frozen=True)
class RunSection:
    """On what it runs and where the results go."""

    seed: int = setting(0, "fixes the initial weights, the order and the augmentation", between(0, 2**32 - 1))
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "auto: the fastest that is there")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: half where the device gains by it"
    )
    compile: bool = setting(
        False, "compile the network with torch.compile; on a GPU, capture whole steps as CUDA graphs"
    )
    checkpoint_every: float | None = setting(
        None, "minutes between checkpoints within an epoch; one is written after every epoch anyway", above(0)
    )
    runs_dir: Path = setting(Path("runs"), "folder that holds the run folders")
    name: str | None = setting(None, "name of the run folder; else the recipe and a number", FOLDER_NAME)


@dataclass(frozen=True)
class SearchSection:
    """How the learning rate is searched for; no part of a run's settings."""

    steps: int = setting(90, "steps of a range test", at_least(10))
    repeats: int = setting(1, "range tests, each with other initial weights and order", at_least(1))
    verify: int = setting(
        0, "short runs with so many LRMAX around the suggestion; the best wins", at_least(0)
    )
    lr_start: float | None = setting(
        None, "learning rate of the first step, else usual for the optimizer", above(0)
    )
    lr_end: float | None = setting(None, "learning rate of the last step, likewise", above(0))


@dataclass(frozen=True)
class Config:
    """All settings of a run. Make one with a recipe; change it with `override`."""

    recipe: str = "resnet9"
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    run: RunSection = RunSection()


@dataclass(frozen=True)
class Setting:
    """One setting: where it lives, what type it has, what it is for."""

    key: str
    section: str
    kind: Any
    help: str
    rule: Rule | None
    default: object

    @property
    def flag(self) -> str:
        """The setting as a command line flag, for instance --batch-size."""
        return "--" + self.key.replace("_", "-")


SECTIONS: dict[str, type] = {
    "data": DataSection,
    "augment": AugmentSection,
    "model": ModelSection,
    "train": TrainSection,
    "evaluate": EvaluateSection,
    "run": RunSection,
}


def _settings(sections: Mapping[str, type]) -> Iterator[Setting]:
    for section, cls in sections.items():
        kinds = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            words, rule = item.metadata["help"], item.metadata["rule"]
            kind = kinds[item.name] | Auto if item.metadata["auto"] else kinds[item.name]
            yield Setting(item.name, section, kind, words, rule, item.default)


SETTINGS: dict[str, Setting] = {item.key: item for item in _settings(SECTIONS)}
SEARCH_SETTINGS: dict[str, Setting] = {item.key: item for item in _settings({"search": SearchSection})}


def override(config: Config, values: Mapping[str, object], origin: str = "") -> Config:
    """A copy of `config` with some settings changed; each value is converted and checked.

    Args:
        config: what to start from.
        values: setting names and new values; strings are read as YAML scalars would be.
        origin: where the values come from, for error messages: "flags", a file name, or "" for Python.

    Raises:
        ConfigError: a name is unknown, or a value has the wrong type or breaks its rule.
    """
    changes: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        item = _named(key, SETTINGS, origin)
        changes.setdefault(item.section, {})[key] = _checked(item, value, origin)
    sections = {name: dataclasses.replace(getattr(config, name), **new) for name, new in changes.items()}
    return dataclasses.replace(config, **sections)


def search_section(values: Mapping[str, object], origin: str = "") -> SearchSection:
    """How to search for the learning rate, each value converted and checked.

    Args:
        values: setting names and values; strings are read as YAML scalars would be.
        origin: as for `override`.

    Raises:
        ConfigError: a name is unknown, or a value has the wrong type or breaks its rule.
    """
    found: dict[str, Any] = {
        key: _checked(_named(key, SEARCH_SETTINGS, origin), value, origin) for key, value in values.items()
    }
    return SearchSection(**found)


def _named(key: str, settings: Mapping[str, Setting], origin: str) -> Setting:
    if key not in settings:
        raise ConfigError(f"{_where(key, origin)} is not a setting.", did_you_mean(str(key), settings))
    return settings[key]


def is_auto(value: object) -> bool:
    """Whether a setting waits for the data to be known."""
    return value == "auto"


def check(config: Config) -> Config:
    """Check the rules that involve more than one setting, and return `config`.

    Raises:
        ConfigError: a value breaks its rule, LRMIN or the final LR is above LRMAX, or a batch does not fit.
    """
    for item in SETTINGS.values():  # a config may be made by hand
        _checked(item, getattr(getattr(config, item.section), item.key), "")
    train = config.train
    if train.early_stop is not None and config.evaluate.score_every == 0:
        raise ConfigError(
            f"early_stop is {train.early_stop}, but score_every is 0: only the last epoch is scored.",
            "Add --score-every 1.",
        )
    _check_schedule(train)
    if config.model.model == "speednet":
        for key, own in MADE_OF["speednet"].items():
            value = getattr(config.model, key)
            if value not in ("auto", own):
                raise ConfigError(
                    f"{key} is {value!r}, but in speednet it is always {own!r}.",
                    f"Leave out --{key.replace('_', '-')}, or use --model resnet9.",
                )
    limit, batch, ghost = config.data.limit_train, train.batch_size, config.model.ghost_batch
    if train.sync_bn and ghost is not None:
        raise ConfigError(
            f"sync_bn is on, but ghost_batch is {ghost}: statistics of the whole batch or of parts of it.",
            "Leave out --sync-bn or --ghost-batch.",
        )
    if is_auto(batch):  # it will fit the data
        return config
    if ghost is not None and ghost > batch:
        raise ConfigError(
            f"ghost_batch is {ghost}, but must not be larger than batch_size, which is {batch}.",
            f"Use --ghost-batch {batch} or smaller, or a larger --batch-size.",
        )
    if limit is not None and batch > limit:
        raise ConfigError(
            f"batch_size is {batch}, but must not be larger than the training set of {limit} (limit_train).",
            f"Use --batch-size {limit} or smaller, or a higher --limit-train.",
        )
    return config


def _check_schedule(train: TrainSection) -> None:
    """Check what the learning rates, their places and the steps must be to one another.

    Raises:
        ConfigError: they are not.
    """
    for key in {"one-cycle": ("lr_min", "lr_final"), "cosine": ("lr_final",), "constant": ()}[train.schedule]:
        low = getattr(train, key)
        if not isinstance(low, str) and train.lr != "auto" and low > train.lr:
            raise ConfigError(
                f"{key} is {low:g}, but must not be above lr, which is {train.lr:g}.",
                f"Lower --{key.replace('_', '-')} or raise --lr.",
            )
    if train.schedule == "one-cycle" and train.flat_end and train.peak + train.flat_end >= 1:
        raise ConfigError(
            f"peak is {train.peak:g} and flat_end {train.flat_end:g}, but together they must be below 1.",
            "Lower --peak or --flat-end: the learning rate falls in what they leave.",
        )
    if train.replanned and (train.steps is None or train.steps < replanned_parts(train.replanned)[0]):
        raise ConfigError(
            f"replanned is {train.replanned}, but steps is {train.steps}, and must not be below the first of "
            "its two numbers: so many are done already by then.",
            "Leave it out, or: --replanned none.",
        )


def usual_lr(optimizer: str, batch_size: int) -> float:
    """LRMAX where a range test is out of the question; less for smaller batches, whose gradients are noisier.

    It falls with the square root of the batch size, which keeps the variance of the steps (A. Krizhevsky,
    "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997).
    """
    share = math.sqrt(min(1.0, batch_size / USUAL_BATCH))
    return float(f"{USUAL_LR[optimizer] * share:.2g}")


def to_dict(config: Config) -> dict[str, object]:
    """All settings, flat, in the types of YAML: recipe first, then section by section."""
    flat: dict[str, object] = {"recipe": config.recipe}
    for item in SETTINGS.values():
        value = getattr(getattr(config, item.section), item.key)
        flat[item.key] = str(value) if isinstance(value, Path) else value
    return flat


def settings_of_training(config: Config) -> dict[str, object]:
    """The settings on which the result of a run depends, flat, in the types of JSON."""
    # Of own images a checksum is compared, wherever they lie now.
    elsewhere = {"data_root", "labels", "init", "runs_dir", "name", "checkpoint_every"}
    elsewhere |= {"data"} if is_own(config.data.data) else set()
    return {key: value for key, value in to_dict(config).items() if key not in elsewhere}


def to_yaml(config: Config) -> str:
    """The settings as YAML with a comment above each section; valid input for `read_yaml`."""
    flat = to_dict(config)
    lines = [_yaml_line("recipe", flat["recipe"])]
    for name, cls in SECTIONS.items():
        lines += ["", f"# {name}: {(cls.__doc__ or '').strip()}"]
        lines += [_yaml_line(item.name, flat[item.name]) for item in dataclasses.fields(cls)]
    return "\n".join(lines) + "\n"


def read_yaml(path: Path) -> dict[str, object]:
    """The settings in a YAML file as a flat dict, not yet checked.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping of names to values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"Config file {path} cannot be read: {reason}.", "Give --config a YAML file that exists."
        ) from error
    remedy = "velodrome train --print-config shows what is expected."
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(
            f"Config file {path} is not valid YAML{line}.",
            "velodrome train --print-config shows what is expected.",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"Config file {path} does not hold settings as `name: value` lines.", remedy)
    return values


def describe_kind(item: Setting) -> str:
    """The values that a setting takes, in words: "sgd, adam or adamw", "a whole number at least 1"."""
    choices, scalar = _choices(item.kind), _scalar(item.kind)
    words = [*map(str, choices)]
    if scalar is not None:
        rule = f" {item.rule.words}" if item.rule and scalar in (int, float) else ""
        noun = _NOUNS[scalar]
        words.append(item.rule.words if item.rule and scalar is str else noun + rule)
    if Percent in _members(item.kind):
        words.append("a percentage of lr such as 10%")
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _yaml_line(key: str, value: object) -> str:
    return str(yaml.safe_dump({key: value}, allow_unicode=True, width=1000)).rstrip("\n")


def _where(key: str, origin: str) -> str:
    if origin == "flags":
        return "--" + str(key).replace("_", "-")
    return f"{origin}: {key}" if origin else str(key)


def _checked(item: Setting, value: object, origin: str) -> object:
    """The value in the setting's type, or a ConfigError that names it, the rule and the remedy."""
    try:
        converted = _convert(value, item.kind)
        is_free = converted is None or (isinstance(converted, str) and _scalar(item.kind) is not str)
        if item.rule and not is_free and not item.rule.holds(converted):
            raise ValueError
    except (ValueError, TypeError, ArithmeticError):
        choices = _choices(item.kind)
        example = _example(item)
        remedy = f"For instance {item.flag} {example}."
        if choices and isinstance(value, str) and _scalar(item.kind) is None:
            remedy = did_you_mean(value, [*map(str, choices)])
        shown = repr(value) if isinstance(value, str) else str(value)
        raise ConfigError(
            f"{_where(item.key, origin)} is {shown}, but must be {describe_kind(item)}.", remedy
        ) from None
    return converted


_NOUNS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}


def _example(item: Setting) -> object:
    """A value that the setting would take."""
    if item.default is not None:
        return item.default
    if item.rule and item.rule.example:
        return item.rule.example
    return {int: 1000, float: 5.0, str: "text", Path: "folder"}[_scalar(item.kind) or str]


def _members(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _choices(kind: Any) -> tuple[str, ...]:
    return tuple(
        choice
        for part in _members(kind)
        if typing.get_origin(part) is Literal
        for choice in typing.get_args(part)
    )


def _scalar(kind: Any) -> type | None:
    """The plain type among the members of `kind`, or None where it has only choices."""
    plain = [part for part in _members(kind) if isinstance(part, type) and part is not types.NoneType]
    return plain[0] if plain else None


def _convert(value: object, kind: Any) -> object:
    """`value` in the type `kind`; ValueError where that cannot be."""
    optional = types.NoneType in _members(kind)
    if value is None or (optional and isinstance(value, str) and value.lower() in ("none", "null")):
        if optional:
            return None
        raise ValueError
    if value in _choices(kind):
        return value
    if Percent in _members(kind) and isinstance(value, str) and value.endswith("%"):
        share_of(value)
        return value
    scalar = _scalar(kind)
    if scalar is None:
        raise ValueError
    return _CONVERTERS[scalar](value)


def _to_int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)


def _to_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    # A fraction such as 5/24 is how the peak of one-cycle is written.
    number = float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _to_bool(value: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    return words[str(value).lower()] if str(value).lower() in words else _refuse()


def _to_text(value: object) -> str:
    # YAML reads a name such as 12 as a number; a run may be called that.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError
    return str(value)


def _to_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ValueError from error


def _refuse() -> typing.NoReturn:
    raise ValueError


_CONVERTERS: dict[type, Callable[[object], object]] = {
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    str: _to_text,
    Path: _to_path,
}
