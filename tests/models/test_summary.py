import copy
import json
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from velodrome.errors import ConfigError
from velodrome.models.resnet9 import ResNet9
from velodrome.models.summary import Layer, summarize


def rows(model: nn.Module, *shape: int) -> dict[str, Layer]:
    return {layer.name: layer for layer in summarize(model, shape).layers}


def seen_by_the_centre(model: nn.Module, channels: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the input region on which the centre output depends, by its gradient.

    Weights of 1, no rectifiers and average pools, so that no path can cancel another or be switched off.
    """
    model = copy.deepcopy(model).double().eval()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    image = torch.ones(1, channels, *size, dtype=torch.float64, requires_grad=True)
    output = model(image)
    while output.dim() < 4:
        output = output[..., None]
    output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()
    rows, columns = image.grad.abs().sum(dim=(0, 1)).nonzero().T
    return int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1


def square(pair: tuple[int, int]) -> int | tuple[int, int]:
    return pair[0] if pair[0] == pair[1] else pair


class Add(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.branches)


class Cat(Add):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Functional(nn.Module):
    """Owns its weights and calls everything by function; nothing in it is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3, 3, 3))
        self.head = nn.Parameter(torch.ones(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.conv2d(x, self.weight, padding=1), 2)
        return F.linear(x.mean(dim=(2, 3)), self.head)


def conv(channels_in: int, channels_out: int, kernel=3, **options) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, bias=False, **options)


# ResNet9


def test_receptive_fields_of_the_design():
    found = rows(ResNet9(), 3, 32, 32)
    expected = {
        "prep.conv": (3, 1),
        "layer1.conv": (5, 1),
        "layer1.pool": (6, 2),
        "layer1.residual.block1.conv": (10, 2),
        "layer1.residual.block2.relu": (14, 2),
        "layer2.conv": (18, 2),
        "layer2.pool": (20, 4),
        "layer3.conv": (28, 4),
        "layer3.pool": (32, 8),
        "layer3.residual.block1.conv": (48, 8),
        "layer3.residual.block2.relu": (64, 8),
        "pool": (88, 32),
        "fc": (88, 32),
    }
    assert {name: (found[name].receptive_field, found[name].stride) for name in expected} == expected


def test_totals_of_resnet9():
    summary = summarize(ResNet9(), (3, 32, 32))
    totals = summary.totals
    assert totals.params == totals.trainable_params == 6_573_120
    assert totals.other_params == 0
    convs = [(3, 64, 32), (64, 128, 32), (128, 128, 16), (128, 128, 16), (128, 256, 16), (256, 512, 8)]
    convs += [(512, 512, 4), (512, 512, 4)]
    assert totals.macs == sum(i * o * 9 * size**2 for i, o, size in convs) + 5120
    assert totals.params_mb == pytest.approx(6_573_120 * 4 / 1e6)
    assert totals.receptive_field == 88
    assert sum(layer.params for layer in summary.layers) == totals.params


GOLDEN = """\
Sequential, input 3 x 8 x 8
-------------------------------------------------------------------------
Layer  Type         Output shape  Params    MACs  Receptive field  Stride
-------------------------------------------------------------------------
0      Conv2d       8 x 8 x 8        216  13,824                3       1
1      BatchNorm2d  8 x 8 x 8         16       0                3       1
2      ReLU         8 x 8 x 8          0       0                3       1
3      MaxPool2d    8 x 4 x 4          0       0                4       2
4      Flatten      128                0       0                4       2
5      Linear       10             1,290   1,280               10       8
-------------------------------------------------------------------------
Parameters          1,522 (0.01 MB)
  trainable         1,306
  other             216
Buffers             17
MACs per image      15,104
Activations         0.01 MB per image in float32
Receptive field     10"""


