"""Run folders, named or found, read as records of what was set and what came of it. Never imports torch."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

import velodrome
from velodrome.config import SETTINGS
from velodrome.errors import RunError, did_you_mean, visible
from velodrome.run.folder import RunFolder, TrialsFolder, number
from velodrome.run.lock import is_locked

Status = Literal["finished", "running", "stopped", "damaged", "not a run"]

# Below a folder that is named, run folders are looked for so many levels deep.
DEEPEST = 4
# The C loader is six times as fast as the other, but not everywhere.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Folders that are in a folder of runs by right, but are no runs; each has one of these.
_OTHER_RECORDS = ("lr_find.json", "data_check.json")
_ONLY_OF_A_RUN = ("result.json", "history.csv", "events.jsonl", "checkpoints")


@dataclass(frozen=True, eq=False)
class TrialRun:
    """A run folder as it was read; nothing else of it is kept in memory.

    Attributes:
        path: of the folder, as it was named or found.
        status: "finished"; "running": a process is at work in it; "stopped": it can be resumed; "damaged":
            files are missing or not what they should be; "not a run".
        problem: why it is not finished, as the rest of a sentence about it; None where it is.
        settings: flat, as in config.yaml; those that are newer than the run have their default.
        seed: of the run; None where it is not known.
        result: result.json; empty while not finished.
        version: of velodrome, that made it; None where it is not known.
        environment: environment.json; empty where it is damaged or missing.
        finished_ns: when result.json was written, in ns since 1970; 0 where there is none.
    """

    path: Path
    status: Status
    problem: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    finished_ns: int = 0

    @property
    def name(self) -> str:
        """The path on one line, as it is shown."""
        return visible(str(self.path))

    @functools.cached_property
    def folder(self) -> RunFolder:
        """The folder with the names of its files."""
        return RunFolder(self.path)

    def figure(self, key: str) -> float | None:
        """A figure of result.json; None where it is not there or no finite number."""
        return number(self.result.get(key))


class _Problem(Exception):  # noqa: N818 - not an error: it says what is the matter with a run
    """Why a run cannot be compared, as the rest of a sentence about it."""


def read_runs(patterns: Iterable[Path | str]) -> tuple[TrialRun, ...]:
    """The run folders that are named, in this order, each once.

    Args:
        patterns: run folders; folders such as that of trials, below which all run folders are meant; globs of
            such folders. What a glob or a folder gives is in natural order: quick-2 before quick-10; a folder
            of trials gives its runs in the order of their variants, that of the baseline first.

    Raises:
        RunError: there is nothing of that name, or no run folder below it.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _named_by(pattern):
            found.setdefault(os.path.realpath(path), path)
    return tuple(read_run(path) for path in found.values())


