"""Devices, threads and memory of a process."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from velodrome.device import threads

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

# In a process of its own: what other tests have done to the memory of this one would be in the way.
MEASURE = """
import json, resource, sys, torch
from velodrome.device import memory_kept

def pages_cleared():
    '''The share of its memory that the system has to clear, for blocks of 32 MiB that come and go.'''
    def come_and_go(times):
        for _ in range(times):
            torch.empty(2**25, dtype=torch.uint8).fill_(1)

    come_and_go(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    come_and_go(20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return (after - before) * resource.getpagesize() / (20 * 2**25)

def held():
    '''Bytes of memory that this process holds now.'''
    return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
found = {'held_before': held()}
with memory_kept(torch.device(sys.argv[1])):
    found |= {'cleared_within': pages_cleared(), 'held_within': held()}
print(json.dumps(found | {"held_after": held()}))
"""


def measured(device: str, **environment: str) -> dict[str, float]:
    untuned = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURE, device],
        env=untuned | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@needs_glibc
def test_memory_is_kept_within_and_given_back_after() -> None:
    found = measured("cpu")
    assert found["cleared_within"] < 0.3
    assert found["held_within"] > found["held_before"] + 2**24
    assert found["held_after"] < found["held_within"] - 2**24


@needs_glibc
@pytest.mark.parametrize(
    ("device", "environment"), [("cuda", {}), ("cpu", {"MALLOC_TRIM_THRESHOLD_": "1000000"})]
)
def test_memory_is_left_alone_elsewhere_and_where_it_was_tuned(
    device: str, environment: dict[str, str]
) -> None:
    assert measured(device, **environment)["cleared_within"] > 0.9


def test_threads_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def fails() -> None:
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), threads(before + 1):
        fails()
    assert torch.get_num_threads() == before
