"""Images in a file that are read ahead of time."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from velodrome.data.imageset import MappedImages
from velodrome.data.reading import Reader

CPU = torch.device("cpu")


class Noted(MappedImages):
    """Images that remember in which thread which of them were read."""

    def __init__(self, images_u8: np.ndarray) -> None:
        super().__init__(images_u8)
        self.reads: list[tuple[bool, list[int]]] = []

    def __getitem__(self, index):
        self.reads.append((threading.current_thread() is threading.main_thread(), list(index)))
        return super().__getitem__(index)


@pytest.fixture
def images(random_images) -> Noted:
    return Noted(random_images(20))


def numbers(*wanted: int) -> np.ndarray:
    return np.array(wanted, np.int64)


def expect(found: torch.Tensor, images: Noted, wanted: np.ndarray) -> None:
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), MappedImages.__getitem__(images, wanted))


def test_what_was_announced_is_read_by_another_thread(images):
    reader = Reader(images, CPU)
    expect(reader.read(numbers(3, 1), numbers(4, 4)), images, numbers(3, 1))
    expect(reader.read(numbers(4, 4), numbers(7)), images, numbers(4, 4))
    expect(reader.read(numbers(7)), images, numbers(7))
    assert images.reads == [(True, [3, 1]), (False, [4, 4]), (False, [7])]


def test_a_wrong_guess_changes_nothing(images):
    reader = Reader(images, CPU)
    reader.read(numbers(0), numbers(1, 2))
    expect(reader.read(numbers(9, 8), numbers(1)), images, numbers(9, 8))
    expect(reader.read(numbers(1, 2)), images, numbers(1, 2))
    expect(reader.read(numbers(1)), images, numbers(1))


def test_what_goes_wrong_is_told_to_whoever_asks(images):
    reader = Reader(images, CPU)
    reader.read(numbers(0), numbers(99))
    with pytest.raises(IndexError):
        reader.read(numbers(99))
    expect(reader.read(numbers(5)), images, numbers(5))
