"""Small images that the tests make themselves."""

import functools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from velodrome import cli
from velodrome.data import sources
from velodrome.data.imageset import ImageSet, ImagesU8


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/faults; they are here because pytest asks for options before it looks into folders."""
    parser.addoption("--kills", type=int, default=11, metavar="N", help="how often a training run is killed")
    parser.addoption(
        "--every-operation", action="store_true", help="go wrong at every operation, not at some of them"
    )
    parser.addoption("--kill-seed", type=int, metavar="SEED", help="repeats a campaign of kills")


@pytest.fixture
def random_images() -> Callable[..., ImagesU8]:
    """A function that makes (n, height, width, 3) uint8 noise, the same for the same arguments."""

    def make(n: int, height: int = 8, width: int = 8, seed: int = 0) -> ImagesU8:
        return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def coloured_images() -> Callable[..., ImageSet]:
    """A function that makes a set of noisy images of three colours, which are their classes."""

    def make(n: int, height: int = 8, width: int = 8, seed: int = 0) -> ImageSet:
        rng = np.random.default_rng(seed)
        labels = np.arange(n, dtype=np.int64) % 3
        images = rng.integers(0, 120, (n, height, width, 3), dtype=np.uint8)
        images[np.arange(n), :, :, labels] += 100
        return ImageSet(images, labels, ("red", "green", "blue"), [f"made/{i:05d}.png" for i in range(n)])

    return make


@pytest.fixture
def command_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a command in this process, in the folder `cwd`; one of its own takes seconds."""

    def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        return subprocess.CompletedProcess(words, cli.main(words), *capsys.readouterr())

    return run


@pytest.fixture(autouse=True, scope="session")
def shapes_are_drawn_once() -> Iterator[None]:
    """In this process: it takes a second, and hundreds of tests train on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "ready_shapes", functools.cache(sources.ready_shapes))
        yield


@pytest.fixture(autouse=True, scope="session")
def own_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user cache folder is a temporary one, here and in the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
        yield
