"""Trainings that the benchmarks let compete: velodrome's, and the least that a training could do.

All contestants train the same network on the same images. The loops that people use in place of velodrome are
in `contestants_torch.py` and `contestants_libraries.py`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from velodrome.device import autocast, memory_kept
from velodrome.events import WarmedUp
from velodrome.job import Job
from velodrome.models.build import build_model
from velodrome.run.stopping import Every
from velodrome.running import WATCH_S
from velodrome.training.loop import NO_SCORES, fit, raise_if_not_finite
from velodrome.training.optim import make_optimizer, set_lr
from velodrome.training.schedule import make_schedule

Steps = Iterator[object]


class Watch(Protocol):
    """Who looks on while a contestant trains, and has the time."""

    def begin(self) -> None:
        """Everything is set up; training begins now."""

    def step_done(self) -> bool:
        """A step is over. True: that was enough, training has to end here."""

    def epoch_done(self, network: nn.Module) -> None:
        """An epoch is over; after one that was cut short it may be called or not."""


@dataclass(frozen=True)
class Contestant:
    """A name for the table, and what trains until the watch has enough or all epochs are over."""

    name: str
    train: Callable[[Watch], None]


def follow(steps: Iterable[object], watch: Watch) -> bool:
    """Do one step after the other; whether the watch had enough before they came to their end."""
    return any(watch.step_done() for _ in steps)


def velodrome(job: Job, block_steps: int) -> Contestant:
    """The path of `velodrome train`: order, augmentation, learning rate, meters and the check of the loss.

    What is left out is what happens once an epoch: scores, the checkpoint and the row on the screen.

    Args:
        job: prepared; it is trained on from block to block.
        block_steps: steps of a block, all with a full batch: no block runs across the end of an epoch.
    """
    full_batches = len(job.splits.train) // job.config.train.batch_size
    steps = training_steps(job)

    def train(watch: Watch) -> None:
        with memory_kept(job.device):
            while full_batches - job.state.meter.done < block_steps:
                next(steps)  # untimed, to the start of the next epoch
            watch.begin()
            follow(steps, watch)

    return Contestant("velodrome", train)


def training_steps(job: Job) -> Steps:
    """The events of a training run without scores; with the look at the loss that `velodrome train` takes."""
    config, state = job.config, job.state
    lr_at = make_schedule(config.train, job.loader.steps_per_epoch)
    events = fit(
        state,
        job.loader,
        lr_at,
        config.train,
        precision=config.run.precision,
        seed=config.run.seed,
        score=lambda _network: NO_SCORES,
    )
    watch = Every(WATCH_S)
    for event in events:
        if isinstance(event, WarmedUp):
            continue
        if watch.is_due():
            raise_if_not_finite(state, lr_at)
        yield event


def bare(job: Job) -> Contestant:
    """Forward, backward and optimizer step on one fixed batch: the least that a step of training can do.

    Same network, layout, precision, fused optimizer and use of memory as velodrome; the batch is augmented
    once, beforehand.
    """
    steps = fixed_batch_steps(job)

    def train(watch: Watch) -> None:
        with memory_kept(job.device):
            watch.begin()
            follow(steps, watch)

    return Contestant("bare", train)


def fixed_batch_steps(job: Job) -> Iterator[Tensor]:
    """The losses of endless steps on one batch."""
    network, device, precision = new_network(job), job.device, job.config.run.precision
    optimizer = make_optimizer(network, job.config.train)
    set_lr(optimizer, float(job.config.train.lr_min))
    images, labels = job.loader.epoch(0)[0]
    while True:
        with autocast(device, precision):
            logits = network(images).float()
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss


def new_network(job: Job) -> nn.Module:
    """A network made as `prepare` makes it."""
    train = job.splits.train
    network = build_model(
        job.config.model,
        classes=len(train.classes),
        image_size=train.images_u8.shape[1],
        seed=job.config.run.seed,
    )
    return network.to(job.device)


@contextlib.contextmanager
def no_workers_left() -> Iterator[None]:
    """Wait at the end until no worker process is alive.

    Loaders fetch ahead, two batches for each worker; alive between blocks, workers would take the cores from
    the other contestants.
    """
    try:
        yield
    finally:
        while multiprocessing.active_children():
            time.sleep(0.01)
