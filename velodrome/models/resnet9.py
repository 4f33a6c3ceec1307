"""ResNet9: the small residual network that velodrome's reference recipe trains.

Nine weight layers: one convolution in `prep`, three that halve the image, two in each of the two residual
branches, and the classifier. The layout is that of the DAWNBench CIFAR-10 entries (D. Page, "How to Train
Your ResNet", Myrtle.ai 2018) as re-told in many courses; the residual connection is that of He et al., "Deep
Residual Learning for Image Recognition" (2015), without an activation after the sum.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from velodrome.errors import ConfigError
from velodrome.models.whitening import PatchWhitening

# The initial scale of the two batch norms whose outputs, added and pooled, are the features f of `fc`. A step
# of a head without bias or scale moves the logits by up to LR * f.f times the error, which is stable only
# while LR * f.f is of order 1. At scale 1 the mean of f.f on CIFAR-10 is 3829 at the start, so the loss first
# explodes at any useful LR; at 0.2 it is 153. With LRMAX 0.05, 48 steps on 8,192 images gave 49% accuracy on
# 2,000 test images with scale 0.2; 60 steps on 10,000 images gave 22% with scale 1.
LAST_NORM_SCALE = 0.2

DOWNSAMPLING = 8  # three stages of MaxPool 2 lie between the image and the last pool


# The activations by name. In place is safe: batch norm keeps its input for the backward pass, not its output.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    # The exponential linear unit with a continuous derivative (Barron, arXiv:1704.07483), and the alpha of
    # DAWNBench's entry of December 2019.
    "celu": partial(nn.CELU, 0.3, inplace=True),
    "gelu": nn.GELU,
}
# Where `prep` whitens patches: what is added to their variances, and how many training images they are from.
# Both as in the same entry.
WHITENING_EPS, WHITENING_IMAGES = 1e-2, 10_000


@dataclass(frozen=True)
class Style:
    """What all blocks of a network are made of.

    Attributes:
        activation: "relu", "celu" (alpha 0.3) or "gelu".
        learned_scale: whether batch norm learns its scales; else they stay 1.
    """

    activation: str = "relu"
    learned_scale: bool = True

    def norm(self, channels: int, scale: float = 1.0) -> nn.BatchNorm2d:
        """A batch norm whose scale, if it is learned, starts at `scale` in place of 1."""
        norm = nn.BatchNorm2d(channels)
        if self.learned_scale:
            nn.init.constant_(norm.weight, scale)
        norm.weight.requires_grad = self.learned_scale
        return norm

    def activate(self) -> dict[str, nn.Module]:
        """The activation, under its name."""
        return {self.activation: ACTIVATIONS[self.activation]()}


def conv_block(channels_in: int, channels_out: int, style: Style, norm_scale: float = 1.0) -> nn.Sequential:
    """Conv 3x3 -> BN -> activation, which keeps height and width.

    Args:
        channels_in: channels of the input (N, channels_in, H, W).
        channels_out: channels of the output (N, channels_out, H, W).
        style: of the batch norm and the activation.
        norm_scale: initial scale of the batch norm.

    Returns:
        A module with sub-modules `conv`, `norm` and one with the name of the activation.
    """
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    norm = style.norm(channels_out, norm_scale)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, **style.activate()))


def whitening_block(channels_out: int, style: Style) -> nn.Sequential:
    """Whitened 3x3 patches -> Conv 1x1 -> BN -> activation; (N, 3, H, W) -> (N, channels_out, H, W).

    Returns:
        A module with sub-modules `whiten`, `conv`, `norm` and one with the name of the activation.
    """
    whiten = PatchWhitening(3, padding=1, both_signs=False, eps=WHITENING_EPS, images=WHITENING_IMAGES)
    conv = nn.Conv2d(whiten.out_channels, channels_out, 1, bias=False)
    norm = style.norm(channels_out)
    return nn.Sequential(OrderedDict(whiten=whiten, conv=conv, norm=norm, **style.activate()))


class Stage(nn.Sequential):
    """Conv 3x3 -> MaxPool 2 -> BN -> activation, and after it a residual branch where one is asked for.

    Args:
        channels_in: channels of the input (N, channels_in, H, W).
        channels_out: channels of the output (N, channels_out, H // 2, W // 2).
        style: of the batch norms and activations.
        residual: whether X + R(X) follows, with R two blocks of Conv-BN-activation.
        norm_scale: initial scale of the batch norms whose outputs are X and R(X).
    """

    def __init__(
        self, channels_in: int, channels_out: int, style: Style, *, residual: bool, norm_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = style.norm(channels_out, norm_scale)
        for name, module in style.activate().items():
            self.add_module(name, module)
        if residual:
            self.residual = nn.Sequential(
                OrderedDict(
                    block1=conv_block(channels_out, channels_out, style),
                    block2=conv_block(channels_out, channels_out, style, norm_scale),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features at half the resolution.

        Args:
            x: float, (N, channels_in, H, W).

        Returns:
            float, (N, channels_out, H // 2, W // 2).
        """
        for name, module in self.named_children():
            # Out of place: the branch's activation needs its own output for the backward pass.
            x = x + module(x) if name == "residual" else module(x)
        return x


class ResNet9(nn.Module):
    """Stages `prep`, `layer1`, `layer2`, `layer3`, `pool` and `fc`; 6,573,120 parameters by default.

    Args:
        classes: number of classes, the length of the logits.
        width: channels of `prep`; the stages after it have 2, 4 and 8 times as many.
        dropout: probability in [0, 1) of zeroing a feature before `fc`; 0 leaves dropout out altogether.
        image_size: height and width of the images in pixels, a multiple of 8; others may be given later.
            `pool` takes the maximum of all that is left of the image, MaxPool 4 for 32 pixels.
        prep: "conv", a learned convolution; or "whiten", frozen filters that whiten patches of 3x3 pixels,
            with a learned convolution 1x1 after them.
        activation: "relu", "celu" (alpha 0.3) or "gelu", everywhere.
        norm_scale: "learned" scales of batch norm, or "fixed" ones of 1.
        logit_scale: factor of the logits.

    Raises:
        ConfigError: `image_size` is not a positive multiple of 8.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 64,
        dropout: float = 0.0,
        image_size: int = 32,
        *,
        prep: str = "conv",
        activation: str = "relu",
        norm_scale: str = "learned",
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if image_size < DOWNSAMPLING or image_size % DOWNSAMPLING:
            below = max(DOWNSAMPLING, image_size // DOWNSAMPLING * DOWNSAMPLING)
            raise ConfigError(
                f"image_size = {image_size}, but ResNet9 halves the image three times, so that the size must "
                f"be a positive multiple of {DOWNSAMPLING}.",
                f"Set image_size to {below} or {below + DOWNSAMPLING}.",
            )
        style = Style(activation, learned_scale=norm_scale == "learned")
        self.prep = whitening_block(width, style) if prep == "whiten" else conv_block(3, width, style)
        self.layer1 = Stage(width, 2 * width, style, residual=True)
        self.layer2 = Stage(2 * width, 4 * width, style, residual=False)
        self.layer3 = Stage(4 * width, 8 * width, style, residual=True, norm_scale=LAST_NORM_SCALE)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.fc = nn.Linear(8 * width, classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Logits: no softmax, which the loss and the places that show probabilities apply.

        Args:
            images: float, (N, 3, image_size, image_size), normalised.

        Returns:
            float, (N, classes).
        """
        x = self.prep(images)  # (N, width, S, S)
        x = self.layer1(x)  # (N, 2 width, S / 2, S / 2)
        x = self.layer2(x)  # (N, 4 width, S / 4, S / 4)
        x = self.layer3(x)  # (N, 8 width, S / 8, S / 8)
        x = self.pool(x).flatten(1)  # (N, 8 width)
        if self.dropout is not None:
            x = self.dropout(x)
        logits: Tensor = self.fc(x)
        return logits if self.logit_scale == 1 else logits * self.logit_scale
