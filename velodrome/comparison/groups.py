"""Runs that differ in their seed alone form a variant; variants are named by what sets them apart."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from velodrome.comparison.read_runs import TrialRun
from velodrome.comparison.right_wrong import RightWrong
from velodrome.config import SETTINGS, is_own
from velodrome.errors import ConfigError, did_you_mean, visible
from velodrome.run.folder import number
from velodrome.spread import Spread, spread_of

# What may differ between runs of one variant: the seed, where things lie, and what is only looked at.
NO_DIFFERENCE = ("seed", "name", "runs_dir", "data_root", "checkpoint_every", "cache_by", "score_test")
# What a time budget sets, by the speed of the machine at that moment.
SET_BY_BUDGET = ("epochs", "steps", "schedule_epochs", "replanned")
FIGURES = (
    *("test_accuracy", "test_accuracy_tta", "test_loss", "train_accuracy", "train_loss"),
    *("val_accuracy", "val_loss", "train_seconds", "images_per_s", "epochs", "params"),
)
BASELINE = "baseline"
# What makes a difference is told in this order.
ORDER = ("recipe", *SETTINGS, "velodrome", "ranks")
# A name lists so many settings.
MOST_IN_NAME = 3


@dataclass(frozen=True, eq=False)
class Trial:
    """A finished run and its answers to the test images.

    Attributes:
        run: as it was read.
        settings: those that make a difference, by name, as `effective_settings` has them.
        answers: which test images it gets wrong.
        test_key: equal for runs with the same test images: the name of the data and a checksum.
    """

    run: TrialRun
    settings: Mapping[str, Any]
    answers: RightWrong
    test_key: str


@dataclass(frozen=True, eq=False)
class Variant:
    """The runs of one configuration.

    Attributes:
        label: unique among the variants: "baseline", or what is other than there, such as "cutout=16".
        settings: that make a difference.
        trials: in the order of their seeds, each with another one.
    """

    label: str
    settings: Mapping[str, Any]
    trials: tuple[Trial, ...]

    @property
    def n(self) -> int:
        """How many runs."""
        return len(self.trials)

    @property
    def test_key(self) -> str:
        """Equal for variants with the same test images."""
        return self.trials[0].test_key

    @property
    def seeds(self) -> tuple[int | None, ...]:
        """The seeds of the runs."""
        return tuple(trial.run.seed for trial in self.trials)

    @functools.cached_property
    def figures(self) -> dict[str, Spread | None]:
        """The spread over the runs of every figure; None where no run has it."""
        return {key: spread_of(trial.run.figure(key) for trial in self.trials) for key in FIGURES}

    @property
    def accuracy(self) -> float:
        """Mean test accuracy, in [0, 1]."""
        spread = self.figures["test_accuracy"]
        assert spread is not None, "runs without it are left out"
        return spread.mean

    @functools.cached_property
    def wrong_share(self) -> NDArray[np.float64]:
        """For each of the N test images the share of the runs that get it wrong."""
        wrong = np.stack([trial.answers.is_wrong for trial in self.trials])
        share: NDArray[np.float64] = wrong.mean(0, dtype=np.float64)
        return share


def effective_settings(run: TrialRun) -> dict[str, Any]:
    """The settings of a run that make a difference to what comes of it.

    A learning rate that a range test found is "auto", since each seed finds its own; the lowest and the last
    one are shares of it. Epochs that a time budget set are "budget". Own images go by the name of the data
    set, wherever they lie. The version of velodrome counts as a setting, and so do ranks, where there were
    several: batch norm sees the images of one.
    """
    settings = {key: value for key, value in run.settings.items() if key not in NO_DIFFERENCE}
    top = settings.get("lr")
    for key in ("lr_min", "lr_final"):
        value = settings.get(key)
        if isinstance(top, int | float) and isinstance(value, int | float) and top:
            settings[key] = f"{100 * value / top:.4g}% of lr"
    if run.folder.lr_find.exists():
        settings["lr"] = "auto"
    if settings.get("time_budget"):
        settings |= dict.fromkeys(SET_BY_BUDGET, "budget")
    if is_own(str(settings.get("data"))):
        settings["data"] = run.result.get("data", settings.get("data"))
    if run.version:
        settings["velodrome"] = run.version
    if (ranks := number(run.environment.get("ranks"))) and ranks > 1:
        settings["ranks"] = int(ranks)
    return settings


def sort_into_variants(trials: Sequence[Trial]) -> tuple[Variant, ...]:
    """The trials by configuration, in order of first appearance; not yet named."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        # The name of a recipe says nothing that its settings do not.
        settings = {key: value for key, value in trial.settings.items() if key != "recipe"}
        key = json.dumps([trial.test_key, settings], sort_keys=True, default=str)
        groups.setdefault(key, []).append(trial)
    return tuple(Variant("", group[0].settings, tuple(sorted(group, key=_seed))) for group in groups.values())