def test_text_of_a_small_network():
    norm, pool = nn.BatchNorm2d(8), nn.MaxPool2d(2)
    model = nn.Sequential(conv(3, 8, padding=1), norm, nn.ReLU(), pool, nn.Flatten(), nn.Linear(128, 10))
    model[0].requires_grad_(False)
    assert str(summarize(model, (3, 8, 8))) == GOLDEN


# Receptive field against the gradient


def random_network(seed: int) -> nn.Module:
    draw = random.Random(seed)
    layers: list[nn.Module] = []
    for _ in range(draw.randint(2, 5)):
        kernel = (draw.choice([1, 2, 3, 5]), draw.choice([1, 3, 4]))
        kind = draw.choice(["conv", "conv", "pool", "add", "cat"])
        if kind == "conv":
            dilation = draw.choice([1, 1, 2])
            layers.append(
                conv(
                    2, 2, kernel, stride=draw.choice([1, 1, 2]), dilation=dilation, groups=draw.choice([1, 2])
                )
            )
        elif kind == "pool":
            layers.append(nn.AvgPool2d(kernel, stride=draw.choice([1, 2])))
        elif kind == "add":
            layers.append(Add(conv(2, 2, 3, padding=1), conv(2, 2, 5, padding=2), nn.Identity()))
        else:
            layers += [Cat(conv(2, 1, (3, 1), padding=(1, 0)), conv(2, 1, (1, 5), padding=(0, 2)))]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_see_what_the_gradient_says(seed):
    model = random_network(seed)
    size = (151, 149)
    assert summarize(model, (2, *size)).totals.receptive_field == square(seen_by_the_centre(model, 2, size))


class Upsampled(nn.Module):
    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.down, self.up = conv(2, 4, 3, stride=2, padding=1), up

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


