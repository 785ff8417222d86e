"""The variant `octave`: what it hands to a network at each position."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models import create_model
from models.convs import OctaveConv2d, OctaveConvTranspose2d, OctavePair, build_variant, create_conv
from models.convs.octave import BetaWeighting, OctaveNorm

OCTAVE = build_variant("octave")


@pytest.mark.parametrize(
    ("position", "alphas"), [("entry", (0, 0.25)), ("inner", (0.25, 0.25)), ("exit", (0.25, 0)), (None, (0.25, 0.25))]
)
def test_positions(position, alphas):
    variant = build_variant({"name": "octave", "alpha": 0.25})
    where = {} if position is None else {"position": position}
    for layer in (variant.conv(8, 8, 3, padding=1, **where), variant.conv_transpose(8, 8, 2, stride=2, **where)):
        assert (layer.alpha_in, layer.alpha_out) == alphas
    assert (variant.create(8, 8, 1, **where).alpha_in, variant.create(8, 8, 1, **where).alpha_out) == alphas


def test_it_takes_every_kernel():
    assert isinstance(OCTAVE.conv(8, 16, 1), OctaveConv2d)
    assert isinstance(OCTAVE.conv_transpose(8, 16, 2, stride=2), OctaveConvTranspose2d)
    assert isinstance(OCTAVE.conv_transpose(8, 16, 4, stride=2, padding=1), OctaveConvTranspose2d)
    layer = create_conv("octave", 8, 16, 5, stride=2, padding=2, bias=False, alpha=0.25)
    assert (layer.in_split, layer.out_split, layer.stride, layer.bias) == ((6, 2), (12, 4), (2, 2), None)
    with pytest.raises(ValueError, match="padding = dilation"):
        OCTAVE.conv(8, 16, 4, stride=2, padding=1)


def test_alpha_0_gives_plain_modules():
    variant = build_variant({"name": "octave", "alpha": 0})
    assert type(variant.conv((4, 4), 16, 4, stride=2, padding=1)) is nn.Conv2d
    assert type(variant.conv_transpose((4, 4), 16, 4, stride=2)) is nn.ConvTranspose2d
    assert type(variant.norm((4, 4))) is nn.BatchNorm2d
    assert type(variant.norm(8, "none")) is nn.Identity


def test_norms_follow_the_maps():
    norm = OCTAVE.norm(7)
    assert isinstance(norm, OctaveNorm)
    assert isinstance(norm.high, nn.BatchNorm2d)
    assert (norm.high.num_features, norm.low.num_features) == (4, 3)
    assert OCTAVE.norm((7, 7)).low.num_features == 6
    assert OCTAVE.norm(7, position="entry").low.num_features == 3
    assert type(OCTAVE.norm(7, position="exit")) is nn.BatchNorm2d
    assert type(OCTAVE.norm(7, "none", position="exit")) is nn.Identity
    assert type(OCTAVE.norm(7, "none")) is BetaWeighting
    with pytest.raises(ValueError, match="unknown norm"):
        OCTAVE.norm(7, "batsh")
    low = build_variant({"name": "octave", "alpha": 1}).norm(7)
    assert low.high is None
    assert low.low.num_features == 7


@pytest.mark.parametrize(("kind", "layer"), [("group", nn.GroupNorm), ("instance", nn.InstanceNorm2d)])
def test_norms_of_every_kind(kind, layer):
    norm = OCTAVE.norm((9, 9), kind)
    assert [type(member) for member in (norm.high, norm.low)] == [layer, layer]
    assert [len(member.weight) for member in (norm.high, norm.low)] == [10, 8]
    assert type(OCTAVE.norm(9, kind, position="exit")) is layer
    assert build_variant({"name": "octave", "alpha": 1}).norm(9, kind).high is None


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan")])
def test_alpha_outside_its_range(alpha):
    with pytest.raises(ValueError, match=r"alpha.*must lie in \[0, 1\]"):
        build_variant({"name": "octave", "alpha": alpha})


def test_options_are_alpha_and_kernel_size():
    for option in ("alpha_in", "alhpa"):
        with pytest.raises(ValueError, match=r"Did you mean 'alpha'\? Valid: alpha, kernel_size"):
            build_variant({"name": "octave", option: 0.5})


def test_the_kernel_size_of_the_spec():
    variant = build_variant({"name": "octave", "kernel_size": 5})
    layer = variant.conv(8, 8, 3, stride=2, padding=2, dilation=2)
    assert (layer.kernel_size, layer.padding) == ((5, 5), (4, 4))
    assert variant.conv(8, 8, 1).kernel_size == (1, 1)
    assert build_variant({"name": "octave", "alpha": 0, "kernel_size": 5}).conv(8, 8, 3, padding=1).padding == (2, 2)


@pytest.mark.parametrize("alpha", [0, 0.5, 0.99, 1])
@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"downsample": "stride"}])
def test_fashion_cnn(options, alpha):
    network = create_model("fashion_cnn", conv={"name": "octave", "alpha": alpha}, in_channels=1, **options)
    plain = create_model("fashion_cnn", in_channels=1, **options)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in plain.parameters())
    for size in (28, 29, 8):
        logits = network(torch.randn(2, 1, size, size))
        assert logits.shape == (2, 10)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_concatenation_tells_its_parts():
    """9 + 9 channels at alpha 0.5 have 4 + 4 low ones, not 9."""
    before = [OCTAVE.conv(3, 9, 3, padding=1, position="entry") for _ in range(2)]
    x = torch.randn(2, 3, 7, 7)
    joined = torch.cat([layer(x) for layer in before], 1)
    assert joined.channels == (10, 8)
    after = nn.Sequential(OCTAVE.norm((9, 9)), OCTAVE.conv((9, 9), 4, 3, padding=1))
    assert isinstance(after(joined), OctavePair)
    with pytest.raises(ValueError, match="takes"):
        OCTAVE.conv(18, 4, 3, padding=1)(joined)
