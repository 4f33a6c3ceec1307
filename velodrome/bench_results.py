"""What a bench measured over all of its runs: bench.json, and dated tables. Never imports torch."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from velodrome.bench_rows import BenchFolder, OwnRun, RivalRun
from velodrome.errors import EXIT_PARTLY, ConfigError, RunError, visible
from velodrome.run.folder import RunFolder, write_json, writing
from velodrome.run.sinks import percent
from velodrome.spread import Spread, spread_of

# With more to do than this at the start, a machine's times do not count.
BUSY_LOAD = 0.5
RUN_COLUMNS = (
    *("seed", "accuracy", "with TTA", "time (s)", "train (s)", "predict (s)"),
    *("PFLOP", "GFLOP/s", "of the ceiling"),
)
PAIR_COLUMNS = ("seed", "velodrome (s)", "other (s)", "its accuracy", "other / velodrome")
MEASURED = (
    *("accuracy_tta", "accuracy", "time_s", "dawnbench_s", "prepare_s", "train_s", "predict_s"),
    *("train_pflop", "gflops", "ceiling_gflops", "ceiling_share", "wall_s"),
)
# Of each column: what it shows, and how.
_FORMS = {
    "accuracy": ".2%",
    "accuracy_tta": ".2%",
    "time_s": ".1f",
    "train_s": ".1f",
    "predict_s": ".2f",
    "train_pflop": ".4g",
    "gflops": ",.0f",
    "ceiling_share": ".0%",
}

Row = TypeVar("Row", OwnRun, RivalRun)


@dataclass(frozen=True, eq=False)
class Bench:
    """What a bench measured so far; shows itself in a terminal (`print`) and in a notebook.

    Attributes:
        path: of its folder.
        settings: on which the times depend, flat, in the types of JSON; without the seed.
        against: command line of the other program, None without one.
        machine: versions and hardware, as in environment.json.
        starts: for each time that it was started or went on: started, command, commit, load_average.
        runs: ours, by seed.
        rivals: those of the other program, by the seed of our run beside them.
    """

    path: Path
    settings: Mapping[str, Any]
    against: str | None
    machine: Mapping[str, Any]
    starts: tuple[Mapping[str, Any], ...] = ()
    runs: tuple[OwnRun, ...] = ()
    rivals: tuple[RivalRun, ...] = ()

    @property
    def failed(self) -> tuple[OwnRun, ...]:
        """Our runs that failed."""
        return tuple(run for run in self.runs if run.error is not None)

    @property
    def failed_rivals(self) -> tuple[RivalRun, ...]:
        """The runs of the other program that failed."""
        return tuple(rival for rival in self.rivals if rival.exit_code != 0)

    def own(self, seed: int) -> OwnRun | None:
        """Our run with a seed, None where there is none that has come to its end."""
        return next((run for run in self.runs if run.seed == seed and run.error is None), None)

    def rival(self, seed: int) -> RivalRun | None:
        """The other program's run beside a seed, None where there is none that succeeded."""
        return next((row for row in self.rivals if row.seed == seed and row.exit_code == 0), None)

    def is_measured(self, seed: int) -> bool:
        """Whether our run with a seed has come to its end, and that of the other program beside it."""
        return self.own(seed) is not None and (self.against is None or self.rival(seed) is not None)

    def ratio(self, seed: int) -> float | None:
        """How many times as long as ours the other program took, beside a seed; wall times from outside."""
        ours, theirs = self.own(seed), self.rival(seed)
        return theirs.wall_s / ours.wall_s if theirs and ours and ours.wall_s else None

    def summary(self) -> dict[str, Spread | None]:
        """The spread over the runs of everything that was measured; None where nothing was."""
        done = [run for run in self.runs if run.error is None]
        figures = {name: spread_of(getattr(run, name) for run in done) for name in MEASURED}
        if self.against is None:
            return figures
        theirs = [rival for rival in self.rivals if rival.exit_code == 0]
        return figures | {
            "rival_accuracy": spread_of(rival.accuracy for rival in theirs),
            "rival_wall_s": spread_of(rival.wall_s for rival in theirs),
            "ratio": spread_of(self.ratio(rival.seed) for rival in theirs),
        }

    def with_run(self, run: OwnRun) -> Self:
        """The bench with a run of ours more, in place of one with the same seed."""
        return replace(self, runs=_inserted(self.runs, run))

    def with_rival(self, rival: RivalRun) -> Self:
        """The bench with a run of the other program more, in place of one beside the same seed."""
        return replace(self, rivals=_inserted(self.rivals, rival))

    def to_dict(self) -> dict[str, Any]:
        """The content of bench.json."""
        summary = self.summary()
        return {
            "settings": dict(self.settings),
            "against": self.against,
            "machine": dict(self.machine),
            "starts": [dict(start) for start in self.starts],
            "runs": [run.to_dict() for run in self.runs],
            "rivals": [rival.to_dict() for rival in self.rivals],
            "summary": {name: found and dataclasses.asdict(found) for name, found in summary.items()},
        }

    def save(self) -> None:
        """Write bench.json, atomically.

        Raises:
            RunError: it cannot be written.
        """
        write_json(BenchFolder(self.path).record, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Bench:
        """The bench in a folder.

        Raises:
            RunError: bench.json is missing or damaged.
        """
        record = BenchFolder(path).record
        content = RunFolder(path).read_json(record)
        try:
            if content is None:
                raise ValueError("it does not exist")
            return cls(
                path=path,
                settings=dict(content["settings"]),
                against=content["against"],
                machine=dict(content["machine"]),
                starts=tuple(dict(start) for start in content["starts"]),
                runs=tuple(_row(OwnRun, row) for row in content["runs"]),
                rivals=tuple(_row(RivalRun, row) for row in content["rivals"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise RunError(
                f"{record} is damaged: {problem}.", "Restore it from a copy, or use another --name."
            ) from error

    def __str__(self) -> str:
        return markdown(self)

    def _repr_html_(self) -> str:
        return html_table(self)


def markdown(bench: Bench) -> str:
    """The dated report of a bench: the runs, the figures over them, the other program, the machine."""
    started = str(bench.starts[-1]["started"])[:10] if bench.starts else "no date"
    data, recipe = bench.settings.get("data"), bench.settings.get("recipe")
    lines = [f"## {started}: bench of `{recipe}` on {data}", ""]
    loads = [start["load_average"] for start in bench.starts if start.get("load_average") is not None]
    if any(load > BUSY_LOAD for load in loads):
        load = max(loads)
        lines += [f"**The machine was busy** (load average {load:.2f} at the start): times do not count.", ""]
    lines += table(RUN_COLUMNS, [*map(_run_cells, bench.runs), _summary_cells(bench)])
    lines += [*_sentences(bench), ""]
    if bench.against is not None:
        lines += _against(bench)
    return "\n".join(lines + table(("machine", ""), _machine_rows(bench)))


def html_table(bench: Bench) -> str:
    """The runs and the figures over them, for a notebook."""
    rows = [*map(_run_cells, bench.runs), _summary_cells(bench)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in RUN_COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    items = "".join(f"<p>{html.escape(line.removeprefix('- '))}</p>" for line in _sentences(bench))
    return f"<table><tr>{head}</tr>{body}</table>{items}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, as lines, with an empty one after it."""
    ruler = ["---"] * len(head)
    return [*("| " + " | ".join(map(_cell, row)) + " |" for row in (head, ruler, *rows)), ""]


def check_output(path: Path | None) -> None:
    """Check that a report can be appended to a file, if one is named.

    Raises:
        ConfigError: its folder does not exist, it is a folder, or it may not be written.
    """
    if path is None:
        return
    wrong = None
    if not path.parent.is_dir():
        wrong = f"lies in {path.parent}, which is not a folder"
    elif path.is_dir():
        wrong = "is a folder"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        wrong = "may not be written"
    if wrong:
        raise ConfigError(f"--output {path} {wrong}.", "Give a file in a folder that you may write to.")


def append(path: Path, text: str) -> None:
    """Append a report to a file, after an empty line if it holds something.

    Raises:
        RunError: it cannot be written; the bench itself is kept.
    """
    try:
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}" if file.tell() else text)
    except RunError as error:
        error.exit_code = EXIT_PARTLY
        raise


def spread_text(found: Spread | None, form: str, unit: str = "") -> str:
    """Median, range and number as a phrase: "301.2 s (299.0 to 310.1, n = 5)"; a dash for nothing."""
    if found is None:
        return "-"
    ends = f"{found.min:{form}} to {found.max:{form}}, " if found.n > 1 else ""
    return f"{found.median:{form}}{unit} ({ends}n = {found.n})"


def accuracy_text(found: Spread | None) -> str:
    """Mean of accuracies with its interval, in percent; a dash for nothing."""
    if found is None:
        return "-"
    if found.ci95 is None or found.sd is None:
        return f"mean {found.mean:.2%} (n = {found.n}, so no interval)"
    low, high = found.ci95
    return (
        f"mean {found.mean:.2%}, 95% CI of the mean {low:.2%} to {high:.2%} (Student's t, n = {found.n}), "
        f"standard deviation {100 * found.sd:.2f} points, lowest {found.min:.2%}, highest {found.max:.2%}"
    )


def _run_cells(run: OwnRun) -> list[str]:
    if run.error is not None:
        return [str(run.seed), "failed", *["-"] * (len(RUN_COLUMNS) - 2)]
    return [str(run.seed), *_figures({name: getattr(run, name) for name in _FORMS})]


def _summary_cells(bench: Bench) -> list[str]:
    """The last row: means of the accuracies, medians of the rest."""
    found = bench.summary()
    middles = {
        name: None if one is None else one.mean if name.startswith("accuracy") else one.median
        for name in _FORMS
        for one in [found[name]]
    }
    return ["mean accuracy, median of the rest", *_figures(middles)]


def _figures(values: Mapping[str, float | None]) -> list[str]:
    return ["-" if values[name] is None else f"{values[name]:{form}}" for name, form in _FORMS.items()]


def _sentences(bench: Bench) -> list[str]:
    found = bench.summary()
    return [
        f"- accuracy with test-time augmentation (TTA): {accuracy_text(found['accuracy_tta'])}",
        "- time from data in memory to the final answers: median "
        + spread_text(found["time_s"], ".1f", " s"),
        "- time by DAWNBench's rules, preparation and training without the final answers: median "
        + spread_text(found["dawnbench_s"], ".1f", " s"),
        f"- ceiling, matrix products in {bench.settings.get('precision')} right before and after each run: "
        f"median {spread_text(found['ceiling_gflops'], ',.0f', ' GFLOP/s')}",
        *(f"- seed {run.seed} failed: {visible(str(run.error))}" for run in bench.failed),
    ]


def _against(bench: Bench) -> list[str]:
    """The wall times of both programs."""
    found = bench.summary()
    beside = {rival.seed: rival for rival in bench.rivals}
    rows = [_pair_cells(bench, run, beside.get(run.seed)) for run in bench.runs]
    wall, other, accuracy = found["wall_s"], found["rival_wall_s"], found["rival_accuracy"]
    middle = ["mean accuracy, median of the rest"]
    middle += ["-" if one is None else f"{one.median:.2f}" for one in (wall, other)]
    middle += [percent(accuracy.mean if accuracy else None)]
    middle += ["-" if found["ratio"] is None else f"{found['ratio'].median:.3f}"]
    return [
        f"Against {_code(bench.against or '')}, in turn with ours; wall times of the commands, from outside:",
        "",
        *table(PAIR_COLUMNS, [*rows, middle]),
        f"- other / velodrome, within each pair: median {spread_text(found['ratio'], '.3f')}",
        f"- accuracy of the other program, as it prints it: {accuracy_text(accuracy)}",
        "",
    ]


def _pair_cells(bench: Bench, run: OwnRun, rival: RivalRun | None) -> list[str]:
    ours = "failed" if run.error is not None else "-" if run.wall_s is None else f"{run.wall_s:.2f}"
    theirs = "-"
    if rival is not None:
        theirs = f"exit code {rival.exit_code}" if rival.exit_code else f"{rival.wall_s:.2f}"
    accuracy, ratio = rival.accuracy if rival else None, bench.ratio(run.seed)
    return [str(run.seed), ours, theirs, percent(accuracy), "-" if ratio is None else f"{ratio:.3f}"]


def _machine_rows(bench: Bench) -> list[tuple[str, str]]:
    about, starts = bench.machine, bench.starts
    commits = dict.fromkeys(str(start.get("commit") or "unknown") for start in starts)
    loads = [_load(start.get("load_average")) for start in starts]
    return [
        ("date", ", ".join(str(start["started"]) for start in starts)),
        ("command", _code(str(starts[-1]["command"])) if starts else "-"),
        ("velodrome", str(about.get("velodrome"))),
        ("commit of the working directory", ", ".join(commits)),
        ("CPU", f"{about.get('cpu')}, {about.get('cores')} cores, {about.get('threads')} threads"),
        ("memory", f"{about.get('memory_gib')} GiB"),
        ("device", str(about.get("device_name"))),
        ("precision", str(about.get("precision"))),
        ("torch", str(about.get("torch"))),
        ("Python", str(about.get("python"))),
        ("load average at the start", ", ".join(loads)),
    ]


def _load(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}"


def _code(text: str) -> str:
    return f"`` {visible(text)} ``" if "`" in text else f"`{visible(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _inserted(rows: Sequence[Row], new: Row) -> tuple[Row, ...]:
    by_seed = {row.seed: row for row in rows} | {new.seed: new}
    return tuple(by_seed[seed] for seed in sorted(by_seed))


def _row(kind: type[Row], values: Mapping[str, Any]) -> Row:
    """A row from bench.json, without what follows from the measurements."""
    names = {item.name for item in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})
