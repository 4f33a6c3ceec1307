"""The learning rate range test: take steps while the learning rate rises, and watch the loss.

The test is by Smith (arXiv:1506.01186). What its curve says is worked out in `lr_rules`.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from velodrome.config import TrainSection
from velodrome.data.loader import Loader
from velodrome.errors import ConfigError, TrainingError
from velodrome.events import EpochDone, StepDone
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.lr_rules import Values, running_mean, smooth
from velodrome.training.state import TrainState

# An epoch of the reference recipe has 98 steps, so that the test costs less than one.
STEPS = 90
# With fewer losses than this on a curve, nothing can be told from it.
FEWEST_STEPS = 10
# The middle of the range by optimizer, and half its length in decades: below, nothing moves within a few
# steps. Adam's steps are as long as its learning rate, whatever the gradient, so it needs smaller ones.
MIDDLE = {"sgd": 0.1, "adam": 0.01, "adamw": 0.01, "muon": 0.1}
HALF_RANGE = 2.0
# A short test has a shorter range, so that it has at least this many steps in each decade.
STEPS_PER_DECADE = 8
# The test is over when the running mean of the loss is this many times its lowest value.
DIVERGED = 4.0
MEMORY = 0.8  # of that mean: the last five losses count
# How often the device is asked for the losses: often enough to stop soon, seldom enough to cost nothing.
LOOK_EVERY = 5

Ending = Literal["completed", "diverged", "not finite"]
Batch = Any


@dataclass(frozen=True, eq=False)
class Sweep:
    """The losses of a range test, up to where they say something.

    Attributes:
        lrs: (S,) float64, ascending by a constant factor.
        losses: (S,) float64, of the step with that learning rate, before it changed the weights; all finite.
        ending: how it ended. "diverged": the last loss is the first whose running mean is far above its
            lowest; "not finite": the step after the last had a loss that is not finite.
        images: that the network has answered for during the test; 0 where that is not known.
        right: of these answers that were right.
    """

    lrs: Values
    losses: Values
    ending: Ending
    images: int = 0
    right: int = 0

    @property
    def smoothed(self) -> Values:
        """The smoothed losses, (S,) float64."""
        return smooth(self.lrs, self.losses)


def usual_range(optimizer: str, steps: int) -> tuple[float, float]:
    """The learning rates of the first and the last step of a test of so many steps.

    Args:
        optimizer: "sgd", "adam", "adamw" or "muon".
        steps: fewer have a shorter range.
    """
    half = min(HALF_RANGE, (steps - 1) / STEPS_PER_DECADE / 2)
    return MIDDLE[optimizer] * 10**-half, MIDDLE[optimizer] * 10**half


def geometric(start: float, end: float, steps: int) -> Values:
    """Learning rates from `start` to `end`, each the same factor above the one before; (steps,) float64.

    Raises:
        ConfigError: `start` is not above 0, `end` not above `start`, or there are too few steps.
    """
    if not 0 < start < end < float("inf"):
        raise ConfigError(
            f"The range of learning rates is {start:g} to {end:g}, but must begin above 0 and rise.",
            "For instance 0.001 to 10.",
        )
    if steps < FEWEST_STEPS:
        raise ConfigError(
            f"steps is {steps}, but must be at least {FEWEST_STEPS}.",
            f"Give it more, for instance {STEPS}.",
        )
    return np.geomspace(start, end, steps)


def sweep_recipe(
    state: TrainState, loader: Loader, train: TrainSection, lrs: Values, *, precision: str, seed: int
) -> Iterator[Sweep]:
    """Train `state` by the loop of ordinary training while the learning rate rises.

    Args:
        state: at its start; changed in place, so use a throwaway.
        loader: training batches.
        train: the recipe's own section: optimizer, penalties, label smoothing.
        lrs: (S,) ascending, one a step.
        precision: "fp32", "bf16" or "fp16".
        seed: of the run.

    Yields:
        The curve so far, now and then; the last one is the result.
    """
    events = fit(
        state,
        loader,
        lambda step: float(lrs[min(step, len(lrs) - 1)]),
        briefly(train, len(lrs), loader.steps_per_epoch),
        precision=precision,
        seed=seed,
        score=lambda _network: NO_SCORES,
    )
    earlier: list[EpochDone] = []

    def steps() -> Iterator[None]:
        with contextlib.suppress(TrainingError):  # at the end of an epoch; the losses show it as well
            for event in events:
                if isinstance(event, EpochDone):
                    earlier.append(event)
                elif isinstance(event, StepDone):
                    yield

    def losses() -> list[float]:
        return [*(loss for epoch in earlier for loss in epoch.step_losses), *state.meter.step_losses()]

    for curve in follow(steps(), losses, lrs):
        done, per_epoch = state.meter.done, loader.images_per_epoch
        images = per_epoch * len(earlier) + int(state.meter.images[:done].sum())
        right = sum(round(per_epoch * epoch.train_acc) for epoch in earlier)
        yield replace(curve, images=images, right=right + int(state.meter.correct[:done].sum()))


def briefly(train: TrainSection, steps: int, steps_per_epoch: int) -> TrainSection:
    """The section for a trial of so many steps, to the end of the epoch in which the last one is.

    All parameters learn in it, as they do where the learning rate is highest.
    """
    return replace(train, epochs=-(-steps // steps_per_epoch), steps=None, freeze_epochs=0)


def follow(steps: Iterator[object], read: Callable[[], Sequence[float]], lrs: Values) -> Iterator[Sweep]:
    """Let a sweep take its steps until its loss diverges. Losses beyond that are dropped.

    Args:
        steps: each `next` is one step.
        read: the losses of all steps so far; waits for the device.
        lrs: (S,) of the steps.

    Yields:
        The curve so far, now and then; the last one is the result.
    """
    for number, _ in enumerate(steps, 1):
        if number % LOOK_EVERY == 0 or number == len(lrs):
            curve = cut(lrs, read())
            yield curve
            if curve.ending != "completed" or number == len(lrs):
                return
    # The loop of training has stopped by itself, which it does where a loss or a weight is not finite.
    curve = cut(lrs, read())
    yield curve if curve.ending != "completed" else replace(curve, ending="not finite")


def cut(lrs: Values, losses: Sequence[float]) -> Sweep:
    """The part of a curve that says something: up to divergence, before the first loss that is not finite.

    Args:
        lrs: (S,) ascending.
        losses: of the first steps, at most S.
    """
    finite = np.array(list(itertools.takewhile(np.isfinite, losses)))
    means = running_mean(finite, MEMORY)
    lowest = np.minimum.accumulate(means)
    # Losses may be below zero, or near it: what was gained so far counts too.
    scale = np.maximum(np.abs(lowest), 0.1 * (means[:1] - lowest))
    beyond = np.flatnonzero(means - lowest > (DIVERGED - 1) * scale)
    if len(beyond):
        end = int(beyond[0]) + 1
        return Sweep(lrs[:end], finite[:end], "diverged")
    ending: Ending = "completed" if len(finite) == len(losses) else "not finite"
    return Sweep(lrs[: len(finite)], finite, ending)


def sweep_module(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    lrs: Values,
) -> Iterator[Sweep]:
    """A range test of any network, optimizer and batches, on a copy of the first two.

    Args:
        model: any module.
        optimizer: of the module's parameters, with whatever momentum and weight decay it has; the ratio of
            the learning rates of its groups is kept, and the highest is swept.
        batches: taken from the start again when they run out, which a plain iterator cannot do.
        loss: network and batch -> loss, () with a gradient.
        lrs: (S,) ascending, one a step.

    Yields:
        The curve so far, now and then; the last one is the result. Between two of them torch's random state
        is that of the test: finish it before drawing from it.

    Raises:
        ConfigError: the batches run out.
    """
    trial, trial_optimizer = copy.deepcopy((model, optimizer))
    shares = _shares(trial_optimizer)
    losses: list[Tensor] = []

    def steps() -> Iterator[None]:
        trial.train()
        for lr, batch in zip(lrs, _endless(batches, len(lrs)), strict=False):
            for group, share in zip(trial_optimizer.param_groups, shares, strict=True):
                group["lr"] = float(lr) * share
            trial_optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                value = loss(trial, batch)
                value.backward()  # type: ignore[no-untyped-call, unused-ignore]
            trial_optimizer.step()
            losses.append(value.detach().float())
            yield

    return follow(steps(), lambda: torch.stack(losses).tolist(), lrs)


def _endless(batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
    """The batches, over and over.

    Raises:
        ConfigError: there are none, or an iterator that cannot begin again has run out.
    """
    taken = 0
    while True:
        before = taken
        for batch in batches:
            taken += 1
            yield batch
        if taken == before:
            raise ConfigError(
                f"The batches ran out after {taken} of {steps} steps.",
                "Pass what can be gone through again, as a list or a DataLoader can, or take fewer steps.",
            )


def _shares(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each group as a share of the highest; 1 where all are 0."""
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    highest = max(lrs)
    return [lr / highest if highest > 0 else 1.0 for lr in lrs]
