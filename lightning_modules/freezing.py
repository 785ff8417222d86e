"""Training a part of a network: all else neither learns nor moves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from models.names import LISTED, matches


def freeze_all_but(network: nn.Module, patterns: Sequence[str]) -> None:
    """Leave a gradient only to the parameters of `network` whose dotted names match any of the shell-style `patterns`.

    Raises:
        ValueError: A pattern that matches no parameter; the message lists the parameters.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in patterns:
        check_pattern("trainable", pattern, names)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and matches(name, patterns))


def check_pattern(option: str, pattern: str, names: Sequence[str]) -> None:
    """Raise `ValueError` unless the `pattern` of an `option` matches any of `names`, the parameters that may learn."""
    if any(matches(name, [pattern]) for name in names):
        return
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    raise ValueError(f"{option}: {pattern!r} matches no parameter that may learn. Those of the network: {listed}.")


def evaluate_frozen(network: nn.Module, patterns: Sequence[str]) -> None:
    """Put every module of `network` into evaluation mode but those that train.

    A module trains that has a trained parameter of its own, or that stands within what a pattern names: the dropout
    between the layers of `classifier.*`, say. So the statistics of other batch norms stay, and no dropout elsewhere
    disturbs what is trained.
    """
    for name, module in network.named_modules():
        has_trained = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if not has_trained and not matches(f"{name}.", patterns):
            module.training = False  # its children are looked at one by one
