"""`ConvStack`: convolutions of one resolution, and the weights that free-form filters start from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs import Position, Variant
from models.convs.variant import is_plain_conv


class ConvStack(nn.Module):
    """Convolutions with bias, each followed by a norm and a ReLU.

    Args:
        in_channels: A tuple of them for the parts of a `torch.cat`.
        widths: Channels that each convolution gives, one or more.
        pads: Whether zeros around the maps keep their sizes; else each convolution loses half a kernel at each border.
        position: Of the first convolution.
    """

    def __init__(
        self,
        conv: Variant,
        in_channels: int | tuple[int, ...],
        widths: Sequence[int],
        *,
        kernel_size: int,
        pads: bool,
        norm: str,
        position: Position = "inner",
    ) -> None:
        super().__init__()
        padding = kernel_size // 2 if pads else 0
        self.convs = nn.ModuleList([conv.conv(in_channels, widths[0], kernel_size, padding=padding, position=position)])
        self.convs.extend(conv.conv(before, width, kernel_size, padding=padding) for before, width in pairwise(widths))
        self.norms = nn.ModuleList(conv.norm(width, norm) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x


@torch.no_grad()
def draw_he(layers: Iterable[nn.Module]) -> None:
    """Free-form filters from N(0, 2 / n), n the inputs of one output (He et al., 2015); biases zero.

    Transposed convolutions must have a kernel as large as their stride. Layers that are no plain convolutions keep the
    start of their variant.
    """
    for layer in layers:
        if is_plain_conv(layer):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):  # each output has the inputs of one voxel
            nn.init.normal_(layer.weight, std=(2 / layer.in_channels) ** 0.5)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
