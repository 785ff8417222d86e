"""Octave pairs and layers of volumes: a volume that repeats an image along an axis is treated as the image.

What is right of images, other tests say; here it is right along each pair of a volume's axes.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.convs import (
    OctaveConv2d,
    OctaveConv3d,
    OctaveConvTranspose2d,
    OctaveConvTranspose3d,
    OctavePair,
    build_variant,
)
from models.convs.octave import OctaveNorm
from models.convs.octave.pair import half_size, pool_down, upsample

SIZES = [(7, 4), (3, 8), (1, 1)]
each_axis = pytest.mark.parametrize("axis", [0, 1, 2])


def repeated(x, axis: int, depth: int):
    """Images as volumes: again and again along a new axis."""
    if isinstance(x, OctavePair):
        size = (*x.full_size[:axis], depth, *x.full_size[axis:])
        high, low = (
            None if member is None else repeated(member, axis, length)
            for member, length in zip(x, (depth, (depth + 1) // 2), strict=True)
        )
        return OctavePair(high, low, size)
    return x.unsqueeze(2 + axis).repeat_interleave(depth, 2 + axis)


def assert_same(found, expected) -> None:
    assert isinstance(found, type(expected))
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected)
        return
    assert found.full_size == expected.full_size
    for member, other in zip(found, expected, strict=True):
        assert (member is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(member, other)


def image_for(layer: nn.Module, size: tuple[int, int]):
    x = torch.randn(2, layer.in_channels, *size)
    return OctavePair.from_tensor(x, layer.in_split[1]) if layer.alpha_in else x


@each_axis
@pytest.mark.parametrize(("alpha_in", "alpha_out"), [(0, 0), (0, 0.5), (0.5, 0.5), (0.25, 1), (1, 0.25), (0.5, 0)])
@pytest.mark.parametrize("geometry", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}])
def test_convolution(axis, alpha_in, alpha_out, geometry):
    options = {"alpha_in": alpha_in, "alpha_out": alpha_out, "padding": geometry.get("dilation", 1), **geometry}
    images, volumes = OctaveConv2d(8, 16, 3, **options), OctaveConv3d(8, 16, 3, **options)
    with torch.no_grad():  # the middle of the kernel alone sees the slice itself alone
        volumes.weight.zero_().select(2 + axis, 1).copy_(images.weight)
        volumes.bias.copy_(images.bias)
    for size in SIZES:
        x = image_for(images, size)
        assert_same(volumes(repeated(x, axis, 5)), repeated(images(x), axis, 5 if "stride" not in geometry else 3))


@each_axis
@pytest.mark.parametrize(("alpha_in", "alpha_out"), [(0, 0), (0, 0.5), (0.5, 0.5), (0.5, 0)])
def test_transposed_convolution(axis, alpha_in, alpha_out):
    options = {"alpha_in": alpha_in, "alpha_out": alpha_out, "stride": 2}
    images, volumes = OctaveConvTranspose2d(8, 16, 2, **options), OctaveConvTranspose3d(8, 16, 2, **options)
    with torch.no_grad():
        volumes.weight.copy_(repeated(images.weight, axis, 2))
        volumes.bias.copy_(images.bias)
    for size in SIZES:
        x = image_for(images, size)
        assert_same(volumes(repeated(x, axis, 3)), repeated(images(x), axis, 6))


def test_depthwise_and_uneven_parameters():
    layer = OctaveConv3d(8, 8, (3, 1, 5), padding=(1, 0, 2), stride=(1, 2, 1), groups=8)
    assert layer.is_depthwise
    assert layer.weight.shape == nn.Conv3d(8, 8, (3, 1, 5), groups=8).weight.shape
    assert layer(OctavePair.from_tensor(torch.randn(1, 8, 3, 5, 4), 4)).shape == (1, 8, 3, 3, 4)
    enlarge = OctaveConvTranspose3d(8, 4, 4, stride=2, padding=1, output_padding=(0, 1, 0))
    assert enlarge(OctavePair.from_tensor(torch.randn(1, 8, 3, 2, 5), 4)).shape == (1, 4, 6, 5, 10)


def test_grids_that_would_not_stay_aligned():
    with pytest.raises(ValueError, match="only, here 1 x 1 x 1; got padding 0"):
        OctaveConv3d(4, 4, 3)
    with pytest.raises(ValueError, match="a transposed octave convolution keeps its two grids aligned"):
        OctaveConvTranspose3d(4, 4, 4, stride=2)


# Functions.

OTHER = torch.randn(5)
FUNCTIONS = {
    "arithmetic": (lambda x: F.relu(x) * 2 + x / 3 - x.tanh(), lambda x: F.relu(x) * 2 + x / 3 - x.tanh()),
    "a value a channel": (lambda x: x + OTHER[:, None, None], lambda x: x + OTHER[:, None, None, None]),
    "a gate": (
        lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
        lambda x: x * x.mean((2, 3, 4), keepdim=True).sigmoid(),
    ),
    "a full map": (lambda x: x + x.to_tensor(), lambda x: x + x.to_tensor()),
    "prelu": (nn.PReLU(5), nn.PReLU(5)),
    "dropout": (nn.Dropout2d(0.0), nn.Dropout3d(0.0)),
    "cat": (lambda x: torch.cat([x, x.neg()], 1), lambda x: torch.cat([x, x.neg()], -4)),
    "cat with a tensor": (
        lambda x: torch.cat([x.to_tensor(), x], 1),
        lambda x: torch.cat([x.to_tensor(), x], 1),
    ),
    "global pooling": (nn.AdaptiveAvgPool2d(1), lambda x: nn.AdaptiveAvgPool3d(1)(x).squeeze(4)),
    "flatten": (lambda x: nn.AdaptiveMaxPool2d(1)(x).flatten(1), lambda x: nn.AdaptiveMaxPool3d(1)(x).flatten(1)),
    "amax": (lambda x: x.amax((2, 3)), lambda x: x.amax((-1, -2, -3))),
}


@each_axis
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("low", [0, 2, 5])
def test_functions(axis, name, low):
    of_images, of_volumes = FUNCTIONS[name]
    x = OctavePair.from_tensor(torch.randn(2, 5, 5, 4), low)
    expected = of_images(x)
    keeps_axes = isinstance(expected, OctavePair) or max(expected.shape[2:], default=1) > 1
    assert_same(of_volumes(repeated(x, axis, 3)), repeated(expected, axis, 3) if keeps_axes else expected)


POOLS = {
    "max 2": (nn.MaxPool2d(2), nn.MaxPool3d(2)),
    "max 3 by 2": (nn.MaxPool2d(3, 2, 1), nn.MaxPool3d(3, 2, 1)),
    "max, cut": (nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool3d(2, ceil_mode=True)),
    "average 2": (nn.AvgPool2d(2), nn.AvgPool3d(2)),
    "nearest x2": (nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2)),
    "halved": (lambda x: F.interpolate(x, scale_factor=0.5), lambda x: F.interpolate(x, scale_factor=0.5)),
}


@each_axis
@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("low", [0, 2, 5])
@pytest.mark.parametrize("size", [(6, 4), (2, 7)])
def test_resolutions(axis, name, low, size):
    of_images, of_volumes = POOLS[name]
    x = OctavePair.from_tensor(torch.randn(2, 5, *size), low)
    for depth in (2, 6):
        found = of_volumes(repeated(x, axis, depth))
        assert_same(found, repeated(of_images(x), axis, found.full_size[axis]))
        assert found.full_size[axis] in (depth // 2, 2 * depth)


def test_to_a_size_and_cropped():
    x = OctavePair.from_tensor(torch.randn(2, 5, 3, 4, 5), 2)
    larger = F.interpolate(x, size=(5, 9, 7))
    assert (larger.high.shape[2:], larger.low.shape[2:]) == ((5, 9, 7), (3, 5, 4))
    assert F.interpolate(x, size=4).full_size == (4, 4, 4)
    cropped = larger.narrow(2, 0, 3).narrow(-1, 0, 6)
    assert (cropped.full_size, cropped.low.shape[2:]) == ((3, 9, 6), (2, 5, 3))
    assert torch.equal(cropped.high, larger.high[:, :, :3, :, :6])
    with pytest.raises(TypeError, match=r"along its spatial dimensions \(2 to 4\)"):
        x.narrow(1, 0, 2)
    with pytest.raises(TypeError, match=r"\(2, 3, 4\), not over \(2, 3\)"):
        x.mean((2, 3))
    with pytest.raises(ValueError, match="be 1x1x1 or of full size"):
        x + torch.zeros(5, 2, 2, 2)


@pytest.mark.parametrize("size", [(1, 1, 1), (5, 4, 3)])
def test_it_is_one_volume(size):
    x = torch.randn(2, 5, *size)
    pair = OctavePair.from_tensor(x, 2)
    assert pair.shape == x.shape
    assert (pair.ndim, pair.dim(), pair.full_size) == (5, 5, size)
    assert pair.low.shape == (2, 2, *half_size(size))
    torch.testing.assert_close(pool_down(upsample(pair.low, size)), pair.low)
    assert OctavePair(None, pair.low).full_size == tuple(2 * side for side in half_size(size))


@pytest.mark.parametrize("kind", ["batch", "group", "instance", "none"])
def test_norms_of_members(kind):
    norm = build_variant("octave").in_dimensions(3).norm((4, 4), kind)
    assert norm(OctavePair.from_tensor(torch.randn(2, 8, 3, 4, 5), 4)).shape == (2, 8, 3, 4, 5)
    assert isinstance(norm, OctaveNorm) == (kind != "none")
