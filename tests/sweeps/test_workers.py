"""Several processes at one sweep, one of them killed: with SQLite, and with a real PostgreSQL server."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import velodrome as vd
from velodrome.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_PARTLY
from velodrome.run.folder import RunFolder

pytest.importorskip("optuna")

from velodrome.sweeps import address, worker
from velodrome.sweeps.address import check_address, sqlite_address
from velodrome.sweeps.rows import TrialRow
from velodrome.sweeps.study import OpenStudy, opened
from velodrome.sweeps.trial_run import TrialRun

TRIALS = 4
PASSWORD = "Xq7-secret"
DEADLINE_S = 120.0
FLAGS = (
    *("--data", "images.npz", "--batch-size", "16", "--width", "2", "--epochs", "8", "--lr", "0.05"),
    *("--precision", "fp32", "--crop", "0", "--val-fraction", "0.2", "--search", "space.yaml"),
    *("--sampler", "random", "--no-prune", "--trials", str(TRIALS), "--grace", "4s", "--study-name", "ours"),
)
Command = Callable[..., subprocess.CompletedProcess[str]]


def make_input(path: Path) -> None:
    """Images so few and small that a worker is at its first trial as soon as torch is there."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    images = rng.integers(0, 120, (200, 32, 32, 3), dtype=np.uint8)
    images[labels == 1, :, :, 0] += 100
    np.savez(path / "images.npz", images=images, labels=labels)
    (path / "space.yaml").write_text("momentum: {from: 0.5, to: 0.95}\ndropout: {from: 0, to: 0.5}\n")


def start(path: Path, number: int, *words: str) -> subprocess.Popen[str]:
    with (path / f"errors-{number}.txt").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "velodrome", "sweep", *FLAGS, *words],
            cwd=path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
        )


def ours_in(storage: str) -> contextlib.AbstractContextManager[OpenStudy]:
    return opened(storage, "ours", grace_s=60, sampler="random", seed=0, prune=False, epochs=1)


def kill_one_that_trains(
    workers: list[subprocess.Popen[str]], shared: OpenStudy, path: Path
) -> tuple[int, TrialRow]:
    """The index of a worker that was killed, and its trial, which has a checkpoint but has not ended."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        assert all(worker.poll() is None for worker in workers), told(path)
        for run in path.rglob("trial-*/checkpoints/step-*/state.json"):
            for row in shared.rows():
                pid = int(str(row.worker).rpartition(":")[2]) if row.worker else 0
                found = [index for index, one in enumerate(workers) if one.pid == pid]
                if row.status == "running" and row.run == run.parents[2].name and found:
                    workers[found[0]].send_signal(signal.SIGKILL)
                    workers[found[0]].wait()
                    now = shared.rows()[row.number]
                    assert now.status == "running", "it was killed too late"
                    return found[0], now
        time.sleep(0.2)
    raise AssertionError(f"nobody trains: {told(path)}")


def see_one_killed(
    workers: list[subprocess.Popen[str]], storage: str, path: Path
) -> tuple[int, TrialRow, TrialRow, list[TrialRow]]:
    """The index of the worker that was killed, its trial, the trial that this became, and all trials."""
    try:
        with ours_in(storage) as shared:
            victim, killed = kill_one_that_trains(workers, shared, path)
            codes = [one.wait(DEADLINE_S) for index, one in enumerate(workers) if index != victim]
            rows = shared.rows()
    finally:
        for one in workers:
            one.kill()
            one.wait()
    assert set(codes) == {EXIT_DONE}, told(path)
    assert "Traceback" not in told(path)
    statuses = [row.status for row in rows]
    assert statuses.count("retried") == 1
    assert rows[killed.number].status == "retried"
    assert statuses.count("complete") == TRIALS
    assert len(rows) == TRIALS + 1
    (again,) = [row for row in rows if row.params == killed.params and row.status != "retried"]
    assert again.worker != killed.worker
    return victim, killed, again, rows


def told(path: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(path.glob("errors-*.txt")))


def test_a_killed_worker_with_sqlite(tmp_path: Path) -> None:
    make_input(tmp_path)
    workers = [start(tmp_path, number) for number in range(3)]
    place = tmp_path / "runs" / "ours"
    storage = sqlite_address(place / "study.db")
    while not (place / "study.db").exists():
        assert all(one.poll() is None for one in workers), told(tmp_path)
        time.sleep(0.1)
    _, killed, again, rows = see_one_killed(workers, storage, tmp_path)
    # Another worker has gone on in the same folder, from the last checkpoint.
    assert again.run == killed.run
    started = [
        event for event in RunFolder(place / again.run).read_events() if event["event"] == "RunStarted"
    ]
    assert started[1]["step"] > 0
    best = max((row for row in rows if row.status == "complete"), key=lambda row: (row.accuracy, -row.number))
    results = [path.parent.name for path in place.glob("trial-*/result.json")]
    assert results == [best.run]
    assert (place / "best.yaml").read_text().startswith("# The best of 5 trials of sweep ours: trial ")
    assert not list(place.glob(".*.tmp"))


# PostgreSQL.


def find(program: str) -> str | None:
    """A program of the server; Debian keeps them out of the way."""
    places = [str(path.parent) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{program}")]
    return shutil.which(program) or shutil.which(program, path=os.pathsep.join(places))


def unprivileged() -> dict[str, Any]:
    """The server does not run as root."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


