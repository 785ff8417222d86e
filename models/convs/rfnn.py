"""`rfnn`: structured receptive fields (Jacobsen et al., CVPR 2016), Gaussian derivatives of fixed geometry."""

from __future__ import annotations

from typing import Any

from models.convs.dimensions import PerAxis
from models.convs.gaussian import MIN_SIGMA, GaussianDerivativeConv2d
from models.convs.registry import register_conv
from models.convs.variant import Position, SpatialVariant


class RFNNConv2d(GaussianDerivativeConv2d):
    """One isotropic basis of Gaussian derivatives at a fixed scale, centred and unrotated; only omega is learnt.

    Args:
        order: K, the highest order of the basis.
        sigma: The scale, in pixels, along both axes.
    """

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
        sigma: float = 1.0,
    ) -> None:
        if sigma <= MIN_SIGMA:
            raise ValueError(f"sigma must lie above {MIN_SIGMA} pixels, got {sigma}")
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            order=order,
            trainable=(),
            sigma_init=sigma,
            mu_init=0.0,
            theta_init=0.0,
        )


@register_conv("rfnn")
class RFNNVariant(SpatialVariant):
    """RFNN layers, of images; `entry_sigma` is the scale of the first layer (1.5 and 1 elsewhere, as on MNIST)."""

    layer = RFNNConv2d

    def __init__(self, *, entry_sigma: float = 1.5, **options: Any) -> None:
        super().__init__(**options)
        self.entry_sigma = entry_sigma

    @classmethod
    def option_names(cls) -> set[str]:
        return super().option_names() | {"entry_sigma"}

    @property
    def spec(self) -> dict[str, Any]:
        return {**super().spec, "entry_sigma": self.entry_sigma}

    def layer_options(self, position: Position) -> dict[str, Any]:
        return {**self.options, "sigma": self.entry_sigma} if position == "entry" else self.options
