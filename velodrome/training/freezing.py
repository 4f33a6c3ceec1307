"""A network whose classifier learns alone: first the new layer, then all of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from velodrome.config import TrainSection
from velodrome.errors import ConfigError
from velodrome.training.optim import head_parameters


def stages(train: TrainSection, first_epoch: int) -> Iterator[tuple[range, bool]]:
    """The epochs that are left, from the first one on, and whether only the classifier learns in them."""
    thaw = min(max(train.freeze_epochs, first_epoch), train.epochs)
    for epochs, is_frozen in ((range(first_epoch, thaw), True), (range(thaw, train.epochs), False)):
        if epochs:
            yield epochs, is_frozen


def freeze_body(model: nn.Module, optimizer: torch.optim.Optimizer, *, frozen: bool) -> None:
    """Let only the classifier learn, or else all that the optimizer has.

    Nothing is computed backwards through frozen layers. Batch norm keeps updating its statistics. What the
    optimizer does not have was never to learn, and stays as it is.

    Args:
        model: the network.
        optimizer: of its parameters, made while none was frozen.
        frozen: whether all but the classifier is to stay as it is.

    Raises:
        ConfigError: the network has no classifier.
    """
    head = {id(parameter) for parameter in head_parameters(model)}
    if frozen and not head:
        raise ConfigError(
            "freeze_epochs is above 0, but this network has no linear layer that could learn alone.",
            "Use --freeze-epochs 0.",
        )
    for parameter in learned(optimizer):
        parameter.requires_grad_(not frozen or id(parameter) in head)


def is_frozen(optimizer: torch.optim.Optimizer) -> bool:
    """Whether some of what the optimizer has does not learn now."""
    return not all(parameter.requires_grad for parameter in learned(optimizer))


def learned(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    """All that the optimizer changes."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
