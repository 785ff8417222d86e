"""`deepmedic`: parallel pathways at several resolutions (Kamnitsas et al., Medical Image Analysis 36, 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.conv_stack import ConvStack, draw_he
from models.convs import Position, Variant
from models.registry import register_model
from models.voxelwise import AVERAGE_POOLS, Padding, VoxelwiseNetwork, centre, check_kernel_size, naming_padding

BLOCK = 2  # layers that a residual connection goes around


@register_model("deepmedic")
class DeepMedic(VoxelwiseNetwork):
    """Stacks of convolutions on the image at several resolutions, joined at its own by a common 1x1 pathway.

    Maps images (N, in_channels, H, W), or volumes (N, in_channels, X, Y, Z), to logits of their size, or smaller ones
    with padding "valid"; see `VoxelwiseNetwork` for padding and sizes. A pathway averages its input over blocks of
    scale^dimensions voxels (the original takes one voxel of each), convolves, every convolution with bias followed by a
    norm and a ReLU, and repeats every value over its block: 0-th order upsampling. The pathways have weights of their
    own and are centred on the same voxels. Together they are m_e; m_c are 1x1 convolutions on their concatenated maps,
    norm and ReLU behind all but the last.

    The defaults are the original's layers: 17 voxels a side are seen at the image's resolution, 51 at a third of it.
    There is no dropout, and the ReLUs have no slope of their own. Without padding all pathways see the same input, each
    as much of its centre as it needs.

    Args:
        dimensions: 2, images, or 3, volumes.
        scales: Side of a block of each pathway, all different, 1 the image itself. (1,) is a plain CNN, with
            kernel_size 1 of a receptive field of 1x1.
        widths: Channels of the layers of every pathway, one or more.
        kernel_size: Side of the pathways' filters, odd; a `conv` spec may say otherwise with padding "same".
        classifier_widths: Channels of the common pathway in front of the logits, none or more.
        residual: Add what goes into every two layers but a pathway's first two to what comes out of them, through a 1x1
            convolution where widths differ.
        padding: "same", "valid" or "mirror". Octave convolutions with alpha above 0 need "same".
        norm: "batch", "group" (`models.convs.variant.group_count` says how many), "instance" or "none".

    Raises:
        ValueError: An option outside of what is listed, a variant without a form of these dimensions, or padding
            "valid" or "mirror" with a variant that must pad. At a call, another number of axes or an image of a size
            that is not taken; the message names sizes that are.
    """

    def __init__(
        self,
        *,
        conv: Variant,
        dimensions: int = 2,
        in_channels: int = 1,
        num_classes: int = 2,
        scales: Sequence[int] = (1, 3),
        widths: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50),
        kernel_size: int = 3,
        classifier_widths: Sequence[int] = (150, 150),
        residual: bool = False,
        padding: Padding = "same",
        norm: str = "batch",
    ) -> None:
        if not scales or min(scales) < 1 or len(set(scales)) < len(scales):
            raise ValueError(f"scales must name a pathway or more, all different and positive, got {list(scales)}")
        if not widths or min(*widths, *classifier_widths, 1) < 1:
            raise ValueError(
                f"widths must name a layer or more, and all widths be positive, got widths {list(widths)} and "
                f"classifier_widths {list(classifier_widths)}"
            )
        check_kernel_size(kernel_size, conv, padding)
        conv = conv.in_dimensions(dimensions)
        multiple = math.lcm(*scales)
        lost = 0 if padding == "same" else len(widths) * (kernel_size // 2)  # of a pathway, in its own voxels
        # Whole blocks, so that those of a padded network on the same input are the same.
        margin = math.ceil(max(scales) * lost / multiple) * multiple
        super().__init__(
            dimensions=dimensions,
            in_channels=in_channels,
            padding=padding,
            lost=margin,
            multiple=multiple,
            smallest=2 * max(scales) + 1 if norm == "instance" else 1,
        )
        self.scales = tuple(scales)
        self.excess = [margin - scale * lost for scale in scales]  # what each pathway leaves of the input
        pathway = _residual_pathway if residual else ConvStack
        with naming_padding(padding):
            self.paths = nn.ModuleList(
                nn.Sequential(
                    AVERAGE_POOLS[dimensions](scale) if scale > 1 else nn.Identity(),
                    pathway(
                        conv,
                        in_channels,
                        widths,
                        kernel_size=kernel_size,
                        pads=padding == "same",
                        norm=norm,
                        position="entry",
                    ),
                    nn.Upsample(scale_factor=scale) if scale > 1 else nn.Identity(),
                )
                for scale in scales
            )
        joined: int | tuple[int, ...] = (widths[-1],) * len(scales)
        self.dense = nn.Sequential()
        for width in classifier_widths:
            self.dense.append(ConvStack(conv, joined, [width], kernel_size=1, pads=False, norm=norm))
            joined = width
        self.classifier = conv.conv(joined, num_classes, 1, position="exit")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Free-form filters as He et al. and the original; see `draw_he`."""
        for module in self.modules():
            if isinstance(module, ConvStack):
                draw_he(module.convs)
            elif isinstance(module, _Residual):
                draw_he([module.shortcut])
        draw_he([self.classifier])

    def extract(self, x: Tensor) -> Tensor:
        """The maps of all pathways, one behind the other, at the full resolution."""
        x = self.continued(x)
        return torch.cat([path(centre(x, excess)) for path, excess in zip(self.paths, self.excess, strict=True)], 1)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(self.dense(features))

    def pathways(self) -> dict[str, nn.Module]:
        return {f"scale {scale}": path for scale, path in zip(self.scales, self.paths, strict=True)}


class _Residual(nn.Module):
    """Convolutions, to whose maps those in front of them are added, cropped to their size."""

    def __init__(self, conv: Variant, in_channels: int, widths: Sequence[int], **options: Any) -> None:
        super().__init__()
        self.stack = ConvStack(conv, in_channels, widths, **options)
        self.shortcut = nn.Identity() if in_channels == widths[-1] else conv.conv(in_channels, widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stack(x)
        return y + self.shortcut(centre(x, (x.shape[2] - y.shape[2]) // 2))


def _residual_pathway(
    conv: Variant, in_channels: int, widths: Sequence[int], *, position: Position, **options: Any
) -> nn.Sequential:
    """A `ConvStack` in blocks of layers, with a residual connection around each but the first."""
    first, *others = (widths[start : start + BLOCK] for start in range(0, len(widths), BLOCK))
    blocks: list[nn.Module] = [ConvStack(conv, in_channels, first, position=position, **options)]
    for before, block in pairwise((first, *others)):
        blocks.append(_Residual(conv, before[-1], block, **options))
    return nn.Sequential(*blocks)
