"""Parameters, multiply-accumulates and receptive fields of published networks, as torchvision builds them."""

import pytest

from velodrome.models.summary import Summary, summarize

# Beside a CPU build of torch, the ordinary wheel of torchvision raises RuntimeError at import.
models = pytest.importorskip("torchvision.models", exc_type=(ImportError, RuntimeError))


def summary_of(name: str) -> Summary:
    return summarize(getattr(models, name)(weights=None), (3, 224, 224))


# Parameters and GMACs are those of torchvision's own table of weights (there called GFLOPS, of fvcore).
@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [
        ("resnet18", 11_689_512, 1.814),
        ("mobilenet_v2", 3_504_872, 0.301),
        ("shufflenet_v2_x1_0", 2_278_604, 0.145),
        ("densenet121", 7_978_856, 2.834),
        ("convnext_tiny", 28_589_128, 4.456),
        ("vit_b_16", 86_567_656, 17.564),
        ("swin_t", 28_288_354, 4.491),
    ],
)
def test_parameters_and_macs(name, params, gmacs):
    summary = summary_of(name)
    assert summary.totals.params == params
    assert sum(layer.params for layer in summary.layers) == params
    assert summary.totals.macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_receptive_fields_of_resnet18():
    # By the sums of Araujo et al., Distill 2019: 435 at a stride of 32 before pooling.
    layers = {layer.name: layer for layer in summary_of("resnet18").layers}  # the last call of a shared ReLU
    fields = [
        (layers[name].receptive_field, layers[name].stride)
        for name in (
            "conv1",
            "maxpool",
            "layer1.1.relu",
            "layer2.1.relu",
            "layer3.1.relu",
            "layer4.1.relu",
            "avgpool",
        )
    ]
    assert fields == [(7, 2), (11, 4), (43, 4), (99, 8), (211, 16), (435, 32), (435 + 6 * 32, 224)]


def test_receptive_fields_of_vgg16():
    # 404 at fc6 is the figure of Long et al., "Fully Convolutional Networks" (2015).
    layers = {layer.name: layer for layer in summary_of("vgg16").layers}
    assert (layers["features.30"].receptive_field, layers["features.30"].stride) == (212, 32)
    assert layers["classifier.0"].receptive_field == 404


def test_attention_sees_the_image_or_its_window():
    assert summary_of("vit_b_16").totals.receptive_field == 224
    windows = {layer.name: layer for layer in summary_of("swin_t").layers}
    assert (
        windows["features.1.0.attn"].receptive_field == 4 + 6 * 4
    )  # one window of 7 x 7 patches of 4 pixels
