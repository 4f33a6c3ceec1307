"""The exceptions that a user may meet, each with what to do about it.

Every error says which thing is wrong, its value, the rule that it breaks, and the remedy. The command
prints `str(error)` as one line and exits with `exit_code`; nobody sees a traceback for their own mistake.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_PARTLY = 1
EXIT_BAD_INPUT = 2
EXIT_RESUMABLE = 75
EXIT_INTERRUPTED = 130


class VelodromeError(Exception):
    """What is wrong and how to mend it.

    Args:
        problem: a sentence that names the thing, its value and the rule it breaks.
        remedy: a sentence that says what to do.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


class ConfigError(VelodromeError):
    """A setting is unknown, of the wrong type, out of range, or at odds with another."""


class DataError(VelodromeError):
    """The images or labels are missing, damaged, or not what they should be."""


class RunError(VelodromeError):
    """A run folder or one of its files is missing, damaged, taken, or cannot be written."""


class DeviceError(VelodromeError):
    """The device or precision that was asked for is not to be had on this machine."""


class TrainingError(VelodromeError):
    """Training had to stop; what was reached before is kept in the run folder."""

    exit_code = EXIT_PARTLY


class PartlyError(VelodromeError):
    """Some of what was asked for is done; says what is not."""

    exit_code = EXIT_PARTLY


class InterruptedRunError(VelodromeError):
    """A signal stopped the run at a step; it is saved and can be resumed.

    Args:
        problem: where it stopped.
        remedy: how to go on.
        exit_code: EXIT_INTERRUPTED after Ctrl-C, EXIT_RESUMABLE after a signal that means "resume me".
    """

    def __init__(self, problem: str, remedy: str, exit_code: int = EXIT_INTERRUPTED) -> None:
        super().__init__(problem, remedy)
        self.exit_code = exit_code


class OtherRankError(VelodromeError):
    """Another of the processes that train together has failed, so this one stops too.

    Args:
        rank: of that process.
        problem: what is wrong there.
        remedy: how to mend it.
        exit_code: with which that process ends.
    """

    def __init__(self, rank: int, problem: str, remedy: str, exit_code: int) -> None:
        super().__init__(f"Rank {rank} stopped: {problem}", remedy)
        self.exit_code = exit_code


class VelodromeWarning(UserWarning):
    """Something is not as it should be, but the work goes on; the command prints it as one line."""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `word`, or None where none is like it."""
    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A remedy that offers the nearest candidate, or else lists all of them."""
    choices = list(candidates)
    close = nearest(word, choices)
    return f"Did you mean {close}?" if close else f"Choose from: {', '.join(choices)}."


def visible(text: str) -> str:
    """The text on one line; what would not be seen, or would rule the terminal, is escaped as in Python."""
    return "".join(
        char
        if char.isprintable() or unicodedata.category(char) == "Zs"
        else char.encode("unicode_escape").decode()
        for char in text
    )
