"""A run is killed, at random moments and at operations on the file system, and loses nothing."""

from __future__ import annotations

import secrets
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from harness import (
    DEADLINE_S,
    FLAGS,
    NO_CHECKPOINT_IN_MID_EPOCH,
    TINY,
    DiedError,
    Operations,
    Process,
    announced,
    check_is_complete,
    check_is_whole,
    checkpoints_of,
    events_of,
    history_of,
    start,
    until,
)

from velodrome import cli

RunHere = Callable[..., tuple[int, str]]
GoingWrong = Callable[[int, int], range]
# Operations of which one goes wrong, where four write a file.
EVERY = 5

# Where there is more than one chain: most of the time goes into waiting for processes.
CHAINS_AT_A_TIME = 2


@dataclass(frozen=True)
class Campaign:
    """What all chains of kills share."""

    folder: Path
    whole: Path
    start_s: float
    log: list[str]
    reporting: threading.Lock


# Moments. Each waits for the moment to kill `process`, which trains or resumes `run`.


def while_starting(process: Process, run: Path, rng: Random, start_s: float) -> None:
    """Anywhere from the start of Python to the first steps."""
    moment = time.monotonic() + rng.uniform(0, 1.2 * start_s)
    until(process, lambda: time.monotonic() >= moment)


def while_the_folder_is_made(process: Process, run: Path, rng: Random, start_s: float) -> None:
    until(process, lambda: run.exists() or any(run.parent.glob(".*.tmp")))
    time.sleep(rng.uniform(0, 0.06))


def after_going_on(process: Process, run: Path, rng: Random, start_s: float) -> None:
    """The first tenth of a second of training."""
    known = len(_lines(run))
    until(process, lambda: len(_lines(run)) > known)
    time.sleep(rng.uniform(0, 0.1))


def in_mid_epoch(process: Process, run: Path, rng: Random, start_s: float) -> None:
    _until_more_steps(process, run, rng.randint(1, 8))
    time.sleep(rng.uniform(0, 0.08))


def while_a_checkpoint_is_written(process: Process, run: Path, rng: Random, start_s: float) -> None:
    _until_more_steps(process, run, rng.randint(0, 6))
    until(process, lambda: any((run / "checkpoints").glob(".step-*.tmp")))
    time.sleep(rng.uniform(0, 0.02))


def at_the_end_of_an_epoch(process: Process, run: Path, rng: Random, start_s: float) -> None:
    """As soon as history.csv has another row: the checkpoint of that epoch is still to come."""
    known = _rows(run) + rng.randint(0, 1)
    until(process, lambda: _rows(run) > known)


def at_the_end_of_the_first_epoch(process: Process, run: Path, rng: Random, start_s: float) -> None:
    until(process, lambda: _rows(run) > 0)


def while_evaluating(process: Process, run: Path, rng: Random, start_s: float) -> None:
    until(process, (run / "predictions.csv").exists)


def when_the_weights_are_there(process: Process, run: Path, rng: Random, start_s: float) -> None:
    until(process, (run / "model.safetensors").exists)


def while_the_report_is_written(process: Process, run: Path, rng: Random, start_s: float) -> None:
    until(process, (run / "result.json").exists)
    time.sleep(rng.uniform(0, 0.1))


Moment = Callable[[Process, Path, Random, float], None]
FIRST: tuple[Moment, ...] = (while_starting, while_the_folder_is_made, at_the_end_of_the_first_epoch)
MIDDLE: tuple[Moment, ...] = (
    while_starting,
    after_going_on,
    in_mid_epoch,
    while_a_checkpoint_is_written,
    at_the_end_of_an_epoch,
)
LAST: tuple[Moment, ...] = (while_evaluating, when_the_weights_are_there, while_the_report_is_written)
# A chain has them all: as many kills as --kills has by default.
KILLS_A_CHAIN = len(FIRST) + len(MIDDLE) + len(LAST)


def _lines(run: Path) -> list[object]:
    return list(events_of(run))


def _rows(run: Path) -> int:
    return len(history_of(run)) if (run / "history.csv").exists() else 0


def _until_more_steps(process: Process, run: Path, steps: int) -> None:
    known = max(announced(run), default=0)
    until(process, lambda: max(announced(run), default=0) >= known + steps)


# The campaign.


