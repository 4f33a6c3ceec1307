"""Ghost batch norm: statistics of a part of the batch, as if each part were on a device of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises each group of images with the mean and variance of that group alone.

    Small groups make noise that regularises large batches (Hoffer et al., "Train longer, generalize better",
    arXiv:1705.08741). The running statistics follow the mean of those of the groups. In evaluation mode it is
    an ordinary batch norm.

    Args:
        channels: of the input (N, channels, H, W).
        group: images in a group. What is left over when the batch is dealt out joins the last group; a batch
            smaller than two groups is one.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics.
    """

    def __init__(self, channels: int, group: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps, momentum)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape and type."""
        groups = len(x) // self.group
        if not self.training or groups < 2:
            return super().forward(x)
        even = groups * self.group
        if even == len(x):
            result, means, variances = self._by_group(x, groups)
        else:
            even -= self.group
            first, first_means, first_variances = self._by_group(x[:even], groups - 1)
            last, last_means, last_variances = self._by_group(x[even:], 1)
            result = torch.cat([first, last])
            means = torch.cat([first_means, last_means])
            variances = torch.cat([first_variances, last_variances])
        self._follow(means, variances)
        return result

    def _by_group(self, x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise equal groups; their means and unbiased variances, (groups, channels) each."""
        parts = x.view(groups, -1, *x.shape[1:]).float()  # (G, n, C, H, W)
        values = parts[0].numel() // parts.shape[2]  # of each group and channel
        variances, means = torch.var_mean(parts, (1, 3, 4), correction=0, keepdim=True)  # (G, 1, C, 1, 1)
        scale = (variances + self.eps).rsqrt() * self.weight[:, None, None]
        result = torch.addcmul(self.bias[:, None, None] - means * scale, parts, scale)
        flat = (groups, self.num_features)
        unbiased = variances.detach() * (values / max(values - 1, 1))
        return result.flatten(0, 1).to(x.dtype), means.detach().view(flat), unbiased.view(flat)

    @torch.no_grad()
    def _follow(self, means: Tensor, variances: Tensor) -> None:
        """Let the running statistics follow, as those of nn.BatchNorm2d do."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.running_mean.lerp_(means.mean(0), self.momentum)
        self.running_var.lerp_(variances.mean(0), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        """What stands between the brackets when the module is printed."""
        words: str = super().extra_repr()  # type: ignore[no-untyped-call, unused-ignore]
        return f"{words}, group={self.group}"


def use_ghost_batches(network: nn.Module, group: int) -> None:
    """Put a GhostBatchNorm2d with groups of so many images in the place of every batch norm of a network."""
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is nn.BatchNorm2d:
                setattr(parent, name, _ghost_of(norm, group))


def _ghost_of(norm: nn.BatchNorm2d, group: int) -> GhostBatchNorm2d:
    """The batch norm with the same parameters and buffers, in groups."""
    assert norm.momentum is not None, "all our batch norms have one"
    ghost = GhostBatchNorm2d(norm.num_features, group, norm.eps, norm.momentum)
    ghost.weight, ghost.bias = norm.weight, norm.bias
    ghost.running_mean, ghost.running_var = norm.running_mean, norm.running_var
    ghost.num_batches_tracked = norm.num_batches_tracked
    return ghost
