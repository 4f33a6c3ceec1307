"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tiny_network import BATCH, CPU, MILD, SEED, N

from velodrome.data.imageset import ImageSet, channel_statistics
from velodrome.data.loader import Loader
from velodrome.device import threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So that the same training gives the same bits."""
    with threads(1):
        yield


@pytest.fixture
def loader(coloured_images: Callable[..., ImageSet]) -> Loader:
    """Of 40 images of three colours, with mild augmentation."""
    images = coloured_images(N)
    return Loader(images, channel_statistics(images.images_u8), MILD, BATCH, SEED, CPU)
