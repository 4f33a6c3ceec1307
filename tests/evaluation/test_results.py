"""Test-time augmentation: the mean with the mirror image, and more views of images that are uncertain."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from velodrome.data.imageset import ImageSet, Normalisation
from velodrome.evaluation import predict, results
from velodrome.evaluation.results import Trained, answers_of

CPU = torch.device("cpu")
CONSTANTS = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture(autouse=True)
def batches_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "EVAL_BATCH_SIZE", 4)


@pytest.fixture
def model() -> nn.Module:
    """Neither symmetric nor blind to where things are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def trained(model: nn.Module, tta: str, precision: str = "fp32") -> Trained:
    return Trained(model, CONSTANTS, CPU, precision, tta)


def plain(model: nn.Module, images_u8: np.ndarray) -> Tensor:
    """(N, classes) float32."""
    pixels = (images_u8 / 255 - np.array(CONSTANTS.mean)) / np.array(CONSTANTS.std)
    with torch.no_grad():
        return model(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))


def mirror(images_u8: np.ndarray) -> np.ndarray:
    return images_u8[:, :, ::-1]


def six_views(model: nn.Module, images_u8: np.ndarray) -> Tensor:
    """Of every image: half the mean of it and its mirror image, half that of those moved by one pixel."""
    padded = np.pad(images_u8, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    up_and_left, down_and_right = padded[:, 2:, 2:], padded[:, :-2, :-2]
    moved = [up_and_left, mirror(up_and_left), down_and_right, mirror(down_and_right)]
    still = plain(model, images_u8) + plain(model, mirror(images_u8))
    return still / 4 + sum(plain(model, views) for views in moved) / 8


def unsure_by_hand(logits: Tensor, share: float) -> list[int]:
    """Places of the least certain images: a share of all, rounded up."""
    certainty = [max(np.exp(row) / np.exp(row).sum()) for row in logits.double().numpy()]
    return sorted(np.argsort(certainty)[: math.ceil(share * len(certainty))].tolist())


def test_the_usual_mean_is_with_the_mirror_image(model, coloured_images):
    images = coloured_images(10)
    logits, with_tta = answers_of(trained(model, "flip"), images)
    torch.testing.assert_close(logits, plain(model, images.images_u8), rtol=1e-4, atol=1e-5)
    mirrored = plain(model, mirror(images.images_u8))
    torch.testing.assert_close(with_tta, (logits + mirrored) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "unsure"), [(1, 1), (4, 1), (5, 2), (22, 6)])
def test_uncertain_images_are_looked_at_six_times(model, coloured_images, n, unsure):
    images = coloured_images(n)
    logits, with_views = answers_of(trained(model, "shift"), images)
    torch.testing.assert_close(logits, plain(model, images.images_u8), rtol=1e-4, atol=1e-5)
    chosen = unsure_by_hand(logits, 0.25)
    assert len(chosen) == unsure
    expected = six_views(model, images.images_u8)
    torch.testing.assert_close(with_views[chosen], expected[chosen], rtol=1e-4, atol=1e-5)
    others = [place for place in range(n) if place not in chosen]
    assert torch.equal(with_views[others], logits[others])
    assert not torch.allclose(with_views[chosen], logits[chosen], atol=1e-3)


def test_the_share_of_uncertain_images_may_be_all(model, coloured_images, monkeypatch):
    monkeypatch.setattr(results, "UNSURE_SHARE", 1.0)
    images = coloured_images(9)
    _, with_views = answers_of(trained(model, "shift"), images)
    torch.testing.assert_close(with_views, six_views(model, images.images_u8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tta", ["flip", "shift"])
def test_answers_without_augmentation_and_images_are_left_alone(model, coloured_images, tta):
    images = coloured_images(8)
    before = images.images_u8.copy()
    logits, with_tta = answers_of(trained(model, tta), images)
    assert np.array_equal(images.images_u8, before)
    torch.testing.assert_close(logits, plain(model, before), rtol=1e-4, atol=1e-5)
    assert logits.shape == with_tta.shape == (8, 3)
    assert logits.dtype == with_tta.dtype == torch.float32


def test_equally_uncertain_images_are_no_difficulty(coloured_images):
    """A network that answers the same to every image."""
    blind = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    nn.init.zeros_(blind[1].weight)
    logits, with_views = answers_of(trained(blind, "shift"), coloured_images(8))
    torch.testing.assert_close(with_views, logits)


def test_views_are_in_the_precision_of_the_run(model, coloured_images):
    images: ImageSet = coloured_images(8)
    half = answers_of(trained(model, "shift", "bf16"), images)[1]
    single = answers_of(trained(model, "shift"), images)[1]
    assert half.dtype == torch.float32
    assert not torch.equal(half, single)


@pytest.mark.parametrize(
    ("side", "device", "expected"),
    [
        (32, "cpu", 500),
        (8, "cpu", 500),
        (64, "cpu", 125),
        (256, "cpu", 7),
        (4096, "cpu", 1),
        (64, "cuda", 500),
    ],
)
def test_large_images_are_answered_fewer_at_once(side: int, device: str, expected: int) -> None:
    assert predict.at_once(500, (side, side), torch.device(device)) == expected
