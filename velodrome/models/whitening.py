"""A first convolution that is computed from training images rather than learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Added to the variance along each axis, so that axes of noise are not blown up.
EPS = 5e-4
# Images whose patches are taken out at once: a patch of 3x3 makes an image nine times as large.
CHUNK = 1000


class PatchWhitening(nn.Conv2d):
    """A frozen convolution: the whitened principal components of k x k patches.

    Its filters are the eigenvectors of the patches' covariance, each divided by the square root of its
    eigenvalue, so that all outputs have the same variance and are uncorrelated. Whitening is by D. Page ("How
    to Train Your ResNet", Myrtle.ai 2018); a small patch without padding, and both signs for the activation
    that follows, are by T. Balsam (hlb-CIFAR10, 2023).

    Args:
        patch: side k of a patch in pixels.
        padding: zeros around the image in pixels, as in nn.Conv2d; the patches of `fit` have none.
        both_signs: whether each of the 3 k k filters is followed by its negative.
        eps: added to the variance along each axis.
        images: how many training images are enough for `fit`.
    """

    def __init__(
        self,
        patch: int = 2,
        *,
        padding: int = 0,
        both_signs: bool = True,
        eps: float = EPS,
        images: int = 5000,
    ) -> None:
        self.axes = 3 * patch * patch
        signs = 2 if both_signs else 1
        super().__init__(3, signs * self.axes, patch, padding=padding, bias=False)
        self.both_signs, self.whitening_eps, self.images = both_signs, eps, images
        self.weight.requires_grad = False

    def fit(self, images: Tensor) -> None:
        """Compute the filters.

        Args:
            images: (N, 3, H, W) float, normalised training images; the first of them are used, as many as are
                enough.
        """
        covariance = torch.zeros(self.axes, self.axes, device=images.device)
        count = 0
        for chunk in torch.split(images[: self.images], CHUNK):
            patches = F.unfold(chunk.float(), self.kernel_size).transpose(1, 2).reshape(-1, self.axes)
            covariance += patches.T @ patches
            count += len(patches)
        # In double precision and on the CPU, where every torch can do it.
        variances, axes = torch.linalg.eigh(covariance.double().cpu() / count)
        filters = axes.T / (variances + self.whitening_eps).sqrt()[:, None]  # (axes, 3 k k)
        if self.both_signs:
            filters = torch.cat([filters, -filters])
        with torch.no_grad():
            self.weight.copy_(filters.view(self.weight.shape))
