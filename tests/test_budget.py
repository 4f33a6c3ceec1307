"""A run that takes the time that it was given."""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import velodrome as vd
from velodrome import budget, running
from velodrome.budget import Mark, Pace, fit_to_budget, measure_pace, replan, steps_within, without_short_tail
from velodrome.config import replanned_parts
from velodrome.data.loader import Epoch
from velodrome.errors import ConfigError, RunError
from velodrome.events import Event, Replanned
from velodrome.job import Deadline, Job, prepare
from velodrome.run.folder import last_start, open_run
from velodrome.run.sinks import EventLog
from velodrome.runs import read_config

SMALL = {"limit_train": 400, "limit_test": 100, "width": 4, "batch_size": 50, "lr": 0.01, "precision": "fp32"}


@pytest.fixture(scope="module")
def job() -> Job:
    return prepare(vd.recipes.quick(**SMALL, time_budget="60s"), progress=False)


def test_steps_are_what_fits(job: Job) -> None:
    assert job.loader.steps_per_epoch == 8
    assert (
        steps_within(10.0, Pace(0.1, 0.0, 0.0, 5.0, 0.0), job) == 100
    )  # the end is no part of these seconds
    assert steps_within(10.0, Pace(0.1, 0.0, 0.8, 5.0, 0.0), job) == 50


def test_frozen_steps_are_cheaper(job: Job) -> None:
    frozen = replace(job, config=replace(job.config, train=replace(job.config.train, freeze_epochs=1)))
    pace = Pace(0.1, 0.05, 0.0, 0.0, 0.0)
    assert steps_within(0.2, pace, frozen) == 4
    assert steps_within(1.01, pace, frozen) == 14  # 8 for 0.4 s, 6 for the rest


