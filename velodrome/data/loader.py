"""Batches on the device: which images, in which order, augmented how."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from velodrome.config import AugmentSection, resolution_parts
from velodrome.data import augment as aug
from velodrome.data.balancing import class_weights, draw_order
from velodrome.data.imageset import AnyImages, ImageSet, MappedImages, Normalisation
from velodrome.data.mixing import soft_labels
from velodrome.data.reading import Reader
from velodrome.data.streams import ORDER, generator, to_device
from velodrome.distributed import ALONE, World
from velodrome.errors import ConfigError

# Of the free memory of a GPU, what images may take; the rest is for the network and its activations.
MOST_OF_GPU = 0.5


class Kind(NamedTuple):
    """What batches have in common: number of images, and their side in pixels; None for the images' own."""

    size: int
    side: int | None


class Share(NamedTuple):
    """What one of several ranks has of a batch.

    Attributes:
        images: how many.
        batch: images of the whole batch.
        of_loss: weight of the mean loss over the rank's images in that over the batch, in [0, 1]; a float, or
            () float32 on the device where classes have weights.
    """

    images: int
    batch: int
    of_loss: float | Tensor


@dataclass(frozen=True, eq=False)
class Epoch:
    """The batches of one epoch; `epoch[step]` makes the batch of that step and only that.

    Of several ranks, each makes its part of a batch.

    Attributes:
        loader: whose images.
        number: of the epoch, from 0.
        order: (N,) int64 on the device, the image at each position of the epoch.
        order_on_host: the same, for images that do not lie on the device.
        tables: augmentation of the image at each position, on the device.
    """

    loader: Loader
    number: int
    order: Tensor
    order_on_host: NDArray[np.int64]
    tables: aug.Tables

    def __len__(self) -> int:
        return self.loader.steps_per_epoch

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) float32 channels_last, augmented and scaled, and their labels.

        Labels are (B,) int64; where images are mixed, (B, classes) float32, the share of each class.
        """
        return self.batch(step, self.loader.kind(self.number, step).side)

    def batch(self, step: int, side: int | None) -> tuple[Tensor, Tensor]:
        """The batch of a step, its images scaled to `side` pixels; not at all if that is None."""
        if self.tables.mixing is not None and not self.loader.world.is_alone:
            return self._part_with_partners(step, side)
        rows = self.loader.rows(step)
        picked, images = self.order[rows.start : rows.stop], self.loader.images_u8
        if isinstance(images, Reader):
            following = self._numbers(self.loader.rows(step + 1))
            images_u8 = images.read(self._numbers(rows), following if len(following) else None)
        else:
            images_u8 = images[picked]
        return self.loader.make(images_u8, picked, self.tables.rows(rows.start, rows.stop), side)

    def _numbers(self, rows: range) -> NDArray[np.int64]:
        """Which images stand at these positions."""
        return self.order_on_host[rows.start : rows.stop]

    def _part_with_partners(self, step: int, side: int | None) -> tuple[Tensor, Tensor]:
        """This rank's part of a batch whose images are mixed with those at the mirrored positions."""
        own, batch = self.loader.rows(step), self.loader.batch_rows(step)
        ends = batch.start + batch.stop
        partners = range(ends - own.stop, ends - own.start)
        # In this order each image meets its partner, as `mix` mirrors what it is given.
        rows = to_device(torch.tensor([*own, *partners]), self.order.device)
        images, labels = self.batch_of(rows, side)
        return images[: len(own)], labels[: len(own)]

    def share(self, step: int) -> Share:
        """What this rank has of the batch of a step."""
        batch = self.loader.batch_rows(step)
        part = self.loader.world.part_of(len(batch))
        if self.loader.class_weights is None:
            return Share(len(part), len(batch), len(part) / len(batch))
        weights = self._weights(batch, self.loader.kind(self.number, step).side)
        return Share(len(part), len(batch), weights[part.start : part.stop].sum() / weights.sum())

    def _weights(self, rows: range, side: int | None) -> Tensor:
        """How much each image at these positions weighs in the loss, (N,) float32."""
        assert self.loader.class_weights is not None
        labels = self.loader.labels[self.order[rows.start : rows.stop]]
        mixing = self.tables.rows(rows.start, rows.stop).mixing
        if mixing is None:
            return self.loader.class_weights[labels]
        size = self.loader.size if side is None else (side, side)
        return soft_labels(labels, mixing, self.loader.classes, *size) @ self.loader.class_weights

    def batch_of(self, rows: Tensor, side: int | None) -> tuple[Tensor, Tensor]:
        """The same of the positions `rows` (B,) int64 of the epoch, which lie on the device.

        Where images lie there too, the host need not know the rows.
        """
        picked, images = self.order[rows], self.loader.images_u8
        images_u8 = images.read(picked.cpu().numpy()) if isinstance(images, Reader) else images[picked]
        return self.loader.make(images_u8, picked, self.tables.at(rows), side)

    def take_over(self, other: Epoch) -> None:
        """Let the tensors hold the order and the tables of another epoch; they stay where they are."""
        self.order.copy_(other.order)
        self.order_on_host[:] = other.order_on_host
        self.tables.take_over(other.tables)


