"""What a bench is made of: statistics, rows, tables, and commands that end with us."""

import dataclasses
import os
import re
import signal
import statistics
import threading
import time
from pathlib import Path

import pytest

from velodrome.bench_commands import Stopped, end_of, run_command, signals_raise
from velodrome.bench_results import Bench, append
from velodrome.bench_rows import OwnRun, RivalRun, accuracy_in
from velodrome.errors import EXIT_PARTLY, RunError
from velodrome.spread import spread_of, t_quantile_975

TABLE = """\
## 2026-02-03: bench of `quick` on shapes

**The machine was busy** (load average 0.75 at the start): times do not count.

| seed | accuracy | with TTA | time (s) | train (s) | predict (s) | PFLOP | GFLOP/s | of the ceiling |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 0 | 93.00% | 94.00% | 100.5 | 100.0 | 0.50 | 20 | 200,000 | 50% |
| 1 | 94.00% | 95.00% | - | 200.0 | - | 20 | 100,000 | - |
| 2 | failed | - | - | - | - | - | - | - |
| mean accuracy, median of the rest | 93.50% | 94.50% | 100.5 | 150.0 | 0.50 | 20 | 150,000 | 50% |

- accuracy with test-time augmentation (TTA): mean 94.50%, 95% CI of the mean 88.15% to 100.85% \
(Student's t, n = 2), standard deviation 0.71 points, lowest 94.00%, highest 95.00%
- time from data in memory to the final answers: median 100.5 s (n = 1)
- time by DAWNBench's rules, preparation and training without the final answers: median 101.5 s (n = 1)
- ceiling, matrix products in bf16 right before and after each run: median 400,000 GFLOP/s (n = 1)
- seed 2 failed: The loss is\\nnot finite.

Against `python rival.py | tee log`, in turn with ours; wall times of the commands, from outside:

| seed | velodrome (s) | other (s) | its accuracy | other / velodrome |
| --- | --- | --- | --- | --- |
| 0 | 120.00 | 240.00 | 91.50% | 2.000 |
| 1 | 210.00 | exit code 3 | - | - |
| 2 | failed | - | - | - |
| mean accuracy, median of the rest | 165.00 | 240.00 | 91.50% | 2.000 |

- other / velodrome, within each pair: median 2.000 (n = 1)
- accuracy of the other program, as it prints it: mean 91.50% (n = 1, so no interval)

| machine |  |
| --- | --- |
| date | 2026-02-01T10:00:00+00:00, 2026-02-03T10:00:00+00:00 |
| command | `velodrome bench --against 'python rival.py \\| tee log'` |
| velodrome | 0.1.0 |
| commit of the working directory | 0123abc, unknown |
| CPU | A CPU, 2 cores, 1 threads |
| memory | 8 GiB |
| device | A GPU |
| precision | bf16 |
| torch | 2.8 |
| Python | 3.11 |
| load average at the start | 0.75, - |
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    start = {
        "started": "2026-02-01T10:00:00+00:00",
        "command": "x",
        "commit": "0123abc",
        "load_average": 0.75,
    }
    command = "velodrome bench --against 'python rival.py | tee log'"
    again = {"started": "2026-02-03T10:00:00+00:00", "command": command, "commit": None, "load_average": None}
    machine = {"velodrome": "0.1.0", "cpu": "A CPU", "cores": 2, "threads": 1, "memory_gib": 8}
    machine |= {"device_name": "A GPU", "precision": "bf16", "torch": "2.8", "python": "3.11"}
    settings = {"recipe": "quick", "data": "shapes", "precision": "bf16"}
    empty = Bench(tmp_path, settings, "python rival.py | tee log", machine, (start, again))
    return (
        empty.with_run(OwnRun(1, 0.94, 0.95, 200.0, None, 20.0, None, 210.0))
        .with_run(OwnRun(0, error="to be replaced"))
        .with_run(OwnRun(0, 0.93, 0.94, 100.0, 0.5, 20.0, 4e5, 120.0, 1.5))
        .with_run(OwnRun(2, error="The loss is\nnot finite."))
        .with_rival(RivalRun(0, 0, 240.0, 0.915))
        .with_rival(RivalRun(1, 3, 5.0, output_end="broken"))
    )


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (2, 12.7062),
        (1000, 1.9623),
        (3, 4.3027),
        (4, 3.1824),
        (5, 2.7764),
        (10, 2.2622),
        (11, 2.2281),
        (101, 1.9840),
    ],
)
def test_quantiles_of_students_t(n: int, expected: float) -> None:
    assert t_quantile_975(n - 1) == pytest.approx(expected, abs=1e-4)


def test_the_spread_of_values() -> None:
    values = [3.0, 1.0, 2.0, 5.0, 4.0]
    found = spread_of([None, *values])
    assert found is not None
    assert (found.n, found.mean, found.median, found.min, found.max) == (5, 3, 3, 1, 5)
    half = 2.776445 * statistics.stdev(values) / 5**0.5
    assert found.ci95 == pytest.approx((3 - half, 3 + half), abs=1e-5)
    alone = spread_of([7.0])
    assert alone is not None
    assert (alone.mean, alone.sd, alone.ci95) == (7, None, None)
    assert spread_of([None]) is None
    assert spread_of([]) is None


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("accuracy: 12.5\nnoise\naccuracy: 94.25%", 0.9425),
        ("accuracy: 0.94", 0.94),
        ("accuracy: 1", 1.0),
        ("accuracy: 9425", None),
        ("accuracy: 94\naccuracy: .", None),
        ("nothing", None),
    ],
)
def test_the_last_accuracy_in_an_output(output: str, expected: float | None) -> None:
    assert accuracy_in(output, re.compile(r"accuracy: ([\d.]+)")) == expected
    assert accuracy_in(output, None) is None


def test_the_table_to_the_letter(bench: Bench) -> None:
    assert f"{bench}" == TABLE
    assert "<td>94.00%</td>" in bench._repr_html_()


def test_a_bench_is_read_back_as_it_was_written(bench: Bench) -> None:
    bench.save()
    again = Bench.load(bench.path)
    assert dataclasses.asdict(again) == dataclasses.asdict(bench)
    assert bench.to_dict()["runs"][0]["ceiling_share"] == 0.5
    with pytest.raises(RunError, match="damaged: it does not exist"):
        Bench.load(bench.path / "none")


def test_reports_are_kept_apart(tmp_path: Path) -> None:
    append(tmp_path / "a.md", "one\n")
    append(tmp_path / "a.md", "two\n")
    assert (tmp_path / "a.md").read_text() == "one\n\ntwo\n"
    with pytest.raises(RunError, match="cannot be written") as failure:
        append(tmp_path, "three\n")
    assert failure.value.exit_code == EXIT_PARTLY


posix = pytest.mark.skipif(os.name != "posix", reason="needs a shell")


@posix
def test_a_command_is_timed_and_its_output_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code, seconds = run_command("sleep 0.3; echo out; echo err >&2; exit 3", log)
    assert code == 3
    assert 0.3 < seconds < 30
    assert log.read_text() == "out\nerr\n"
    assert run_command(["echo", "$HOME; exit 3"], log)[0] == 0
    assert end_of(log) == "$HOME; exit 3"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    assert end_of(log).split("\n")[0] == "line 90"
    assert end_of(tmp_path / "none") == ""


@posix
def test_a_signal_ends_a_command_and_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("velodrome.bench_commands.GRACE_S", 0.2)
    # It does not listen to being asked, and would leave a mark if it went on.
    command = f"trap '' TERM; touch {tmp_path}/began; sleep 2; touch {tmp_path}/went-on"

    def stop() -> None:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Stopped) as stopped, signals_raise():
        run_command(command, tmp_path / "log")
    thread.join()
    assert stopped.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    time.sleep(2.5)
    assert not (tmp_path / "went-on").exists()
