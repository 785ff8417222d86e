"""`unet`: the encoder and decoder with skips of Ronneberger, Fischer and Brox (MICCAI 2015, arXiv 1505.04597)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs import Position, Variant
from models.convs.variant import is_plain_conv
from models.names import check_name
from models.registry import register_model

Padding = Literal["same", "valid"]
Upsampling = Literal["transposed", "interpolate"]


@register_model("unet")
class UNet(nn.Module):
    """Levels of convolutions, halved by max pooling down to the bottom and doubled on the way back, joined by skips.

    Maps images (N, in_channels, H, W) to logits (N, num_classes, H, W). Every level is one or two convolutions with
    bias, each followed by a norm and a ReLU. On the way back a level takes, concatenated, the maps of the encoder at
    its resolution and the upsampled ones of the level below. A 1x1 convolution gives the logits. The defaults are the
    classical U-Net of Table 3 of the Gaussian derivative paper: 97,202 parameters, 97,652 with three input channels.

    Sizes: maps inside always halve exactly, those of octave pairs too, so that nothing has to be fitted at a skip. For
    that an image whose sides are not multiples of 2^(levels - 1) is enlarged at its bottom and right, by repeating its
    last pixels, and the logits are cropped to its size. With padding "valid", as in the original, the convolutions do
    not pad, the encoder's maps are cropped in front of a concatenation, and the image is enlarged by the margin that
    all of them lose together, mirrored at its borders.

    Args:
        widths: Channels of each level, from the full resolution to the bottom, two or more.
        kernel_size: Side of the levels' filters, odd; a `conv` spec may say otherwise with padding "same".
        convs_per_level: 1 or 2.
        padding: "same", zeros around every map, or "valid". Octave convolutions with alpha above 0 need "same".
        upsampling: "transposed", a 2x2 transposed convolution of stride 2 with bias to the level's width, or
            "interpolate", a 1x1 convolution to that width and then nearest interpolation, which stays exact with
            "valid" (bilinear interpolation looks beyond the border) and on both grids of an octave pair.
        norm: "batch", "group" (`models.convs.variant.group_count` says how many), "instance" or "none".

    Attributes:
        margin: Pixels that are mirrored around an image, 0 with padding "same".

    Raises:
        ValueError: An option outside of what is listed, or "valid" with a variant that must pad. At a call, an image
            that is too small: with padding "valid" its sides must exceed `margin`, with instance norm and "same" the
            longer one must exceed 2^levels, so that the bottom holds more than a value; the message names the size.
    """

    def __init__(
        self,
        *,
        conv: Variant,
        in_channels: int = 1,
        num_classes: int = 2,
        widths: Sequence[int] = (9, 18, 36),
        kernel_size: int = 5,
        convs_per_level: int = 2,
        padding: Padding = "same",
        upsampling: Upsampling = "transposed",
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths must name two levels or more, all positive, got {list(widths)}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if convs_per_level not in (1, 2):
            raise ValueError(f"convs_per_level must be 1 or 2, got {convs_per_level}")
        check_name("padding", padding, get_args(Padding))
        check_name("upsampling", upsampling, get_args(Upsampling))
        if padding == "valid" and conv.kernel_size not in (None, kernel_size):
            raise ValueError(
                f"kernel_size {conv.kernel_size} of the conv spec would pad where padding 'valid' must not: give it as "
                "the network's kernel_size"
            )
        self.multiple = 2 ** (len(widths) - 1)
        self.loss = convs_per_level * (kernel_size // 2) if padding == "valid" else 0  # of a level, at each border
        # Each level loses that much on the way down and on the way back, in pixels of 1, 2, 4 ...; the bottom once.
        self.margin = self.loss * (3 * self.multiple - 2)
        self.smallest = 2 * self.multiple + 1 if norm == "instance" and padding == "same" else 1

        level = partial(
            _Level,
            conv,
            count=convs_per_level,
            kernel_size=kernel_size,
            padding=0 if padding == "valid" else kernel_size // 2,
            norm=norm,
        )
        try:
            self.encoder = nn.ModuleList([level(in_channels, widths[0], position="entry")])
            self.encoder.extend(level(above, width) for above, width in pairwise(widths))
            self.decoder = nn.ModuleList(level((width, width), width) for width in widths[:-1])
        except ValueError as error:
            if padding == "same":
                raise
            raise ValueError(f"padding 'valid' (with 'same' the convolutions pad): {error}") from error
        self.pool = nn.MaxPool2d(2)
        upconv = (
            partial(conv.conv_transpose, kernel_size=2, stride=2)
            if upsampling == "transposed"
            else partial(conv.conv, kernel_size=1)
        )
        self.upconvs = nn.ModuleList(upconv(below, width) for width, below in pairwise(widths))
        self.enlarge = nn.Identity() if upsampling == "transposed" else nn.Upsample(scale_factor=2)
        self.classifier = conv.conv(widths[0], num_classes, 1, position="exit")
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Free-form filters from N(0, 2 / n), n the inputs of one output, as the original (section 3); biases zero.

        Layers that are no plain convolutions keep the start of their variant.
        """
        levels = (*self.encoder, *self.decoder)
        for layer in (*(conv for level in levels for conv in level.convs), *self.upconvs, self.classifier):
            if is_plain_conv(layer):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            elif type(layer) is nn.ConvTranspose2d:  # stride and kernel agree: each output has one pixel's inputs
                nn.init.normal_(layer.weight, std=(2 / layer.in_channels) ** 0.5)
            else:
                continue
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = self._enlarged(x)
        *levels, bottom = self.encoder
        skips = []
        for level in levels:
            skips.append(level(x))
            x = self.pool(skips[-1])
        x = bottom(x)
        for skip, upconv, level in reversed([*zip(skips, self.upconvs, self.decoder, strict=True)]):
            x = self.enlarge(upconv(x))
            skip = _window(skip, (skip.shape[2] - x.shape[2]) // 2, x.shape[2:])
            x = level(torch.cat([skip, x], 1))
        return _window(self.classifier(x), 0, size)

    def _enlarged(self, x: Tensor) -> Tensor:
        """The image with its mirrored margin, and with the last pixels repeated until all levels halve exactly."""
        sides = x.shape[2:]
        if min(sides) <= self.margin:
            raise ValueError(
                f"this unet with padding 'valid' mirrors {self.margin} pixels at each border: it takes images of "
                f"{self.margin + 1} or more a side, got {tuple(sides)}"
            )
        if max(sides) < self.smallest:
            raise ValueError(
                f"this unet takes images with a side of {self.smallest} or more, since instance norm needs more than "
                f"one value at the bottom, got {tuple(sides)}"
            )
        if self.margin:
            x = F.pad(x, [self.margin] * (2 * len(sides)), mode="reflect")
        missing = [(2 * self.loss - side) % self.multiple for side in sides]
        if any(missing):
            x = F.pad(x, [pad for side in reversed(missing) for pad in (0, side)], mode="replicate")
        return x


class _Level(nn.Module):
    """Convolutions of one resolution, each followed by a norm and a ReLU."""

    def __init__(
        self,
        conv: Variant,
        in_channels: int | tuple[int, int],
        width: int,
        *,
        count: int,
        kernel_size: int,
        padding: int,
        norm: str,
        position: Position = "inner",
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv.conv(in_channels, width, kernel_size, padding=padding, position=position)])
        self.convs.extend(conv.conv(width, width, kernel_size, padding=padding) for _ in range(count - 1))
        self.norms = nn.ModuleList(conv.norm(width, norm) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x


def _window(x: Tensor, start: int, size: Sequence[int]) -> Tensor:
    """As many values as `size` says along each spatial axis, from index `start` on."""
    if x.shape[2:] == size:
        return x
    for dim, length in enumerate(size, start=2):
        x = torch.narrow(x, dim, start, length)
    return x
