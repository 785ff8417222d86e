"""The Gaussian derivative layer against an independent reference, and its levers."""

from __future__ import annotations

import math

import pytest
import torch

from models.convs import (
    DAUConv2d,
    GaussianDerivativeConv2d,
    GaussianDerivativeConv3d,
    RFNNConv2d,
    create_conv,
    geometry_parameters,
)
from models.convs.gaussian import basis_orders
from models.names import UnknownNameError


def derivative(y: torch.Tensor, sigma: float, order: int) -> torch.Tensor:
    """Of the normalised Gaussian, by automatic differentiation."""
    y = y.clone().requires_grad_()
    value = torch.exp(-(y**2) / (2 * sigma**2)) / math.sqrt(2 * math.pi * sigma**2)
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), y, create_graph=True)
    return value.detach()


def reference_kernels(layer: GaussianDerivativeConv2d) -> torch.Tensor:
    """Eq. (1) in float64, pixel by pixel."""
    sigma, mu, theta = (value.detach().double() for value in (layer.sigma, layer.mu, layer.theta))
    height, width = layer.kernel_size
    kernels = torch.empty(*theta.shape, height, width, dtype=torch.float64)
    x_2 = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width) - height // 2
    x_1 = torch.arange(width, dtype=torch.float64)[None].expand(height, width) - width // 2
    for b in range(theta.shape[0]):
        for n, (p, q) in enumerate(basis_orders(layer.order)):
            angle = theta[b, n].item()
            u_1 = x_1 * math.cos(angle) + x_2 * math.sin(angle)
            u_2 = -x_1 * math.sin(angle) + x_2 * math.cos(angle)
            along_1 = derivative(u_1 - mu[b, n, 0], sigma[b, n, 0].item(), p)
            along_2 = derivative(u_2 - mu[b, n, 1], sigma[b, n, 1].item(), q)
            kernels[b, n] = along_1 * along_2
    return kernels


@pytest.mark.parametrize("kernel_size", [3, 7, (5, 9)])
@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_kernels_equal_the_analytic_derivatives(order, kernel_size):
    layer = GaussianDerivativeConv2d(3, 6, kernel_size, order=order, num_bases=3).double()
    torch.testing.assert_close(layer.kernels(), reference_kernels(layer), rtol=1e-9, atol=1e-9)


def test_float32_kernels_stay_close_also_under_autocast():
    layer = GaussianDerivativeConv2d(3, 8, 7, order=3, num_bases=4)
    reference = reference_kernels(layer)
    scale = reference.abs().amax()
    with torch.autocast("cpu", torch.bfloat16):
        kernels = layer.kernels()
    assert kernels.dtype == torch.float32
    assert (kernels.double() - reference).abs().max() < 1e-6 * max(1.0, scale.item())


def test_orders_of_a_basis_as_published():
    assert basis_orders(2) == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0)]
    assert [len(basis_orders(order)) for order in range(5)] == [1, 3, 6, 10, 15]


def test_first_axis_runs_along_the_width():
    layer = GaussianDerivativeConv2d(1, 1, 7, order=1, sigma_init=1.0, mu_init=0.0, theta_init=0.0)
    along_width = layer.kernels()[0, basis_orders(1).index((1, 0))]
    torch.testing.assert_close(along_width, -along_width.flip(1))
    torch.testing.assert_close(along_width, along_width.flip(0))


def test_order_zero_kernels_sum_to_one():
    layer = GaussianDerivativeConv2d(1, 1, 15, order=0, sigma_init=(1.0, 2.0), mu_init=0.0)
    torch.testing.assert_close(layer.kernels().sum((2, 3)), torch.ones(1, 1), rtol=1e-3, atol=1e-3)


def test_each_basis_serves_its_own_outputs():
    layer = GaussianDerivativeConv2d(2, 8, 5, num_bases=4, order=1)
    layer.dense_weight()[4:6].sum().backward()  # the third basis
    assert (layer.mu.grad.abs().sum((1, 2)) > 0).tolist() == [False, False, True, False]


