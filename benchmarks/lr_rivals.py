"""What other learning rate finders would suggest from the same losses, each with its own smoothing and cuts.

Written from the published rules: fastai 2 (`lr_find`, `valley`), Lightning 2 (`Tuner.lr_find`) and
pytorch-lr-finder 0.2 (`LRFinder.plot`). None is run here; the losses are those of velodrome's test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from velodrome.training.lr_rules import running_mean, valley

Values = NDArray[np.float64]

BETA = 0.98  # of the running mean of fastai and Lightning


def fastai_valley(lrs: Values, losses: Values) -> float | None:
    """fastai's default: the middle of the longest fall, without the first tenth and the last five steps."""
    first = len(lrs) // 10
    if len(lrs) < first + 7:
        return None
    return valley(lrs[first:-5], running_mean(losses, BETA)[first:-5])


def lightning(lrs: Values, losses: Values) -> float | None:
    """Lightning's: the steepest fall per unit of learning rate, without the first ten steps and the last."""
    lrs, smoothed = lrs[10:-1], running_mean(losses, BETA)[10:-1]
    return None if len(lrs) < 2 else float(lrs[np.gradient(smoothed, lrs).argmin()])


def pytorch_lr_finder(lrs: Values, losses: Values) -> float | None:
    """pytorch-lr-finder's: the steepest fall per step, without the first ten steps and the last five."""
    smoothed = [float(losses[0])]
    for loss in losses[1:]:
        smoothed.append(0.05 * float(loss) + 0.95 * smoothed[-1])
    lrs, kept = lrs[10:-5], np.array(smoothed[10:-5])
    return None if len(lrs) < 2 else float(lrs[np.gradient(kept).argmin()])


RIVALS: dict[str, Callable[[Values, Values], float | None]] = {
    "fastai valley": fastai_valley,
    "Lightning": lightning,
    "pytorch-lr-finder": pytorch_lr_finder,
}
