"""From settings to a network, whose weights are a function of the seed, and of images where it is fitted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from velodrome.config import MADE_OF, ModelSection
from velodrome.models.build import build_model, fit_to_images, images_to_fit
from velodrome.models.resnet9 import ResNet9
from velodrome.models.speednet import SpeedNet
from velodrome.models.whitening import PatchWhitening

NETWORKS = {"resnet9": ResNet9, "speednet": SpeedNet}


def made(model: str, seed: int = 0, **settings: object) -> nn.Module:
    section = ModelSection(**{"model": model, "width": 2, **settings})
    return build_model(section, classes=3, image_size=16, seed=seed)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def images(seed: int = 0) -> Tensor:
    return torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_network_that_was_asked_for(name):
    model = made(name, dropout=0.25)
    assert type(model) is NETWORKS[name]
    assert model.fc.weight.shape[0] == 3
    assert model.dropout.p == 0.25
    assert model.eval()(images()).shape == (40, 3)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_a_function_of_the_seed(name):
    torch.manual_seed(1)
    first = weights_of(made(name))
    torch.manual_seed(2)
    torch.rand(5)
    again, other = weights_of(made(name)), weights_of(made(name, seed=1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    random = {key for key in first if key.endswith(("conv.weight", "conv1.weight", "fc.weight"))}
    assert "fc.weight" in random
    differing = {key for key in first if not torch.equal(first[key], other[key])}
    assert "fc.weight" in differing
    assert differing & random > {"fc.weight"}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_random_state_is_left_alone(name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    model = made(name)
    fit_to_images(model, images())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_filters_lie_in_memory_as_the_images_do(name):
    for module in made(name).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_fitting_sets_the_filters_of_whitening_and_nothing_else():
    model = made("speednet")
    before = weights_of(model)
    fit_to_images(model, images())
    after = weights_of(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"whiten.weight"}
    alone = PatchWhitening()
    alone.fit(images())
    torch.testing.assert_close(after["whiten.weight"], alone.weight.detach(), rtol=1e-6, atol=1e-6)
    assert model.whiten.weight.is_contiguous(memory_format=torch.channels_last)
    assert images_to_fit(model) == 5000
    assert images_to_fit(made("resnet9", prep="whiten")) == 10_000


def test_fitting_leaves_other_networks_alone():
    model = made("resnet9")
    before = weights_of(model)
    fit_to_images(model, images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert images_to_fit(model) == 0


def test_every_whitening_of_a_network_is_fitted_wherever_it_is():
    model = nn.ModuleList([nn.Sequential(PatchWhitening()), PatchWhitening(1)])
    before = weights_of(model)
    fit_to_images(model, images())
    assert not any(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_settings_of_the_model_reach_the_network():
    settings = {"activation": "celu", "norm_scale": "fixed", "prep": "whiten", "logit_scale": 0.25}
    model = made("resnet9", **settings, ghost_batch=5)
    assert isinstance(model.layer1.celu, nn.CELU)
    assert isinstance(model.prep.whiten, PatchWhitening)
    assert not model.layer3.norm.weight.requires_grad
    assert model.logit_scale == 0.25
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.group for norm in norms} == {5}
    assert made("speednet", logit_scale=0.25).logit_scale == 0.25
    assert {m.group for m in made("speednet", ghost_batch=3).modules() if isinstance(m, nn.BatchNorm2d)} == {
        3
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_auto_is_what_the_network_is_usually_made_of(name):
    explicit = MADE_OF[name]
    one, other = weights_of(made(name)), weights_of(made(name, **explicit))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert repr(made(name)) == repr(made(name, **explicit))
