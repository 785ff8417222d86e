"""Activation checkpointing: a layer's activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, of which only `x` is kept for the backward pass.

    Gradients and the running statistics of batch norms are those of `module(x)`: the second computation leaves them
    alone. Random numbers are drawn anew in it, thus a module must draw none.
    """
    if torch.compiler.is_compiling():  # a graph holds the statistics' update once, whatever it computes again
        return checkpoint(module, x, use_reentrant=False, preserve_rng_state=False)
    return checkpoint(module, x, use_reentrant=False, preserve_rng_state=False, context_fn=partial(_contexts, module))


def _contexts(module: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Those around the first and around the second computation."""
    return nullcontext(), _StatisticsKept(module)


class _StatisticsKept:
    """Inside it batch norms in training mode leave their running statistics; it may be entered again and again.

    They must not look switched off: autograd expects that the second computation saves the same tensors, and
    `nn.SyncBatchNorm` insists on a count of batches. So they move by nothing, and count on a copy.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            count = norm.num_batches_tracked
            norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
