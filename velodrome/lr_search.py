"""Finding the learning rate: range tests on throwaway copies, and trial runs around what they suggest."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from velodrome.config import SearchSection, settings_of_training, usual_lr
from velodrome.device import memory_kept
from velodrome.errors import TrainingError, VelodromeWarning
from velodrome.events import EpochDone
from velodrome.job import Job, score_on
from velodrome.lr_finding import LRFinding, Trial
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.lr_range import (
    FEWEST_STEPS,
    STEPS,
    Batch,
    Sweep,
    briefly,
    geometric,
    sweep_module,
    sweep_recipe,
    usual_range,
)
from velodrome.training.lr_rules import Values
from velodrome.training.lr_verdict import Guessing, judge, round_to_two_digits
from velodrome.training.schedule import make_schedule, resolve_lr, squeeze_schedule

# Steps of each trial run: about an epoch of the reference recipe.
TRIAL_STEPS = 100
# A test before training may take an epoch, or this share of all steps where that is more: of small data an
# epoch shows too little.
SEARCH_SHARE = 1 / 12
# Neighbouring candidates are this factor apart; closer ones could not be told apart by so short a run.
CANDIDATES_APART = 2.0
# A trial that is judged by its training loss is judged by this last part of its steps.
JUDGED_SHARE = 0.25

Tell = Callable[[int, int, str], None]


def search_job(job: Job, search: SearchSection, tell: Tell = lambda *_: None) -> LRFinding:
    """Find LRMAX for a job. Neither the job nor torch's random state or grad mode is changed.

    Args:
        job: prepared, with or without a learning rate.
        search: how to search.
        tell: called now and then with the steps done, the steps in all, and what is being done.

    Raises:
        ConfigError: the range does not rise, or has too few steps.
    """
    began_s = time.perf_counter()
    per_epoch, seed = job.loader.steps_per_epoch, job.config.run.seed
    lrs = _lrs(job, search)
    in_all = search.repeats * len(lrs) + search.verify * TRIAL_STEPS
    sweeps: list[Sweep] = []
    trials: list[Trial] = []
    with _untouched(job.device), memory_kept(job.device):
        for repeat in range(search.repeats):
            done = repeat * len(lrs)
            for curve in _sweep(job.throwaway(seed + repeat), lrs):
                tell(done + len(curve.losses), in_all, f"range test {repeat + 1} of {search.repeats}")
            sweeps.append(curve)
        verdict = judge(
            sweeps, adaptive=job.config.train.optimizer != "sgd", guessing=guessing_on(job), batches=per_epoch
        )
        for rank, lr_max in enumerate(_candidates(verdict.lr_max, search.verify)):
            tell(search.repeats * len(lrs) + rank * TRIAL_STEPS, in_all, f"trying LRMAX {lr_max:.2g}")
            trials.append(_try(job.throwaway(seed), lr_max))
    finding = LRFinding(
        verdict,
        tuple(sweeps),
        tuple(trials),
        judged_by=_judged_by(job) if trials else "",
        about=_about(job, time.perf_counter() - began_s),
    )
    if finding.lr_max is None:
        return finding
    lr_at = make_schedule(resolve_lr(replace(job.config.train, lr="auto"), finding.lr_max), per_epoch)
    return replace(finding, schedule_lrs=tuple(map(lr_at, range(job.total_steps))), steps_per_epoch=per_epoch)


def search_before_training(job: Job, tell: Tell) -> tuple[LRFinding | None, float]:
    """LRMAX for a run, at the cost of an epoch or a twelfth of the run, and the search behind it, if any.

    Warns (VelodromeWarning) where that is too short for a test or the test finds nothing: LRMAX is then
    the usual one, so that small batches and small data, of which a test may see too little, can be trained.
    """
    # With a time budget, how long the run is follows from what the search leaves of it.
    share = 0 if job.config.train.time_budget else round(SEARCH_SHARE * job.total_steps)
    steps = min(STEPS, max(job.loader.steps_per_epoch, share))
    optimizer, batch_size = job.config.train.optimizer, job.config.train.batch_size
    lr = usual_lr(optimizer, batch_size)
    usual = f"{lr:g}, the usual one for {optimizer} and batches of {batch_size}. Choose another with --lr."
    if steps < FEWEST_STEPS:
        _warn(
            f"The learning rate is not searched for, as that takes {FEWEST_STEPS} steps, but an epoch has "
            f"{job.loader.steps_per_epoch} and all the run {job.total_steps}: LRMAX is {usual}"
        )
        return None, lr
    found = search_job(job, SearchSection(steps=steps), tell)
    if found.lr_max is None:
        _warn(
            f"The range test found no learning rate. {found.refusal} (What is in brackets are options of "
            f"velodrome lr-find, which takes more steps too.) Meanwhile LRMAX is {usual}"
        )
    return found, found.lr_max or lr


def _warn(message: str) -> None:
    warnings.warn(message, VelodromeWarning, stacklevel=3)


def search_module(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    lr_start: float = 1e-5,
    lr_end: float = 10.0,
    steps: int = STEPS,
    guessing: float | None = None,
) -> LRFinding:
    """A learning rate range test of any network, optimizer and batches.

    Works on a copy of the network and the optimizer. Afterwards the ones given, torch's random state and grad
    mode are bit for bit what they were; only batches have been taken. Nothing is written.

        def loss(model, batch):
            images, labels = batch
            return cross_entropy(model(images), labels)

        found = vd.lr_range_test(model, optimizer, loader, loss)
        found.lr_max, found.verdict.confidence

    Args:
        model: any module, on any device.
        optimizer: of the module's parameters, with whatever momentum and weight decay it has; the ratio of
            the learning rates of its groups is kept, and the highest is swept.
        batches: what `loss` takes; gone through again when they run out, which a plain iterator cannot be.
        loss: network and batch -> loss, () with a gradient.
        lr_start: of the first step, above 0.
        lr_end: of the last.
        steps: at most; at least 10.
        guessing: the loss of the best answer that does not look at the input, for instance log(10) for ten
            classes; with it, a loss that only falls to there is refused too.

    Raises:
        ConfigError: the range does not rise, there are too few steps, or the batches run out.
    """
    began_s = time.perf_counter()
    lrs = geometric(lr_start, lr_end, steps)
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    counted = _Counted(batches)
    with _untouched(device):
        *_, curve = sweep_module(model, optimizer, counted, loss, lrs)
    about = {
        "recipe": None,
        "data": None,
        "model": type(model).__name__,
        "optimizer": type(optimizer).__name__,
        "batch_size": None,
        "seconds": round(time.perf_counter() - began_s, 2),
    }
    level = None if guessing is None else Guessing(guessing)
    return LRFinding(
        judge(
            [curve], adaptive=not isinstance(optimizer, torch.optim.SGD), guessing=level, batches=counted.most
        ),
        (curve,),
        about=about,
    )


def guessing_on(job: Job) -> Guessing:
    """What the best answer gets that never looks at the image; its loss is the entropy of the targets.

    Where images are mixed it is the same, as each class has its share in as many targets.
    """
    counts = np.bincount(job.splits.train.labels, minlength=len(job.splits.train.classes))
    smoothing, balance = job.config.train.label_smoothing, job.config.train.balance
    if balance == "sampling":  # as often, whatever their number
        counts = (counts > 0).astype(np.int64)
    images, weights = counts.sum(), np.ones(len(counts))
    if balance == "weights":
        weights = images / ((counts > 0).sum() * np.maximum(counts, 1)) * (counts > 0)
    # Of each class: what it counts for in the mean of the loss, which with weights need not add up to 1.
    shares = weights * ((1 - smoothing) * counts / images + smoothing / len(counts))
    loss = -sum(share * math.log(share / shares.sum()) for share in shares if share > 0)
    return Guessing(float(loss), float(counts.max() / images))


def _judged_by(job: Job) -> str:
    if job.splits.val is not None:
        return f"mean loss on the {len(job.splits.val)} validation images after {TRIAL_STEPS} steps"
    return f"mean training loss of the last {round(JUDGED_SHARE * TRIAL_STEPS)} of {TRIAL_STEPS} steps"


def _about(job: Job, seconds: float) -> dict[str, object]:
    """On what was searched, for the record."""
    settings = settings_of_training(job.config)
    wanted = ("recipe", "optimizer", "batch_size", "seed", "precision")
    return {
        **{key: settings[key] for key in wanted},
        "data": job.splits.name,
        "seconds": round(seconds, 2),
        "settings": settings,
    }


class _Counted:
    """Batches that remember how many there are.

    Args:
        batches: to go through, again and again.
    """

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self.most = 0

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(self._batches, 1):
            self.most = max(self.most, number)
            yield batch


@contextlib.contextmanager
def _untouched(device: torch.device) -> Iterator[None]:
    """Leave torch's random state and grad mode as they were, whatever happens inside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        yield


