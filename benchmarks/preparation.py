"""How fast a folder of images is prepared, and what it costs to train from the file that comes of it.

The claims: on two CPU cores, velodrome prepares photos (JPEG, about 500x375 pixels) at 1.7 times the images a
second that one process of Pillow gets through, opening, converting and fitting them to the same size; it
trains from its memory map at 0.95 of the images a second that it reaches with the same images in memory; and
it gets through as many pixels a second as on images of CIFAR-10's size. In the same sitting: small PNG files,
and torchvision's ImageFolder behind a DataLoader of two workers, where that is installed.

    python benchmarks/preparation.py --output benchmarks/preparation.md

draws its files itself, in a temporary folder (or in one named by --keep, to use them again), and needs a
machine that does nothing else. The cache is empty before every turn of velodrome; the files themselves are in
the memory of the system for everybody.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import contestants
import numpy as np
import torch
from dated_tables import (
    Claim,
    command_line,
    heading,
    machine_rows,
    middle_and_ends,
    print_and_append,
    ratios,
    table,
    version_of,
)
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from throughput import at_least, in_a_folder, time_block

from velodrome.config import Config
from velodrome.data.imageset import AnyImages, ImageSet, MappedImages, Splits
from velodrome.data.own.collecting import resized
from velodrome.data.own.listing import Entry
from velodrome.data.own.prepared import Prepared, clear, prepare_images
from velodrome.errors import VelodromeError
from velodrome.job import Job, prepare, resolve
from velodrome.recipes import resnet9

CLASSES = ("circles", "squares", "triangles", "stripes")
BICUBIC = Image.Resampling.BICUBIC
PHOTO, SMALL = (500, 375), (32, 32)
OF_SMALL = "images of 32x32 pixels"
Speeds = dict[str, list[float]]


def main(arguments: Sequence[str]) -> int:
    """Draw, measure, print, append to a file. Bad input is one line on stderr and exit code 2."""
    options = parse(arguments)
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as place, own_cache(Path(place)):
            found = measure(options, options.keep or Path(place) / "images")
        print_and_append(report(options, found, command_line(arguments), load), options.output)
    except VelodromeError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Preparation of images; see the docstring.")
    parser.add_argument("--photos", type=at_least(8), default=3000, help="JPEG files")
    parser.add_argument("--small", type=at_least(8), default=10_000, help="PNG files of 32x32 pixels")
    parser.add_argument("--image-size", type=at_least(8), default=64, help="to which photos are brought")
    parser.add_argument("--rounds", type=at_least(1), default=5, help="turns of each contestant")
    parser.add_argument("--batch-size", type=at_least(2), default=128, help="of the training")
    parser.add_argument("--width", type=at_least(1), default=64, help="of the network")
    parser.add_argument("--steps", type=at_least(1), default=6, help="timed steps of a block")
    parser.add_argument("--warmup", type=at_least(1), default=2, help="steps before the clock starts")
    parser.add_argument("--keep", type=Path, help="folder for the files, which stay there")
    parser.add_argument("--output", type=in_a_folder, help="Markdown file to which the tables are appended")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def own_cache(place: Path) -> Iterator[None]:
    """The user cache folder is a temporary one."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    try:
        yield
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Speeds]:
    """Images/s, or for training megapixels/s, of each contestant in each discipline, one value a round."""
    photos = drawn(folder / "photos", options.photos, draw_photo, ".jpg")
    small = drawn(folder / "small", options.small, draw_small, ".png")
    found = {
        "photos": in_turn(preparations(folder / "photos", photos, options.image_size), len(photos), options),
        "small": in_turn(preparations(folder / "small", small, SMALL[0]), len(small), options),
    }
    prepared = prepare_images(photos, options.image_size, "crop", root=folder / "photos")
    found["training"] = train_in_turn(prepared, photos, folder / "photos", options)
    return found


