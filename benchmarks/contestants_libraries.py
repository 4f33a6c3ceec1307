"""Training with fastai and with Lightning, as their users write it, around velodrome's network.

Both libraries run the loop themselves; a callback of theirs tells the watch of each step and each epoch. As
in the plain loops, the optimizer is SGD with Nesterov momentum in one cycle up to the job's LRMAX; what a
library does differently by default (slopes, momentum) is left as it is. Progress bars, logs and checkpoints
are off.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from contestants import Contestant, Watch, new_network, no_workers_left
from contestants_torch import informed, plain, sgd_in_one_cycle, torch_loader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from velodrome.errors import DeviceError
from velodrome.job import Job


def fastai(job: Job, workers: int) -> Contestant:
    """A Learner over a DataBlock, in float32.

    Args:
        job: settings and images; its own network and loader are not used.
        workers: processes that prepare batches.
    """
    network = new_network(job).to(memory_format=torch.contiguous_format)
    train = partial(train_learner, job, network, fastai_loaders(job, workers), [])
    return Contestant(f"fastai ({workers} workers)", train)


def fastai_bf16(job: Job, workers: int) -> Contestant:
    """The same with fastai's callbacks for channels last and mixed precision."""
    library = import_library("fastai.vision.all")

    class MixedPrecision(library.MixedPrecision):
        """Fastai's own, which knows no other device than a GPU, on the device of the job."""

        def before_fit(self) -> None:
            with warnings.catch_warnings(action="ignore"):  # of CUDA that is not there
                super().before_fit()
            self.autocast = torch.autocast(job.device.type, dtype=torch.bfloat16)

    callbacks = [library.ChannelsLast, partial(MixedPrecision, library.AMPMode.BF16)]
    train = partial(train_learner, job, new_network(job), fastai_loaders(job, workers), callbacks)
    return Contestant(f"fastai-bf16 ({workers} workers)", train)


def train_learner(
    job: Job, network: nn.Module, loaders: Any, callbacks: Iterable[Callable[[], Any]], watch: Watch
) -> None:
    """Train by fastai's `fit_one_cycle`.

    Args:
        job: settings.
        network: to train; it is trained on from call to call.
        loaders: fastai's DataLoaders.
        callbacks: make the callbacks of the Learner.
        watch: is told of all steps and epochs.
    """
    library = import_library("fastai.vision.all")

    class Watching(library.Callback):
        order = 100  # after all others

        def after_batch(self) -> None:
            if watch.step_done():
                raise library.CancelFitException

        def after_train(self) -> None:
            watch.epoch_done(network)

        def before_validate(self) -> None:
            raise library.CancelValidException

    learner = library.Learner(
        loaders,
        network,
        loss_func=library.CrossEntropyLossFlat(),
        opt_func=partial(library.OptimWrapper, opt=torch.optim.SGD, momentum=0.9, nesterov=True),
        wd=5e-4,
        cbs=[make() for make in callbacks],
    )
    train = job.config.train
    with no_workers_left(), learner.no_bar(), learner.no_logging():
        watch.begin()
        learner.fit_one_cycle(train.epochs, float(train.lr), cbs=Watching())
        gc.collect()  # the loader's iterator, in a cycle of references after CancelFitException


def fastai_loaders(job: Job, workers: int) -> Any:
    """Fastai's DataLoaders of the training images: crop and flip of single images, the rest of whole batches.

    RandomErasing is fastai's CutOut: of the given size here, at one place of a batch, filled with noise.

    Raises:
        DeviceError: fastai cannot be imported.
    """
    library = import_library("fastai.vision.all")
    images, augment = job.splits.train, job.config.augment
    side = images.images_u8.shape[1]
    hole = augment.cutout**2 / side**2
    block = library.DataBlock(
        blocks=(library.ImageBlock, library.CategoryBlock(vocab=images.classes, sort=False)),
        get_x=lambda index: images.images_u8[index],
        get_y=lambda index: images.classes[images.labels[index]],
        splitter=library.IndexSplitter([]),  # nothing is held out: the test images are scored by velodrome
        item_tfms=[library.CropPad(side + 2 * augment.crop), library.RandomCrop(side), library.FlipItem()],
        batch_tfms=[
            library.Normalize.from_stats(job.normalisation.mean, job.normalisation.std),
            library.RandomErasing(p=1.0, sl=hole, sh=hole, min_aspect=1),
        ],
    )
    return block.dataloaders(
        range(len(images)),
        bs=job.config.train.batch_size,
        num_workers=workers,
        drop_last=False,
        device=job.device,
    )


