"""Optimizers, set up once for every recipe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from velodrome.config import TrainSection

# Adam's second moment; the value of Kingma & Ba (arXiv:1412.6980), rarely worth changing.
BETA2 = 0.999
# Tensors of the size of the weights that each optimizer keeps.
STATE_TENSORS = {"sgd": 1, "adam": 2, "adamw": 2}


def decayed_weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that L1 and L2 penalties apply to: weights of convolutions and linear layers.

    Biases and batch norm's scales and shifts (everything of fewer than two dimensions) are left alone:
    pulling them to zero does not make the function simpler (He et al., arXiv:1812.01187, section 3.1).
    """
    return [weight for weight in model.parameters() if weight.requires_grad and weight.ndim >= 2]


def make_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """The optimizer of the section, in its fused form: one kernel, and able to skip a step on the device.

    The learning rate is 0 until the loop sets it, which it does before every step.
    """
    decayed = decayed_weights(model)
    chosen = {id(weight) for weight in decayed}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    if train.optimizer == "sgd":
        nesterov = train.momentum > 0
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=train.momentum, nesterov=nesterov, fused=True)
        # SGD makes its buffers uninitialised, trusting the first step to fill them; a skipped one does not.
        for weight in (*decayed, *others) if nesterov else ():
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return sgd
    betas = (train.momentum, BETA2)
    if train.optimizer == "adam":
        return torch.optim.Adam(groups, lr=0.0, betas=betas, fused=True)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use this learning rate in the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def skip_step_where(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Make the next fused step do nothing if `skip` () bool is true, decided on the device without a sync.

    This is the mechanism by which `torch.amp.GradScaler` skips steps of fused optimizers.
    """
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined, unused-ignore]


def l1_norm(weights: list[nn.Parameter]) -> Tensor:
    """The sum of absolute values of all weights, () float32."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()
