"""What is due between two steps: asked rarely, answered alike."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Sequence

import pytest

from velodrome.distributed import ALONE, Place, World
from velodrome.run.stopping import MOST_STEPS, Agenda, Due, StopRequest


class Talking(World):
    """One of two ranks; counts how often they talk, and says what the other one wishes."""

    def __init__(self, rank: int, other: Sequence[int] = (0, 0, 0, 1)) -> None:
        super().__init__(Place(rank, 2, rank))
        self.other, self.talks = other, 0

    def highest(self, values: Sequence[int]) -> list[int]:
        self.talks += 1
        return [max(pair) for pair in zip(values, self.other, strict=True)]


def test_one_process_hears_a_signal_after_the_step() -> None:
    stop = StopRequest()
    agenda = Agenda(ALONE, stop, look_s=math.inf, save_s=0.0)
    assert agenda.after_step() == Due(save=True)
    stop.signal = signal.SIGTERM
    assert agenda.after_step() == Due(signal.SIGTERM, save=True)


@pytest.mark.parametrize(("step_s", "most"), [(1e-4, 10), (0.1, 40), (2.0, 200)])
def test_ranks_ask_about_twice_a_second(step_s: float, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    world = Talking(0)
    agenda = Agenda(world, StopRequest(), look_s=math.inf, save_s=math.inf)
    since_s = []
    for _ in range(200):
        talks = world.talks
        now_s[0] += step_s
        agenda.after_step()
        if world.talks > talks:
            since_s.append(now_s[0])
    assert world.talks <= most
    waits_s = [after - before for before, after in itertools.pairwise(since_s)]
    assert all(wait_s <= max(0.6, 1.01 * step_s) for wait_s in waits_s)
    assert all(wait_s >= min(0.4, step_s * MOST_STEPS * 0.99) for wait_s in waits_s[1:])


def test_a_signal_to_another_rank_counts_and_so_does_the_clock_of_the_first_alone() -> None:
    follower = Agenda(Talking(1, (signal.SIGUSR1, 1, 0, 3)), StopRequest(), look_s=0.0, save_s=0.0)
    assert follower.after_step() == Due(signal.SIGUSR1, look=True, save=False)
    assert [follower.after_step() for _ in range(2)] == [Due(), Due()]
    assert follower.after_step().signal == signal.SIGUSR1
