"""What `velodrome compare` does with what it is given: check where to write, compare, write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from velodrome.comparison.comparing import Comparison, compare
from velodrome.errors import ConfigError
from velodrome.run.folder import write_atomically


def compare_and_write(
    runs: Sequence[str],
    *,
    baseline: str | None = None,
    across_data: bool = False,
    table: Path | None = None,
    page: Path | None = None,
) -> Comparison:
    """Compare runs; write a CSV file and a page where these are named.

    Args:
        runs: as for `compare`.
        baseline: as for `compare`.
        across_data: as for `compare`.
        table: CSV file, one row a run.
        page: HTML file.

    Raises:
        ConfigError: a file cannot be written there (nothing was written), or there is no such baseline.
        RunError: nothing can be compared.
    """
    for flag, path in (("--csv", table), ("--output", page)):
        if path is not None:
            _check_place(flag, path)
    found = compare(runs, baseline=baseline, across_data=across_data)
    if table is not None:
        write_atomically(table, found.to_csv())
    if page is not None:
        found.write_page(page)
    return found


def _check_place(flag: str, path: Path) -> None:
    wrong = None
    if path.is_dir():
        wrong = "is a folder"
    elif not path.parent.is_dir():
        wrong = f"lies in {path.parent}, which is not a folder"
    elif not os.access(path.parent, os.W_OK):
        wrong = "lies in a folder that may not be written to"
    if wrong:
        raise ConfigError(f"{flag} {path} {wrong}.", "Give a file in a folder that you may write to.")
