"""Muon: momentum whose steps are orthogonalised, for the convolutions of small networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# The quintic iteration of K. Jordan, steep at zero: after three rounds singular values from 0.01 of the norm
# upwards lie around 1 (see `orthogonalised`).
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 3
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon for the groups whose `orthogonal` is true, SGD with Nesterov momentum for the others.

    Muon (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) replaces the
    momentum of a weight matrix by a near matrix whose singular values are all about 1, so that every
    direction is learned at the same rate. As in cifar10-airbench, each bank of filters is held at the norm
    sqrt(filters): before a batch norm its length means nothing, and so the learning rate is an angle. Weight
    decay would do nothing.

    Like torch's fused optimizers it leaves a step out where `found_inf` is set, without a sync, and undoes
    `grad_scale`.

    Args:
        groups: parameter groups with `params`, `orthogonal` and, where that is false, `weight_decay`.
        momentum: in [0, 1), of both kinds of groups.
        dtype: of the large matrix products; torch.bfloat16 is precise enough, where the device is fast in it.
    """

    _step_supports_amp_scaling = True

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float, dtype: torch.dtype) -> None:
        ordinary = {"orthogonal": False, "weight_decay": 0.0}
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "dtype": dtype, **ordinary})
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Change all weights that have a gradient."""
        skip: Tensor | None = getattr(self, "found_inf", None)
        scale: Tensor | None = getattr(self, "grad_scale", None)
        if skip is not None and may_be_looked_at(skip):
            if skip.bool():
                return
            skip = None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
            changed = (*weights, *buffers)
            before = () if skip is None else [tensor.clone() for tensor in changed]
            grads = [weight.grad if scale is None else weight.grad / scale for weight in weights]
            if not group["orthogonal"] and group["weight_decay"]:
                grads = [g + group["weight_decay"] * w for g, w in zip(grads, weights, strict=True)]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, grads)
            steps = list(torch._foreach_add(grads, buffers, alpha=group["momentum"]))
            if group["orthogonal"]:
                steps = orthogonalised(steps, group["dtype"])
                for weight in weights:
                    weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(TINY))
            if isinstance(group["lr"], Tensor):  # on the device, where only it knows the value
                torch._foreach_mul_(steps, group["lr"])
                torch._foreach_sub_(weights, steps)
            else:
                torch._foreach_add_(weights, steps, alpha=-group["lr"])
            if skip is not None:
                for tensor, old in zip(changed, before, strict=True):
                    tensor.copy_(torch.where(skip.bool(), old, tensor))


def may_be_looked_at(flag: Tensor) -> bool:
    """Whether reading a flag makes nobody wait: on the CPU, which has nothing else to do meanwhile."""
    return flag.device.type == "cpu"


def orthogonalised(steps: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each tensor, read as a matrix with a row for each filter, with singular values near 1.

    Muon's Newton-Schulz iteration turns a matrix X of norm 1 into p(X X^T) X with p(A) = a + b A + c A^2,
    three times over. All of it but the first and the last product is done here on the small A = X X^T: that
    of the next round is p(A) A p(A). Tensors of the same shape are stacked.

    Args:
        steps: each (rows, ...) float32.
        dtype: of the two large products; the small ones are float32.

    Returns:
        Tensors of the same shapes, float32.
    """
    results = list(steps)
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, step in enumerate(steps):
        shapes.setdefault((len(step), step[0].numel()), []).append(index)
    for (rows, columns), members in shapes.items():
        # (M, rows, columns)
        matrices = torch.stack([steps[index].reshape(rows, columns) for index in members])
        if rows <= columns:
            matrices = _orthogonalised_wide(matrices, dtype)
        else:
            matrices = _orthogonalised_wide(matrices.mT, dtype).mT
        for index, result in zip(members, matrices, strict=True):
            results[index] = result.reshape(steps[index].shape)
    return results


def _orthogonalised_wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(M, r, c) float32 with r <= c -> the same shape, singular values near 1."""
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + TINY)).to(dtype)
    gram = (x @ x.mT).float()  # (M, r, r)
    factor = last = _quintic(gram)
    for _ in range(ROUNDS - 1):
        gram = last @ gram @ last
        last = _quintic(gram)
        factor = last @ factor
    return (factor.to(dtype) @ x).float()


def _quintic(gram: Tensor) -> Tensor:
    """(M, r, r) -> a + b A + c A^2, by which the iteration multiplies."""
    a, b, c = QUINTIC
    result = b * gram + c * (gram @ gram)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result
