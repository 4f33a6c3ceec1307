"""Ranks as real processes: forked from a server that has torch loaded, or started by torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
from forks import FORK

DEADLINE_S = 60.0
GLANCE_S = 0.02
# 4 steps an epoch; GELU, so that a last bit does not decide whether a unit is on.
TINY = {
    **{"batch_size": 32, "model": "speednet", "width": 4, "crop": 2, "cutout": 4, "val_fraction": 0.0},
    **{"precision": "fp32", "device": "cpu", "lr": 0.02, "epochs": 2},
}
LONG = {**TINY, "epochs": 1000, "score_test": "once", "checkpoint_every": 0.005}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def flags(settings: Mapping[str, object], **more: object) -> list[str]:
    """The settings as words of a command line, which shows no progress."""
    every = {**settings, **more}
    return [word for key, value in every.items() for word in ("--" + key.replace("_", "-"), str(value))] + [
        "--quiet"
    ]


def write_images(path: Path) -> Path:
    """128 images to train on and 40 to test on."""
    from velodrome.data.shapes import draw_shapes

    train, test = draw_shapes(128, 0), draw_shapes(40, 0, "test")
    np.savez(path, x_train=train.images_u8, y_train=train.labels, x_test=test.images_u8, y_test=test.labels)
    return path


class Ranks:
    """The processes of a run, rank by rank, each with a file for what it prints."""

    def __init__(self, processes: list[ForkServerProcess], printed: list[Path]) -> None:
        self.processes, self.printed = processes, printed

    def send(self, rank: int, number: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait(self, within_s: float = DEADLINE_S) -> list[int | None]:
        """The exit codes; fails if a rank takes longer."""
        deadline = time.monotonic() + within_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def words(self, rank: int) -> str:
        return self.printed[rank].read_text()


@contextlib.contextmanager
def ranks(
    size: int,
    work: Callable[..., object],
    *arguments: object,
    place: Path,
    here: int | None = None,
    **env: str,
) -> Iterator[Ranks]:
    """`work(*arguments)` in so many ranks, as torchrun would start them; what is left is killed.

    Args:
        size: of the world.
        work: what each does; an int is its exit code.
        arguments: of `work`.
        place: working directory.
        here: start only the first so many.
        env: more of the environment.
    """
    port, processes, printed = str(free_port()), [], []
    for rank in range(size if here is None else here):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        names = {key: str(value) for key, value in told.items()}
        names |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", **env}
        printed.append(place / f"printed-by-{rank}.txt")
        processes.append(FORK.Process(target=_be_a_rank, args=(names, place, printed[-1], work, arguments)))
        processes[-1].start()
    try:
        yield Ranks(processes, printed)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _be_a_rank(
    env: dict[str, str], place: Path, printed: Path, work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    import torch

    os.environ.update(env)
    os.chdir(place)
    torch.set_num_threads(1)
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    code = work(*arguments)
    sys.exit(code if isinstance(code, int) else 0)


def command_with_page(*words: str) -> int:
    """What `velodrome` does on each rank."""
    from velodrome import cli

    return cli.main(words)


def command(*words: str) -> int:
    """The same, but for pages and pictures."""
    from velodrome import running

    running.show = lambda *_, **__: None
    running.write_samples = lambda *_: None
    return command_with_page(*words)


def command_after(tamper: Callable[[], None], *words: str) -> int:
    """The same, but the last rank is tampered with first."""
    if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
        tamper()
    return command(*words)


def torchrun(size: int, *words: str, place: Path, **env: str) -> subprocess.Popen[str]:
    """`torchrun --standalone --nproc-per-node SIZE -m velodrome WORDS`, printing to `torchrun.txt`."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    with (place / "torchrun.txt").open("w") as file:
        return subprocess.Popen(
            [*line, "-m", "velodrome", *words],
            cwd=place,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            stdout=file,
            stderr=file,
            text=True,
            start_new_session=True,
        )


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, and after the block nothing of it."""
    try:
        yield process
    finally:
        for pid in [*children_of(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def children_of(pid: int) -> list[int]:
    """The processes that a process has started, oldest first."""
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()] if tasks.exists() else []


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(GLANCE_S)


def has_checkpoint(run: Path) -> bool:
    return (run / "checkpoints" / "last.json").exists()


def step_losses(run: Path) -> list[float]:
    """The losses of all steps of complete epochs."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [loss for event in events if event["event"] == "EpochDone" for loss in event["step_losses"]]


def last_step(run: Path) -> int:
    name: str = json.loads((run / "checkpoints" / "last.json").read_text())["checkpoint"]
    return int(name.removeprefix("step-"))


def lines_of(words: str, start: str = "velodrome:") -> list[str]:
    return [line for line in words.splitlines() if line.startswith(start)]
