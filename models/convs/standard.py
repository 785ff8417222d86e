"""`standard`: free-form convolutions, `nn.Conv2d` and `nn.Conv3d` themselves."""

from __future__ import annotations

from torch import nn

from models.convs.registry import register_conv
from models.convs.variant import SpatialVariant


@register_conv("standard")
class StandardVariant(SpatialVariant):
    """Free-form filters; `kernel_size` is its only option."""

    layer = nn.Conv2d
    layer_3d = nn.Conv3d

    @classmethod
    def option_names(cls) -> set[str]:
        return {"kernel_size"}
