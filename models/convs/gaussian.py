"""`gaussian`: the fully trainable Gaussian derivative layer of Penaud-Polge, Velasco-Forero and Angulo (ICIP 2022)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import reduce
from itertools import product
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs.dimensions import CONVOLVE, PerAxis
from models.convs.registry import register_conv
from models.convs.synthesised import SynthesisedConv, SynthesisedConv2d, SynthesisedConv3d
from models.convs.variant import SpatialVariant
from models.names import check_name

Geometry = Literal["sigma", "mu", "theta"]
Rotation = Literal["axis_angle", "none"]
Range = float | tuple[float, float]
"""A fixed value, or the bounds of a uniform draw."""

MIN_SIGMA = 0.1  # pixels; a narrower Gaussian falls between the pixels

# A depthwise convolution takes this many times longer per multiply-add than a dense one (measured on a CPU, forward
# and backward; `make bench` shows both orders).
DEPTHWISE_COST = {2: 16, 3: 30}  # by dimensions


def basis_orders(order: int, dimensions: int = 2) -> list[tuple[int, ...]]:
    """Orders along each axis of the kernels of a basis of order K: those that sum to 0, then to 1, and so on up to K.

    In two dimensions (p, q) = (j, i - j) for i = 0..K, j = 0..i, as published.
    """
    totals = range(order + 1)
    return [orders for total in totals for orders in product(totals, repeat=dimensions) if sum(orders) == total]


def hermite_polynomials(order: int) -> Tensor:
    """Row p holds the integer coefficients of (-1)^p He_p(t), from t^order down to 1: (order + 1, order + 1).

    With t = y / sigma, the p-th derivative of the normalised Gaussian is that polynomial times exp(-t^2 / 2) /
    (sqrt(2 pi) sigma^(p+1)): the paper's form, in the probabilists' polynomials He_p(t) = 2^(-p/2) H_p(t / sqrt 2).
    """
    polynomials = torch.zeros(order + 1, order + 1)
    for p in range(order + 1):
        for i in range(p // 2 + 1):
            degree = p - 2 * i
            pairings = math.factorial(p) // (math.factorial(i) * math.factorial(degree) * 2**i)
            polynomials[p, order - degree] = (-1) ** (p + i) * pairings
    return polynomials


class _GaussianDerivativeConv(SynthesisedConv):
    """What `GaussianDerivativeConv2d` and `GaussianDerivativeConv3d` are, but for how theta turns a kernel's axes."""

    raw_sigma: Tensor
    mu: Tensor
    theta: Tensor
    grid: Tensor
    exponents: Tensor
    polynomials: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        order: int = 3,
        num_bases: int = 1,
        separated: bool = False,
        rotation: Rotation = "axis_angle",
        trainable: Sequence[Geometry] = ("sigma", "mu", "theta"),
        sigma_init: Range = (0.5, 2.0),
        mu_init: Range = (-1.0, 1.0),
        theta_init: Range = (-math.pi, math.pi),
        min_sigma: float = MIN_SIGMA,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        if not isinstance(order, int) or order < 0:
            raise ValueError(f"order must be a whole number, 0 or more, got {order}")
        if num_bases < 1 or out_channels % num_bases:
            raise ValueError(f"num_bases ({num_bases}) must divide out_channels ({out_channels})")
        if min_sigma <= 0 or _lowest(sigma_init) <= min_sigma:
            raise ValueError(
                f"sigma_init ({sigma_init}) must lie above min_sigma ({min_sigma}), which must be positive"
            )
        check_name("rotation", rotation, get_args(Rotation))
        for lever in trainable:
            check_name("trainable geometry", lever, get_args(Geometry))
        self.order = order
        self.num_bases = num_bases
        self.separated = separated
        self.rotation = rotation
        self.trainable = tuple(lever for lever in trainable if lever != "theta" or rotation != "none")
        self.min_sigma = min_sigma
        self.init_ranges = {
            "sigma": sigma_init,
            "mu": mu_init,
            "theta": 0.0 if rotation == "none" else theta_init,
        }

        orders = basis_orders(order, self.dimensions)
        self.num_kernels = len(orders)
        kernels = (num_bases, self.num_kernels)
        vectors = (*kernels, self.dimensions)
        geometry = {"raw_sigma": vectors, "mu": vectors, "theta": kernels if self.dimensions == 2 else vectors}
        for name, shape in geometry.items():
            if name.removeprefix("raw_") in self.trainable:
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            else:
                self.register_buffer(name, torch.empty(shape))
        if separated:
            blocks = math.lcm(num_bases, groups)
            self.lambda_ = nn.Parameter(torch.empty(out_channels, self.num_kernels))
            self.beta = nn.Parameter(torch.empty(blocks, self.num_kernels, in_channels // groups))
        else:
            self.omega = nn.Parameter(torch.empty(out_channels, self.num_kernels, in_channels // groups))

        pixels = (torch.arange(size) - (size - 1) / 2 for size in self.kernel_size)
        coordinates = torch.meshgrid(*pixels, indexing="ij")[::-1]  # x_1 runs along the width, the last axis
        self.register_buffer("grid", torch.stack(coordinates).flatten(1), persistent=False)  # (axes, pixels)
        derivatives = torch.tensor(orders)  # (N, axes)
        self.register_buffer("exponents", -(derivatives + 1.0), persistent=False)
        # (K + 1, N, axes): each kernel's own polynomials, so that one evaluation serves them all.
        self.register_buffer("polynomials", hermite_polynomials(order)[derivatives].permute(2, 0, 1), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the geometry as told, and the coefficients so that the dense weight has He's variance.

        Coefficients are normal. Each kernel contributes equally: the deviation is inverse to the kernel's norm.
        """
        _draw(self.mu, self.init_ranges["mu"])
        self._draw_theta(self.init_ranges["theta"])
        sigma = _draw(torch.empty_like(self.raw_sigma), self.init_ranges["sigma"])
        self.raw_sigma.copy_(_inverse_softplus(sigma - self.min_sigma))

        norms = self.kernels().flatten(2).norm(dim=2)  # (B, N)
        # Odd derivatives vanish on a centred kernel of one pixel, and must not get infinite coefficients there.
        norms = norms.clamp_min(1e-5 * norms.amax(1, keepdim=True))
        outputs = self.out_channels // self.num_bases
        gain = (math.sqrt(2 / self.num_kernels) / norms).repeat_interleave(outputs, 0)  # (out, N)
        fan_in = self.in_channels // self.groups
        if self.separated:
            self.lambda_.normal_().mul_(gain)
            self.beta.normal_(std=1 / math.sqrt(fan_in))
        else:
            self.omega.normal_().mul_(gain[..., None] / math.sqrt(fan_in))
        if self.bias is not None:
            self.bias.zero_()

    @property
    def sigma(self) -> Tensor:
        """Scales (B, N, axes) in pixels, above `min_sigma`."""
        return self.min_sigma + F.softplus(self.raw_sigma)

    def kernels(self) -> Tensor:
        """The kernels of every basis, (B, N, *kernel_size): eq. (1) sampled at the pixels' centres."""
        with torch.autocast(self.mu.device.type, enabled=False):
            dtype = torch.promote_types(self.mu.dtype, torch.float32)
            sigma, mu = (value.to(dtype)[..., None] for value in (self.sigma, self.mu))
            u = self.grid.to(dtype)
            if self.rotation != "none":
                u = self._to_own_axes(self.theta.to(dtype)) @ u
            t = (u - mu) / sigma  # (B, N, axes, pixels)
            value, *lower = self.polynomials.to(dtype)[..., None]
            for coefficient in lower:  # Horner's scheme
                value = torch.addcmul(coefficient, value, t)
            scale = sigma ** self.exponents.to(dtype)[..., None] / math.sqrt(2 * math.pi)
            profiles = (value * torch.exp(-0.5 * t * t) * scale).unbind(2)
            return reduce(torch.mul, profiles).unflatten(-1, self.kernel_size)

    @abstractmethod
    def _to_own_axes(self, theta: Tensor) -> Tensor:
        """The matrices (B, N, axes, axes) from x to u, the coordinates along a kernel's own axes."""

    @abstractmethod
    def _draw_theta(self, angles: Range) -> None:
        """Give theta its initial value, of these angles."""

    def coefficients(self) -> Tensor:
        """omega of eq. (3), (out_channels, N, in_channels // groups); the product lambda * beta where separated."""
        if not self.separated:
            return self.omega
        lambda_ = self.lambda_.unflatten(0, (len(self.beta), -1))  # (blocks, out / blocks, N)
        return (lambda_[..., None] * self.beta[:, None]).flatten(0, 1)

    def dense_weight(self) -> Tensor:
        kernels = self.kernels().flatten(2).transpose(1, 2)[:, None]  # (B, 1, pixels, N)
        coefficients = self.coefficients().unflatten(0, (self.num_bases, -1))  # (B, out / B, N, in / groups)
        weight = (kernels.to(coefficients.dtype) @ coefficients).flatten(0, 1).unflatten(1, self.kernel_size)
        return weight.movedim(-1, 1)  # in memory this is channels_last, as the convolution wants it

    def geometry_parameters(self) -> list[nn.Parameter]:
        return [value for value in (self.raw_sigma, self.mu, self.theta) if isinstance(value, nn.Parameter)]

    def forward(self, x: Tensor) -> Tensor:
        if self.fused_weight is None and self.separated and self._factorised_is_cheaper(x.shape):
            return self.forward_factorised(x)
        return super().forward(x)

    def forward_factorised(self, x: Tensor) -> Tensor:
        r"""Eq. (4) from the inside out, sum_i beta_n^i (\phi_n * I_i) = \phi_n * (sum_i beta_n^i I_i).

        A 1x1 convolution with beta, a depthwise one with the kernels, a 1x1 one with lambda: equal to the dense form.
        """
        blocks, convolve = len(self.beta), CONVOLVE[self.dimensions]
        pixel = (1,) * self.dimensions
        mixed = convolve(x, self.beta.flatten(0, 1).unflatten(1, (-1, *pixel)), groups=self.groups)
        kernels = self.kernels().repeat_interleave(blocks // self.num_bases, 0).flatten(0, 1)[:, None]
        kernels = kernels.to(self.beta.dtype)
        # On CPUs the backward pass of a depthwise convolution is several times slower in bfloat16 than in float32.
        exact = x.device.type == "cpu"
        with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and not exact):
            mixed = mixed.to(kernels.dtype) if exact else mixed
            filtered = convolve(mixed, kernels, None, self.stride, self.padding, self.dilation, groups=len(kernels))
        return convolve(filtered, self.lambda_.unflatten(1, (-1, *pixel)), self.bias, groups=blocks)

    def _factorised_is_cheaper(self, shape: torch.Size) -> bool:
        """Compare multiply-adds of the two evaluation orders for an input of this shape."""
        area = math.prod(self.kernel_size)
        fan_in, maps = self.in_channels // self.groups, len(self.beta) * self.num_kernels
        pixels_in = math.prod(shape) // self.in_channels
        pixels_out = pixels_in // math.prod(self.stride)
        dense = fan_in * self.out_channels * area * (pixels_out + self.num_kernels)
        factorised = pixels_in * fan_in * maps
        factorised += pixels_out * (
            DEPTHWISE_COST[self.dimensions] * maps * area + self.num_kernels * self.out_channels
        )
        return factorised < dense

    def extra_repr(self) -> str:
        parts = [super().extra_repr(), f"order={self.order}", f"num_bases={self.num_bases}"]
        if self.separated:
            parts.append("separated=True")
        if self.rotation == "none":
            parts.append("rotation=none")
        if len(self.trainable) < (2 if self.rotation == "none" else 3):
            parts.append(f"trainable={self.trainable}")
        return ", ".join(parts)


class GaussianDerivativeConv2d(_GaussianDerivativeConv, SynthesisedConv2d):
    r"""Convolution with linear combinations of oriented, shifted, anisotropic Gaussian derivatives.

    Kernel n of basis b is eq. (1), \phi^{b,n}(x) = G_p(u_1 - \mu_1, \sigma_1) G_q(u_2 - \mu_2, \sigma_2) with
    u_1 = x_1 cos(theta) + x_2 sin(theta), u_2 = -x_1 sin(theta) + x_2 cos(theta); x_1 runs along the width, x_2 along
    the height, in pixels from the kernel's centre. Basis b serves its own block of out_channels / num_bases outputs:

    - standard, eq. (3): weight_j^i = sum_n omega_{j,n}^i \phi^{b,n}, with omega of (out, N, in / groups);
    - separated, eq. (4): omega_{j,n}^i = lambda_{j,n} beta_n^i, with lambda of (out, N) and beta of (blocks, N, in /
      groups). A block is a run of outputs that share a basis and a group: num_bases blocks where groups is 1.

    Args:
        order: K, the highest order p + q of a basis, N = (K + 1)(K + 2) / 2 kernels; 0 is Gaussians alone.
        num_bases: B; must divide out_channels.
        separated: Eq. (4) in place of eq. (3).
        rotation: "axis_angle", by theta, or "none": theta then is 0, is not learnt, and its options do nothing.
        trainable: Which of "sigma", "mu", "theta" are learnt; the others keep their initial values.
        sigma_init, mu_init, theta_init: A fixed value, or the bounds of a uniform draw. As published by default.
        min_sigma: Lower bound of every sigma, in pixels: sigma = min_sigma + softplus(raw_sigma), element by element.

    Shapes: `sigma`, `mu` (B, N, 2) in pixels, along u_1 and u_2; `theta` (B, N) in radians.

    Raises:
        ValueError: Even kernel size, order below 0, num_bases that does not divide out_channels, a sigma_init at or
            below min_sigma, an unknown name in `trainable` or `rotation`.
    """

    dimensions = 2

    def _to_own_axes(self, theta: Tensor) -> Tensor:
        theta = theta[..., None]
        cos, sin = theta.cos(), theta.sin()
        return torch.cat([cos, sin, -sin, cos], dim=-1).unflatten(-1, (2, 2))

    def _draw_theta(self, angles: Range) -> None:
        _draw(self.theta, angles)


class GaussianDerivativeConv3d(_GaussianDerivativeConv, SynthesisedConv3d):
    r"""`GaussianDerivativeConv2d` of volumes: kernels are products of three derivatives, turned by axis and angle.

    Kernel n of basis b is \phi^{b,n}(x) = G_p(u_1 - \mu_1, \sigma_1) G_q(u_2 - \mu_2, \sigma_2) G_r(u_3 - \mu_3,
    \sigma_3) with p + q + r <= K and u = R(theta)^T x; x_1 runs along the width, x_2 along the height, x_3 along the
    depth, in voxels from the kernel's centre. R turns by |theta| radians about theta, whose components lie along x_1,
    x_2 and x_3, so that (0, 0, angle) turns the planes of constant depth as the 2-D layer turns images. An axis-angle
    vector takes three numbers, as many as a rotation has, is 0 for none, and is smooth there: Euler angles lose a
    direction where two axes meet, and quaternions have a norm to keep. The rest is as in 2-D.

    Args:
        order: K, N = (K + 1)(K + 2)(K + 3) / 6 kernels: 20 of order 3.
        rotation: "axis_angle", or "none": kernels keep the axes of the grid, theta is 0 and not learnt.
        theta_init: The angle, in radians, about axes that are drawn uniformly over the sphere: a fixed value, or the
            bounds of a uniform draw.

    Shapes: `sigma`, `mu` (B, N, 3) in voxels, along u_1, u_2 and u_3; `theta` (B, N, 3) in radians; `kernels()` (B, N,
    kD, kH, kW).
    """

    dimensions = 3

    def _to_own_axes(self, theta: Tensor) -> Tensor:
        """R(theta)^T, by Rodrigues' formula."""
        identity = torch.eye(3, dtype=theta.dtype, device=theta.device).expand(*theta.shape, 3)
        # Kept off 0, where a square root has no derivative: the two factors are flat there.
        angle = theta.square().sum(-1).clamp_min(torch.finfo(theta.dtype).eps ** 2).sqrt()[..., None, None]
        turn = torch.linalg.cross(theta[..., None, :], identity)  # row i is theta x e_i
        return identity + torch.sinc(angle / math.pi) * turn + torch.sinc(angle / (2 * math.pi)) ** 2 / 2 * turn @ turn

    def _draw_theta(self, angles: Range) -> None:
        axes = F.normalize(torch.randn_like(self.theta), dim=-1)
        self.theta.copy_(axes * _draw(torch.empty_like(self.theta[..., :1]), angles))


def _draw(value: Tensor, bounds: Range) -> Tensor:
    return value.data.uniform_(*bounds) if isinstance(bounds, Sequence) else value.data.fill_(bounds)


def _lowest(bounds: Range) -> float:
    return min(bounds) if isinstance(bounds, Sequence) else bounds


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))


@register_conv("gaussian")
class GaussianVariant(SpatialVariant):
    """Gaussian derivative layers wherever a kernel is odd and larger than 1."""

    layer = GaussianDerivativeConv2d
    layer_3d = GaussianDerivativeConv3d
