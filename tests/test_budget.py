"""A run that takes the time that it was given."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

import velodrome as vd
from velodrome.budget import Pace, fit_to_budget, steps_within
from velodrome.errors import ConfigError
from velodrome.job import Job, prepare
from velodrome.run.folder import open_run
from velodrome.runs import read_config

SMALL = {"limit_train": 400, "limit_test": 100, "width": 4, "batch_size": 50, "lr": 0.01, "precision": "fp32"}


@pytest.fixture(scope="module")
def job() -> Job:
    return prepare(vd.recipes.quick(**SMALL, time_budget="60s"), progress=False)


def test_steps_are_what_fits(job: Job) -> None:
    assert job.loader.steps_per_epoch == 8
    assert steps_within(10.0, Pace(0.1, 0.0, 0.0, 5.0), job) == 100  # the end is no part of these seconds
    assert steps_within(10.0, Pace(0.1, 0.0, 0.8, 5.0), job) == 50


def test_frozen_steps_are_cheaper(job: Job) -> None:
    frozen = replace(job, config=replace(job.config, train=replace(job.config.train, freeze_epochs=1)))
    pace = Pace(0.1, 0.05, 0.0, 0.0)
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
