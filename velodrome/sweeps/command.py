"""What `velodrome sweep` does with its arguments: check them, search, print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from velodrome.config import Config
from velodrome.errors import ConfigError, PartlyError, visible
from velodrome.printing import print_json, print_table
from velodrome.sweeps.space import read_space
from velodrome.sweeps.sweep_results import Sweep
from velodrome.sweeps.sweeping import plan, sweep
from velodrome.sweeps.wishes import check_wishes


def carry_out(config: Config, arguments: argparse.Namespace, given: Mapping[str, object]) -> None:
    """Search, or say what would be done, and print what is found.

    Args:
        config: by recipe, file and flags.
        arguments: of the command.
        given: settings that were given as flags.

    Raises:
        VelodromeError: as `velodrome.sweep`.
        PartlyError: trials failed.
    """
    space = read_space(arguments.search)
    space.check_not_given(given)
    trials = None if arguments.trials is None else _count(arguments.trials)
    names = ("timeout", "sampler", "prune", "storage", "study_name", "keep_checkpoints", "grace")
    wishes = {name: getattr(arguments, name) for name in names}
    if arguments.dry_run:
        would = plan(config, space, check_wishes(config, trials=trials, **wishes))
        print_json(would) if arguments.json else print_table(would)
        return
    found = sweep(config, search=space, trials=trials, progress=not arguments.quiet, **wishes)
    if arguments.json:
        print_json({"path": str(found.path), **found.to_dict()})
    else:
        sys.stdout.write(f"{found}\n")
    if found.failed:
        raise _partly(found)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"--trials is {visible(text)!r}, but must be a whole number at least 1.",
            "For instance --trials 20.",
        )
    return int(text)


def _partly(found: Sweep) -> PartlyError:
    numbers = ", ".join(str(row.number) for row in found.failed)
    reason = visible(str(found.failed[0].problem)).rstrip(".")
    return PartlyError(
        f"{len(found.failed)} of {len(found.rows)} trials failed (trial {numbers}): {reason}.",
        "The others count; their table and the best settings are in the folder.",
    )
