"""Batches on the device: which images, in which order, augmented how."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from velodrome.config import AugmentSection, resolution_parts
from velodrome.data import augment as aug
from velodrome.data.imageset import ImageSet, Normalisation


class Kind(NamedTuple):
    """What batches have in common: number of images, and their side in pixels; None for the images' own."""

    size: int
    side: int | None


@dataclass(frozen=True, eq=False)
class Epoch:
    """The batches of one epoch; `epoch[step]` makes the batch of that step and only that.

    Attributes:
        loader: whose images.
        number: of the epoch, from 0.
        order: (N,) int64 on the device, the image at each position of the epoch.
        tables: augmentation of the image at each position, on the device.
    """

    loader: Loader
    number: int
    order: Tensor
    tables: aug.Tables

    def __len__(self) -> int:
        return self.loader.steps_per_epoch

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) float32 channels_last, augmented and scaled, and labels (B,) int64."""
        return self.batch(step, self.loader.kind(self.number, step).side)

    def batch(self, step: int, side: int | None) -> tuple[Tensor, Tensor]:
        """The batch of a step, its images scaled to `side` pixels; not at all if that is None."""
        start = step * self.loader.batch_size
        stop = min(start + self.loader.batch_size, len(self.order))
        return self.loader.make(self.order[start:stop], self.tables.rows(start, stop), side)

    def batch_of(self, rows: Tensor, side: int | None) -> tuple[Tensor, Tensor]:
        """The same of the positions `rows` (B,) int64 of the epoch, which lie on the device."""
        return self.loader.make(self.order[rows], self.tables.at(rows), side)

    def take_over(self, other: Epoch) -> None:
        """Let the tensors hold the order and the tables of another epoch; they stay where they are."""
        self.order.copy_(other.order)
        self.tables.take_over(other.tables)


class Loader:
    """Training batches from images that lie on the device.

    The order and the augmentation of an epoch are a function of (seed, epoch) alone. The last batch of an
    epoch is kept even where it is smaller, unless `drop_last` is set.

    Args:
        images: to train on.
        normalisation: constants of the training images.
        augment: what is done to each image.
        batch_size: images a step.
        seed: of the run.
        device: where images lie and batches are made.
        epochs: of the run, over which its `resolutions` are spread; later ones keep the last.
        drop_last: leave out the last batch of each epoch where it is smaller than the others.

    Raises:
        ConfigError: the augmentation does not fit the size of the images.
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
    ) -> None:
        self.device = device
        self.images_u8 = torch.from_numpy(images.images_u8).to(device)  # (N, H, W, 3) uint8
        self.labels = torch.from_numpy(images.labels).to(device)  # (N,) int64
        self.normalisation = normalisation
        self.augment = augment
        self.batch_size = batch_size
        self.seed = seed
        self.epochs = epochs
        self.drop_last = drop_last
        _, height, width, _ = images.images_u8.shape
        aug.check_fits(height, width, augment)

    def with_seed(self, seed: int) -> Loader:
        """A loader of the same images, in another order and with other augmentation."""
        other = copy.copy(self)
        other.seed = seed
        return other

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        whole, left = divmod(len(self.labels), self.batch_size)
        return whole + (left > 0 and not self.drop_last)

    @property
    def images_per_epoch(self) -> int:
        """Images in all batches of an epoch."""
        return min(len(self.labels), self.steps_per_epoch * self.batch_size)

    def side_at(self, step: int) -> int | None:
        """Height and width in pixels of the images of a step of the run; None for their own."""
        if self.augment.resolutions is None:
            return None
        parts = resolution_parts(self.augment.resolutions)
        whole = sum(share for _, share in parts)
        left = step * whole / (self.epochs * self.steps_per_epoch)
        for side, share in parts:
            left -= share
            if left < 0:
                return side
        return parts[-1][0]

    def kind(self, epoch: int, step: int) -> Kind:
        """What kind of batch a step within an epoch has."""
        size = min(self.batch_size, len(self.labels) - step * self.batch_size)
        return Kind(size, self.side_at(epoch * self.steps_per_epoch + step))

    def kinds(self, first_step: int = 0) -> dict[Kind, int]:
        """All kinds of batches from a step of the run on, each with a step within an epoch that has as many.

        Epochs beyond those that the loader knows of have the kinds of the last.
        """
        per_epoch = self.steps_per_epoch
        first_step = min(first_step, (self.epochs - 1) * per_epoch)
        found: dict[Kind, int] = {}
        for step in range(first_step, self.epochs * per_epoch):
            found.setdefault(self.kind(*divmod(step, per_epoch)), step % per_epoch)
        return found

    def make(self, picked: Tensor, tables: aug.Tables, side: int | None) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) float32 channels_last, augmented as the tables say, and labels (B,) int64.

        Args:
            picked: (B,) int64, the images.
            tables: of the B images.
            side: in pixels, to which they are scaled; None for not at all.
        """
        images_u8 = self.images_u8[picked]
        images = aug.apply(images_u8, tables, self.augment, self.normalisation, side)
        return images, self.labels[picked]

    def epoch(self, epoch: int) -> Epoch:
        """The batches of an epoch, counted from 0."""
        n, height, width, _ = self.images_u8.shape
        order = aug.generator(self.seed, epoch, aug.ORDER).permutation(n)
        tables = aug.draw_tables(n, height, width, self.augment, self.seed, epoch, order)
        on_device = aug.to_device(torch.from_numpy(order), self.device)
        return Epoch(self, epoch, on_device, tables.to(self.device))


def batches_in_order(
    images: ImageSet, normalisation: Normalisation, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """All images once, in order and without augmentation: (B, 3, H, W) float32 channels_last."""
    for start in range(0, len(images), batch_size):
        images_u8 = torch.from_numpy(images.images_u8[start : start + batch_size]).to(device)
        yield aug.normalise(images_u8, normalisation)
