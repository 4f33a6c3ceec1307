import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from velodrome.errors import ConfigError
from velodrome.models.resnet9 import ResNet9


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_random_norms(model: ResNet9) -> ResNet9:
    """Norms and statistics that differ from 0 and 1, so that leaving one out shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def reference(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Section 4 of the design, written from the weights alone, in evaluation mode."""

    def norm_relu(x: Tensor, at: str) -> Tensor:
        mean, variance, scale, shift = (
            weights[f"{at}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.clamp_min((x - mean) / torch.sqrt(variance + 1e-5) * scale + shift, 0)

    def conv(x: Tensor, at: str) -> Tensor:
        return F.conv2d(x, weights[f"{at}.weight"], padding=1)

    def halve(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).amax(dim=(3, 5))

    def residual(x: Tensor, at: str) -> Tensor:
        r = x
        for block in ("block1", "block2"):
            r = norm_relu(conv(r, f"{at}.residual.{block}.conv"), f"{at}.residual.{block}.norm")
        return x + r

    x = norm_relu(conv(images, "prep.conv"), "prep.norm")
    x = residual(norm_relu(halve(conv(x, "layer1.conv")), "layer1.norm"), "layer1")
    x = norm_relu(halve(conv(x, "layer2.conv")), "layer2.norm")
    x = residual(norm_relu(halve(conv(x, "layer3.conv")), "layer3.norm"), "layer3")
    return x.amax(dim=(2, 3)) @ weights["fc.weight"].T


def test_parameter_count_of_the_design():
    assert sum(parameter.numel() for parameter in ResNet9().parameters()) == 6_573_120


def test_stages_and_output_shapes():
    model = ResNet9(width=4).eval()
    assert [name for name, _ in model.named_children()] == [
        "prep",
        "layer1",
        "layer2",
        "layer3",
        "pool",
        "fc",
    ]
    x = torch.randn(2, 3, 32, 32)
    shapes = []
    for stage in (model.prep, model.layer1, model.layer2, model.layer3, model.pool):
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4), (32, 1, 1)]


def test_only_norms_have_biases():
    biased = {
        name for name, module in ResNet9(width=4).named_modules() if getattr(module, "bias", None) is not None
    }
    assert biased
    assert all(name.endswith("norm") for name in biased)


@pytest.mark.parametrize("image_size", [8, 32, 48])
def test_forward_matches_the_reference(image_size):
    model = with_random_norms(ResNet9(classes=7, width=4, image_size=image_size)).eval()
    images = torch.randn(3, 3, image_size, image_size)
    torch.testing.assert_close(model(images), reference(model.state_dict(), images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["layer1", "layer3"])
def test_stage_is_x_once_where_the_branch_is_zero(name):
    model = ResNet9(width=4).eval()
    stage = getattr(model, name)
    nn.init.zeros_(stage.residual.block2.norm.weight)  # its bias is zero to begin with
    x = torch.randn(2, stage.conv.in_channels, 16, 16)
    trunk = stage.relu(stage.norm(stage.pool(stage.conv(x))))
    torch.testing.assert_close(stage(x), trunk, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["layer1", "layer3"])
def test_branch_is_added_once_and_its_end_is_not_negative(name):
    stage = getattr(with_random_norms(ResNet9(width=4)).eval(), name)
    x = torch.randn(2, stage.conv.in_channels, 16, 16)
    trunk = stage.relu(stage.norm(stage.pool(stage.conv(x))))
    branch = stage.residual(trunk)
    assert branch.min() >= 0
    assert branch.max() > 0
    torch.testing.assert_close(stage(x) - trunk, branch)


def test_gradients_match_those_of_a_model_without_in_place_relu():
    model = ResNet9(width=4).double()
    plain = ResNet9(width=4).double()
    plain.load_state_dict(model.state_dict())
    for module in plain.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for network in (model, plain):
        F.cross_entropy(network(images), torch.arange(4)).backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad.abs().max() > 0
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_bf16_autocast_and_channels_last_train():
    model = ResNet9(width=4).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
        loss = F.cross_entropy(logits, torch.arange(4))
    assert logits.dtype == torch.bfloat16
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def test_width_scales_every_stage():
    model = ResNet9(classes=5, width=6)
    convs = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert convs == [6, 12, 12, 12, 24, 48, 48, 48]
    assert model.fc.weight.shape == (5, 48)


def test_dropout_is_absent_unless_asked_for():
    assert not any(isinstance(module, nn.Dropout) for module in ResNet9(width=4).modules())


def test_dropout_acts_on_features_while_training():
    model = ResNet9(width=4, dropout=0.5)
    seen: list[Tensor] = []
    model.fc.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    images = torch.randn(8, 3, 32, 32)
    model(images)
    model.eval()
    model(images)
    dropped, kept = ((features == 0).float().mean().item() for features in seen)
    assert 0.3 < dropped < 0.7
    assert kept < 0.05


@pytest.mark.parametrize("image_size", [0, -8, 4, 30, 33])
def test_image_sizes_that_cannot_be_halved_three_times(image_size):
    with pytest.raises(ConfigError, match=rf"image_size = {image_size}\b.*multiple of 8.*Set image_size to"):
        ResNet9(width=4, image_size=image_size)


def test_the_features_of_the_head_start_short() -> None:
    """The scale of the norms that feed the head decides which learning rates are stable at all."""
    model = ResNet9()
    scales = {name: set(p.tolist()) for name, p in model.named_parameters() if name.endswith("norm.weight")}
    short = {name for name, values in scales.items() if values != {1.0}}
    assert short == {"layer3.norm.weight", "layer3.residual.block2.norm.weight"}
    assert {round(value, 6) for name in short for value in scales[name]} == {0.2}


def test_whitened_patches_in_front_of_a_convolution_1x1():
    model = ResNet9(width=4, prep="whiten")
    assert [name for name, _ in model.prep.named_children()] == ["whiten", "conv", "norm", "relu"]
    assert model.prep.whiten.weight.shape == (27, 3, 3, 3)
    assert model.prep.conv.weight.shape == (4, 27, 1, 1)
    assert not model.prep.whiten.weight.requires_grad
    images = torch.randn(2, 3, 16, 16)
    assert model.prep(images).shape == (2, 4, 16, 16)
    assert model(images).shape == (2, 10)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("relu", F.relu),
        ("celu", lambda x: F.celu(x, 0.3)),
        ("gelu", F.gelu),
    ],
)
def test_the_activation_is_everywhere(activation, expected):
    model = ResNet9(width=2, activation=activation)
    named = [module for name, module in model.named_modules() if name.endswith(activation)]
    assert len(named) == 8
    x = torch.linspace(-2, 2, 9)
    for module in named:
        torch.testing.assert_close(module(x.clone()), expected(x))
    others = {"relu", "celu", "gelu"} - {activation}
    assert not any(name.rpartition(".")[2] in others for name, _ in model.named_modules())
    F.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_fixed_scales_of_batch_norm_stay_1():
    model = ResNet9(width=2, norm_scale="fixed")
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 8
    assert all(not norm.weight.requires_grad and norm.bias.requires_grad for norm in norms)
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    learned = ResNet9(width=2)
    assert all(p.requires_grad for p in learned.parameters())


def test_logits_are_scaled():
    torch.manual_seed(0)
    model, scaled = ResNet9(width=2).eval(), ResNet9(width=2, logit_scale=1 / 16).eval()
    scaled.load_state_dict(model.state_dict())
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(scaled(images), model(images) / 16)
