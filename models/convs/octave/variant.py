"""`octave`: feature maps in two resolutions (Chen et al., ICCV 2019), with the beta weighting of OC-GAN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from models.convs.octave.layers import OctaveConv2d, OctaveConvTranspose2d
from models.convs.octave.network import put_octaves_into
from models.convs.octave.norm import BetaWeighting, OctaveNorm
from models.convs.octave.pair import low_channels
from models.convs.registry import register_conv
from models.convs.variant import IntOrPair, Position, Variant, build_norm, pair


@register_conv("octave")
class OctaveVariant(Variant):
    """Octave convolutions everywhere, 1x1 and transposed ones too; an entry takes a tensor, an exit gives one.

    Args:
        alpha: Share of low channels, in [0, 1]. With 0 all layers are the plain ones.
    """

    layer = OctaveConv2d

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
        kernel_size: IntOrPair,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        size, padding = self.resized(kernel_size, padding, dilation)
        if self.alpha == 0:
            channels = in_channels if isinstance(in_channels, int) else sum(in_channels)
            return nn.Conv2d(channels, out_channels, size, pair(stride), padding, pair(dilation), groups, bias)
        return OctaveConv2d(
            in_channels,
            out_channels,
            size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            **self.layer_options(position),
        )

    def conv_transpose(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: IntOrPair,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        output_padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        if self.alpha == 0:
            channels = in_channels if isinstance(in_channels, int) else sum(in_channels)
            return nn.ConvTranspose2d(
                channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
            )
        return OctaveConvTranspose2d(
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
        members: list[Any] = [build_norm(kind, channels) if channels else None for channels in (high, low)]
        return OctaveNorm(*members)

    def put_into(self, network: nn.Module, convs: Mapping[str, nn.Conv2d]) -> None:
        """As `Variant.put_into`, and the norms that meet pairs; see `put_octaves_into` for the borders."""
        if self.alpha == 0:
            super().put_into(network, convs)
        else:
            put_octaves_into(network, convs, self, self.alpha)
