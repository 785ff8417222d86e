"""Memory of a training step and of inference, counted without values: inputs of any size cost none."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.modes import in_mode


@dataclass(frozen=True)
class Memory:
    """Bytes that a pass of a network over a batch needs.

    They are those of tensors: what a kernel allocates for itself (a convolution algorithm's workspace), what the
    allocator rounds up and keeps back, and the device's context come on top.

    Args:
        weights: parameters and buffers, shared ones once.
        gradients: of the parameters that require them. An optimiser's state is a multiple of this (Adam's 2, SGD's
            momentum 1) and counts nowhere here.
        kept: what is alive between forward and backward pass: the input, the output and all that the backward pass
            will read. Weights do not count.
        training: the most that is alive at once in a step, from the input to the last gradient, beside the weights.
            Gradients of weights appear as the backward pass makes them; those of an earlier step are gone
            (`zero_grad`'s default). A loss counts as the gradient of the output.
        inference: the most that is alive at once in a pass without gradients, in evaluation mode, beside the weights.
    """

    weights: int
    gradients: int
    kept: int
    training: int
    inference: int


def measure_memory(network: nn.Module, input_size: Sequence[int], autocast: torch.dtype | None = None) -> Memory:
    """Counts the memory of `network` for one batch of inputs.

    The network runs forward, and forward and backward, on fake tensors, which have a shape, a type and a device but no
    values; each storage counts from the operation that makes it until it is freed. The network itself, its gradients
    and statistics included, stays as it was.

    Args:
        network: takes one tensor.
        input_size: (N, C, H, W), (N, C, X, Y, Z) or (N, features).
        autocast: the lower precision of a training in mixed precision.

    Raises:
        ValueError: The network cannot take `input_size`, or needs values of its activations to run.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = [*network.named_parameters(), *network.named_buffers()]
    weights: dict[str, Tensor] = {name: fake.from_tensor(tensor) for name, tensor in tensors}
    first = next((weight for weight in weights.values() if weight.is_floating_point()), torch.empty(0))

    def run() -> list[Tensor]:
        images = torch.empty(tuple(input_size), dtype=first.dtype, device=first.device)
        with torch.autocast(first.device.type, dtype=autocast, enabled=autocast is not None):
            return _tensors(functional_call(network, weights, images))

    try:
        with fake, in_mode(network, training=False), torch.no_grad(), PeakMemory() as inference:
            run()
        with fake, in_mode(network, training=True), torch.enable_grad(), PeakMemory() as training:
            outputs = run()
            kept = training.alive
            ends = [output for output in outputs if output.requires_grad]
            torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(
            f"{type(network).__name__} cannot take input_size {tuple(input_size)} (batch, channels, then the image), "
            f"or not without values: {error}"
        ) from error
    return Memory(
        weights=sum(weight.nbytes for weight in weights.values()),
        gradients=sum(weight.nbytes for weight in weights.values() if weight.requires_grad),
        kept=kept,
        training=training.peak,
        inference=inference.peak,
    )


class PeakMemory(TorchDispatchMode):
    """Inside `with PeakMemory() as memory:`, follows how many bytes of tensors are alive at once.

    It counts what operations return while it is on, each storage once. What was there before (weights, inputs), what a
    kernel allocates for itself and what the allocator keeps back are not in it, so that the number is the same from run
    to run, on every device.

    Attributes:
        alive: Bytes that are alive now.
        peak: The most that were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.alive -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
