"""One definition for images and volumes: what is chosen by the number of spatial dimensions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.convs import build_variant, create_conv, list_convs
from models.convs.dimensions import average_pool, per_axis
from models.convs.variant import build_norm
from models.names import UnknownNameError

IMAGES_ONLY = sorted({*list_convs()} - {*list_convs(dimensions=3)})


def test_which_variants_are_for_images_only():
    assert IMAGES_ONLY == ["dau", "rfnn"]
    assert list_convs(dimensions=3) == ["depthwise_separable", "gaussian", "octave", "standard"]


@pytest.mark.parametrize("name", IMAGES_ONLY)
def test_a_variant_without_a_3d_form_says_which_have_one(name):
    with pytest.raises(ValueError, match=f"{name}.* is for images and has no 3-D form.*depthwise_separable, gaussian"):
        build_variant(name).in_dimensions(3)
    with pytest.raises(ValueError, match="no 3-D form"):
        create_conv(name, 2, 2, 3, dimensions=3)
    assert build_variant(name).in_dimensions(2).dimensions == 2


@pytest.mark.parametrize("name", list_convs(dimensions=3))
def test_a_variant_is_for_images_until_a_network_asks_for_volumes(name):
    variant = build_variant({"name": name, "kernel_size": 5})
    volumes = variant.in_dimensions(3)
    assert (variant.dimensions, volumes.dimensions) == (2, 3)
    assert volumes.spec == variant.spec
    assert type(volumes.in_dimensions(2).conv(2, 4, 3, padding=1)) is type(variant.conv(2, 4, 3, padding=1))


@pytest.mark.parametrize("dimensions", [1, 4, "3"])
def test_other_dimensions(dimensions):
    with pytest.raises(ValueError, match=f"must be 2, for images, or 3, for volumes, got {dimensions!r}"):
        build_variant("standard").in_dimensions(dimensions)
    with pytest.raises(ValueError, match="must be 2, for images"):
        build_norm("batch", 4, dimensions)


@pytest.mark.parametrize(
    ("kind", "images", "volumes"),
    [
        ("batch", nn.BatchNorm2d, nn.BatchNorm3d),
        ("group", nn.GroupNorm, nn.GroupNorm),
        ("instance", nn.InstanceNorm2d, nn.InstanceNorm3d),
        ("none", nn.Identity, nn.Identity),
    ],
)
def test_norms(kind, images, volumes):
    variant = build_variant("standard")
    assert type(build_norm(kind, 4)) is type(variant.norm((1, 3), kind)) is images
    norm = variant.in_dimensions(3).norm((1, 3), kind)
    assert type(build_norm(kind, 4, 3)) is type(norm) is volumes
    assert norm(torch.randn(2, 4, 3, 2, 5)).shape == (2, 4, 3, 2, 5)
    with pytest.raises(UnknownNameError, match="Did you mean 'batch'"):
        build_norm("bach", 4, 3)


def test_one_number_or_one_an_axis():
    assert per_axis(3, 3) == (3, 3, 3)
    assert per_axis([1, 2, 3], 3) == (1, 2, 3)
    with pytest.raises(ValueError, match="expected a whole number or three of them"):
        per_axis((1, 2), 3)
    with pytest.raises(ValueError, match="expected a whole number or two of them"):
        per_axis("same", 2)


@pytest.mark.parametrize("window", [(2, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("size", [(4, 6, 6), (5, 3, 7), (1, 1, 1), (2, 1, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_average_pool_of_volumes(window, size, memory_format):
    x = torch.randn(2, 3, *size).to(memory_format=memory_format).requires_grad_()
    # torch's own refuses windows that exceed the map.
    kernel = [min(pair) for pair in zip(window, size, strict=True)]
    expected = F.avg_pool3d(x, kernel, window, ceil_mode=True, count_include_pad=False)
    pooled = average_pool(x, window)
    torch.testing.assert_close(pooled, expected)
    assert pooled.is_contiguous(memory_format=memory_format)
    weights = torch.randn_like(expected)
    gradients = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (pooled, expected))
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(average_pool(x.bfloat16(), window).float(), pooled, atol=0.03, rtol=0.03)
