"""Dated Markdown tables for benchmarks: figures, verdicts, and the machine that they were measured on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from velodrome.bench_results import BUSY_LOAD, table
from velodrome.config import Config
from velodrome.run.environment import describe_environment


@dataclass(frozen=True)
class Claim:
    """What should hold of the median of some values."""

    what: str
    values: Sequence[float]
    wanted: float
    or_more: bool  # else: less than `wanted`
    unit: str = ""

    @property
    def reached(self) -> bool:
        """Whether it holds."""
        middle = statistics.median(self.values)
        return middle >= self.wanted if self.or_more else middle < self.wanted

    def __str__(self) -> str:
        rule = "at least" if self.or_more else "less than"
        outcome = "reached" if self.reached else "missed"
        return f"{self.what}: {spread(self.values, self.unit)}; wanted {rule} {self.wanted:g}: {outcome}"


def heading(title: str, machine: Mapping[str, str], command: str, setting: str, load: float) -> list[str]:
    """The first lines of a dated report: where, how and with what it was measured."""
    lines = [f"## {time.strftime('%Y-%m-%d')}: {title}", "", f"`{command}`", "", setting, ""]
    if load > BUSY_LOAD:
        lines += [
            f"**The machine was busy** (load average {load:.2f} at the start): this does not count.",
            "",
        ]
    return lines + table(("machine", ""), list(machine.items()))


def ratios(speeds: Mapping[str, Sequence[float]], over: str, under: str) -> list[float]:
    """The ratio of two contestants in each round."""
    return [a / b for a, b in zip(speeds[over], speeds[under], strict=True)]


def middle_and_ends(values: Sequence[float], form: str) -> tuple[str, str, str, str]:
    """Median, minimum, maximum and number, as text."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}}", f"{low:{form}}", f"{high:{form}}", str(len(values))


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median, range and number as a phrase: "0.980 (0.970 to 0.990, n = 5)"."""
    middle, low, high, n = middle_and_ends(values, ".3f")
    return f"{middle}{unit} ({low} to {high}, n = {n})" if len(values) > 1 else f"{middle}{unit} (n = 1)"


def machine_rows(config: Config, load: float) -> dict[str, str]:
    """The machine and the versions; the commit is that of the checkout that this script lies in."""
    with contextlib.chdir(Path(__file__).parent):
        about = describe_environment(torch.device(config.run.device), config.run.precision)
    git = about["git"] or {"commit": "unknown", "dirty": False}
    return {
        **hardware_rows(about),
        "precision": str(about["precision"]),
        "torch": str(about["torch"]),
        "torchvision": version_of("torchvision"),
        "Python": str(about["python"]),
        "velodrome": git["commit"][:12] + (" with changes" if git["dirty"] else ""),
        "load average at the start": f"{load:.2f}",
    }


def hardware_rows(about: Mapping[str, object]) -> dict[str, str]:
    """The hardware in a description of the environment, as velodrome writes it to environment.json."""
    return {
        "CPU": f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads",
        "memory": f"{about['memory_gib']} GiB",
        "device": str(about["device_name"]),
    }


def version_of(package: str) -> str:
    """The installed version of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def command_line(arguments: Sequence[str]) -> str:
    """The command as it was typed, from the root of the repository."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def print_and_append(text: str, output: Path | None) -> None:
    """Show a report, and keep it where a file was named."""
    print(text)
    if output:
        with output.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}" if file.tell() else text)
