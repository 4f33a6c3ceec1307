"""Listeners that write a run down or show it while it goes on. Never imports torch."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from velodrome.events import (
    CheckpointSaved,
    EpochDone,
    Event,
    Replanned,
    RunStarted,
    StepDone,
    StoppedEarly,
    WarmedUp,
    to_json,
)
from velodrome.run.folder import HISTORY_COLUMNS, RunFolder, write_atomically, writing

# Asking the device for figures makes it wait; this often is not felt, and smooth enough for the eye.
REFRESH_S = 0.25
# Without a terminal, say where training is this often within a long epoch.
PLAIN_LINE_S = 60.0

ReadProgress = Callable[[], tuple[float, float]]


class HistoryFile:
    """Keeps history.csv equal to the complete epochs, as far as a checkpoint holds them.

    Args:
        folder: of the run.
        rows: the epochs before a resume; rows in the file beyond them are dropped.
    """

    def __init__(self, folder: RunFolder, rows: Sequence[EpochDone] = ()) -> None:
        self._folder = folder
        self._rows = list(rows)
        self._is_behind = False
        self._write()

    def handle(self, event: Event) -> None:
        """Add a row for each epoch, once its checkpoint is there: a kill between them costs the row too."""
        if isinstance(event, EpochDone):
            self._rows.append(event)
            self._is_behind = True
        elif isinstance(event, CheckpointSaved) and self._is_behind:
            self._write()

    def close(self) -> None:
        """Nothing to do: the file is whole after every epoch."""

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HISTORY_COLUMNS)
        for row in self._rows:
            values = [getattr(row, column) for column in HISTORY_COLUMNS]
            writer.writerow(["" if value is None else value for value in values])
        write_atomically(self._folder.history, text.getvalue())
        self._is_behind = False


class EventLog:
    """Appends every event but single steps to events.jsonl."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.events
        with writing(self._path):
            drop_torn_line(folder)
            self._file = self._path.open("a", encoding="utf-8")

    def handle(self, event: Event) -> None:
        """Append one line."""
        if not isinstance(event, StepDone):
            with writing(self._path):
                self._file.write(json.dumps(to_json(event), ensure_ascii=False) + "\n")
                self._file.flush()

    def close(self) -> None:
        """Close the file; every event was flushed, so there is nothing left to lose."""
        with contextlib.suppress(OSError):
            self._file.close()


def drop_torn_line(folder: RunFolder) -> None:
    """Cut off a last line of events.jsonl that a kill left without its end."""
    if folder.events.exists():
        data = folder.events.read_bytes()
        if data and not data.endswith(b"\n"):
            write_atomically(folder.events, data[: data.rfind(b"\n") + 1])


def epoch_heading() -> str:
    """The heading of the table of epochs, in the widths of its rows."""
    return (
        f"{'epoch':>7}  {'train loss':>10}  {'train acc':>9}  {'val acc':>8}  "
        f"{'test acc':>8}  {'lr':>8}  {'images/s':>8}  {'time':>7}"
    )


def epoch_row(event: EpochDone, epochs: int) -> str:
    """The row of one epoch."""
    return (
        f"{f'{event.epoch}/{epochs}':>7}  {event.train_loss:>10.4f}  {percent(event.train_acc):>9}  "
        f"{percent(event.val_acc):>8}  {percent(event.test_acc):>8}  {event.lr:>8.3g}  "
        f"{event.images_per_s:>8.0f}  {duration(event.time_s):>7}"
    )


class PlainDisplay:
    """A line per epoch, and one now and then within a long one, for logs and pipes."""

    def __init__(self, read: ReadProgress, stream: TextIO | None = None) -> None:
        self._read = read
        self._stream = stream or sys.stderr
        self._pace = Pace()
        self._epochs = self._steps = self._first_step = 0
        self._last_line_s = time.monotonic()

    def handle(self, event: Event) -> None:
        """Print what is worth a line."""
        if isinstance(event, RunStarted):
            self._epochs, self._steps = event.epochs, event.total_steps
            self._pace.start(event.step)
            self._first_step = event.step
            self._say(started_line(event))
            self._say(epoch_heading())
        elif isinstance(event, WarmedUp):
            self._pace.start(self._first_step)
            self._say(warmed_up_line(event))
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, EpochDone):
            self._say(epoch_row(event, self._epochs))
            self._last_line_s = time.monotonic()
        elif isinstance(event, Replanned):
            self._epochs, self._steps, self._first_step = event.epochs, event.steps, event.step
            self._say(replanned_line(event))
        elif isinstance(event, StoppedEarly):
            self._say(stopped_early_line(event))

    def close(self) -> None:
        """Nothing is left open."""

    def _step(self, event: StepDone) -> None:
        if time.monotonic() - self._last_line_s < PLAIN_LINE_S:
            return
        self._last_line_s = time.monotonic()
        loss, accuracy = self._read()
        left = duration(self._pace.left_s(event.step + 1, self._steps))
        self._say(
            f"  step {event.step + 1} of {self._steps}: loss {loss:.4f}, accuracy {percent(accuracy)}, "
            f"lr {event.lr:.3g}, {left} left"
        )

    def _say(self, line: str) -> None:
        # Whoever reads the progress may go away; the run goes on.
        with contextlib.suppress(OSError):
            print(line, file=self._stream, flush=True)


