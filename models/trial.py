"""A trial pass of a network: what it would return, and which layers run, for a price of no time and no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

IMAGE_SIDE = 224  # pixels, of a network that does not say which size it takes: large enough to leave maps, not pixels


def example_input(network: nn.Module) -> Tensor:
    """A batch of what `network` takes, by what it says of itself: latents, or images of timm's or another size."""
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
    config = getattr(network, "pretrained_cfg", None) or {}
    _, *sides = config.get("input_size") or (3, *[IMAGE_SIDE] * (conv.weight.ndim - 2))
    shape: Any = getattr(network, "image_shape", (conv.in_channels, *sides))
    if hasattr(network, "latent_dim"):
        shape = (network.latent_dim,)
    return torch.empty(2, *shape, dtype=conv.weight.dtype, device="meta")


@torch.no_grad()
def try_out(network: nn.Module, example: Tensor) -> Any:
    """What `network` returns for an input on the meta device, in eval mode: shapes without values.

    Its hooks run; its modes, parameters and buffers stay as they are.
    """
    state = {name: tensor.to("meta") for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    with _evaluating(network):
        return torch.func.functional_call(network, state, (example,))


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
