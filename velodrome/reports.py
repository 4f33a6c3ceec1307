"""The page of a run and its diagnosis, from the run folder alone. Never imports torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from velodrome.errors import RunError
from velodrome.evaluation.diagnosis import write_diagnosis
from velodrome.reporting.page import write_report
from velodrome.run.folder import RunFolder, open_run


def report(path: Path | str, output: Path | None = None) -> Path:
    """Write the page of a run from its folder alone, and its diagnosis; returns where the page is.

    Raises:
        RunError: there is no such run, or the page cannot be written.
    """
    folder = open_run(Path(path))
    with contextlib.suppress(RunError):  # where nothing can be written, the page shows the diagnosis there is
        write_diagnosis(folder)
    return write_report(folder, output)


def show(folder: RunFolder, *, live: bool = False) -> None:
    """Write the diagnosis and the page of a run as it stands.

    Args:
        folder: of the run.
        live: training is going on, so the page is to reload itself.

    Raises:
        RunError: they cannot be written, or a file of the run is damaged.
    """
    write_diagnosis(folder, live=live)
    write_report(folder, live=live)
