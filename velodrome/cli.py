"""From the command line to an exit code: every error and warning becomes one line. Never imports torch."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import velodrome
from velodrome.distributed import check_takes_ranks, is_said_elsewhere
from velodrome.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    VelodromeError,
    VelodromeWarning,
)
from velodrome.flags import parse
from velodrome.printing import say
from velodrome.verbs import VERBS

EXIT_OUR_FAULT = 70


def main(argv: Sequence[str] | None = None) -> int:  # noqa: PLR0911 (one for each way to end)
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # A stream that the caller has closed is None; what is written to it goes nowhere.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal lacks signs for
    try:
        arguments = parse(words)
        if arguments is None:
            return EXIT_DONE
        with warnings.catch_warnings():
            warnings.simplefilter("always", VelodromeWarning)
            warnings.showwarning = _show_warning
            check_takes_ranks(arguments.command)
            VERBS[arguments.command](arguments)
        sys.stdout.flush()
        return EXIT_DONE
    except VelodromeError as error:
        if not is_said_elsewhere(error):
            say(f"velodrome: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("velodrome: interrupted.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does; a run never ends by this, only its last line.
        sys.stdout = _nowhere()
        return EXIT_DONE
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _not_printed(error)
        traceback.print_exc()
        say(f"velodrome {velodrome.__version__}: this is our fault, not yours. Please report it.")
        return EXIT_OUR_FAULT


def _not_printed(error: OSError) -> int:
    """Say that what a command printed does not fit where it goes, as no file of ours raises an OSError."""
    with contextlib.suppress(OSError, ValueError):  # so that Python does not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    say(f"velodrome: what it printed cannot be written: {error.strerror}.")
    return EXIT_PARTLY


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **_: Any) -> None:
    """Our own warnings as one line, those of others as Python has them."""
    if issubclass(category, VelodromeWarning):
        say(f"velodrome: {message}")
    else:
        say(warnings.formatwarning(message, category, *where[:2]))


def _nowhere() -> typing.TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")
