"""A process that decodes image files for another one; `decoding` starts it and talks with it.

Reads a line with the goal, then a line for each chunk of files, from stdin. Answers on stdout: a byte when it
is ready, then a byte and an outcome for each chunk. It ends at once when stdin ends, as it does with whoever
started it, however that ends. A decoder may take it down; whoever started it knows what it was doing.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path

from velodrome.data.own.chunks import Chunk, Goal, decode_chunk
from velodrome.data.quiet import quiet_process

# What an answer begins with: ready, or an outcome follows; or a line that says why pixels cannot be written.
READY, OUTCOME, CANNOT_WRITE = b"r", b"o", b"w"
# No decoder takes so long for as many pixels as are decoded.
SECONDS_A_FILE = 60


def main() -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # see _watch
    quiet_process()
    # What a decoder prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _be_the_first_to_go()
    goal = Goal(*json.loads(sys.stdin.buffer.readline()))
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    gc.freeze()  # what was imported stays
    answers.write(READY)
    answers.flush()
    with Path(goal.pixels).open("r+b") as pixels:
        while True:
            chunk = Chunk.from_line(jobs.get())
            try:
                outcome = decode_chunk(chunk, goal, pixels, is_quiet=True, before_each=_watch)
                answers.write(OUTCOME + outcome.to_bytes())
            except OSError as error:
                answers.write(CANNOT_WRITE + json.dumps([error.errno, error.strerror]).encode() + b"\n")
            _watch(0)
            answers.flush()


def _read_jobs(jobs: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(0)  # nobody waits for an answer


def _watch(seconds: int = SECONDS_A_FILE) -> None:
    """Have the system end this process after some time, whatever it is doing; 0 for never."""
    if sys.platform != "win32":
        signal.alarm(seconds)


def _be_the_first_to_go() -> None:
    """Where memory runs out, Linux ends this process rather than the one with everybody's work."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
