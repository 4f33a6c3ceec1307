"""What a sweep searches: settings with the values that each may take, from a YAML file."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from velodrome.config import SETTINGS, Config, Setting, check, override, to_dict
from velodrome.errors import ConfigError, did_you_mean, visible
from velodrome.fine_tuning import network_of

if TYPE_CHECKING:
    from optuna import Trial

Value = None | bool | int | float | str
RANGE_WORDS = ("from", "to", "log", "step")
# So many combinations of the ends of all ranges are tried against the rules.
MOST_CORNERS = 512
EXAMPLE = "For instance: lr: {from: 0.01, to: 1, log: true}, and on another line: cutout: [0, 8, 16]."

_SAME_IMAGES = "all trials must be judged on the same images"
_NO_DIFFERENCE = "it makes no difference to what is learned"
_PLACE = "it says where results go"
NOT_SEARCHED = {
    "recipe": "it is no setting but sets all others",
    "seed": "it decides which images are held out to choose by, and the rest of its effect is chance",
    **dict.fromkeys(
        ("data", "data_root", "limit_train", "limit_test", "val_fraction", "test_fraction"), _SAME_IMAGES
    ),
    **dict.fromkeys(("split_seed", "labels", "on_bad_image"), _SAME_IMAGES),
    **dict.fromkeys(("cache_by", "score_every", "score_test", "tta"), _NO_DIFFERENCE),
    **dict.fromkeys(("device", "checkpoint_every"), _NO_DIFFERENCE),
    **dict.fromkeys(("runs_dir", "name"), _PLACE),
}


@dataclass(frozen=True)
class Choices:
    """A setting that takes one of several values.

    Attributes:
        key: of the setting.
        values: at least two, all different, in the types of YAML.
    """

    key: str
    values: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values by which the rules are checked: all of them."""
        return self.values

    def suggest(self, trial: Trial) -> Value:
        """The value of a trial."""
        chosen: Value = trial.suggest_categorical(self.key, self.values)
        return chosen

    def to_json(self) -> object:
        """As it stands in the file."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """A setting that takes any number from `low` to `high`, both included.

    Attributes:
        key: of the setting.
        low: whole, like all the others, where the setting is a whole number.
        high: above `low`.
        log: equal factors are equally likely, not equal differences.
        step: distance between neighbouring values; None for any, or for whole numbers 1.
    """

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values by which the rules are checked; what both ends keep, all between them keep."""
        return (self.low, self.high)

    def suggest(self, trial: Trial) -> Value:
        """The value of a trial."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, log=self.log, step=int(self.step or 1))
        return trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)

    def to_json(self) -> object:
        """As it stands in the file."""
        more = ({"log": True} if self.log else {}) | ({} if self.step is None else {"step": self.step})
        return {"from": self.low, "to": self.high, **more}


@dataclass(frozen=True)
class Space:
    """What a sweep searches.

    Attributes:
        origin: where it was described, for error messages.
        parts: one for each setting.
    """

    origin: str
    parts: tuple[Choices | Range, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that are searched."""
        return tuple(part.key for part in self.parts)

    def suggest(self, trial: Trial) -> dict[str, Value]:
        """The settings of a trial."""
        return {part.key: part.suggest(trial) for part in self.parts}

    def to_json(self) -> dict[str, object]:
        """As it stands in the file."""
        return {part.key: part.to_json() for part in self.parts}

    def largest(self, key: str) -> Value:
        """The largest value that a setting with numbers takes; None where it is not searched."""
        return max(
            (number for part in self.parts if part.key == key for number in _numbers(part)), default=None
        )

    def configure(self, config: Config, values: Mapping[str, object]) -> Config:
        """The settings of a trial; a network to start from brings its own settings along.

        Raises:
            VelodromeError: they do not go together.
        """
        if values.get("init"):
            config = override(config, network_of(Path(str(values["init"]))))
        return check(override(config, values, self.origin))

    def check_not_given(self, given: Collection[str]) -> None:
        """Check that nothing is both searched and given.

        Raises:
            ConfigError: something is.
        """
        for key in self.keys:
            if key in given:
                raise ConfigError(
                    f"{self.origin}: {key} is searched, but {SETTINGS[key].flag} gives it a value.",
                    "Leave out one of them.",
                )

    def first_possible(self, config: Config) -> Config:
        """Settings for which every rule holds, those of a corner of the space.

        Args:
            config: all other settings.

        Raises:
            ConfigError: there are none, or there are none for one of the values; names it and the rule.
        """
        corners, reasons, possible = list(self._corners()), list[ConfigError](), list[Mapping[str, Value]]()
        first: Config | None = None
        for corner in corners:
            try:
                found = self.configure(config, corner)
            except ConfigError as error:
                reasons.append(error)
                continue
            possible.append(corner)
            first = first or found
        if first is None:
            raise ConfigError(
                f"{self.origin}: whatever the sweep would try, {reasons[0].problem}", reasons[0].remedy
            )
        if len(corners) < MOST_CORNERS:
            self._check_each_value(config, possible)
        return first

    def _corners(self) -> Iterator[dict[str, Value]]:
        """Combinations of ends: all, or where these are too many, as many as it takes by chance."""
        ends = [part.ends for part in self.parts]
        if math.prod(map(len, ends)) < MOST_CORNERS:
            combinations: Iterator[tuple[Value, ...]] = itertools.product(*ends)
        else:
            rng = random.Random(0)
            combinations = (tuple(map(rng.choice, ends)) for _ in range(MOST_CORNERS))
        return (dict(zip(self.keys, values, strict=True)) for values in combinations)

    def _check_each_value(self, config: Config, possible: Sequence[Mapping[str, Value]]) -> None:
        for part in self.parts:
            for value in part.ends:
                if any(corner[part.key] == value for corner in possible):
                    continue
                try:
                    self.configure(config, {**possible[0], part.key: value})
                except ConfigError as error:
                    raise ConfigError(
                        f"{self.origin}: {part.key} is never possible at {_shown(value)}: {error.problem}",
                        error.remedy,
                    ) from error


