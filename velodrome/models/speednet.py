"""SpeedNet: the small convolutional network with which `speed94` gets CIFAR-10 to 94% in the least time.

The layout is that of the network of K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
(arXiv:2404.00498), itself from hlb-CIFAR10 (T. Balsam, 2023) and D. Page's ResNet (Myrtle.ai, 2018), with one
convolution more in the last block.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velodrome.errors import ConfigError
from velodrome.models.whitening import PatchWhitening

SMALLEST_IMAGE = 9  # 8 after the whitening layer, 1 after three times MaxPool 2
NORM_EPS = 1e-12
# Weight of a batch in the running statistics: they follow a network that changes fast.
NORM_MOMENTUM = 0.2


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm with a learned shift only: the scale, which the next convolution can learn, stays 1."""
    norm = nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    norm.weight.requires_grad = False
    return norm


class EvenConv2d(nn.Conv2d):
    """A convolution 3x3 that leaves out the last row and column of its output where it has an odd number.

    MaxPool 2 would leave them out after it. At 32 pixels that saves a tenth of the work of the network.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels_in, H, W) -> (N, channels_out, H // 2 * 2, W // 2 * 2)."""
        bottom, right = (1 - side % 2 for side in x.shape[2:])
        return super().forward(F.pad(x, (1, right, 1, bottom)))


def identity(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution, its first filters the identity (Dirac initialisation): one for each input channel."""
    nn.init.dirac_(conv.weight.data[: conv.in_channels])
    return conv


def block(channels_in: int, channels_out: int, convs: int = 2) -> nn.Sequential:
    """Conv 3x3 -> MaxPool 2 -> BN -> GELU, then Conv 3x3 -> BN -> GELU for each further convolution.

    Args:
        channels_in: channels of the input (N, channels_in, H, W).
        channels_out: channels of the output (N, channels_out, H // 2, W // 2).
        convs: convolutions, at least 1.
    """
    layers: dict[str, nn.Module] = {
        "conv1": identity(EvenConv2d(channels_in, channels_out)),
        "pool": nn.MaxPool2d(2),
    }
    for number in range(1, convs + 1):
        if number > 1:
            conv = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
            layers[f"conv{number}"] = identity(conv)
        layers[f"norm{number}"] = batch_norm(channels_out)
        layers[f"gelu{number}"] = nn.GELU()
    return nn.Sequential(OrderedDict(layers))


class SpeedNet(nn.Module):
    """Stages `whiten`, `layer1`, `layer2`, `layer3` and `fc`; takes images of any size from 9 pixels.

    Args:
        classes: number of classes, the length of the logits.
        width: channels of `layer1`; `layer2` and `layer3` have four times as many.
        dropout: probability in [0, 1) of zeroing a feature before `fc`; 0 leaves dropout out altogether.
        image_size: height and width of the images in pixels, at least 9; other sizes may be given later.
        logit_scale: factor of the logits.

    Raises:
        ConfigError: `image_size` is too small.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 64,
        dropout: float = 0.0,
        image_size: int = 32,
        *,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if image_size < SMALLEST_IMAGE:
            raise ConfigError(
                f"image_size = {image_size}, but SpeedNet halves the image three times after a layer of 2x2 "
                f"patches, so that the size must be at least {SMALLEST_IMAGE}.",
                f"Set image_size to {SMALLEST_IMAGE} or more.",
            )
        self.whiten = PatchWhitening()
        self.gelu = nn.GELU()
        self.layer1 = block(self.whiten.out_channels, width)
        self.layer2 = block(width, 4 * width)
        # Where the image is smallest, one more convolution adds 4% to the work.
        self.layer3 = block(4 * width, 4 * width, convs=3)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.fc = nn.Linear(4 * width, classes, bias=False)
        with torch.no_grad():
            self.fc.weight /= self.fc.weight.std() * 4 * width
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits: no softmax, which the loss and the places that show probabilities apply.

        Args:
            images: float, (N, 3, S, S), normalised.

        Returns:
            float, (N, classes).
        """
        x = self.gelu(self.whiten(images))  # (N, 24, S - 1, S - 1)
        x = self.layer1(x)  # (N, width, S / 2, S / 2), all sizes rounded down
        x = self.layer2(x)  # (N, 4 width, S / 4, S / 4)
        x = self.layer3(x)  # (N, 4 width, S / 8, S / 8)
        x = self.pool(x).flatten(1)  # (N, 4 width)
        if self.dropout is not None:
            x = self.dropout(x)
        logits: Tensor = self.fc(x)
        return logits if self.logit_scale == 1 else logits * self.logit_scale
