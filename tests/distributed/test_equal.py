"""However many ranks train, they train the same network; and all of them have the same."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_processes import TINY, command, flags, ranks, step_losses
from torch import nn

import velodrome as vd
from velodrome import budget
from velodrome.config import AugmentSection, TrainSection, replanned_parts
from velodrome.data.imageset import ImageSet, Normalisation
from velodrome.data.loader import Loader
from velodrome.device import threads
from velodrome.distributed import ALONE, Place, World, join
from velodrome.job import prepare_together
from velodrome.models.build import build_model
from velodrome.run.folder import RunFolder
from velodrome.runs import read_config
from velodrome.training.loop import NO_SCORES, fit
from velodrome.training.optim import make_optimizer
from velodrome.training.schedule import make_schedule, resolve_lr
from velodrome.training.state import Meter, TrainState
from velodrome.training.step import make_step, seed_step

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_have_the_loss_curve_of_one_process_with_ghost_batches(
    size: int, data: str, tmp_path: Path
) -> None:
    words = flags(TINY, data=data, name="ranks")
    with ranks(size, command, "train", "quick", *words, place=tmp_path) as run:
        assert run.wait() == [0] * size, run.words(0)
        assert [run.words(rank) for rank in range(1, size)] == [""] * (size - 1)
    place = {"runs_dir": tmp_path / "runs", "name": "one"}
    config = vd.override(vd.recipes.quick(), {**TINY, "data": data, "ghost_batch": 32 // size, **place})
    with threads(1):
        one = vd.train(config, progress=False)
    ours, theirs = step_losses(tmp_path / "runs" / "ranks"), step_losses(one.path)
    assert len(ours) == 8
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert_same_answers(tmp_path / "runs" / "ranks", one.path)
    environment = json.loads((tmp_path / "runs" / "ranks" / "environment.json").read_text())
    assert environment["ranks"] == size


def slow_at_first(*words: str) -> int:
    """`velodrome`, which takes the machine for half as fast as it is, and on the last rank for a third."""
    budget.AROUND_STEPS = 2.0 + float(os.environ["RANK"])
    budget.PAGE_S = 0.5
    return command(*words)


def test_ranks_agree_on_the_steps_that_fit_into_a_time(data: str, tmp_path: Path) -> None:
    words = flags({**TINY, "time_budget": "8s"}, data=data, name="timed")
    with ranks(2, slow_at_first, "train", "quick", *words, place=tmp_path) as run:
        assert run.wait() == [0, 0], run.words(0) + run.words(1)
    folder = RunFolder(tmp_path / "runs" / "timed")
    settled = read_config(folder).train
    done, planned = replanned_parts(settled.replanned)
    assert planned / 2 <= done < planned < settled.steps
    assert len(step_losses(folder.path)) == settled.steps


def assert_same_answers(run: Path, other: Path) -> None:
    """To within what half precision, in which they are kept, and the last bits of the weights make."""
    ours, theirs = (np.load(folder / "probabilities.npy").astype(float) for folder in (run, other))
    assert len(ours) == 40
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    scores = [[row["test_acc"] for row in RunFolder(folder).read_history()] for folder in (run, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1.01 / 40)


def hashes_of_steps(data: str) -> None:
    """Print hashes of the weights after each step, and of the buffers at the end."""
    with join(lambda: CPU) as world:
        for optimizer in ("sgd", "adam", "muon"):
            settings = {**TINY, "data": data, "limit_train": 70, "dropout": 0.3, "l1": 1e-4, "mixup": 0.2}
            config = vd.override(vd.recipes.quick(), {**settings, "optimizer": optimizer})
            job = prepare_together(config, world, progress=False)
            lr_at = make_schedule(job.config.train, job.loader.steps_per_epoch)
            how = {"precision": "fp32", "seed": 0, "score": lambda _network: NO_SCORES}
            for _ in fit(job.state, job.loader, lr_at, job.config.train, **how):
                weights, losses = hash_of(*job.state.model.parameters()), job.state.meter.step_losses()
                sys.stdout.write(f"{job.state.step} {weights} {losses}\n")
            before = hash_of(*job.state.model.buffers())
            assert len(set(world.gather(before))) == world.size, "each rank follows its own part"
            world.average_buffers(job.state.model)
            sys.stdout.write(f"{hash_of(*job.state.model.buffers())}\n")


def hash_of(*tensors: torch.Tensor) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def test_all_ranks_have_the_same_bits_after_every_step(data: str, tmp_path: Path) -> None:
    with ranks(2, hashes_of_steps, data, place=tmp_path) as run:
        assert run.wait() == [0, 0], run.words(0)
        assert run.words(0) == run.words(1)
        assert len(run.words(0).splitlines()) == 3 * (2 * 3 + 2 + 1)  # steps, epochs, buffers


class Linear(nn.Module):
    """Without batch norm, which ranks do not share."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.linspace(-0.1, 0.1, self.fc.weight.numel()).view_as(self.fc.weight))
            self.fc.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(images.flatten(1))
        return logits


