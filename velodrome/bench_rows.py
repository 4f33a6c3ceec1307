"""The rows of a bench: what was measured in each run, and which file holds it. Never imports torch."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velodrome.run.folder import RunFolder, number


class BenchFolder:
    """A bench folder and the names of the files in it; an ordinary run folder for each seed lies there too.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "bench.json"
        self.table = path / "bench.md"
        self.settings = path / "settings.yaml"

    def run(self, seed: int) -> RunFolder:
        """The run folder of a seed."""
        return RunFolder(self.path / f"seed-{seed}")

    def log(self, seed: int) -> Path:
        """What our command printed in the run of a seed, where it was run as a command."""
        return self.path / f"seed-{seed}.log"

    def rival_log(self, seed: int) -> Path:
        """What the other program printed when it was run beside a seed."""
        return self.path / f"rival-{seed}.log"


@dataclass(frozen=True)
class OwnRun:
    """The measurements of one of our runs; None where something is not known.

    Attributes:
        seed: of the run.
        accuracy: share in [0, 1] of the test images that were recognised.
        accuracy_tta: the same with test-time augmentation, the one that counts.
        train_s: seconds of training.
        predict_s: seconds for the final answers, with test-time augmentation.
        train_pflop: 10^15 floating point operations in training.
        ceiling_gflops: speed of matrix products, the better of right before and right after the run.
        wall_s: seconds from the start to the end of the command, where it was run as one.
        prepare_s: seconds for the constants of normalisation, and images to the device.
        error: why it failed, None where it did not.
    """

    seed: int
    accuracy: float | None = None
    accuracy_tta: float | None = None
    train_s: float | None = None
    predict_s: float | None = None
    train_pflop: float | None = None
    ceiling_gflops: float | None = None
    wall_s: float | None = None
    prepare_s: float | None = None
    error: str | None = None

    @property
    def time_s(self) -> float | None:
        """Seconds from data in memory to the final answers."""
        return None if self.train_s is None or self.predict_s is None else self.train_s + self.predict_s

    @property
    def dawnbench_s(self) -> float | None:
        """Seconds by the rules of DAWNBench: preparation and training, without the final answers."""
        return None if self.prepare_s is None or self.train_s is None else self.prepare_s + self.train_s

    @property
    def gflops(self) -> float | None:
        """10^9 floating point operations a second, in training."""
        return self.train_pflop * 1e6 / self.train_s if self.train_pflop and self.train_s else None

    @property
    def ceiling_share(self) -> float | None:
        """That speed as a share of the ceiling."""
        return self.gflops / self.ceiling_gflops if self.gflops and self.ceiling_gflops else None

    def to_dict(self) -> dict[str, Any]:
        """The row in bench.json, with what follows from the measurements."""
        derived = ("time_s", "dawnbench_s", "gflops", "ceiling_share")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True)
class RivalRun:
    """The measurements of one run of the other program.

    Attributes:
        seed: of our run that it was run beside; the other program does not know of it.
        exit_code: 0 where it succeeded.
        wall_s: seconds from its start to its end.
        accuracy: share in [0, 1], as it printed it; None where that is not known.
        output_end: the last lines that it printed, where it failed.
    """

    seed: int
    exit_code: int
    wall_s: float
    accuracy: float | None = None
    output_end: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row in bench.json."""
        return dataclasses.asdict(self)


def read_run(folder: RunFolder, seed: int, wall_s: float | None = None) -> OwnRun:
    """The row of a finished run: the figures in its result.json, and the seconds measured from outside.

    Raises:
        RunError: result.json is damaged.
    """
    result = folder.read_json(folder.result) or {}
    return OwnRun(
        seed,
        accuracy=number(result.get("test_accuracy")),
        accuracy_tta=number(result.get("test_accuracy_tta")),
        train_s=number(result.get("train_seconds")),
        predict_s=number(result.get("predict_seconds")),
        train_pflop=number(result.get("train_pflop")),
        wall_s=wall_s,
        prepare_s=number(result.get("prepare_seconds")),
    )


def accuracy_in(output: str, pattern: re.Pattern[str] | None) -> float | None:
    """The last accuracy in what a program printed, as a share in [0, 1]; None where there is none.

    Args:
        output: of the program.
        pattern: with one group, a number: a share up to 1, a percentage above.
    """
    found = pattern.findall(output) if pattern else []
    try:
        value = float(found[-1])
    except (IndexError, ValueError):
        return None
    share = value / 100 if value > 1 else value
    return share if math.isfinite(share) and 0 <= share <= 1 else None
