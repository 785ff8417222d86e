"""Exchange between the processes of a run."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

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
