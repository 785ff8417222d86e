"""Which sample is drawn when: a function of the seed and the epoch, never of how many processes or workers draw it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice, repeat
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

Key = int | tuple[int, int]
"""What a sampler yields: `index` (evaluation) or `(epoch, index)` (training)."""


def generator_for(*key: str | int) -> torch.Generator:
    """A generator on the CPU that depends on the key alone, e.g. `generator_for("order", seed, epoch)`.

    The key is hashed: keys that look alike (seed 0 of epoch 1, seed 1 of epoch 0) give unrelated draws.
    """
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@contextmanager
def draws_for(*key: str | int) -> Iterator[None]:
    """What is drawn from torch's global generator on the CPU within the block depends on the key alone.

    For transforms that take no generator. Afterwards the generator is as it was before.
    """
    state = torch.get_rng_state()
    torch.set_rng_state(generator_for(*key).get_state())
    try:
        yield
    finally:
        torch.set_rng_state(state)


def process_place() -> tuple[int, int]:
    """(number of processes, rank of this one) of the running job; (1, 0) outside a distributed one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


class ShardedSampler(DistributedSampler):
    """What both samplers share. Deriving from `DistributedSampler` is what makes a Trainer leave them as they are.

    Args:
        dataset: Anything with a length.
        seed: Seed of the order.
        num_replicas: Number of processes that share the data; default: those of the running job.
        rank: Which of them this one is.
        drop_last: Whether the batches are made without a smaller last one: then what is left over when the samples
            are dealt out is left out, too.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        drop_last: bool = False,
    ) -> None:
        world, own_rank = process_place()
        num_replicas = world if num_replicas is None else num_replicas
        super().__init__(dataset, num_replicas, own_rank if rank is None else rank, seed=seed, drop_last=drop_last)

    def check_place(self) -> None:
        """Refuse to draw in a job that was started after the sampler was made: every process would draw all data."""
        world, _ = process_place()
        if world not in (1, self.num_replicas):
            raise RuntimeError(
                f"This loader was made for {self.num_replicas} process(es) and runs in {world}: pass the data module "
                "to the Trainer, not its loaders."
            )


class EpochSampler(ShardedSampler):
    """A new order every epoch, f(seed, epoch). Yields `(epoch, index)`: augmentation can be f(seed, epoch, index).

    Rank r of w takes the entries r, r + w, r + 2w, ... of the order. So the j-th batches of size b of all ranks hold
    what the j-th batch of size w * b of a single process holds: item i of rank r stands at place r + w * i of it.
    Where w does not divide the length, entries from the start of the order (fewer than w) are drawn twice, because
    every rank must take the same number of steps; with `drop_last` entries at its end are left out in place of that,
    so that the number of whole batches is that of a single process, too.

    `start` entries of this rank are skipped: the place where an interrupted epoch goes on. The length stays that of
    the whole epoch.
    """

    start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.check_place()
        generator = generator_for("order", self.seed, self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        dealt = list(islice(cycle(order), self.total_size))
        return zip(repeat(self.epoch), dealt[self.rank :: self.num_replicas][self.start :], strict=False)


class EvaluationSampler(ShardedSampler):
    """Every sample exactly once, in order; yields `index`. Rank r of w takes r, r + w, r + 2w, ...

    The lengths of two ranks differ by at most one.
    """

    def __iter__(self) -> Iterator[int]:
        self.check_place()
        return iter(self._indices())

    def __len__(self) -> int:
        return len(self._indices())

    def _indices(self) -> range:
        return range(self.rank, len(self.dataset), self.num_replicas)  # type: ignore[arg-type]


class ResumableDataLoader(DataLoader):
    """A DataLoader over an `EpochSampler` that can go on in the middle of an epoch.

    Its state is the epoch and the number of batches handed out in it, whatever its workers have loaded ahead.
    Lightning stores the state in every checkpoint and gives it back before the first batch. A checkpoint written
    between two steps is exact; one written inside a step counts the batch of that step as done.

    Iterating is lazy: nothing is drawn before the first batch is asked for, because Lightning makes the iterator of a
    resumed run before it tells the sampler which epoch it is.
    """

    batch_size: int

    _epoch = 0
    _batches = 0
    _saved: dict[str, int] | None = None  # a loaded state that no iteration has used yet

    def state_dict(self) -> dict[str, int]:
        return self._saved or {
            "epoch": self._epoch,
            "batches": self._batches,
            "global_batch_size": self._global_batch_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after `state`: the next iteration skips its batches, if it is one of the same epoch.

        Without a Trainer, which sets the epoch, it is the same epoch.
        """
        self._saved = dict(state)
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(state["epoch"])

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not isinstance(self.sampler, EpochSampler):  # Trainer(overfit_batches=...) replaces the sampler
            yield from super().__iter__()
            return
        self._epoch, self._batches = self.sampler.epoch, self._batches_done(self.sampler.epoch)
        self.sampler.start = self._batches * self.batch_size
        for batch in super().__iter__():
            self._batches += 1
            yield batch

    @property
    def _global_batch_size(self) -> int:
        return self.batch_size * getattr(self.sampler, "num_replicas", 1)

    def _batches_done(self, epoch: int) -> int:
        """Batches of this epoch that were handed out before the state was saved.

        Raises:
            ValueError: They were of another global batch size (batch size times processes), with which a number of
                batches is another place in the order.
        """
        saved, self._saved = self._saved, None
        if saved is None or saved["epoch"] != epoch:
            return 0
        if saved["global_batch_size"] != self._global_batch_size:
            raise ValueError(
                f"The checkpoint stands in the middle of an epoch of global batches of {saved['global_batch_size']}, "
                f"this run has {self._global_batch_size}: choose batch_size so that batch_size times the number of "
                "processes stays the same."
            )
        return saved["batches"]
