"""Where images come from, how they are cut down and how some are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from velodrome.config import DataSection
from velodrome.data import sources
from velodrome.data.imageset import ImageSet, Splits
from velodrome.errors import ConfigError

N_TRAIN, N_TEST = 90, 40


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch, coloured_images) -> None:
    """The drawn shapes are replaced by a few images of three classes, which are drawn faster."""
    pair = coloured_images(N_TRAIN, seed=1), coloured_images(N_TEST, seed=2)
    monkeypatch.setattr(sources, "ready_shapes", lambda: pair)


def load(seed: int = 0, **settings: object) -> Splits:
    return sources.load_splits(DataSection(data="shapes", **settings), seed)


def test_everything_without_limits_or_validation():
    splits = load()
    assert splits.name == "shapes"
    assert (len(splits.train), len(splits.test), splits.val) == (N_TRAIN, N_TEST, None)


def test_limits_are_exact_and_nested():
    paths = {n: load(limit_train=n, limit_test=n // 3).train.paths for n in (9, 30, 89)}
    assert {n: len(p) for n, p in paths.items()} == {9: 9, 30: 30, 89: 89}
    assert set(paths[9]) < set(paths[30]) < set(paths[89])
    assert len(load(limit_test=7).test) == 7
    assert len(load(limit_test=7).train) == N_TRAIN


def test_a_limited_set_keeps_each_image_with_its_label():
    whole, part = load().train, load(limit_train=20).train
    for image, label, path in zip(part.images_u8, part.labels, part.paths, strict=True):
        index = list(whole.paths).index(path)
        assert label == whole.labels[index]
        assert np.array_equal(image, whole.images_u8[index])


def test_a_limit_takes_from_the_whole_set_not_from_its_beginning():
    numbers = [int(Path(path).stem) for path in load(limit_train=20).train.paths]
    assert max(numbers) >= N_TRAIN - 20
    assert len(set(load(limit_train=20).train.labels)) == 3


@pytest.mark.parametrize("limit", [N_TRAIN, N_TRAIN + 1])
def test_a_limit_of_all_or_more_changes_nothing(limit):
    assert load(limit_train=limit).train.paths == load().train.paths


@pytest.mark.parametrize(("fraction", "per_class"), [(0.1, 3), (0.5, 15), (0.9, 27)])
def test_validation_is_stratified_disjoint_and_complete(fraction, per_class):
    splits = load(val_fraction=fraction)
    assert np.bincount(splits.val.labels).tolist() == [per_class] * 3
    assert set(splits.val.paths).isdisjoint(splits.train.paths)
    assert sorted([*splits.val.paths, *splits.train.paths]) == list(load().train.paths)
    assert len(splits.test) == N_TEST


def test_which_images_are_held_out_depends_on_the_seed_alone():
    def held(seed: int) -> list[str]:
        return list(load(seed, val_fraction=0.2).val.paths)

    assert held(0) == held(0)
    assert held(0) != held(1)


def test_validation_comes_out_of_the_limited_training_images():
    splits = load(limit_train=30, val_fraction=0.2)
    assert len(splits.train) + len(splits.val) == 30
    assert {*splits.train.paths, *splits.val.paths} == set(load(limit_train=30).train.paths)


@pytest.mark.parametrize(
    ("fraction", "which"), [(0.01, "no image to validate on"), (0.99, "no image to train on")]
)
def test_a_share_that_leaves_nothing_is_refused(fraction, which):
    with pytest.raises(ConfigError, match=f"val_fraction is {fraction:g}, which leaves {which} of {N_TRAIN}"):
        load(val_fraction=fraction)


# The data root.


def test_the_root_given_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("VELODROME_DATA", "elsewhere")
    assert sources.resolve_data_root(tmp_path) == tmp_path


def test_then_the_environment(monkeypatch):
    monkeypatch.setenv("VELODROME_DATA", "~/images")
    assert sources.resolve_data_root(None) == Path.home() / "images"


@pytest.mark.parametrize("value", [None, ""])
def test_then_the_user_cache(monkeypatch, tmp_path, value):
    monkeypatch.setattr(sources.pooch, "os_cache", lambda name: tmp_path / name)
    monkeypatch.delenv("VELODROME_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("VELODROME_DATA", value)
    assert sources.resolve_data_root(None) == tmp_path / "velodrome"


def test_cifar_is_looked_for_under_the_root(monkeypatch, tmp_path, coloured_images):
    asked = []

    def load_cifar(name: str, root: Path, *, progress: bool) -> tuple[ImageSet, ImageSet]:
        asked.append((name, root, progress))
        return coloured_images(6), coloured_images(3)

    monkeypatch.setattr(sources, "load_cifar", load_cifar)
    monkeypatch.setenv("VELODROME_DATA", str(tmp_path))
    splits = sources.load_splits(DataSection(data="cifar100"), seed=0, progress=False)
    assert asked == [("cifar100", tmp_path, False)]
    assert (splits.name, len(splits.train), len(splits.test)) == ("cifar100", 6, 3)
