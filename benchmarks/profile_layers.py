"""Where the time of a training step goes, layer by layer.

    python benchmarks/profile_layers.py --data-root DIR --recipe speed94

takes steps with one batch, at the largest size of images that the recipe trains on, and prints for each layer
milliseconds forward and backward, its work, and how fast it was done, beside matrix products. Between layers
the clock is read, which is why this is for the CPU, where each operation is over before the next begins.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dated_tables as tables
from throughput import SETTINGS, at_least, in_a_folder
from torch import Tensor, nn
from torch.nn import functional as F

from velodrome.bench_results import table
from velodrome.config import Config, resolution_parts
from velodrome.device import autocast, matrix_speeds, memory_kept
from velodrome.errors import ConfigError, VelodromeError
from velodrome.job import Job, prepare, resolve
from velodrome.models.summary import summarize
from velodrome.recipes import RECIPES, by_name
from velodrome.training.optim import set_lr, skip_step_where

COLUMNS = ("layer", "forward (ms)", "backward (ms)", "share", "GFLOP", "GFLOP/s", "of the ceiling")


@dataclass
class Times:
    """Milliseconds of one layer or part of a step, one value for each step; how often its work is done."""

    passes: int = 1
    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)

    @property
    def both(self) -> float:
        """Median forward plus median backward; 0 where there is none."""
        return sum(statistics.median(values) for values in (self.forward, self.backward) if values)


class LayerClock:
    """Reads the clock before and after each layer of a network, forward and backward.

    Args:
        network: whose layers without children are timed.
        images: that it can take.
    """

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.times: dict[str, Times] = defaultdict(Times)
        self.began_s = 0.0
        layers = {name: layer for name, layer in network.named_modules() if not any(layer.children())}
        has_source = _whose_inputs_have_gradients(network, layers, images)
        for name, layer in layers.items():
            times = self.times[name]
            if getattr(layer, "inplace", False):  # torch's backward hooks allow no change in place
                layer.inplace = False
            layer.register_forward_pre_hook(self._begin)
            layer.register_forward_hook(self._end(times.forward))
            weights = [weight for weight in layer.parameters() if weight.requires_grad]
            times.passes += bool(weights) + (name in has_source)
            if name in has_source:
                layer.register_full_backward_pre_hook(self._begin)
                layer.register_full_backward_hook(self._end(times.backward))
            elif weights:  # for such layers torch's hooks of modules do not know when they end
                layer.register_forward_hook(self._begin_at_gradient)
                weights[-1].register_post_accumulate_grad_hook(self._end(times.backward))

    def _begin(self, *_: object) -> None:
        self.began_s = time.perf_counter()

    def _begin_at_gradient(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        output.register_hook(self._begin)

    def _end(self, values: list[float]) -> object:
        def note(*_: object) -> None:
            values.append(1e3 * (time.perf_counter() - self.began_s))

        return note

    def forget(self) -> None:
        """Forget all steps so far."""
        for times in self.times.values():
            times.forward.clear()
            times.backward.clear()


def _whose_inputs_have_gradients(
    network: nn.Module, layers: Mapping[str, nn.Module], images: Tensor
) -> set[str]:
    """The layers that pass gradients on to those before them."""
    found: set[str] = set()

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _layer, inputs: found.add(name) if inputs[0].requires_grad else None

    handles = [layer.register_forward_pre_hook(look(name)) for name, layer in layers.items()]
    network(images)
    for handle in handles:
        handle.remove()
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, print, append to a file. Bad input is one line on stderr and exit code 2."""
    options = parse(arguments)
    load = os.getloadavg()[0]
    try:
        config = resolve(config_of(options))
        if config.run.device != "cpu":
            raise ConfigError(
                f"device is {config.run.device}, but layers are timed on the CPU.", "Use --device cpu."
            )
        job = prepare(config)
        with memory_kept(job.device):
            lines = time_layers(job, options.warmup, options.steps)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    side = side_of(config) or job.splits.train.images_u8.shape[1]
    setting = f"`{config.recipe}` at {side} pixels, batch {config.train.batch_size}; "
    setting += f"median of {options.steps} steps after {options.warmup}."
    title, command = "where the time of a step goes, by layer", tables.command_line(arguments)
    head = tables.heading(title, tables.machine_rows(config, load), command, setting, load)
    tables.print_and_append("\n".join([*head, *lines]), options.output)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time of a training step by layer.")
    for key in SETTINGS:
        parser.add_argument(f"--{key.replace('_', '-')}", help="as in velodrome train")
    parser.add_argument("--recipe", choices=RECIPES, default="speed94")
    parser.add_argument("--steps", type=at_least(1), default=10, help="that are timed")
    parser.add_argument("--warmup", type=at_least(1), default=3, help="steps before that")
    parser.add_argument("--output", type=in_a_folder, help="Markdown file to which the table is appended")
    return parser.parse_args(arguments)


