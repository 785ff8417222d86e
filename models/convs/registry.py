"""Names to convolution variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from models.convs.dimensions import PerAxis
from models.convs.variant import Variant
from models.names import check_name

ConvSpec = str | Mapping[str, Any] | Variant
"""A variant by name, by `{name: ..., **options}`, or ready made."""

_VariantClass = TypeVar("_VariantClass", bound=type[Variant])
_VARIANTS: dict[str, type[Variant]] = {}


def register_conv(name: str) -> Callable[[_VariantClass], _VariantClass]:
    """Class decorator: register a `Variant` under `name`. A name that is taken raises `ValueError`."""

    def register(variant: _VariantClass) -> _VariantClass:
        if name in _VARIANTS:
            raise ValueError(f"a conv named {name!r} is registered already: {_VARIANTS[name]!r}")
        variant.name = name
        _VARIANTS[name] = variant
        return variant

    return register


def list_convs(dimensions: int = 2) -> list[str]:
    """Sorted names of the convolution variants that have layers of so many dimensions: 2, images, or 3, volumes."""
    return sorted(name for name, variant in _VARIANTS.items() if dimensions == 2 or variant.layer_3d is not None)


def build_variant(spec: ConvSpec) -> Variant:
    """The variant that `spec` describes.

    Raises:
        UnknownNameError: An unknown variant or option; the message names the nearest valid one.
        ValueError: A mapping without `name`.
    """
    if isinstance(spec, Variant):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if "name" not in spec:
        raise ValueError(f"a conv spec needs the key 'name', got {dict(spec)}. Valid names: {', '.join(list_convs())}.")
    options = {key: value for key, value in spec.items() if key != "name"}
    check_name("conv", spec["name"], _VARIANTS)
    return _VARIANTS[spec["name"]](**options)


def create_conv(
    name: str,
    in_channels: int,
    out_channels: int,
    kernel_size: PerAxis,
    stride: PerAxis = 1,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    bias: bool = True,
    *,
    dimensions: int = 2,
    **options: Any,
) -> nn.Module:
    """One layer of the variant `name`: (N, in_channels, H, W) to (N, out_channels, H', W'), sizes as in `nn.Conv2d`.

    With `dimensions` 3 it takes and gives volumes, (N, C, D, H, W), sizes as in `nn.Conv3d`.

    Raises:
        UnknownNameError: An unknown variant or option.
        ValueError: A shape or option that the variant cannot have, or a variant without a 3-D form.
    """
    return (
        build_variant({"name": name, **options})
        .in_dimensions(dimensions)
        .create(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
    )
