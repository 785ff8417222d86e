"""Generator and discriminator of DCGAN with 3x3 convolutions, as OC-GAN (arXiv 1905.12534) publishes them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from models.convs import Position, Variant
from models.names import check_name
from models.registry import register_model

Init = Literal["as_published", "as_described"]

SMALLEST_MAP = 4  # pixels a side: the generator starts, and the discriminator's features end, with 4x4 maps
SMALLEST_IMAGE = 16  # pixels a side: with fewer, one layer would be the generator's first and last
INIT_STD = 0.02


class _DCGAN(nn.Module):
    """What both networks share: the check of their options, and the initial weights."""

    def __init__(self, init: Init, **sizes: int) -> None:
        super().__init__()
        check_name("init", init, get_args(Init))
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be 1 or more, got {size}")
        self.init = init

    @torch.no_grad()
    def reset_weights(self) -> None:
        """Draw the initial weights anew where `init` says how; "as_published" leaves every layer its own.

        Raises:
            ValueError: A layer without free-form weights, for which N(0, 0.02) says nothing.
        """
        if self.init == "as_described":
            for name, module in self.named_modules():
                _draw_as_described(name, module)


def _draw_as_described(name: str, module: nn.Module) -> None:
    """Weights N(0, 0.02), batch norms N(1, 0.02) and 0; a parameter that is neither must not pass unnoticed."""
    for kind, parameter in module.named_parameters(recurse=False):
        if isinstance(module, _BatchNorm):
            mean, std = (1.0, INIT_STD) if kind == "weight" else (0.0, 0.0)
            nn.init.normal_(parameter, mean, std)
        elif kind.startswith("weight") and parameter.dim() > 1:
            nn.init.normal_(parameter, 0.0, INIT_STD)
        else:
            raise ValueError(
                f"init 'as_described' draws free-form weights from N(0, {INIT_STD}), but layer {name!r} "
                f"({type(module).__name__}) has {kind!r}: use init 'as_published', which leaves every layer its own"
            )


def count_doublings(image_size: int) -> int:
    """The n of image_size = 4 * 2^n.

    Raises:
        ValueError: There is none, or the images are smaller than 16 pixels; the message names the nearest sizes.
    """
    doublings = max(2, math.floor(math.log2(max(image_size, SMALLEST_IMAGE) / SMALLEST_MAP)))
    below = SMALLEST_MAP * 2**doublings
    if image_size == below:
        return doublings
    nearest = f"{below} and {2 * below}" if image_size > SMALLEST_IMAGE else f"{SMALLEST_IMAGE}"
    raise ValueError(
        f"image_size {image_size} cannot be made: DCGAN's sizes are 4 * 2^n, {SMALLEST_IMAGE} or more "
        f"(32, 64, 128 ...); nearest: {nearest}"
    )


@register_model("dcgan_generator")
class DCGANGenerator(_DCGAN):
    """A dense layer to 4x4 maps, then n times: nearest upsampling by 2 and a 3x3 convolution.

    Maps latents (N, latent_dim) to images (N, in_channels, S, S) in [-1, 1], S = image_size = 4 * 2^n. The dense layer
    gives base_width * 2^(n-1) maps, the convolutions halve that down to base_width, the last one gives the image.
    Batch norm and ReLU follow every layer but the last, which has tanh. No layer has a bias, the last one included.

    Args:
        image_size: S, 16 or more.
        latent_dim: Length of a latent, of which N(0, I) is the usual law.
        in_channels: Channels of the images, as the data has them.
        base_width: Maps before the last convolution.
        init: "as_published", every layer's own (the published code means to draw its weights and does not), or
            "as_described", N(0, 0.02) for weights, N(1, 0.02) for the gains of batch norm and 0 for its shifts.

    Attributes:
        latent_dim: What it takes, (N, latent_dim).

    Raises:
        ValueError: An image size that is not 4 * 2^n, a size below 1, "as_described" with structured filters.
    """

    def __init__(
        self,
        *,
        conv: Variant,
        image_size: int = 64,
        latent_dim: int = 100,
        in_channels: int = 3,
        base_width: int = 32,
        init: Init = "as_published",
    ) -> None:
        super().__init__(init, latent_dim=latent_dim, in_channels=in_channels, base_width=base_width)
        widths = [base_width * 2**i for i in reversed(range(count_doublings(image_size)))]
        units = widths[0] * SMALLEST_MAP**2
        self.latent_dim = latent_dim
        self.stem = nn.Sequential(nn.Linear(latent_dim, units, bias=False), nn.BatchNorm1d(units), nn.ReLU())
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for i, (before, after) in enumerate(pairwise(widths)):
            position: Position = "inner" if i else "entry"
            self.convs.append(conv.conv(before, after, 3, padding=1, bias=False, position=position))
            self.norms.append(conv.norm(after, position=position))
        self.exit = conv.conv(widths[-1], in_channels, 3, padding=1, bias=False, position="exit")
        self.reset_weights()

    def forward(self, latents: Tensor) -> Tensor:
        x = self.stem(latents).unflatten(1, (-1, SMALLEST_MAP, SMALLEST_MAP))
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(F.interpolate(x, scale_factor=2))))
        return torch.tanh(self.exit(F.interpolate(x, scale_factor=2)))


@register_model("dcgan_discriminator")
class DCGANDiscriminator(_DCGAN):
    """n + 1 convolutions of 3x3 that each halve the maps, down to one logit an image.

    Maps images (N, in_channels, S, S), S = image_size = 4 * 2^n, to logits (N,). The first n convolutions have
    base_width * 2^i maps, i from 0, each followed by batch norm and LeakyReLU(0.2); the last one gives a 2x2 map, whose
    mean is the logit. No convolution has a bias.

    Args:
        image_size: S, 16 or more.
        in_channels: Channels of the images, as the data has them.
        base_width: Maps after the first convolution.
        init: As for `DCGANGenerator`.
        downsample: "stride", by the convolution's stride of 2 (an octave convolution then pools before it convolves, as
            published), or "pool", by average pooling before a convolution of stride 1, whatever the variant: with plain
            convolutions the network that the published octave one is, but for its octaves.

    Attributes:
        image_shape: What it takes, (in_channels, image_size, image_size) behind the batch.
        num_features: Channels of its last feature map.

    Raises:
        ValueError: As for `DCGANGenerator`; at a call, images of another size.
    """

    def __init__(
        self,
        *,
        conv: Variant,
        image_size: int = 64,
        in_channels: int = 3,
        base_width: int = 32,
        init: Init = "as_published",
        downsample: Literal["stride", "pool"] = "stride",
    ) -> None:
        super().__init__(init, in_channels=in_channels, base_width=base_width)
        check_name("downsample", downsample, ("stride", "pool"))
        stride = 2 if downsample == "stride" else 1
        self.pool = nn.Identity() if downsample == "stride" else nn.AvgPool2d(2)
        widths = [in_channels, *(base_width * 2**i for i in range(count_doublings(image_size)))]
        self.image_shape = (in_channels, image_size, image_size)
        self.num_features = widths[-1]
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for i, (before, after) in enumerate(pairwise(widths)):
            position: Position = "inner" if i else "entry"
            self.convs.append(conv.conv(before, after, 3, stride=stride, padding=1, bias=False, position=position))
            self.norms.append(conv.norm(after, position=position))
        self.exit = conv.conv(self.num_features, 1, 3, stride=stride, padding=1, bias=False, position="exit")
        self.reset_weights()

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, num_features, 4, 4), as the variant has feature maps."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"this discriminator takes images {self.image_shape}, got a batch {tuple(x.shape)}")
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(self.pool(x))), 0.2)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.exit(self.pool(self.forward_features(x))).mean((1, 2, 3))
