"""A run before its first step: settings resolved, images loaded, network and optimizer made, all checked."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from velodrome.config import (
    HUB,
    Config,
    DataSection,
    check,
    is_auto,
    is_own,
    resolution_parts,
    settings_of_training,
)
from velodrome.data.augment import normalise
from velodrome.data.imageset import ImageSet, Normalisation, Splits, channel_statistics
from velodrome.data.loader import Loader
from velodrome.data.sources import load_splits, resolve_data_root
from velodrome.device import check_can_compile, device_kind, pick_device, pick_precision, synchronize
from velodrome.distributed import ALONE, FEWEST_IMAGES, World
from velodrome.errors import ConfigError
from velodrome.evaluation.metrics import accuracy, mean_loss
from velodrome.evaluation.predict import logits_of
from velodrome.fine_tuning import start_from
from velodrome.models.build import build_model, fit_to_images, images_to_fit
from velodrome.models.summary import summarize
from velodrome.settling import settle
from velodrome.training.optim import make_optimizer
from velodrome.training.schedule import cut_short, resolve_lr, total_steps
from velodrome.training.state import Clock, Meter, TrainState


@dataclass(frozen=True)
class Deadline:
    """When a run with a time budget is to be over.

    Attributes:
        ends_s: the end, by the `time.perf_counter` of this process.
        finish_s: seconds that results and page take after the last epoch.
    """

    ends_s: float
    finish_s: float


@dataclass(frozen=True, eq=False)
class Job:
    """All that a run is made of, checked and ready, before anything is written."""

    config: Config
    device: torch.device
    splits: Splits
    normalisation: Normalisation
    loader: Loader
    state: TrainState
    prepare_s: float = 0.0  # seconds for the constants of normalisation, and images to the device
    deadline: Deadline | None = None

    def with_lr(self, lr: float) -> Job:
        """The same job with LRMAX where it was "auto", and what follows from it.

        Raises:
            ConfigError: another setting is at odds with it.
        """
        return replace(self, config=check(replace(self.config, train=resolve_lr(self.config.train, lr))))

    def with_steps(self, steps: int, replanned: str | None = None) -> Job:
        """The same job with so many steps in all, over which the schedule and the resolutions are spread.

        Args:
            steps: in all.
            replanned: as in the config, where steps have been taken by another schedule.
        """
        epochs = -(-steps // self.loader.steps_per_epoch)
        train = replace(
            self.config.train, epochs=epochs, steps=steps, schedule_epochs=None, replanned=replanned
        )
        return replace(
            self,
            config=check(replace(self.config, train=train)),
            loader=self.loader.spread_over(epochs, steps),
        )

    def throwaway(self, seed: int) -> Job:
        """A job of its own, at its start, on the same images, to be trained and forgotten."""
        config = replace(self.config, run=replace(self.config.run, seed=seed))
        loader = self.loader.with_seed(seed)
        return replace(self, config=config, loader=loader, state=_new_state(config, self.splits, loader))

    @property
    def world(self) -> World:
        """The processes that carry out the job together."""
        return self.loader.world

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return total_steps(self.config.train, self.loader.steps_per_epoch)


def resolve(config: Config) -> Config:
    """The config with all that is "auto" or left open decided for this machine, but for the learning rate.

    Raises:
        ConfigError: settings contradict one another.
        DeviceError: the device, the precision or compilation is not to be had.
    """
    device = pick_device(config.run.device)
    precision = pick_precision(config.run.precision, device)
    if config.run.compile:
        check_can_compile(device)
    settled = replace(
        config,
        data=with_absolute_paths(config.data),
        model=replace(config.model, init=config.model.init and config.model.init.absolute()),
        train=resolve_lr(config.train),
        run=replace(config.run, device=device_kind(device), precision=precision),
    )
    return check(settled)


def with_absolute_paths(data: DataSection) -> DataSection:
    """The section as it means the same from any folder."""
    if data.labels:
        data = replace(data, labels=data.labels.absolute())
    if not is_own(data.data):
        needs_root = data.data != "shapes"
        return replace(data, data_root=resolve_data_root(data.data_root).absolute()) if needs_root else data
    if data.data.startswith(HUB):
        return data
    path = Path(data.data).expanduser()
    # Of what is not there the name says most, as it was typed.
    return replace(data, data=str(path.absolute())) if os.path.lexists(path) else data


def prepare_together(
    config: Config, world: World, *, weights_follow: bool = False, progress: bool = True
) -> Job:
    """What `prepare` does, on all ranks, of which the first of each machine reads the images first.

    Args:
        config: as for `prepare`.
        world: all ranks.
        weights_follow: as for `prepare`.
        progress: likewise.

    Raises:
        VelodromeError: as `prepare`; or ranks have other settings or images than the first.
    """
    splits = world.in_turn(lambda: _load(resolve(config), progress))
    how = {"weights_follow": weights_follow, "progress": progress}
    job = world.together(lambda: prepare(config, splits, world=world, **how))
    if not world.is_alone:
        world.check_same(settings_of_training(job.config) | {"other images": _checksum(splits)})
    return job


def _load(config: Config, progress: bool) -> Splits:
    enlarged = config.augment.takes_parts
    return load_splits(config.data, config.run.seed, enlarged=enlarged, progress=progress)


def _checksum(splits: Splits) -> str:
    """Tells image sets apart: by the checksum that own images have, else by their pixels; and by labels."""
    crc = 0
    for images in filter(None, (splits.train, splits.val, splits.test)):
        parts = (images.labels, *([] if splits.fingerprint else [images.images_u8[:]]))
        for part in parts:
            crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
    return f"{splits.fingerprint} {crc:08x}".strip()


def prepare(
    config: Config,
    splits: Splits | None = None,
    *,
    world: World = ALONE,
    weights_follow: bool = False,
    progress: bool = True,
) -> Job:
    """Load the data, build the network, check that everything fits. Writes nothing but data for later.

    Args:
        config: with or without "auto" in it.
        splits: images to use in place of those that the config names.
        world: the processes that train together; each makes its part of every batch.
        weights_follow: the weights are about to be replaced, so that those of `init` are not needed.
        progress: show on stderr what is downloaded or prepared.

    Raises:
        VelodromeError: something does not fit, is missing, damaged or cannot be written.
    """
    config = resolve(config)
    if splits is None:
        splits = _load(config, progress)
    config = settle(config, splits)
    _check_batch(config.train.batch_size, len(splits.train))
    _check_ranks(config, world, is_new=not weights_follow)
    device = torch.device(config.run.device)
    synchronize(device)  # what a GPU takes to wake up belongs to nobody
    clock = Clock()
    clock.start()
    normalisation = channel_statistics(splits.train.images_u8)
    loader = make_loader(config, splits.train, normalisation, device, world)
    synchronize(device)
    clock.stop()
    config = replace(config, train=cut_short(config.train, loader.steps_per_epoch))
    state = _new_state(config, splits, loader, weights_follow=weights_follow)
    _check_resolutions(config, state.model)
    return Job(config, device, splits, normalisation, loader, state, clock.elapsed_s())


def make_loader(
    config: Config,
    images: ImageSet,
    normalisation: Normalisation,
    device: torch.device,
    world: World = ALONE,
) -> Loader:
    """The training batches of a config, from images that are put on the device."""
    train, side = config.train, config.data.image_size
    is_own_size = is_auto(side) or images.images_u8.shape[1] == side
    return Loader(
        images,
        normalisation,
        config.augment,
        train.batch_size,
        config.run.seed,
        device,
        train.schedule_epochs or train.epochs,
        train.drop_last,
        side=None if is_own_size else side,
        balance=train.balance,
        steps=train.steps,
        world=world,
    )


def _new_state(config: Config, splits: Splits, loader: Loader, *, weights_follow: bool = False) -> TrainState:
    """A new network with its optimizer. What is computed from images beforehand is on its clock."""
    device = loader.device
    network = build_model(
        config.model,
        classes=len(splits.train.classes),
        image_size=splits.side,
        seed=config.run.seed,
    )
    if config.train.sync_bn and not loader.world.is_alone:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call, unused-ignore]
    network = network.to(device)
    clock = Clock()
    if config.model.init and not weights_follow:
        start_from(network, config.model, splits.train.classes)
    elif wanted := images_to_fit(network):
        clock.start()
        fit_to_images(network, normalise(loader.first_images(wanted), loader.normalisation))
        synchronize(device)
        clock.stop()
    return TrainState(
        model=network,
        optimizer=make_optimizer(network, config.train, config.run.precision),
        scaler=torch.amp.GradScaler(device.type, enabled=config.run.precision == "fp16"),
        meter=Meter(loader.steps_per_epoch, device),
        clock=clock,
    )


def _check_resolutions(config: Config, network: nn.Module) -> None:
    text = config.augment.resolutions
    for side, _ in resolution_parts(text) if text else ():
        try:
            summarize(network, (3, side, side))
        except ConfigError as error:
            raise ConfigError(
                f"resolutions is {text!r}, but {config.model.model} cannot take images of {side}x{side}.",
                "Use larger sides.",
            ) from error


def _check_batch(batch_size: int, images: int) -> None:
    if batch_size > images:
        raise ConfigError(
            f"batch_size is {batch_size}, but must not be larger than the training set of {images} images.",
            f"Use --batch-size {images} or smaller.",
        )


def _check_ranks(config: Config, world: World, *, is_new: bool) -> None:
    """Check that the settings are possible with so many ranks.

    Raises:
        ConfigError: they are not.
    """
    batch, ghost, size = config.train.batch_size, config.model.ghost_batch, world.size
    if config.train.sync_bn and config.run.device != "cuda":
        raise ConfigError(
            f"sync_bn is on, but the device is {config.run.device}, and torch's SyncBatchNorm needs cuda.",
            "Leave out --sync-bn: batch norm then takes its statistics on each rank.",
        )
    if config.train.sync_bn and world.is_alone and is_new:  # one that goes on computes the same alone
        raise ConfigError(
            "sync_bn is on, but there is one process, whose batch norm sees the whole batch anyway.",
            "Leave out --sync-bn, or start several ranks with torchrun.",
        )
    if world.is_alone:
        return
    fitting = max(batch // size, FEWEST_IMAGES) * size
    remedy = f"Use --batch-size {fitting} or {fitting + size}, or another number of ranks."
    if batch % size:
        raise ConfigError(
            f"batch_size is {batch}, but must be a multiple of {size}, the number of ranks that share it.",
            remedy,
        )
    if batch < fitting:
        raise ConfigError(
            f"batch_size is {batch}, but batch norm needs {FEWEST_IMAGES} images on each of {size} ranks.",
            remedy,
        )
    if ghost is not None and ghost > batch // size:
        raise ConfigError(
            f"ghost_batch is {ghost}, but each of the {size} ranks has {batch // size} images of a batch.",
            f"Use --ghost-batch {batch // size} or smaller, fewer ranks or a larger --batch-size.",
        )


def train_pflop(job: Job, steps: int | None = None) -> float:
    """The work of the first steps, or of the whole training, in 1e15 floating point operations.

    By the usual count: two for each multiply-accumulate of convolutions and matrix products, and a backward
    pass of twice the forward pass.
    """
    own = job.splits.side
    batch, per_epoch = job.config.train.batch_size, job.loader.steps_per_epoch
    last_batch = job.loader.images_per_epoch - (per_epoch - 1) * batch
    images: Counter[int] = Counter()
    for step in range(job.total_steps if steps is None else steps):
        images[job.loader.side_at(step) or own] += last_batch if (step + 1) % per_epoch == 0 else batch
    macs = {side: summarize(job.state.model, (3, side, side)).totals.macs for side in images}
    return sum(6 * macs[side] * count for side, count in images.items()) / 1e15


def score_on(network: nn.Module, job: Job, images: ImageSet) -> tuple[float | None, float]:
    """Mean loss, None where it is not finite, and accuracy of a network on some of the job's images.

    Several ranks do it together; the buffers of their networks are made equal first.
    """
    job.world.average_buffers(network)
    logits = logits_of(
        network,
        images,
        job.normalisation,
        device=job.device,
        precision=job.config.run.precision,
        world=job.world,
    )
    labels = torch.from_numpy(images.labels)
    return mean_loss(logits, labels), accuracy(logits, labels)
