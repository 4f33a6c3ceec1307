"""One of several ranks: what `velodrome.distributed` promises, done by torch.distributed.

Gradients go by gloo between CPUs and by NCCL between GPUs; what the hosts agree on goes by gloo, so that no
host has to wait for its GPU to talk, and notices at once that another process has ended.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import itertools
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

import velodrome
from velodrome.distributed import TIMEOUT, Place, T, World
from velodrome.errors import (
    ConfigError,
    DeviceError,
    OtherRankError,
    TrainingError,
    VelodromeError,
    VelodromeWarning,
)

# A process may meet the others several times, one after another: each time under a name of its own.
_MEETINGS = itertools.count()
# What the messages of gloo and NCCL have in common, by which they are told from faults of ours.
_OF_COMMUNICATION = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


@contextlib.contextmanager
def joined(place: Place, device: torch.device, timeout_s: float) -> Iterator[World]:
    """The ranks of a run, met at the beginning and left at the end; see `distributed.join`.

    Args:
        place: of this process.
        device: on which it trains; of a kind with several, its `local_rank` says which is its own.
        timeout_s: how long to wait for the others at any point, in seconds.
    """
    _take_device(place, device)
    timeout = datetime.timedelta(seconds=timeout_s)
    on_gpu = device.type == "cuda"
    with _explained(timeout_s):
        store = PrefixStore(f"velodrome/{next(_MEETINGS)}", _meeting_point(place, timeout))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, rank=place.rank, world_size=place.size, timeout=timeout
        )
    try:
        with _explained(timeout_s), warnings.catch_warnings():
            if place.rank > 0:
                warnings.simplefilter("ignore", VelodromeWarning)  # the first rank says it
            # Typed differently from one version of torch to the next.
            hosts: Any = dist.new_group(backend="gloo", timeout=timeout) if on_gpu else None
            world = Ranks(place, device, hosts, timeout_s)
            versions = {"torch": str(torch.__version__), "numpy": np.__version__}
            world.check_same({"velodrome": velodrome.__version__, **versions})
            yield world
    except BaseException:
        # As soon as one rank has ended, torchrun sends SIGTERM to the others; they have a last word to say.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        # Networks that were trained hold on to the group in cycles. Its threads must have ended before Python
        # does, or they may end the process as if it had crashed.
        gc.collect()
        dist.destroy_process_group()


def _take_device(place: Place, device: torch.device) -> None:
    """Make the GPU with the number of the local rank the one that "cuda" means."""
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if place.local_rank >= there:
            raise DeviceError(
                f"This is local rank {place.local_rank}, but this machine has {there} GPUs.",
                f"Use --nproc-per-node {there}, or --device cpu.",
            )
        torch.cuda.set_device(place.local_rank)
    elif device.type != "cpu":
        raise DeviceError(
            f"There are {place.size} ranks, but on {device.type} there can be only one.",
            "Train without torchrun, or use --device cpu.",
        )


@functools.cache
def _meeting_point(place: Place, timeout: datetime.timedelta) -> Store:
    """The store through which ranks find one another; the first rank, or torchrun, keeps it for good."""
    store: Store
    store, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=timeout))
    return store


@contextlib.contextmanager
def _explained(timeout_s: float) -> Iterator[None]:
    """Tell in plain words that another rank has gone."""
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        is_of_communication = any(sign in words.lower() for sign in _OF_COMMUNICATION)
        if not (is_of_communication or isinstance(error, dist.DistError)):
            raise
        if "timed out" in words.lower() or "timeout" in words.lower():
            raise TrainingError(
                f"Another rank has not answered for {timeout_s:g} s.",
                f"Look at what the other ranks say. {TIMEOUT}=1h in the environment makes ranks wait longer.",
            ) from error
        raise TrainingError(
            "Another rank has ended, and training cannot go on without it.",
            "Look at what the other ranks say, then go on from the last checkpoint: velodrome resume.",
        ) from error


class Ranks(World):
    """One of several ranks.

    Args:
        place: of this process.
        device: on which it trains.
        hosts: the gloo group of all ranks; None where that is the default group.
        timeout_s: how long to wait for the others, in seconds.
    """

    def __init__(
        self, place: Place, device: torch.device, hosts: dist.ProcessGroup | None, timeout_s: float
    ) -> None:
        super().__init__(place)
        self._device, self._hosts, self._timeout_s = device, hosts, timeout_s

    def first(self, work: Callable[[], T]) -> T:
        """Do something on the first rank alone."""
        found: list[T] = []
        self._carry_out((lambda: found.append(work())) if self.is_first else lambda: None)
        sent: list[T | None] = [found[0] if self.is_first else None]
        dist.broadcast_object_list(sent, src=0, group=self._hosts, device=torch.device("cpu"))
        result: T = sent[0]  # type: ignore[assignment]
        return result

    def together(self, work: Callable[[], T]) -> T:
        """Do something on every rank, and go on only if it worked on all of them."""
        found: list[T] = []
        self._carry_out(lambda: found.append(work()))
        return found[0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do something on the first rank of each machine, then on the others."""
        found: list[T] = []
        for its_turn in (self.local_rank == 0, self.local_rank != 0):
            self._carry_out((lambda: found.append(work())) if its_turn else lambda: None)
        return found[0]

    def _carry_out(self, work: Callable[[], None]) -> None:
        """Do something, and tell the others whether it worked."""
        own: VelodromeError | None = None
        try:
            work()
        except VelodromeError as error:
            own = error
        told = self.gather(own and (own.problem, own.remedy, own.exit_code))
        if own:
            raise own
        for rank, words in enumerate(told):
            if words:
                raise OtherRankError(rank, *words)

    def from_first(self, value: T) -> T:
        """The value that the first rank has."""
        return self.first(lambda: value)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self._hosts)
        return values

    def highest(self, values: Sequence[int]) -> list[int]:
        """The highest value that a rank has at each place."""
        of_all = torch.tensor(values)
        dist.all_reduce(of_all, dist.ReduceOp.MAX, group=self._hosts)
        return [int(value) for value in of_all]

    def check_same(self, values: Mapping[str, object]) -> None:
        """Check that all ranks have the same values."""
        expected, *others = self.gather(dict(values))
        for rank, theirs in enumerate(others, 1):
            for key in {**expected, **theirs}:
                if expected.get(key) != theirs.get(key):
                    raise ConfigError(
                        f"Rank {rank} has {key} {theirs.get(key)}, but rank 0 has {expected.get(key)}.",
                        "Start all ranks with the same command, the same data and the same packages.",
                    )

    def wait(self) -> None:
        """Wait until all ranks are here."""
        dist.barrier(group=self._hosts)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in its place."""
        dist.all_reduce(values)
        return values

    def parallel(self, model: nn.Module) -> nn.Module:
        """The network such that a backward pass leaves the mean of the gradients of all ranks."""
        with warnings.catch_warnings():
            # Its successor, forward_sync_buffers, is not in the oldest torch that will do.
            warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=[self.local_rank] if self._device.type == "cuda" else None,
                broadcast_buffers=False,  # each rank has running statistics of its own
                gradient_as_bucket_view=True,
                # Gradients leave in pieces of so many MiB while the backward pass goes on. In pieces of 25,
                # as torch has them, two thirds of those of ResNet9 wait for its end; in these, a tenth.
                bucket_cap_mb=4,
            )

    @torch.no_grad()
    def average_buffers(self, model: nn.Module) -> None:
        """Give the buffers of the network their mean over all ranks."""
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if not buffers:
            return
        flat = self.sum(torch.cat([buffer.reshape(-1) for buffer in buffers])) / self.size
        for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def watched(self) -> contextlib.AbstractContextManager[None]:
        """A context that tells in plain words that another rank has gone."""
        return _explained(self._timeout_s)
