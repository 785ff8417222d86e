"""Batch norms whose statistics move slowly, or not at all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_modules.batch_norm import freeze_batch_norms, set_momentum
from lightning_modules.sync_batch_norm import CPUSyncBatchNorm
from models import create_model
from tests.helpers.tiny_runs import tiny_data, tiny_task, tiny_trainer

SMALL = {"widths": [4, 4, 4, 4], "norm": "batch"}


class BatchNormAndReLU(nn.BatchNorm2d):
    """As timm has them."""


def networks() -> dict[str, nn.Module]:
    return {
        "plain": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(4))),
        "subclasses": nn.Sequential(BatchNormAndReLU(4), CPUSyncBatchNorm(4)),
        "octave": create_model("unet", "octave", in_channels=3, num_classes=2, widths=(4, 8)),
    }


def norms_of(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if hasattr(module, "running_mean")]


@pytest.mark.parametrize("kind", networks())
def test_all_batch_norms_are_meant(kind):
    network = networks()[kind]
    set_momentum(network, 0.01)
    freeze_batch_norms(network)
    norms = norms_of(network)
    assert len(norms) >= 2
    assert {norm.momentum for norm in norms} == {0.01}
    assert not any(norm.training or any(p.requires_grad for p in norm.parameters()) for norm in norms)
    others = [p for name, p in network.named_parameters() if not any(p is q for n in norms for q in n.parameters())]
    assert all(parameter.requires_grad for parameter in others)


def test_momentum_is_the_share_of_the_batch():
    network = nn.Sequential(nn.BatchNorm2d(1))
    set_momentum(network, 0.01)
    network(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    assert network[0].running_mean.item() == pytest.approx(0.99 * 0 + 0.01 * 2)
    assert tiny_task(model_options=SMALL, batch_norm_momentum=0.01).network.norm1.momentum == 0.01
    assert tiny_task(model_options=SMALL).network.norm1.momentum == 0.1


def test_frozen_batch_norms_stay_to_the_last_bit(tmp_path):
    """Validation, which puts everything into evaluation mode and back, stands between two epochs."""
    task = tiny_task(model_options=SMALL, conv="standard", freeze_batch_norm=True)
    before = copy.deepcopy(task.network.state_dict())
    tiny_trainer(tmp_path).fit(task, datamodule=tiny_data())
    after = task.network.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {name for name in before if name.startswith("norm")}
    assert task.training
    assert {module.training for module in norms_of(task.network)} == {False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_norm_momentum": 0.01}, "batch_norm_momentum is set, and the network has no batch norm: leave it out"),
        ({"freeze_batch_norm": True}, "freeze_batch_norm is set, and the network has no batch norm: leave it out"),
        ({"model_options": SMALL, "batch_norm_momentum": 0.0}, "batch_norm_momentum must be above 0 and at most 1"),
        (
            {"model_options": SMALL, "freeze_batch_norm": True, "init_from": "a.ckpt", "init_skip": ["norm4.*"]},
            r"init_skip leaves norm4\.weight, norm4\.bias at a random start, .* freeze_batch_norm freezes it there",
        ),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_task(**options)
