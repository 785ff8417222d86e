"""Synthesised layers fitted to free-form filters."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.convs import SynthesisedConv, SynthesisedConv2d, create_conv
from models.convs.fitting import fit_filters

LAYERS = {
    "gaussian": {"order": 2},
    "gaussian, two bases": {"order": 2, "num_bases": 2},
    "gaussian, separated": {"separated": True, "num_bases": 2},
    "gaussian, sigma alone": {"order": 2, "trainable": ["sigma"]},
    "rfnn": {"order": 2},
    "dau": {"num_units": 3},
}
each_layer = pytest.mark.parametrize("case", LAYERS)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr("models.convs.fitting.MAX_STEPS", 40)


def layer_of(case: str, kernel_size: int = 5, **options) -> SynthesisedConv:
    torch.manual_seed(0)
    options = {"padding": kernel_size // 2, **LAYERS[case], **options}
    return create_conv(case.split(",")[0], options.pop("in_channels", 2), 8, kernel_size, **options)


def filters(kernel_size: int = 5, in_channels: int = 2) -> torch.Tensor:
    """Edges and bars under a window, as first layers learn them, (8, in_channels, k, k)."""
    generator = torch.Generator().manual_seed(1)
    angle, phase = (math.pi * torch.rand(2, 8, 1, 1, generator=generator)).unbind()
    y, x = torch.meshgrid(*(2 * [torch.arange(kernel_size) - (kernel_size - 1) / 2]), indexing="ij")
    waves = torch.cos(1.5 * (x * angle.cos() + y * angle.sin()) + phase) * torch.exp(-(x**2 + y**2) / kernel_size)
    return waves[:, None] * torch.randn(8, in_channels, 1, 1, generator=generator)


def distance(layer: SynthesisedConv, weight: torch.Tensor) -> float:
    return float((layer.dense_weight().detach() - weight).norm() / weight.norm())


@each_layer
def test_comes_close_and_says_how_close(case):
    layer, weight, bias = layer_of(case), filters(), torch.randn(8)
    residual = fit_filters(layer, weight, bias)
    assert residual == pytest.approx(distance(layer, weight), rel=1e-3)
    assert residual < 0.6
    assert torch.equal(layer.bias, bias)
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.dense_weight(), bias, padding=2), rtol=1e-4, atol=1e-4)


@each_layer
def test_searching_the_geometry_is_better_than_the_first_one(case, monkeypatch):
    fitted, coefficients_alone = layer_of(case), layer_of(case)
    searched = fit_filters(fitted, filters())
    monkeypatch.setattr("models.convs.fitting.MAX_STEPS", 0)
    closed_form = fit_filters(coefficients_alone, filters())
    assert closed_form < distance(layer_of(case), filters())
    if case == "rfnn":  # has no other
        assert searched == pytest.approx(closed_form)
        return
    assert searched < 0.9 * closed_form
    names = dict(fitted.named_buffers())
    assert all(torch.equal(value, names[name]) for name, value in layer_of(case).named_buffers())


def test_a_basis_of_as_many_kernels_as_pixels_reproduces_any_filters():
    layer = layer_of("gaussian", kernel_size=3, order=3)
    weight = torch.randn(8, 2, 3, 3)
    assert fit_filters(layer, weight) < 0.01
    torch.testing.assert_close(layer.dense_weight(), weight, rtol=0, atol=0.03)


@each_layer
def test_a_fitted_layer_bears_small_changes_of_its_geometry(case):
    layer = layer_of(case, kernel_size=3)
    fit_filters(layer, torch.randn(8, 2, 3, 3))
    before = layer.dense_weight().detach()
    with torch.no_grad():
        for parameter in layer.geometry_parameters():
            parameter += 1e-3 * torch.randn_like(parameter)
    assert distance(layer, before) < 0.05


@each_layer
def test_is_never_worse_than_the_start(case):
    layer = layer_of(case)
    state = copy.deepcopy(layer.state_dict())
    assert fit_filters(layer, layer.dense_weight()) < 1e-6  # there is nothing to gain, and the penalties would cost
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("case", ["gaussian", "gaussian, separated", "dau"])
def test_groups(case):
    layer = layer_of(case, in_channels=4, groups=2)
    weight = filters()  # (8, 4 / 2, 5, 5)
    assert fit_filters(layer, weight) == pytest.approx(distance(layer, weight), rel=1e-3)
    assert distance(layer, weight) < 0.6


def test_smaller_filters_are_filled_up_with_zeros():
    layer, small = layer_of("gaussian", order=3), filters(3)
    residual = fit_filters(layer, small)
    assert residual == pytest.approx(distance(layer, F.pad(small, (1, 1, 1, 1))), rel=1e-3)
    assert residual < 0.3


def test_what_lies_outside_of_the_kernel_is_lost_and_counted():
    layer, large = layer_of("gaussian", kernel_size=3, order=3), filters(7)
    residual = fit_filters(layer, large)
    filled_up = F.pad(layer.dense_weight().detach(), (2, 2, 2, 2))
    assert residual == pytest.approx(float((filled_up - large).norm() / large.norm()), rel=1e-3)
    assert distance(layer, large[..., 2:5, 2:5]) < 0.01 < residual


def test_is_the_same_each_time_and_in_any_mode_and_draws_nothing():
    layers = [layer_of("gaussian") for _ in range(3)]
    fit_filters(layers[0], filters())
    state = torch.get_rng_state()
    with torch.inference_mode():
        fit_filters(layers[1], filters())
    layers[2].requires_grad_(False)
    fit_filters(layers[2], filters())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(layers[0].dense_weight(), layers[1].dense_weight())
    assert torch.equal(layers[0].dense_weight(), layers[2].dense_weight())
    assert not layers[2].omega.requires_grad


def test_the_fit_trains_on():
    layer = layer_of("gaussian")
    fit_filters(layer, filters())
    layer(torch.randn(1, 2, 9, 9)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_the_bias_is_copied_or_zero():
    layer = layer_of("rfnn")
    nn.init.ones_(layer.bias)
    fit_filters(layer, filters(), None)
    assert layer.bias.count_nonzero() == 0
    assert fit_filters(layer_of("rfnn", bias=False), filters()) < 0.5


def test_zero_filters():
    layer = layer_of("gaussian")
    assert fit_filters(layer, torch.zeros(8, 2, 5, 5)) == 0
    assert layer.dense_weight().count_nonzero() == 0


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.zeros(8, 3, 5, 5), None, r"of \(8, 3, 5, 5\) cannot be fitted by a layer of \(8, 2\) channels"),
        (torch.zeros(8, 2), None, "cannot be fitted"),
        (torch.zeros(8, 2, 4, 4), None, "filters of 4x4 have no pixel in their centre, those of 5x5 have"),
        (torch.zeros(8, 2, 5, 5), torch.zeros(8), "come with a bias, which the layer"),
    ],
)
def test_filters_that_do_not_fit(weight, bias, message):
    with pytest.raises(ValueError, match=message):
        fit_filters(layer_of("gaussian", bias=False), weight, bias)


def test_an_unknown_kind_of_layer_is_named():
    class Other(SynthesisedConv2d):
        def dense_weight(self):
            return torch.zeros(8, 2, 5, 5)

        def geometry_parameters(self):
            return []

    with pytest.raises(ValueError, match=r"does not know how filters depend on the parameters of .*Other"):
        fit_filters(Other(2, 8, 5), filters())


@pytest.mark.parametrize("separated", [False, True])
def test_filters_of_volumes(separated):
    def layer_of_volumes(kernel_size: int) -> SynthesisedConv:
        return create_conv("gaussian", 2, 4, kernel_size, dimensions=3, order=1, separated=separated)

    torch.manual_seed(0)
    layer, weight = layer_of_volumes(3), layer_of_volumes(3).dense_weight().detach()
    before = distance(layer, weight)
    residual = fit_filters(layer, weight, torch.ones(4))
    assert residual == pytest.approx(distance(layer, weight), rel=1e-3)
    assert residual < 0.7 * before
    larger = layer_of_volumes(5)
    assert fit_filters(larger, weight) == pytest.approx(distance(larger, F.pad(weight, [1] * 6)), rel=1e-3)
    with pytest.raises(ValueError, match="2x3x3 have no pixel in their centre, those of 5x5x5 have"):
        fit_filters(larger, weight[:, :, 1:])
    with pytest.raises(ValueError, match="depth, height, width"):
        fit_filters(larger, weight[:, :, 0])
