"""`dau`: displaced aggregation units of Tabernik, Kristan and Leonardis (CVPR 2018; IJCV 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs.dimensions import PerAxis
from models.convs.registry import register_conv
from models.convs.synthesised import SynthesisedConv2d
from models.convs.variant import SpatialVariant
from models.names import check_name

Geometry = Literal["sigma", "mu"]


class DAUConv2d(SynthesisedConv2d):
    r"""Filters that are mixtures of displaced isotropic Gaussians, weight = sum_k w_k N(x; \mu_k, \sigma_k).

    Every pair of an input and an output channel has its own units. Each unit's Gaussian sums to 1 over the kernel.
    Displacements are bounded inside the kernel: \mu = (k - 1) / 2 * tanh(raw_mu), along the width, then the height.

    Args:
        num_units: U, units a filter. 10 in Table 1 of the Gaussian derivative paper.
        trainable: Which of "sigma", "mu" are learnt; the others keep their initial values.
        sigma_init: Initial scale of every unit, in pixels.
        min_sigma: Lower bound of every sigma: sigma = min_sigma + softplus(raw_sigma), element by element.

    Shapes: `sigma` (out, in / groups, U) and `mu` (out, in / groups, U, 2), in pixels; the weights `w` are stored units
    first, (U, out, in / groups), since sums over few units run fastest when the channels are contiguous.

    Raises:
        ValueError: Even kernel size, fewer than one unit, sigma_init at or below min_sigma.
    """

    raw_sigma: Tensor
    raw_mu: Tensor
    rows: Tensor
    columns: Tensor

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
        num_units: int = 10,
        trainable: Sequence[Geometry] = ("sigma", "mu"),
        sigma_init: float = 0.5,
        min_sigma: float = 0.1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        if num_units < 1:
            raise ValueError(f"num_units must be 1 or more, got {num_units}")
        if not 0 < min_sigma < sigma_init:
            raise ValueError(
                f"sigma_init ({sigma_init}) must lie above min_sigma ({min_sigma}), which must be positive"
            )
        for lever in trainable:
            check_name("trainable geometry", lever, get_args(Geometry))
        self.num_units = num_units
        self.trainable = tuple(trainable)
        self.sigma_init = sigma_init
        self.min_sigma = min_sigma

        units = (num_units, out_channels, in_channels // groups)
        self.w = nn.Parameter(torch.empty(units))
        for name, shape in {"raw_sigma": units, "raw_mu": (2, *units)}.items():
            if name.removeprefix("raw_") in self.trainable:
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            else:
                self.register_buffer(name, torch.empty(shape))
        for name, size in zip(("rows", "columns"), self.kernel_size, strict=True):
            self.register_buffer(name, torch.arange(size) - (size - 1) / 2, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Spread the units uniformly over the kernel, with weights that give the dense filters He's variance."""
        self.raw_mu.data.uniform_(-0.8, 0.8).atanh_()
        self.raw_sigma.data.fill_(math.log(math.expm1(self.sigma_init - self.min_sigma)))
        along_width, along_height = self._profiles()
        energy = (along_height.square().sum(1) * along_width.square().sum(1)).mean()
        fan_in = self.in_channels // self.groups * self.num_units
        self.w.normal_(std=math.sqrt(2 / (fan_in * float(energy))))
        if self.bias is not None:
            self.bias.zero_()

    @property
    def sigma(self) -> Tensor:
        """Scales (out, in / groups, U) in pixels, above `min_sigma`."""
        return self._sigma().permute(1, 2, 0)

    @property
    def mu(self) -> Tensor:
        """Displacements (out, in / groups, U, 2) in pixels along the width and the height, inside the kernel."""
        return torch.stack(self._mu(), dim=-1).permute(1, 2, 0, 3)

    def dense_weight(self) -> Tensor:
        with torch.autocast(self.w.device.type, enabled=False):
            along_width, along_height = self._profiles()
            weighted = along_height * self.w[:, None].to(along_height.dtype)
            weight = weighted[0, :, None] * along_width[0, None]  # (kH, kW, out, in / groups)
            for unit in range(1, self.num_units):  # one by one: all units at once are ten times this memory, and slower
                weight = torch.addcmul(weight, weighted[unit, :, None], along_width[unit, None])
            return weight.permute(2, 3, 0, 1).to(self.w.dtype, memory_format=torch.channels_last)

    def _sigma(self) -> Tensor:
        return self.min_sigma + F.softplus(self.raw_sigma)

    def _mu(self) -> tuple[Tensor, Tensor]:
        height, width = self.kernel_size
        along_width, along_height = torch.tanh(self.raw_mu)
        return along_width * ((width - 1) / 2), along_height * ((height - 1) / 2)

    def _profiles(self) -> tuple[Tensor, Tensor]:
        """The factors of each unit along the width and the height, (U, kW, out, in / groups) and (U, kH, ...)."""
        dtype = torch.promote_types(self.w.dtype, torch.float32)
        exponent = -0.5 * self._sigma().to(dtype).pow(-2)[:, None]
        profiles = []
        for mu, pixels in zip(self._mu(), (self.columns, self.rows), strict=True):
            distance = pixels.to(dtype)[:, None, None] - mu.to(dtype)[:, None]
            # A softmax over a row of pixels is the Gaussian that sums to 1; isotropic Gaussians separate.
            profiles.append(torch.softmax(exponent * distance.square(), dim=1))
        return profiles[0], profiles[1]

    def geometry_parameters(self) -> list[nn.Parameter]:
        return [value for value in (self.raw_sigma, self.raw_mu) if isinstance(value, nn.Parameter)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_units={self.num_units}"


@register_conv("dau")
class DAUVariant(SpatialVariant):
    """Displaced aggregation units, of images, wherever a kernel is odd and larger than 1."""

    layer = DAUConv2d
