"""Exchange of features between the processes of a run. Every process must call every function here, in one order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_Result = TypeVar("_Result")


def process_place() -> tuple[int, int]:
    """(number of processes, rank of this one) of the running job; (1, 0) outside a distributed one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n_r, ...) of all processes, in the order of their ranks: (sum of n_r, ...), equal on all of them.

    The numbers of rows may differ, and be 0; all else is the same everywhere.
    """
    world, _ = process_place()
    if world == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def gather_in_order(rows: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (n_r, ...) of all processes by rising `index` int64 (n_r,), with the indices: equal on all of them."""
    all_indices, order = gather_rows(index).sort(stable=True)
    return gather_rows(rows)[order], all_indices


def from_first(make: Callable[[], _Result]) -> _Result:
    """What `make` returns in the first process, which alone calls it; on all of them.

    Raises:
        RuntimeError: In the other processes, where `make` failed; its own error is raised in the first.
    """
    world, rank = process_place()
    if world == 1:
        return make()
    message: list = [None, None]
    if rank == 0:
        try:
            message[0] = make()
        except Exception as error:
            dist.broadcast_object_list([None, f"{type(error).__name__}: {error}"])
            raise
    dist.broadcast_object_list(message)
    result, failure = message
    if failure is not None:
        raise RuntimeError(f"the first process failed: {failure}")
    return result
