"""Batch norm over two gloo processes is batch norm over the batches of both."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_modules.processes import mean_over_processes
from lightning_modules.sync_batch_norm import CPUSyncBatchNorm, SyncBatchNormPlugin, synchronise
from models import create_model
from models.convs.octave import set_betas

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")

# What a case normalises, and where the global batch is cut in two: processes have different batch sizes.
CASES = {
    "dense": (nn.BatchNorm1d(6), torch.float64, (7, 6), 5),
    "sequences": (nn.BatchNorm1d(6), torch.float64, (7, 6, 5), 2),
    "images": (nn.BatchNorm2d(6, eps=1e-3, momentum=0.3), torch.float64, (7, 6, 5, 4), 6),
    "volumes": (nn.BatchNorm3d(6), torch.float64, (5, 6, 3, 2, 4), 2),
    "one sample beside none": (nn.BatchNorm2d(6), torch.float64, (1, 6, 4, 4), 1),
    "without weights": (nn.BatchNorm2d(6, affine=False), torch.float64, (7, 6, 5, 4), 3),
    "cumulative average": (nn.BatchNorm2d(6, momentum=None), torch.float64, (7, 6, 5, 4), 3),
    "without running statistics": (nn.BatchNorm2d(6, track_running_stats=False), torch.float64, (7, 6, 5, 4), 3),
    "float32": (nn.BatchNorm2d(6), torch.float32, (7, 6, 5, 4), 3),
    "bfloat16": (nn.BatchNorm2d(6), torch.bfloat16, (7, 6, 5, 4), 3),
}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-2}


def build(case: str) -> tuple[nn.Module, Tensor, int]:
    """A layer, a global batch, and where it is cut."""
    torch.manual_seed(0)
    layer, dtype, shape, cut = CASES[case]
    layer = copy.deepcopy(layer)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=1.0)
    return layer.to(torch.promote_types(dtype, torch.float32)), (2 * torch.randn(shape) + 3).to(dtype), cut


def measure(layer: nn.Module, x: Tensor, part: slice) -> dict[str, Tensor]:
    """Outputs and gradients of both orders of two steps with `part` of the batch `x`, the state, and eval mode."""
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))[part].to(x)
    x = x[part].clone().requires_grad_()
    parameters = dict(layer.named_parameters())
    for _ in range(2):
        y = layer(x)
    first = torch.autograd.grad((y.sin() * weights).sum(), [x, *parameters.values()], create_graph=True)
    penalty = first[0].square().sum()
    second = torch.autograd.grad(penalty, [x, *parameters.values()], allow_unused=True)
    found = {"output": y, "gradient": first[0], "second-order gradient": second[0]}
    for name, gradient, second_gradient in zip(parameters, first[1:], second[1:], strict=True):
        found[f"sum: gradient of {name}"] = gradient
        if second_gradient is not None:
            found[f"sum: second-order gradient of {name}"] = second_gradient
    found |= {f"state: {name}": value for name, value in layer.state_dict().items()}
    if layer.track_running_stats:
        found["output in eval mode"] = layer.eval()(x)
    return {name: value.detach() for name, value in found.items()}


def measure_octave(synchronised: bool, part: slice) -> dict[str, Tensor]:
    """Logits, input gradients and running statistics of a network whose norms weight their gains, with `part`."""
    torch.manual_seed(0)
    network = create_model("dcgan_discriminator", "octave", image_size=16, base_width=4).double()
    set_betas(network, 0.7, 0.3)
    if synchronised:
        synchronise(network, CPU)
    x = torch.randn(5, 3, 16, 16, dtype=torch.float64)[part].requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(logits.sin().sum(), x)
    state = {f"state: {name}": value for name, value in network.state_dict().items()}
    return {"logits": logits.detach(), "gradient": gradient, **state}


def measure_parts(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for case in CASES:
        layer, x, cut = build(case)
        found[case] = measure(synchronise(layer, CPU), x, slice(cut) if rank == 0 else slice(cut, None))
    found["octave"] = measure_octave(True, slice(2) if rank == 0 else slice(2, None))
    layer = synchronise(nn.BatchNorm1d(3), CPU)
    try:
        layer(torch.zeros(1 - rank, 3))
    except ValueError as error:
        found["too few"] = str(error)
    large = 1e4 + torch.randn(512, 3, generator=torch.Generator().manual_seed(rank))
    found["large mean"] = {"input": large, "output": layer(large).detach()}
    layer.track_running_stats = False  # as while activations are recomputed
    before = layer.running_mean.clone()
    layer(large)
    found["moved"] = layer.running_mean - before
    found["mean of ranks"] = mean_over_processes(torch.tensor(float(rank)))
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


class Regression(LightningModule):
    """Batch norms on maps and on features; rank r of w sees the samples r, r + w, ... of a global batch of 8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5))
        self.head = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 1))

    def train_dataloader(self) -> DataLoader:
        samples = torch.randn(24, 3, 5, 5, generator=torch.Generator().manual_seed(2))
        processes = self.trainer.world_size
        return DataLoader(samples[self.global_rank :: processes], batch_size=8 // processes)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.head(self.network(batch))[:, 0] - batch.mean((1, 2, 3))).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class RecordedPlugin(SyncBatchNormPlugin):
    """Leaves the trained weights and the classes of the norms during and after the fit; processes may be forks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def revert(self, model: nn.Module) -> nn.Module:
        during = norm_classes(model)
        super().revert(model)
        if model.global_rank == 0:
            torch.save({"state": model.state_dict(), "during": during, "after": norm_classes(model)}, self.path)
        return model


def norm_classes(model: nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def fit(path: Path, processes: int) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork",
        plugins=[RecordedPlugin(path)],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(Regression())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict]:
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_on_the_concatenated_batch(ranks, case):
    layer, x, _ = build(case)
    compare([rank[case] for rank in ranks], measure(layer, x, slice(None)), TOLERANCES[x.dtype])


def test_norms_inside_a_network_with_betas(ranks):
    compare([rank["octave"] for rank in ranks], measure_octave(False, slice(None)), TOLERANCES[torch.float64])


def compare(parts: list[dict[str, Tensor]], expected: dict[str, Tensor], tolerance: float) -> None:
    first, second = parts
    assert first.keys() == second.keys() == expected.keys()
    for name, value in expected.items():
        assert first[name].dtype == value.dtype, name
        if name.startswith("state"):
            assert torch.equal(first[name], second[name]), name
            together = first[name]
        elif name.startswith("sum"):
            together = first[name] + second[name]
        else:
            together = torch.cat([first[name], second[name]])
        assert torch.allclose(together, value, rtol=tolerance, atol=tolerance), name


def test_a_large_mean_costs_no_digits(ranks):
    x = torch.cat([rank["large mean"]["input"] for rank in ranks])
    y = torch.cat([rank["large mean"]["output"] for rank in ranks])
    expected = nn.BatchNorm1d(3).double()(x.double())
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-3)


def test_one_value_in_all_processes_together_is_too_few(ranks):
    assert all("more than 1 value a channel in all processes" in rank["too few"] for rank in ranks)


def test_statistics_stay_where_they_are_not_tracked(ranks):
    assert all(rank["moved"].eq(0).all() for rank in ranks)


def test_the_mean_over_processes(ranks):
    assert [rank["mean of ranks"].item() for rank in ranks] == [0.5, 0.5]
    assert mean_over_processes(torch.tensor(3.0)) == 3


def test_training_by_two_processes_is_training_by_one(folder):
    one, two = (torch.load(folder / f"fit{processes}.pt") for processes in (1, 2))
    assert one["during"] == two["during"] == ["CPUSyncBatchNorm"] * 2
    assert one["after"] == two["after"] == ["BatchNorm2d", "BatchNorm1d"]
    assert one["state"].keys() == two["state"].keys() == Regression().state_dict().keys()
    for name, value in one["state"].items():
        torch.testing.assert_close(two["state"][name], value, rtol=1e-5, atol=1e-6)


def test_layers_change_their_class_and_nothing_else():
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()))
    before = [*network.modules()], dict(network.named_parameters()), {*network.state_dict()}
    synchronise(synchronise(network, CPU), CPU)
    assert [type(network[0]), type(network[1][0])] == [CPUSyncBatchNorm] * 2
    assert before == ([*network.modules()], dict(network.named_parameters()), {*network.state_dict()})
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), network):
        SyncBatchNormPlugin().revert(twin)
        assert [type(twin[0]), type(twin[1][0])] == [nn.BatchNorm1d, nn.BatchNorm2d]
    assert network[0].__dict__.keys() == nn.BatchNorm1d(4).__dict__.keys()


def test_on_accelerators_layers_are_those_of_torch():
    network = synchronise(nn.Sequential(nn.BatchNorm2d(4)), torch.device("cuda"))
    assert isinstance(network[0], nn.SyncBatchNorm)
    assert network[0](torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


def test_alone_it_is_batch_norm():
    layer, x, _ = build("images")
    twin = synchronise(copy.deepcopy(layer), CPU)
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_subclasses_are_refused_by_name():
    class BatchNormAndReLU(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.Sequential(nn.ReLU(), BatchNormAndReLU(3)))
    with pytest.raises(ValueError, match=r"layer '0.1' is a BatchNormAndReLU.*trainer.sync_batchnorm to false"):
        synchronise(network, CPU)


def test_it_may_stand_beside_sync_batchnorm():
    plugin = SyncBatchNormPlugin()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", sync_batchnorm=True, plugins=[plugin], logger=False
    )
    assert trainer.strategy._layer_sync is plugin


if __name__ == "__main__":
    place = Path(sys.argv[1])
    torch.multiprocessing.start_processes(measure_parts, (place,), nprocs=2, start_method="fork")
    for processes in (1, 2):
        fit(place / f"fit{processes}.pt", processes)
