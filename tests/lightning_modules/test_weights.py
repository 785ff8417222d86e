"""What a training starts from: a file of weights, pretrained weights, layers fitted to those that they replace."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_modules import ClassificationTask, SegmentationTask, load_run
from lightning_modules.base import BaseTask
from lightning_modules.cli import main
from lightning_modules.commands import training
from lightning_modules.files import CheckpointError
from lightning_modules.weights import StartingPoint, load_weights, read_weights, share_weights
from models import create_model, vgg
from tests.helpers.commands import save_every, tiny
from tests.helpers.tiny_runs import GAUSSIAN, SaveAfter, tiny_data, tiny_task, tiny_trainer

PLAIN = {"conv": "standard"}
REPLACED = {"model_options": {"widths": [4, 4, 4, 4], "conv_layers": "conv1"}, "conv": {**GAUSSIAN, "kernel_size": 3}}
SMALL_VGG = {"head_width": 4, "pool_size": 1}


@pytest.fixture
def source() -> BaseTask:
    """A task with weights that no other seed gives."""
    task = tiny_task(**PLAIN)
    with torch.no_grad():
        for parameter in task.network.parameters():
            parameter.normal_()
    return task


@pytest.fixture
def weights(source, tmp_path) -> str:
    path = tmp_path / "weights.pth"
    torch.save(source.network.state_dict(), path)
    return str(path)


@pytest.fixture
def checkpoint(source, tmp_path) -> str:
    """A checkpoint of the suite after a step, with optimiser and metrics."""
    path = tmp_path / "source.ckpt"
    tiny_trainer(tmp_path, [SaveAfter(1, path)], max_steps=1, max_epochs=-1).fit(source, datamodule=tiny_data())
    return str(path)


def equal(network: nn.Module, other: nn.Module) -> set[str]:
    mine, others = network.state_dict(), other.state_dict()
    return {name for name in mine if name in others and torch.equal(mine[name], others[name])}


def is_copy(network: nn.Module, other: nn.Module) -> bool:
    return equal(network, other) == set(network.state_dict())


def started(task: BaseTask) -> nn.Module:
    task.load_initial_weights()
    return task.network


@pytest.fixture
def messages(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    return caplog


# Files


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"network.{k}": v for k, v in state.items()} | {"metric.total": torch.ones(1)}},
    ],
)
def test_layouts_of_files(wrap, source, tmp_path):
    torch.save(wrap(source.network.state_dict()), tmp_path / "a.pth")
    assert is_copy(started(tiny_task(**PLAIN, init_from=str(tmp_path / "a.pth"))), source.network)


def test_a_checkpoint_and_a_run_folder(checkpoint, source, tmp_path):
    assert is_copy(started(tiny_task(**PLAIN, init_from=checkpoint)), source.network)
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").write_bytes((tmp_path / "source.ckpt").read_bytes())
    with pytest.raises(CheckpointError, match=r"init_from: .*run is no finished run: finish it"):
        started(tiny_task(**PLAIN, init_from=str(tmp_path / "run")))
    sessions = [{"stage": "fit", "outcome": "finished"}]
    (tmp_path / "run/environment.json").write_text(json.dumps({"sessions": sessions}))
    assert is_copy(started(tiny_task(**PLAIN, init_from=str(tmp_path / "run"))), source.network)


def test_halves_and_memory_formats(source, tmp_path):
    torch.save({name: value.half() for name, value in source.network.state_dict().items()}, tmp_path / "a.pth")
    network = started(tiny_task(**PLAIN, init_from=str(tmp_path / "a.pth")))
    assert network.fc.weight.dtype == torch.float32
    assert network.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network.fc.weight, source.network.fc.weight, rtol=1e-3, atol=1e-3)


class Arbitrary:
    """Something whose unpickling would run code."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "truncated, damaged or no file of weights"),
        (b"no pickle at all", "no file of weights"),
        ({"state_dict": Arbitrary()}, "no file of weights, or holds more than tensors and plain data"),
        (
            {"state_dict": {}, "best": np.float64(71.5)},
            r"save what is wanted of it anew: torch.save\(torch.load\('a.pth'",
        ),
        ({"state_dict": {}}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        (torch.ones(3), "holds no state dict"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, content, message):
    path = tmp_path / "a.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"init_from: .*{message}"):
        read_weights(path)


def test_a_truncated_file(weights, tmp_path):
    whole = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "weights.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated, damaged or no file of weights"):
        started(tiny_task(**PLAIN, init_from=weights))


