"""What a network answers: logits for a whole image set, and a model that is ready to predict."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from velodrome.data.augment import normalise
from velodrome.data.imageset import ImageSet, ImagesU8, Normalisation
from velodrome.data.loader import batches_in_order
from velodrome.device import autocast
from velodrome.distributed import ALONE, World
from velodrome.errors import DataError

# Images of 32 x 32 pixels that are answered at once.
EVAL_BATCH_SIZE, EVAL_SIDE = 500, 32
# A GPU has more memory than that takes, and is busy with no less.
TIMES_ON_GPU = 16


def logits_of(
    model: nn.Module,
    images: ImageSet,
    normalisation: Normalisation,
    *,
    device: torch.device,
    precision: str,
    mirrored: bool = False,
    world: World = ALONE,
) -> Tensor:
    """The network's answers to all images, in evaluation mode, without augmentation.

    Several ranks share the batches out and all get all answers: those of a process alone, as long as they
    have the same network.

    Args:
        model: on `device`; its mode is put back afterwards.
        images: to answer.
        normalisation: of the training images.
        device: where to compute.
        precision: "fp32", "bf16" or "fp16".
        mirrored: answer to the mirror images; the mean of both logits is test-time augmentation.
        world: the ranks that answer together.

    Returns:
        (N, classes) float32 on the CPU.
    """
    with evaluating(model), torch.inference_mode(), autocast(device, precision):
        batch_size = at_once(EVAL_BATCH_SIZE, images.images_u8.shape[1:3], device)
        batches = batches_in_order(images, normalisation, batch_size, device, world)
        answers = [model(batch.flip(3) if mirrored else batch).float() for batch in batches]
        if world.is_alone:
            return torch.cat(answers).cpu()
        of_ranks = world.gather([answer.cpu() for answer in answers])
        in_order = itertools.chain(*itertools.zip_longest(*of_ranks))
        return torch.cat([answer for answer in in_order if answer is not None])


def at_once(most: int, size: Sequence[int], device: torch.device) -> int:
    """How many images to compute with at once, so that large ones take no more memory than small ones.

    Args:
        most: of 32 x 32 pixels on a CPU; there are never more.
        size: (height, width) of the images in pixels.
        device: where to compute.

    Returns:
        1 or more.
    """
    times = 1 if device.type == "cpu" else TIMES_ON_GPU
    return max(1, min(most, times * most * EVAL_SIDE**2 // (size[0] * size[1])))


def shifted(images_u8: ImagesU8, pixels: int) -> ImagesU8:
    """Images moved right and down by so many pixels (left and up below 0); what is missing is reflected.

    Args:
        images_u8: (N, H, W, C) uint8.
        pixels: smaller than H and W.

    Returns:
        (N, H, W, C) uint8.
    """
    height, width = images_u8.shape[1:3]
    room = abs(pixels)
    padded = np.pad(images_u8, ((0, 0), (room, room), (room, room), (0, 0)), "reflect")
    start = room - pixels
    return np.ascontiguousarray(padded[:, start : start + height, start : start + width])


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of a model are; the CPU for one without any."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is in the mode in which it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class Classifier(nn.Module):
    """A trained network with all that it needs to answer about raw images.

    Attributes:
        network: (N, 3, H, W) normalised float -> (N, classes) logits.
        classes: the class names, in the order of the logits.
        normalisation: constants of the images that it was trained on.
        image_size: (height, width) in pixels.
        image_fit: how files of another shape are brought to it: "crop", "pad" or "squash".
    """

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        normalisation: Normalisation,
        image_size: tuple[int, int],
        image_fit: str = "crop",
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = tuple(classes)
        self.normalisation = normalisation
        self.image_size = image_size
        self.image_fit = image_fit

    def forward(self, images_u8: Tensor) -> Tensor:
        """Logits of raw images.

        Args:
            images_u8: (N, H, W, 3) uint8, RGB.

        Returns:
            (N, classes) float32.

        Raises:
            DataError: shape or type of the images is another.
        """
        if images_u8.dtype != torch.uint8 or images_u8.ndim != 4 or images_u8.shape[3] != 3:
            raise DataError(
                f"Images are {images_u8.dtype} of shape {tuple(images_u8.shape)}, "
                "but must be uint8 of shape (N, height, width, 3).",
                "Stack RGB images as they come from an image file, without scaling them.",
            )
        if tuple(images_u8.shape[1:3]) != self.image_size:
            height, width = self.image_size
            raise DataError(
                f"Images are {images_u8.shape[1]}x{images_u8.shape[2]} pixels, "
                f"but the model was trained on {height}x{width}.",
                f"Resize them to {height}x{width}.",
            )
        logits: Tensor = self.network(normalise(images_u8, self.normalisation)).float()
        return logits

    @torch.inference_mode()
    def probabilities(self, images_u8: ImagesU8 | Tensor) -> Tensor:
        """Probability of each class: (N, H, W, 3) uint8 -> (N, classes) float32 that sum to 1."""
        if not isinstance(images_u8, Tensor):
            images_u8 = torch.from_numpy(np.array(images_u8))  # a copy: arrays of PIL images are read-only
        logits: Tensor = self(images_u8)
        return logits.softmax(1)

    def predict(self, images_u8: ImagesU8 | Tensor) -> list[tuple[str, float]]:
        """The most probable class of each image and its probability: (N, H, W, 3) uint8 -> N pairs."""
        best = self.probabilities(images_u8).max(1)
        return [
            (self.classes[index], probability)
            for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