class Loader:
    """Training batches from images on the device or, where they are too many, in host memory or a file.

    The order and the augmentation of an epoch are a function of (seed, epoch) alone, however many ranks make
    its batches. The last batch of an epoch is kept even where it is smaller, unless `drop_last` is set.

    Args:
        images: to train on.
        normalisation: constants of the training images.
        augment: what is done to each image.
        batch_size: images a step, on all ranks together.
        seed: of the run.
        device: where batches are made; images lie there too, unless they are `MappedImages` or take more
            than half of the free memory of a GPU, which then gets each batch from the host.
        epochs: of the run, over which its `resolutions` are spread; later ones keep the last.
        drop_last: leave out the last batch of each epoch where it is smaller than the others.
        side: of training images in pixels, where they are stored in another size; else their own.
        balance: "sampling" draws rare classes as often as the others, "weights" has `class_weights`, "none"
            neither.
        steps: of the run, where its last epoch is cut short.
        world: the ranks that make the batches, each its part.

    Raises:
        ConfigError: the augmentation does not fit the size of the images, or there is nothing to mix with.
    """

    def __init__(
        self,
        images: ImageSet,
        normalisation: Normalisation,
        augment: AugmentSection,
        batch_size: int,
        seed: int,
        device: torch.device,
        epochs: int = 1,
        drop_last: bool = False,
        *,
        side: int | None = None,
        balance: str = "none",
        steps: int | None = None,
        world: World = ALONE,
    ) -> None:
        self.device = device
        self.images_u8 = _at_hand(images.images_u8, device)  # (N, H, W, 3) uint8
        self.stored_size = images.images_u8.shape[1], images.images_u8.shape[2]
        self.labels_on_host = images.labels
        self.labels = torch.from_numpy(images.labels).to(device)  # (N,) int64
        self.classes = len(images.classes)
        self.normalisation = normalisation
        self.augment = augment
        self.batch_size = batch_size
        self.seed = seed
        self.epochs = epochs
        self.drop_last = drop_last
        self.side = side
        self.balance = balance
        self.steps = steps
        self.world = world
        weights = class_weights(images.labels, self.classes) if balance == "weights" else None
        # (classes,) float32, by which the loss of each image is weighed; None where that changes nothing
        self.class_weights = None if weights is None else torch.from_numpy(weights).to(device)
        aug.check_fits(*self.size, augment)
        _check_mixing(augment, batch_size)

    def with_seed(self, seed: int) -> Loader:
        """A loader of the same images, in another order and with other augmentation."""
        other = copy.copy(self)
        other.seed = seed
        return other

    def spread_over(self, epochs: int, steps: int | None) -> Loader:
        """A loader of the same batches, whose `resolutions` are spread over other epochs and steps."""
        other = copy.copy(self)
        other.epochs, other.steps = epochs, steps
        return other

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of training images in pixels, before `resolutions`."""
        return self.stored_size if self.side is None else (self.side, self.side)

    @property
    def is_resident(self) -> bool:
        """Whether all images lie on the device."""
        return isinstance(self.images_u8, Tensor)

    @property
    def needs_host(self) -> bool:
        """Whether the host has a part in making each batch, so that a step is not the device's alone."""
        return not self.is_resident or self.augment.randaugment > 0

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        whole, left = divmod(len(self.labels), self.batch_size)
        return whole + (left > 0 and not self.drop_last)

    @property
    def images_per_epoch(self) -> int:
        """Images in all batches of an epoch."""
        return min(len(self.labels), self.steps_per_epoch * self.batch_size)

    def images_in(self, steps: int) -> int:
        """Images in the first steps of a run."""
        epochs, left = divmod(steps, self.steps_per_epoch)
        return epochs * self.images_per_epoch + left * self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps over which `resolutions` are spread."""
        return steps_in_all(self.epochs, self.steps_per_epoch, self.steps)

    def side_at(self, step: int) -> int | None:
        """Height and width in pixels of the images of a step of the run; None for their own."""
        if self.augment.resolutions is None:
            return self.side
        parts = resolution_parts(self.augment.resolutions)
        whole = sum(share for _, share in parts)
        left = step * whole / self.total_steps
        for side, share in parts:
            left -= share
            if left < 0:
                return side
        return parts[-1][0]

    def batch_rows(self, step: int) -> range:
        """The positions of an epoch that the batch of a step takes."""
        start = step * self.batch_size
        return range(start, max(start, min(start + self.batch_size, len(self.labels))))

    def rows(self, step: int) -> range:
        """Those of them whose images this process makes.

        A rank that has no part in a small batch works on that of the first rank all the same, as all ranks
        must go through the same motions; it has no share in the loss.
        """
        batch = self.batch_rows(step)
        part = self.world.part_of(len(batch)) or self.world.part_of(len(batch), rank=0)
        return batch[part.start : part.stop]

    def kind(self, epoch: int, step: int) -> Kind:
        """What kind of batch a step within an epoch has."""
        size = min(self.batch_size, len(self.labels) - step * self.batch_size)
        return Kind(size, self.side_at(epoch * self.steps_per_epoch + step))

    def kinds(self, first_step: int = 0) -> dict[Kind, int]:
        """All kinds of batches from a step of the run on, each with a step within an epoch that has as many.

        Epochs beyond those that the loader knows of have the kinds of the last.
        """
        per_epoch, last_epoch = self.steps_per_epoch, (self.total_steps - 1) // self.steps_per_epoch
        found: dict[Kind, int] = {}
        for step in range(min(first_step, last_epoch * per_epoch), self.total_steps):
            found.setdefault(self.kind(*divmod(step, per_epoch)), step % per_epoch)
        return found

    def first_images(self, n: int) -> Tensor:
        """The first n training images, or all where there are fewer, unaugmented: (n, H, W, 3) uint8."""
        if isinstance(self.images_u8, Reader):
            images_u8 = self.images_u8.read(np.arange(min(n, len(self.labels))))
        else:
            images_u8 = self.images_u8[:n]
        return images_u8 if self.side is None else aug.resize(images_u8, self.side)

    def make(
        self, images_u8: Tensor, picked: Tensor, tables: aug.Tables, side: int | None
    ) -> tuple[Tensor, Tensor]:
        """Images augmented as the tables say, and labels, as `Epoch` has them.

        Args:
            images_u8: (B, H, W, 3) uint8, as they are stored.
            picked: (B,) int64, their numbers.
            tables: of the B images.
            side: in pixels, to which they are scaled; None for not at all.
        """
        images = aug.apply(images_u8, tables, self.augment, self.normalisation, side, self.side)
        labels = self.labels[picked]
        if tables.mixing is not None:
            labels = soft_labels(labels, tables.mixing, self.classes, *images.shape[2:])
        return images, labels

    def epoch(self, epoch: int) -> Epoch:
        """The batches of an epoch, counted from 0."""
        order = draw_order(
            generator(self.seed, epoch, ORDER), self.labels_on_host, balanced=self.balance == "sampling"
        )
        tables = aug.draw_tables(len(order), *self.size, self.augment, self.seed, epoch, order)
        on_device = to_device(torch.from_numpy(order), self.device)
        return Epoch(self, epoch, on_device, order, tables.to(self.device))


def steps_in_all(epochs: int, steps_per_epoch: int, steps: int | None) -> int:
    """Optimizer steps in so many epochs, the last of which may be cut short by `steps`."""
    in_all = epochs * steps_per_epoch
    return in_all if steps is None else min(steps, in_all)


def _at_hand(images_u8: AnyImages, device: torch.device) -> Tensor | Reader:
    """Images on the device, or what sends them there batch by batch."""
    if isinstance(images_u8, MappedImages):
        return Reader(images_u8, device)
    if images_u8.nbytes > MOST_OF_GPU * free_bytes_on(device):
        return Reader(MappedImages(images_u8), device)
    return torch.from_numpy(images_u8).to(device)


def free_bytes_on(device: torch.device) -> float:
    """The free memory of a GPU of its own; infinite for devices that use that of the host, as images do."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds for tensors to come is free too.
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _check_mixing(augment: AugmentSection, batch_size: int) -> None:
    for key in ("mixup", "cutmix"):
        if getattr(augment, key) and batch_size == 1:
            raise ConfigError(
                f"{key} is {getattr(augment, key):g}, but batch_size is 1, and images are mixed with others "
                "of their batch.",
                f"Use a larger --batch-size, or --{key} 0.",
            )


def batches_in_order(
    images: ImageSet,
    normalisation: Normalisation,
    batch_size: int,
    device: torch.device,
    world: World = ALONE,
) -> Iterator[Tensor]:
    """All images once, in order and without augmentation: (B, 3, H, W) float32 channels_last.

    Of several ranks each has a batch in turn.
    """
    for start in range(world.rank * batch_size, len(images), world.size * batch_size):
        images_u8 = torch.from_numpy(images.images_u8[start : start + batch_size]).to(device)
        yield aug.normalise(images_u8, normalisation)
