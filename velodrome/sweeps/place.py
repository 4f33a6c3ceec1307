"""The folder of a sweep: made, or found again by whoever goes on with it or joins it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import velodrome
from velodrome.errors import ConfigError, RunError, visible
from velodrome.run.environment import command_line
from velodrome.run.folder import RunFolder, create_run, find_begun, write_json
from velodrome.sweeps.address import shown
from velodrome.sweeps.rows import SweepFolder
from velodrome.sweeps.wishes import Wishes


def existing(runs_dir: Path, wishes: Wishes) -> SweepFolder | None:
    """The folder that the wishes name; None where there is nothing of that name.

    Raises:
        ConfigError: something else has that name, or its study is kept elsewhere or is another.
        RunError: its record is damaged.
    """
    path = find_begun(runs_dir, wishes.folder, "sweep.json", "is not a sweep")
    if path is None:
        return None
    place = SweepFolder(path)
    record = RunFolder(place.path).read_json(place.record) or {}
    for flag, now in (
        ("--storage", wishes.storage and shown(wishes.storage)),
        ("--study-name", wishes.study),
    ):
        before = record.get(flag.removeprefix("--").replace("-", "_"))
        if before != now and not (flag == "--study-name" and now == wishes.folder):
            raise ConfigError(
                f"Sweep {place.path} was begun with {flag} {visible(str(before))}, but now it is "
                f"{visible(str(now))}.",
                "Use the same as before, or another --name.",
            )
    return place


def made_or_found(runs_dir: Path, wishes: Wishes, plan: Mapping[str, Any]) -> SweepFolder:
    """The folder that the wishes name, or the next free number; made where it is missing.

    Args:
        runs_dir: that it lies in.
        wishes: name it.
        plan: what the trials are, for the record.

    Raises:
        VelodromeError: as `existing`; or it cannot be written.
    """
    if found := existing(runs_dir, wishes):
        return found
    record = {
        "velodrome": velodrome.__version__,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "storage": wishes.storage and shown(wishes.storage),
        "study_name": wishes.study,
        "sampler": wishes.sampler,
        "prune": wishes.prune,
        **plan,
    }

    def fill(draft: RunFolder) -> None:
        write_json(SweepFolder(draft.path).record, record)

    try:
        return SweepFolder(create_run(runs_dir, wishes.folder, "sweep", fill).path)
    except RunError:
        if found := existing(runs_dir, wishes):  # another worker was faster
            return found
        raise
