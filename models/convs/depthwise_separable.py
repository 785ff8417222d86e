"""`depthwise_separable`: one spatial filter a channel, then a 1x1 convolution that mixes channels."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from models.convs.dimensions import CONVS, PerAxis, per_axis
from models.convs.registry import register_conv
from models.convs.variant import SpatialVariant


class _DepthwiseSeparableConv(nn.Module):
    dimensions: ClassVar[int]

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
        conv = CONVS[self.dimensions]
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = per_axis(kernel_size, self.dimensions)
        self.depthwise = conv(
            in_channels, in_channels, self.kernel_size, stride, padding, dilation, groups=in_channels, bias=False
        )
        self.pointwise = conv(in_channels, out_channels, 1, groups=groups, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Keep the variance through the depthwise filters, He initialisation for the mixing that a ReLU follows."""
        nn.init.kaiming_normal_(self.depthwise.weight, nonlinearity="linear")
        nn.init.kaiming_normal_(self.pointwise.weight, nonlinearity="relu")
        if self.pointwise.bias is not None:
            nn.init.zeros_(self.pointwise.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class DepthwiseSeparableConv2d(_DepthwiseSeparableConv):
    """Depthwise, then pointwise convolution, with nothing in between (Sifre 2014; MobileNet without its inner norm).

    Maps (N, in_channels, H, W) to (N, out_channels, H', W'), sizes as in `nn.Conv2d`. Stride, padding and dilation
    belong to the depthwise convolution, groups and the bias to the pointwise one.
    """

    dimensions = 2


class DepthwiseSeparableConv3d(_DepthwiseSeparableConv):
    """`DepthwiseSeparableConv2d` of volumes: (N, in_channels, D, H, W) to (N, out_channels, D', H', W')."""

    dimensions = 3


@register_conv("depthwise_separable")
class DepthwiseSeparableVariant(SpatialVariant):
    """Depthwise separable convolutions wherever a kernel is odd and larger than 1."""

    layer = DepthwiseSeparableConv2d
    layer_3d = DepthwiseSeparableConv3d