def _lrs(job: Job, search: SearchSection) -> Values:
    """The learning rate of each step of a range test."""
    start, end = usual_range(job.config.train.optimizer, search.steps)
    return geometric(search.lr_start or start, search.lr_end or end, search.steps)


def _sweep(trial: Job, lrs: Values) -> Iterator[Sweep]:
    """The range test of a throwaway job: its curve so far, again and again."""
    return sweep_recipe(
        trial.state,
        trial.loader,
        trial.config.train,
        lrs,
        precision=trial.config.run.precision,
        seed=trial.config.run.seed,
    )


def _candidates(lr_max: float | None, count: int) -> list[float]:
    """So many candidates, as many below as above, neighbours a fixed factor apart; none without LRMAX."""
    if lr_max is None:
        return []
    return [
        round_to_two_digits(lr_max * CANDIDATES_APART ** (rank - (count - 1) / 2)) for rank in range(count)
    ]


def _try(trial: Job, lr_max: float) -> Trial:
    """Train a throwaway job briefly by its own schedule, and score it.

    The score is the loss on the validation images or, without any, that of the last training steps: they saw
    images that the network had hardly met before, as the run is so short.
    """
    state, train, per_epoch = trial.state, trial.config.train, trial.loader.steps_per_epoch
    train = resolve_lr(replace(briefly(train, TRIAL_STEPS, per_epoch), lr="auto"), lr_max)
    losses: list[float] = []
    events = fit(
        state,
        trial.loader,
        squeeze_schedule(train, TRIAL_STEPS),
        train,
        precision=trial.config.run.precision,
        seed=trial.config.run.seed,
        score=lambda _network: NO_SCORES,
    )
    try:
        for event in events:
            if isinstance(event, EpochDone):
                losses += event.step_losses
            elif state.step == TRIAL_STEPS:
                break
    except TrainingError:
        return Trial(lr_max, None)
    losses = [*losses, *state.meter.step_losses()][:TRIAL_STEPS]
    if not np.isfinite(losses).all():
        return Trial(lr_max, None)
    if trial.splits.val is not None:
        return Trial(lr_max, score_on(state.model, trial, trial.splits.val)[0])
    return Trial(lr_max, float(np.mean(losses[-round(JUDGED_SHARE * TRIAL_STEPS) :])))
