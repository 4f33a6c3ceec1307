"""When to act between two steps: on a signal that asks for a stop, or after a while; all ranks alike."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, NamedTuple

from velodrome.distributed import World

# About how often several ranks ask one another what is due: soon enough for whoever sends a signal, seldom
# enough to cost nothing.
ASK_S = 0.5
MOST_STEPS = 100  # until they ask again, however fast they are


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


class Due(NamedTuple):
    """What is due between two steps.

    Attributes:
        signal: that asked for a stop, 0 without.
        look: whether to look at the loss.
        save: whether to save a checkpoint.
    """

    signal: int = 0
    look: bool = False
    save: bool = False


class Agenda:
    """Says between steps what is due, and the same on all ranks.

    The first rank's clock counts, and a signal to any rank. One process is asked at each step; several ask
    one another after a number of steps that the first names by its clock.

    Args:
        world: all ranks.
        stop: notes signals.
        look_s: seconds between looks at the loss.
        save_s: seconds between checkpoints.
    """

    def __init__(self, world: World, stop: StopRequest, *, look_s: float, save_s: float) -> None:
        self._world, self._stop = world, stop
        self._look, self._save = Every(look_s), Every(save_s)
        self._steps = self._left = 1
        self._asked_s = time.monotonic()

    def after_step(self) -> Due:
        """What is due now; to be asked after every step, by all ranks."""
        if self._world.is_alone:
            return Due(self._stop.signal, self._look.is_due(), self._save.is_due())
        self._left -= 1
        if self._left:
            return Due()
        wishes = [self._stop.signal, 0, 0, 1]
        if self._world.is_first:
            wishes[1:] = [self._look.is_due(), self._save.is_due(), self._steps_until_next()]
        number, look, save, self._left = self._world.highest(wishes)
        self._steps = self._left
        return Due(number, bool(look), bool(save))

    def _steps_until_next(self) -> int:
        """So many that they take about as long as ranks may go without asking."""
        now_s = time.monotonic()
        step_s = max((now_s - self._asked_s) / self._steps, 1e-6)
        self._asked_s = now_s
        return min(max(1, round(ASK_S / step_s)), MOST_STEPS)
