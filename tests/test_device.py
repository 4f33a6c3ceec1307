"""Devices, threads and memory of this process."""

import os
import platform
import resource
from pathlib import Path

import pytest
import torch

from velodrome.device import memory_kept, threads

CPU = torch.device("cpu")
needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ),
    reason="needs a glibc that nobody has tuned",
)


def pages_cleared() -> float:
    """The share of its memory that the system has to clear, for blocks of 32 MiB that come and go."""

    def come_and_go(times: int) -> None:
        for _ in range(times):
            torch.empty(2**25, dtype=torch.uint8).fill_(1)

    come_and_go(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    come_and_go(20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return (after - before) * resource.getpagesize() / (20 * 2**25)


def memory_in_use() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@needs_glibc
def test_memory_is_kept_within_and_given_back_after() -> None:
    before = memory_in_use()
    with memory_kept(CPU):
        assert pages_cleared() < 0.3
        assert memory_in_use() > before + 2**24
    assert memory_in_use() < before + 2**24
    assert pages_cleared() > 0.9


@needs_glibc
@pytest.mark.parametrize("reason", ["another device", "tuned by hand"])
def test_memory_is_left_alone(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda") if reason == "another device" else CPU
    if reason == "tuned by hand":
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    with memory_kept(device):
        assert pages_cleared() > 0.9


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def fails() -> None:
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), threads(before + 1):
        fails()
    assert torch.get_num_threads() == before