def lightning(job: Job, workers: int) -> Contestant:
    """A LightningModule and a Trainer with its default precision, over the loader of the plain loop.

    Args:
        job: settings and images; its own network and loader are not used.
        workers: processes that prepare batches.
    """
    network = new_network(job).to(memory_format=torch.contiguous_format)
    train = partial(train_lightning, job, network, torch_loader(job, workers), "32-true")
    return Contestant(f"lightning ({workers} workers)", train)


def lightning_bf16(job: Job, workers: int) -> Contestant:
    """The same with precision="bf16-mixed" and channels last."""
    train = partial(train_lightning, job, new_network(job), torch_loader(job, workers), "bf16-mixed")
    return Contestant(f"lightning-bf16 ({workers} workers)", train)


def train_lightning(job: Job, network: nn.Module, loader: DataLoader, precision: str, watch: Watch) -> None:
    """Train by Lightning's `Trainer.fit`.

    Args:
        job: settings.
        network: to train; it is trained on from call to call.
        loader: torch's, of the training images.
        precision: as the Trainer takes it.
        watch: is told of all steps and epochs.
    """
    library = import_library("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # a few lines for each Trainer

    class Watching(library.Callback):
        def on_train_batch_end(self, trainer: Any, *_: object) -> None:
            trainer.should_stop = watch.step_done()

        def on_train_epoch_end(self, *_: object) -> None:
            watch.epoch_done(network)

    trainer = library.Trainer(
        accelerator={"cuda": "gpu"}.get(job.device.type, job.device.type),
        devices=1,
        precision=precision,
        max_epochs=job.config.train.epochs,
        callbacks=[Watching()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = lightning_module(library, job, network, len(loader))
    with no_workers_left(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")  # it wants one for each core
        warnings.filterwarnings("ignore", ".*isinstance.treespec")  # its own use of torch
        watch.begin()
        trainer.fit(module, loader)


def lightning_module(library: Any, job: Job, network: nn.Module, steps_per_epoch: int) -> Any:
    """The network as a LightningModule."""

    class Classifier(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: tuple[Tensor, Tensor], _batch_index: int) -> Tensor:
            images, labels = batch
            loss = F.cross_entropy(self.network(images), labels)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer, scheduler = sgd_in_one_cycle(self.network, job, steps_per_epoch)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return Classifier()


# By the name that a user types. Each makes a contestant of a job and a number of worker processes.
RIVALS: dict[str, Callable[[Job, int], Contestant]] = {
    "plain": plain,
    "informed": informed,
    "fastai": fastai,
    "fastai-bf16": fastai_bf16,
    "lightning": lightning,
    "lightning-bf16": lightning_bf16,
}


def check_installed(rivals: Iterable[str]) -> None:
    """Check that the libraries of these rivals are there, without importing them.

    Raises:
        DeviceError: one is not.
    """
    for rival in rivals:
        library = rival.partition("-")[0]
        if library in ("fastai", "lightning") and importlib.util.find_spec(library) is None:
            raise _not_there(library)


def import_library(name: str) -> Any:
    """A module of fastai or Lightning, imported only where it competes.

    Raises:
        DeviceError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _not_there(name.partition(".")[0]) from error


def _not_there(library: str) -> DeviceError:
    remedy = f"pip install {library}, or leave it out with --only."
    return DeviceError(f"{library} cannot be imported.", remedy)
