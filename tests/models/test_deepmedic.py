"""DeepMedic: pathways by an independent reading, centred on the same voxels, and their receptive fields."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import create_model
from models.analysis import analyse
from models.convs import OctaveConv2d
from tests.helpers.networks import trained

SMALL = {"in_channels": 2, "num_classes": 3, "widths": (2, 3, 4), "classifier_widths": (5,), "norm": "none"}


def deepmedic(conv="standard", **options) -> nn.Module:
    return create_model("deepmedic", conv, **{**SMALL, **options})


def field_of(logits: Tensor, x: Tensor, place: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and last voxel along each axis on which the logits at `place` depend."""
    (gradient,) = torch.autograd.grad(logits[(0, slice(None), *place)].square().sum(), x, retain_graph=True)
    touched = gradient[0].abs().sum(0).nonzero()
    return [(axis.min().item(), axis.max().item()) for axis in touched.T]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_original_segments(dimensions):
    """Kamnitsas et al., section 3.2: 9 voxels from 25 at full resolution and from 19 at a third of it."""
    with torch.device("meta"):
        network = create_model("deepmedic", dimensions=dimensions, padding="valid")
        sizes = []
        for path in network.paths:
            path[1].register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[2]))
        assert network(torch.empty(1, 1, *[57] * dimensions)).shape[2:] == (9,) * dimensions
    assert (network.margin, sizes) == (24, [25, 19])
    fields = {layer.name: layer.receptive_field for layer in analyse(network, (1, 1, *[57] * dimensions)).layers}
    assert (fields["paths.0.1.convs.7"], fields["paths.1.1.convs.7"]) == ((17,) * dimensions, (51,) * dimensions)
    assert list(network.pathways().values()) == list(network.paths)


def test_pathways_by_an_independent_reading():
    network = trained(deepmedic(padding="valid", scales=(1, 3)))
    x, w = torch.randn(2, 2, 9 + 18, 6 + 18), network.state_dict()

    def path(x: Tensor, index: int) -> Tensor:
        for layer in range(3):
            name = f"paths.{index}.1.convs.{layer}"
            x = F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"]))
        return x

    blocks = x.unflatten(3, (8, 3)).unflatten(2, (9, 3)).mean((3, 5))
    fine, coarse = path(x[..., 6:-6, 6:-6], 0), path(blocks, 1)
    features = torch.cat([fine, coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)], 1)
    torch.testing.assert_close(network.extract(x), features)
    hidden = F.relu(F.conv2d(features, w["dense.0.convs.0.weight"], w["dense.0.convs.0.bias"]))
    logits = F.conv2d(hidden, w["classifier.weight"], w["classifier.bias"])
    assert logits.shape == (2, 3, 9, 6)
    torch.testing.assert_close(network(x), logits)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("scale", [3, 5])
def test_pathways_are_centred_on_the_same_voxels(scale, padding):
    """The block of a voxel, and three voxels of the pathway's resolution beyond it on either side."""
    network = deepmedic(scales=(scale,), padding=padding).double()
    for parameter in network.parameters():
        parameter.data.abs_()  # no ReLU cuts anything off
    margin, side = network.margin, 9 * scale
    x = torch.rand(1, 2, side + 2 * margin, side + 2 * margin, dtype=torch.double, requires_grad=True)
    logits = network(x)
    for place in (4 * scale, 5 * scale - 1):  # of the central block
        first, last = margin + scale, margin + 8 * scale - 1
        assert field_of(logits, x, (place, place)) == [(first, last)] * 2


def test_every_value_fills_its_block():
    network = trained(deepmedic(scales=(3,), padding="valid"))
    features = network.extract(torch.randn(1, 2, 30, 30))
    assert features.shape[2:] == (12, 12)
    torch.testing.assert_close(features, features[..., ::3, ::3].repeat_interleave(3, 2).repeat_interleave(3, 3))


