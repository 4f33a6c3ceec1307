"""Small data for ranks, drawn once."""

from pathlib import Path

import numpy as np
import pytest
from rank_processes import write_images


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """128 images to train on and 40 to test on, in an archive."""
    return str(write_images(tmp_path_factory.mktemp("images") / "shapes.npz"))


@pytest.fixture
def other_data(tmp_path: Path, data: str) -> str:
    """The same but for one pixel."""
    with np.load(data) as arrays:
        changed = dict(arrays)
    changed["x_train"][77, 5, 5, 1] ^= 1
    path = tmp_path / "other.npz"
    np.savez(path, **changed)
    return str(path)
