"""Test accuracy against seconds of training: kept as JSON, told as a Markdown table, drawn as a figure."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from dated_tables import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from velodrome.errors import ConfigError, RunError
from velodrome.reporting.lr_figure import INK, QUIET, plain
from velodrome.run.folder import write_json, writing

LOWEST, HIGHEST = 40, 95  # of the figure's accuracies, in percent
# One colour for each recipe and one for each library, whose training in float32 is dashed.
RECIPES = ("#c8401c", "#16191d", "#d99a1c", "#8a5a44")
LIBRARIES = {"plain": "#0a67b0", "informed": "#0a67b0", "fastai": "#2f8f4e", "lightning": "#7b4bab"}
FLOAT32 = {"plain", "fastai", "lightning"}


@dataclass(frozen=True)
class Curve:
    """What a training reached, epoch by epoch.

    Attributes:
        what: was trained, in words.
        task: the data set and how many of its images; curves of another task are not comparable.
        machine: hardware and versions.
        date: of the training.
        load: load average before the sitting began; None where nobody noted it.
        epochs: that were planned.
        times_s: seconds of training up to the end of each epoch, without the scoring.
        test_accs: test accuracy in [0, 1] after each epoch.
        is_recipe: of velodrome, else a rival's.
    """

    what: str
    task: dict[str, object]
    machine: dict[str, str]
    date: str
    load: float | None
    epochs: int
    times_s: list[float]
    test_accs: list[float]
    is_recipe: bool

    def epochs_to(self, target: float) -> int | None:
        """Epochs until the accuracy was first at least `target`, None where it never was."""
        return next((done for done, acc in enumerate(self.test_accs, 1) if acc >= target), None)

    def seconds_to(self, target: float) -> float | None:
        """Seconds of training until then."""
        epochs = self.epochs_to(target)
        return None if epochs is None else self.times_s[epochs - 1]

    @property
    def seconds_an_epoch(self) -> float:
        """The median over the epochs."""
        return statistics.median(b - a for a, b in zip([0.0, *self.times_s], self.times_s, strict=False))


def read_curves(path: Path) -> dict[str, Curve]:
    """The curves of a file by their contestants; none where there is no file.

    Raises:
        RunError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: Curve(**values) for name, values in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}.", "Name another file with --json.") from error


def put_curve(path: Path, name: str, curve: Curve) -> None:
    """Add a curve to a file, in place of the one of that name.

    Raises:
        RunError: the file is damaged or cannot be written.
    """
    curves = read_curves(path) | {name: curve}
    write_json(path, {name: dataclasses.asdict(curve) for name, curve in curves.items()})


def check_comparable(path: Path, task: Mapping[str, object]) -> None:
    """Check that the curves of a file are about this task.

    Raises:
        ConfigError: they are about another.
        RunError: the file is damaged.
    """
    for name, curve in read_curves(path).items():
        if curve.task != task:
            raise ConfigError(
                f"{name} in {path} was trained on {_in_words(curve.task)}, this is {_in_words(task)}.",
                "Use the same data and limits, or another file.",
            )


def in_order(curves: Mapping[str, Curve], target: float) -> dict[str, Curve]:
    """First those that reached the accuracy, the fastest first; then the others, the most accurate first."""

    def rank(item: tuple[str, Curve]) -> tuple[bool, float]:
        seconds = item[1].seconds_to(target)
        return (seconds is None, -max(item[1].test_accs) if seconds is None else seconds)

    return dict(sorted(curves.items(), key=rank))


def tables_of(curves: Mapping[str, Curve], target: float) -> list[str]:
    """The table, who came first, and what the contestants are, as lines of Markdown."""
    ordered = in_order(curves, target)
    head = (
        "contestant",
        f"time to {target:.0%}",
        "epochs to it",
        "time of an epoch",
        "best test accuracy",
        "last",
        "epochs",
        "training in all",
        "date",
        "load before",
    )
    lines = table(head, [_row(name, curve, target) for name, curve in ordered.items()])
    lines += [f"- {name}: {curve.what}" for name, curve in ordered.items()]
    return [*lines, "", *_first(ordered, target), *_other_machines(ordered)]


