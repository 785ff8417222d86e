"""Stacked U-Nets for classes of images and of pixels (arXiv 1804.10343): Table 1, and its dilated forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs import Variant
from models.convs.variant import is_plain_conv
from models.heads import DegriddingHead, Head, SegmentationHead
from models.names import check_name
from models.recompute import recomputed
from models.registry import register_model
from models.sunet.official import with_own_names

Stem = Literal["imagenet", "small"]

STEM_WIDTHS = (64, 128)  # of the first convolution and of the residual block
BLOCK_LEVELS = (2, 2, 2, 1)  # of the u-net modules in each block: "U-Net" in Table 1, and "U-Net+" in the last
LAST_BLOCK = len(BLOCK_LEVELS) - 1


class Column(NamedTuple):
    """A column of Table 1: N, and modules and features of each block."""

    filters: int
    block_depths: tuple[int, ...]
    block_widths: tuple[int, ...]


class SUNet(nn.Module):
    """Four blocks of stacked u-net modules behind a convolution and a residual block, joined by 2x2 average pooling.

    Maps images (N, in_channels, H, W), `smallest` pixels a side or more, to logits: (N, num_classes) where `head` is
    "classify", (N, num_classes, H, W) where it is "segment". A batch norm and a ReLU stand in front of every
    convolution but the first (and behind those of the de-gridding head); all convolutions have a bias. All forms
    (`output_stride`, `multigrid`, `strided_dilation`) have the same parameters under the same names.

    Sizes: strided convolutions round half of an odd size up, the average pooling rounds it down. A decoder's result is
    cut to the size of what its encoder took, so that every size works; where the authors' code, whose sizes are fixed
    at construction, works as well, the results are equal.

    Args:
        head: "classify", or "segment", a `SegmentationHead` on the features.
        output_stride: Pixels of the image between neighbours of the features: 32, 16 or 8; 16, 8 or 4 with the small
            stem. By default the first of them, the network of Table 1. For the others the pooling in front of the last
            one or two blocks is left out, and their modules are dilated (section 5).
        multigrid: In dilated blocks all convolutions have stride 1, and dilations that grow and shrink like the strides
            that they replace (Fig. 2): d and 2d in the encoder, 2d and d in the decoder, with d = 2 or 4 by the block,
            and twice that in the second level. If False the modules keep their strides (Table 4).
        strided_dilation: With multigrid False, whether the 3x3 convolutions of those blocks are dilated besides, by
            d = 2 or 4. The paper can be read both ways: Table 4 is compared with Fig. 1, which has no dilation, but
            explained by dilated convolutions with strides, which drop every other value (section 6.2.1).
        degridding: For the head "segment": a `DegriddingHead` (section 5.3).
        stem: "imagenet", a 7x7 convolution of stride 2, or "small", a 3x3 convolution of stride 1 for images of about
            64 pixels.
        filters: N, filters of a convolution inside the modules. As `block_depths` and `block_widths` Table 1's.
        block_depths: Modules of each of the four blocks.
        block_widths: Features that each block gives. With 1792 in the third one `sunet_7_128` has the 37.7 million
            parameters that the paper prints; with Table 1's 2048, as released, it has 39.1.
        checkpointing: Keep only the input of each u-net module for the backward pass, which then computes the
            activations inside again: less memory for the price of a second forward pass.

    Attributes:
        smallest: Pixels a side that an image needs, so that one is left of it in the last block.
        num_features: Of `forward_features`.

    Raises:
        ValueError: An option outside of what is listed, or that has no meaning with the others; at a call, an image
            that is too small.
    """

    table_1: ClassVar[Column]

    def __init__(
        self,
        *,
        conv: Variant,
        in_channels: int = 3,
        num_classes: int = 1000,
        head: Head = "classify",
        output_stride: int | None = None,
        multigrid: bool = True,
        strided_dilation: bool = False,
        degridding: bool = False,
        stem: Stem = "imagenet",
        filters: int | None = None,
        block_depths: Sequence[int] | None = None,
        block_widths: Sequence[int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_name("head", head, get_args(Head))
        check_name("stem", stem, get_args(Stem))
        if degridding and head != "segment":
            raise ValueError(f"degridding belongs to the head 'segment', here the head is {head!r}")
        if strided_dilation and multigrid:
            raise ValueError("strided_dilation says how strided modules are dilated: set multigrid to false as well")
        filters = self.table_1.filters if filters is None else filters
        depths = _of_blocks("block_depths", block_depths, self.table_1.block_depths)
        widths = _of_blocks("block_widths", block_widths, self.table_1.block_widths)
        if filters < 1:
            raise ValueError(f"filters must be 1 or more, got {filters}")
        stem_stride = 4 if stem == "imagenet" else 2
        self.output_stride, dilated = _dilated_blocks(output_stride, stem_stride << LAST_BLOCK)
        self.head = head
        self.checkpointing = checkpointing
        self.smallest = stem_stride * (2 ** (LAST_BLOCK - dilated) - 1) + 1
        self.num_features = widths[-1]

        # The factor by which the maps of each block are finer than those of the undilated network.
        self.dilations = [2 ** max(0, index + dilated - LAST_BLOCK) for index in range(len(widths))]
        self.stem = (
            conv.conv(in_channels, STEM_WIDTHS[0], 7, stride=2, padding=3, position="entry")
            if stem == "imagenet"
            else conv.conv(in_channels, STEM_WIDTHS[0], 3, padding=1, position="entry")
        )
        self.residual = _ResidualBlock(conv, *STEM_WIDTHS)
        self.blocks = nn.ModuleList()
        in_channels = STEM_WIDTHS[-1]
        for depth, width, count, dilation in zip(depths, widths, BLOCK_LEVELS, self.dilations, strict=True):
            levels = _levels(count, dilation, multigrid, strided_dilation)
            block = nn.ModuleList()
            for _ in range(depth):
                block.append(UNetModule(conv, in_channels, filters, width, levels))
                in_channels = width
            self.blocks.append(block)
        self.norm = conv.norm(self.num_features)
        if head == "classify":
            self.linear = nn.Linear(self.num_features, num_classes)
        else:
            head_class = DegriddingHead if degridding else SegmentationHead
            self.segmentation_head = head_class(self.num_features, num_classes, conv)
        self.reset_weights()

    @torch.no_grad()
    def reset_weights(self) -> None:
        """Free-form filters as He et al. (2015), for the fan-out as published; biases zero.

        The last dense layer draws as torch does, also as published. Layers of a variant keep what they have.
        """
        for layer in _layers(self):
            if is_plain_conv(layer) or type(layer) is nn.ConvTranspose2d:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                layer.reset_parameters()
            else:
                continue
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def from_published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The authors' weights under this network's names; None where these are no weights of theirs."""
        return with_own_names(weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """What the last batch norm and ReLU give, (N, num_features, h, w), h about H / output_stride."""
        if min(x.shape[2:]) < self.smallest:
            raise ValueError(
                f"this network halves an image {self.output_stride.bit_length() - 1} times and takes images of "
                f"{self.smallest} pixels a side or more, got {x.shape[2]}x{x.shape[3]}: use larger images "
                "or crops, a smaller output_stride, or the stem 'small'"
            )
        x = self.residual(self.stem(x))
        for index, (block, dilation) in enumerate(zip(self.blocks, self.dilations, strict=True)):
            if index and dilation == 1:
                x = F.avg_pool2d(x, 2)
            for module in block.children():
                x = recomputed(module, x) if self.checkpointing and torch.is_grad_enabled() else module(x)
        return F.relu(self.norm(x))

    def forward(self, x: Tensor) -> Tensor:
        features = self.forward_features(x)
        if self.head == "segment":
            return self.segmentation_head(features, x.shape[2:])
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))