@pytest.mark.parametrize("scales", [(2,), (3,), (5,), (6,), (7,), (12,)])
def test_any_scale_fills_its_blocks(scales):
    """0-th order upsampling finds its voxels by a multiplication with 1 / scale, whose rounding must not show."""
    network = deepmedic(scales=scales, kernel_size=1)
    x = torch.arange(60.0 * scales[0]).expand(1, 2, scales[0], -1)
    features = network.extract(x)[:, :, 0].unflatten(-1, (60, scales[0]))
    assert torch.equal(features.amin(-1), features.amax(-1))


def test_a_receptive_field_of_a_pixel():
    network = trained(deepmedic(scales=(1,), kernel_size=1, padding="valid"))
    assert network.margin == 0
    assert analyse(network, (1, 2, 8, 8)).receptive_field == (1, 1)
    x = torch.randn(1, 2, 8, 8)
    torch.testing.assert_close(network(x)[..., 3:4, 5:6], network(x[..., 3:4, 5:6]))


def test_parameters_by_hand():
    network = create_model("deepmedic", dimensions=3, in_channels=4, num_classes=5, norm="none")
    widths = (4, 30, 30, 40, 40, 40, 40, 50, 50)
    pathway = sum(27 * before * width + width for before, width in pairwise(widths))
    common = 100 * 150 + 150 + 150 * 150 + 150 + 150 * 5 + 5
    assert sum(parameter.numel() for parameter in network.parameters()) == 2 * pathway + common


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_residual_connections(padding, dimensions):
    """Around every two layers but the first two; through a 1x1 convolution where widths differ."""
    widths = (2, 3, 3, 3, 4, 4, 4)
    network = deepmedic(widths=widths, residual=True, scales=(1,), padding=padding, dimensions=dimensions)
    _, *blocks = network.paths[0][1]
    assert [type(block.shortcut) for block in blocks] == [
        nn.Identity,
        nn.Conv2d if dimensions == 2 else nn.Conv3d,
        nn.Identity,
    ]
    assert [len(block.stack.convs) for block in blocks] == [2, 2, 1]
    for block in blocks:
        for parameter in block.stack.parameters():
            nn.init.zeros_(parameter)
        if not isinstance(block.shortcut, nn.Identity):
            nn.init.dirac_(block.shortcut.weight)
            nn.init.zeros_(block.shortcut.bias)
    x = torch.randn(1, 2, *[20] * dimensions)
    first = network.paths[0][1][0](x)
    lost = (first.shape[2] - network.extract(x).shape[2]) // 2
    assert lost == (5 if padding == "valid" else 0)
    inside = (..., *[slice(lost, first.shape[2] - lost)] * dimensions)
    torch.testing.assert_close(network.extract(x)[:, :3], first[inside])


def test_octave_layers_take_images_in_every_pathway():
    network = deepmedic("octave", residual=True)
    layers = [module for module in network.modules() if isinstance(module, OctaveConv2d)]
    assert [layer.in_channels for layer in layers if layer.alpha_in == 0] == [2, 2]
    assert [layer.out_channels for layer in layers if layer.alpha_out == 0] == [3]
    assert network.dense[0].convs[0].in_split == (4, 4)
    assert network(torch.randn(1, 2, 11, 13)).shape == (1, 3, 11, 13)


@pytest.mark.parametrize("pattern", ["*", "paths.0.*", "dense.*"])
def test_octave_layers_chosen_by_pattern(pattern):
    network = deepmedic("octave", conv_layers=pattern, norm="batch")
    network(torch.randn(2, 2, 12, 15)).square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": []}, "scales must name a pathway or more"),
        ({"scales": [1, 1]}, "all different and positive"),
        ({"scales": [0, 3]}, "all different and positive"),
        ({"widths": []}, "widths must name a layer or more"),
        ({"widths": [8, 0]}, "all widths be positive"),
        ({"classifier_widths": [0]}, "all widths be positive"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        deepmedic(**options)
