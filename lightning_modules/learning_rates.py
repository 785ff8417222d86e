"""Which parameter learns at which rate: groups for the optimiser, each with a factor on its learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_modules.freezing import check_pattern
from models.convs import geometry_parameters
from models.names import matches

FACTOR = "lr_factor"  # of a group, until the optimiser is made


def parameter_groups(
    network: nn.Module, lr_factors: Mapping[str, float], geometry_lr_factor: float
) -> list[dict[str, Any]]:
    """The trainable parameters of `network`, once each, in named groups with their "lr_factor".

    What no pattern matches is the group "weights", and its geometry, if any, the group "geometry". What a pattern
    matches is a group of that name, its geometry one of that name and " geometry". Geometry has no weight decay, and
    its factor is `geometry_lr_factor` times that of the pattern.

    Args:
        network: Any; its frozen parameters are in no group.
        lr_factors: Shell-style patterns of parameter names to factors on the learning rate; the first match counts.
        geometry_lr_factor: The factor of scales, shifts and angles of synthesised filters.

    Raises:
        ValueError: A factor that is not positive, or a pattern that no parameter is left for.
    """
    geometry = [parameter for parameter in geometry_parameters(network) if parameter.requires_grad]
    is_geometry = {id(parameter) for parameter in geometry}
    names = {id(parameter): name for name, parameter in network.named_parameters() if parameter.requires_grad}
    weights = [p for p in network.parameters() if p.requires_grad and id(p) not in is_geometry]
    pattern_of = {key: _first_match(name, lr_factors) for key, name in names.items()}
    for pattern, factor in lr_factors.items():
        _check(pattern, factor, list(names.values()), list(pattern_of.values()))

    def group(parameters: list[nn.Parameter], pattern: str | None) -> list[nn.Parameter]:
        return [parameter for parameter in parameters if pattern_of[id(parameter)] == pattern]

    groups: list[dict[str, Any]] = [{"params": group(weights, None), "name": "weights", FACTOR: 1.0}]
    if scales := group(geometry, None):
        groups.append({"params": scales, "name": "geometry", "weight_decay": 0.0, FACTOR: geometry_lr_factor})
    for pattern, factor in lr_factors.items():
        if own := group(weights, pattern):
            groups.append({"params": own, "name": pattern, FACTOR: factor})
        if scales := group(geometry, pattern):
            both = factor * geometry_lr_factor
            groups.append({"params": scales, "name": f"{pattern} geometry", "weight_decay": 0.0, FACTOR: both})
    return groups


def apply_factors(optimizer: Optimizer) -> None:
    """Multiply the learning rate of each group of `parameter_groups` by its factor, before a schedule sees it."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.pop(FACTOR)


def _first_match(name: str, patterns: Mapping[str, float]) -> str | None:
    return next((pattern for pattern in patterns if matches(name, [pattern])), None)


def _check(pattern: str, factor: float, names: Sequence[str], taken: Sequence[str | None]) -> None:
    if not (factor > 0 and math.isfinite(factor)):
        raise ValueError(
            f"lr_factors: the factor of {pattern!r} must be a positive number, got {factor}. What is not to learn is "
            "left out of trainable"
        )
    check_pattern("lr_factors", pattern, names)
    if pattern not in taken:
        raise ValueError(
            f"lr_factors: {pattern!r} comes to nothing, for patterns before it match all that it does, and the first "
            "match counts: write the narrower pattern first"
        )
