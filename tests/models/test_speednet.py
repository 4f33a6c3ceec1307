"""SpeedNet against its layout written out from the weights alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.config import TrainSection
from velodrome.errors import ConfigError
from velodrome.models.speednet import SpeedNet
from velodrome.training.optim import make_optimizer, set_lr


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# Convolutions of each stage.
CONVS = {"layer1": 2, "layer2": 2, "layer3": 3}
NORMS = {f"{layer}.norm{number + 1}" for layer, convs in CONVS.items() for number in range(convs)}


def with_random_norms(model: SpeedNet) -> SpeedNet:
    """Norms and statistics that differ from 0 and 1, so that leaving one out shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def reference(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """The layout in evaluation mode."""

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def norm_gelu(x: Tensor, at: str) -> Tensor:
        mean, variance, scale, shift = (
            weights[f"{at}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return gelu((x - mean) / torch.sqrt(variance + 1e-12) * scale + shift)

    def halve(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        whole = x[:, :, : h // 2 * 2, : w // 2 * 2]
        return whole.reshape(n, c, h // 2, 2, w // 2, 2).amax(dim=(3, 5))

    x = gelu(F.conv2d(images, weights["whiten.weight"]))
    for layer, convs in CONVS.items():
        for number in range(1, convs + 1):
            x = F.conv2d(x, weights[f"{layer}.conv{number}.weight"], padding=1)
            x = norm_gelu(halve(x) if number == 1 else x, f"{layer}.norm{number}")
    return x.amax(dim=(2, 3)) @ weights["fc.weight"].T


@pytest.mark.parametrize("image_size", [9, 20, 32, 33])
def test_forward_matches_the_layout(image_size):
    model = with_random_norms(SpeedNet(classes=7, width=3, image_size=image_size)).eval()
    images = torch.randn(3, 3, image_size, image_size)
    torch.testing.assert_close(model(images), reference(model.state_dict(), images), rtol=1e-4, atol=1e-5)


def test_all_sizes_from_9_to_64_pass_through_one_network():
    model = SpeedNet(classes=5, width=2).eval()
    stages = (model.whiten, model.layer1, model.layer2, model.layer3)
    with torch.inference_mode():
        for size in range(9, 65):
            x = torch.zeros(1, 3, size, size)
            assert model(x).shape == (1, 5)
            shapes = [tuple((x := stage(x)).shape[1:]) for stage in stages]
            whole = size - 1
            halves = [whole // 2, whole // 4, whole // 8]
            assert shapes == [
                (24, whole, whole),
                *((c, h, h) for c, h in zip((2, 8, 8), halves, strict=True)),
            ]


@pytest.mark.parametrize("image_size", [9, 32, 48])
def test_sizes_that_it_can_be_made_for(image_size):
    model = SpeedNet(width=2, image_size=image_size).eval()
    assert model(torch.zeros(2, 3, image_size, image_size)).shape == (2, 10)


@pytest.mark.parametrize("image_size", [8, 1, 0, -9])
def test_sizes_that_are_too_small(image_size):
    with pytest.raises(
        ConfigError, match=rf"image_size = {image_size}\b.* at least 9\. Set image_size to 9 or more"
    ):
        SpeedNet(width=2, image_size=image_size)


@pytest.mark.parametrize(("classes", "width"), [(10, 64), (7, 3)])
def test_parameters_by_hand(classes, width):
    model, w = SpeedNet(classes=classes, width=width), width
    whiten = 24 * 3 * 2 * 2
    convs = 9 * (24 * w + w * w + w * 4 * w + 4 * (4 * w) ** 2)
    norms = 2 * w + 2 * 4 * w + 3 * 4 * w  # channels of all seven
    fc = 4 * w * classes
    assert sum(p.numel() for p in model.parameters()) == whiten + convs + 2 * norms + fc
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == convs + norms + fc


def test_stages_and_width():
    model = SpeedNet(classes=5, width=6)
    names = [name for name, module in model.named_children() if any(True for _ in module.parameters())]
    assert names == ["whiten", "layer1", "layer2", "layer3", "fc"]
    convs = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert convs == [24, 6, 6, 24, 24, 24, 24, 24]
    assert model.fc.weight.shape == (5, 24)
    biased = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name.endswith("bias")}
    assert biased == NORMS


@pytest.mark.parametrize("width", [4, 32])
def test_the_first_filters_begin_as_the_identity(width):
    """Of a convolution from c channels, the first c; there may be fewer. The others are random."""
    for name, conv in SpeedNet(width=width).named_modules():
        if not isinstance(conv, nn.Conv2d) or name == "whiten":
            continue
        same = min(conv.in_channels, conv.out_channels)
        x = torch.randn(2, conv.in_channels, 6, 6)
        out = conv(x)
        assert torch.equal(out[:, :same], x[:, :same]), name
        others = conv.weight.detach().flatten(1)[same:]
        assert len(set(others[:, 0].tolist())) == len(others), name


def test_scales_of_norms_are_not_trained():
    model = SpeedNet(classes=3, width=2)
    optimizer = make_optimizer(model, TrainSection(optimizer="muon"))
    set_lr(optimizer, 0.1)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    F.cross_entropy(model(torch.randn(8, 3, 12, 12)), torch.arange(8) % 3).backward()
    scales = {f"{norm}.weight" for norm in NORMS}
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == scales | {"whiten.weight"}
    optimizer.step()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == before.keys() - without
    assert all((before[name] == 1).all() for name in scales)
    assert all((before[name.replace("weight", "bias")] == 0).all() for name in scales)


def test_bf16_autocast_and_channels_last_train():
    model = SpeedNet(width=4).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 20, 20).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
        loss = F.cross_entropy(logits, torch.arange(4))
    assert logits.dtype == torch.bfloat16
    loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all()
            assert parameter.grad.abs().max() > 0


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_acts_on_features_while_training(dropout):
    model = SpeedNet(width=16, dropout=dropout)
    assert any(isinstance(module, nn.Dropout) for module in model.modules()) == (dropout > 0)
    seen: list[Tensor] = []
    model.fc.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    images = torch.randn(8, 3, 12, 12)
    model(images)
    model.eval()
    model(images)
    dropped, kept = ((features == 0).float().mean().item() for features in seen)
    assert abs(dropped - dropout) < 0.2
    assert kept < 0.05
