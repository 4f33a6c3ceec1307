"""What a run ran on: versions, hardware, and the state of the caller's repository."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import velodrome


def describe_environment(device: torch.device, precision: str) -> dict[str, object]:
    """Versions, device, threads, git state of the working directory, command line; all JSON values."""
    return {
        "velodrome": velodrome.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "memory_gib": memory_gib(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": device_name(device),
        "precision": precision,
        "git": git_state(),
        "command": command_line(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def command_line() -> str:
    """The command that this process carries out, without passwords in it."""
    return shlex.join(map(without_passwords, [*_program(Path(sys.argv[0])), *sys.argv[1:]]))


def without_passwords(text: str) -> str:
    """The text with *** in place of the passwords in an address, such as that of a database."""
    text = re.sub(r"(\w://[^:/@]*:).*@", r"\1***@", text, flags=re.DOTALL)
    return re.sub(r"([?&][^=&]*pass[^=&]*=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


def _program(path: Path) -> list[str]:
    """How this program is called: its name, or for a package that was run as a module, that."""
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]


def bits_depend_on() -> dict[str, object]:
    """What the last bits of a result on the CPU depend on, besides the settings; all JSON values.

    Each thread adds up a part of a sum, and torch chooses other kernels on another CPU.
    """
    return {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "cpu": cpu_name()}


def device_name(device: torch.device) -> str:
    """The product name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    """The product name of the CPU, or its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1


def memory_gib() -> float | None:
    """The machine's memory in GiB, None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):
        return None


def git_state() -> dict[str, object] | None:
    """Commit of the repository in the working directory and whether it has changes, None outside of one."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
