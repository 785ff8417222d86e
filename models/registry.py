"""Names to networks: one call builds any network of the suite, or of timm, with any convolution variant inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from models.convs import ConvSpec, build_variant
from models.names import UnknownNameError, check_name, option_names
from models.replace import replace_convs
from models.timm_models import TIMM_PREFIX, create_timm_model

__all__ = [
    "UnknownNameError",
    "check_name",
    "create_model",
    "list_models",
    "model_builder",
    "network_options",
    "register_model",
]

_Builder = TypeVar("_Builder", bound=Callable[..., nn.Module])
_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register_model(name: str) -> Callable[[_Builder], _Builder]:
    """Register a class or function that builds a network under `name`.

    The builder takes `conv` (a `Variant`) and its own options, by keyword. A name that is taken raises `ValueError`.
    """

    def register(builder: _Builder) -> _Builder:
        if name in _BUILDERS:
            raise ValueError(f"a model named {name!r} is registered already: {_BUILDERS[name]!r}")
        _BUILDERS[name] = builder
        return builder

    return register


def list_models() -> list[str]:
    """Sorted names of the suite's own networks; any `timm/<name>` works besides."""
    return sorted(_BUILDERS)


def model_builder(name: str) -> Callable[..., nn.Module]:
    """The class or function that is registered under `name`."""
    check_name("model", name, [*_BUILDERS, f"{TIMM_PREFIX}<name>"])
    return _BUILDERS[name]


def network_options(name: str) -> set[str]:
    """Names of the options of the network `name`; of timm's those that all of them have."""
    builder = create_timm_model if name.startswith(TIMM_PREFIX) else model_builder(name)
    return option_names(builder, besides=["conv", "name", "options"])


def create_model(
    name: str, conv: ConvSpec = "standard", *, conv_layers: str | Sequence[str] | None = None, **options: Any
) -> nn.Module:
    """Build the network `name`.

    Args:
        name: A name of `list_models()`, or `timm/<name>` for any network of timm.
        conv: The convolution variant: a name, `{name: ..., **options}`, or a `Variant`.
        conv_layers: Shell-style pattern(s) of the layers that become the variant ("conv1", "layer1.*"); all by default.
        options: Options of the network, such as `in_channels` and `num_classes`; those that are None are left out, so
            that a configuration may always carry the key.

    Raises:
        UnknownNameError: An unknown network, variant or option; the message names the nearest valid one.
        ValueError: A pattern that matches no convolution, or a layer that the variant cannot replace.
    """
    options = {key: value for key, value in options.items() if value is not None}
    variant = build_variant(conv)
    if name.startswith(TIMM_PREFIX):
        network = create_timm_model(name.removeprefix(TIMM_PREFIX), **options)
        return replace_convs(network, variant, "*" if conv_layers is None else conv_layers)

    builder = model_builder(name)
    for option in options:
        check_name(f"option of model {name!r}", option, network_options(name))
    if conv_layers is None:
        return builder(conv=variant, **options)
    network = replace_convs(builder(conv=build_variant("standard"), **options), variant, conv_layers)
    reset_weights = getattr(network, "reset_weights", None)
    if reset_weights is not None:  # the network's own scheme holds for the layers that were put in too
        reset_weights()
    return network
