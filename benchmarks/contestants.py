"""The training loops that `throughput.py` times in turn. All train the same network on the same images.

A contestant hands out blocks: in the `with` of a block there is an iterator, and each `next` is one step.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from velodrome.device import autocast, memory_kept
from velodrome.errors import DeviceError
from velodrome.job import WATCH_S, Job
from velodrome.models.build import build_model
from velodrome.run.stopping import Every
from velodrome.training.loop import NO_SCORES, fit, raise_if_not_finite
from velodrome.training.optim import make_optimizer, set_lr
from velodrome.training.schedule import make_schedule

Steps = Iterator[object]


@dataclass(frozen=True)
class Contestant:
    """A name for the table, and what begins a block of steps."""

    name: str
    block: Callable[[], AbstractContextManager[Steps]]


def velodrome(job: Job, block_steps: int) -> Contestant:
    """The path of `velodrome train`: order, augmentation, learning rate, meters and the check of the loss.

    What is left out is what happens once an epoch: scores, the checkpoint and the row on the screen.

    Args:
        job: prepared; it is trained on from block to block.
        block_steps: steps of a block, all with a full batch: no block runs across the end of an epoch.
    """
    full_batches = len(job.splits.train) // job.config.train.batch_size
    steps = training_steps(job)

    @contextlib.contextmanager
    def block() -> Iterator[Steps]:
        with memory_kept(job.device):
            while full_batches - job.state.meter.done < block_steps:
                next(steps)  # untimed, to the start of the next epoch
            yield steps

    return Contestant("velodrome", block)


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
        if watch.is_due():
            raise_if_not_finite(state, lr_at)
        yield event


def bare(job: Job) -> Contestant:
    """Forward, backward and optimizer step on one fixed batch: the least that a step of training can do.

    Same network, layout, precision, fused optimizer and use of memory as velodrome; the batch is augmented
    once, beforehand.
    """
    network, device, precision = new_network(job), job.device, job.config.run.precision
    optimizer = make_optimizer(network, job.config.train)
    set_lr(optimizer, float(job.config.train.lr_min))
    images, labels = job.loader.epoch(0)[0]

    def forever() -> Steps:
        while True:
            with autocast(device, precision):
                logits = network(images).float()
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield loss

    steps = forever()

    @contextlib.contextmanager
    def block() -> Iterator[Steps]:
        with memory_kept(device):
            yield steps

    return Contestant("bare", block)


def plain(job: Job, workers: int) -> Contestant:
    """What people write: torch's DataLoader, torchvision's transforms of single PIL images, all in float32.

    The network is velodrome's own ResNet9, in torch's ordinary layout (NCHW). So the comparison is one of
    training loops, not of networks; pooling before batch norm, as it does, is the cheaper order already.

    Args:
        job: settings and images; its own network and loader are not used.
        workers: processes that prepare batches. People write 2 on a machine with two cores; 0 makes the
            batches between the steps, where the loop can use both cores for the network.
    """
    config, device = job.config, job.device
    network = new_network(job).to(memory_format=torch.contiguous_format)
    loader = DataLoader(
        pil_images(job), batch_size=config.train.batch_size, shuffle=True, num_workers=workers
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=float(config.train.lr), total_steps=config.train.epochs * len(loader)
    )

    @contextlib.contextmanager
    def block() -> Iterator[Steps]:
        # Workers fetch ahead: two batches each. Left alive between blocks they would take the cores from
        # the others, so each block starts its own and waits for their end. Within the block they are as
        # people have them: the steps before the clock starts fill the queue, and from then on each step
        # that takes a batch makes them prepare another. Where they cannot keep up, the clock starts with
        # some batches that were prepared outside of it, which is to the advantage of this contestant.
        steps = notebook_loop(network, loader, optimizer, scheduler, device)
        try:
            yield steps
        finally:
            steps.close()
            while multiprocessing.active_children():
                time.sleep(0.01)

    return Contestant(f"plain ({workers} workers)", block)


def notebook_loop(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> Iterator[tuple[float, float]]:
    """One epoch as in tutorials; yields the running loss and accuracy, which people show in a bar."""
    criterion = nn.CrossEntropyLoss()
    model.train()
    running_loss, correct, total = 0.0, 0, 0
    for step, (inputs, targets) in enumerate(loader, start=1):
        inputs, targets = inputs.to(device), targets.to(device)  # noqa: PLW2901 - as people write it
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()
        scheduler.step()
        running_loss += loss.item()
        _, predicted = outputs.max(1)
        total += targets.size(0)
        correct += predicted.eq(targets).sum().item()
        yield running_loss / step, correct / total


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


def pil_images(job: Job) -> PilImages:
    """The training images with the recipe's augmentation, written with torchvision's transforms.

    Raises:
        DeviceError: torchvision cannot be imported.
    """
    transforms, pil = import_torchvision()
    train, augment = job.splits.train, job.config.augment
    transform = transforms.Compose(
        [
            transforms.RandomCrop(train.images_u8.shape[1], padding=augment.crop),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(job.normalisation.mean, job.normalisation.std),
            CutOut(augment.cutout),
        ]
    )
    return PilImages(train.images_u8, train.labels.tolist(), pil.fromarray, transform)


def import_torchvision() -> tuple[Any, Any]:
    """The modules `torchvision.transforms` and `PIL.Image`.

    They are imported here, late, so that the process whose memory is measured does without them.

    Raises:
        DeviceError: torchvision cannot be imported.
    """
    try:
        return importlib.import_module("torchvision.transforms"), importlib.import_module("PIL.Image")
    # Beside a CPU build of torch, the ordinary wheel of torchvision raises RuntimeError at import.
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            "torchvision, with which the plain loop is written, cannot be imported.",
            "Install it together with the torch that it wants: pip install torch torchvision.",
        ) from error


class PilImages(Dataset):
    """The images one by one as PIL images, as `torchvision.datasets.CIFAR10` hands them to its transform."""

    def __init__(
        self,
        images_u8: NDArray[np.uint8],
        labels: Sequence[int],
        to_pil: Callable[[NDArray[np.uint8]], Any],
        transform: Callable[[Any], Tensor],
    ) -> None:
        self.images_u8, self.labels, self.to_pil, self.transform = images_u8, labels, to_pil, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.to_pil(self.images_u8[index])), self.labels[index]


class CutOut:
    """Fill one whole square of a normalised (C, H, W) image with 0, the training mean."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        y = int(torch.randint(0, height - self.size + 1, (1,)))
        x = int(torch.randint(0, width - self.size + 1, (1,)))
        image[:, y : y + self.size, x : x + self.size] = 0
        return image
