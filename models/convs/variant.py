"""What a network may ask of a convolution variant: its convolutions and its norms, and nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeGuard

from torch import nn

from models.names import check_name, option_names

Position = Literal["entry", "inner", "exit"]
"""Where a convolution stands: it takes the image in, works on features, or gives a plain tensor out."""

IntOrPair = int | tuple[int, int]
LAYER_ARGUMENTS = frozenset(
    {"in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"}
)
MAX_GROUPS = 32  # of a group norm, the number that its authors recommend


def group_count(channels: int, at_most: int = MAX_GROUPS) -> int:
    """Groups of a group norm: the most that divide the channels with two or more in each, up to `at_most`.

    For the multiples of 64 those are the 32 groups of Wu and He (2018). A prime number of channels is one group.
    """
    return max((groups for groups in range(1, min(at_most, channels // 2) + 1) if channels % groups == 0), default=1)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda num_features: nn.GroupNorm(group_count(num_features), num_features),
    "instance": lambda num_features: nn.InstanceNorm2d(num_features, affine=True),
    "none": lambda num_features: nn.Identity(),
}


def build_norm(kind: str, num_features: int) -> nn.Module:
    """A norm by name: "batch", "group" (see `group_count`), "instance" (with a gain and a shift) or "none".

    Raises:
        UnknownNameError: There is no such norm.
    """
    check_name("norm", kind, _NORMS)
    return _NORMS[kind](num_features)


def pair(value: IntOrPair | Sequence[int]) -> tuple[int, int]:
    """(value, value) for an int; a sequence of two as a tuple.

    Raises:
        ValueError: Anything else, such as nn.Conv2d's padding="same".
    """
    if isinstance(value, int):
        return value, value
    if isinstance(value, str) or len(value) != 2:
        raise ValueError(f"expected a whole number or two of them, got {value!r}")
    first, second = value
    return int(first), int(second)


def is_plain_conv(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module computes what `nn.Conv2d` does: subclasses, such as timm's `Conv2dSame`, do something else."""
    return type(module) is nn.Conv2d and module.padding_mode == "zeros"


def geometry_of(conv: nn.Conv2d) -> dict[str, Any]:
    """All of an `nn.Conv2d`'s arguments but its channels, with its padding in pixels."""
    size, dilation = pair(conv.kernel_size), pair(conv.dilation)
    if conv.padding == "same":
        padding = dilation[0] * (size[0] - 1) // 2, dilation[1] * (size[1] - 1) // 2
    else:
        padding = (0, 0) if isinstance(conv.padding, str) else pair(conv.padding)
    return {
        "kernel_size": size,
        "stride": pair(conv.stride),
        "padding": padding,
        "dilation": dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
    }


def shape_repr(layer: Any) -> str:
    """What a convolution's `extra_repr` says of its shape, as `nn.Conv2d` does."""
    parts = [f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, stride={layer.stride}"]
    if layer.padding != (0, 0):
        parts.append(f"padding={layer.padding}")
    if layer.dilation != (1, 1):
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
        spec: The name and the options that were given, as plain data: `build_variant(variant.spec)` makes an equal one.
    """

    name: ClassVar[str]
    layer: ClassVar[Callable[..., nn.Module]]

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

    def create(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        *,
        position: Position = "inner",
        **geometry: Any,
    ) -> nn.Module:
        """This variant's layer, of exactly this shape; `geometry` is stride, padding, dilation, groups and bias."""
        return self.layer(in_channels, out_channels, kernel_size, **geometry, **self.layer_options(position))

    def layer_options(self, position: Position) -> dict[str, Any]:
        """Options handed to the layer at `position`."""
        return self.options

    @abstractmethod
    def conv(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: IntOrPair,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
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
        kernel_size: IntOrPair,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        output_padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        """A transposed convolution for a network, arguments as in `nn.ConvTranspose2d`."""

    def norm(
        self, num_features: int | tuple[int, ...], kind: str = "batch", *, position: Position = "inner"
    ) -> nn.Module:
        """The norm that follows the convolution, or the `torch.cat` of these parts, at `position`; see `build_norm`."""
        return build_norm(kind, num_features if isinstance(num_features, int) else sum(num_features))

    def put_into(self, network: nn.Module, convs: Mapping[str, nn.Conv2d]) -> None:
        """Replace these plain convolutions of `network`, by name, in place.

        Raises:
            ValueError: The variant cannot take one of them; the layer is named.
        """
        first = next(name for name, module in network.named_modules() if is_plain_conv(module))
        for name, conv in convs.items():
            position: Position = "entry" if name == first else "inner"
            try:
                new = self.conv(conv.in_channels, conv.out_channels, **geometry_of(conv), position=position)
            except ValueError as error:
                raise ValueError(f"layer {name!r}: {error}") from error
            if not isinstance(new, nn.Conv2d) or new.kernel_size != conv.kernel_size:
                network.set_submodule(name, new)

    def resized(
        self, kernel_size: IntOrPair, padding: IntOrPair, dilation: IntOrPair
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Kernel size and padding with the spec's `kernel_size` in place of odd sizes above 1; output sizes stay."""
        size, pad, dilate = pair(kernel_size), pair(padding), pair(dilation)
        if self.kernel_size is None or max(size) == 1 or any(k % 2 == 0 for k in size):
            return size, pad
        pad = (
            pad[0] + dilate[0] * (self.kernel_size - size[0]) // 2,
            pad[1] + dilate[1] * (self.kernel_size - size[1]) // 2,
        )
        if min(pad) < 0:
            raise ValueError(
                f"kernel_size {self.kernel_size} in place of {kernel_size} with padding {padding} would need a "
                "negative padding to keep the output's size"
            )
        return pair(self.kernel_size), pad


class SpatialVariant(Variant):
    """A variant that replaces how a kernel spreads in space: it takes odd kernels larger than 1, others stay plain.

    With `kernel_size` in the spec the kernels it takes have that size, and their padding shifts so that sizes stay.
    """

    def conv(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: IntOrPair,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        channels = in_channels if isinstance(in_channels, int) else sum(in_channels)
        (size, pad), dilate = self.resized(kernel_size, padding, dilation), pair(dilation)
        if max(size) == 1 or any(k % 2 == 0 for k in size):
            return nn.Conv2d(channels, out_channels, size, stride, pad, dilate, groups, bias)
        return self.create(
            channels,
            out_channels,
            size,
            stride=stride,
            padding=pad,
            dilation=dilate,
            groups=groups,
            bias=bias,
            position=position,
        )

    def conv_transpose(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: IntOrPair,
        *,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        output_padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        position: Position = "inner",
    ) -> nn.Module:
        channels = in_channels if isinstance(in_channels, int) else sum(in_channels)
        return nn.ConvTranspose2d(
            channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
        )
