"""Processes of velodrome that start in a moment: forked from one that has loaded everything already.

They are processes like any other: killed by signals, locked out by locks. Only the imports, which take
seconds, have been done before.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from forks import FORK

from velodrome import cli

# Processes are looked at by several threads, and the first who sees the end of one takes its exit code away.
_one_at_a_time = threading.Lock()
GLANCE_S = 0.005


class Forked:
    """What the tests need of a `subprocess.Popen`, for `velodrome words`.

    Args:
        words: of the command.
        cwd: folder to run it in.
        errors: file for its stderr; stdout goes nowhere.
        environment: all variables.
    """

    def __init__(self, words: Sequence[str], cwd: Path, errors: Path, environment: Mapping[str, str]) -> None:
        given = (list(words), str(cwd), str(errors.absolute()), dict(environment))
        # What a test leaves running ends with the tests.
        self._process = FORK.Process(target=_be_velodrome, args=given, daemon=True)
        errors.write_text("")
        with _one_at_a_time:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; that of a signal is below 0; None as long as the process runs."""
        return self.poll()

    def poll(self) -> int | None:
        """As `returncode`."""
        with _one_at_a_time:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it is there."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("velodrome", timeout or 0.0)
            time.sleep(GLANCE_S)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def _be_velodrome(words: Sequence[str], cwd: str, errors: str, environment: Mapping[str, str]) -> None:
    """What the forked process does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for path, descriptor in ((os.devnull, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # which is read when torch is loaded
    sys.argv = ["velodrome", *words]
    sys.exit(cli.main(words))
