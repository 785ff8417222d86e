"""FCN: published parameters, scores by an independent reading, upsampling that starts as interpolation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import create_model
from models.analysis import analyse
from models.convs import OctaveConv2d
from models.patch_sizes import input_side
from tests.helpers.networks import trained

SMALL = {"in_channels": 2, "num_classes": 3, "widths": (2, 3, 4), "output_stride": 2}
VGG16 = {
    "widths": (64, 128, 256, 512, 512),
    "convs_per_level": (2, 2, 3, 3, 3),
    "dense_widths": (4096, 4096),
    "dense_kernel_size": 7,
    "norm": "none",
}


def fcn(conv="standard", **options) -> nn.Module:
    return create_model("fcn", conv, **{**SMALL, **options})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("output_stride", "skips"), [(32, ()), (16, (512,)), (8, (512, 256))])
def test_the_published_network(output_stride, skips):
    """134 million parameters in the paper's Table 1; a 1x1 convolution a skip, and upsampling of 21 classes."""
    with torch.device("meta"):
        network = fcn(in_channels=3, num_classes=21, output_stride=output_stride, **VGG16)
    vgg16 = 138_357_544 - (4096 * 1000 + 1000)
    scores = sum((width + 1) * 21 for width in (4096, *skips))
    upsampling = 21**2 * ((2 * output_stride) ** 2 + len(skips) * 4**2)
    assert count(network) == vgg16 + scores + upsampling
    assert round(vgg16 / 1e6) == 134
    assert analyse(network, (1, 3, 64, 64)).receptive_field[0] > 404  # of fc6, and the upsampling beyond


def test_scores_by_an_independent_reading():
    network = trained(fcn(output_stride=4, norm="none", dense_widths=(5,), dense_kernel_size=3))
    image, w = torch.randn(2, 2, 16, 24), network.state_dict()

    def convolve(x: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    maps, x = [], image
    for level in range(3):
        for layer in range(2):
            x = F.relu(convolve(x, f"levels.{level}.convs.{layer}"))
        x = F.max_pool2d(x, 2)
        maps.append(x)
    coarse = convolve(F.relu(convolve(maps[2], "dense.0.convs.0")), "scores.1", 0)
    doubled = F.conv_transpose2d(coarse, w["doublings.0.weight"], stride=2, padding=1)
    summed = doubled + convolve(maps[1], "scores.0", 0)
    logits = F.conv_transpose2d(summed, w["enlarge.weight"], stride=4, padding=2)
    assert logits.shape == (2, 3, 16, 24)
    torch.testing.assert_close(network(image), logits)


@pytest.mark.parametrize(("dimensions", "mode"), [(2, "bilinear"), (3, "trilinear")])
@pytest.mark.parametrize("output_stride", [2, 8])
def test_upsampling_starts_as_interpolation(dimensions, mode, output_stride):
    network = fcn(dimensions=dimensions, output_stride=output_stride)
    scores = torch.randn(2, 3, *(5, 6, 4)[:dimensions])
    for layer, factor in ((network.enlarge, output_stride), *((double, 2) for double in network.doublings)):
        expected = F.interpolate(scores, scale_factor=factor, mode=mode, align_corners=False)
        inside = (..., *[slice(factor, -factor)] * dimensions)  # beyond the border scores are zero
        torch.testing.assert_close(layer(scores)[inside], expected[inside])


def test_training_starts_from_the_coarsest_scores():
    """The skips add nothing yet."""
    network = fcn(output_stride=2).eval()
    features = [*network.extract(torch.randn(1, 2, 32, 32))]
    logits = network.classify(features)
    for index in range(2):
        features[index] = torch.randn_like(features[index])
    torch.testing.assert_close(network.classify(features), logits, rtol=0, atol=0)
    features[2] = torch.randn_like(features[2])
    assert not torch.allclose(network.classify(features), logits)


@pytest.mark.parametrize("output_stride", [2, 4, 8])
def test_features_are_those_that_are_scored(output_stride):
    network = fcn(output_stride=output_stride, dense_widths=(6, 5))
    strides = [stride for stride in (2, 4, 8) if stride >= output_stride]
    features = network.extract(torch.randn(1, 2, 32, 16))
    assert [tuple(x.shape[2:]) for x in features] == [(32 // stride, 16 // stride) for stride in strides]
    assert [x.shape[1] for x in features] == [{2: 2, 4: 3, 8: 5}[stride] for stride in strides]
    assert list(network.pathways()) == [f"stride {stride}" for stride in strides]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_receptive_field(dimensions):
    network = fcn(dimensions=dimensions, widths=(2, 2), output_stride=4, padding="valid")
    analysis = analyse(network, (1, 2, *[input_side(network, 8)] * dimensions))
    # Convolutions and pooling see 1 + 2 (1 + 1) + 1 + 2 (2 + 2) + 2 = 16; interpolation between two neighbours 4 more.
    assert analysis.receptive_field == (20,) * dimensions


def test_the_margin():
    """Convolutions lose 2 (1 + 2 + 4), dense layers 3 x 8, upsampling 8: all in all 46, 48 in whole blocks."""
    network = fcn(padding="valid", dense_widths=(4,), dense_kernel_size=7)
    assert (network.margin, network.multiple, network.grid_start) == (48, 8, 0)


def test_scores_of_octave_pairs_are_tensors():
    network = fcn("octave")
    layers = [module for module in network.modules() if isinstance(module, OctaveConv2d)]
    assert [layer.alpha_in for layer in layers] == [0] + [0.5] * 8
    assert [layer.alpha_out for layer in layers] == [0.5] * 6 + [0] * 3
    assert count(network) == count(fcn())
    assert network(torch.randn(1, 2, 21, 13)).shape == (1, 3, 21, 13)


@pytest.mark.parametrize("pattern", ["*", "levels.*", "levels.1.convs.0"])
def test_octave_layers_chosen_by_pattern(pattern):
    network = fcn("octave", conv_layers=pattern)
    network(torch.randn(2, 2, 17, 15)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": []}, "widths must name a level or more"),
        ({"widths": [8, 0]}, "all widths be positive"),
        ({"dense_widths": [0]}, "all widths be positive"),
        ({"convs_per_level": 0}, "convs_per_level must be 1 or more"),
        ({"convs_per_level": [2, 2]}, "one number or one for each of 3 levels"),
        ({"output_stride": 16}, "output_stride must be one of 2, 4, 8 with 3 widths"),
        ({"output_stride": 1}, "output_stride must be one of 2, 4, 8"),
        ({"dense_widths": [4], "dense_kernel_size": 2}, "kernel_size must be odd and positive, got 2"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        fcn(**options)