@pytest.mark.parametrize("lever", ["sigma", "mu", "theta"])
def test_only_the_named_geometry_is_learnt(lever):
    layer = GaussianDerivativeConv2d(2, 4, 5, trainable=(lever,))
    names = {name.removeprefix("raw_") for name, _ in layer.named_parameters()}
    assert names == {lever, "omega", "bias"}
    assert {id(p) for p in geometry_parameters(layer)} == {id(p) for p in layer.geometry_parameters()}
    assert len(layer.geometry_parameters()) == 1


def test_initial_geometry_as_published_and_fixed():
    published = GaussianDerivativeConv2d(1, 500, 5, num_bases=100)
    assert 0.5 <= published.sigma.min() < 0.6 < 1.9 < published.sigma.max() <= 2.0
    assert -1.0 <= published.mu.min() < -0.9 < 0.9 < published.mu.max() <= 1.0
    assert -math.pi <= published.theta.min() < -3 < 3 < published.theta.max() <= math.pi
    fixed = GaussianDerivativeConv2d(1, 4, 5, sigma_init=0.8, mu_init=0.25, theta_init=1.0)
    torch.testing.assert_close(fixed.sigma, torch.full((1, 10, 2), 0.8))
    assert (fixed.mu == 0.25).all()
    assert (fixed.theta == 1).all()


def test_every_sigma_stays_positive_whatever_the_optimiser_does():
    layer = GaussianDerivativeConv2d(2, 4, 5)
    with torch.no_grad():
        layer.raw_sigma.fill_(-1e6)
    assert (layer.sigma >= layer.min_sigma).all()
    assert layer.kernels().isfinite().all()


