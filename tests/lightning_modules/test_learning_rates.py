"""Parameter groups with learning rates of their own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_modules.callbacks.exact_resume import ExactResume
from lightning_modules.learning_rates import apply_factors, parameter_groups
from lightning_modules.schedules import CosineDecay
from models.convs import create_conv
from tests.helpers.tiny_runs import SaveAfter, tiny_data, tiny_task, tiny_trainer

AS_PUBLISHED = {"segmentation_head.conv*.bias": 20.0, "segmentation_head.*": 10.0}
"""Of the SUNet authors: new layers at ten times the rate, the biases of their convolutions at twenty times."""


class Network(nn.Module):
    """A layer with geometry, and a head of three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = create_conv("gaussian", 1, 4, 3, order=1, num_bases=2)
        self.segmentation_head = nn.ModuleDict(
            {"conv1": nn.Conv2d(4, 4, 3), "norm1": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 2, 1)}
        )


def rates(network: nn.Module, lr_factors: dict[str, float], geometry_lr_factor: float = 1.0) -> dict[str, float]:
    """The learning rate of each parameter, as a multiple of the optimiser's."""
    optimizer = torch.optim.SGD(parameter_groups(network, lr_factors, geometry_lr_factor), lr=0.5, weight_decay=0.1)
    apply_factors(optimizer)
    rate = {id(p): group["lr"] / 0.5 for group in optimizer.param_groups for p in group["params"]}
    return {name: rate.pop(id(parameter)) for name, parameter in network.named_parameters() if id(parameter) in rate}


def test_the_head_as_published():
    factors = rates(Network(), AS_PUBLISHED)
    assert {name: factor for name, factor in factors.items() if factor != 1} == {
        "segmentation_head.conv1.weight": 10,
        "segmentation_head.conv1.bias": 20,
        "segmentation_head.norm1.weight": 10,
        "segmentation_head.norm1.bias": 10,
        "segmentation_head.conv.weight": 10,
        "segmentation_head.conv.bias": 20,
    }
    assert set(factors) == {name for name, _ in Network().named_parameters()}


def test_groups_are_named_by_their_patterns():
    groups = parameter_groups(Network(), {"*.bias": 2.0, "stem.*": 3.0}, 5.0)
    assert [(group["name"], group["lr_factor"], group.get("weight_decay")) for group in groups] == [
        ("weights", 1.0, None),
        ("*.bias", 2.0, None),
        ("stem.*", 3.0, None),
        ("stem.* geometry", 15.0, 0.0),
    ]
    assert [group["name"] for group in parameter_groups(Network(), {}, 5.0)] == ["weights", "geometry"]


def test_frozen_parameters_are_in_no_group():
    network = Network()
    network.stem.requires_grad_(False)
    assert set(rates(network, AS_PUBLISHED)) == {name for name, _ in network.named_parameters() if "head" in name}
    with pytest.raises(
        ValueError, match=r"lr_factors: 'stem\.\*' matches no parameter that may learn.*: segmentation_"
    ):
        parameter_groups(network, {"stem.*": 2.0}, 1.0)


@pytest.mark.parametrize(
    ("lr_factors", "message"),
    [
        ({"final.*": 10.0}, r"lr_factors: 'final\.\*' matches no parameter"),
        (
            {"*head*": 10.0, "*head*.bias": 20.0},
            r"'\*head\*\.bias' comes to nothing.* write the narrower pattern first",
        ),
        ({"*head*": 0.0}, r"the factor of '\*head\*' must be a positive number, got 0\.0.* left out of trainable"),
        ({"*head*": float("nan")}, "must be a positive number"),
    ],
)
def test_factors_that_come_to_nothing(lr_factors, message):
    with pytest.raises(ValueError, match=message):
        parameter_groups(Network(), lr_factors, 1.0)


def test_a_task_says_so_before_it_trains():
    with pytest.raises(ValueError, match=r"lr_factors: 'conv5\.\*' matches no parameter"):
        tiny_task(lr_factors={"conv5.*": 2.0})


def test_schedules_scale_with_the_factors(tmp_path):
    """At every step of a cosine, and after a resumption."""
    options = {"conv": "standard", "lr_factors": {"fc.bias": 20.0, "fc.*": 10.0}}

    def task():
        made = tiny_task(**options)
        made.optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
        made.lr_scheduler = CosineDecay
        return made

    whole, trainer = task(), tiny_trainer(tmp_path, [SaveAfter(4, tmp_path / "a.ckpt"), ExactResume()])
    trainer.fit(whole, datamodule=tiny_data())
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    (state,) = saved["optimizer_states"]
    assert [group["name"] for group in state["param_groups"]] == ["weights", "fc.bias", "fc.*"]
    base = 0.01 * (1 + torch.tensor(torch.pi * 4 / 6).cos().item()) / 2
    assert [group["lr"] for group in state["param_groups"]] == pytest.approx([base, 20 * base, 10 * base])
    resumed = task()
    tiny_trainer(tmp_path, [ExactResume()]).fit(
        resumed, datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