def in_turn(entrants: Mapping[str, Callable[[], None]], images: int, options: argparse.Namespace) -> Speeds:
    """Images/s, one value a round; the contestants take turns, so that what changes slowly meets all."""
    speeds: Speeds = {name: [] for name in entrants}
    for number in range(options.rounds):
        for name, run in entrants.items():
            start_s = time.perf_counter()
            run()
            speeds[name].append(images / (time.perf_counter() - start_s))
            done = f"round {number + 1} of {options.rounds}: {name:26}"
            print(f"{done} {speeds[name][-1]:9.1f} images/s", file=sys.stderr)
    return speeds


# Files.


def drawn(
    folder: Path, n: int, draw: Callable[[np.random.Generator, int], Image.Image], suffix: str
) -> list[Entry]:
    """So many drawn files in folders of classes; those that are there already are left as they are."""
    entries = []
    for number in range(n):
        label = number % len(CLASSES)
        path = folder / CLASSES[label] / f"{number:06}{suffix}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(np.random.default_rng([number, n]), label).save(path, quality=90)
        entries.append(Entry(path, path.relative_to(folder).as_posix(), label, None))
    return sorted(entries, key=lambda entry: entry.name)


def draw_photo(rng: np.random.Generator, label: int) -> Image.Image:
    """Soft light, a dozen sharp shapes, and grain: about as many bytes as a photo of that size, 500x375."""
    width, height = PHOTO if rng.random() < 0.75 else PHOTO[::-1]
    light = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(light).resize((width, height), BICUBIC)
    _draw_shapes(ImageDraw.Draw(image), rng, label, 12, (width, height))
    grain = rng.normal(0, 7, (height, width, 1)) + rng.normal(0, 2, (height, width, 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def draw_small(rng: np.random.Generator, label: int) -> Image.Image:
    """A shape on noise, 32x32."""
    image = Image.fromarray(rng.integers(60, 200, (*SMALL[::-1], 3), dtype=np.uint8))
    _draw_shapes(ImageDraw.Draw(image), rng, label, 1, SMALL)
    return image


def _draw_shapes(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, label: int, n: int, size: tuple[int, int]
) -> None:
    for _ in range(n):
        colour = tuple(rng.integers(0, 256, 3).tolist())
        x, y = (int(rng.integers(0, side)) for side in size)
        radius = int(rng.integers(min(size) // 12, min(size) // 4))
        box = (x - radius, y - radius, x + radius, y + radius)
        if label == 0:
            draw.ellipse(box, fill=colour)
        elif label == 1:
            draw.rectangle(box, fill=colour)
        elif label == 2:
            draw.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=colour)
        else:
            draw.line(box, fill=colour, width=max(2, radius // 3))


# Preparation.


def preparations(folder: Path, entries: Sequence[Entry], side: int) -> dict[str, Callable[[], None]]:
    """Who brings these files to side x side pixels, and how."""

    def velodrome() -> None:
        clear(folder)
        prepare_images(entries, side, "crop", root=folder)

    def pillow() -> None:
        images_u8 = np.empty((len(entries), side, side, 3), np.uint8)
        for row, entry in enumerate(entries):
            with Image.open(entry.path) as image:
                images_u8[row] = np.asarray(ImageOps.fit(image.convert("RGB"), (side, side), BICUBIC))

    found = {"velodrome": velodrome, "Pillow, one process": pillow}
    with contextlib.suppress(ImportError, RuntimeError):  # beside a torch that is not its own
        found["torchvision, 2 workers"] = with_torchvision(folder, side)
    return found


def with_torchvision(folder: Path, side: int) -> Callable[[], None]:
    """ImageFolder, Resize and CenterCrop behind a DataLoader of two workers.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: it does not go with this torch.
    """
    from torchvision import datasets, transforms  # noqa: PLC0415

    steps = transforms.Compose(
        [
            transforms.Resize(side, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.PILToTensor(),
        ]
    )

    def run() -> None:
        images = datasets.ImageFolder(str(folder), steps)
        loader = torch.utils.data.DataLoader(images, batch_size=128, num_workers=2)
        whole = torch.empty((len(images), 3, side, side), dtype=torch.uint8)
        start = 0
        for batch, _ in loader:
            whole[start : start + len(batch)] = batch
            start += len(batch)

    return run


# Training.


def train_in_turn(
    prepared: Prepared, entries: Sequence[Entry], folder: Path, options: argparse.Namespace
) -> Speeds:
    """Megapixels/s of training from the map, from memory, and on small images, one value a round."""
    images_u8 = np.array(prepared.images_u8)
    labels = np.array([entry.label for entry in entries], np.int64)
    # As many pixels a step: so much larger a batch of images that are so much smaller.
    times = (options.image_size // SMALL[0]) ** 2
    smaller = resized(images_u8, SMALL[0], "crop")
    jobs = {
        "from the map": job_on(MappedImages(prepared.images_u8), labels, folder, options),
        "from memory": job_on(images_u8, labels, folder, options),
        OF_SMALL: job_on(np.tile(smaller, (times, 1, 1, 1)), np.tile(labels, times), folder, options, times),
    }
    block = options.warmup + options.steps
    entrants = {name: contestants.velodrome(job, block) for name, job in jobs.items()}
    speeds: Speeds = {name: [] for name in entrants}
    for number in range(options.rounds):
        for name, entrant in entrants.items():
            seconds = time_block(entrant, options.warmup, options.steps, jobs[name].device)
            config = jobs[name].config
            pixels = options.steps * config.train.batch_size * config.data.image_size**2
            speeds[name].append(pixels / seconds / 1e6)
            done = f"round {number + 1} of {options.rounds}: {name:26}"
            print(f"{done} {speeds[name][-1]:9.3f} megapixels/s", file=sys.stderr)
    return speeds


def job_on(
    images_u8: AnyImages, labels: NDArray[np.int64], folder: Path, options: argparse.Namespace, times: int = 1
) -> Job:
    """A training of `resnet9` on these images, with a batch so many times as large."""
    images = ImageSet(images_u8, labels, CLASSES, [str(number) for number in range(len(labels))])
    splits = Splits(folder.name, images, None, images.take(np.arange(8)))
    return prepare(training_config(folder, options, times), splits, progress=False)


def training_config(folder: Path, options: argparse.Namespace, times: int = 1) -> Config:
    """Any learning rate takes as long as another; one is given so that none is searched for."""
    return resnet9(
        data=str(folder),
        lr=0.1,
        batch_size=times * options.batch_size,
        width=options.width,
        epochs=options.rounds + 24,
    )


# The report.


def report(options: argparse.Namespace, found: Mapping[str, Speeds], command: str, load: float) -> str:
    """The tables and the verdicts, as Markdown."""
    config = resolve(training_config(Path("photos"), options))
    machine = machine_rows(config, load) | {"Pillow": version_of("pillow")}
    setting = (
        f"{options.photos} JPEG files of {PHOTO[0]}x{PHOTO[1]} pixels to {options.image_size}x"
        f"{options.image_size}, {options.small} PNG files of {SMALL[0]}x{SMALL[1]}; training of `resnet9`, "
        f"width {options.width}, batch {options.batch_size}; {options.rounds} rounds in turn."
    )
    lines = heading("preparation of images", machine, command, setting, load)
    for name, speeds in found.items():
        unit, form = ("megapixels/s", ".3f") if name == "training" else ("images/s", ".1f")
        rows = [(who, *middle_and_ends(values, form)) for who, values in speeds.items()]
        lines += table((f"{name}, {unit}", "median", "min", "max", "n"), rows)
    return "\n".join([*lines, *(f"- {claim}" for claim in claims(found)), ""])


def claims(found: Mapping[str, Speeds]) -> list[Claim]:
    """What should hold. Of torchvision nothing is claimed: it makes tensors for one epoch, not for all."""
    made = [
        Claim(
            f"velodrome / Pillow in one process, {name}",
            ratios(found[name], "velodrome", "Pillow, one process"),
            1.7,
            or_more=True,
        )
        for name in ("photos", "small")
    ]
    trained = ratios(found["training"], "from the map", "from memory")
    large = ratios(found["training"], "from memory", OF_SMALL)
    return [
        *made,
        Claim("training from the map / from memory", trained, 0.95, or_more=True),
        Claim(f"pixels a second, from memory / {OF_SMALL}", large, 0.95, or_more=True),
    ]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
