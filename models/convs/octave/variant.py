"""`octave`: feature maps in two resolutions (Chen et al., ICCV 2019), with the beta weighting of OC-GAN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from models.convs.dimensions import PerAxis, PlainConv
from models.convs.octave.layers import OctaveConv2d, OctaveConv3d, OctaveConvTranspose2d, OctaveConvTranspose3d
from models.convs.octave.network import put_octaves_into
from models.convs.octave.norm import BetaWeighting, OctaveNorm
from models.convs.octave.pair import low_channels
from models.convs.registry import register_conv
from models.convs.variant import Position, Variant, build_norm


@register_conv("octave")
class OctaveVariant(Variant):
    """Octave convolutions everywhere, 1x1 and transposed ones too; an entry takes a tensor, an exit gives one.

    Args:
        alpha: Share of low channels, in [0, 1]. With 0 all layers are the plain ones.
    """

    layer = OctaveConv2d
    layer_3d = OctaveConv3d

    def __init__(self, *, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha, the share of low channels, must lie in [0, 1], got {alpha}")
        self.alpha = alpha

    @classmethod
    def option_names(cls) -> set[str]:
        return {"alpha", "kernel_size"}

    @property
    def spec(self) -> dict[str, Any]:
        return {**super().spec, "alpha": self.alpha}

    def layer_options(self, position: Position) -> dict[str, Any]:
        return {
            "alpha_in": 0.0 if position == "entry" else self.alpha,
            "alpha_out": 0.0 if position == "exit" else self.alpha,
        }

    def conv(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        size, padding = self.resized(kernel_size, padding, dilation)
        if self.alpha == 0:
            return self.plain_conv(in_channels, out_channels, size, stride, padding, dilation, groups, bias)
        return self.create(
            in_channels,
            out_channels,
            size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            position=position,
        )

    def conv_transpose(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        output_padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        if self.alpha == 0:
            return self.plain_conv_transpose(
                in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
            )
        layer = OctaveConvTranspose2d if self.dimensions == 2 else OctaveConvTranspose3d
        return layer(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            **self.layer_options(position),
        )

    def norm(
        self, num_features: int | tuple[int, ...], kind: str = "batch", *, position: Position = "inner"
    ) -> nn.Module:
        plain = super().norm(num_features, kind, position=position)
        if self.alpha == 0 or position == "exit":
            return plain
        if kind == "none":
            return BetaWeighting()
        low = low_channels(self.alpha, num_features)
        high = (num_features if isinstance(num_features, int) else sum(num_features)) - low
        members: list[Any] = [
            build_norm(kind, channels, self.dimensions) if channels else None for channels in (high, low)
        ]
        return OctaveNorm(*members)

    def put_into(self, network: nn.Module, convs: Mapping[str, PlainConv]) -> None:
        """As `Variant.put_into`, and the norms that meet pairs; see `put_octaves_into` for the borders."""
        if self.alpha == 0:
            super().put_into(network, convs)
        else:
            put_octaves_into(network, convs, self, self.alpha)
