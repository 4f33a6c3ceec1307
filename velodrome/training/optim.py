"""Optimizers, set up once for every recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velodrome.config import TrainSection
from velodrome.device import HALF_TYPES
from velodrome.training.muon import Muon

# Adam's second moment; the value of Kingma & Ba (arXiv:1412.6980), rarely worth changing.
BETA2 = 0.999
# Tensors of the size of the weights that each optimizer keeps.
STATE_TENSORS = {"sgd": 1, "adam": 2, "adamw": 2, "muon": 1}


def decayed_weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that L1 and L2 penalties apply to: weights of convolutions and linear layers.

    Biases and batch norm's scales and shifts (everything of fewer than two dimensions) are left alone:
    pulling them to zero does not make the function simpler (He et al., arXiv:1812.01187, section 3.1).
    """
    return [weight for weight in model.parameters() if weight.requires_grad and weight.ndim >= 2]


def make_optimizer(model: nn.Module, train: TrainSection, precision: str = "fp32") -> torch.optim.Optimizer:
    """The optimizer of the section, able to leave a step out on the device.

    The learning rate is 0 until the loop sets it, which it does before every step.

    Args:
        model: to train, on its device.
        train: which optimizer, with which momentum and decay.
        precision: "fp32", "bf16" or "fp16", of the large products that Muon takes; its state is float32.
    """
    groups = parameter_groups(model, train)
    if train.optimizer == "muon":
        return Muon(groups, momentum=train.momentum, dtype=HALF_TYPES.get(precision, torch.float32))
    if train.optimizer == "sgd":
        nesterov = train.momentum > 0
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=train.momentum, nesterov=nesterov, fused=True)
        # SGD makes its buffers uninitialised, trusting the first step to fill them; a skipped one does not.
        for weight in [w for group in sgd.param_groups for w in group["params"]] if nesterov else ():
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return sgd
    betas = (train.momentum, BETA2)
    if train.optimizer == "adam":
        return torch.optim.Adam(groups, lr=0.0, betas=betas, fused=True)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def parameter_groups(model: nn.Module, train: TrainSection) -> list[dict[str, Any]]:
    """What is trained: filters and other hidden weights, the classifier, then biases and batch norm.

    Each group has `lr_scale`, by which `set_lr` multiplies. With Muon, the convolutions are `orthogonal`.
    Where the body learns at a rate of its own, the classifier's bias is a group by itself.
    """
    head = classifier_of(model)
    decayed = decayed_weights(model)
    hidden = [weight for weight in decayed if weight is not head]
    chosen = {id(weight) for weight in decayed}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    bias = [p for p in head_parameters(model) if p.ndim < 2 and train.body_lr_scale != 1]
    groups: list[dict[str, Any]] = [
        {"params": hidden, "weight_decay": train.weight_decay, "lr_scale": train.body_lr_scale},
        {
            "params": [weight for weight in decayed if weight is head],
            "weight_decay": train.weight_decay,
            "lr_scale": train.head_lr_scale,
        },
        {
            "params": [p for p in others if all(p is not own for own in bias)],
            "weight_decay": train.weight_decay * train.bias_decay_scale,
            "lr_scale": train.bias_lr_scale * train.body_lr_scale,
        },
        {
            "params": bias,
            "weight_decay": train.weight_decay * train.bias_decay_scale,
            "lr_scale": train.bias_lr_scale,
        },
    ]
    if train.optimizer == "muon":
        groups[0]["orthogonal"] = True
    return [group for group in groups if group["params"]]


def classifier_of(model: nn.Module) -> Tensor | None:
    """The weight of the last linear layer, which makes the logits; None where there is no such layer."""
    parameters = head_parameters(model)
    return parameters[0] if parameters else None


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Weight and bias of the last linear layer; none where there is no such layer."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return list(linear[-1].parameters()) if linear else []


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate in the next step, in each group times its `lr_scale`.

    Where a group has it as a tensor on the device, that is filled.
    """
    for group in optimizer.param_groups:
        own = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def skip_step_where(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Make the next fused step do nothing if `skip` () bool is true, decided on the device without a sync.

    This is the mechanism by which `torch.amp.GradScaler` skips steps of fused optimizers.
    """
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined, unused-ignore]


def l1_norm(weights: list[nn.Parameter]) -> Tensor:
    """The sum of absolute values of all weights, () float32."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()
