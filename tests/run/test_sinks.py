"""What a run writes and shows while it goes on."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from velodrome.events import CheckpointSaved, EpochDone, Replanned, RunStarted, StepDone, WarmedUp
from velodrome.run import sinks
from velodrome.run.folder import RunFolder
from velodrome.run.sinks import EventLog, HistoryFile, LiveDisplay, PlainDisplay, duration, percent

STARTED = RunStarted("runs/a-1", "quick", "shapes", "cpu", "bf16", 412_944, 2, 10, 1_000, 0)


def epoch(number: int) -> EpochDone:
    return EpochDone(number, 65.0, 0.01, 1.25, 0.5, None, None, 1.5, 0.4567, 1234.5, (1.0, 1.5), (0.1, 0.01))


def test_history_keeps_the_rows_of_a_resumed_run_and_drops_later_ones(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = HistoryFile(folder)
    for number in (1, 2):
        first.handle(epoch(number))
        assert len(folder.read_history()) == number - 1  # not before there is a checkpoint of it
        first.handle(CheckpointSaved(f"step-{number:08d}", number))
        assert len(folder.read_history()) == number
    HistoryFile(folder, [epoch(1)])
    assert [row["epoch"] for row in folder.read_history()] == [1]
    assert folder.read_history()[0]["val_acc"] is None
    assert folder.history.read_text().splitlines()[1] == "1,65.0,0.01,1.25,0.5,,,1.5,0.4567,1234.5"


def test_the_event_log_leaves_single_steps_out_and_mends_a_torn_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.events.write_text('{"event": "RunStarted"}\n{"eve')
    log = EventLog(folder)
    log.handle(StepDone(0, 0, 0.1))
    log.handle(epoch(1))
    log.close()
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    assert [event["event"] for event in events] == ["RunStarted", "EpochDone"]
    assert events[1]["step_losses"] == [1.0, 1.5]


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "PLAIN_LINE_S", 0)
    stream = io.StringIO()
    display = PlainDisplay(lambda: (1.23456, 0.5), stream)
    display.handle(STARTED)
    display.handle(StepDone(4, 0, 0.05))
    display.handle(epoch(1))
    display.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "runs/a-1: 412,944 parameters, 1,000 training images (shapes), cpu in bf16"
    assert lines[1] == ("  epoch  train loss  train acc   val acc  test acc        lr  images/s     time")
    assert lines[2].startswith("  step 5 of 20: loss 1.2346, accuracy 50.00%, lr 0.05, ")
    assert lines[3] == ("    1/2      1.2500     50.00%         -    45.67%      0.01      1234     1:05")
    assert all(len(line) <= 80 for line in lines[1:])


def test_after_other_steps_the_pace_is_that_from_there_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a GPU had to warm up again."""
    now = [0.0]
    monkeypatch.setattr(sinks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sinks, "PLAIN_LINE_S", 0)
    monkeypatch.setattr(sinks, "REFRESH_S", 0)
    plain, live = io.StringIO(), io.StringIO()
    console = Console(file=live, force_terminal=True, width=100, color_system=None)
    for display in (PlainDisplay(lambda: (1.0, 0.5), plain), LiveDisplay(lambda: (1.0, 0.5), console)):
        now[0] = 0.0
        display.handle(STARTED)
        now[0] = 10.0
        for event in (epoch(1), Replanned(10, 15, 2), WarmedUp(3.0)):
            display.handle(event)
        now[0] = 12.0
        display.handle(StepDone(10, 1, 0.05))  # the eleventh of 15, in 2 s
        display.close()
    assert "step 11 of 15: loss 1.0000, accuracy 50.00%, lr 0.05, 8 s left" in plain.getvalue()
    assert "50 images/s  8 s left" in live.getvalue()
    for text in (plain.getvalue(), live.getvalue()):
        assert "15 steps in all from here on, to be done in the time given" in text


def test_the_live_bar_shows_the_figures_and_leaves_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "REFRESH_S", 0)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    display = LiveDisplay(lambda: (1.23456, 0.5), console)
    display.handle(STARTED)
    display.handle(StepDone(4, 0, 0.05))
    shown = stream.getvalue()
    assert "loss 1.235  acc 50.00%  lr 0.05" in shown
    assert "images/s" in shown
    assert "left" in shown
    display.handle(epoch(1))
    display.close()
    display.close()
    assert "1/2      1.2500" in stream.getvalue()


def test_a_terminal_that_was_closed_stops_nothing() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    for display in (
        LiveDisplay(lambda: (1.0, 0.5), Console(file=Closed(), force_terminal=True)),
        PlainDisplay(lambda: (1.0, 0.5), Closed()),
    ):
        for event in (STARTED, StepDone(4, 0, 0.05), epoch(1)):
            display.handle(event)
        display.close()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (41.4, "41 s"), (59.6, "1:00"), (185, "3:05"), (9060, "2:31:00"), (float("nan"), "-")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_percent() -> None:
    assert (percent(0.12345), percent(None)) == ("12.35%", "-")
