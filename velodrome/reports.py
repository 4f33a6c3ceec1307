"""The page of a run and its diagnosis, from the run folder alone. Never imports torch."""

from __future__ import annotations

import contextlib
from pathlib import Path

from velodrome.errors import RunError
from velodrome.evaluation.diagnosis import write_diagnosis
from velodrome.reporting.evaluation_page import write_evaluation_page
from velodrome.reporting.page import LIVE_MARK, write_report
from velodrome.run.folder import RunFolder, open_run
from velodrome.run.lock import is_locked


def report(path: Path | str, output: Path | None = None) -> Path:
    """Write the page of a run from its folder alone, and its diagnosis; returns where the page is.

    So are the pages of its evaluations on other images, unless the page is to lie elsewhere. While another
    process trains in the folder, the page is one that reloads itself.

    Raises:
        RunError: there is no such run, or the page cannot be written.
    """
    folder = open_run(Path(path))
    if output is None:
        for found in sorted(folder.evaluations.glob("*/evaluation.json")):
            with contextlib.suppress(RunError):  # as below
                show_evaluation(folder, found.parent)
    live = is_live(folder)
    page = _write(folder, output, live=live)
    if live and not is_live(folder):  # it has come to its end meanwhile
        page = _write(folder, output, live=False)
    return page


def has_final_page(folder: RunFolder) -> bool:
    """Whether the page of a run is there, and is not the one that it had while it trained."""
    try:
        return LIVE_MARK not in folder.report.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def is_live(folder: RunFolder) -> bool:
    """Whether a process trains in the folder at this moment."""
    return not folder.is_finished and is_locked(folder)


def _write(folder: RunFolder, output: Path | None, *, live: bool) -> Path:
    if not live:  # else that is for the process that trains
        with contextlib.suppress(RunError):  # where nothing can be written, the page shows what there is
            write_diagnosis(folder)
    return write_report(folder, output, live=live)


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


def show_evaluation(folder: RunFolder, place: Path) -> None:
    """Write the page of an evaluation on other images than the run's own.

    Args:
        folder: of the run.
        place: the folder of the evaluation.

    Raises:
        RunError: it cannot be written.
    """
    write_evaluation_page(RunFolder(place), folder.path.resolve().name)
