"""One run of cifar10-airbench's airbench94_muon.py on the CPU, to be timed beside `speed94`.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python benchmarks/airbench_on_cpu.py cifar10-airbench/airbench94_muon.py --data-root DIR --seed 0

The script itself is read from where it was downloaded. Exchanged are the device, the half type (bfloat16,
which CPUs multiply fast, for float16, which they do not), the clock, 200 runs for one, and the run that
warms up compiled kernels for none. Without --compile its torch.compile does nothing; with it, the first steps
pay for the compiler. The last line holds the accuracy, and the seconds by the script's own clock: whitening,
training and the final predictions with test-time augmentation, without the scores between epochs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from velodrome.data.cifar import load_cifar
from velodrome.data.sources import resolve_data_root

# What stands in the script and what takes its place; each must be there.
EXCHANGED = {
    'torch.device("cuda")': 'torch.device("cpu")',
    ".cuda()": "",
    ".half()": ".bfloat16()",
    'main("warmup", model)': "None",
    "range(200)": "range(1)",
}


class Event:
    """What the script uses of torch.cuda.Event, by the clock of the CPU."""

    def __init__(self, **_: bool) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        """Note the time."""
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to `end`."""
        return 1000 * (end.seconds - self.seconds)


def main(arguments: Sequence[str]) -> int:
    """Run the script once, in an empty folder."""
    parser = argparse.ArgumentParser(description="airbench94_muon.py on the CPU; see the docstring.")
    parser.add_argument("script", type=Path, help="airbench94_muon.py as it was downloaded")
    parser.add_argument("--data-root", type=Path, help="as in velodrome train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="keep its torch.compile")
    options = parser.parse_args(arguments)
    source = exchanged(options.script.read_text())
    data_root = resolve_data_root(options.data_root).absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_images(data_root)
        Path("script.py").write_text(source)
        sys.argv = ["script.py"]
        run(source, seed=options.seed, compiled=options.compile)
        os.chdir("/")
    return 0


def exchanged(source: str) -> str:
    """The script for the CPU."""
    for before, after in EXCHANGED.items():
        if before not in source:
            raise SystemExit(f"This is another script: it has no {before}")
        source = source.replace(before, after)
    return source


def write_images(data_root: Path) -> None:
    """The files that the script makes with torchvision where they are missing."""
    Path("cifar10").mkdir()
    for name, images in zip(("train", "test"), load_cifar("cifar10", data_root, progress=False), strict=True):
        content = {
            "images": torch.from_numpy(images.images_u8),
            "labels": torch.from_numpy(images.labels),
            "classes": list(images.classes),
        }
        torch.save(content, f"cifar10/{name}.pt")


def run(source: str, *, seed: int, compiled: bool) -> None:
    """Execute the script, and print what it found in one line."""
    torch.cuda.Event = Event
    torch.cuda.synchronize = lambda: None
    if not compiled:
        torch.compile = lambda function=None, **_: function if function else lambda f: f
        nn.Module.compile = lambda *_, **__: None
    torch.manual_seed(seed)
    names = {"__name__": "__main__"}
    measured: list[float] = []
    record_time = Event.elapsed_time

    def elapsed_time(start: Event, end: Event) -> float:
        measured.append(record_time(start, end))
        return measured[-1]

    Event.elapsed_time = elapsed_time
    exec(compile(source, "script.py", "exec"), names)
    print(f"accuracy {float(names['accs'].mean()):.4f} in {sum(measured) / 1000:.1f} s")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
