"""Figures that say how good answers are."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share in [0, 1] of images whose highest logit is their label's: (N, classes), (N,) int64."""
    return float((logits.argmax(1) == labels).double().mean())


def mean_loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats over all images: (N, classes) float, (N,) int64."""
    return float(F.cross_entropy(logits.double(), labels))
