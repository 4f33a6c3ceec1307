"""The system clock goes backwards, and files bear times of the future: nothing depends on either."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from harness import (
    FLAGS,
    announced,
    check_is_complete,
    checkpoints_of,
    command,
    events_of,
    history_of,
    learned,
    start,
    until_step,
    weights_of,
)

# Goes back by an hour at each look, in everything that tells the time of day. What counts seconds only, such
# as time.monotonic and time.perf_counter, goes on, as it does when an administrator sets a clock back.
BACKWARDS = """
import datetime
import itertools
import os
import time

looks = itertools.count()
start_s = float(os.environ["CLOCK_STARTS_AT"])


def now_s():
    return start_s - 3600.0 * next(looks)


class Backwards(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(now_s(), tz)

    @classmethod
    def utcnow(cls):
        return cls.fromtimestamp(now_s(), datetime.timezone.utc).replace(tzinfo=None)

    @classmethod
    def today(cls):
        return cls.fromtimestamp(now_s())


time.time = now_s
time.time_ns = lambda: int(now_s() * 1e9)
datetime.datetime = Backwards
"""
YEAR_S = 365 * 24 * 3600.0
IN_2040_S = 2_208_988_800.0


def clock(place: Path, starts_at_s: float) -> dict[str, str]:
    """The environment of a process whose clock starts there and goes backwards."""
    folder = place / "clock"
    folder.mkdir(exist_ok=True)
    # Python runs a module of this name as it starts.
    (folder / "sitecustomize.py").write_text(BACKWARDS)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "CLOCK_STARTS_AT": str(starts_at_s)}


def times_of(run: Path) -> list[datetime.datetime]:
    return [datetime.datetime.fromisoformat(event["time"]) for event in events_of(run)]


def test_a_clock_that_goes_backwards_changes_no_figure(tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "runs" / "run"
    errors = tmp_path / "errors"
    process = start(
        "train", *FLAGS, "--name", "run", cwd=tmp_path, errors=errors, env=clock(tmp_path, IN_2040_S)
    )
    try:
        until_step(process, run, 12)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75, errors.read_text()
    finally:
        process.kill()
        process.wait()
    saved = announced(run)[-1]
    # It goes on before it began; its files bear times of the future, but the newest checkpoint is the oldest.
    far = IN_2040_S + 10 * YEAR_S
    for age, path in enumerate([run, *checkpoints_of(run)[::-1], *run.glob("*.*")]):
        os.utime(path, (far - age, far - age))
    oldest, newest = checkpoints_of(run)
    os.utime(oldest, (far + YEAR_S, far + YEAR_S))
    os.utime(newest, (0, 0))
    early = clock(tmp_path, IN_2040_S - 40 * YEAR_S)
    assert command("resume", "runs/run", "--quiet", cwd=tmp_path, env=early) == (0, "")

    began, went_on = [event for event in events_of(run) if event["event"] == "RunStarted"]
    assert (began["step"], went_on["step"]) == (0, saved)
    # The clock did go backwards, or this test would show nothing.
    times = times_of(run)
    assert all(after < before for before, after in itertools.pairwise(times))
    assert times[0].year - times[-1].year > 30
    check_is_complete(run, whole)
    check_times(run)


def check_times(run: Path) -> None:
    """Training time only grows, and by plausible seconds."""
    times_s = [float(row["time_s"]) for row in history_of(run)]
    assert times_s[0] > 0
    assert times_s == sorted(times_s)
    assert times_s[-1] < 600
    assert all(float(row["images_per_s"]) > 0 for row in history_of(run))
    result = json.loads((run / "result.json").read_text())
    assert times_s[-1] <= result["train_seconds"] < 600


def test_files_from_the_future_are_read_and_replaced_as_any(
    interrupted: Path, tiny_whole: Path, run_here: Callable[..., tuple[int, str]]
) -> None:
    """What counts is the step in the name of a checkpoint; the older one bears the later time."""
    for number, checkpoint in enumerate(reversed(checkpoints_of(interrupted))):
        for path in (*checkpoint.iterdir(), checkpoint):
            os.utime(path, (IN_2040_S + number * YEAR_S,) * 2)
    for path in interrupted.rglob("*.json*"):
        os.utime(path, (IN_2040_S + 50 * YEAR_S,) * 2)
    assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    assert [event["step"] for event in events_of(interrupted) if event["event"] == "RunStarted"] == [0, 4]
    assert weights_of(interrupted) == weights_of(tiny_whole)
    assert learned(interrupted) == learned(tiny_whole)
    check_times(interrupted)


def test_files_from_before_the_epoch_are_read_and_replaced_as_any(
    interrupted: Path, tiny_whole: Path, run_here: Callable[..., tuple[int, str]]
) -> None:
    for path in [*interrupted.rglob("*"), interrupted]:
        os.utime(path, (-YEAR_S, -YEAR_S))
    assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    check_is_complete(interrupted, tiny_whole)
    check_times(interrupted)
