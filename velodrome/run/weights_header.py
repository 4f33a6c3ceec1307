"""What is written about final weights, read without them. Never imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
from safetensors import SafetensorError

from velodrome.errors import RunError


def read_header(path: Path) -> dict[str, Any]:
    """What was written about the weights in a file; the weights themselves are neither read nor checked.

    Args:
        path: of a file by `save_weights`.

    Raises:
        RunError: the file is missing, damaged or not one of ours.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = json.loads(file.metadata()["velodrome"])
        about["model"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise RunError(
            f"Weights {path} cannot be read: {error}.", "Give a run that has finished, or restore the file."
        ) from error
    return about
