"""Figures that say how good answers are."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share in [0, 1] of images whose highest logit is their label's: (N, classes), (N,) int64."""
    return float((logits.argmax(1) == labels).double().mean())


def mean_loss(logits: Tensor, labels: Tensor) -> float | None:
    """Mean cross-entropy in nats over all images, None where it is not finite: (N, classes), (N,) int64."""
    loss = float(F.cross_entropy(logits.double(), labels))
    return loss if math.isfinite(loss) else None
