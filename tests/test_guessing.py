"""What the best answer gets that never looks at the image, where classes are balanced or not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from velodrome.config import Config, TrainSection
from velodrome.data.balancing import class_weights
from velodrome.lr_search import guessing_on


def lowest_loss(labels: np.ndarray, classes: int, balance: str, smoothing: float) -> float:
    """Of all answers that are the same for every image, found by descent."""
    weights = class_weights(labels, classes) if balance == "weights" else None
    if balance == "sampling":
        labels = np.unique(labels)
    targets = torch.from_numpy(labels)
    logits = torch.zeros(classes, dtype=torch.double, requires_grad=True)
    weight = None if weights is None else torch.from_numpy(weights).double()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        answers = logits.expand(len(targets), -1)
        value = F.cross_entropy(answers, targets, weight, label_smoothing=smoothing)
        value.backward()
        return value

    return min(float(optimizer.step(loss).detach()) for _ in range(3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
@pytest.mark.parametrize("counts", [(60, 30, 10), (50, 50), (90, 0, 10)])
def test_no_answer_without_a_look_is_better(counts, balance, smoothing):
    labels = np.repeat(np.arange(len(counts)), counts)
    train = TrainSection(balance=balance, label_smoothing=smoothing)
    images = SimpleNamespace(labels=labels, classes=tuple("abc"[: len(counts)]))
    job = SimpleNamespace(splits=SimpleNamespace(train=images), config=Config(train=train))
    found = guessing_on(job)
    assert found.loss == pytest.approx(lowest_loss(labels, len(counts), balance, smoothing), abs=1e-3)
    there = sum(count > 0 for count in counts)
    assert found.accuracy == pytest.approx(1 / there if balance == "sampling" else max(counts) / sum(counts))
