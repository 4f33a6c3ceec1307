"""Loops in plain PyTorch: as tutorials have them, and as somebody writes them who knows the CPU."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from contestants import Contestant, Watch, follow, new_network, no_workers_left
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Dataset

from velodrome.errors import DeviceError
from velodrome.job import Job

Loop = Callable[[nn.Module, DataLoader, torch.optim.Optimizer, LRScheduler, torch.device], Iterator[object]]


def plain(job: Job, workers: int) -> Contestant:
    """What people write: torch's DataLoader, torchvision's transforms of single PIL images, all in float32.

    The network is velodrome's own ResNet9, in torch's ordinary layout (NCHW). So the comparison is one of
    training loops, not of networks; pooling before batch norm, as it does, is the cheaper order already.

    Args:
        job: settings and images; its own network and loader are not used.
        workers: processes that prepare batches. People write 2 on a machine with two cores; 0 makes the
            batches between the steps, where the loop can use both cores for the network.
    """
    network = new_network(job).to(memory_format=torch.contiguous_format)
    loader = torch_loader(job, workers)
    return loop_contestant(f"plain ({workers} workers)", job, network, loader, notebook_loop)


def informed(job: Job, workers: int) -> Contestant:
    """The same in bf16 under autocast, with channels last, a fused optimizer and no reading of the loss.

    Args:
        job: settings and images; its own network and loader are not used.
        workers: as for `plain`.
    """
    network, loader = new_network(job), torch_loader(job, workers)
    return loop_contestant(f"informed ({workers} workers)", job, network, loader, informed_loop, fused=True)


def loop_contestant(
    name: str, job: Job, network: nn.Module, loader: DataLoader, loop: Loop, *, fused: bool = False
) -> Contestant:
    """A contestant that trains by a loop over one epoch.

    In a block, workers are as people have them: the steps before the clock starts fill the queue, and from
    then on each step that takes a batch makes them prepare another. Where they cannot keep up, the clock
    starts with some batches that were prepared outside of it, which is to the advantage of the contestant.
    """

    def train(watch: Watch) -> None:
        optimizer, scheduler = sgd_in_one_cycle(network, job, len(loader), fused=fused)
        with no_workers_left():
            watch.begin()
            for _ in range(job.config.train.epochs):
                with contextlib.closing(loop(network, loader, optimizer, scheduler, job.device)) as steps:
                    if follow(steps, watch):
                        return
                watch.epoch_done(network)

    return Contestant(name, train)


def torch_loader(job: Job, workers: int) -> DataLoader:
    """Torch's loader of the augmented training images.

    Raises:
        DeviceError: torchvision cannot be imported.
    """
    return DataLoader(
        pil_images(job),
        batch_size=job.config.train.batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=job.device.type == "cuda",
    )


def sgd_in_one_cycle(
    network: nn.Module, job: Job, steps_per_epoch: int, *, fused: bool = False
) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """SGD with Nesterov momentum, and torch's one cycle with its defaults up to the job's LRMAX."""
    train = job.config.train
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused
    )
    total_steps = train.epochs * steps_per_epoch
    return optimizer, OneCycleLR(optimizer, max_lr=float(train.lr), total_steps=total_steps)


def notebook_loop(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
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


def informed_loop(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    device: torch.device,
) -> Iterator[Tensor]:
    """One epoch in bf16, with channels last; yields the loss of each step."""
    model.train()
    for images, labels in loader:
        inputs = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        targets = labels.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        yield loss.detach()


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