def test_the_schedule_spans_the_steps(job: Job) -> None:
    fitted = fit_to_budget(job, spent_s=30.0)
    train = fitted.config.train
    assert fitted.total_steps == train.steps
    assert train.steps is not None
    assert train.epochs == -(-train.steps // 8)
    assert fitted.loader.total_steps == train.steps


def test_too_little_time_is_refused(job: Job) -> None:
    with pytest.raises(ConfigError, match="time_budget is 60s, but ten steps"):
        fit_to_budget(job, spent_s=59.5)


class Noted:
    """A step that learns nothing and remembers which it was, on a clock of its own: 2 ms an image."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, int | None]] = []
        self.now_s = 0.0

    def __call__(self, epoch: Epoch, index: int, lr: float) -> None:
        assert lr == 0
        size, side = epoch.loader.kind(epoch.number, index)
        self.taken.append((epoch.number, index, side))
        self.now_s += 0.002 * size


def noted_steps(monkeypatch: pytest.MonkeyPatch, *warm_ups_s: float | None) -> Noted:
    """Every step that is made is the same one, by whose clock time goes."""
    step, left = Noted(), list(warm_ups_s)
    monkeypatch.setattr(budget, "make_step", lambda *words, **more: (step, left.pop(0)))
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: step.now_s))
    return step


def test_the_batches_of_a_measurement_follow_one_another(job: Job, monkeypatch) -> None:
    step = noted_steps(monkeypatch, None, None)
    measure_pace(job, enough_s=1.15)  # 12 of 0.1 s: of the first epoch and the second
    assert step.taken == [(number // 8, number % 8, None) for number in range(12)]


def test_the_batches_of_each_size_follow_one_another(monkeypatch) -> None:
    config = vd.recipes.quick(**SMALL, epochs=2, resolutions="16:1,24:2,32:1", time_budget="60s")
    job = prepare(config, progress=False)
    expected = [job.loader.side_at(step) for step in range(16)]
    step = noted_steps(monkeypatch, None, None)
    measure_pace(job, enough_s=0.0)
    assert step.taken == [
        (*divmod(expected.index(side) + number, 8), side) for side in (16, 24, 32) for number in range(4)
    ]


def test_smaller_batches_count_as_many_images_as_they_have(monkeypatch) -> None:
    # Batches of 90, 90, 90, 90 and 40.
    job = prepare(vd.recipes.quick(**SMALL | {"batch_size": 90}, time_budget="60s"), progress=False)
    noted_steps(monkeypatch, None, None)
    assert measure_pace(job, enough_s=1.0).step_s == pytest.approx(budget.AROUND_STEPS * 80 * 0.002)


def test_what_warming_up_takes_once_more_is_no_time_for_steps(job: Job, monkeypatch) -> None:
    steps = []
    for pace in (Pace(0.1, 0.0, 0.0, 5.0, 0.0), Pace(0.1, 0.0, 0.0, 5.0, 20.0)):
        monkeypatch.setattr(budget, "measure_pace", lambda job, *, enough_s, pace=pace: pace)
        steps.append(fit_to_budget(job, spent_s=0.0).total_steps)
    assert steps[0] - steps[1] in {199, 200, 201}


@pytest.mark.parametrize(
    ("frozen", "warm_ups_s", "expected"),
    [(0, (None, None), 0.0), (0, (60.0, 2.0), 2.0), (1, (60.0, 2.0, 50.0, 1.5), 3.5)],
)
def test_warming_up_counts_as_it_is_after_the_first_time(
    job: Job, monkeypatch, frozen, warm_ups_s, expected
) -> None:
    job = replace(job, config=replace(job.config, train=replace(job.config.train, freeze_epochs=frozen)))
    noted_steps(monkeypatch, *warm_ups_s)
    assert measure_pace(job, enough_s=0.0).warm_up_s == expected


def test_a_run_takes_about_the_time_it_was_given(tmp_path: Path) -> None:
    config = vd.recipes.quick(**SMALL, time_budget="4s", runs_dir=tmp_path)
    began_s = time.perf_counter()
    run = vd.train(config, progress=False)
    # The claim of 5% is for idle machines and longer times; this is that it works at all.
    assert 2 < time.perf_counter() - began_s < 12
    settled = read_config(open_run(run.path)).train
    assert settled.time_budget == "4s"
    assert settled.steps is not None
    assert run.result["epochs"] == settled.epochs
    assert len(run.history) == settled.epochs


@pytest.mark.parametrize(
    ("steps", "per_epoch", "left"), [(169, 28, 168), (173, 28, 173), (168, 28, 168), (20, 28, 20), (1, 1, 1)]
)
def test_a_last_epoch_of_hardly_any_steps_is_left_out(steps: int, per_epoch: int, left: int) -> None:
    assert without_short_tail(steps, per_epoch) == left


# Looking at the clock again, half way.

# Of 80 steps in 10 epochs, 40 were done in 20 s; results take 5 s.
HALF_WAY = [Mark(100.0 + step / 2, step) for step in range(0, 41, 8)]


@pytest.fixture
def half_way(job: Job) -> Iterator[Job]:
    """40 of 80 steps are done, at 120 s; the run is to be over at 145 s."""
    job = replace(job.with_steps(80), deadline=Deadline(145.0, 5.0))
    before = job.state.step, job.state.epoch
    job.state.step, job.state.epoch = 40, 5
    yield job
    job.state.step, job.state.epoch = before


def with_train(job: Job, **changes: object) -> Job:
    return replace(job, config=replace(job.config, train=replace(job.config.train, **changes)))


def steps_of(job: Job, marks: Sequence[Mark] = HALF_WAY, **more: float) -> int | None:
    """All steps that a job has after it is looked at, None for no change."""
    found = replan(job, marks, **{"now_s": 120.0, **more})
    return found and found.total_steps


@pytest.mark.parametrize("ends_s", [145.0, 145.4])
def test_a_run_in_time_keeps_its_steps(half_way: Job, ends_s: float) -> None:
    assert steps_of(replace(half_way, deadline=Deadline(ends_s, 5.0))) is None


@pytest.mark.parametrize(("ends_s", "steps"), [(155.0, 100), (140.0, 70), (120.0, 44), (0.0, 44)])
def test_other_steps_are_taken_where_the_time_is_another(half_way: Job, ends_s: float, steps: int) -> None:
    found = replan(replace(half_way, deadline=Deadline(ends_s, 5.0)), HALF_WAY, now_s=120.0)
    train = found.config.train
    assert (found.total_steps, train.steps, train.replanned) == (steps, steps, "40:80")
    assert train.epochs == -(-steps // 8)
    assert found.loader.total_steps == steps
    assert found.state is half_way.state


def test_warming_up_again_takes_time_where_it_is_done(half_way: Job) -> None:
    assert steps_of(half_way, again_s=5.0) is None
    late = replace(half_way, deadline=Deadline(140.0, 5.0))
    assert steps_of(late, again_s=5.0) == 60


def test_at_least_a_tenth_of_what_was_left_is_taken_though_it_ends_within_an_epoch(half_way: Job) -> None:
    # 49 in all are one step more than six epochs, which would be left out.
    job = half_way.with_steps(88)
    job.state.step, job.state.epoch = 48, 6
    marks = [Mark(100.0 + step / 2, step) for step in range(0, 49, 8)]
    assert steps_of(replace(job, deadline=Deadline(0.0, 5.0)), marks, now_s=124.0) == 52


def test_frozen_steps_do_not_count_as_they_are_cheaper(half_way: Job) -> None:
    frozen = with_train(half_way, freeze_epochs=1)
    cheap_at_first = [Mark(50.0, 0), *HALF_WAY[1:]]
    assert steps_of(frozen, cheap_at_first) is None
    assert steps_of(half_way, cheap_at_first) is not None


def test_it_is_looked_at_once_at_half_of_the_steps(half_way: Job) -> None:
    late = replace(half_way, deadline=Deadline(130.0, 5.0))
    assert steps_of(late) is not None
    assert steps_of(replace(late, deadline=None)) is None
    assert steps_of(with_train(late, replanned="8:90")) is None
    resized = replace(late.config, augment=replace(late.config.augment, resolutions="16:1,32:1"))
    assert steps_of(replace(late, config=resized)) is None
    late.state.step = 48
    assert steps_of(late, [*HALF_WAY, Mark(124.0, 48)], now_s=124.0) is None
    late.state.step = 32
    assert steps_of(late, HALF_WAY[:-1]) is None
    late.state.step = 80
    assert steps_of(late, [*HALF_WAY[:4], Mark(140.0, 80)]) is None


def replanning(monkeypatch: pytest.MonkeyPatch, steps: int = 20) -> None:
    """All runs get other steps after their second epoch."""

    def other(job: Job, marks: Sequence[Mark], **_: float) -> Job | None:
        return job.with_steps(steps, "16:32") if [mark.step for mark in marks] == [0, 8, 16] else None

    monkeypatch.setattr(running, "replan", other)


def test_other_steps_are_the_run_from_there_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = vd.recipes.quick(**SMALL, epochs=4, runs_dir=tmp_path)
    with monkeypatch.context() as patch:
        replanning(patch)
        run = vd.train(planned, progress=False)
    assert run.result["epochs"] == len(run.history) == 3
    assert [
        len(event["step_lrs"]) for event in run.folder.read_events() if event["event"] == "EpochDone"
    ] == [*(8, 8, 4)]
    told = [event for event in run.folder.read_events() if event["event"] == "Replanned"]
    assert [(event["step"], event["steps"], event["epochs"]) for event in told] == [(16, 20, 3)]
    assert last_start(run.folder.read_events())["epochs"] == 3
    # What is written in the folder makes the same run.
    recorded = read_config(run.folder)
    assert (recorded.train.steps, recorded.train.replanned) == (20, "16:32")
    again = vd.train(replace(recorded, run=replace(recorded.run, name="again")), progress=False)
    assert again.folder.model.read_bytes() == run.folder.model.read_bytes()


@pytest.mark.parametrize("newest_is_lost", [False, True])
def test_a_run_that_dies_as_its_steps_are_put_right_goes_on_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest_is_lost: bool
) -> None:
    planned = vd.recipes.quick(**SMALL, epochs=4, steps=32, runs_dir=tmp_path)
    with monkeypatch.context() as patch:
        replanning(patch)
        whole = vd.train(planned, progress=False)
        handle = EventLog.handle

        def die(log: EventLog, event: Event) -> None:
            if isinstance(event, Replanned):
                raise RunError("The disk is full.", "Free some space.")
            handle(log, event)

        patch.setattr(EventLog, "handle", die)
        with pytest.raises(RunError):
            vd.train(replace(planned, run=replace(planned.run, name="died")), progress=False)
    if newest_is_lost:
        shutil.rmtree(max((tmp_path / "died" / "checkpoints").glob("step-*")))
    run = vd.resume(tmp_path / "died", progress=False)
    assert run.result["epochs"] == 3
    assert run.folder.model.read_bytes() == whole.folder.model.read_bytes()


def test_a_run_on_a_machine_that_was_slow_at_first_takes_more_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "AROUND_STEPS", 3.0)
    monkeypatch.setattr(budget, "PAGE_S", 0.5)
    run = vd.train(vd.recipes.quick(**SMALL, time_budget="5s", runs_dir=tmp_path), progress=False)
    train = read_config(run.folder).train
    done, planned = replanned_parts(train.replanned)
    assert planned / 2 <= done < planned < train.steps
    assert run.result["epochs"] == len(run.history) == train.epochs
    assert train.steps == sum(len(event.get("step_lrs", ())) for event in run.folder.read_events())