def weights_after_an_epoch(
    world: World, augment: AugmentSection, balance: str
) -> tuple[np.ndarray, list[float]]:
    """Of 21 images in batches of 8, so that the last has 5; their classes are of unlike sizes."""
    rng = np.random.default_rng(0)
    labels = np.array([0] * 12 + [1] * 6 + [2] * 3)
    images = ImageSet(
        rng.integers(0, 256, (21, 8, 8, 3), dtype=np.uint8),
        labels,
        ("a", "b", "c"),
        [str(i) for i in range(21)],
    )
    bytes_ = Normalisation((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    loader = Loader(images, bytes_, augment, 8, 3, CPU, balance=balance, world=world)
    train = resolve_lr(TrainSection(epochs=1, lr=0.05, l1=1e-3, label_smoothing=0.1))
    model = Linear()
    state = TrainState(
        model, make_optimizer(model, train), torch.amp.GradScaler("cpu", enabled=False), Meter(3, CPU)
    )
    step, _ = make_step(state, train, loader, precision="fp32", seed=0, compiled=False)
    epoch = loader.epoch(0)
    for index in range(3):
        step(epoch, index, 0.05)
        state.step += 1
    assert state.meter.images.tolist() == [8, 8, 5]
    return model.fc.weight.detach().numpy(), list(state.meter.step_losses())


AUGMENTS = [AugmentSection(crop=1, cutout=2), AugmentSection(crop=1, cutout=2, mixup=0.5, cutmix=1.0)]


def compare_with_one_process() -> None:
    with join(lambda: CPU) as world:
        for augment in AUGMENTS:
            for balance in ("none", "weights"):
                weights, losses = weights_after_an_epoch(world, augment, balance)
                expected, expected_losses = weights_after_an_epoch(ALONE, augment, balance)
                np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_the_gradient_is_the_mean_over_the_whole_batch_however_it_is_shared_out(
    size: int, tmp_path: Path
) -> None:
    """Of four ranks, two have no part in the last batch of five images."""
    with ranks(size, compare_with_one_process, place=tmp_path) as run:
        assert run.wait() == [0] * size, [run.words(rank) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("images", [1, 2, 3, 5, 7, 8, 64, 65])
def test_parts_of_a_batch_are_all_of_it_even_and_never_of_one_image(size: int, images: int) -> None:
    parts = [World(Place(rank, size, rank)).part_of(images) for rank in range(size)]
    assert [index for part in parts for index in part] == list(range(images))
    sizes = [len(part) for part in parts if part]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, images)


def test_each_rank_drops_other_features_in_a_step_and_the_same_ones_again() -> None:
    def drawn(*which: int) -> list[float]:
        with torch.random.fork_rng():
            seed_step(which[0], which[1], CPU, *which[2:])
            return torch.rand(4).tolist()

    assert drawn(5, 3) == drawn(5, 3, 0)
    assert drawn(5, 3, 1) == drawn(5, 3, 1)
    assert len({tuple(drawn(5, 3, rank)) for rank in range(4)}) == 4


def test_batch_norm_over_all_ranks_has_the_parameters_and_names_of_any_other() -> None:
    section = vd.recipes.quick(width=2).model
    plain = build_model(section, classes=3, image_size=16)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(build_model(section, classes=3, image_size=16))
    assert list(plain.state_dict()) == list(synced.state_dict())
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(synced.eval()(images), plain.eval()(images))