@register_model("sunet_64")
class SUNet64(SUNet):
    """SUNet-64, 6,910,248 parameters for 1000 classes. See `SUNet`."""

    table_1 = Column(64, (2, 4, 4, 1), (256, 512, 768, 1024))


@register_model("sunet_128")
class SUNet128(SUNet):
    """SUNet-128, 24,704,360 parameters for 1000 classes. See `SUNet`."""

    table_1 = Column(128, (2, 4, 4, 1), (512, 1024, 1536, 2048))


@register_model("sunet_7_128")
class SUNet7128(SUNet):
    """SUNet-7-128, 39,113,832 parameters for 1000 classes as released, and 37,731,944 as printed. See `SUNet`."""

    table_1 = Column(128, (2, 7, 7, 1), (512, 1280, 2048, 2304))


class Level(NamedTuple):
    """How a level of a u-net module goes down and up again.

    Args:
        stride: Of its first convolution, and of the transposed one.
        outer: Dilation of its first and last convolution.
        inner: Dilation of its second convolution and of the transposed one.
    """

    stride: int
    outer: int
    inner: int


class UNetModule(nn.Module):
    """A u-net between two 1x1 convolutions, around which the input goes past (Fig. 1).

    Maps (N, in_channels, H, W) to (N, out_channels, H, W). Where the widths differ, the input that goes past is
    normalised, rectified, and widened by a 1x1 convolution; else it stays as it is.
    """

    def __init__(
        self, conv: Variant, in_channels: int, filters: int, out_channels: int, levels: Sequence[Level]
    ) -> None:
        super().__init__()
        self.norm = conv.norm(in_channels)
        self.reduce = conv.conv(in_channels, filters, 1)
        self.encoders = nn.ModuleList(_Encoder(conv, filters, level) for level in levels)
        self.decoders = nn.ModuleList(_Decoder(conv, (filters, filters), filters, level) for level in levels[:-1])
        self.decoders.append(_Decoder(conv, filters, filters, levels[-1]))
        self.expand_norm = conv.norm(filters)
        self.expand = conv.conv(filters, out_channels, 1)
        self.skip = conv.conv(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm(x))
        skip = x if self.skip is None else self.skip(activated)
        x = self.reduce(activated)
        taken = []
        for encoder in self.encoders:
            taken.append(x)
            x = encoder(x)
        for index in reversed(range(len(taken))):
            x = self.decoders[index](x, taken[index].shape[2:])
            if index:
                x = torch.cat([x, taken[index]], 1)
        return self.expand(F.relu(self.expand_norm(x))) + skip


