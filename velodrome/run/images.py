"""Whether images are still those that a run was made with."""

from __future__ import annotations

import shlex

from velodrome.data.imageset import Splits
from velodrome.errors import DataError, visible
from velodrome.run.folder import RunFolder


def check_same_images(
    folder: RunFolder, splits: Splits, data: str, *, recorded: object, otherwise: str
) -> None:
    """Check that images and labels are those that a run was made with.

    Images that were added or removed change which ones are held out, so that images to train on would become
    images to test on.

    Args:
        folder: of the run.
        splits: as they are now.
        data: where they were read from.
        recorded: their checksum in the run; None or empty where there is nothing to compare.
        otherwise: what else can be done than bringing them back, as the rest of a sentence.

    Raises:
        DataError: they are others.
    """
    if recorded and recorded != splits.fingerprint:
        raise DataError(
            f"Run {folder.path} was made with other images or labels than {visible(data)} holds now.",
            f"Bring them back as they were, or {otherwise}",
        )


def check_same_as_result(folder: RunFolder, splits: Splits, data: str) -> None:
    """Check that images are those that a finished run was trained and tested on.

    Args:
        folder: of the run; before it has finished, and of published data, there is nothing to compare.
        splits: as they are now.
        data: where they were read from.

    Raises:
        DataError: they are others.
    """
    result = folder.read_json(folder.result) or {}
    evaluate = f"velodrome evaluate {shlex.quote(str(folder.path))} --data FOLDER"
    otherwise = f"put what is new into a folder of its own: {evaluate}"
    check_same_images(folder, splits, data, recorded=result.get("data_checksum"), otherwise=otherwise)
