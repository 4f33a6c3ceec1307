"""What a new run changed since the last comparable one: a line or two when training ends."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from velodrome.comparison.contrasts import points
from velodrome.comparison.groups import ORDER, effective_settings, shown
from velodrome.comparison.read_runs import TrialRun, read_run
from velodrome.comparison.right_wrong import AnswerReader
from velodrome.errors import RunError
from velodrome.run.folder import RunFolder

# So many folders are looked into, newest first, and for so long: a run must not end later for this.
MOST_LOOKED_AT = 20
ENOUGH_S = 0.15
# A line lists so many settings.
MOST_CHANGES = 6


def change_since_last(folder: RunFolder | Path | str) -> str | None:
    """What a finished run changed since the last comparable one in the same folder of runs.

    Comparable is a finished run on the same data and with the same test images.

    Args:
        folder: of the run.

    Returns:
        One or two lines; None where there is no such run, or anything at all is in the way: a run must
        neither fail nor be late for this.
    """
    path = folder.path if isinstance(folder, RunFolder) else Path(folder)
    try:
        now = read_run(path)
        last = _last_comparable(now) if now.status == "finished" else None
        return None if last is None else _in_words(last, now)
    except Exception:  # as the docstring says
        return None


def _last_comparable(now: TrialRun) -> TrialRun | None:
    """The newest finished run beside this one that has the same data and test images."""
    until_s = time.perf_counter() + ENOUGH_S
    reader, own_key = AnswerReader(), None
    for path in _newest_first(now.path):
        if time.perf_counter() > until_s:
            return None
        run = read_run(path)
        same = ("data", "classes")
        if run.status != "finished" or any(run.result.get(key) != now.result.get(key) for key in same):
            continue
        own_key = own_key or reader.read(now.folder).key
        try:
            if reader.read(run.folder).key == own_key:
                return run
        except RunError:  # that one is damaged; the next may not be
            continue
    return None


def _newest_first(path: Path) -> Iterator[Path]:
    """The run folders beside a run that finished before it, newest first."""
    finished, own = [], Path(path, "result.json").stat().st_mtime_ns
    with os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name == path.name or entry.name.startswith("."):
                continue
            try:
                finished.append((Path(entry.path, "result.json").stat().st_mtime_ns, entry.path))
            except OSError:  # nothing that has finished
                continue
    before = sorted((one for one in finished if one[0] <= own), reverse=True)
    for _, found in before[:MOST_LOOKED_AT]:
        yield Path(found)


def _in_words(last: TrialRun, now: TrialRun) -> str:
    before, after = last.figure("test_accuracy") or 0.0, now.figure("test_accuracy") or 0.0
    figures = f"test accuracy {before:.2%} -> {after:.2%} ({points(after - before)})."
    changes = _changes(last, now)
    seeds = f"seed {last.seed} -> {now.seed}"
    if not changes and last.seed == now.seed:
        return f"Since {last.name} nothing changed, not even the seed; {figures}"
    if not changes:
        return f"Since {last.name} only the {seeds} changed; {figures} That much the seed alone can do."
    more = len(changes) - MOST_CHANGES
    listed = [*changes[:MOST_CHANGES], *([f"{more} more"] if more > 0 else [])]
    if last.seed != now.seed:
        listed.append(seeds)
    command = f"velodrome compare {shlex.quote(str(last.path))} {shlex.quote(str(now.path))}"
    return (
        f"Since {last.name}: {', '.join(listed)}; {figures}\n"
        f"With one run each, another seed may turn that round. More: {command}"
    )


def _changes(last: TrialRun, now: TrialRun) -> list[str]:
    """The settings that differ, as "cutout 8 -> 16", in the order of the configuration."""
    old, new = effective_settings(last), effective_settings(now)
    keys = [key for key in ORDER if key in old or key in new]
    changed = [key for key in keys if old.get(key) != new.get(key)]
    return [f"{key} {shown(old.get(key))} -> {shown(new.get(key))}" for key in changed]
