"""Commands that a bench starts and times from outside, and the signals that end them with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from velodrome.run.folder import writing
from velodrome.run.stopping import StopRequest

# Between asking a command to end and ending it.
GRACE_S = 10.0
# How much of what a command printed is worth quoting.
LINES_QUOTED, CHARACTERS_QUOTED = 10, 1000


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C asks this process to stop.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Let the signals that ask for a stop raise `Stopped` where the program is, as Ctrl-C raises its own.

    SIGHUP counts unless it is ignored, as under `nohup`. Outside the main thread this does nothing.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        names = [name for name in StopRequest.SIGNALS if name != "SIGINT" and hasattr(signal, name)]
        numbers = [getattr(signal, name) for name in names]
        wanted = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, _raise_stopped) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_stopped(number: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


def run_command(command: str | Sequence[str], log: Path) -> tuple[int, float]:
    """Run a command to its end, its output in a file; whatever stops us ends it and all that it started.

    Args:
        command: words, or a line for the shell.
        log: receives stdout and stderr; what was in it is lost.

    Returns:
        Its exit code, and the seconds from its start to its end.

    Raises:
        RunError: `log` cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with writing(log):
            output = stack.enter_context(log.open("wb"))
        start_s = time.perf_counter()
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a signal reaches all that it starts, and Ctrl-C only us
        )
        try:
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        return code, time.perf_counter() - start_s


def end_of(log: Path) -> str:
    """The last lines of what a command printed; nothing where that cannot be read."""
    lines = read_log(log).strip().split("\n")
    return "\n".join(lines[-LINES_QUOTED:])[-CHARACTERS_QUOTED:]


def read_log(log: Path) -> str:
    """What a command printed; nothing where that cannot be read."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a command and all that it started to end; after a while, or a second Ctrl-C, end them."""
    try:
        _signal(process, "SIGTERM")
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal(process, "SIGKILL")
        process.wait()


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    with contextlib.suppress(OSError):  # they have ended
        if os.name == "posix":
            os.killpg(process.pid, getattr(signal, name))
        else:
            process.terminate()