def test_a_run_that_is_killed_at_random_moments_ends_as_if_it_had_not_been(
    pytestconfig: pytest.Config, tmp_path: Path, whole: Path, start_s: list[float]
) -> None:
    kills, seed = pytestconfig.getoption("kills"), pytestconfig.getoption("kill_seed")
    if seed is None:
        seed = secrets.randbelow(2**32)
    campaign = Campaign(tmp_path, whole, start_s[0], [], threading.Lock())
    plan = _plan(kills, Random(seed))
    workers = range(CHAINS_AT_A_TIME)
    try:
        with ThreadPoolExecutor(CHAINS_AT_A_TIME) as pool:
            made = pool.map(
                lambda number: _kill_in_turn(plan[number::CHAINS_AT_A_TIME], number, seed, campaign), workers
            )
            assert sum(made) == kills
    except BaseException as error:
        error.add_note("\n".join([*campaign.log, f"To repeat: --kills {kills} --kill-seed {seed}"]))
        raise


def _plan(kills: int, rng: Random) -> list[list[Moment]]:
    """Chains of moments in the order in which they can come in the life of a run."""
    chains = []
    for first in range(0, kills, KILLS_A_CHAIN):
        first_kills = rng.sample(FIRST, len(FIRST))
        # The end of the first epoch comes but once.
        first_kills.sort(key=lambda moment: moment is at_the_end_of_the_first_epoch)
        middle = rng.sample(MIDDLE, len(MIDDLE))
        chains.append([*first_kills, *middle, *LAST][: kills - first])
    return chains


def _kill_in_turn(chains: list[list[Moment]], number: int, seed: int, campaign: Campaign) -> int:
    """Go through some of the chains; returns how many kills there were."""
    rng, made, runs = Random(f"{seed}/{number}"), 0, 0
    for chain in chains:
        left = deque(chain)
        while left:
            runs += 1
            assert runs <= 5 * len(chains) + 5, "runs keep ending before they can be killed"
            made += _one_run(left, campaign.folder / f"runs-{number}-{runs}" / "killed", rng, campaign)
    return made


def _one_run(left: deque[Moment], run: Path, rng: Random, campaign: Campaign) -> int:
    """Kill one run at one moment after the other, then let it end; takes the kills that were made off `left`.

    A run may get to its end before the kill comes. The moments that are left are then for another run.
    """
    made, errors = 0, run.parent.with_suffix(".errors")
    options = rng.choice([(), NO_CHECKPOINT_IN_MID_EPOCH])
    while left:
        moment, seen = left[0], len(events_of(run))
        process = start(*_next_command(run, *options), cwd=campaign.folder, errors=errors)
        try:
            moment(process, run, rng, campaign.start_s)
        finally:
            process.kill()
            code = process.wait(DEADLINE_S)
        campaign.log.append(
            f"{run.parent.name}: {moment.__name__} after {seen} events: {code}, {len(events_of(run))} events"
        )
        assert code in (0, -signal.SIGKILL), errors.read_text()
        if code == 0:
            break
        left.popleft()
        made += 1
        _check_what_is_left(run, campaign)
    process = start(*_next_command(run, *options), cwd=campaign.folder, errors=errors)
    assert process.wait(DEADLINE_S) == 0, errors.read_text()
    check_is_complete(run, campaign.whole)
    shutil.rmtree(run.parent)
    return made


def _next_command(run: Path, *options: str) -> list[str]:
    """A run folder is there whole or not at all."""
    if run.exists():
        return ["resume", str(run), "--quiet"]
    return ["train", *FLAGS, *options, "--runs-dir", str(run.parent), "--name", run.name]


def _check_what_is_left(run: Path, campaign: Campaign) -> None:
    if run.exists():
        check_is_whole(run)
        with campaign.reporting:  # stderr is one for all threads
            assert cli.main(["report", str(run), "--output", str(run.parent / "page.html")]) == 0


# Operations on the file system, one at a time.


