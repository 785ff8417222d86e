"""Variants put into networks of volumes that were built from plain convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.analysis import analyse
from models.convs import (
    DepthwiseSeparableConv3d,
    GaussianDerivativeConv3d,
    OctaveConv3d,
    build_variant,
)
from models.convs.octave import OctaveNorm
from models.replace import replace_convs


class Halved(nn.Module):
    """An encoder and decoder of two levels, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv3d(8, 16, 3, stride=2, padding=1), nn.BatchNorm3d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv3d(16, 16, 3, padding="same"), nn.BatchNorm3d(16), nn.ReLU())
        self.up = nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.exit = nn.Conv3d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.entry(x)
        return self.exit(torch.cat([skip, self.up(self.body(self.down(skip)))], 1))


@pytest.mark.parametrize(
    ("spec", "layer", "expected"),
    [
        ("octave", OctaveConv3d, ["entry.0", "down.0", "body.0", "exit"]),
        ({"name": "octave", "alpha": 0.0}, OctaveConv3d, []),
        ({"name": "gaussian", "order": 1}, GaussianDerivativeConv3d, ["entry.0", "down.0", "body.0"]),
        ("depthwise_separable", DepthwiseSeparableConv3d, ["entry.0", "down.0", "body.0"]),
        ("standard", nn.Conv3d, ["entry.0", "down.0", "body.0", "exit"]),
    ],
)
def test_networks_of_volumes(spec, layer, expected):
    network = replace_convs(Halved(), build_variant(spec))
    assert [name for name, module in network.named_modules() if type(module) is layer] == expected
    x = torch.randn(2, 1, 6, 4, 8)
    logits = network(x)
    assert logits.shape == (2, 2, 6, 4, 8)
    logits.square().sum().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_octave_where_a_pattern_says():
    network = replace_convs(Halved(), build_variant("octave"), "body.*")
    assert isinstance(network.body[0], OctaveConv3d)
    assert isinstance(network.body[1], OctaveNorm)
    assert type(network.down[0]) is nn.Conv3d
    analysis = analyse(network, (1, 1, 8, 8, 8))
    # A low value sees three low ones, four voxels apart, of two values of the encoder, two apart, that see five each.
    assert analysis.receptive_field == (15, 15, 15)
    assert analysis.parameters == sum(parameter.numel() for parameter in Halved().parameters())


def test_kernel_size_of_the_spec():
    network = replace_convs(Halved(), build_variant({"name": "standard", "kernel_size": 5}))
    assert network.body[0].kernel_size == (5, 5, 5)
    assert network.exit.kernel_size == (1, 1, 1)
    assert network(torch.randn(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)


@pytest.mark.parametrize("name", ["rfnn", "dau"])
def test_variants_of_images_name_the_layer(name):
    with pytest.raises(ValueError, match=f"layer 'entry.0': conv '{name}' is for images and has no 3-D form"):
        replace_convs(Halved(), build_variant(name))
