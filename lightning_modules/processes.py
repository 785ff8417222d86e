"""Exchange between the processes of a run."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_Part = TypeVar("_Part")


def gather_on_first(part: _Part) -> list[_Part]:
    """The parts of all processes, in the order of their ranks, on the first; an empty list on the others.

    Every process must call this. Parts are pickled and may differ in size; tensors should be on the CPU.
    """
    if not dist.is_available() or not dist.is_initialized():
        return [part]
    parts: list[_Part] = [part] * dist.get_world_size()
    dist.gather_object(part, parts if dist.get_rank() == 0 else None)
    return parts if dist.get_rank() == 0 else []


def sum_over_processes(part: Tensor) -> Tensor:
    """The sum of the `part` of each process, equal on all of them; its gradient is the sum of theirs, to any order.

    Every process must call this, with a tensor of one shape. A loss made of such sums is that of the global batch, on
    every process. Its gradient, summed up as often as there are processes, then comes out right where
    DistributedDataParallel takes the mean.
    """
    return _AllReduceSum.apply(part) if dist.is_available() and dist.is_initialized() else part


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of the `value` of each process. Every process must call this, with a tensor of one shape."""
    if not dist.is_available() or not dist.is_initialized():
        return value
    return sum_over_processes(value) / dist.get_world_size()


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.apply(gradient)
