"""Put a variant into a network that was built from plain convolutions: timm's, or one of ours by pattern."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.convs import Variant
from models.convs.variant import is_plain_conv
from models.names import matches


def replace_convs(network: nn.Module, variant: Variant, patterns: str | Sequence[str] = "*") -> nn.Module:
    """Replace, in place, the convolutions of `network` whose dotted names match any of the shell-style `patterns`.

    Only exact `nn.Conv2d` and `nn.Conv3d` modules with zero padding are candidates: subclasses (such as timm's
    `Conv2dSame`) compute something else. Each becomes a layer of its own dimensions, whichever the variant has. The
    variant decides which candidates it takes; the others stay. New layers start from the variant's own initialisation,
    whatever weights the replaced ones had.

    Returns:
        `network` itself.

    Raises:
        ValueError: No convolution matches, or the variant cannot take one of them (the layer is named).
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    convs = {name: module for name, module in network.named_modules() if is_plain_conv(module)}
    matching = {name: conv for name, conv in convs.items() if matches(name, patterns)}
    if not matching:
        listed = ", ".join(convs) or "none"
        raise ValueError(f"conv_layers {patterns} match no convolution of this network. Its convolutions: {listed}.")
    variant.put_into(network, matching)
    return network