def _numbers(part: Choices | Range) -> list[float]:
    return [end for end in part.ends if isinstance(end, int | float)]


def read_space(source: Path | str | Mapping[str, Any]) -> Space:
    """The space that a YAML file describes, each value checked by the rule of its setting.

    A line for each setting: a list of values, or a range {from: A, to: B} with `log: true` or `step: S`.

    Args:
        source: path of the file, or what would stand in it.

    Raises:
        ConfigError: the file cannot be read, or something in it is impossible.
    """
    if isinstance(source, Mapping):
        origin, content = "search", dict(source)
    else:
        origin, content = visible(str(source)), _read(Path(source))
    if not content:
        raise ConfigError(f"{origin} names no setting to search.", EXAMPLE)
    return Space(origin, tuple(_part(key, said, origin) for key, said in content.items()))


def _read(path: Path) -> dict[Any, Any]:
    name = f"Search space {visible(str(path))}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{name} cannot be read: {reason}.", "Give --search a YAML file.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"{name} is not valid YAML{line}.", EXAMPLE) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{name} does not name a setting on each line.", EXAMPLE)
    return values


def _part(key: Any, said: Any, origin: str) -> Choices | Range:
    """What is searched of one setting."""
    if key in NOT_SEARCHED:
        raise ConfigError(
            f"{origin}: {key} cannot be searched, as {NOT_SEARCHED[key]}.",
            "Leave it out; give it once for all trials.",
        )
    if key not in SETTINGS:
        raise ConfigError(
            f"{origin}: {visible(str(key))} is not a setting.", did_you_mean(str(key), SETTINGS)
        )
    item = SETTINGS[key]
    if isinstance(said, Mapping):
        return _range(item, said, origin)
    if isinstance(said, list | tuple):
        return _choices(item, said, origin)
    raise ConfigError(
        f"{origin}: {key} is {_shown(said)}, but must be a list of values or a range {{from: A, to: B}}.",
        f"For one value that is not searched, leave it out and give {item.flag}.",
    )


def _choices(item: Setting, said: Sequence[Any], origin: str) -> Choices:
    values = tuple(_value(item, value, origin) for value in said)
    if len(values) < 2:
        raise ConfigError(
            f"{origin}: {item.key} has {len(values)} value(s), but must have at least 2.",
            f"For one value that is not searched, leave it out and give {item.flag}.",
        )
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(
                f"{origin}: {item.key} has the value {_shown(value)} twice.", "Leave one of them out."
            )
    return Choices(item.key, values)


def _range(item: Setting, said: Mapping[str, Any], origin: str) -> Range:
    name = f"{origin}: {item.key}"
    for word in said:
        if word not in RANGE_WORDS:
            raise ConfigError(
                f"{name} has {visible(str(word))!r}, which is no part of a range.",
                did_you_mean(str(word), RANGE_WORDS),
            )
    for word in ("from", "to"):
        if word not in said:
            raise ConfigError(
                f"{name} does not say {word!r}, but a range must say where it begins and ends.", EXAMPLE
            )
    low, high = (_number(item, said[word], origin) for word in ("from", "to"))
    if low >= high:
        raise ConfigError(
            f"{name} goes from {low:g} to {high:g}, but must end above where it begins.",
            "Swap them; for one value that is not searched, leave it out and give " + item.flag + ".",
        )
    log = said.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{name} has log: {_shown(log)}, but must have true or false.", "Use log: true.")
    if log and low <= 0:
        raise ConfigError(
            f"{name} goes from {low:g} with log: true, but must then begin above 0.",
            "Begin with a small number, or leave out log.",
        )
    step = _step(said["step"], low, high, name) if said.get("step") is not None else None
    if log and step is not None:
        raise ConfigError(
            f"{name} has both log and step, which exclude each other.", "Leave one of them out."
        )
    return Range(item.key, low, high, log, step)


def _step(said: Any, low: float, high: float, name: str) -> float:
    """The distance between values of a range, which must lead from its beginning to its end."""
    kind = int if isinstance(low, int) else float
    try:
        step = kind(said)
        fits = not isinstance(said, bool) and step == float(said) and 0 < step <= high - low
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        words = "a whole number" if kind is int else "a number"
        raise ConfigError(
            f"{name} has step {_shown(said)}, but must have {words} above 0 and at most {high - low:g}.",
            "Leave it out for any value between.",
        )
    steps = (high - low) / step
    if abs(steps - round(steps)) > 1e-6 * steps:
        raise ConfigError(
            f"{name} goes from {low:g} in steps of {step:g}, which does not lead to {high:g}.",
            f"Use to: {low + math.floor(steps) * step:g}.",
        )
    return step


def _number(item: Setting, said: Any, origin: str) -> float:
    """The end of a range."""
    value = _value(item, said, origin)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(
            f"{origin}: {item.key} has a range with {_shown(said)}, but must have numbers in one.",
            "For other values use a list.",
        )
    return value


def _value(item: Setting, said: Any, origin: str) -> Value:
    """A value in the setting's type, as YAML has it, if its rule holds."""
    value = to_dict(override(Config(), {item.key: said}, origin))[item.key]
    assert value is None or isinstance(value, bool | int | float | str), "settings are scalars"
    return value


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else visible(str(value))
