import math

import numpy as np
import pytest
import torch
from torch import nn

from models import create_model
from models.analysis import analyse
from models.effective_field import EffectiveField, effective_field
from models.patch_sizes import input_side, output_sides


def blurs(count: int, dimensions: int) -> nn.Sequential:
    """Convolutions of ones: the gradient of `count` of them is a product of trinomial coefficients."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    network = nn.Sequential(*(conv(1, 1, 3, padding=1, bias=False) for _ in range(count)))
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    return network


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_linear_layers_against_the_polynomial(dimensions):
    field = effective_field(blurs(4, dimensions), (1, 1, *[15] * dimensions), samples=1)
    gradient = np.ones(1)
    for _ in range(4):
        gradient = np.convolve(gradient, np.ones(3))
    expected = np.zeros(15)
    expected[3:12] = gradient**2 / (gradient**2).sum()
    sigma = math.sqrt((expected * (np.arange(15) - 7) ** 2).sum())
    for axis in range(dimensions):
        assert np.allclose(field.profile(axis), expected)
    assert field.sigma == pytest.approx([sigma] * dimensions)
    assert field.extent(1.0) == (9,) * dimensions
    assert field.extent(0.95) == (5,) * dimensions


def test_the_extent_is_the_shortest_interval():
    profile = torch.tensor([0.05, 0.0, 0.5, 0.3, 0.1, 0.05], dtype=torch.double)
    field = EffectiveField(profile, 1)
    assert [field.extent(share)[0] for share in (0.5, 0.51, 0.8, 0.81, 0.9, 0.95, 1.0)] == [1, 2, 2, 3, 3, 4, 6]
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        field.extent(1.5)


def test_unlike_axes():
    network = nn.Conv2d(2, 3, (5, 1), padding=(2, 0))
    assert effective_field(network, (1, 2, 11, 11)).extent(1.0) == (5, 1)


def test_energy_is_summed_over_channels():
    """Whatever the signs: here every output channel reads a place of its own."""
    torch.manual_seed(0)
    network = nn.Conv2d(1, 9, 3, padding=1)
    weight = torch.randn(9)
    network.weight = nn.Parameter(torch.diag(weight).view(9, 1, 3, 3))
    field = effective_field(network, (1, 1, 5, 5), samples=1)
    assert torch.allclose(field.energy[1:4, 1:4].flatten().float(), weight**2 / weight.square().sum())


def test_channels_do_not_cancel():
    network = nn.Conv2d(1, 2, 1)
    network.weight = nn.Parameter(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    assert effective_field(network, (1, 1, 3, 3)).energy[1, 1] == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [("unet", {"widths": (4, 8)}), ("fcn", {"widths": (4, 8), "output_stride": 2}), ("deepmedic", {"widths": (4, 4)})],
)
def test_it_lies_within_the_theoretical_field(name, options):
    torch.manual_seed(0)
    network = create_model(name, padding="valid", **options)
    size = (1, 1, *[input_side(network, output_sides(network, 1, 1)[0])] * 2)
    extent = effective_field(network, size, samples=4).extent()
    theoretical = analyse(network, size).receptive_field
    assert all(2 <= effective <= field for effective, field in zip(extent, theoretical, strict=True))


def test_the_same_again_and_nothing_moved():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    state = torch.get_rng_state()
    first, second = (effective_field(network, (1, 1, 9, 9), samples=2) for _ in range(2))
    assert torch.equal(first.energy, second.energy)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert network[1].num_batches_tracked == 0
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (nn.Conv2d(1, 1, 3), {"samples": 0}, "samples must be at least 1, got 0"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten()), {}, r"the output is \(1, 9\)"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Threshold(1e9, 0)), {}, "depends on no position of the input"),
    ],
)
def test_errors(network, options, message):
    with pytest.raises(ValueError, match=message):
        effective_field(network, (1, 1, 5, 5), **options)
