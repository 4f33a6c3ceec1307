"""Batches on the device: which images, in which order, augmented how."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from velodrome.config import AugmentSection, resolution_parts
from velodrome.data import augment as aug
from velodrome.data.imageset import ImageSet, Normalisation


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
        start = step * self.loader.batch_size
        stop = min(start + self.loader.batch_size, len(self.order))
        picked = self.order[start:stop]
        images_u8 = self.loader.images_u8[picked]
        tables = self.tables.rows(start, stop)
        side = self.loader.side_at(self.number * len(self) + step)
        images = aug.apply(images_u8, tables, self.loader.augment, self.loader.normalisation, side)
        return images, self.loader.labels[picked]


class Loader:
    """Training batches from images that lie on the device.

    The order and the augmentation of an epoch are a function of (seed, epoch) alone. The last batch of an
    epoch is kept even where it is smaller.

    Args:
        images: to train on.
        normalisation: constants of the training images.
        augment: what is done to each image.
        batch_size: images a step.
        seed: of the run.
        device: where images lie and batches are made.
        epochs: of the run, over which its `resolutions` are spread; later ones keep the last.

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
    ) -> None:
        self.images_u8 = torch.from_numpy(images.images_u8).to(device)  # (N, H, W, 3) uint8
        self.labels = torch.from_numpy(images.labels).to(device)  # (N,) int64
        self.normalisation = normalisation
        self.augment = augment
        self.batch_size = batch_size
        self.seed = seed
        self.epochs = epochs
        _, height, width, _ = images.images_u8.shape
        aug.check_fits(height, width, augment)

    def with_seed(self, seed: int) -> Loader:
        """A loader of the same images, in another order and with other augmentation."""
        other = copy.copy(self)
        other.seed = seed
        return other

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the last smaller one included."""
        return -(-len(self.labels) // self.batch_size)

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

    def epoch(self, epoch: int) -> Epoch:
        """The batches of an epoch, counted from 0."""
        n, height, width, _ = self.images_u8.shape
        device = self.images_u8.device
        order = aug.generator(self.seed, epoch, aug.ORDER).permutation(n)
        tables = aug.draw_tables(n, height, width, self.augment, self.seed, epoch, order)
        return Epoch(self, epoch, aug.to_device(torch.from_numpy(order), device), tables.to(device))


def batches_in_order(
    images: ImageSet, normalisation: Normalisation, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """All images once, in order and without augmentation: (B, 3, H, W) float32 channels_last."""
    for start in range(0, len(images), batch_size):
        images_u8 = torch.from_numpy(images.images_u8[start : start + batch_size]).to(device)
        yield aug.normalise(images_u8, normalisation)
