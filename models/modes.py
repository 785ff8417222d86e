"""Training and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside, `module` and all within it are in training mode or not; afterwards each is as it was.

    Flags are set one by one: `train()` may do more than set them (unfuse a layer, keep frozen layers frozen).
    """
    flags = [(child, child.training) for child in module.modules()]
    try:
        for child, _ in flags:
            child.training = training
        yield
    finally:
        for child, was_training in flags:
            child.training = was_training