@dataclass
class Server:
    """A PostgreSQL server of this test's own."""

    path: Path
    port: int

    @property
    def address(self) -> str:
        return f"postgresql://ours:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def control(self, *words: str) -> None:
        subprocess.run(
            [str(find("pg_ctl")), "-D", str(self.path / "data"), *words],
            check=True,
            cwd=self.path,
            stdout=subprocess.DEVNULL,
            timeout=60,
            **unprivileged(),
        )

    def start(self) -> None:
        options = f"-p {self.port} -k {self.path} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.control("-l", str(self.path / "log"), "-o", options, "-w", "start")

    def stop(self) -> None:
        self.control("-m", "immediate", "stop")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if find("initdb") is None or find("pg_ctl") is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    # Not below pytest's own folder, which only root may enter.
    path = Path(tempfile.mkdtemp(prefix="velodrome-postgres-"))
    try:
        (path / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            shutil.chown(path, "postgres")
        subprocess.run(
            [
                *(str(find("initdb")), "-D", "data", "-U", "ours", "-A", "scram-sha-256", "--no-sync"),
                *("--pwfile", "password", "--locale", "C", "-E", "UTF8"),
            ],
            check=True,
            cwd=path,
            stdout=subprocess.DEVNULL,
            timeout=60,
            **unprivileged(),
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            found = Server(path, probe.getsockname()[1])
        found.start()
        try:
            yield found
        finally:
            found.stop()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_a_killed_worker_with_postgresql(server: Server, tmp_path: Path) -> None:
    """Each worker has a folder of its own, as on machines of their own."""
    make_input(tmp_path)
    more = ("--storage", server.address)
    workers = [start(tmp_path, number, *more, "--runs-dir", f"machine-{number}") for number in range(2)]
    victim, _, again, _ = see_one_killed(workers, check_address(server.address), tmp_path)
    other = tmp_path / f"machine-{1 - victim}" / "ours"
    assert (other / again.run / "history.csv").exists()
    assert (other / "best.yaml").exists()
    is_scored = list(other.glob("trial-*/result.json"))
    assert is_scored or "the best, is one of" in told(tmp_path)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 50
    assert [path for path in written if PASSWORD.encode() in path.read_bytes()] == []
    assert "***@127.0.0.1" in (tmp_path / "machine-0" / "ours" / "sweep.json").read_text()


def test_a_wrong_password_is_not_shown(server: Server, tmp_path: Path, command_here: Command) -> None:
    make_input(tmp_path)
    wrong = server.address.replace(PASSWORD, "Wrong-secret")
    done = command_here("sweep", *FLAGS, "--quiet", "--storage", wrong, cwd=tmp_path)
    assert done.returncode == EXIT_BAD_INPUT
    assert f"postgresql://ours:***@127.0.0.1:{server.port}/postgres cannot be reached: " in done.stderr
    assert 'password authentication failed for user "ours"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_server_that_goes_away_is_told(
    server: Server, tmp_path: Path, command_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path)

    class Stopping(TrialRun):
        def train(self, config: vd.Config) -> Any:
            server.stop()
            return super().train(config)

    monkeypatch.setattr(worker, "TrialRun", Stopping)
    words = ["sweep", *FLAGS, "--quiet", "--storage", server.address, "--name", "other"]
    words[words.index("ours")] = "other"
    began_s = time.monotonic()
    try:
        done = command_here(*words, cwd=tmp_path)
    finally:
        server.start()
    assert time.monotonic() - began_s < 40
    assert done.returncode == EXIT_PARTLY, done.stderr
    assert "/postgres does not answer any more: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert "secret" not in done.stderr
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    time.sleep(2)  # the grace of the trial that was being trained
    words[words.index("4s")], words[words.index(str(TRIALS))] = "1s", "1"
    done = command_here(*words, "--json", cwd=tmp_path)
    assert done.returncode == EXIT_DONE, done.stderr
    assert [row["status"] for row in json.loads(done.stdout)["trials"]] == ["retried", "complete"]


def test_a_server_that_is_silent_is_not_waited_for(
    tmp_path: Path, command_here: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    make_input(tmp_path)
    monkeypatch.setattr(address, "CONNECT_S", 2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        storage = f"postgresql://u:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/d"
        began_s = time.monotonic()
        done = command_here("sweep", *FLAGS, "--quiet", "--storage", storage, cwd=tmp_path)
        assert time.monotonic() - began_s < 15
    assert done.returncode == EXIT_BAD_INPUT
    assert "cannot be reached: connection timeout expired" in done.stderr
    assert done.stderr.count("\n") == 1
    assert PASSWORD not in done.stderr
