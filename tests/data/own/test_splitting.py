"""Images that are the same lie on one side of a split; all others lie where they always did."""

from __future__ import annotations

import numpy as np
import pytest

from velodrome.data.own.splitting import held_out_whole, without_copies

LABELS = np.repeat([0, 1], 50)


def groups(*members: list[int]) -> list[np.ndarray]:
    return [np.array(group) for group in members]


def held_out(labels: np.ndarray, same: list[np.ndarray], fraction: float, seed: int = 0) -> np.ndarray:
    return held_out_whole(labels, same, fraction, np.random.default_rng(seed))


def test_without_copies_the_lots_are_those_of_each_class_in_turn() -> None:
    rng = np.random.default_rng(3)
    expected = np.concatenate([rng.permutation(np.flatnonzero(label == LABELS))[:10] for label in (0, 1)])
    assert np.flatnonzero(held_out(LABELS, [], 0.2, seed=3)).tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("seed", range(20))
def test_the_same_images_are_held_out_together(seed: int) -> None:
    same = groups(*([first, first + 1, first + 2] for first in range(0, 45, 3)), [60, 90])
    held = held_out(LABELS, same, 0.2, seed)
    assert all(len(set(held[group].tolist())) == 1 for group in same)
    assert np.bincount(LABELS[held]).tolist() == [10, 10]


def test_a_group_has_the_lot_of_its_first_image() -> None:
    first_of_all = int(np.random.default_rng(0).permutation(50)[0])
    last_of_all = int(np.random.default_rng(0).permutation(50)[-1])
    members = sorted([first_of_all, last_of_all])
    held = held_out(LABELS, groups(members), 0.2)
    assert held[members].all() == (members[0] == first_of_all)
    others = np.setdiff1d(np.arange(100), members)
    alone = held_out(LABELS, [], 0.2)
    assert (held[others] != alone[others]).sum() <= 1


def test_a_group_of_several_classes_is_on_one_side() -> None:
    for seed in range(20):
        held = held_out(LABELS, groups([0, 50], [1, 51, 52]), 0.5, seed)
        assert held[0] == held[50]
        assert held[1] == held[51] == held[52]


def test_a_class_of_groups_alone_has_one_held_out_and_one_that_is_all_the_same_none() -> None:
    labels = np.repeat([0, 1], 10)
    held = held_out(labels, groups([0, 1, 2], [3, 4], [5, 6, 7, 8, 9], list(range(10, 20))), 0.1)
    assert np.flatnonzero(held).tolist() == [3, 4]


def test_what_is_tested_on_is_not_trained_on() -> None:
    splits = np.array(["train", "test", "train", "test", "test", "test"])
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert without_copies(splits, labels, groups([0, 1], [4, 5])).tolist() == [
        "train",
        "train",
        "train",
        "test",
        "test",
        "test",
    ]


def test_a_class_keeps_its_only_images_to_test_on() -> None:
    splits, labels = np.array(["train", "test", "train", "test"]), np.array([0, 0, 1, 1])
    assert without_copies(splits, labels, groups([0, 1])).tolist() == splits.tolist()