def config_of(options: argparse.Namespace) -> Config:
    """The recipe with the settings of the command line.

    Raises:
        ConfigError: a value breaks its rule.
    """
    given = {key: getattr(options, key) for key in SETTINGS}
    settings = {key: value for key, value in given.items() if value is not None}
    return by_name(options.recipe)(**{"lr": 0.1, "lr_min": "auto", **settings})


def side_of(config: Config) -> int | None:
    """The largest side of images in training, None for that of the data."""
    text = config.augment.resolutions
    return max(side for side, _ in resolution_parts(text)) if text else None


def time_layers(job: Job, warmup: int, steps: int) -> list[str]:
    """Steps with one batch, as a table in Markdown."""
    network, optimizer, precision = job.state.model.train(), job.state.optimizer, job.config.run.precision
    side = side_of(job.config)
    epoch = job.loader.epoch(0)
    clock, rest, whole = LayerClock(network, epoch.batch(0, side)[0][:2]), Times(), Times()
    ceiling = matrix_speeds(job.device)[precision]
    for number in range(warmup + steps):
        if number == warmup:
            clock.forget()
            rest, whole = Times(), Times()
        start_s = time.perf_counter()
        images, labels = epoch.batch(0, side)
        rest.forward.append(1e3 * (time.perf_counter() - start_s))
        with autocast(job.device, precision):
            logits = network(images).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=job.config.train.label_smoothing)
        loss.backward()
        update_s = time.perf_counter()
        set_lr(optimizer, 1e-6)
        skip_step_where(optimizer, ~loss.detach().isfinite())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rest.backward.append(1e3 * (time.perf_counter() - update_s))
        whole.forward.append(1e3 * (time.perf_counter() - start_s))
    shape = (3, side, side) if side else (3, *job.splits.train.images_u8.shape[1:3])
    macs = {layer.name: layer.macs for layer in summarize(network, shape).layers}
    all_ms = whole.both
    rows = [
        _row(name, times, all_ms, job.config.train.batch_size * macs.get(name, 0) / 1e9, ceiling)
        for name, times in clock.times.items()
        if times.forward
    ]
    named = {"making the batch": Times(1, rest.forward), "the optimizer": Times(1, rest.backward)}
    rows += [_row(name, times, all_ms, 0, ceiling) for name, times in named.items()]
    layers_ms = sum(times.both for times in (*clock.times.values(), *named.values()))
    rows.append(
        ("between layers", f"{all_ms - layers_ms:.1f}", "-", f"{1 - layers_ms / all_ms:.1%}", "-", "-", "-")
    )
    rows.append(("a step", f"{all_ms:.1f}", "-", "100.0%", "-", "-", "-"))
    return [*table(COLUMNS, rows), f"Ceiling, matrix products in {precision}: {ceiling:,.0f} GFLOP/s.", ""]


def _row(name: str, times: Times, all_ms: float, gmacs: float, ceiling: float) -> tuple[str, ...]:
    """A layer: two operations for each multiply-accumulate, as many for each gradient that it computes."""
    work = 2 * times.passes * gmacs
    speed = work / times.both * 1e3 if times.both else 0.0
    shown = [statistics.median(values) if values else None for values in (times.forward, times.backward)]
    cells = ["-" if value is None else f"{value:.1f}" for value in shown]
    done = (f"{work:,.1f}", f"{speed:,.0f}", f"{speed / ceiling:.0%}") if work else ("-", "-", "-")
    return (name, *cells, f"{times.both / all_ms:.1%}", *done)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