def _seed(trial: Trial) -> int:
    return -1 if trial.run.seed is None else trial.run.seed


def with_names(variants: Sequence[Variant], first: int = 0) -> tuple[Variant, ...]:
    """The variants, that at `first` in front as the baseline, named by what sets them apart from it."""
    baseline = variants[first]
    ordered = [baseline, *(variant for variant in variants if variant is not baseline)]
    names: list[str] = [BASELINE]
    taken = {BASELINE}
    for variant in ordered[1:]:
        name = own_name = _name(variant, baseline)
        count = 1
        while name in taken:
            count += 1
            name = f"{own_name} ({count})"
        taken.add(name)
        names.append(name)
    return tuple(replace(variant, label=name) for variant, name in zip(ordered, names, strict=True))


def _name(variant: Variant, baseline: Variant) -> str:
    changes = [f"{key}={shown(variant.settings.get(key))}" for key in differing_settings([baseline, variant])]
    if not changes:
        return "other test images"
    more = len(changes) - MOST_IN_NAME
    parts = changes if more <= 1 else [*changes[:MOST_IN_NAME], f"and {more} more"]
    return ", ".join(parts)


def shown(value: object) -> str:
    """A value of a setting as one writes it, on one line."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else visible(str(value))


def differing_settings(variants: Sequence[Variant]) -> list[str]:
    """The settings that are not the same in all variants: the recipe, then as in the configuration."""
    present = {key for variant in variants for key in variant.settings}
    keys = [key for key in ORDER if key in present] + sorted(map(str, present - set(ORDER)))
    return [key for key in keys if len({json.dumps(v.settings.get(key), default=str) for v in variants}) > 1]


def find_baseline(variants: Sequence[Variant], wanted: str | None) -> int:
    """Which of the variants, not yet named, is the baseline: the first, or the one that is asked for.

    Args:
        variants: at least one.
        wanted: name or path of one of its runs, or settings such as "cutout=16", "cutout=16,lr=0.1"; None
            for the first.

    Raises:
        ConfigError: no variant is called that, or several are.
    """
    if wanted is None:
        return 0
    by_run = [
        index
        for index, variant in enumerate(variants)
        if any(wanted.rstrip("/") in (str(trial.run.path), trial.run.path.name) for trial in variant.trials)
    ]
    labels = [variant.label for variant in with_names(variants)]
    found = by_run or [index for index, label in enumerate(labels) if label == wanted]
    found = found or _with_settings(variants, wanted)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"--baseline {visible(wanted)} fits {len(found)} variants, but must name one.",
            "Name a run of it, by its path.",
        )
    runs = [trial.run.path.name for variant in variants for trial in variant.trials]
    names = [*labels, *runs]
    remedy = did_you_mean(wanted, names) if len(names) <= 20 else "Name a run of it, by its path."
    raise ConfigError(f"--baseline {visible(wanted)} is none of the variants and no run of one.", remedy)


def _with_settings(variants: Sequence[Variant], wanted: str) -> list[int]:
    """The variants in which all of "key=value,key=value" hold."""
    pairs = [part.strip().partition("=") for part in wanted.split(",")]
    if not all(equals for _, equals, _ in pairs):
        return []
    return [
        index
        for index, variant in enumerate(variants)
        if all(shown(variant.settings.get(key.strip())) == value.strip() for key, _, value in pairs)
    ]
