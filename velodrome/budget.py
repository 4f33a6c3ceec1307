"""As many steps as fit into a given time: measured on a throwaway copy, and put right once, half way."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from velodrome.config import seconds_of
from velodrome.data.imageset import ImageSet
from velodrome.device import memory_kept, synchronize
from velodrome.errors import ConfigError
from velodrome.evaluation.predict import EVAL_BATCH_SIZE, at_once
from velodrome.job import Deadline, Job, score_on
from velodrome.training.freezing import freeze_body
from velodrome.training.step import Step, make_step

# How long a measurement is, in seconds, unless that is more than this share of the time given.
LONG_ENOUGH_S, MOST_TO_MEASURE = 10.0, 0.05
FEWEST_STEPS = 10
# Seconds that beginning the run folder, drawing its figures and its page take; measured on two cores.
PAGE_S = 1.0
# Training takes so many times the seconds of as many steps that are timed here; measured likewise.
AROUND_STEPS = 1.03
# How many bytes of a checkpoint are hashed and brought to the disk in a second; measured likewise.
SAVED_BYTES_A_S = 1e9
# Passes over the test images that the results take: plain, mirrored, and the heat maps of the mistakes.
PASSES = 3.0
# A last epoch of fewer than this share of all steps is left out: its figures would be those of a few images.
SHORT_TAIL = 0.02
# The clock is looked at again after the epoch in which this share of all steps is done; other steps are worth
# it where they are this share more or fewer.
HALF, WORTH_IT = 0.5, 0.01
# Of the steps that were left, this share is taken however late it is, so that the learning rate gets down.
LEAST_LEFT = 0.1
# How often answers are timed, after a first time that does not count.
ANSWERED = 3


@dataclass(frozen=True)
class Pace:
    """What a run costs.

    Attributes:
        step_s: seconds a step, the mean over all sizes of images that the run has.
        saved_s: seconds less for each step of the first epochs, in which only the classifier learns.
        epoch_s: seconds after each epoch, for scores and the checkpoint.
        finish_s: seconds after the last, for the results and the page.
        warm_up_s: seconds before the first step, and before the first of all parameters.
    """

    step_s: float
    saved_s: float
    epoch_s: float
    finish_s: float
    warm_up_s: float


@dataclass(frozen=True)
class Mark:
    """A moment in training: seconds, without those of warming up, and how many steps are done."""

    training_s: float
    step: int


def fit_to_budget(job: Job, spent_s: float) -> Job:
    """The job with as many steps as fit into its `time_budget`, and its deadline; the schedule spans them.

    The time is that of everything from images in memory to the finished page: the search for the learning
    rate, training, scores, results.

    Args:
        job: with a learning rate.
        spent_s: seconds that are gone already.

    Raises:
        ConfigError: fewer than ten steps fit.
    """
    budget = job.config.train.time_budget
    assert budget is not None
    began_s = time.perf_counter()
    with memory_kept(job.device):  # as in training, which is slower without
        pace = measure_pace(job, enough_s=min(LONG_ENOUGH_S, MOST_TO_MEASURE * seconds_of(budget)))
    gone_s = spent_s + time.perf_counter() - began_s
    besides_s = gone_s + pace.warm_up_s + pace.finish_s
    # Ranks have clocks of their own; that of the first counts.
    steps = job.world.from_first(steps_within(seconds_of(budget) - besides_s, pace, job))
    if steps < FEWEST_STEPS:
        least_s = besides_s + FEWEST_STEPS * pace.step_s
        raise ConfigError(
            f"time_budget is {budget}, but ten steps of training, with all that comes before and after them, "
            f"take {math.ceil(least_s)} s.",
            "Give more time, or use smaller images (--image-size) or a narrower network (--width).",
        )
    fitted = job.with_steps(without_short_tail(steps, job.loader.steps_per_epoch))
    deadline = Deadline(began_s - spent_s + seconds_of(budget), pace.finish_s)
    return replace(fitted, deadline=deadline)


def replan(job: Job, marks: Sequence[Mark], *, now_s: float, again_s: float = 0.0) -> Job | None:
    """The job with other steps from here on, so that it meets its deadline after all; None for no change.

    How fast a machine is in its first seconds is not how fast it stays: others use it too, and it gets hot.
    So the time that training takes is looked at once more, at the end of the epoch in which half of all
    steps are done. What is left of the schedule is stretched or squeezed over the steps that still fit.

    Runs whose images change their size keep their steps, as those that are left take another time than those
    that are done.

    Args:
        job: in training; all ranks ask at the same moment.
        marks: the start of training, then the end of each epoch.
        now_s: the moment, by `time.perf_counter`.
        again_s: seconds of warming up that it takes to go on with other steps.
    """
    train, done, total = job.config.train, job.state.step, job.total_steps
    counted = marks[train.freeze_epochs :]  # the steps before were cheaper
    if (
        job.deadline is None
        or train.replanned
        or job.config.augment.resolutions
        or len(counted) < 2
        or not marks[-2].step < HALF * total <= done < total
    ):
        return None
    step_s = (counted[-1].training_s - counted[0].training_s) / (done - counted[0].step)
    left_s = job.deadline.ends_s - now_s - job.deadline.finish_s
    steps = total
    if abs(math.floor(left_s / step_s) - (total - done)) >= WORTH_IT * total:
        least = math.ceil(LEAST_LEFT * (total - done))
        left = max(least, math.floor((left_s - again_s) / step_s))
        steps = max(done + least, without_short_tail(done + left, job.loader.steps_per_epoch))
    steps = job.world.from_first(steps)
    return None if steps == total else job.with_steps(steps, replanned=f"{done}:{total}")


def without_short_tail(steps: int, per_epoch: int) -> int:
    """The steps without those of a last epoch that is hardly begun."""
    tail = steps % per_epoch
    return steps - tail if tail <= SHORT_TAIL * steps else steps


def steps_within(seconds: float, pace: Pace, job: Job) -> int:
    """How many steps of a job are done in so many seconds, the scores after each epoch included."""
    per_epoch = job.loader.steps_per_epoch
    frozen = job.config.train.freeze_epochs * per_epoch
    step_s = pace.step_s + pace.epoch_s / per_epoch
    within = math.floor(seconds / (step_s - pace.saved_s))
    return within if within <= frozen else math.floor((seconds + frozen * pace.saved_s) / step_s)


def measure_pace(job: Job, *, enough_s: float) -> Pace:
    """Measure what a run costs, on a throwaway copy of its job.

    Args:
        job: not changed.
        enough_s: how long the steps of a measurement take together, in seconds.
    """
    trial = job.throwaway(job.config.run.seed)
    step_s, warm_up_s, saved_s = _seconds_a_step(trial, enough_s), _seconds_to_warm_up(trial), 0.0
    if job.config.train.freeze_epochs:
        freeze_body(trial.state.model, trial.state.optimizer, frozen=True)
        saved_s = step_s - _seconds_a_step(trial, enough_s)
        warm_up_s += _seconds_to_warm_up(trial)
    image_s = _seconds_to_answer(trial)
    test, val = len(job.splits.test), len(job.splits.val or ())
    scored = val + (test if job.config.evaluate.score_test == "often" else 0)
    every = job.config.evaluate.score_every
    scores_s = scored * image_s / (every * job.world.size) if every else 0.0
    return Pace(
        step_s,
        max(0.0, saved_s),
        scores_s + _seconds_to_save(trial),
        PASSES * test * image_s + PAGE_S,
        warm_up_s,
    )


def _seconds_a_step(trial: Job, enough_s: float) -> float:
    """The mean over all sizes of images, each as often as the run has it, with what lies around steps."""
    loader = trial.loader
    often = Counter(loader.side_at(step) for step in range(trial.total_steps))
    step, _ = _make_step(trial)
    trial.state.model.train()
    seconds = {side: _seconds_an_image(step, trial, side, enough_s / len(often)) for side in often}
    images_a_step = loader.images_per_epoch / loader.steps_per_epoch  # the last may be smaller
    mean_s = sum(often[side] * seconds[side] for side in often) / trial.total_steps
    return AROUND_STEPS * images_a_step * mean_s


def _seconds_to_warm_up(trial: Job) -> float:
    """What a run takes that warms up after this: its code is compiled, but graphs are captured anew."""
    _, seconds = _make_step(trial)
    return seconds or 0.0


def _make_step(trial: Job) -> tuple[Step, float | None]:
    """A step, and the seconds that it took to warm up, as the run makes it."""
    config = trial.config
    return make_step(
        trial.state,
        config.train,
        trial.loader,
        precision=config.run.precision,
        seed=config.run.seed,
        compiled=config.run.compile,
    )


def _seconds_an_image(step: Step, trial: Job, side: int | None, enough_s: float) -> float:
    """Mean seconds of training on one image of a side, over steps of the run with a learning rate of 0.

    The steps follow one another as in the run, so that images in a file are read from there. A batch that is
    taken again and again would be in memory after the first time.
    """
    loader = trial.loader
    steps = [number for number in range(trial.total_steps) if loader.side_at(number) == side]
    epoch = loader.epoch(steps[0] // loader.steps_per_epoch)
    in_turn = cycle(divmod(number, loader.steps_per_epoch) for number in steps)
    taken: list[float] = []
    images: list[int] = []
    while trial.world.from_first(sum(taken) < enough_s or len(taken) < 4):
        number, index = next(in_turn)
        if number != epoch.number:
            epoch = loader.epoch(number)
        trial.state.meter.reset()
        began_s = time.perf_counter()
        step(epoch, index, 0.0)
        synchronize(trial.device)
        taken.append(time.perf_counter() - began_s)
        images.append(loader.kind(number, index).size)
    return sum(taken[1:]) / sum(images[1:])  # the first one also chooses kernels and allocates


def _seconds_to_answer(trial: Job) -> float:
    """Seconds in which the network answers one image."""
    test = trial.splits.test
    size = test.images_u8.shape[1:3]
    batch = test.take(np.arange(min(at_once(EVAL_BATCH_SIZE, size, trial.device), len(test))))
    score_on(trial.state.model, trial, batch)  # chooses kernels and allocates
    return statistics.median(_timed(trial, batch) for _ in range(ANSWERED)) / len(batch)


def _timed(trial: Job, images: ImageSet) -> float:
    """Seconds in which the network answers all these images."""
    began_s = time.perf_counter()
    score_on(trial.state.model, trial, images)
    synchronize(trial.device)
    return time.perf_counter() - began_s


def _seconds_to_save(trial: Job) -> float:
    """About the seconds that a checkpoint takes."""
    tensors = (tensor for group in trial.state.tensors().values() for tensor in group.values())
    return sum(tensor.nbytes for tensor in tensors) / SAVED_BYTES_A_S
