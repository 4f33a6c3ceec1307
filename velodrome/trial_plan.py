"""What trials try: a grid of settings and single changes, each checked by the rules of the settings."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from velodrome.comparison.groups import BASELINE, NO_DIFFERENCE
from velodrome.config import Config, check, override, to_dict
from velodrome.errors import ConfigError, visible
from velodrome.fine_tuning import network_of

VARY, ALSO = "--vary", "--also"
# More runs than this are a slip of the pen.
MOST_RUNS = 10_000
# Of the name of a run folder, which may have 100 bytes; the seed takes the rest.
LONGEST_SLUG = 80

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """Settings to try with every seed.

    Attributes:
        label: unique among the variants: "baseline", or what is other than there, such as "cutout=16".
        slug: the same as a part of a folder name, unique too.
        changes: settings by name, in the types of JSON; what makes the variant of the base.
    """

    label: str
    slug: str
    changes: Changes

    def config(self, base: Config) -> Config:
        """The settings of the variant.

        Raises:
            VelodromeError: the base does not allow these changes.
        """
        return check(_changed(base, self.changes))


def parse_vary(texts: Sequence[str]) -> dict[str, list[str]]:
    """The axes of a grid in texts such as "cutout=8,16".

    Raises:
        ConfigError: a text is something else, has an empty value, or names a setting again.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, values = _split(text, VARY, "cutout=8,16")
        if key in axes:
            raise ConfigError(
                f"{VARY} names {key} twice.", f"Give all of its values at once: {VARY} {key}=..."
            )
        if key == "resolutions":
            raise ConfigError(
                f"{VARY} cannot tell values of resolutions apart, since there are commas in each.",
                f"Give each one as {ALSO} resolutions=20:2,32:1.",
            )
        axes[key] = values.split(",")
        if not all(axes[key]):
            raise ConfigError(f"{VARY} {visible(text)} has an empty value.", "Leave out the comma too many.")
    return axes


def parse_also(texts: Sequence[str]) -> list[dict[str, str]]:
    """The single changes in texts such as "optimizer=adam,lr=0.005".

    What has no "=" belongs to the value before it, as in "resolutions=20:2,32:1".

    Raises:
        ConfigError: a text is something else, has an empty value, or names a setting again.
    """
    changes = []
    for text in texts:
        pairs = [_split(part, ALSO, "optimizer=adam,lr=0.005") for part in re.split(r",(?=[^,]*=)", text)]
        keys = [key for key, _ in pairs]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise ConfigError(f"{ALSO} {visible(text)} names {twice[0]} twice.", "Leave one of them out.")
        changes.append(dict(pairs))
    return changes