@pytest.mark.parametrize(
    ("up", "stride"),
    [
        (nn.Upsample(scale_factor=2, mode="nearest"), 1),
        (nn.PixelShuffle(2), 1),
        (nn.Sequential(nn.PixelUnshuffle(2), conv(16, 2, 1)), 4),
        (nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False), 1),
        (nn.AdaptiveAvgPool2d(4), 8),
        (nn.AdaptiveAvgPool2d(1), 32),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_resampling(up, stride):
    model = Upsampled(up)
    summary = summarize(model, (2, 32, 32))
    assert summary.layers[-1].stride == stride
    if isinstance(up, nn.AdaptiveAvgPool2d) and up.output_size == 1:
        assert summary.totals.receptive_field == 3 + 15 * 2  # nominal: one pixel of it is padding
    else:
        assert summary.totals.receptive_field == square(seen_by_the_centre(model, 2, (32, 32)))


def test_dilation_and_kernels_that_are_not_square():
    layer = rows(conv(1, 1, (3, 5), dilation=(4, 1), stride=(1, 2)), 1, 32, 32)["(model)"]
    assert layer.receptive_field == (9, 5)
    assert layer.stride == (1, 2)


def test_flatten_then_linear_sees_the_whole_map():
    model = nn.Sequential(conv(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 49, 5, bias=False))
    summary = summarize(model, (3, 16, 16))
    assert summary.totals.receptive_field == 16
    assert seen_by_the_centre(model, 3, (16, 16)) == (16, 16)


def test_patches_by_view_and_permute():
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3 * 16, 6)

        def forward(self, x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5)
            return self.embed(x.reshape(n, h * w // 16, c * 16))

    assert rows(Patches(), 3, 32, 32)["embed"].receptive_field == 4


def test_a_gate_from_the_whole_image_makes_everything_see_it():
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.end = conv(3, 4, padding=1), conv(4, 4, 1), conv(4, 4, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.end(x * self.gate(x.mean(dim=(2, 3), keepdim=True)).sigmoid())

    found = rows(Gate(), 3, 16, 16)
    assert [found[name].receptive_field for name in ("stem", "gate", "end")] == [3, 18, 18]
    assert found["end"].stride == 1


# Attention


class TinyTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.zeros(1, 65, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)  # (N, 64, 8)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.block(x)[:, 0])


def test_a_vision_transformer():
    model = TinyTransformer()
    summary = summarize(model, (3, 32, 32))
    found = {layer.name: layer for layer in summary.layers}
    assert found["patch"].receptive_field == 4
    assert found["block.self_attn"].receptive_field == 32
    assert found["head"].receptive_field == 32
    attention = 65 * 8 * 24 + 2 * 65 * 65 * 8 + 65 * 8 * 8
    assert found["block.self_attn"].macs == attention
    assert found["block.self_attn"].params == sum(p.numel() for p in model.block.self_attn.parameters())
    assert sum(layer.params for layer in summary.layers) == summary.totals.params


def test_a_plain_transformer_layer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    summary = summarize(layer, (5, 8))
    assert summary.totals.params == sum(parameter.numel() for parameter in layer.parameters())
    assert summary.layers[-1].output_shape == (5, 8)


# Rows


def test_functional_calls_belong_to_the_module_that_makes_them():
    model = nn.Sequential(conv(3, 3, padding=1), Functional())
    first, second = summarize(model, (3, 8, 8)).layers
    assert (first.name, first.type, first.macs) == ("0", "Conv2d", 3 * 3 * 9 * 64)
    assert (second.name, second.type) == ("1", "Functional")
    assert second.macs == 3 * 2 * 9 * 64 + 2 * 5
    assert second.params == 64
    assert second.output_shape == (5,)
    assert second.receptive_field == 5 + 1 + 3 * 2


def test_a_module_that_is_called_twice_has_two_rows_and_counts_once():
    shared = conv(2, 2, padding=1)
    summary = summarize(nn.Sequential(shared, nn.ReLU(), shared), (2, 8, 8))
    calls = [layer for layer in summary.layers if layer.type == "Conv2d"]
    assert [layer.params for layer in calls] == [36, 0]
    assert [layer.receptive_field for layer in calls] == [3, 5]
    assert summary.totals.params == 36
    assert summary.totals.macs == 2 * 36 * 64


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    summary = summarize(model, (4,))
    assert [layer.params for layer in summary.layers] == [16, 0]
    assert summary.totals.params == 16


def test_frozen_parameters_and_buffers():
    model = nn.Sequential(conv(1, 2), nn.BatchNorm2d(2))
    model[0].requires_grad_(False)
    totals = summarize(model, (1, 8, 8)).totals
    assert (totals.params, totals.trainable_params, totals.other_params, totals.buffers) == (22, 4, 18, 5)


def test_outputs_in_tuples_and_mappings():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.unused = Both(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            fine, coarse = self.both(x)
            return {"fine": fine, "coarse": coarse}

    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            return F.max_pool2d(x, 2), [x.mean(dim=(2, 3))]

    summary = summarize(Heads(), (3, 8, 8))
    assert [(layer.name, layer.output_shape) for layer in summary.layers] == [
        ("both", (3, 4, 4)),
        ("(model)", (3, 4, 4)),  # for the parameters of `unused`, which never runs
    ]
    assert summary.layers[1].params == 12
    assert summary.totals.activations_mb == pytest.approx(2 * (48 + 3) * 4 / 1e6)


@pytest.mark.parametrize("model", [nn.Linear(6, 2), nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))])
def test_without_spatial_dimensions_there_is_no_receptive_field(model):
    summary = summarize(model, (6,))
    assert all(layer.receptive_field is None and layer.stride is None for layer in summary.layers)
    assert summary.totals.receptive_field is None
    assert " - " in str(summary)


def test_one_dimensional_convolutions():
    model = nn.Sequential(nn.Conv1d(2, 4, 5, stride=2), nn.MaxPool1d(3), nn.AvgPool1d(2))
    assert [(layer.receptive_field, layer.stride) for layer in summarize(model, (2, 64)).layers] == [
        (5, 2),
        (9, 6),
        (15, 12),
    ]


# Leaving the model and its surroundings alone


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(training):
    model = ResNet9(width=2, dropout=0.5).train(training)
    calls: list[int] = []
    model.prep.register_forward_hook(lambda *_: calls.append(1))
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    summarize(model, (3, 32, 32))
    assert not calls
    assert [len(module._forward_hooks) for module in model.modules()].count(1) == 1
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[name]), name


class NeedsValues(nn.Module):
    """Cannot run without values, draws random numbers and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(1, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.sum() > 0:
            return x
        return self.conv(x + torch.randn_like(x))


def test_a_model_that_needs_values_runs_on_zeros():
    model = NeedsValues()
    random_state = torch.get_rng_state()
    layers = summarize(model, (1, 8, 8)).layers
    assert [(layer.name, layer.receptive_field) for layer in layers] == [("conv", 3)]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.calls == 0


def test_pruned_layers_and_plain_tensors_are_copied():
    pruned = prune.l1_unstructured(conv(3, 4), "weight", 0.5)
    pruned.scale = torch.ones(4, 1, 1)
    hooks = len(pruned._forward_pre_hooks)
    layer = rows(nn.Sequential(pruned), 3, 8, 8)["0"]
    assert (layer.params, layer.macs) == (108, 108 * 36)
    assert len(pruned._forward_pre_hooks) == hooks == 1
    assert pruned.weight.grad_fn is not None


def test_stacked_branches():
    class Stack(Add):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([branch(x) for branch in self.branches], dim=1).sum(dim=1)

    model = Stack(conv(2, 2, 3, padding=1), conv(2, 2, 5, padding=2))
    assert summarize(model, (2, 16, 16)).totals.receptive_field == 5


def test_half_precision_and_channels_last_models():
    model = ResNet9(width=2).to(torch.bfloat16, memory_format=torch.channels_last)
    totals = summarize(model, (3, 32, 32)).totals
    assert totals.params_mb == pytest.approx(totals.params * 2 / 1e6)
    assert totals.receptive_field == 88


def test_summaries_under_inference_mode_and_autocast():
    model = ResNet9(width=2)
    expected = summarize(model, (3, 32, 32))
    with torch.inference_mode():
        assert summarize(model, (3, 32, 32)) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert summarize(model, (3, 32, 32)) == expected


def test_a_shape_that_the_model_does_not_take():
    with pytest.raises(
        ConfigError, match=r"ResNet9 cannot be summarized .* 1 x 32 x 32: RuntimeError: .*Give the shape"
    ):
        summarize(ResNet9(width=2), (1, 32, 32))


@pytest.mark.parametrize("shape", [(), (3, 0, 8), (-1,)])
def test_shapes_that_are_none(shape):
    with pytest.raises(ConfigError, match="input_shape = "):
        summarize(nn.ReLU(), shape)


# Forms


def test_to_dict_is_json_with_the_promised_keys():
    model = nn.Sequential(conv(3, 2, (3, 5)), nn.Flatten(), nn.Linear(2 * 6 * 4, 2))
    record = summarize(model, (3, 8, 8)).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert set(record) == {"layers", "totals"}
    promised = {"name", "type", "output_shape", "params", "macs", "receptive_field", "stride"}
    assert all(promised <= set(layer) for layer in record["layers"])
    assert record["layers"][0]["output_shape"] == [2, 6, 4]
    assert record["layers"][0]["receptive_field"] == [3, 5]
    assert record["totals"]["params"] == 3 * 2 * 15 + 98


def test_html_escapes_names():
    model = nn.Sequential()
    model.add_module("<b>&", nn.ReLU())
    text = summarize(model, (3, 8, 8))._repr_html_()
    assert "&lt;b&gt;&amp;" in text
    assert "<b>" not in text
    assert text.count("<tr>") == 2
