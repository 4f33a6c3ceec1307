"""Processes of velodrome that start in a moment: forked from one that has loaded everything already.

They are processes like any other: killed by signals, locked out by locks. Only the imports, which take
seconds, have been done before.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from velodrome import cli

PRELOADED = ["torch._dynamo", "velodrome.session", "velodrome.verbs", "matplotlib.figure", "PIL.Image"]
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(PRELOADED)


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
        self._process = _forks.Process(target=_be_velodrome, args=given)
        errors.write_text("")
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; that of a signal is below 0; None as long as the process runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it is there."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("velodrome", timeout or 0.0)
        return self._process.exitcode

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
    sys.argv = ["velodrome", *words]
    sys.exit(cli.main(words))
