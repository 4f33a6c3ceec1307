"""A run before its first step: what its network is fitted to, its batches, and the work that it will be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import velodrome as vd
from velodrome import job as jobs
from velodrome.data.augment import normalise
from velodrome.data.imageset import ImageSet, Splits
from velodrome.job import Job, make_loader, prepare, train_pflop
from velodrome.models.whitening import PatchWhitening

SMALL = {
    **{"model": "speednet", "width": 3, "batch_size": 16, "epochs": 2, "lr": 0.05, "precision": "fp32"},
    **{"device": "cpu", "crop": 1, "cutout": 2},
}
N, SIDE = 40, 12  # 3 steps an epoch: 16, 16 and 8 images
Prepare = Callable[..., Job]


@pytest.fixture
def prepared(coloured_images: Callable[..., ImageSet]) -> Prepare:
    """A function that prepares a job on coloured images."""

    def make(side: int = SIDE, **changes: object) -> Job:
        splits = Splits("shapes", coloured_images(N, side, side), None, coloured_images(8, side, side, 1))
        return prepare(vd.recipes.quick(**{**SMALL, **changes}), splits, progress=False)

    return make


def test_the_filters_are_fitted_to_the_normalised_training_images(prepared: Prepare) -> None:
    job = prepared()
    alone = PatchWhitening()
    alone.fit(normalise(torch.from_numpy(job.splits.train.images_u8), job.normalisation))
    torch.testing.assert_close(job.state.model.whiten.weight, alone.weight, rtol=1e-6, atol=1e-6)
    again = prepared(seed=1).state.model
    assert torch.equal(again.whiten.weight, job.state.model.whiten.weight)
    assert not torch.equal(again.fc.weight, job.state.model.fc.weight)


def test_no_more_images_than_needed_are_looked_at(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared().state.model.whiten.weight
    monkeypatch.setattr(jobs, "images_to_fit", lambda _network: 7)
    job = prepared()
    alone = PatchWhitening()
    alone.fit(normalise(torch.from_numpy(job.splits.train.images_u8[:7]), job.normalisation))
    torch.testing.assert_close(job.state.model.whiten.weight, alone.weight, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(job.state.model.whiten.weight, whole, atol=1e-3)


def test_the_time_to_fit_is_time_of_training(prepared: Prepare) -> None:
    clock = prepared().state.clock
    assert clock.elapsed_s() > 0
    assert clock.elapsed_s() == clock.elapsed_s()  # it stands still until the first step
    assert prepared(16, model="resnet9").state.clock.elapsed_s() == 0


def test_a_throwaway_is_fitted_too_and_shares_nothing(prepared: Prepare) -> None:
    job = prepared()
    other = job.throwaway(seed=5)
    assert torch.equal(other.state.model.whiten.weight, job.state.model.whiten.weight)
    assert other.state.model.whiten.weight is not job.state.model.whiten.weight
    assert not torch.equal(other.state.model.fc.weight, job.state.model.fc.weight)


@pytest.mark.parametrize("optimizer", ["muon", "sgd", "adam"])
def test_filters_that_are_fitted_are_not_trained(prepared: Prepare, optimizer: str) -> None:
    job = prepared(optimizer=optimizer)
    trained = {id(weight) for group in job.state.optimizer.param_groups for weight in group["params"]}
    assert id(job.state.model.whiten.weight) not in trained
    assert trained == {id(weight) for weight in job.state.model.parameters() if weight.requires_grad}


def test_resolutions_span_the_epochs_of_the_schedule(prepared: Prepare) -> None:
    """As they do in a run that was given more epochs."""
    text = "9:1,10:1"
    for changes, steps in (({"epochs": 4}, 6), ({"epochs": 4, "schedule_epochs": 2}, 3)):
        job = prepared(resolutions=text, **changes)
        sides = [job.loader.side_at(step) for step in range(job.total_steps)]
        assert sides == [9] * steps + [10] * (12 - steps)
        other = make_loader(job.config, job.splits.train, job.normalisation, job.device)
        assert [other.side_at(step) for step in range(12)] == sides


def macs_of_speednet(side: int, width: int, classes: int) -> int:
    """Multiply-accumulates for one image, by hand."""
    sides = [(side - 1) // 2**power for power in range(4)]
    first, second, third, fourth = (side**2 for side in sides)
    # In front of a pool, the even part of a side.
    pooled1, pooled2, pooled3 = ((side // 2 * 2) ** 2 for side in sides[:3])
    w = width
    return (
        24 * 12 * first
        + 9 * (24 * w * pooled1 + w * w * second)
        + 9 * (w * 4 * w * pooled2 + 16 * w * w * third)
        + 9 * (16 * w * w * pooled3 + 2 * 16 * w * w * fourth)
        + 4 * w * classes
    )


def test_the_work_of_a_training_by_hand(prepared: Prepare) -> None:
    macs = macs_of_speednet(SIDE, 3, 3)
    assert train_pflop(prepared()) == pytest.approx(6 * macs * N * 2 / 1e15, rel=1e-12)


def test_the_work_of_a_training_with_images_that_grow(prepared: Prepare) -> None:
    """6 steps: two thirds small, which are 16, 16, 8 and 16 images; then 16 and 8."""
    small, large = macs_of_speednet(9, 3, 3), macs_of_speednet(14, 3, 3)
    found = train_pflop(prepared(resolutions="9:2,14:1"))
    assert found == pytest.approx(6 * (56 * small + 24 * large) / 1e15, rel=1e-12)


def test_the_work_of_more_epochs(prepared: Prepare) -> None:
    small, large = macs_of_speednet(9, 3, 3), macs_of_speednet(14, 3, 3)
    found = train_pflop(prepared(resolutions="9:2,14:1", epochs=5, schedule_epochs=2))
    assert found == pytest.approx(6 * (56 * small + (24 + 3 * N) * large) / 1e15, rel=1e-12)


def test_nothing_of_the_job_is_changed_by_counting(prepared: Prepare) -> None:
    job = prepared(resolutions="9:2,14:1")
    before = {name: value.clone() for name, value in job.state.model.state_dict().items()}
    job.state.model.train()
    train_pflop(job)
    assert job.state.model.training
    assert all(torch.equal(value, before[name]) for name, value in job.state.model.state_dict().items())


def test_the_last_smaller_batch_can_be_dropped(prepared: Prepare) -> None:
    kept, dropped = prepared(), prepared(drop_last=True)
    assert (kept.total_steps, dropped.total_steps) == (6, 4)
    assert dropped.loader.images_per_epoch == 32
    assert train_pflop(dropped) == pytest.approx(train_pflop(kept) * 32 / 40)
    assert train_pflop(prepared(drop_last=True, batch_size=20)) == train_pflop(prepared(batch_size=20))


def test_preparation_has_a_time(prepared: Prepare) -> None:
    assert 0 < prepared().prepare_s < 60