def test_a_run_that_dies_at_an_operation_ends_as_if_it_had_not(
    tmp_path: Path, run_here: RunHere, going_wrong: GoingWrong, no_waiting_for_the_disk: None
) -> None:
    """Random moments may miss a window of microseconds; with --every-operation, none is missed."""
    train = ("train", *TINY, "--epochs", "2", *NO_CHECKPOINT_IN_MID_EPOCH, "--name", "killed")
    with Operations(tmp_path) as whole_life:
        assert run_here(*train, "--runs-dir", str(tmp_path / "runs"))[0] == 0
    whole = tmp_path / "runs" / "killed"
    assert len(checkpoints_of(whole)) == 2
    harm = []
    for number in going_wrong(len(whole_life.done), EVERY):
        runs = tmp_path / f"runs-{number}"
        run = runs / "killed"
        with Operations(tmp_path, number) as operations, pytest.raises(DiedError):
            cli.main([*train, "--runs-dir", str(runs)])
        try:
            if run.exists():
                check_is_whole(run)
                if number % 4 == 0:  # four operations write one file
                    assert run_here("report", str(run), "--output", str(runs / "page.html"))[0] == 0
                assert run_here("resume", str(run), "--quiet") == (0, "")
            else:
                assert run_here(*train, "--runs-dir", str(runs)) == (0, "")
            check_is_complete(run, whole)
        except AssertionError as error:
            harm.append(f"killed at operation {number}, {operations.done[number]}: {error}")
        shutil.rmtree(runs)
    assert not harm, "\n".join(harm)


def test_a_resumed_run_that_dies_at_an_operation_ends_as_if_it_had_not(
    tmp_path: Path,
    interrupted: Path,
    tiny_whole: Path,
    run_here: RunHere,
    going_wrong: GoingWrong,
    no_waiting_for_the_disk: None,
) -> None:
    untouched = interrupted.with_name("untouched")
    shutil.copytree(interrupted, untouched)
    with Operations(tmp_path) as whole_life:
        assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    harm = []
    for number in going_wrong(len(whole_life.done), EVERY):
        shutil.rmtree(interrupted)
        shutil.copytree(untouched, interrupted)
        with Operations(tmp_path, number) as operations, pytest.raises(DiedError):
            cli.main(["resume", str(interrupted), "--quiet"])
        try:
            check_is_whole(interrupted)
            assert run_here("resume", str(interrupted), "--quiet") == (0, "")
            check_is_complete(interrupted, tiny_whole)
        except AssertionError as error:
            harm.append(f"killed at operation {number}, {operations.done[number]}: {error}")
    assert not harm, "\n".join(harm)


def test_a_finished_run_whose_extension_dies_before_it_trains_can_be_extended_again(
    tmp_path: Path,
    finished: Path,
    run_here: RunHere,
    going_wrong: GoingWrong,
    no_waiting_for_the_disk: None,
) -> None:
    """No half of the way from one complete run to a longer one takes either of them away."""
    untouched = shutil.copytree(finished, tmp_path / "untouched")
    extend = ("resume", str(finished), "--epochs", "4", "--quiet")
    with Operations(tmp_path) as whole_life:
        assert run_here(*extend) == (0, "")
    longer = shutil.copytree(finished, tmp_path / "longer")
    training = next(n for n, done in enumerate(whole_life.done) if ".step-00000007.tmp" in done)
    harm = []
    for number in going_wrong(training + 1, EVERY):
        shutil.rmtree(finished)
        shutil.copytree(untouched, finished)
        with Operations(tmp_path, number) as operations, pytest.raises(DiedError):
            cli.main(extend)
        try:
            assert run_here("resume", str(finished), "--quiet") == (0, "")
            found = len(history_of(finished))
            check_is_complete(finished, longer if found == 4 else untouched)
            assert run_here(*extend) == (0, "")
            check_is_complete(finished, longer)
        except AssertionError as error:
            harm.append(f"killed at operation {number}, {operations.done[number]}: {error}")
    assert not harm, "\n".join(harm)


def test_what_a_kill_left_half_written_is_cleared_away_by_a_resume(
    interrupted: Path, run_here: RunHere
) -> None:
    (interrupted / ".history.csv.0a1b2c3d.tmp").write_text("epo")
    (interrupted / "checkpoints" / ".last.json.0a1b2c3d.tmp").write_text("{")
    assert run_here("resume", str(interrupted), "--quiet") == (0, "")
    assert [path.name for path in interrupted.rglob("*.tmp")] == []


def test_a_kill_between_the_result_and_the_report_leaves_the_report_to_resume(
    finished: Path, run_here: RunHere
) -> None:
    (finished / "report.html").unlink()
    before = (finished / "result.json").stat().st_mtime_ns
    assert run_here("resume", str(finished), "--quiet") == (0, "")
    assert (finished / "report.html").exists()
    assert (finished / "result.json").stat().st_mtime_ns == before
