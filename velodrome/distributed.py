"""Several processes that train one network, the ranks that torchrun starts; and the one that is alone.

Whoever trains asks a `World` for its share of the work, and for what all ranks must agree on. Alone, that is
trivial, and nothing of torch.distributed is imported; `velodrome.ranks` does it for several.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from velodrome.config import seconds_of
from velodrome.errors import ConfigError, InterruptedRunError, OtherRankError, VelodromeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

# The environment variable that says how long a rank waits for the others, and what holds without it.
TIMEOUT, USUAL_TIMEOUT = "VELODROME_RANK_TIMEOUT", "10m"
# What torchrun tells each process.
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Batch norm needs more than one image.
FEWEST_IMAGES = 2


@dataclass(frozen=True)
class Place:
    """Which of the processes of a run this one is.

    Attributes:
        rank: from 0 to `size` - 1.
        size: how many processes there are.
        local_rank: from 0 on each machine; the number of the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def place_told() -> Place:
    """The place that the environment names, as torchrun sets it; that of a process alone without."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal()) or int(size) < 2:
        return Place()
    local = os.environ.get("LOCAL_RANK", "")
    return Place(int(rank), int(size), int(local) if local.isdecimal() else int(rank))


def check_takes_ranks(command: str) -> None:
    """Check that a command can be carried out by several ranks, if there are several.

    Raises:
        ConfigError: it is for one process.
    """
    if command not in ("train", "resume") and place_told().size > 1:
        raise ConfigError(
            f"velodrome {command} is for one process, but there are {place_told().size} (WORLD_SIZE).",
            "Start it without torchrun; train and resume are for several.",
        )


def is_said_elsewhere(error: VelodromeError) -> bool:
    """Whether another rank on this machine says the same, so that this one may be silent."""
    return isinstance(error, InterruptedRunError | OtherRankError) and place_told().local_rank > 0


def timeout_s() -> float:
    """Seconds that a rank waits for the others before it gives up.

    Raises:
        ConfigError: the environment variable does not hold a length of time.
    """
    text = os.environ.get(TIMEOUT, USUAL_TIMEOUT)
    try:
        return seconds_of(text)
    except ValueError:
        raise ConfigError(
            f"{TIMEOUT} is {text!r}, but must be a length of time such as 90s, 10m or 1h30m.",
            f"Leave it out for {USUAL_TIMEOUT}.",
        ) from None


class World:
    """A process that is alone, with the interface of one of several ranks.

    Every rank must call the methods below "Agreement" in the same order; each waits for all others.

    Args:
        place: of this process.
    """

    def __init__(self, place: Place = Place()) -> None:
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank

    @property
    def is_alone(self) -> bool:
        """Whether there is but one process."""
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and shows."""
        return self.rank == 0

    def part_of(self, images: int, rank: int | None = None) -> range:
        """Which of the images of a batch are a rank's.

        Parts are as even as can be, but none has less than two images, so that of a small last batch some
        ranks get nothing.

        Args:
            images: of the batch.
            rank: whose part; this rank's without.
        """
        rank = self.rank if rank is None else rank
        sharing = min(self.size, max(1, images // FEWEST_IMAGES))
        if rank >= sharing:
            return range(0)
        return range(rank * images // sharing, (rank + 1) * images // sharing)

    # Agreement.

    def first(self, work: Callable[[], T]) -> T:
        """Do something on the first rank alone; all get the result, which can be pickled.

        Raises:
            VelodromeError: it did not work; OtherRankError on the other ranks.
        """
        return work()

    def together(self, work: Callable[[], T]) -> T:
        """Do something on every rank, and go on only if it worked on all of them.

        Raises:
            VelodromeError: it did not work here; OtherRankError where it did.
        """
        return work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do something on the first rank of each machine, then on the others, which find it prepared.

        Raises:
            VelodromeError: as `together`.
        """
        return work()

    def from_first(self, value: T) -> T:
        """The value that the first rank has."""
        return value

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        return [value]

    def highest(self, values: Sequence[int]) -> list[int]:
        """The highest value that a rank has at each place."""
        return list(values)

    def check_same(self, values: Mapping[str, object]) -> None:
        """Check that all ranks have the same values.

        Raises:
            ConfigError: they have not; on all ranks, and names the first difference.
        """

    def wait(self) -> None:
        """Wait until all ranks are here."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in its place; the same bits on each."""
        return values

    def parallel(self, model: nn.Module) -> nn.Module:
        """The network such that a backward pass leaves the mean of the gradients of all ranks."""
        return model

    def average_buffers(self, model: nn.Module) -> None:
        """Give the buffers of the network, such as running statistics, their mean over all ranks."""

    def watched(self) -> contextlib.AbstractContextManager[None]:
        """A context that tells in plain words that another rank has gone, as a TrainingError."""
        return contextlib.nullcontext()


ALONE = World()


@contextlib.contextmanager
def join(device: Callable[[], torch.device]) -> Iterator[World]:
    """All processes of the run, met at the beginning and left at the end.

    Args:
        device: on which this one trains; asked only where there are several.

    Raises:
        ConfigError: the environment is not as torchrun makes it, or ranks have different versions.
        DeviceError: several ranks cannot work on the device.
        TrainingError: a rank did not come, has ended, or does not answer.
    """
    place, size = place_told(), os.environ.get("WORLD_SIZE", "")
    if place.size == 1 and not (size.isdecimal() and int(size) > 1):
        yield ALONE
        return
    missing = [name for name in TOLD if not os.environ.get(name)]
    if missing or place.rank >= place.size:
        wrong = f"{missing[0]} is not set" if missing else f"RANK is {place.rank}"
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {wrong}.",
            f"Start with torchrun, which sets {', '.join(TOLD)}; or unset WORLD_SIZE for one process.",
        )
    from velodrome.ranks import joined  # noqa: PLC0415 (torch.distributed is for several ranks only)

    with joined(place, device(), timeout_s()) as world:
        yield world
