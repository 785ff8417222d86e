"""The order of samples: a function of seed and epoch, shared by any number of processes, resumable anywhere."""

from itertools import islice

import pytest
import torch
from torch.utils.data import Dataset, DistributedSampler

from datamodules import sampling
from datamodules.sampling import (
    EpochSampler,
    EvaluationSampler,
    ResumableDataLoader,
    draws_for,
    generator_for,
)

# Python 3.12 and later warn about every worker that is forked while another thread runs.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


class Numbers(Dataset):
    """Hands out its keys."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key):
        return key


def as_they_are(batch: list) -> list:
    return batch


def loader(
    length: int = 37, batch_size: int = 4, workers: int = 0, drop_last: bool = False, **place: int
) -> ResumableDataLoader:
    data = Numbers(length)
    return ResumableDataLoader(
        data,
        batch_size,
        sampler=EpochSampler(data, seed=3, drop_last=drop_last, **place),
        drop_last=drop_last,
        collate_fn=as_they_are,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(Numbers(50), seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    assert sorted(first) == [(0, index) for index in range(50)]
    orders = {tuple(index for _, index in order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9  # seed 0 of epoch 1 is not seed 1 of epoch 0


def test_the_order_stays_that_of_published_results():
    assert [index for _, index in islice(EpochSampler(Numbers(1000), 0), 6)] == [61, 390, 146, 880, 790, 588]


@pytest.mark.parametrize(("length", "world", "batch_size"), [(64, 2, 8), (60, 3, 4), (1000, 4, 8), (36, 2, 7)])
def test_all_processes_together_read_the_batches_of_one(length, world, batch_size):
    single = list(loader(length, world * batch_size))
    ranks = [list(loader(length, batch_size, num_replicas=world, rank=rank)) for rank in range(world)]
    assert all(len(batches) == len(single) for batches in ranks)
    for step, expected in enumerate(single):
        together = [None] * len(expected)
        for rank in range(world):
            together[rank::world] = ranks[rank][step]  # item i of rank r stands at place r + world * i
        assert together == expected


@pytest.mark.parametrize(
    ("length", "world", "batch_size", "batches"), [(64, 2, 8, 4), (70, 2, 8, 4), (127, 2, 32, 1), (1003, 4, 8, 31)]
)
def test_without_the_last_partial_batch_processes_still_read_the_batches_of_one(length, world, batch_size, batches):
    single = list(loader(length, world * batch_size, drop_last=True))
    ranks = [list(loader(length, batch_size, drop_last=True, num_replicas=world, rank=rank)) for rank in range(world)]
    assert [len(batch) for batch in single] == [world * batch_size] * batches
    for step in range(batches):
        assert [ranks[place % world][step][place // world] for place in range(world * batch_size)] == single[step]
    assert {len(rank) for rank in ranks} == {batches}


@pytest.mark.parametrize(("length", "world"), [(37, 2), (10, 4), (1, 4), (3, 7)])
def test_odd_lengths_repeat_fewer_samples_than_there_are_processes(length, world):
    ranks = [list(EpochSampler(Numbers(length), 0, world, rank)) for rank in range(world)]
    drawn = [index for rank in ranks for _, index in rank]
    assert len({len(rank) for rank in ranks}) == 1
    assert set(drawn) == set(range(length))
    assert len(drawn) - length < world


@pytest.mark.parametrize(("length", "world"), [(37, 2), (10, 4), (3, 7), (8, 1), (0, 1)])
def test_evaluation_draws_every_sample_once_and_in_order(length, world):
    samplers = [EvaluationSampler(Numbers(length), num_replicas=world, rank=rank) for rank in range(world)]
    assert sorted(index for sampler in samplers for index in sampler) == list(range(length))
    for rank, sampler in enumerate(samplers):
        assert list(sampler) == list(range(rank, length, world))
        assert len(sampler) == len(list(sampler))


def test_samplers_are_ones_that_a_trainer_leaves_alone():
    assert issubclass(EpochSampler, DistributedSampler)
    assert issubclass(EvaluationSampler, DistributedSampler)


def test_a_loader_made_before_the_processes_refuses_to_run_in_them(monkeypatch):
    data = Numbers(8)
    samplers = EpochSampler(data), EvaluationSampler(data)
    monkeypatch.setattr(sampling, "process_place", lambda: (2, 1))
    for sampler in samplers:
        with pytest.raises(RuntimeError, match=r"made for 1 process.* runs in 2.*pass the data module"):
            iter(sampler)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_its_state_was_taken(workers, drop_last):
    complete = loader(workers=workers, drop_last=drop_last)
    assert len(complete) == 10 - drop_last
    complete.sampler.set_epoch(1)
    epoch_1 = list(complete)
    complete.sampler.set_epoch(2)
    epoch_2 = list(complete)
    for done in range(0, len(epoch_1) + 1, 1 if workers == 0 else 4):
        interrupted = loader(workers=workers, drop_last=drop_last)
        interrupted.sampler.set_epoch(1)
        running = iter(interrupted)
        assert list(islice(running, done)) == epoch_1[:done]  # workers have loaded further by now
        state = interrupted.state_dict()
        running.close()

        resumed = loader(workers=workers, drop_last=drop_last)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert len(resumed) == len(epoch_1)
        if done:
            assert list(resumed) == epoch_1[done:]
            assert resumed.state_dict()["batches"] == len(epoch_1)
        resumed.sampler.set_epoch(2)
        assert list(resumed) == epoch_2


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_may_be_set_after_the_iterator_was_made(workers):
    """As a Trainer does when it resumes."""
    expected = loader()
    expected.sampler.set_epoch(5)
    late = loader(workers=workers)
    running = iter(late)
    late.sampler.set_epoch(5)
    assert list(running) == list(expected)


def test_a_state_of_another_epoch_skips_nothing():
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "batches": 10, "global_batch_size": 4})
    resumed.sampler.set_epoch(1)
    assert len(list(resumed)) == len(resumed)


def test_processes_may_share_an_epoch_anew():
    first, *rest = list(loader(36, 4))
    resumed = [loader(36, 2, num_replicas=2, rank=rank) for rank in range(2)]
    for part in resumed:
        part.load_state_dict({"epoch": 0, "batches": 1, "global_batch_size": 4})
    assert [sorted(a + b) for a, b in zip(*resumed, strict=True)] == [sorted(batch) for batch in rest]
    assert len(first) == 4


def test_another_global_batch_size_in_the_middle_of_an_epoch_is_an_error():
    resumed = loader(batch_size=8)
    resumed.load_state_dict({"epoch": 0, "batches": 3, "global_batch_size": 4})
    with pytest.raises(ValueError, match="global batches of 4, this run has 8: choose batch_size"):
        next(iter(resumed))


def test_generators_of_different_keys_are_unrelated():
    draws = {
        int(torch.randint(2**60, (), generator=generator_for(*key)))
        for key in (("order", 0, 1), ("order", 1, 0), ("order", 0, 0), ("split", 0, 0), ("order", 0), ("order", -1, 1))
    }
    assert len(draws) == 6


def test_draws_within_a_block_depend_on_its_key_alone_and_leave_no_trace():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with draws_for("augment", 0, 2, 5):
        first = torch.rand(4)
    assert torch.equal(torch.rand(3), expected)
    with draws_for("augment", 0, 2, 5):
        assert torch.equal(torch.rand(4), first)
    with draws_for("augment", 0, 2, 6):
        assert not torch.equal(torch.rand(4), first)
