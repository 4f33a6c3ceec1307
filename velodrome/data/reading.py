"""Batches of images in a file, read while the batch before is in use."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from velodrome.data.imageset import MappedImages
from velodrome.data.streams import to_device


class Reader:
    """Reads images and sends them to a device, with a thread of its own for those that will come next.

    Args:
        images: to read.
        device: where they are needed.
    """

    def __init__(self, images: MappedImages, device: torch.device) -> None:
        self.images, self.device = images, device
        self._thread = ThreadPoolExecutor(1, "velodrome-reader")
        self._next: tuple[NDArray[np.int64], Future[Tensor]] | None = None

    def read(self, numbers: NDArray[np.int64], following: NDArray[np.int64] | None = None) -> Tensor:
        """Images on the device, where they need not have arrived yet: (B, H, W, 3) uint8.

        Args:
            numbers: (B,) int64, of the images.
            following: of those that will be asked for next, if that is known; no more than a guess.
        """
        expected, self._next = self._next, None
        if expected is not None and np.array_equal(expected[0], numbers):
            on_host = expected[1].result()
        else:
            on_host = self._copy(numbers)
        if following is not None:
            self._next = following, self._thread.submit(self._copy, following)
        return to_device(on_host, self.device)

    def _copy(self, numbers: NDArray[np.int64]) -> Tensor:
        images_u8 = torch.from_numpy(self.images[numbers])
        # From pinned memory a GPU fetches them by itself, while the host goes on.
        return images_u8.pin_memory() if self.device.type == "cuda" else images_u8
