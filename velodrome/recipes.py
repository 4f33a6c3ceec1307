"""Recipes: functions that return a whole `Config`. Keywords change single settings: `resnet9(epochs=5)`."""

from __future__ import annotations

from collections.abc import Callable

from velodrome.config import Config, check, is_own, override
from velodrome.errors import ConfigError, did_you_mean


def resnet9(**settings: object) -> Config:
    """The reference: a ResNet of 6,573,120 parameters, one-cycle over 24 epochs at batch 512, on CIFAR-10.

    Random crop after zero padding by 4, horizontal flip, one 8x8 CutOut square; SGD with Nesterov momentum;
    the learning rate peaks at 5/24 of all steps and never goes below LRMIN; a range test finds it first.

    Measured on two cores of an AMD EPYC (Zen 5) in bf16, torch 2.13: with `--seed 0 --lr 0.2` 93.27% test
    accuracy after 1:26:53, other work on the machine (n = 1, benchmarks/reference.md).

        velodrome train resnet9
    """
    return _recipe("resnet9", {}, settings)


def speed94(**settings: object) -> Config:
    """The least time to a mean of 94% on CIFAR-10: SpeedNet, Muon, pictures that grow from 20 to 32 pixels.

    Nine epochs of batches of 1000, crops by 2 after reflection, each image and its mirror image by turns,
    brightness and contrast changed a little, label smoothing 0.2, the learning rate falling linearly to 0;
    tested with six views of uncertain images.

    Measured on two cores of an AMD EPYC (Zen 5) in bf16, torch 2.15 (benchmarks/speed94.md): 94.02% test
    accuracy (mean of n = 5 seeds, 95% CI 93.89% to 94.15%; 93.02% without test-time augmentation) after a
    median of 349 s, of which 7 s for the answers. In turn with it, cifar10-airbench's airbench94_muon took
    2.09 times as long, from the start to the end of the command (2.06 to 2.17, n = 5), for 93.99%.

        velodrome train speed94
    """
    ours = {
        "model": "speednet",
        "crop": 2,
        "crop_fill": "reflect",
        "cutout": 0,
        "alternate_flip": True,
        "brightness": 0.07,
        "contrast": 0.13,
        "resolutions": "20:2,24:2,28:2,32:3",
        "epochs": 9,
        "batch_size": 1000,
        "optimizer": "muon",
        "lr": 0.17,
        "lr_final": 0.0,
        "peak": 0.0,
        "head_lr_scale": 0.22,
        "bias_lr_scale": 700.0,
        "momentum": 0.6,
        "weight_decay": 0.0,
        "label_smoothing": 0.2,
        "score_every": 0,
        "tta": "shift",
    }
    return _recipe("speed94", ours, settings)


def dawnbench(**settings: object) -> Config:
    """The skeleton of `resnet9` with the tricks of DAWNBench's record of 2019: 94% in 10 s on eight V100s.

    The entry is Apple's of December 2019 (ml-cifar-10-faster), after D. Page's bag of tricks (Myrtle.ai
    2018): whitened 3x3 patches in front of a 1x1 convolution, CELU, batch norm over groups of 16 images whose
    scale stays 1, logits divided by 16, label smoothing 0.2; crops after reflection, flips, no CutOut.
    Eighteen epochs of batches of 2048, which were 256 on each of eight devices; what is left of an epoch is
    dropped. The learning rate rises from 0 to 1.5 at epoch 3.6, falls to a tenth at epoch 16 and stays;
    biases have 64 times as much, and 1/64 of the weight decay. Both are those of the entry, whose loss is a
    sum over the batch, for a mean. Answers are the mean over an image and its mirror image. Other than there,
    momentum is torch's, which knows no learning rate, and the eight parts of a batch are dealt out anew in
    each epoch.

    Published: median 94.19%, 41 of 50 runs at or above 94%. Measured here is no more than that it learns:
    57.05% test accuracy with `--epochs 3` on two cores of an AMD EPYC (Zen 5) in bf16, torch 2.15 (n = 1).

        velodrome train dawnbench
    """
    ours = {
        "crop_fill": "reflect",
        "cutout": 0,
        "prep": "whiten",
        "activation": "celu",
        "norm_scale": "fixed",
        "ghost_batch": 16,
        "logit_scale": 1 / 16,
        "epochs": 18,
        "batch_size": 2048,
        "drop_last": True,
        "lr": 1.5,
        # A line from 0 one step before the first, with 24 steps an epoch.
        "lr_min": f"{100 / (3.6 * 24):.6f}%",
        "lr_final": "10%",
        "peak": 3.6 / 18,
        "flat_end": 2 / 18,
        "bias_lr_scale": 64.0,
        "weight_decay": 5e-4 * 1.5,
        "bias_decay_scale": 1 / 64,
        "label_smoothing": 0.2,
    }
    return _recipe("dawnbench", ours, settings)


def quick(**settings: object) -> Config:
    """A first try in a minute: the reference network at a quarter of its width, few epochs, on drawn shapes.

    velodrome train --data shapes
    """
    ours = {"data": "shapes", "width": 16, "epochs": 5, "batch_size": 128}
    return _recipe("quick", ours, settings)


def folder(**settings: object) -> Config:
    """Sensible defaults for a user's own images, whatever they are.

    The reference network at half of its width, by Muon, on images of 32 to 64 pixels, chosen by their sizes;
    more epochs and smaller batches the fewer images there are; crops, flips, a little colour and CutOut; a
    tenth of the training images held out to choose by, test images scored once, at the end; rare classes
    drawn more often where they are very rare. A range test finds the learning rate.

    Measured on two cores of an AMD EPYC (Zen 5) in bf16, torch 2.15 (benchmarks/own_images.md), with 4,000
    images of CIFAR-10 as PNG files and `--epochs 10`: 73.53% test accuracy (mean of n = 3, 72.60% to 75.30%)
    after a median of 82 s, from the start of the command to its end.

        velodrome train --data photos/
    """
    ours = {
        "val_fraction": "auto",
        "crop": "auto",
        "cutout": "auto",
        "width": 32,
        "brightness": 0.2,
        "contrast": 0.2,
        "epochs": "auto",
        "batch_size": "auto",
        "optimizer": "muon",
        "label_smoothing": 0.1,
        "balance": "auto",
        "score_test": "once",
    }
    return _recipe("folder", ours, settings)


Recipe = Callable[..., Config]
RECIPES: dict[str, Recipe] = {
    "speed94": speed94,
    "resnet9": resnet9,
    "dawnbench": dawnbench,
    "folder": folder,
    "quick": quick,
}


def by_name(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"{name!r} is not a recipe.", did_you_mean(name, RECIPES))
    return RECIPES[name]


def default_for(data: object) -> str:
    """The recipe for a data set when none was asked for."""
    if data is not None and is_own(str(data)):
        return "folder"
    return "quick" if data == "shapes" else "speed94"


def _recipe(name: str, ours: dict[str, object], theirs: dict[str, object]) -> Config:
    return check(override(override(Config(recipe=name), ours), theirs))
