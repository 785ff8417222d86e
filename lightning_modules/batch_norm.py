"""How the batch norms of a network are trained: the pace of their running statistics, or not at all."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_momentum(network: nn.Module, momentum: float) -> None:
    """Set the share of a batch in the running statistics: new = (1 - momentum) old + momentum batch, as torch has it.

    Raises:
        ValueError: `momentum` is not in (0, 1], or `network` has no batch norm.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"batch_norm_momentum must be above 0 and at most 1, got {momentum}")
    for norm in _batch_norms(network, "batch_norm_momentum"):
        norm.momentum = momentum


def freeze_batch_norms(network: nn.Module) -> None:
    """Take the gradients of gains and shifts away, and put the batch norms of `network` into evaluation mode.

    `network.train()` puts them back into training mode: see `evaluate_batch_norms`.

    Raises:
        ValueError: `network` has no batch norm.
    """
    for norm in _batch_norms(network, "freeze_batch_norm"):
        norm.requires_grad_(False)
    evaluate_batch_norms(network)


def evaluate_batch_norms(network: nn.Module) -> None:
    """Put the batch norms of `network` into evaluation mode: they use their running statistics and leave them."""
    for norm in _batch_norms(network, "freeze_batch_norm"):
        norm.eval()


def _batch_norms(network: nn.Module, option: str) -> list[_BatchNorm]:
    """Subclasses too, as timm has them, and those inside the norms of octave maps."""
    found = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not found:
        raise ValueError(f"{option} is set, and the network has no batch norm: leave it out")
    return found