class LiveDisplay:
    """A bar for the epoch in progress under a growing table of epochs, for a terminal."""

    def __init__(self, read: ReadProgress, console: Console | None = None) -> None:
        self._read = read
        self._console = console or Console(stderr=True, highlight=False)
        self._pace = Pace()
        self._progress: Progress | None = None
        self._started: RunStarted | None = None
        self._last_refresh_s = 0.0

    def handle(self, event: Event) -> None:
        """Move the bar, or add to the table. The terminal may be closed; the run goes on or saves itself."""
        with contextlib.suppress(OSError):
            if isinstance(event, RunStarted):
                self._start(event)
            elif isinstance(event, WarmedUp) and self._started:
                self._pace.start(self._started.step)
                self._print(warmed_up_line(event))
            elif isinstance(event, StepDone):
                self._step(event)
            elif isinstance(event, EpochDone) and self._started:
                self._print(epoch_row(event, self._started.epochs))
            elif isinstance(event, Replanned) and self._started:
                self._started = replace(
                    self._started, epochs=event.epochs, steps=event.steps, step=event.step
                )
                self._print(replanned_line(event))
            elif isinstance(event, StoppedEarly):
                self._print(stopped_early_line(event))

    def close(self) -> None:
        """Remove the bar and leave the table."""
        if self._progress:
            with contextlib.suppress(OSError):
                self._progress.stop()
            self._progress = None

    def _start(self, event: RunStarted) -> None:
        self._started = event
        self._pace.start(event.step)
        self._progress = Progress(
            TextColumn("{task.fields[epoch]:>7}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        self._progress.add_task("epoch", total=event.steps_per_epoch, epoch="", figures="starting")
        self._print(started_line(event))
        self._print(epoch_heading())
        self._progress.start()

    def _step(self, event: StepDone) -> None:
        now = time.monotonic()
        if not self._progress or not self._started or now - self._last_refresh_s < REFRESH_S:
            return
        self._last_refresh_s = now
        loss, accuracy = self._read()
        per_epoch = self._started.steps_per_epoch
        done, total = event.step + 1, self._started.total_steps
        speed = self._pace.steps_per_s(done) * self._started.train_images / per_epoch
        figures = (
            f"loss {loss:.3f}  acc {percent(accuracy)}  lr {event.lr:.2g}  {speed:.0f} images/s  "
            f"{duration(self._pace.left_s(done, total))} left"
        )
        task = self._progress.task_ids[0]
        position = done - event.epoch * per_epoch
        self._progress.update(
            task, completed=position, epoch=f"{event.epoch + 1}/{self._started.epochs}", figures=figures
        )
        self._progress.refresh()

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


@contextlib.contextmanager
def search_display(
    progress: bool, console: Console | None = None
) -> Iterator[Callable[[int, int, str], None]]:
    """A function that shows how far a search is: steps done, steps in all, what is being done.

    A live bar on a terminal, a line for each thing that is done elsewhere.

    Args:
        progress: False shows nothing.
        console: stderr by default.
    """
    console = console or Console(stderr=True, highlight=False)
    told: set[str] = set()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed}/{task.total}"),
    )
    bar = Progress(*columns, console=console, transient=True, expand=True)
    task = bar.add_task("", total=None)

    def tell(done: int, total: int, what: str) -> None:
        if console.is_terminal:
            bar.update(task, completed=done, total=total, description=f"finding the learning rate: {what}")
        elif what not in told:
            told.add(what)
            with contextlib.suppress(OSError):
                console.print(f"finding the learning rate: {what}", markup=False, soft_wrap=True)

    if not progress:
        yield lambda *_: None
    elif console.is_terminal:
        with bar:
            yield tell
    else:
        yield tell


class Pace:
    """How fast steps are done, the scoring between epochs included, and how long the rest will take."""

    def start(self, step: int) -> None:
        """Begin to count at `step`."""
        self._first, self._since_s = step, time.monotonic()

    def steps_per_s(self, done: int) -> float:
        """Mean speed since the start; NaN before anything is known."""
        seconds = time.monotonic() - self._since_s
        return (done - self._first) / seconds if seconds > 0 else math.nan

    def left_s(self, done: int, total: int) -> float:
        """Seconds until `total` steps are done, at the mean speed so far."""
        speed = self.steps_per_s(done)
        return (total - done) / speed if speed > 0 else math.nan


def started_line(event: RunStarted) -> str:
    """What is trained on what, in one line."""
    again = f", going on at step {event.step}" if event.step else ""
    return (
        f"{event.run}: {event.params:,} parameters, {event.train_images:,} training images ({event.data}), "
        f"{event.device} in {event.precision}{again}"
    )


def warmed_up_line(event: WarmedUp) -> str:
    """How long it took until the first step could begin."""
    return f"warmed up in {duration(event.seconds)}, which is no part of training"


def replanned_line(event: Replanned) -> str:
    """How many steps the run has from here on."""
    return f"{event.steps:,} steps in all from here on, to be done in the time given"


def stopped_early_line(event: StoppedEarly) -> str:
    """Why training ends after this epoch."""
    return (
        f"no lower validation loss since epoch {event.best_epoch}, whose weights are kept, so training ends "
        f"after epoch {event.epoch}"
    )


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.2f}%"


def duration(seconds: float) -> str:
    """Seconds as people say them: 41 s, 3:05, 2:31:00; a dash where they are not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