class _Encoder(nn.Module):
    """Two 3x3 convolutions, the first one with the level's stride: E1 or E2 of Fig. 1."""

    def __init__(self, conv: Variant, filters: int, level: Level) -> None:
        super().__init__()
        stride, outer, inner = level
        self.is_strided = stride > 1
        self.norm1 = conv.norm(filters)
        self.conv1 = conv.conv(filters, filters, 3, stride=stride, padding=outer, dilation=outer)
        self.norm2 = conv.norm(filters)
        self.conv2 = conv.conv(filters, filters, 3, padding=inner, dilation=inner)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(x))
        if self.is_strided and isinstance(x, Tensor) and x.shape[3] == 1:
            # A zero of the padding made explicit, which changes no value: in bfloat16 on CPUs torch's gradient of
            # strided filters is garbage, or NaN, where the map is one value wide.
            x = F.pad(x, (0, 1))
        return self.conv2(F.relu(self.norm2(self.conv1(x))))


class _Decoder(nn.Module):
    """A transposed 3x3 convolution with the level's stride, then a 3x3 convolution: D1 or D2 of Fig. 1.

    All but the deepest take two concatenated maps, that of the level below and that of their own encoder.
    """

    def __init__(self, conv: Variant, in_channels: int | tuple[int, int], filters: int, level: Level) -> None:
        super().__init__()
        stride, outer, inner = level
        self.norm1 = conv.norm(in_channels)
        self.deconv = conv.conv_transpose(
            in_channels, filters, 3, stride=stride, padding=inner, output_padding=stride - 1, dilation=inner
        )
        self.norm2 = conv.norm(filters)
        self.conv = conv.conv(filters, filters, 3, padding=outer, dilation=outer)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = self.deconv(F.relu(self.norm1(x)))
        for dim, length in enumerate(size, start=2):
            if x.shape[dim] != length:  # twice the half of an odd size is one more
                x = torch.narrow(x, dim, 0, length)
        return self.conv(F.relu(self.norm2(x)))


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first one of stride 2, around which a 1x1 convolution of stride 2 goes past."""

    def __init__(self, conv: Variant, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = conv.norm(in_channels)
        self.conv1 = conv.conv(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm2 = conv.norm(out_channels)
        self.conv2 = conv.conv(out_channels, out_channels, 3, padding=1)
        self.shortcut = conv.conv(in_channels, out_channels, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(x))
        return self.conv2(F.relu(self.norm2(self.conv1(x)))) + self.shortcut(x)


def _of_blocks(name: str, given: Sequence[int] | None, published: tuple[int, ...]) -> tuple[int, ...]:
    values = published if given is None else tuple(given)
    if len(values) != len(BLOCK_LEVELS) or min(values) < 1:
        raise ValueError(f"{name} must be {len(BLOCK_LEVELS)} positive numbers, one a block, got {list(values)}")
    return values


def _dilated_blocks(output_stride: int | None, undilated: int) -> tuple[int, int]:
    """The output stride, and how many of the last blocks are dilated for it."""
    strides = [undilated, undilated // 2, undilated // 4]
    if output_stride is None:
        return undilated, 0
    if output_stride not in strides:
        raise ValueError(f"output_stride must be one of {strides} with this stem, got {output_stride}")
    return output_stride, strides.index(output_stride)


def _levels(count: int, dilation: int, multigrid: bool, strided_dilation: bool) -> list[Level]:
    """The levels of a module in a block of this dilation, 1 for blocks that are not dilated."""
    if dilation == 1 or not multigrid:
        dilation = dilation if strided_dilation else 1
        return [Level(2, dilation, dilation)] * count
    return [Level(1, dilation << depth, dilation << depth + 1) for depth in range(count)]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """Convolutions and dense layers; what a variant makes its layers of is its own affair."""
    for child in module.children():
        if hasattr(child, "kernel_size") or isinstance(child, nn.Linear):
            yield child
        else:
            yield from _layers(child)
