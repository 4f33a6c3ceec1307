"""A first convolution that is computed from training images rather than learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Added to the variance along each axis, so that axes of noise are not blown up.
EPS = 5e-4


class PatchWhitening(nn.Conv2d):
    """A frozen convolution: the whitened principal components of k x k patches, and their negatives.

    Its 2 * 3 * k * k filters are the eigenvectors of the patches' covariance, each divided by the square
    root of its eigenvalue, so that all outputs have the same variance and are uncorrelated. Whitening is by
    D. Page ("How to Train Your ResNet", Myrtle.ai 2018); a small patch without padding, and both signs for
    the activation that follows, are by T. Balsam (hlb-CIFAR10, 2023).

    Args:
        patch: side of a patch in pixels.
    """

    def __init__(self, patch: int = 2) -> None:
        self.axes = 3 * patch * patch
        super().__init__(3, 2 * self.axes, patch, bias=False)
        self.weight.requires_grad = False

    def fit(self, images: Tensor) -> None:
        """Compute the filters.

        Args:
            images: (N, 3, H, W) float, normalised training images; a few thousand are enough.
        """
        patch = self.kernel_size[0]
        patches = F.unfold(images.float(), patch).transpose(1, 2).reshape(-1, self.axes)
        covariance = patches.T @ patches / len(patches)
        # In double precision and on the CPU, where every torch can do it.
        variances, axes = torch.linalg.eigh(covariance.double().cpu())
        filters = axes.T / (variances + EPS).sqrt()[:, None]  # (axes, 3 k k)
        filters = torch.cat([filters, -filters]).view(self.weight.shape)
        with torch.no_grad():
            self.weight.copy_(filters)
