"""When to act between two steps: on a signal that asks for a stop, or after a while."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class Every:
    """True once each time that so many seconds have passed."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last_s = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Whether the time has come; counts from now on again if so."""
        if time.monotonic() - self._last_s < self._seconds:
            return False
        self._last_s = time.monotonic()
        return True


class StopRequest:
    """Turns signals that ask for a stop into a note that is read between two steps.

    SIGHUP, by which a terminal says that it closes, counts unless it is ignored, as under `nohup`. A second
    Ctrl-C stops at once, without saving. Outside the main thread, where Python delivers no signals, it does
    nothing.
    """

    SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")

    def __init__(self) -> None:
        self.signal: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            there = {name: getattr(signal, name) for name in self.SIGNALS if hasattr(signal, name)}
            if "SIGHUP" in there and signal.getsignal(there["SIGHUP"]) == signal.SIG_IGN:
                del there["SIGHUP"]
            for number in there.values():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
