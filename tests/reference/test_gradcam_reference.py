"""Grad-CAM equals captum's."""

import pytest
import torch

from velodrome.evaluation.gradcam import gradcam
from velodrome.models.resnet9 import ResNet9

attr = pytest.importorskip("captum.attr", reason="captum is not installed (pip install '.[reference]')")


@pytest.mark.parametrize("layer", ["prep", "layer1", "layer2", "layer3", "layer3.residual", "pool"])
def test_maps_equal_captum(layer):
    torch.manual_seed(0)
    network = ResNet9(classes=10, width=16).eval()
    images = torch.randn(6, 3, 32, 32)
    reference = attr.LayerGradCam(network, network.get_submodule(layer))
    largest = 0.0
    for target in range(3):
        expected = reference.attribute(images, target=target, relu_attributions=True)[:, 0].detach()
        maps = gradcam(network, images, torch.full((6, 1), target), layer=layer)[:, 0]
        torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(maps, expected, atol=1e-7, rtol=1e-4)  # maps are small numbers here
        largest = max(largest, float(expected.max()))
    assert largest > 0
