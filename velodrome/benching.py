"""Time to accuracy: the same recipe with several seeds, alone or in turn with another program."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from velodrome import planning, session
from velodrome.bench_commands import Stopped, end_of, read_log, run_command, signals_raise
from velodrome.bench_results import Bench
from velodrome.bench_rows import BenchFolder, OwnRun, RivalRun, accuracy_in, read_run
from velodrome.config import Config, override, to_dict, to_yaml
from velodrome.device import matrix_speeds
from velodrome.errors import (
    EXIT_INTERRUPTED,
    EXIT_PARTLY,
    EXIT_RESUMABLE,
    ConfigError,
    InterruptedRunError,
    RunError,
    VelodromeError,
    VelodromeWarning,
    visible,
)
from velodrome.job import prepare
from velodrome.recipes import speed94
from velodrome.run.environment import describe_environment
from velodrome.run.folder import (
    RunFolder,
    check_can_write,
    create_run,
    find_begun,
    next_run_folder,
    write_atomically,
    writing,
)
from velodrome.run.lock import is_locked, locked
from velodrome.run.sinks import duration, percent

# In the other program's command line, the seed of our run beside it.
SEED = "{seed}"
# What makes no difference to the figures of a bench, so that it may go on with another.
NOT_OF_A_BENCH = ("seed", "name", "runs_dir", "data_root")
# The times of one table come from one machine.
MACHINE = ("velodrome", "torch", "cpu", "cores", "threads", "device_name")


def bench(
    config: Config | None = None,
    *,
    runs: int = 5,
    against: str | None = None,
    against_accuracy: str | None = None,
    progress: bool = True,
) -> Bench:
    """Train a recipe with several seeds; measure time and accuracy, and the machine's ceiling beside them.

    Leaves a bench folder, with a run folder for each seed. If the config names a bench that exists, this goes
    on with it: what has come to its end is taken as it is, anything else is run again.

    Args:
        config: from a recipe; `speed94()` without one. Its seed is the first of the seeds.
        runs: how many seeds.
        against: command line of another program to run in turn with ours, for the ratio of wall times;
            `{seed}` in it becomes the seed of our run beside it. Ours is then run as a command too.
        against_accuracy: regular expression with one group, the accuracy in the output of that program.
        progress: show it on stderr.

    Returns:
        All that was measured; `failed` and `failed_rivals` tell what went wrong.

    Raises:
        VelodromeError: bad settings or data (nothing was written).
        InterruptedRunError: a signal stopped it; what has come to its end is kept.
    """
    config = config or speed94()
    pattern = _check_wishes(config, runs, against, against_accuracy)
    place = _existing(config)
    check_can_write(config.run.runs_dir)
    job = prepare(config, progress=progress)
    device, precision = job.device, job.config.run.precision
    new = _new_bench(job.config, against, device)
    del job  # the runs load the data themselves
    goes_on = place is not None
    if place is None:
        place = create_run(config.run.runs_dir, config.run.name, "bench", lambda draft: _fill(draft, new))
    with locked(place), signals_raise():
        before = Bench.load(place.path)
        _check_same(before, new)
        seeds = [config.run.seed + number for number in range(runs)]
        if goes_on and not all(map(before.is_measured, seeds)):
            before = replace(before, starts=before.starts + new.starts)
        return _Work(config, before, device, precision, pattern, progress).do(seeds)


def plan(config: Config, *, runs: int, against: str | None = None) -> dict[str, object]:
    """What `bench` would do, without doing it: `planning.plan` of one run, and what concerns all of them.

    Raises:
        VelodromeError: what `bench` would refuse.
    """
    _check_wishes(config, runs, against, None)
    _existing(config)
    one = planning.plan(replace(config, run=replace(config.run, name=None)))
    place = next_run_folder(config.run.runs_dir, config.run.name, "bench")
    all_s = runs * float(str(one["training_s"]))
    first = config.run.seed
    return {
        **one,
        "run_folder": str(place),
        "runs": runs,
        "seeds": f"{first} to {first + runs - 1}",
        "against": against,
        "training_time_of_all_runs": duration(all_s),
    }


def _check_wishes(
    config: Config, runs: int, against: str | None, against_accuracy: str | None
) -> re.Pattern[str] | None:
    """Check what is asked of the bench itself; the pattern for the other program's accuracy."""
    if runs < 1:
        raise ConfigError(f"runs is {runs}, but must be at least 1.", "For instance --runs 5.")
    override(config, {"seed": config.run.seed + runs - 1})
    if against is not None and not against.strip():
        raise ConfigError("--against is empty, but must be a command.", "Give a command, or leave it out.")
    if against_accuracy is None:
        return None
    if against is None:
        raise ConfigError("--against-accuracy is for the output of --against COMMAND.", "Add --against.")
    remedy = r"For instance --against-accuracy 'accuracy: ([\d.]+)'."
    try:
        pattern = re.compile(against_accuracy)
    except re.error as error:
        problem = f"--against-accuracy {against_accuracy!r} is not a regular expression: {error}."
        raise ConfigError(problem, remedy) from error
    if pattern.groups != 1:
        raise ConfigError(
            f"--against-accuracy {against_accuracy!r} has {pattern.groups} groups, but must have one.", remedy
        )
    return pattern


