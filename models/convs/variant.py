"""What a network may ask of a convolution variant: its convolutions and its norms, and nothing else."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, TypeGuard

from torch import nn

from models.convs.dimensions import (
    BATCH_NORMS,
    CONVS,
    INSTANCE_NORMS,
    TRANSPOSED_CONVS,
    PerAxis,
    PlainConv,
    check_dimensions,
    per_axis,
)
from models.names import check_name, option_names

Position = Literal["entry", "inner", "exit"]
"""Where a convolution stands: it takes the image in, works on features, or gives a plain tensor out."""

LAYER_ARGUMENTS = frozenset(
    {"in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"}
)
MAX_GROUPS = 32  # of a group norm, the number that its authors recommend


def group_count(channels: int, at_most: int = MAX_GROUPS) -> int:
    """Groups of a group norm: the most that divide the channels with two or more in each, up to `at_most`.

    For the multiples of 64 those are the 32 groups of Wu and He (2018). A prime number of channels is one group.
    """
    return max((groups for groups in range(1, min(at_most, channels // 2) + 1) if channels % groups == 0), default=1)


_NORMS: dict[str, Callable[[int, int], nn.Module]] = {
    "batch": lambda num_features, dimensions: BATCH_NORMS[dimensions](num_features),
    "group": lambda num_features, _: nn.GroupNorm(group_count(num_features), num_features),
    "instance": lambda num_features, dimensions: INSTANCE_NORMS[dimensions](num_features, affine=True),
    "none": lambda *_: nn.Identity(),
}


def build_norm(kind: str, num_features: int, dimensions: int = 2) -> nn.Module:
    """A norm by name: "batch", "group" (see `group_count`), "instance" (with a gain and a shift) or "none".

    `dimensions` are those of the maps that it normalises: 2 of images, 3 of volumes.

    Raises:
        UnknownNameError: There is no such norm.
        ValueError: Other dimensions.
    """
    check_name("norm", kind, _NORMS)
    check_dimensions(dimensions)
    return _NORMS[kind](num_features, dimensions)


def is_plain_conv(module: nn.Module) -> TypeGuard[PlainConv]:
    """Whether a module computes what `nn.Conv2d` or `nn.Conv3d` does; subclasses, as timm's `Conv2dSame`, do not."""
    return type(module) in CONVS.values() and getattr(module, "padding_mode", None) == "zeros"


def dimensions_of(conv: PlainConv) -> int:
    """How many spatial dimensions a convolution has."""
    return conv.weight.ndim - 2