def read_run(path: Path) -> TrialRun:
    """One run folder, whatever state it is in; never raises."""
    try:
        if not path.is_dir():
            return TrialRun(path, "not a run", "is not a folder")
        return _read_settled(path) if is_run_folder(path) else _without_settings(path)
    except _Problem as problem:
        return TrialRun(path, "damaged", str(problem))
    except RunError as error:
        return TrialRun(path, "damaged", f"is damaged: {visible(error.problem)}".rstrip("."))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return TrialRun(path, "damaged", f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _read_settled(path: Path) -> TrialRun:
    """A folder with config.yaml."""
    folder = RunFolder(path)
    settings = _read_settings(folder)
    environment = _read_environment(folder)
    version = _text(environment.get("velodrome"))
    try:
        finished_ns = folder.result.stat().st_mtime_ns
        result = folder.read_json(folder.result) or {}
        _check_result(result)
        status: Status = "finished"
        problem = None
    except FileNotFoundError:
        finished_ns, result = 0, {}
        status, problem = _unfinished(folder, settings.get("epochs"))
    seed = _whole(settings["seed"])
    return TrialRun(path, status, problem, settings, seed, result, version, environment, finished_ns)


def is_run_folder(path: Path) -> bool:
    """Whether a folder is one that a run has made."""
    return (path / "config.yaml").is_file()


def _named_by(pattern: Path | str) -> list[Path]:
    """The run folders that one argument means.

    Raises:
        RunError: there are none.
    """
    path = Path(pattern)
    if os.path.lexists(path):
        return _below(path)
    if not glob.has_magic(str(pattern)):
        raise RunError(f"Run {visible(str(pattern))} does not exist.", _nearest_name(path))
    matches = sorted(map(Path, glob.glob(str(pattern), recursive=True)), key=natural_order)  # noqa: PTH207
    found = [run for match in matches if match.is_dir() for run in _below(match)]
    if not found:
        raise RunError(
            f"There is no run folder that {visible(str(pattern))} fits.",
            "Give run folders, for instance runs/quick-1 runs/quick-2.",
        )
    return found


def _below(path: Path) -> list[Path]:
    """The folder itself where it is a run, else all run folders below it.

    A folder without any is taken for a run that has lost its files, so that what is named is never lost.
    """
    if not path.is_dir() or is_run_folder(path):
        return [path]
    return sorted(_search(path, DEEPEST), key=_order_in_trials(path)) or [path]


def _order_in_trials(path: Path) -> Callable[[Path], int]:
    """A key that sorts the runs of trials by variant and seed; it leaves other folders as they are."""
    try:
        content = RunFolder(path).read_json(TrialsFolder(path).record) or {}
        labels = [variant["label"] for variant in content.get("variants", ())]
        places = {
            trial["folder"]: (labels.index(trial["variant"]), trial["seed"])
            for trial in content.get("trials", ())
        }
        order = {folder: number for number, folder in enumerate(sorted(places, key=places.__getitem__))}
    except (RunError, KeyError, TypeError, ValueError, AttributeError):
        order = {}  # a file of that name that holds something else
    return lambda run: order.get(run.name, len(order))


def _search(path: Path, levels: int) -> Iterator[Path]:
    """Run folders below one that is none, and folders there that look like what is left of a run."""
    try:
        inside = sorted((entry for entry in path.iterdir() if entry.name[0] != "."), key=natural_order)
    except OSError:
        return
    for child in inside:
        if is_run_folder(child):
            yield child
        elif not child.is_dir() or child.is_symlink():
            continue
        elif _is_left_of_a_run(child):
            yield child
        elif levels > 1:
            yield from _search(child, levels - 1)


def _is_left_of_a_run(path: Path) -> bool:
    """Whether a folder without config.yaml is empty, or has what only a run leaves."""
    try:
        return _without_settings(path).status == "damaged"
    except OSError:
        return True


def natural_order(path: Path) -> list[tuple[str, int]]:
    """A key that sorts numbers in paths by their value."""
    return [
        (text, int(digits or 0))
        for text, digits in re.findall(r"([^0-9]*)([0-9]{0,18})", str(path))
        if text + digits
    ]


def _nearest_name(path: Path) -> str:
    """A remedy that offers what is called alike."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        names = []
    return did_you_mean(path.name, names[:1000]) if 0 < len(names) <= 20 else "Give the path of a run folder."


def _without_settings(path: Path) -> TrialRun:
    """A folder without config.yaml: of something else, or of a run that has lost it."""
    names = {entry.name for entry in path.iterdir()}
    if not names:
        return TrialRun(path, "damaged", "is empty")
    if names & set(_ONLY_OF_A_RUN) and not names & set(_OTHER_RECORDS):
        return TrialRun(path, "damaged", "is damaged: it has no config.yaml")
    return TrialRun(path, "not a run", "is not a run folder: it has no config.yaml")


def _read_settings(folder: RunFolder) -> dict[str, Any]:
    """All settings of a run; those that its version did not know have their default."""
    try:
        values = yaml.load(folder.config.read_text(encoding="utf-8"), _LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _Problem("is damaged: config.yaml is not valid YAML") from error
    if not isinstance(values, dict) or not values:
        raise _Problem("is damaged: config.yaml holds no settings")
    unknown = [str(key) for key in values if key not in SETTINGS and key != "recipe"]
    if unknown:
        version = _text(_read_environment(folder).get("velodrome")) or "an unknown version"
        raise _Problem(
            f"is from another version: velodrome {version} made it, and {velodrome.__version__} does not "
            f"know its setting {visible(unknown[0])}"
        )
    broken = [key for key, value in values.items() if not _is_plain(value)]
    if broken:
        raise _Problem(f"is damaged: config.yaml holds no plain value for {broken[0]}")
    return {**_defaults(), **values}


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int) or number(value) is not None


@functools.cache
def _defaults() -> dict[str, Any]:
    plain = {key: item.default for key, item in SETTINGS.items()}
    return {"recipe": None} | {key: str(v) if isinstance(v, Path) else v for key, v in plain.items()}


def _read_environment(folder: RunFolder) -> dict[str, Any]:
    try:
        return folder.recorded_environment()
    except RecursionError:
        return {}


def _check_result(result: Mapping[str, Any]) -> None:
    accuracy = number(result.get("test_accuracy"))
    if accuracy is None or not 0 <= accuracy <= 1:
        raise _Problem("is damaged: result.json holds no test accuracy")


def _unfinished(folder: RunFolder, epochs: object) -> tuple[Status, str]:
    """How far a run without result.json has come."""
    rows = folder.read_history()
    progress = f" (epoch {rows[-1]['epoch']:g} of {epochs})" if rows else ""
    if is_locked(folder):
        return "running", f"is still running{progress}"
    events = folder.read_events()
    last = events[-1] if events else {}
    reason = f": {visible(str(last.get('reason'))).rstrip('.')}" if last.get("event") == "RunStopped" else ""
    return "stopped", f"is not finished{progress}{reason}"


def _text(value: object) -> str | None:
    return visible(value) if isinstance(value, str) and value else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
