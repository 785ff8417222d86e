"""Training a part of a network: nothing else moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_modules import ClassificationTask
from lightning_modules.freezing import evaluate_frozen, freeze_all_but
from models.convs import geometry_parameters
from tests.helpers.tiny_runs import GAUSSIAN, SaveAfter, tiny_data, tiny_task, tiny_trainer

SMALL = {"widths": [4, 4, 4, 4], "norm": "batch"}


class Network(nn.Sequential):
    """Features with a batch norm, a classifier with dropout, and a dropout between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
        self.classifier = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Dropout(0.5), nn.Linear(4, 2)
        )


def trained_parameters(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def modules_in_training(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if module.training}


CASES = {
    "the first layer": (["features.0.*"], {"features.0.weight", "features.0.bias"}, {"features.0"}),
    "one of its parameters": (["features.0.bias"], {"features.0.bias"}, {"features.0"}),
    "a classifier": (
        ["classifier.*"],
        {"classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias"},
        {"classifier", "classifier.0", "classifier.1", "classifier.2", "classifier.3"},
    ),
    "a batch norm and the last layer": (
        ["*.1.weight", "classifier.3.*"],
        {"features.1.weight", "classifier.3.weight", "classifier.3.bias"},
        {"features.1", "classifier.3"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_trains(case):
    patterns, parameters, modules = CASES[case]
    network = Network()
    freeze_all_but(network, patterns)
    evaluate_frozen(network, patterns)
    assert trained_parameters(network) == parameters
    assert modules_in_training(network) == modules


def test_all_is_as_without_patterns():
    network = Network()
    freeze_all_but(network, ["*"])
    evaluate_frozen(network, ["*"])
    assert trained_parameters(network) == {name for name, _ in network.named_parameters()}
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("patterns", [["classifiers.*"], ["features.0", "classifier.*"]])
def test_a_pattern_without_a_match_lists_the_parameters(patterns):
    with pytest.raises(ValueError, match=rf"'{patterns[0]}' matches no parameter .*: features.0.weight, features.0.b"):
        freeze_all_but(Network(), patterns)


def test_long_lists_are_cut():
    network = nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)])
    with pytest.raises(ValueError, match=r"14\.bias and 10 more"):
        freeze_all_but(network, ["x"])


def test_a_task_stays_frozen_whatever_mode_it_is_put_in():
    task = tiny_task(model_options=SMALL, trainable=["conv1.*"])
    for _ in range(2):
        assert task.training
        assert modules_in_training(task.network) == {"conv1"}
        task.eval()
        assert not modules_in_training(task)
        task.train()


def test_the_optimiser_holds_what_is_trained_alone():
    task = tiny_task(model_options=SMALL, trainable=["conv1.*"])
    (weights, geometry) = task.configure_optimizers().param_groups
    held = {id(parameter) for group in (weights, geometry) for parameter in group["params"]}
    assert held == {id(parameter) for parameter in task.network.conv1.parameters()}
    assert {id(p) for p in geometry["params"]} == {id(p) for p in geometry_parameters(task.network.conv1)}


def test_the_geometry_alone_can_be_trained(tmp_path):
    task = tiny_task(trainable=["conv1.mu"])
    before = copy.deepcopy(task.network.state_dict())
    tiny_trainer(tmp_path, max_epochs=1).fit(task, datamodule=tiny_data())
    after = task.network.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["conv1.mu"]


def test_all_but_the_trained_layer_stays_to_the_last_bit(tmp_path):
    """Validation, which puts everything into evaluation mode and back, stands between two epochs."""
    task = tiny_task(model_options=SMALL, conv={**GAUSSIAN}, trainable=["conv1.*"])
    before = copy.deepcopy(task.network.state_dict())
    tiny_trainer(tmp_path).fit(task, datamodule=tiny_data())
    after = task.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("conv1.")}
    assert modules_in_training(task.network) == {"conv1"}


def test_a_frozen_training_resumes_exactly(tmp_path):
    options = {"model_options": SMALL, "trainable": ["conv1.*", "fc.*"]}
    whole = tiny_task(**options)
    tiny_trainer(tmp_path, [SaveAfter(4, tmp_path / "a.ckpt")]).fit(whole, datamodule=tiny_data())
    resumed = tiny_task(**options)
    tiny_trainer(tmp_path).fit(resumed, datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert trained_parameters(loaded.network) == trained_parameters(whole.network)


def test_a_compiled_network_is_frozen_too():
    task = tiny_task(model_options=SMALL, trainable=["fc.*"], compile=True)
    assert trained_parameters(task.network) == {"fc.weight", "fc.bias"}
