"""Grad-CAM is right, at any stage, and leaves the network as it was."""

import functools

import pytest
import torch
from torch import nn

from velodrome.errors import ConfigError
from velodrome.evaluation.gradcam import gradcam
from velodrome.models.resnet9 import ResNet9


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = ResNet9(classes=5, width=4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that are not those of a new network
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture
def images():
    return torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_hand(network, images, target, layer):
    """The definition, one image at a time, with an ordinary backward pass."""
    maps = []
    for image in images:
        seen: list[torch.Tensor] = []
        keep = functools.partial(lambda kept, _module, _inputs, output: kept.append(output), seen)
        handle = network.get_submodule(layer).register_forward_hook(keep)
        logits = network(image[None])
        handle.remove()
        (gradient,) = torch.autograd.grad(logits[0, target], seen[0])
        weights = gradient.mean((2, 3), keepdim=True)
        maps.append((weights * seen[0]).sum(1).relu()[0].detach())
    return torch.stack(maps)


@pytest.mark.parametrize("layer", ["prep", "layer1", "layer1.residual", "layer2", "layer3"])
def test_it_is_the_definition_at_any_stage(network, images, layer):
    maps = gradcam(network, images, torch.arange(5).expand(7, 5), layer=layer)
    expected = torch.stack([by_hand(network, images, target, layer) for target in range(5)], 1)
    assert expected.max() > 0
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-4)


def test_each_image_and_each_class_has_its_own_map(network, images):
    targets = torch.stack([torch.arange(7) % 5, (torch.arange(7) + 2) % 5], 1)
    maps = gradcam(network, images, targets)
    assert maps.shape == (7, 2, 8, 8)
    for image in range(7):
        for k in range(2):
            expected = by_hand(network, images[image : image + 1], int(targets[image, k]), "layer2")
            torch.testing.assert_close(maps[image, k], expected[0], atol=1e-6, rtol=1e-4)


def test_more_images_than_a_batch_holds(network):
    images = torch.randn(103, 3, 32, 32)
    maps = gradcam(network, images, torch.zeros(103, 1, dtype=torch.int64))
    torch.testing.assert_close(maps[-5:, 0], by_hand(network, images[-5:], 0, "layer2"), atol=1e-6, rtol=1e-4)


def test_in_bf16_it_is_nearly_the_same_map(network, images):
    targets = torch.full((7, 1), 2)
    exact, rough = (gradcam(network, images, targets, precision=p) for p in ("fp32", "bf16"))
    assert rough.dtype == torch.float32
    together = torch.stack([exact.flatten(), rough.flatten()])
    assert torch.corrcoef(together)[0, 1] > 0.99
    assert not torch.equal(exact, rough)


def state_of(network):
    return (
        [module.training for module in network.modules()],
        [parameter.requires_grad for parameter in network.parameters()],
        [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()],
        {name: value.clone() for name, value in network.state_dict().items()},
    )


@pytest.mark.parametrize("mode", ["training", "partly frozen", "evaluation"])
def test_it_leaves_the_network_as_it_was(network, images, mode):
    network.train(mode != "evaluation")
    network.layer1.norm.eval()
    network.prep.conv.weight.requires_grad_(mode != "partly frozen")
    network(images).sum().backward()  # gradients that must stay
    network.layer2.register_forward_hook(lambda *_: None)
    before = state_of(network)
    grad_mode = torch.is_grad_enabled()
    gradcam(network, images, torch.zeros(7, 2, dtype=torch.int64))
    after = state_of(network)
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert torch.is_grad_enabled() == grad_mode


def test_an_error_leaves_it_as_it_was_too(network, images):
    before = state_of(network.train())
    with pytest.raises(ConfigError):
        gradcam(network, images, torch.zeros(7, 1, dtype=torch.int64), layer="fc")
    torch.testing.assert_close(before, state_of(network), rtol=0, atol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(network, images, context):
    targets = torch.full((7, 1), 1)
    expected = gradcam(network, images, targets)
    with context():
        assert torch.equal(gradcam(network, images.clone(), targets.clone()), expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_it_is_the_same_after_compilation(network, images, in_place):
    targets = torch.full((7, 1), 1)
    expected = gradcam(network, images, targets)
    compiled = network
    if in_place:
        network.compile(backend="eager")
    else:
        compiled = torch.compile(network, backend="eager")
    with torch.no_grad():
        compiled(images)
    torch.testing.assert_close(gradcam(compiled, images, targets), expected)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("layer9", "layer is 'layer9', but the network has no such stage. Did you mean layer3"),
        ("", "no such stage"),
        ("fc", r"whose output is \(7, 5\), but must be"),
    ],
)
def test_a_stage_that_cannot_be_shown_is_named(network, images, layer, words):
    with pytest.raises(ConfigError, match=words):
        gradcam(network, images, torch.zeros(7, 1, dtype=torch.int64), layer=layer)


def test_where_nothing_speaks_for_a_class_the_map_is_zero(network, images):
    with torch.no_grad():
        network.fc.weight[4] = -network.fc.weight[4].abs()  # features are never negative
        network.fc.weight[4] -= 1
    maps = gradcam(network, images, torch.full((7, 1), 4), layer="layer3")
    assert torch.count_nonzero(maps) == 0
