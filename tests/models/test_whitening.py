"""The whitening convolution: what its outputs are like on the images that it was fitted to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from velodrome.data.augment import normalise
from velodrome.data.imageset import channel_statistics
from velodrome.device import threads
from velodrome.models import whitening
from velodrome.models.whitening import EPS, PatchWhitening


@pytest.fixture
def images(random_images) -> Tensor:
    """(200, 3, 12, 10) float32: neighbouring pixels and channels are alike, as in photographs."""
    rough = random_images(200, 13, 11).astype(np.float64)
    smooth = (rough[:, 1:, 1:] + rough[:, :-1, 1:] + rough[:, 1:, :-1] + rough[:, :-1, :-1]) / 4
    grey = smooth.mean(3, keepdims=True)
    images_u8 = (0.3 * smooth + 0.7 * grey).astype(np.uint8)
    return normalise(torch.from_numpy(images_u8), channel_statistics(images_u8))


def patches_of(images: Tensor, patch: int) -> Tensor:
    """All patches, one a row, (P, 3 * patch * patch) float64."""
    _, _, height, width = images.shape
    rows = [
        images[:, :, y : y + patch, x : x + patch].reshape(len(images), -1)
        for y in range(height - patch + 1)
        for x in range(width - patch + 1)
    ]
    return torch.cat(rows).double()


def fitted(images: Tensor, patch: int = 2) -> PatchWhitening:
    layer = PatchWhitening(patch)
    layer.fit(images)
    return layer


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_outputs_have_the_same_variance_and_are_not_correlated(images, patch):
    layer = fitted(images, patch)
    axes = 3 * patch * patch
    outputs = layer(images).double()  # (N, 2 * axes, H - patch + 1, W - patch + 1)
    assert outputs.shape[1:] == (2 * axes, 13 - patch, 11 - patch)
    rows = outputs.transpose(0, 1).reshape(2 * axes, -1)[:axes]
    covariance = rows @ rows.T / rows.shape[1]
    # But for the constant that keeps noise from being blown up.
    variances = torch.linalg.eigvalsh(patches_of(images, patch).T @ patches_of(images, patch)) / rows.shape[1]
    expected = variances / (variances + EPS)
    torch.testing.assert_close(covariance, expected.diag(), rtol=0, atol=1e-4)
    assert expected.min() > 0.9
    inputs = patches_of(images, patch)
    assert torch.corrcoef(inputs.T).abs().sum() > 2 * axes  # there was something to whiten


def test_there_is_a_filter_of_either_sign_for_each_axis(images):
    weight = fitted(images).weight.detach()
    assert weight.shape == (24, 3, 2, 2)
    assert torch.equal(weight[12:], -weight[:12])
    directions = weight[:12].reshape(12, 12)
    directions = directions / directions.norm(dim=1, keepdim=True)
    torch.testing.assert_close(directions @ directions.T, torch.eye(12), rtol=0, atol=1e-5)


def test_filters_are_those_of_the_patches_by_hand(images):
    patches = patches_of(images, 2).numpy()
    variances, axes = np.linalg.eigh(patches.T @ patches / len(patches))
    found = fitted(images).weight.detach().double().reshape(24, 12)[:12].numpy()
    for filter_, variance, axis in zip(found, variances, axes.T, strict=True):
        expected = axis / np.sqrt(variance + EPS)
        sign = np.sign(filter_ @ expected)
        np.testing.assert_allclose(sign * filter_, expected, atol=2e-3 * np.abs(expected).max())


def test_axes_without_any_variance_are_not_blown_up():
    grey = torch.randn(50, 1, 6, 6, generator=torch.Generator().manual_seed(0)).expand(50, 3, 6, 6)
    weight = fitted(grey).weight.detach()
    assert weight.isfinite().all()
    assert weight.flatten(1).norm(dim=1).max() < 1.01 * EPS**-0.5


def test_filters_are_frozen_and_have_no_bias(images):
    layer = fitted(images)
    assert layer.bias is None
    assert not layer.weight.requires_grad
    before = layer.weight.clone()
    network = nn.Sequential(layer, nn.Conv2d(24, 2, 1))
    network(images).mean().backward()
    assert layer.weight.grad is None
    assert network[1].weight.grad is not None
    assert torch.equal(layer.weight, before)
    assert not PatchWhitening().weight.requires_grad  # from the start


@pytest.mark.parametrize("number", [2, 3])
def test_the_fit_does_not_depend_on_the_number_of_threads(images, number):
    fits = []
    for count in (1, number):
        with threads(count):
            fits.append(fitted(images).weight.detach())
    torch.testing.assert_close(fits[0], fits[1], rtol=1e-6, atol=1e-6)


def test_the_fit_is_a_function_of_the_images(images):
    again = fitted(images.contiguous(memory_format=torch.contiguous_format)).weight
    torch.testing.assert_close(again, fitted(images).weight, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(fitted(images[:20]).weight, again, atol=1e-2)


def test_half_precision_images_are_fitted_in_float32(images):
    weight = fitted(images.bfloat16()).weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, fitted(images.bfloat16().float()).weight)


def test_one_sign_and_padding(images):
    one = PatchWhitening(3, padding=1, both_signs=False)
    one.fit(images)
    both = fitted(images, 3)
    assert one.weight.shape == (27, 3, 3, 3)
    assert torch.equal(one.weight, both.weight[:27])  # fitted to patches without padding
    assert one(images).shape == (200, 27, 12, 10)
    torch.testing.assert_close(one(images)[:, :, 1:-1, 1:-1], both(images)[:, :27])


def test_the_constant_and_the_number_of_images_are_settings(images):
    layer = PatchWhitening(eps=1e-2, images=50)
    layer.fit(images)
    patches = patches_of(images[:50], 2)
    variances = torch.linalg.eigvalsh(patches.T @ patches / len(patches))
    lengths = layer.weight.detach()[:12].flatten(1).norm(dim=1).double()
    torch.testing.assert_close(lengths, (variances + 1e-2) ** -0.5, rtol=1e-3, atol=0)


def test_the_images_are_taken_in_chunks(images, monkeypatch):
    whole = fitted(images).weight
    monkeypatch.setattr(whitening, "CHUNK", 33)
    pieces = fitted(images).weight
    torch.testing.assert_close(pieces, whole, rtol=1e-3, atol=1e-3)
