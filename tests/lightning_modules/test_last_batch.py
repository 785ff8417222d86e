"""Epochs that end with a batch of one sample, on which batch norm cannot be trained, are refused before they begin."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_modules import ClassificationTask, base, last_batch
from lightning_modules.last_batch import check_single_sample
from lightning_modules.sync_batch_norm import CPUSyncBatchNorm
from models import create_model
from tests.helpers.tiny_runs import tiny_trainer

# There is nothing to validate, and the images are too small to be loaded by workers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a .validation_step.", "ignore:The .*dataloader.* does not have many"
)

TINY = {"filters": 4, "block_depths": [1, 1, 1, 1], "block_widths": [8, 8, 8, 8], "stem": "small"}
SIDE = 32


class Noise(Dataset):
    def __init__(self, count: int, side: int) -> None:
        self.images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"image": self.images[index], "label": index % 2, "index": index}


def tiny_task(**options) -> ClassificationTask:
    return ClassificationTask("sunet_64", model_options=TINY, num_classes=2, **options)


class Stream(IterableDataset):
    def __init__(self, count: int) -> None:
        self.samples = Noise(count, SIDE)

    def __iter__(self):
        return (self.samples[index] for index in range(len(self.samples)))


class Lengthless:
    """A sampler of eight samples that does not say so."""

    def __iter__(self):
        return iter(range(8))


def fit(folder, samples: int, side: int = SIDE, drop_last: bool = False, batch_size: int = 4, task=None, **options):
    task = task or tiny_task()
    loader = DataLoader(Noise(samples, side), batch_size=batch_size, drop_last=drop_last)
    tiny_trainer(folder, **{"max_epochs": 1, **options}).fit(task, loader)
    return task


def accepts(check, side: int) -> bool:
    try:
        check(torch.zeros(1, 3, side, side))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("output_stride", "conv"), [(16, "standard"), (8, "standard"), (4, "octave")])
def test_refuses_what_torch_would_refuse_at_the_end(output_stride, conv):
    network = create_model("sunet_64", num_classes=2, conv=conv, output_stride=output_stride, **TINY).train()
    sides = range(network.smallest, 64, 3)
    ours = [accepts(lambda sample: check_single_sample(network, sample, 4), side) for side in sides]
    assert ours == [accepts(network, side) for side in sides]
    assert set(ours) == {True, False}


@pytest.mark.parametrize(("slices", "batch_size"), [(17, 16), (8, 1)])
def test_slices_that_only_evaluation_passes_one_by_one(slices, batch_size):
    unet = {"widths": [2] * 5, "kernel_size": 3, "convs_per_level": 1, "norm": "batch"}
    options = {"in_channels": 1, "num_classes": 2, "network": "unet", "network_options": unet}
    network = create_model("slice_wise", batch_size=batch_size, **options).train()
    check_single_sample(network, torch.zeros(1, 1, 16, 16, slices), 4)
    assert network(torch.randn(1, 1, 16, 16, slices)).isfinite().all()
    with pytest.raises(ValueError, match="one value a channel"):
        check_single_sample(network, torch.zeros(1, 1, 16, 16, 1), 4)


class Drawing(nn.Sequential):
    """Draws by itself, as attention with dropout does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(super().forward(x), training=self.training)


class Counting(nn.Sequential):
    """Holds something beside other modules."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.register_buffer("passes", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += self.training
        return super().forward(x)


def test_leaves_no_trace():
    network = create_model("sunet_64", num_classes=2, **TINY).train()
    network.norm.eval()
    network = Drawing(nn.Dropout(), Counting(network))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes, noise = [module.training for module in network.modules()], torch.get_rng_state()
    check_single_sample(network, torch.zeros(1, 3, 64, 64), 4)
    with pytest.raises(ValueError, match="one value a channel"):
        check_single_sample(network, torch.zeros(1, 3, SIDE, SIDE), 4)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), noise)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_is_refused_before_the_first_step(tmp_path):
    task = tiny_task()
    with pytest.raises(
        ValueError, match=r"batch of one sample, where data\.batch_size is 4, .*3, 32, 32.*data\.drop_last to true"
    ):
        fit(tmp_path, 9, task=task)
    assert task.trainer.global_step == 0
    with pytest.raises(ValueError, match=r"set data\.batch_size to 2 or more"):
        fit(tmp_path, 3, batch_size=1)


def test_is_asked_once_a_fit(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(base, "has_single_last_batch", lambda trainer: asked.append(trainer.current_epoch))
    task = fit(tmp_path, 5, side=64, max_epochs=2)
    fit(tmp_path, 5, side=64, max_epochs=2, task=task)
    assert asked == [0, 0]


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Stream(9), batch_size=4),
        lambda: DataLoader(Noise(8, SIDE), batch_size=4, sampler=Lengthless()),
    ],
)
def test_data_without_a_length_are_trained_on_as_they_come(tmp_path, loader):
    trainer = tiny_trainer(tmp_path, max_epochs=1, limit_train_batches=2)
    trainer.fit(tiny_task(), loader())
    assert trainer.global_step == 2


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 9, "drop_last": True},
        {"samples": 10},
        {"samples": 5, "side": 64},
        {"samples": 9, "max_steps": 2},
        {"samples": 9, "limit_train_batches": 1},
        {"samples": 5, "task": "frozen"},
    ],
)
def test_what_can_be_trained_is_trained(tmp_path, options):
    if options.get("task"):
        options = {**options, "task": tiny_task(freeze_batch_norm=True)}
    assert fit(tmp_path, **options).trainer.global_step > 0


def test_several_processes_share_a_batch_where_norms_are_synchronised(monkeypatch):
    network, sample = nn.Sequential(nn.BatchNorm2d(3)), torch.zeros(1, 3, 1, 1)
    monkeypatch.setattr(last_batch, "_processes", lambda: 2)
    with pytest.raises(ValueError, match="one sample a process"):
        check_single_sample(network, sample, 4)
    network[0].__class__ = CPUSyncBatchNorm
    check_single_sample(network, sample, 4)
    monkeypatch.setattr(last_batch, "_processes", lambda: 1)
    with pytest.raises(ValueError, match="one value a channel"):
        check_single_sample(network, sample, 4)
