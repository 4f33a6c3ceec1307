"""Many image files decoded at once, by processes of their own: a file that breaks one costs only itself."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np

from velodrome.data.own.chunks import Chunk, Goal, Outcome, Trouble, decode_chunk
from velodrome.data.own.decode_worker import OUTCOME, READY, SECONDS_A_FILE
from velodrome.data.own.facts import ROW
from velodrome.errors import DataError, visible

# So many files are decoded sooner than processes have started.
FEW_FILES = 200
# If more files than this break a process, something else is wrong.
MOST_LOSSES = 100
# A process that was killed is gone sooner, unless the system itself waits for a disk.
PATIENCE_S = 5.0
# Pixels of a chunk that a process holds in memory.
CHUNK_BYTES = 4 * 2**20
# -P: no module that lies in the user's folder is taken for one of Python's.
WORKER = ("-P", "-m", "velodrome.data.own.decode_worker")


def usable_cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1


def rows_a_chunk(n: int, side: int) -> int:
    """Files in a chunk: enough to be worth a message, few enough to keep all processes at work to the end.

    Depends on the number of images and their side alone, so that work can be taken up elsewhere.
    """
    return max(1, min(64, max(8, n // 64), CHUNK_BYTES // (3 * side**2)))


def decode_files(
    chunks: Sequence[Chunk], goal: Goal, workers: int | None = None
) -> Generator[Outcome, None, None]:
    """Decode files and write their pixels where they belong.

    A few files are decoded here, many by processes of their own. To close the iterator, or an exception where
    it is iterated, such as that of Ctrl-C, ends the processes at once.

    Args:
        chunks: of files.
        goal: where their pixels go; the file is there and large enough.
        workers: processes; as many as there are cores without.

    Yields:
        The outcome of each chunk, in any order, after its pixels were written.

    Raises:
        OSError: pixels cannot be written.
        DataError: very many files break their decoder.
    """
    done = set()
    if sum(len(chunk.files) for chunk in chunks) >= FEW_FILES:
        count = min(workers or usable_cores(), len(chunks))
        # Where no process can be started, everything is done here.
        with (
            contextlib.suppress(_CannotStartError),
            contextlib.closing(_decoded_elsewhere(chunks, goal, count)) as outcomes,
        ):
            for outcome in outcomes:
                done.add(outcome.start)
                yield outcome
    left = [chunk for chunk in chunks if chunk.start not in done]
    if left:
        with Path(goal.pixels).open("r+b") as pixels:
            for chunk in left:
                yield decode_chunk(chunk, goal, pixels)


def _decoded_elsewhere(chunks: Sequence[Chunk], goal: Goal, count: int) -> Generator[Outcome, None, None]:
    jobs: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
    workers = [_Worker(goal) for _ in range(count)]
    threads = [
        threading.Thread(target=_serve, args=(worker, jobs, answers), daemon=True) for worker in workers
    ]
    for chunk in chunks:
        jobs.put(chunk)
    try:
        for thread in threads:
            jobs.put(None)
            thread.start()
        for _ in chunks:
            answer = answers.get()
            if isinstance(answer, Exception):
                raise answer
            yield answer
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join(PATIENCE_S)


def _serve(
    worker: _Worker,
    jobs: queue.SimpleQueue[Chunk | None],
    answers: queue.SimpleQueue[Outcome | Exception],
) -> None:
    """Hand jobs to a process, one after another, and its answers on, until there are no more."""
    try:
        while (chunk := jobs.get()) is not None:
            answers.put(_outcome_of(chunk, worker))
    except Exception as error:  # raised again where the answers are waited for
        answers.put(error)
    finally:
        worker.stop()
        worker.clear_up()


def _outcome_of(chunk: Chunk, worker: _Worker) -> Outcome:
    """The answer to a chunk. Where it breaks the process, its files are tried one by one."""
    try:
        return worker.ask(chunk)
    except _WorkerLostError as lost:
        if len(chunk.files) > 1:
            return Outcome.joined(_outcome_of(piece, worker) for piece in chunk.pieces())
        worker.losses += 1
        if worker.losses > MOST_LOSSES:
            raise DataError(
                f"More than {MOST_LOSSES} images break decoders, such as {visible(chunk.files[0].path)}: "
                f"{lost.reason}.",
                "Close programs that take much memory, or install Pillow anew.",
            ) from lost
        return Outcome(chunk.start, np.zeros(1, ROW), (Trouble(chunk.start, lost.reason, False),))


class _CannotStartError(Exception):
    """The system, or Python, does not start a process that decodes."""


class _StoppedError(Exception):
    """There is to be no process any more."""


class _WorkerLostError(Exception):
    """A process ended in the middle of its work.

    Args:
        reason: as in `Failure`, for the file that it was at.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Worker:
    """A process that decodes, and the next one where it is lost. `stop` may be called from any thread.

    Args:
        goal: where pixels go.

    Attributes:
        losses: files that broke the process.
    """

    def __init__(self, goal: Goal) -> None:
        self.losses = 0
        self._goal = goal
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False
        self._lock = threading.Lock()

    def ask(self, chunk: Chunk) -> Outcome:
        """What comes of a chunk.

        Raises:
            _WorkerLostError: the process ended before it answered.
            OSError: the pixels cannot be written.
        """
        process = self._process or self._start()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(chunk.to_line())
            process.stdin.flush()
            kind = process.stdout.read(1)
            if kind == OUTCOME:
                return Outcome.read_from(process.stdout)
            problem = process.stdout.readline() if kind else b""
        except (OSError, EOFError):
            problem = b""
        if problem:
            raise OSError(*json.loads(problem), self._goal.pixels)
        raise _WorkerLostError(self.clear_up())

    def stop(self) -> None:
        """End the process, whatever it is doing; no other is started."""
        with self._lock:
            self._is_stopped = True
            if self._process:
                self._process.kill()

    def clear_up(self) -> str:
        """End the process and give back what it held; says what is to be said of the file that it was at."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # of words that it did not take
                if pipe:
                    pipe.close()
        if sys.platform != "win32" and code == -signal.SIGALRM:
            return f"its decoder had not ended after {SECONDS_A_FILE} seconds"
        return "its decoder crashed"

    def _start(self) -> subprocess.Popen[bytes]:
        # It finds the modules that this process finds, where it finds them; and one thread is enough for it.
        places = os.pathsep.join(sys.path)
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self._lock:
            if self._is_stopped:
                raise _StoppedError
            try:
                self._process = process = subprocess.Popen(
                    [sys.executable, *WORKER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **threads, "PYTHONPATH": places},
                )
            except (OSError, ValueError) as error:
                raise _CannotStartError from error
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(self._goal).encode() + b"\n")
            process.stdin.flush()
            if process.stdout.read(1) == READY:
                return process
        if self._is_stopped:
            raise _StoppedError
        raise _CannotStartError
