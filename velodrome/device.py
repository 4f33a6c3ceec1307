"""Which device and which precision a run uses, and how to use them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import shutil
import time
from collections.abc import Iterator
from typing import Literal, cast

import torch

from velodrome.errors import DeviceError

DeviceKind = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device or the machine has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # of the CPU


def free_memory() -> None:
    """Give back what a failed run held, so that the next one finds room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_device(wanted: str) -> torch.device:
    """The device of that name; for "auto" the fastest that is there.

    Raises:
        DeviceError: it is not to be had on this machine.
    """
    there = available_devices()
    if wanted == "auto":
        return torch.device(there[0])
    if wanted not in there:
        raise DeviceError(
            f"device is {wanted!r}, but torch {torch.__version__} finds no such device on this machine.",
            "Use --device auto, or see velodrome doctor.",
        )
    return torch.device(wanted)


def available_devices() -> list[DeviceKind]:
    """The devices of this machine, fastest first."""
    there: dict[DeviceKind, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    return [name for name, found in there.items() if found]


def device_kind(device: torch.device) -> DeviceKind:
    """The name of the device as settings know it."""
    return cast(DeviceKind, device.type)


def pick_precision(wanted: str, device: torch.device) -> Precision:
    """The precision of that name; for "auto" a half type where the device computes faster in it.

    Raises:
        DeviceError: the device cannot compute in it.
    """
    if wanted != "auto":
        if wanted == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise DeviceError(
                "precision is 'bf16', but this GPU does not compute in it.", "Use --precision fp16 or auto."
            )
        if wanted == "fp16" and device.type == "mps":
            raise DeviceError(
                "precision is 'fp16', whose gradient scaling torch does not support on mps everywhere.",
                "Use --precision fp32 or auto.",
            )
        return cast(Precision, wanted)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware (AVX512-BF16 or AMX); without, it is slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def find_compiler() -> str | None:
    """The path of the C++ compiler that torch.compile would use on the CPU."""
    names = filter(None, [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"])
    return next(filter(None, map(shutil.which, names)), None)


def check_can_compile(device: torch.device) -> None:
    """Check that torch.compile finds the C++ compiler that it needs on a CPU.

    Raises:
        DeviceError: there is none.
    """
    if device.type == "cpu" and not find_compiler():
        raise DeviceError(
            "compile is on, but torch.compile needs a C++ compiler for the CPU, and none is installed.",
            "Install one (on Debian: apt install g++), or leave out --compile.",
        )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which convolutions and matrix products compute in `precision`; weights stay float32."""
    half = HALF_TYPES.get(precision)
    return torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None)


@contextlib.contextmanager
def convolutions_tuned(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its ways to convolve when it meets a size for the first time, and keep the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let operations on the CPU use this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """Let this process keep its memory from one step to the next, where it trains on the CPU under glibc.

    Each step of training takes and frees the same large blocks. Ordinarily glibc hands every one of them back
    to the system, which has to fill it with zeros before it is used again: 14% of the time of `resnet9` on
    two cores, see benchmarks/LOG.md. Whoever has tuned glibc by environment variables keeps their settings.
    """
    libc = _glibc() if device.type == "cpu" else None
    if libc is None or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        yield
        return
    for option, value in _KEEP_MEMORY.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _GIVE_BACK_MEMORY.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


# Options of mallopt by their numbers in glibc's malloc.h: when to give free memory at the end of the heap
# back (-1: never), how much more to ask for at once, and how many blocks may lie outside of the heap.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEEP_MEMORY = {_TRIM_THRESHOLD: -1, _TOP_PAD: 64 * 2**20, _MMAP_MAX: 0}
# What glibc comes to by itself in a process with large blocks.
_GIVE_BACK_MEMORY = {_TRIM_THRESHOLD: 64 * 2**20, _TOP_PAD: 0, _MMAP_MAX: 65_536}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def matrix_speeds(device: torch.device) -> dict[str, float]:
    """Measured speed of large matrix products by precision, in GFLOP/s: the ceiling of any training."""
    size = 1024 if device.type == "cpu" else 8192
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {
        name: _matrix_speed(torch.rand(size, size, device=device).to(kind)) for name, kind in types.items()
    }


def _matrix_speed(square: torch.Tensor) -> float:
    seconds = []
    for _ in range(5):
        synchronize(square.device)
        start_s = time.perf_counter()
        square @ square
        synchronize(square.device)
        seconds.append(time.perf_counter() - start_s)
    return float(2 * square.shape[0] ** 3 / min(seconds) / 1e9)