def _existing(config: Config) -> RunFolder | None:
    """The bench folder that the config names, None where there is nothing of that name.

    Raises:
        ConfigError: something else has that name.
    """
    path = find_begun(config.run.runs_dir, config.run.name, "bench.json", "is not a bench")
    return None if path is None else RunFolder(path)


def _new_bench(config: Config, against: str | None, device: torch.device) -> Bench:
    """A bench without rows, as it would be on this machine now; it has no folder yet."""
    about = describe_environment(device, config.run.precision)
    settings = {key: value for key, value in to_dict(config).items() if key not in NOT_OF_A_BENCH}
    git, load = about["git"], _load_average()
    commit = f"{git['commit']}{' with changes' if git['dirty'] else ''}" if isinstance(git, dict) else None
    start = {"started": about["started"], "command": about["command"], "commit": commit, "load_average": load}
    machine = {key: value for key, value in about.items() if key not in ("git", "command", "started")}
    return Bench(Path(), settings, against, machine, (start,))


def _load_average() -> float | None:
    """Mean number of processes that ran or wanted to in the last minute; None where the system is silent."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _fill(draft: RunFolder, new: Bench) -> None:
    replace(new, path=draft.path).save()


def _check_same(before: Bench, now: Bench) -> None:
    """Check that a bench goes on with what it was begun with, on the machine that it was begun on.

    Raises:
        ConfigError: something differs; names it.
    """

    def compare(key: str, old: object, new: object) -> None:
        if old != new:
            raise ConfigError(
                f"Bench {before.path} was made with {key} {visible(str(old))}, but now it is "
                f"{visible(str(new))}.",
                "Use another --name, or the same as before.",
            )

    compare("--against", before.against, now.against)
    for key, value in now.settings.items():  # a setting may be newer than the bench
        compare(key, before.settings.get(key, value), value)
    for key in MACHINE:
        compare(key, before.machine.get(key), now.machine.get(key))


@dataclass
class _Work:
    """A bench that goes on.

    Attributes:
        config: as it was given, with "auto" in it.
        bench: what is measured so far.
        device: that the runs use.
        precision: in which they compute.
        pattern: finds the accuracy in the output of the other program.
        progress: show it on stderr.
    """

    config: Config
    bench: Bench
    device: torch.device
    precision: str
    pattern: re.Pattern[str] | None
    progress: bool

    def do(self, seeds: list[int]) -> Bench:
        """Measure what is missing."""
        try:
            write_atomically(self._folder.settings, to_yaml(_nameless(self.config)))
            self._keep(self.bench)
            for count, seed in enumerate(seeds, 1):
                of = f"({count} of {len(seeds)})"
                self._own(seed, of)
                if self.bench.against is not None:
                    self._rival(seed, self.bench.against, of)
        except (KeyboardInterrupt, InterruptedRunError) as error:
            raise self._stopped(error, seeds) from error
        except RunError as error:  # of writing, which has begun
            error.exit_code = EXIT_PARTLY
            raise
        return self.bench

    @property
    def _folder(self) -> BenchFolder:
        return BenchFolder(self.bench.path)

    def _keep(self, bench: Bench) -> None:
        """Write down what is measured so far."""
        self.bench = bench
        bench.save()
        write_atomically(self._folder.table, f"{bench}\n")

    def _own(self, seed: int, of: str) -> None:
        """Our run with a seed, unless it has come to its end before."""
        folder, row, again = self._folder.run(seed), self.bench.own(seed), ""
        if folder.is_finished and (self.bench.against is None or (row and row.wall_s is not None)):
            # Of a run that finished just before a kill, there is no row yet.
            row, again = row or read_run(folder, seed), ", measured before"
        else:
            self._remove(folder)
            before = self._ceiling()
            row = self._train_here(seed) if self.bench.against is None else self._train_as_command(seed)
            row = replace(row, ceiling_gflops=max(filter(None, [before, self._ceiling()]), default=None))
        self._keep(self.bench.with_run(row))
        accuracy = row.accuracy if row.accuracy_tta is None else row.accuracy_tta
        seconds = "-" if row.time_s is None else f"{row.time_s:.1f} s"
        figures = (
            f"{percent(accuracy)} in {seconds}" if row.error is None else f"failed: {visible(row.error)}"
        )
        self._say(f"seed {seed}: {figures} {of}{again}")

    def _train_here(self, seed: int) -> OwnRun:
        """A run in this process."""
        place = replace(self.config.run, seed=seed, runs_dir=self.bench.path, name=f"seed-{seed}")
        try:
            run = session.train(replace(self.config, run=place), progress=self.progress)
            return read_run(run.folder, seed)
        except InterruptedRunError:
            raise
        except VelodromeError as error:
            return OwnRun(seed, error=str(error))

    def _train_as_command(self, seed: int) -> OwnRun:
        """A run as a command of its own, timed from outside."""
        folder, log = self._folder, self._folder.log(seed)
        words = [sys.executable, "-m", "velodrome", "train", "--config", str(folder.settings.absolute())]
        words += ["--seed", str(seed), "--runs-dir", str(folder.path.absolute()), "--name", f"seed-{seed}"]
        code, wall_s = run_command([*words, "--quiet"], log)
        if code != 0:
            last_line = end_of(log).rpartition("\n")[2]
            return OwnRun(seed, wall_s=wall_s, error=f"exit code {code}: {last_line}")
        return read_run(folder.run(seed), seed, wall_s)

    def _rival(self, seed: int, command: str, of: str) -> None:
        """The other program's run beside a seed, unless it has succeeded before."""
        log, row, again = self._folder.rival_log(seed), self.bench.rival(seed), ""
        if row is None:
            code, wall_s = run_command(command.replace(SEED, str(seed)), log)
            row = RivalRun(seed, code, wall_s, output_end=end_of(log) if code else None)
        else:
            again = ", measured before"
        if row.exit_code == 0 and self.pattern:
            row = replace(row, accuracy=accuracy_in(read_log(log), self.pattern))
        self._keep(self.bench.with_rival(row))
        ratio = self.bench.ratio(seed)
        times = f", {ratio:.3f} times as long as ours" if ratio else ""
        shown = (
            f"{row.wall_s:.1f} s{times}" if row.exit_code == 0 else f"failed with exit code {row.exit_code}"
        )
        self._say(f"seed {seed}: the other program {shown} {of}{again}")

    def _remove(self, folder: RunFolder) -> None:
        """Make room for a run: one that was interrupted or failed cannot be timed fairly by going on."""
        if not folder.path.exists():
            return
        if is_locked(folder):
            raise RunError(
                f"Run {folder.path} is in use by another process, which works in it.",
                "Wait until that has ended, or stop it first.",
            )
        message = f"Run {folder.path} did not come to its end in one go, so it is deleted and run again."
        warnings.warn(message, VelodromeWarning, stacklevel=2)
        with writing(folder.path):
            shutil.rmtree(folder.path)

    def _ceiling(self) -> float | None:
        """Speed of matrix products in the precision of the runs, in GFLOP/s; None where it has no measure."""
        return matrix_speeds(self.device).get(self.precision)

    def _say(self, line: str) -> None:
        if self.progress:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def _stopped(self, error: BaseException, seeds: list[int]) -> InterruptedRunError:
        """Say what is kept and how to go on."""
        done = sum(map(self.bench.is_measured, seeds))
        code = EXIT_RESUMABLE if isinstance(error, Stopped) else EXIT_INTERRUPTED
        code = error.exit_code if isinstance(error, InterruptedRunError) else code
        path = self.bench.path
        return InterruptedRunError(
            f"Stopped; {done} of {len(seeds)} are measured and kept in {path}.",
            f"Go on with the same command and --name {shlex.quote(path.name)}.",
            code,
        )


def what_failed(found: Bench) -> tuple[str, str] | None:
    """What went wrong in a bench and what to do about it, as two sentences; None where nothing did."""
    ours = {run.seed: str(run.error) for run in found.failed}
    theirs = {rival.seed: f"exit code {rival.exit_code}" for rival in found.failed_rivals}
    parts = [
        _sentence(f"{len(rows)} of {total} runs of {whose} failed", rows)
        for rows, total, whose in (
            (ours, len(found.runs), "velodrome"),
            (theirs, len(found.rivals), "the other program"),
        )
        if rows
    ]
    if not parts:
        return None
    again = f"All is in {found.path}; the same command with --name {shlex.quote(found.path.name)}"
    return " ".join(parts), f"{again} runs them again."


def _sentence(what: str, reasons: Mapping[int, Any]) -> str:
    seeds = ", ".join(map(str, reasons))
    first = visible(str(next(iter(reasons.values())))).rstrip(".")
    return f"{what} (seed{'s' if len(reasons) > 1 else ''} {seeds}): {first}."


def _nameless(config: Config) -> Config:
    return replace(config, run=replace(config.run, name=None))