def _row(name: str, curve: Curve, target: float) -> tuple[str, ...]:
    seconds, best = curve.seconds_to(target), max(curve.test_accs)
    done = len(curve.test_accs)
    return (
        name,
        f"not reached (best {best:.2%})" if seconds is None else f"{seconds:.1f} s",
        str(curve.epochs_to(target) or "-"),
        f"{curve.seconds_an_epoch:.1f} s",
        f"{best:.2%}",
        f"{curve.test_accs[-1]:.2%}",
        str(done) if done == curve.epochs else f"{done} of {curve.epochs}: **cut short**",
        f"{curve.times_s[-1]:.1f} s",
        curve.date,
        "unknown" if curve.load is None else f"{curve.load:.2f}",
    )


def _first(ordered: Mapping[str, Curve], target: float) -> list[str]:
    """Who came first, and how far behind each of the others was."""
    times_s = {name: curve.seconds_to(target) for name, curve in ordered.items()}
    reached = {name: seconds for name, seconds in times_s.items() if seconds is not None}
    if not reached:
        return [f"None reached {target:.0%}.", ""]
    first, best_s = next(iter(reached.items()))
    others = [f"{name} took {seconds / best_s:.2f} times as long" for name, seconds in reached.items()][1:]
    missing = [f"{name} did not get there" for name in ordered if name not in reached]
    return ["; ".join([f"First to {target:.0%}: {first}", *others, *missing]) + ".", ""]


def _other_machines(curves: Mapping[str, Curve]) -> list[str]:
    """A warning for the figures that were not measured where, or with what, most of them were."""
    machines = [json.dumps(curve.machine) for curve in curves.values()]
    usual = json.loads(statistics.mode(machines))
    lines = []
    for name, curve in curves.items():
        other = [f"{key}: {value}" for key, value in curve.machine.items() if value != usual.get(key)]
        if other:
            lines.append(f"- **{name} was not measured under the same conditions**: {'; '.join(other)}")
    return [*lines, ""] if lines else []


def _in_words(task: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in task.items() if value is not None)


def draw(curves: Mapping[str, Curve], target: float, path: Path) -> None:
    """Draw test accuracy against seconds of training into an SVG or a PNG.

    Raises:
        RunError: the file cannot be written.
    """
    figure = Figure(figsize=(9, 5.4), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    styles = _styles(curves)
    for name, curve in in_order(curves, target).items():
        seconds = curve.seconds_to(target)
        label = f"{name}: {_without(curve) if seconds is None else f'{target:.0%} after {seconds:,.0f} s'}"
        percents = [100 * accuracy for accuracy in curve.test_accs]
        # A point without a line is easily lost.
        style = styles[name] | ({"markersize": 6} if len(percents) == 1 else {})
        axes.plot(curve.times_s, percents, marker="o", label=label, **style)
    axes.axhline(100 * target, color=QUIET, linewidth=1, linestyle=(0, (2, 3)))
    axes.set_ylim(LOWEST, HIGHEST)
    axes.set_ylabel("test accuracy, %", color=INK)
    axes.legend(
        frameon=False, fontsize=9, labelcolor=INK, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2
    )
    _log_seconds(axes)
    plain(axes)
    with writing(path), mpl.rc_context({"svg.hashsalt": "velodrome"}):  # the same curves, the same bytes
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)


def _log_seconds(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlabel("seconds of training (logarithmic)", color=INK)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _without(curve: Curve) -> str:
    """How far a contestant came that did not reach the target."""
    best = f"{max(curve.test_accs):.1%}"
    done = len(curve.times_s)
    if done < curve.epochs:
        return f"{best} after {curve.times_s[-1]:,.0f} s, stopped after {done} of {curve.epochs} epochs"
    return f"{best} at best"


def _styles(curves: Mapping[str, Curve]) -> dict[str, dict[str, object]]:
    """Colour and line of each contestant."""
    recipes = [name for name, curve in curves.items() if curve.is_recipe]
    styles: dict[str, dict[str, object]] = {}
    for name in curves:
        if name in recipes:
            colour = RECIPES[recipes.index(name) % len(RECIPES)]
        else:
            colour = LIBRARIES.get(name.partition("-")[0], QUIET)
        line = (0, (4, 2)) if name in FLOAT32 else "-"
        width = 2.4 if name in recipes else 1.4
        styles[name] = {"color": colour, "linestyle": line, "linewidth": width, "markersize": 1.6 * width}
    return styles