def test_separated_weight_is_the_product_and_saves_parameters():
    layer = GaussianDerivativeConv2d(8, 12, 5, num_bases=3, separated=True)
    omega = torch.stack([layer.lambda_[j, :, None] * layer.beta[j // 4] for j in range(12)])
    torch.testing.assert_close(layer.coefficients(), omega)
    assert layer.lambda_.numel() + layer.beta.numel() == (12 + 3 * 8) * 10


@pytest.mark.parametrize(("groups", "num_bases"), [(1, 4), (2, 4), (4, 2), (8, 3), (24, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_both_orders_of_the_separated_form_agree(groups, num_bases, stride):
    layer = GaussianDerivativeConv2d(
        24, 48, 5, stride, padding=4, dilation=2, groups=groups, num_bases=num_bases, separated=True
    ).double()
    x = torch.randn(2, 24, 11, 14, dtype=torch.float64)
    torch.testing.assert_close(layer.forward_factorised(x), layer.convolve(x, layer.dense_weight()))


def test_the_separated_form_takes_the_cheaper_order():
    wide = GaussianDerivativeConv2d(128, 128, 7, padding=3, num_bases=2, separated=True)
    assert wide._factorised_is_cheaper(torch.Size([32, 128, 14, 14]))
    first = GaussianDerivativeConv2d(1, 32, 3, padding=1, num_bases=16, separated=True)
    assert not first._factorised_is_cheaper(torch.Size([32, 1, 28, 28]))


def test_rfnn_learns_nothing_but_its_coefficients():
    layer = RFNNConv2d(3, 8, 5, sigma=1.5)
    assert [name for name, _ in layer.named_parameters()] == ["bias", "omega"]
    torch.testing.assert_close(layer.sigma, torch.full((1, 10, 2), 1.5))
    torch.testing.assert_close(layer.kernels().double(), reference_kernels(layer), rtol=1e-6, atol=1e-6)


def test_dau_displacements_stay_inside_the_kernel():
    layer = DAUConv2d(2, 3, (5, 9))
    with torch.no_grad():
        layer.raw_mu.fill_(50.0)
    assert layer.mu.shape == (3, 2, 10, 2)
    assert (layer.mu == torch.tensor([4.0, 2.0])).all()
    assert layer.dense_weight().isfinite().all()


def test_dau_weight_is_the_mixture_of_its_units():
    layer = DAUConv2d(2, 3, 5, num_units=4).double()
    mu, sigma, w = layer.mu.detach(), layer.sigma.detach(), layer.w.detach().permute(1, 2, 0)
    x_2, x_1 = torch.meshgrid(torch.arange(5.0) - 2, torch.arange(5.0) - 2, indexing="ij")
    expected = torch.zeros(3, 2, 5, 5, dtype=torch.float64)
    for o in range(3):
        for i in range(2):
            for u in range(4):
                distance = (x_1 - mu[o, i, u, 0]) ** 2 + (x_2 - mu[o, i, u, 1]) ** 2
                unit = torch.exp(-distance / (2 * sigma[o, i, u] ** 2))
                expected[o, i] += w[o, i, u] * unit / unit.sum()
    torch.testing.assert_close(layer.dense_weight(), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian", {"order": -1}, "order must be a whole number, 0 or more"),
        ("gaussian", {"order": 2.5}, "order must be a whole number"),
        ("rfnn", {"sigma": 0.05}, "sigma must lie above 0.1"),
        ("gaussian", {"num_bases": 3}, r"num_bases \(3\) must divide out_channels \(16\)"),
        ("gaussian", {"num_bases": 0}, "num_bases"),
        ("gaussian", {"sigma_init": 0.05}, "above min_sigma"),
        ("gaussian", {"sigma_init": (0.0, 2.0)}, "above min_sigma"),
        ("gaussian", {"trainable": ("sigmma",)}, "Did you mean 'sigma'"),
        ("gaussian", {"kernel_size": 6}, "odd"),
        ("gaussian", {"padding": "same"}, "expected a whole number or two"),
        ("dau", {"num_units": 0}, "num_units"),
        ("dau", {"sigma_init": 0.01}, "above min_sigma"),
    ],
)
def test_impossible_options(name, options, message):
    options = dict(options)
    kernel_size = options.pop("kernel_size", 5)
    with pytest.raises(ValueError, match=message):
        create_conv(name, 8, 16, kernel_size, **options)


def test_groups_that_do_not_divide():
    with pytest.raises(ValueError, match=r"in_channels \(8\) must be a positive multiple of groups \(3\)"):
        create_conv("gaussian", 8, 16, 5, groups=3)


def test_unknown_variant_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'gaussian'"):
        create_conv("gausian", 8, 16, 5)


# Volumes.


def reference_kernels_3d(layer: GaussianDerivativeConv3d) -> torch.Tensor:
    """The product of three derivatives in float64; rotations are exponentials of antisymmetric matrices."""
    sigma, mu, theta = (value.detach().double() for value in (layer.sigma, layer.mu, layer.theta))
    x_3, x_2, x_1 = torch.meshgrid(
        *(torch.arange(size, dtype=torch.float64) - size // 2 for size in layer.kernel_size), indexing="ij"
    )
    x = torch.stack([x_1, x_2, x_3])
    kernels = torch.empty(*theta.shape[:2], *layer.kernel_size, dtype=torch.float64)
    for b in range(theta.shape[0]):
        for n, orders in enumerate(basis_orders(layer.order, 3)):
            t_1, t_2, t_3 = theta[b, n].tolist()
            generator = torch.tensor([[0, -t_3, t_2], [t_3, 0, -t_1], [-t_2, t_1, 0]], dtype=torch.float64)
            u = torch.einsum("ij,i...->j...", torch.linalg.matrix_exp(generator), x)
            profiles = [derivative(u[i] - mu[b, n, i], sigma[b, n, i].item(), orders[i]) for i in range(3)]
            kernels[b, n] = profiles[0] * profiles[1] * profiles[2]
    return kernels


@pytest.mark.parametrize("rotation", ["axis_angle", "none"])
@pytest.mark.parametrize(("order", "kernel_size"), [(0, 3), (2, (3, 5, 7)), (3, 5)])
def test_kernels_of_volumes_equal_the_analytic_derivatives(order, kernel_size, rotation):
    layer = GaussianDerivativeConv3d(3, 6, kernel_size, order=order, num_bases=3, rotation=rotation).double()
    torch.testing.assert_close(layer.kernels(), reference_kernels_3d(layer), rtol=1e-9, atol=1e-9)


def test_orders_of_a_basis_of_volumes():
    assert basis_orders(1, 3) == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    assert [len(basis_orders(order, 3)) for order in range(4)] == [1, 4, 10, 20]
    assert GaussianDerivativeConv3d(1, 1, 3).num_kernels == 20


def test_turned_about_the_depth_planes_are_turned_images():
    volumes = GaussianDerivativeConv3d(1, 1, 5, order=1, mu_init=0.0, sigma_init=1.3).double()
    images = GaussianDerivativeConv2d(1, 1, 5, order=1, mu_init=0.0, sigma_init=1.3, theta_init=0.7).double()
    with torch.no_grad():
        volumes.theta.copy_(torch.tensor([0.0, 0.0, 0.7]))
    for orders in basis_orders(1):
        plane = volumes.kernels()[0, basis_orders(1, 3).index((*orders, 0)), 2]
        image = images.kernels()[0, basis_orders(1).index(orders)]
        torch.testing.assert_close(plane, image / (1.3 * math.sqrt(2 * math.pi)))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 3.0])
def test_theta_learns_from_any_angle(angle):
    layer = GaussianDerivativeConv3d(1, 1, 3, order=1, theta_init=angle).double()
    theta = layer.theta.detach().clone().requires_grad_()
    rotations = layer._to_own_axes(theta)
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).double().expand_as(rotations))
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(1, 4).double())
    assert torch.autograd.gradcheck(layer._to_own_axes, theta)
    layer.kernels().square().sum().backward()
    assert layer.theta.grad.isfinite().all()
    assert layer.theta.grad.abs().amin() > 0


def test_angles_as_told_about_axes_in_all_directions():
    layer = GaussianDerivativeConv3d(1, 200, 3, num_bases=100)
    angles = layer.theta.norm(dim=-1)
    assert angles.max() <= math.pi
    assert abs(angles.mean().item() - math.pi / 2) < 0.1
    assert layer.theta.mean((0, 1)).norm() < 0.2
    fixed = GaussianDerivativeConv3d(1, 4, 3, theta_init=0.5).theta.norm(dim=-1)
    torch.testing.assert_close(fixed, torch.full_like(fixed, 0.5))


@pytest.mark.parametrize("layer_class", [GaussianDerivativeConv2d, GaussianDerivativeConv3d])
def test_without_rotation(layer_class):
    layer = layer_class(2, 4, 3, order=1, rotation="none")
    assert layer.trainable == ("sigma", "mu")
    assert {name for name, _ in layer.named_parameters()} == {"raw_sigma", "mu", "omega", "bias"}
    assert not layer.theta.any()
    turned = layer_class(2, 4, 3, order=1, trainable=("sigma", "mu"), theta_init=0.0)
    turned.load_state_dict(layer.state_dict())
    torch.testing.assert_close(turned.kernels(), layer.kernels())
    assert "rotation=none" in repr(layer)
    assert "rotation" not in repr(turned)


@pytest.mark.parametrize(("groups", "num_bases", "stride"), [(1, 2, 1), (2, 4, 2)])
def test_both_orders_of_the_separated_form_agree_on_volumes(groups, num_bases, stride):
    layer = GaussianDerivativeConv3d(
        4, 8, 3, stride, padding=(1, 2, 0), groups=groups, num_bases=num_bases, separated=True, order=2
    ).double()
    x = torch.randn(2, 4, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer.forward_factorised(x), layer.convolve(x, layer.dense_weight()))


def test_order_zero_kernels_of_volumes_sum_to_one():
    layer = GaussianDerivativeConv3d(1, 1, 15, order=0, sigma_init=(1.0, 2.0), mu_init=0.0)
    torch.testing.assert_close(layer.kernels().sum((2, 3, 4)), torch.ones(1, 1), rtol=2e-3, atol=2e-3)


def test_other_rotations():
    with pytest.raises(UnknownNameError, match=r"unknown rotation 'euler'\. Valid: axis_angle, none"):
        create_conv("gaussian", 1, 1, 3, dimensions=3, rotation="euler")