# What differs


def test_weights_of_another_network_list_what_differs(weights):
    task = tiny_task(conv={**GAUSSIAN, "kernel_size": 3}, num_classes=3, init_from=weights)
    with pytest.raises(ValueError, match="does not fit the network") as caught:
        started(task)
    message = str(caught.value)
    assert "set init_skip: ['conv1.*', 'conv2.*', 'conv3.*', 'conv4.*', 'fc.*']." in message
    assert re.search(r"Missing there: conv1\.raw_sigma, .* and 6 more\.", message)
    assert "Unexpected: conv1.weight, conv2.weight, conv3.weight, conv4.weight." in message
    assert "Of other shapes: fc.weight (10, 4) in place of (3, 4), fc.bias (10,) in place of (3,)." in message
    assert not task.holds_weights


def test_a_list_of_layers_that_is_long_is_no_suggestion():
    other = {f"layer{i}.weight": torch.ones(1) for i in range(30)}
    with pytest.raises(ValueError, match=r"rather weights of another network.*layer9\.weight and 20 more"):
        load_weights(nn.Linear(1, 1), other, (), source="other.pth")


def test_another_number_of_classes_is_refused_and_the_mend_works(weights, source, messages):
    """As in ImageNet, then COCO, then VOC."""
    message = (
        f"init_from: {weights} does not fit the network. To start these layers anew (a head for other classes, say) "
        "set init_skip: ['fc.*']. "
        "Of other shapes: fc.weight (10, 4) in place of (3, 4), fc.bias (10,) in place of (3,)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        started(tiny_task(**PLAIN, num_classes=3, init_from=weights))
    network = started(tiny_task(**PLAIN, num_classes=3, init_from=weights, init_skip=["fc.*"]))
    assert equal(network, source.network) == set(network.state_dict()) - {"fc.weight", "fc.bias"}
    (said,) = [record.getMessage() for record in messages.records]
    assert said.endswith("; at its own initialisation: fc.weight, fc.bias")


def test_another_head_is_named_on_both_sides(weights, messages):
    options = {"model_options": {"widths": [4, 4, 4, 4]}, "in_channels": 1, "num_classes": 3, "init_from": weights}
    with pytest.raises(
        ValueError, match=r"set init_skip: \['segmentation_head\.conv\.\*', 'fc\.\*'\]\. Missing there: seg"
    ):
        started(SegmentationTask("fashion_cnn", **options))
    started(SegmentationTask("fashion_cnn", **options, init_skip=["segmentation_head.*", "fc.*"]))
    (said,) = [record.getMessage() for record in messages.records]
    assert said.endswith(
        "at its own initialisation: segmentation_head.conv.weight, segmentation_head.conv.bias; "
        "left out: fc.weight, fc.bias"
    )


class Published(nn.Sequential):
    """A network whose authors call its layer "lin"."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 3))

    def from_published(self, weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
        if "lin.weight" not in weights:
            return None
        return {name.replace("lin", "0"): value for name, value in weights.items()}


@pytest.mark.parametrize("name", ["module.lin", "lin", "module.0", "0"])
def test_weights_under_the_names_of_the_authors(tmp_path, name):
    state = {f"{name}.weight": torch.ones(3, 2), f"{name}.bias": torch.ones(3)}
    torch.save({"state_dict": state, "epoch": 90}, tmp_path / "a.pth")
    network = Published()
    StartingPoint(tmp_path / "a.pth").load(network)
    assert all(value.eq(1).all() for value in network.state_dict().values())


def test_published_weights_that_do_not_fit_are_named_as_the_network_does(tmp_path):
    state = {"lin.weight": torch.ones(3, 2), "lin.bias": torch.ones(3), "lin.scale": torch.ones(3)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"Unexpected: 0\.scale\."):
        StartingPoint(tmp_path / "a.pth").load(Published())
    StartingPoint(tmp_path / "a.pth", skip=("0.scale",)).load(Published())


def test_skipped_layers_keep_their_own_initialisation(weights, source):
    task = tiny_task(**REPLACED, num_classes=3, init_from=weights, init_skip=["conv1.*", "fc.*"])
    own = tiny_task(**REPLACED, num_classes=3)
    network = started(task)
    body = {f"conv{i}.{kind}" for i in (2, 3, 4) for kind in ("weight", "bias")}
    assert equal(network, source.network) & body == body
    assert equal(network, own.network) == set(network.state_dict()) - body


def test_a_skipped_name_may_stand_in_the_file_alone(source, tmp_path):
    state = source.network.state_dict() | {"auxiliary.weight": torch.ones(2)}
    torch.save(state, tmp_path / "a.pth")
    options = {**PLAIN, "init_from": str(tmp_path / "a.pth")}
    with pytest.raises(ValueError, match=r"Unexpected: auxiliary\.weight\."):
        started(tiny_task(**options))
    assert is_copy(started(tiny_task(**options, init_skip=["auxiliary.*"])), source.network)


def test_a_pattern_that_matches_nothing(weights):
    with pytest.raises(ValueError, match=r"init_skip: 'conv5.\*' matches nothing in the network, nor in"):
        started(tiny_task(**PLAIN, init_from=weights, init_skip=["conv5.*"]))


def test_counts_of_batches_may_be_missing(tmp_path):
    options = {**PLAIN, "model_options": {"widths": [4, 4, 4, 4], "norm": "batch"}}
    state = tiny_task(**options).network.state_dict()
    old = {name: torch.ones_like(value) for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "a.pth")
    network = started(tiny_task(**options, init_from=str(tmp_path / "a.pth")))
    assert all(network.state_dict()[name].eq(1).all() for name in old)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_skip": ["fc.*"]}, "init_skip says how init_from is read"),
        ({"fit_replaced": True}, "fit_replaced says how init_from is read"),
        ({"init_from": "a.pth", "fit_replaced": True}, r"\(\[\]\), but there is none.*that do: conv1, conv2, conv3"),
        (
            {"init_from": "a.pth", "init_skip": ["conv1.*"], "fit_replaced": True, **PLAIN},
            "that do: none. Name one in init_skip, or set fit_replaced to false",
        ),
        (
            {"init_from": "a.pth", "model_options": {"pretrained": True}},
            "init_from and pretrained both say what the network starts from",
        ),
        ({"model_options": {"pretrained": True}}, "unknown option of model 'fashion_cnn' 'pretrained'"),
        ({"model_options": {"head": "segment"}}, r"model_options must not hold \['head'\]"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_task(**options)


# Layers fitted to what they replace


def test_a_replaced_layer_is_fitted(weights, source, messages):
    options = {**REPLACED, "conv": {"name": "gaussian", "order": 3}}
    task = tiny_task(**options, init_from=weights, init_skip=["conv1.*"], fit_replaced=True)
    conv = started(task).conv1
    torch.testing.assert_close(conv.dense_weight(), source.network.conv1.weight, rtol=0, atol=0.05)
    assert torch.equal(conv.bias, source.network.conv1.bias)
    (said,) = [record.getMessage() for record in messages.records]
    assert re.fullmatch(
        rf"weights of {re.escape(weights)} \(sha256 [0-9a-f]{{12}}\); "
        r"conv1 fitted to its filters \(relative residual [0-9.e-]+\)",
        said,
    )


def test_without_a_fit_it_starts_as_it_is_drawn(weights):
    task = tiny_task(**REPLACED, init_from=weights, init_skip=["conv1.*"])
    own = tiny_task(**REPLACED).network.conv1
    assert is_copy(started(task).conv1, own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.weight"), "has no filters conv1.weight for layer 'conv1'"),
        (
            lambda state: state.update({"conv1.weight": torch.ones(4, 1, 4, 4)}),
            "fit_replaced: layer 'conv1': filters of 4x4 have no pixel in their centre",
        ),
    ],
)
def test_a_layer_that_cannot_be_fitted_is_named(source, tmp_path, change, message):
    state = dict(source.network.state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    options = {"init_from": str(tmp_path / "a.pth"), "init_skip": ["conv1.*"], "fit_replaced": True}
    with pytest.raises(ValueError, match=message):
        started(tiny_task(**REPLACED, **options))


# When it is read


def test_a_fit_starts_from_the_file(weights, source, tmp_path):
    task = tiny_task(**PLAIN, init_from=weights)
    assert not is_copy(task.network, source.network)  # it is not read before
    tiny_trainer(tmp_path, max_epochs=1, limit_train_batches=0).fit(task, datamodule=tiny_data())
    assert is_copy(task.network, source.network)


def test_a_missing_file_stops_a_new_fit_alone(tmp_path):
    options = {**REPLACED, "init_skip": ["conv1.*"], "fit_replaced": True}
    torch.save(tiny_task(**PLAIN).network.state_dict(), tmp_path / "weights.pth")
    first = tiny_task(**options, init_from=str(tmp_path / "weights.pth"))
    tiny_trainer(tmp_path, [SaveAfter(4, tmp_path / "a.ckpt")]).fit(first, datamodule=tiny_data())
    (tmp_path / "weights.pth").unlink()

    def again() -> ClassificationTask:
        return tiny_task(**options, init_from=str(tmp_path / "weights.pth"))

    with pytest.raises(CheckpointError, match=r"init_from: there is no file .*weights\.pth"):
        tiny_trainer(tmp_path).fit(again(), datamodule=tiny_data())
    for evaluate in ("validate", "test"):
        with pytest.raises(CheckpointError, match="there is no file"):
            getattr(tiny_trainer(tmp_path), evaluate)(again(), datamodule=tiny_data())

    saved = {"ckpt_path": tmp_path / "a.ckpt", "weights_only": True}
    resumed = again()
    tiny_trainer(tmp_path).fit(resumed, datamodule=tiny_data(), **saved)
    assert is_copy(resumed.network, first.network)
    tiny_trainer(tmp_path).test(again(), datamodule=tiny_data(), verbose=False, **saved)
    loaded = ClassificationTask.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    tiny_trainer(tmp_path, max_epochs=1).fit(loaded, datamodule=tiny_data())  # goes on from what was loaded


def test_a_run_keeps_to_the_file_that_it_started_from(weights, tmp_path):
    task = tiny_task(**PLAIN, init_from=weights)
    tiny_trainer(tmp_path, [SaveAfter(3, tmp_path / "a.ckpt")], max_epochs=1).fit(task, datamodule=tiny_data())
    task.starting_point.check_unchanged(tmp_path / "a.ckpt")
    torch.save(tiny_task(**PLAIN).network.state_dict(), weights)
    with pytest.raises(ValueError, match=r"weights\.pth has changed since this run started from it"):
        task.starting_point.check_unchanged(tmp_path / "a.ckpt")
    Path(weights).unlink()
    task.starting_point.check_unchanged(tmp_path / "a.ckpt")  # gone is not changed


def test_what_would_stay_random_and_frozen_is_refused(weights):
    options = {"init_from": weights, "init_skip": ["conv1.*", "conv2.*"]}
    with pytest.raises(ValueError, match=r"init_skip leaves conv2\.weight, conv2\.bias at a random start"):
        tiny_task(**PLAIN, **options, trainable=["conv1.*"])


def test_weights_are_loaded_once(weights, source, tmp_path):
    task = tiny_task(**PLAIN, init_from=weights)
    tiny_trainer(tmp_path, max_epochs=1).fit(task, datamodule=tiny_data())
    trained = {name: value.clone() for name, value in task.network.state_dict().items()}
    trainer = tiny_trainer(tmp_path, max_epochs=1)
    trainer.test(task, datamodule=tiny_data(), verbose=False)
    assert all(torch.equal(value, trained[name]) for name, value in task.network.state_dict().items())
    assert not equal(task.network, source.network)


@pytest.mark.parametrize("evaluate", ["validate", "test", "predict"])
def test_an_evaluation_without_a_checkpoint_is_of_the_initial_weights(weights, source, tmp_path, evaluate):
    task = tiny_task(**REPLACED, init_from=weights, init_skip=["conv1.*"], fit_replaced=True)
    getattr(tiny_trainer(tmp_path, limit_predict_batches=1), evaluate)(task, datamodule=tiny_data())
    assert torch.equal(task.network.fc.weight, source.network.fc.weight)
    assert (task.network.conv1.dense_weight() - source.network.conv1.weight).norm() < source.network.conv1.weight.norm()
    task.network.train()(torch.randn(2, 1, 8, 8)).sum().backward()  # what was read in inference mode can be trained


def test_checkpoints_say_which_network_they_hold(checkpoint):
    spec = torch.load(checkpoint, weights_only=True)["network"]
    assert spec["name"] == "fashion_cnn"
    assert {"in_channels": 1, "num_classes": 10, "widths": [4, 4, 4, 4]}.items() <= spec.items()
    twin = create_model(**spec)
    assert twin.state_dict().keys() == tiny_task(**PLAIN).network.state_dict().keys()


def test_a_task_says_what_its_networks_end_in():
    class Segmenting(BaseTask):
        head = "segment"

    network = Segmenting("fashion_cnn", in_channels=1, num_classes=2).network
    assert network(torch.ones(1, 1, 9, 8)).shape == (1, 2, 9, 8)
    assert "head" not in Segmenting("unet", in_channels=1, num_classes=2).network_spec  # which knows one end alone


# Pretrained weights


@pytest.fixture
def downloads(monkeypatch) -> list[bool]:
    """A download that gives ones; the list grows with each."""
    done = []

    def download(batch_norm: bool) -> dict[str, Tensor]:
        done.append(batch_norm)
        state = vgg_task(pretrained=False).network.state_dict()
        return {name: torch.ones_like(value) for name, value in state.items()}

    monkeypatch.setattr(vgg, "download_weights", download)
    return done


def vgg_task(seed: int = 1, **options) -> ClassificationTask:
    torch.manual_seed(seed)
    return ClassificationTask("vgg16", {**SMALL_VGG, "pretrained": True, **options}, num_classes=2)


def test_pretrained_weights_are_read_when_a_training_starts(downloads, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    task = vgg_task()
    assert not downloads
    assert task.hparams["model_options"]["pretrained"]
    own = task.network.classifier[0].weight.clone()
    state = torch.get_rng_state()
    task.on_fit_start()
    task.on_validation_start()  # the trial before a training
    assert downloads == [False]
    assert torch.equal(state, torch.get_rng_state())
    assert all(value.eq(1).all() for value in task.network.features.state_dict().values())
    assert not torch.equal(task.network.classifier[0].weight, own)  # drawn by the seed, the same in every process
    again = vgg_task(seed=2)
    again.on_fit_start()
    assert is_copy(again.network, task.network)


def test_a_checkpoint_needs_no_download(downloads):
    task = vgg_task()
    task.load_state_dict(vgg_task().state_dict())
    task.on_fit_start()
    task.on_test_start()
    assert not downloads


# Several processes


def test_every_process_gets_the_weights_of_the_first(monkeypatch):
    """Stands for two processes: a broadcast that brings what another machine has computed."""
    network = tiny_task().network
    first = {name: value + 1 for name, value in network.state_dict().items()}
    arriving = iter(first.values())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)

    def broadcast(value: Tensor, src: int) -> None:
        assert value.is_contiguous()
        assert src == 0
        value.copy_(next(arriving))

    monkeypatch.setattr(dist, "broadcast", broadcast)
    share_weights(network)
    assert all(torch.equal(value, first[name]) for name, value in network.state_dict().items())


# From the command line


def test_the_two_steps_of_a_transfer(tmp_path, monkeypatch, capsys):
    """A training; then its first layer replaced, fitted to the old one, and trained alone; then that resumed."""
    monkeypatch.setattr(training, "default_callbacks", lambda task: [])
    main(["fit", *tiny(tmp_path / "first")])
    second = tiny(
        tmp_path / "second",
        *(
            "--model.model_options={widths: [4, 4, 4, 4], conv_layers: conv1}",
            "--model.conv={name: gaussian, order: 2}",
        ),
        *(f"--model.init_from={tmp_path / 'first'}", "--model.init_skip=[conv1.*]", "--model.fit_replaced=true"),
        "--model.trainable=[conv1.*]",
    )
    main(["describe", *second])
    assert "(494 frozen)" in capsys.readouterr().out
    main(["fit", *second, *save_every(2), "--trainer.max_epochs=1"])
    first, replaced = load_run(tmp_path / "first"), load_run(tmp_path / "second", "last")
    assert equal(replaced, first) == {name for name in first.state_dict() if not name.startswith("conv1.")}
    assert (replaced.conv1.dense_weight() - first.conv1.weight).norm() < first.conv1.weight.norm()

    shutil.rmtree(tmp_path / "first")
    main(["test", f"--ckpt_path={tmp_path / 'second/checkpoints/last.ckpt'}"])
    (tmp_path / "second").rename(tmp_path / "moved")
    main(["test", f"--ckpt_path={tmp_path / 'moved/checkpoints/last.ckpt'}"])
