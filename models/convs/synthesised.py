"""Layers that compute their filters from other parameters and then are an ordinary convolution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.convs.dimensions import CONVOLVE, PerAxis, per_axis
from models.convs.variant import shape_repr


class SynthesisedConv(nn.Module, ABC):
    """A convolution whose dense weight is a function of its parameters.

    Maps (N, in_channels, *spatial axes) to (N, out_channels, *spatial axes), sizes as in `nn.Conv2d` or `nn.Conv3d`,
    whose attributes it carries. The weight is computed in float32 at least, also under autocast.

    Raises:
        ValueError: Even or non-positive kernel size (the filters are centred on a pixel), channels that the groups do
            not divide.
    """

    dimensions: ClassVar[int]
    """Of space: 2 for images, 3 for volumes."""

    fused_weight: Tensor | None

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
    ) -> None:
        super().__init__()
        size = per_axis(kernel_size, self.dimensions)
        if any(k < 1 or k % 2 == 0 for k in size):
            raise ValueError(
                f"{type(self).__name__} needs an odd kernel_size, since its filters are centred on a pixel; "
                f"got {kernel_size}"
            )
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1 or groups < 1 or channels % groups:
                raise ValueError(f"{name} ({channels}) must be a positive multiple of groups ({groups})")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = size
        self.stride = per_axis(stride, self.dimensions)
        self.padding = per_axis(padding, self.dimensions)
        self.dilation = per_axis(dilation, self.dimensions)
        self.groups = groups
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("fused_weight", None, persistent=False)

    @abstractmethod
    def dense_weight(self) -> Tensor:
        """The filters, (out_channels, in_channels // groups, *kernel_size), which `convolve` takes."""

    @abstractmethod
    def geometry_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that say where and how wide filters are, as opposed to how much they weigh."""

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.dense_weight() if self.fused_weight is None else self.fused_weight)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve `x` with a dense weight, with this layer's bias, stride, padding, dilation and groups."""
        return CONVOLVE[self.dimensions](x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def fuse(self) -> None:
        """Keep the dense weight, so that inference costs what a plain convolution costs. `train()` undoes it.

        The state dict stays that of the parameters: it loads into fused and unfused layers alike.

        Raises:
            RuntimeError: The layer is in training mode, where a kept weight would stop it from learning.
        """
        if self.training:
            raise RuntimeError("fuse() is for inference: call eval() first")
        device = next(self.parameters()).device.type
        with torch.autocast(device, enabled=False):
            self.fused_weight = self.dense_weight()

    def unfuse(self) -> None:
        """Compute the weight from the parameters again."""
        self.fused_weight = None

    def train(self, mode: bool = True) -> SynthesisedConv:
        if mode:
            self.unfuse()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.fused_weight is not None:
            self.fuse()

    def extra_repr(self) -> str:
        return shape_repr(self)


class SynthesisedConv2d(SynthesisedConv):
    """A synthesised convolution of images."""

    dimensions = 2


class SynthesisedConv3d(SynthesisedConv):
    """A synthesised convolution of volumes."""

    dimensions = 3


def geometry_parameters(module: nn.Module) -> list[nn.Parameter]:
    """All geometry parameters in `module`: they want their own learning rate, and no weight decay pulls at them."""
    layers = (layer for layer in module.modules() if isinstance(layer, SynthesisedConv))
    return [parameter for layer in layers for parameter in layer.geometry_parameters()]
