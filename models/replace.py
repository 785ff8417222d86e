"""Put a variant into a network that was built from plain convolutions: timm's, or one of ours by pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from models.convs import Position, Variant
from models.convs.variant import pair


def replace_convs(network: nn.Module, variant: Variant, patterns: str | Sequence[str] = "*") -> nn.Module:
    """Replace, in place, the convolutions of `network` whose dotted names match any of the shell-style `patterns`.

    Only exact `nn.Conv2d` modules with zero padding are candidates: subclasses (such as timm's `Conv2dSame`) compute
    something else. The variant decides which candidates it takes; the others stay. New layers start from the variant's
    own initialisation, whatever weights the replaced ones had.

    Returns:
        `network` itself.

    Raises:
        ValueError: No convolution matches, or the variant cannot take one of them (the layer is named).
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    convs = {name: module for name, module in network.named_modules() if _is_plain(module)}
    matching = [name for name in convs if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not matching:
        listed = ", ".join(convs) or "none"
        raise ValueError(f"conv_layers {patterns} match no convolution of this network. Its convolutions: {listed}.")
    first = next(iter(convs))
    for name in matching:
        try:
            new = _like(convs[name], variant, position="entry" if name == first else "inner")
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        if not isinstance(new, nn.Conv2d) or new.kernel_size != convs[name].kernel_size:
            network.set_submodule(name, new)
    return network


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Conv2d and module.padding_mode == "zeros"


def _like(conv: nn.Conv2d, variant: Variant, position: Position) -> nn.Module:
    size, dilation = pair(conv.kernel_size), pair(conv.dilation)
    if conv.padding == "same":
        padding = dilation[0] * (size[0] - 1) // 2, dilation[1] * (size[1] - 1) // 2
    else:
        padding = (0, 0) if isinstance(conv.padding, str) else pair(conv.padding)
    return variant.conv(
        conv.in_channels,
        conv.out_channels,
        size,
        stride=pair(conv.stride),
        padding=padding,
        dilation=dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        position=position,
    )