def geometry_of(conv: PlainConv) -> dict[str, Any]:
    """All arguments of a plain convolution but its channels, with its padding in pixels."""
    size, stride, dilation = (
        per_axis(value, dimensions_of(conv)) for value in (conv.kernel_size, conv.stride, conv.dilation)
    )
    if conv.padding == "same":
        padding = tuple(d * (k - 1) // 2 for k, d in zip(size, dilation, strict=True))
    else:
        padding = per_axis(0 if isinstance(conv.padding, str) else conv.padding, dimensions_of(conv))
    return {
        "kernel_size": size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
    }


def shape_repr(layer: Any) -> str:
    """What a convolution's `extra_repr` says of its shape, as `nn.Conv2d` does."""
    parts = [f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, stride={layer.stride}"]
    if any(layer.padding):
        parts.append(f"padding={layer.padding}")
    if max(layer.dilation) > 1:
        parts.append(f"dilation={layer.dilation}")
    if layer.groups != 1:
        parts.append(f"groups={layer.groups}")
    if layer.bias is None:
        parts.append("bias=False")
    return ", ".join(parts)


class Variant(ABC):
    """A kind of convolution, with its options, as a network sees it.

    A network never tests which variant it was given: it asks `conv`, `conv_transpose` and `norm` for layers and
    otherwise is ordinary torch code. `in_channels` may be a tuple, the parts of a `torch.cat`, since a variant that
    splits channels splits each part.

    Attributes:
        name: The name in the registry, set by `register_conv`.
        spec: The name and the options that were given, as plain data: `build_variant(variant.spec)` makes an equal one,
            for images; the dimensions are the network's to say.
        dimensions: Spatial dimensions of the layers: 2, of images (N, C, H, W), until `in_dimensions` says 3.
        layer, layer_3d: The layers' classes; `layer_3d` is None where the variant is for images only.
    """

    name: ClassVar[str]
    layer: ClassVar[Callable[..., nn.Module]]
    layer_3d: ClassVar[Callable[..., nn.Module] | None] = None
    dimensions: int = 2

    def __init__(self, *, kernel_size: int | None = None, **options: Any) -> None:
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(f"kernel_size of a conv spec must be odd and positive, got {kernel_size}")
        valid = self.option_names()
        for option in options:
            check_name(f"option of conv {self.name!r}", option, valid)
        self.kernel_size = kernel_size
        self.options = options

    @classmethod
    def option_names(cls) -> set[str]:
        """Names of the options that a conv spec of this variant may carry."""
        return option_names(cls.layer, besides=LAYER_ARGUMENTS) | {"kernel_size"}

    @property
    def spec(self) -> dict[str, Any]:
        kernel_size = {} if self.kernel_size is None else {"kernel_size": self.kernel_size}
        return {"name": self.name, **kernel_size, **self.options}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec})"

    def in_dimensions(self, dimensions: int) -> Self:
        """This variant for images (2) or for volumes (3): all its layers and norms have that many dimensions.

        Raises:
            ValueError: Other dimensions, or a variant that has no 3-D form.
        """
        check_dimensions(dimensions)
        if dimensions == 3 and self.layer_3d is None:
            from models.convs.registry import list_convs  # which is built upon this module

            raise ValueError(
                f"conv {self.name!r} is for images and has no 3-D form; those that have one are "
                f"{', '.join(list_convs(dimensions=3))}"
            )
        variant = copy.copy(self)
        variant.dimensions = dimensions
        return variant

    def create(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        position: Position = "inner",
        **geometry: Any,
    ) -> nn.Module:
        """This variant's layer, of exactly this shape; `geometry` is stride, padding, dilation, groups and bias."""
        layer = self.layer if self.layer_3d is None or self.dimensions == 2 else self.layer_3d
        return layer(in_channels, out_channels, kernel_size, **geometry, **self.layer_options(position))

    def layer_options(self, position: Position) -> dict[str, Any]:
        """Options handed to the layer at `position`."""
        return self.options

    @abstractmethod
    def conv(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        """A convolution for a network, arguments as in `nn.Conv2d`."""

    @abstractmethod
    def conv_transpose(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        output_padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        """A transposed convolution for a network, arguments as in `nn.ConvTranspose2d`."""

    def norm(
        self, num_features: int | tuple[int, ...], kind: str = "batch", *, position: Position = "inner"
    ) -> nn.Module:
        """The norm that follows the convolution, or the `torch.cat` of these parts, at `position`; see `build_norm`."""
        return build_norm(kind, _total(num_features), self.dimensions)

    def put_into(self, network: nn.Module, convs: Mapping[str, PlainConv]) -> None:
        """Replace these plain convolutions of `network`, by name, in place, whichever dimensions each has.

        Raises:
            ValueError: The variant cannot take one of them; the layer is named.
        """
        first = next(name for name, module in network.named_modules() if is_plain_conv(module))
        for name, conv in convs.items():
            position: Position = "entry" if name == first else "inner"
            try:
                variant = self.in_dimensions(dimensions_of(conv))
                new = variant.conv(conv.in_channels, conv.out_channels, **geometry_of(conv), position=position)
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error
            if not is_plain_conv(new) or new.kernel_size != conv.kernel_size:
                network.set_submodule(name, new)

    def resized(
        self, kernel_size: PerAxis, padding: PerAxis, dilation: PerAxis
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Kernel size and padding with the spec's `kernel_size` in place of odd sizes above 1; output sizes stay."""
        size, pad, dilate = (per_axis(value, self.dimensions) for value in (kernel_size, padding, dilation))
        if self.kernel_size is None or max(size) == 1 or any(k % 2 == 0 for k in size):
            return size, pad
        pad = tuple(p + d * (self.kernel_size - k) // 2 for p, d, k in zip(pad, dilate, size, strict=True))
        if min(pad) < 0:
            raise ValueError(
                f"kernel_size {self.kernel_size} in place of {kernel_size} with padding {padding} would need a "
                "negative padding to keep the output's size"
            )
        return per_axis(self.kernel_size, self.dimensions), pad

    def plain_conv(self, in_channels: int | tuple[int, ...], *geometry: Any) -> nn.Module:
        """The plain convolution of this variant's dimensions, arguments in `nn.Conv2d`'s order."""
        return CONVS[self.dimensions](_total(in_channels), *geometry)

    def plain_conv_transpose(self, in_channels: int | tuple[int, ...], *geometry: Any) -> nn.Module:
        """The plain transposed convolution of these dimensions, arguments in `nn.ConvTranspose2d`'s order."""
        return TRANSPOSED_CONVS[self.dimensions](_total(in_channels), *geometry)


def _total(channels: int | tuple[int, ...]) -> int:
    """Channels of a concatenation of these parts."""
    return channels if isinstance(channels, int) else sum(channels)


class SpatialVariant(Variant):
    """A variant that replaces how a kernel spreads in space: it takes odd kernels larger than 1, others stay plain.

    With `kernel_size` in the spec the kernels it takes have that size, and their padding shifts so that sizes stay.
    """

    def conv(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        size, pad = self.resized(kernel_size, padding, dilation)
        if max(size) == 1 or any(k % 2 == 0 for k in size):
            return self.plain_conv(in_channels, out_channels, size, stride, pad, dilation, groups, bias)
        return self.create(
            _total(in_channels),
            out_channels,
            size,
            stride=stride,
            padding=pad,
            dilation=dilation,
            groups=groups,
            bias=bias,
            position=position,
        )

    def conv_transpose(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        output_padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        return self.plain_conv_transpose(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
        )
