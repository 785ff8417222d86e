"""`fcn`: the fully convolutional networks of Long, Shelhamer and Darrell (CVPR 2015, arXiv 1411.4038)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.conv_stack import ConvStack, draw_he
from models.convs import Variant
from models.convs.variant import TRANSPOSED_CONVS
from models.registry import register_model
from models.voxelwise import MAX_POOLS, Padding, VoxelwiseNetwork, centre, check_kernel_size, naming_padding


@register_model("fcn")
class FCN(VoxelwiseNetwork):
    """Levels of convolutions, each halved by max pooling; scores of several strides, upsampled and summed.

    Maps images (N, in_channels, H, W), or volumes (N, in_channels, X, Y, Z), to logits of their size, or smaller ones
    with padding "valid"; see `VoxelwiseNetwork` for padding and sizes. The levels and the dense layers behind them are
    m_e; m_c has one layer, a 1x1 convolution to scores (C = 1 in the paper). The scores of the coarsest map are doubled
    in size and summed with those of the pooled maps of half the stride, again and again down to `output_stride`, and
    then enlarged to the image. Upsampling is a transposed convolution between the classes, which is learned and starts
    as (bi- or tri-) linear interpolation of each of them. Scores of skips start at zero, as published, so that training
    starts from the coarsest ones alone.

    The published network on VGG-16 has 134 million parameters: widths (64, 128, 256, 512, 512), convs_per_level
    (2, 2, 3, 3, 3), dense_widths (4096, 4096), dense_kernel_size 7, norm "none". Its input is padded by 100 pixels and
    its scores are cropped where they fall; here the maps are padded and all strides share centres.

    Args:
        dimensions: 2, images, or 3, volumes.
        widths: Channels of each level, one or more; the coarsest stride is 2^levels.
        kernel_size: Side of the levels' filters, odd; a `conv` spec may say otherwise with padding "same".
        convs_per_level: For all levels, or for each of them.
        dense_widths: Channels of the layers at the coarsest stride, fc6 and fc7 of VGG, none or more.
        dense_kernel_size: Side of the first of them, odd; the others have 1.
        output_stride: Of the finest scores: 32 makes an FCN-32s, 16 an FCN-16s, 8 an FCN-8s, 2 the FCN-2s of the
            paper's Fig. 6; any power of 2 from 2 to the coarsest stride.
        padding: "same", "valid" or "mirror". Octave convolutions with alpha above 0 need "same".
        norm: Behind every convolution but those to scores: "batch", "group" (see `group_count`), "instance" or "none".

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
        widths: Sequence[int] = (16, 32, 64, 128, 128),
        kernel_size: int = 3,
        convs_per_level: int | Sequence[int] = 2,
        dense_widths: Sequence[int] = (),
        dense_kernel_size: int = 1,
        output_stride: int = 8,
        padding: Padding = "same",
        norm: str = "batch",
    ) -> None:
        if not widths or min(*widths, *dense_widths, 1) < 1:
            raise ValueError(
                f"widths must name a level or more, and all widths be positive, got widths {list(widths)} and "
                f"dense_widths {list(dense_widths)}"
            )
        depths = _depths(convs_per_level, len(widths))
        strides = [2**level for level in range(1, len(widths) + 1)]
        if output_stride not in strides:
            raise ValueError(
                f"output_stride must be one of {', '.join(map(str, strides))} with {len(widths)} widths, each of which "
                f"halves the maps once, got {output_stride}"
            )
        for size in {kernel_size, dense_kernel_size if dense_widths else kernel_size}:
            check_kernel_size(size, conv, padding)
        conv = conv.in_dimensions(dimensions)
        pads, coarsest = padding == "same", strides[-1]
        dense_lost = dense_kernel_size // 2 if dense_widths else 0
        # In full-resolution voxels. Upsampling loses half a stride each time, coarsest - output_stride / 2 altogether;
        # another half of output_stride, and spare voxels of the input, round the margin up to whole blocks, so that
        # they are those of a padded network on the same input.
        encoder_lost = sum(
            depth * (kernel_size // 2) * stride // 2 for depth, stride in zip(depths, strides, strict=True)
        )
        spare = 0 if pads else -encoder_lost % coarsest
        super().__init__(
            dimensions=dimensions,
            in_channels=in_channels,
            padding=padding,
            lost=0 if pads else spare + encoder_lost + (dense_lost + 1) * coarsest,
            multiple=coarsest,
            smallest=2 * coarsest + 1 if norm == "instance" and pads else 1,
        )
        self.spare = spare
        stack = partial(ConvStack, conv, pads=pads, norm=norm)
        dense_sizes = [dense_kernel_size, *[1] * len(dense_widths)][: len(dense_widths)]
        with naming_padding(padding):
            self.levels = nn.ModuleList(
                stack(before, [width] * depth, kernel_size=kernel_size, position="inner" if index else "entry")
                for index, ((before, width), depth) in enumerate(
                    zip(pairwise((in_channels, *widths)), depths, strict=True)
                )
            )
            self.dense = nn.Sequential(
                *(
                    stack(before, [width], kernel_size=size)
                    for (before, width), size in zip(pairwise((widths[-1], *dense_widths)), dense_sizes, strict=True)
                )
            )
        self.pool = MAX_POOLS[dimensions](2)
        self.first_scored = strides.index(output_stride)
        scored = [*widths[self.first_scored : -1], (*widths, *dense_widths)[-1]]
        self.scores = nn.ModuleList(conv.conv(width, num_classes, 1, position="exit") for width in scored)
        self.doublings = nn.ModuleList(
            _upsampling(num_classes, 2, dimensions, lost=0 if pads else 1) for _ in scored[:-1]
        )
        self.enlarge = _upsampling(num_classes, output_stride, dimensions, lost=0 if pads else output_stride)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Free-form filters as He et al. (see `draw_he`), scores of skips zero, upsampling linear interpolation."""
        stacks = [module for module in self.modules() if isinstance(module, ConvStack)]
        draw_he((*(conv for stack in stacks for conv in stack.convs), self.scores[-1]))
        for parameter in self.scores[:-1].parameters():
            nn.init.zeros_(parameter)
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
                _start_as_interpolation(module)

    def extract(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps that are scored, from `output_stride` to the coarsest stride, each at its own resolution."""
        x = centre(self.continued(x), self.spare)
        features = []
        for level in self.levels:
            x = self.pool(level(x))
            features.append(x)
        features[-1] = self.dense(x)
        return tuple(features[self.first_scored :])

    def classify(self, features: Sequence[Tensor]) -> Tensor:
        """Scores of all strides, upsampled and summed."""
        *skips, coarsest = [score(x) for score, x in zip(self.scores, features, strict=True)]
        logits = coarsest
        for skip, double in reversed([*zip(skips, self.doublings, strict=True)]):
            logits = double(logits)
            logits = logits + centre(skip, (skip.shape[2] - logits.shape[2]) // 2)
        return self.enlarge(logits)

    def pathways(self) -> dict[str, nn.Module]:
        coarsest = 2 ** len(self.levels)
        strides = [coarsest // 2**index for index in range(len(self.scores))]
        return {f"stride {stride}": score for stride, score in zip(reversed(strides), self.scores, strict=True)}


def _depths(convs_per_level: int | Sequence[int], levels: int) -> list[int]:
    depths = [convs_per_level] * levels if isinstance(convs_per_level, int) else list(convs_per_level)
    if len(depths) != levels or min(depths) < 1:
        raise ValueError(
            f"convs_per_level must be 1 or more, one number or one for each of {levels} levels, got {convs_per_level}"
        )
    return depths


def _upsampling(classes: int, factor: int, dimensions: int, *, lost: int) -> nn.Module:
    """A transposed convolution between classes: maps (N, classes, n, ...) to (N, classes, factor n - 2 lost, ...).

    Scores beyond the border count as zero; with `lost` of half the factor or more none of them is met. Scores are plain
    tensors in every variant, so that this is the same layer in all of them.
    """
    return TRANSPOSED_CONVS[dimensions](classes, classes, 2 * factor, factor, padding=factor // 2 + lost, bias=False)


def _start_as_interpolation(upsampling: nn.ConvTranspose2d | nn.ConvTranspose3d) -> None:
    """Linear interpolation of each class between voxel centres: along each axis a tent, 1 - |distance| / factor."""
    factor = upsampling.stride[0]
    tent = 1 - (torch.arange(2 * factor) - factor + 0.5).abs() / factor
    kernel = tent
    for _ in upsampling.stride[1:]:
        kernel = kernel[..., None] * tent
    nn.init.zeros_(upsampling.weight)
    for index in range(upsampling.in_channels):
        upsampling.weight[index, index] = kernel
