"""`unet`: the encoder and decoder with skips of Ronneberger, Fischer and Brox (MICCAI 2015, arXiv 1505.04597).

In three dimensions it is that of Çiçek et al. (MICCAI 2016, arXiv 1606.06650).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.conv_stack import ConvStack, draw_he
from models.convs import Variant
from models.names import check_name
from models.registry import register_model
from models.voxelwise import MAX_POOLS, Padding, VoxelwiseNetwork, check_kernel_size, naming_padding, window

Upsampling = Literal["transposed", "interpolate"]


@register_model("unet")
class UNet(VoxelwiseNetwork):
    """Levels of convolutions, halved by max pooling down to the bottom and doubled on the way back, joined by skips.

    Maps images (N, in_channels, H, W), or volumes (N, in_channels, X, Y, Z), to logits of their size, or smaller ones
    with padding "valid"; see `VoxelwiseNetwork` for padding and sizes. Every level is one or two convolutions with
    bias, each followed by a norm and a ReLU. On the way back a level takes, concatenated, the maps of the encoder at
    its resolution and the upsampled ones of the level below. All that is m_e; a 1x1 convolution, m_c, gives the logits.
    The defaults are the classical U-Net of Table 3 of the Gaussian derivative paper: 97,202 parameters, 97,652 with
    three input channels.

    Sizes: maps inside always halve exactly, those of octave pairs too, so that nothing has to be fitted at a skip.
    Without padding, as in the original, the encoder's maps are cropped in front of a concatenation.

    Args:
        dimensions: 2, images, or 3, volumes.
        widths: Channels of each level, from the full resolution to the bottom, two or more.
        kernel_size: Side of the levels' filters, odd; a `conv` spec may say otherwise with padding "same".
        convs_per_level: 1 or 2.
        padding: "same", "valid" or "mirror". Octave convolutions with alpha above 0 need "same".
        upsampling: "transposed", a transposed convolution of kernel and stride 2 with bias to the level's width, or
            "interpolate", a 1x1 convolution to that width and then nearest interpolation, which stays exact with
            "valid" (bilinear interpolation looks beyond the border) and on both grids of an octave pair.
        norm: "batch", "group" (`models.convs.variant.group_count` says how many), "instance" or "none".

    Raises:
        ValueError: An option outside of what is listed, a variant without a form of these dimensions, or padding
            "valid" or "mirror" with a variant that must pad. At a call, another number of axes or an image of a size
            that is not taken: with "valid" one that does not fit, with "mirror" a side that does not exceed `mirrored`,
            with instance norm and "same" a longest side that does not exceed 2^levels, so that the bottom holds more
            than a value; the message names sizes that are taken.
    """

    def __init__(
        self,
        *,
        conv: Variant,
        dimensions: int = 2,
        in_channels: int = 1,
        num_classes: int = 2,
        widths: Sequence[int] = (9, 18, 36),
        kernel_size: int = 5,
        convs_per_level: int = 2,
        padding: Padding = "same",
        upsampling: Upsampling = "transposed",
        norm: str = "batch",
    ) -> None:
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths must name two levels or more, all positive, got {list(widths)}")
        if convs_per_level not in (1, 2):
            raise ValueError(f"convs_per_level must be 1 or 2, got {convs_per_level}")
        check_name("upsampling", upsampling, get_args(Upsampling))
        check_kernel_size(kernel_size, conv, padding)
        conv = conv.in_dimensions(dimensions)
        multiple = 2 ** (len(widths) - 1)
        loss = 0 if padding == "same" else convs_per_level * (kernel_size // 2)  # of a level, at each border
        super().__init__(
            dimensions=dimensions,
            in_channels=in_channels,
            padding=padding,
            # Each level loses that much on the way down and on the way back, in voxels of 1, 2, 4 ...; the bottom once.
            lost=loss * (3 * multiple - 2),
            multiple=multiple,
            # Blocks of the level below begin where a level's convolutions do: at loss (1 + 2 + ... + multiple / 2).
            grid_start=loss * (multiple - 1) - loss * (3 * multiple - 2),
            smallest=2 * multiple + 1 if norm == "instance" and not loss else 1,
        )
        stack = partial(
            ConvStack,
            conv,
            kernel_size=kernel_size,
            pads=padding == "same",
            norm=norm,
        )
        with naming_padding(padding):
            self.encoder = nn.ModuleList([stack(in_channels, [widths[0]] * convs_per_level, position="entry")])
            self.encoder.extend(stack(above, [width] * convs_per_level) for above, width in pairwise(widths))
            self.decoder = nn.ModuleList(stack((width, width), [width] * convs_per_level) for width in widths[:-1])
        self.pool = MAX_POOLS[dimensions](2)
        upconv = (
            partial(conv.conv_transpose, kernel_size=2, stride=2)
            if upsampling == "transposed"
            else partial(conv.conv, kernel_size=1)
        )
        self.upconvs = nn.ModuleList(upconv(below, width) for width, below in pairwise(widths))
        self.enlarge = nn.Identity() if upsampling == "transposed" else nn.Upsample(scale_factor=2)
        self.classifier = conv.conv(widths[0], num_classes, 1, position="exit")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Free-form filters as the original (section 3); see `draw_he`."""
        levels = (*self.encoder, *self.decoder)
        draw_he((*(conv for level in levels for conv in level.convs), *self.upconvs, self.classifier))

    def extract(self, x: Tensor) -> Tensor:
        """Maps of the first width, at the full resolution."""
        x = self.continued(x)
        *levels, bottom = self.encoder
        skips = []
        for level in levels:
            skips.append(level(x))
            x = self.pool(skips[-1])
        x = bottom(x)
        for skip, upconv, level in reversed([*zip(skips, self.upconvs, self.decoder, strict=True)]):
            x = self.enlarge(upconv(x))
            skip = window(skip, (skip.shape[2] - x.shape[2]) // 2, x.shape[2:])
            x = level(torch.cat([skip, x], 1))
        return x

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def pathways(self) -> dict[str, nn.Module]:
        return {f"stride {2**depth}": level for depth, level in enumerate(self.encoder)}