def _split(text: str, flag: str, example: str) -> tuple[str, str]:
    """The name of a setting, as Python writes it, and what is said about it."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (key and equals and value):
        raise ConfigError(
            f"{flag} is {visible(text)!r}, but must name a setting and say what it is to be.",
            f"For instance {flag} {example}.",
        )
    return key.removeprefix("--").replace("-", "_"), value


def plan_variants(
    base: Config, vary: Mapping[str, Sequence[object]], also: Sequence[Mapping[str, object]], seeds: int
) -> tuple[Variant, ...]:
    """The variants to try: the product of what varies, which without any is the base itself, and more.

    Args:
        base: what every variant starts from; its seed is the first.
        vary: names of settings, each with its values.
        also: for each further variant the settings that make it of the base.
        seeds: how many runs each variant gets.

    Raises:
        ConfigError: a setting is unknown, of no use here, or has a value that breaks its rule; settings do
            not go together; two variants are the same; or there are too many runs, or seeds.
    """
    _check_seeds(base, seeds)
    axes = {key: _values(base, key, values) for key, values in vary.items()}
    count = math.prod(map(len, axes.values())) + len(also)
    if count * seeds > MOST_RUNS:
        raise ConfigError(
            f"{count:,} variants with {seeds:,} seeds make {count * seeds:,} runs, but at most {MOST_RUNS:,} "
            "are taken on at once.",
            "Vary less at a time.",
        )
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    single = [_plain(base, _checked(changes, ALSO), ALSO) for changes in also]
    return _named_apart(base, [*grid, *single])


def adopt(base: Config, known: Sequence[Variant], wanted: Sequence[Variant]) -> tuple[Variant, ...]:
    """The variants that are wanted; those that are known go by the name that they have.

    Args:
        base: of all of them.
        known: what was tried before.
        wanted: what is to be tried now.

    Raises:
        VelodromeError: the base does not allow what was tried before.
    """
    before = {_identity(variant.config(base)): variant for variant in known}
    slugs = {variant.slug.lower() for variant in known}
    found = []
    for variant in wanted:
        same = before.get(_identity(variant.config(base)))
        found.append(same or replace(variant, slug=_free(variant.slug, slugs)))
    return tuple(found)


def _check_seeds(base: Config, seeds: int) -> None:
    if seeds < 1:
        raise ConfigError(f"seeds is {seeds}, but must be at least 1.", "For instance --seeds 3.")
    override(base, {"seed": base.run.seed + seeds - 1})


def _values(base: Config, key: str, values: Sequence[object]) -> list[object]:
    """The values of an axis in the types of JSON, each once.

    Raises:
        ConfigError: there are none, or two are the same, or one breaks its rule.
    """
    if isinstance(values, str) or not values:
        raise ConfigError(
            f"{VARY}: {key} has {visible(repr(values))}, but must have a list of values.",
            f"For instance {VARY} cutout=8,16.",
        )
    found: list[object] = []
    for value in values:
        plain = _plain(base, _checked({key: value}, VARY), VARY)[key]
        if plain in found:
            raise ConfigError(f"{VARY}: {key} has the value {_shown(plain)} twice.", "Leave one of them out.")
        found.append(plain)
    return found


def _checked(changes: Mapping[str, object], origin: str) -> Mapping[str, object]:
    """The changes, if trials of these settings say anything.

    Raises:
        ConfigError: nothing differs between runs in which a setting differs; says which.
    """
    for key in changes:
        if key == "recipe":
            problem, remedy = (
                "is no setting but sets all others",
                "Make trials of each, then velodrome compare.",
            )
        elif key == "seed":
            problem, remedy = "differs within each variant", "For more seeds: --seeds N, from --seed on."
        elif key in NO_DIFFERENCE:
            problem = "makes no difference to what comes of a run"
            remedy = f"Give it once for all of them, as --{key.replace('_', '-')}."
        else:
            continue
        raise ConfigError(f"{origin}: {key} cannot be tried, as it {problem}.", remedy)
    return changes


def _plain(base: Config, changes: Mapping[str, object], origin: str) -> dict[str, Any]:
    """The changes in the types of JSON, each by the rules of its setting."""
    settings = to_dict(override(base, changes, origin))
    return {key: settings[key] for key in changes}


def _named_apart(base: Config, several: Sequence[Changes]) -> tuple[Variant, ...]:
    """Variants with names of their own.

    Raises:
        ConfigError: two of them are the same, or settings of one do not go together.
    """
    seen: dict[str, str] = {}
    slugs: set[str] = set()
    variants = []
    for changes in several:
        label = _label(changes)
        variant = Variant(label, _free(_slug(changes), slugs), changes)
        try:
            identity = _identity(variant.config(base))
        except ConfigError as error:
            raise ConfigError(f"Variant {label}: {error.problem}", error.remedy) from error
        if identity in seen:
            raise ConfigError(f"Variant {label} is the same as {seen[identity]}.", "Leave one of them out.")
        seen[identity] = label
        variants.append(variant)
    return tuple(variants)


def _changed(base: Config, changes: Changes) -> Config:
    """The base with changes; a network to start from brings its own settings along."""
    if changes.get("init"):
        base = override(base, network_of(Path(changes["init"])))
    return override(base, changes)


def _identity(config: Config) -> str:
    return json.dumps(to_dict(config), sort_keys=True)


def _label(changes: Changes) -> str:
    return ", ".join(f"{key}={_shown(value)}" for key, value in changes.items()) or BASELINE


def _shown(value: object) -> str:
    """A value as one writes it, on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else visible(str(value))


def _slug(changes: Changes) -> str:
    words = "_".join(f"{key.replace('_', '-')}-{_shown(value)}" for key, value in changes.items())
    return re.sub(r"[^A-Za-z0-9._+]+", "-", words)[:LONGEST_SLUG].strip("-.") or BASELINE


def _free(slug: str, taken: set[str]) -> str:
    """The slug, with a number where it is taken; taken from now on, in either case of letters."""
    names = itertools.chain([slug], (f"{slug[: LONGEST_SLUG - 6]}-{number}" for number in itertools.count(2)))
    free = next(name for name in names if name.lower() not in taken)
    taken.add(free.lower())
    return free
