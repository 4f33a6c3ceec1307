"""Learning rate schedules: pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from velodrome.config import TrainSection, replanned_parts, share_of
from velodrome.data.loader import steps_in_all
from velodrome.errors import ConfigError

Anneal = Literal["linear", "cosine"]

# LRMIN is a tenth of LRMAX, the lower end of the reference recipe's range of LRMAX/10 to LRMAX/5.
LR_MAX_OVER_MIN = 10


def one_cycle(
    step: float,
    total_steps: int,
    *,
    lr_max: float,
    lr_min: float,
    lr_final: float,
    peak: float,
    anneal: Anneal = "linear",
) -> float:
    """The learning rate of `step` under the one-cycle policy (Smith & Topin, arXiv:1708.07120).

    From `lr_min` at step 0 up to `lr_max` at step `peak * total_steps - 1`, then down to `lr_final` at the
    last step. With `lr_final == lr_min` there is no annihilation. At every step it equals
    `torch.optim.lr_scheduler.OneCycleLR(max_lr=lr_max, total_steps=total_steps, pct_start=peak,
    div_factor=lr_max / lr_min, final_div_factor=lr_min / lr_final, three_phase=False)`.

    Args:
        step: from 0 to total_steps - 1.
        total_steps: steps in the whole run, at least 1.
        lr_max: the highest learning rate.
        lr_min: the learning rate of the first step.
        lr_final: the learning rate of the last step.
        peak: fraction in [0, 1] of all steps after which `lr_max` is reached.
        anneal: the shape of both slopes.
    """
    peak_step = peak * total_steps - 1
    if step <= peak_step and peak_step > 0:
        return _between(lr_min, lr_max, step / peak_step, anneal)
    # Where the peak lies before step 0, the run begins on the way down, as in torch.
    left = total_steps - 1 - peak_step
    done = (step - peak_step) / left if left > 0 else 0.0
    return _between(lr_max, lr_final, done, anneal)


def cosine(step: float, total_steps: int, *, lr_max: float, lr_final: float) -> float:
    """From `lr_max` at step 0 along half a cosine to `lr_final` at the last step (SGDR, arXiv:1608.03983)."""
    return _between(lr_max, lr_final, step / max(total_steps - 1, 1), "cosine")


def total_steps(train: TrainSection, steps_per_epoch: int) -> int:
    """Optimizer steps in the whole run: `steps`, or else those of all epochs."""
    return steps_in_all(train.epochs, steps_per_epoch, train.steps)


def steps_in_epoch(train: TrainSection, epoch: int, steps_per_epoch: int) -> int:
    """Optimizer steps in an epoch, counted from 0; the last one may be cut short by `steps`."""
    return max(0, min(steps_per_epoch, total_steps(train, steps_per_epoch) - epoch * steps_per_epoch))


def cut_short(train: TrainSection, steps_per_epoch: int) -> TrainSection:
    """The section without those epochs that its `steps` do not reach.

    Raises:
        ConfigError: all epochs together have fewer steps.
    """
    in_all = train.epochs * steps_per_epoch
    if train.steps is None:
        return train
    if train.steps > in_all:
        raise ConfigError(
            f"steps is {train.steps}, but {train.epochs} epochs have {in_all}.",
            f"Use --steps {in_all} or fewer, or more --epochs.",
        )
    return replace(train, epochs=-(-train.steps // steps_per_epoch))


def make_schedule(train: TrainSection, steps_per_epoch: int) -> Callable[[int], float]:
    """The schedule of a section in which no learning rate is "auto" any more: step -> learning rate.

    It spans `schedule_epochs`, or else all epochs, or their first `steps`; every step after that has the
    learning rate of its last. Where `replanned` says that it was one of other steps at first, what was left
    of that is stretched or squeezed over the steps that are left now.

    Raises:
        ConfigError: a learning rate is still "auto".
    """
    span = steps_in_all(train.schedule_epochs or train.epochs, steps_per_epoch, train.steps)
    if train.replanned is None:
        shape = squeeze_schedule(train, span)
        return lambda step: shape(min(step, span - 1))
    done, planned = replanned_parts(train.replanned)
    first_shape = squeeze_schedule(train, planned)

    def lr_at(step: int) -> float:
        if step < done:
            return first_shape(step)
        share = (min(step, span - 1) - (done - 1)) / max(1, span - done)
        return first_shape(done - 1 + share * (planned - done))

    return lr_at


def squeeze_schedule(train: TrainSection, total_steps: int) -> Callable[[float], float]:
    """The whole schedule of a section within so many steps: step from 0 to total_steps - 1 -> learning rate.

    Between two steps it is between their learning rates.

    Raises:
        ConfigError: a learning rate is still "auto".
    """
    lr_max, lr_min, lr_final = _number(train.lr), _number(train.lr_min), _number(train.lr_final)
    if train.schedule == "constant":
        return lambda _step: lr_max
    moving = max(1, round(total_steps * (1 - train.flat_end)))  # steps; the others keep lr_final
    peak = min(1.0, train.peak * (total_steps / moving))

    def lr_at(step: float) -> float:
        if step > moving - 1:
            return lr_final
        if train.schedule == "cosine":
            return cosine(step, moving, lr_max=lr_max, lr_final=lr_final)
        return one_cycle(
            step,
            moving,
            lr_max=lr_max,
            lr_min=lr_min,
            lr_final=lr_final,
            peak=peak,
            anneal=train.anneal,
        )

    return lr_at


def extend(train: TrainSection, epochs: int) -> TrainSection:
    """The section with more epochs, which leave the schedule of those before them as it was.

    They keep the learning rate with which the schedule ends.

    Raises:
        ConfigError: `epochs` are fewer than there are, the last one is cut short by `steps`, or the schedule
            ends at 0, where nothing is learned.
    """
    if train.steps is not None and epochs > train.epochs:
        raise ConfigError(
            f"epochs is {epochs}, but the run ends within epoch {train.epochs}, after {train.steps} steps.",
            "Start another run, from its weights with --init.",
        )
    if epochs < train.epochs:
        raise ConfigError(
            f"epochs is {epochs}, but the run has {train.epochs}, and can only be given more.",
            "Stop a run earlier with Ctrl-C, or start another with fewer --epochs.",
        )
    if epochs == train.epochs:
        return train
    extended = replace(train, epochs=epochs, schedule_epochs=train.schedule_epochs or train.epochs)
    if make_schedule(extended, steps_per_epoch=1)(epochs - 1) == 0:
        raise ConfigError(
            "The learning rate of this run ends at 0, so that more epochs would change nothing.",
            "Train with --lr-final above 0 to be able to go on.",
        )
    return extended


def resolve_lr(train: TrainSection, lr: float | None = None) -> TrainSection:
    """The section with a number in place of every learning rate that is "auto".

    Args:
        train: with or without LRMAX.
        lr: LRMAX where the section has none; without either, everything stays as it is.
    """
    lr_max = lr if train.lr == "auto" else train.lr
    if lr_max is None:
        return train
    lr_min = _of(lr_max, train.lr_min, auto=lr_max / LR_MAX_OVER_MIN)
    lr_final = _of(lr_max, train.lr_final, auto=lr_min)
    return replace(train, lr=lr_max, lr_min=lr_min, lr_final=lr_final)


def _between(start: float, end: float, done: float, anneal: Anneal) -> float:
    """The value after the share `done` of the way from `start` to `end`."""
    if anneal == "cosine":
        return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * done))
    return start + (end - start) * done


def _of(lr_max: float, lr: float | str, *, auto: float) -> float:
    """A learning rate that is a number, "auto", or a percentage of LRMAX."""
    if isinstance(lr, str):
        return auto if lr == "auto" else lr_max * share_of(lr)
    return lr


def _number(lr: float | str) -> float:
    if isinstance(lr, str):
        raise ConfigError(f"A learning rate is still {lr!r}.", "Resolve it before the schedule is made.")
    return lr
