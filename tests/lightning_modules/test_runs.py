"""Run folders: what makes two runs the same, and what is read back from one."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from lightning.pytorch import LightningModule

from lightning_modules import ClassificationTask, GANTask, load_run
from lightning_modules.base import BaseTask
from lightning_modules.cli import main
from lightning_modules.files import CheckpointError, write_whole
from lightning_modules.runs import MissingRunError, OtherSettingsError, Run, compared_settings, differences, run_id
from tests.helpers.commands import tiny, tiny_gan

CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": "Task", "init_args": {"model": "unet", "conv": {"name": "gaussian", "order": 2}}},
    "data": {"class_path": "Data", "init_args": {"root": None, "batch_size": 32, "num_workers": 0}},
    "trainer": {"max_epochs": 3, "accelerator": "auto", "callbacks": None, "precision": None},
}


def changed(key, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = key.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.accelerator", "gpu"),
        ("trainer.devices", 4),
        ("trainer.num_nodes", 2),
        ("trainer.strategy", "ddp"),
        ("trainer.default_root_dir", "elsewhere"),
        ("trainer.logger", {"class_path": "WandbLogger"}),
        ("trainer.enable_progress_bar", False),
        ("trainer.callbacks", []),
        ("trainer.callbacks", [{"class_path": "lightning_modules.callbacks.checkpoints.LastCheckpoint"}]),
        ("data.init_args.num_workers", 8),
        ("data.init_args.root", "/data"),
        ("data.init_args.predict_root", "photos"),
        ("model.init_args.a_newer_option", None),
    ],
)
def test_where_a_run_runs_is_not_compared(key, value):
    assert not differences(CONFIG, changed(key, value))
    assert run_id(CONFIG) == run_id(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "difference"),
    [
        ("seed_everything", 1, "seed_everything: 0 -> 1"),
        ("trainer.max_epochs", 4, "trainer.max_epochs: 3 -> 4"),
        ("trainer.precision", "bf16-mixed", "trainer.precision: not set -> bf16-mixed"),
        ("trainer.callbacks", [{"class_path": "EarlyStopping"}], "trainer.callbacks.0.class_path: not set -> Early"),
        ("data.init_args.batch_size", 64, "data.init_args.batch_size: 32 -> 64"),
        ("model.init_args.conv", "standard", "model.init_args.conv.name: gaussian -> not set"),
        ("model.init_args.conv.order", 3, "model.init_args.conv.order: 2 -> 3"),
        ("ckpt_path", "other.ckpt", "ckpt_path: not set -> other.ckpt"),
    ],
)
def test_what_a_run_computes_is_compared(key, value, difference):
    assert any(line.startswith(difference) for line in differences(CONFIG, changed(key, value)))
    assert run_id(CONFIG) != run_id(changed(key, value))


def test_lists_of_numbers_stay_whole():
    config = changed("model.init_args.widths", [8, 16])
    assert compared_settings(config)["model.init_args.widths"] == [8, 16]


def test_a_run_that_does_not_exist_is_empty(tmp_path):
    run = Run(tmp_path / "run")
    assert (run.sessions, run.is_finished, run.metrics()) == ([], False, {})
    run.check_settings(CONFIG)
    with pytest.raises(MissingRunError, match="holds no checkpoint: train first, with `convsuite fit`"):
        run.checkpoint("best")
    assert not run.folder.exists()


def test_best_falls_back_to_last(tmp_path):
    run = Run(tmp_path)
    write_whole(run.last_checkpoint, b"")
    assert run.checkpoint("best") == run.last_checkpoint
    write_whole(run.best_checkpoint, b"")
    assert (run.checkpoint("best"), run.checkpoint("last")) == (run.best_checkpoint, run.last_checkpoint)


def test_a_checkpoint_knows_its_run(tmp_path):
    run = Run(tmp_path / "run")
    assert Run.of_checkpoint(run.last_checkpoint) is None
    write_whole(run.config_file, b"{}")
    assert Run.of_checkpoint(run.last_checkpoint).folder == run.folder
    assert Run.of_checkpoint(tmp_path / "run" / "other" / "last.ckpt") is None


def test_a_folder_is_shown_as_briefly_as_it_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(Run("runs/a")) == "runs/a"
    assert str(Run("/somewhere/else")) == "/somewhere/else"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ckpt_path", "start.ckpt"),
        ("data.init_args.batch_size", 64),
        ("data.init_args.predict_root", "photos"),
        ("trainer.devices", 2),
    ],
)
def test_an_evaluation_of_the_same_settings_is_written_to_the_run(tmp_path, key, value):
    run = Run(tmp_path)
    assert run.of_evaluation(CONFIG) is run  # nothing is there
    write_whole(run.config_file, json.dumps(CONFIG).encode())
    assert run.of_evaluation(changed(key, value)) is run


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("model.init_args.inference", {"class_path": "Inference", "init_args": {"scales": [0.5, 1]}}, "inference"),
        ("data.class_path", "OtherData", "data"),
        ("seed_everything", 1, "seed_everything"),
        ("model.init_args", {"b": 1, "a": 1, "e": {"f": 2}}, "a-b-conv"),
    ],
)
def test_an_evaluation_of_other_settings_has_a_folder_of_its_own(tmp_path, key, value, name):
    run = Run(tmp_path)
    write_whole(run.config_file, json.dumps(CONFIG).encode())
    first, again = (run.of_evaluation(changed(key, value)).folder for _ in range(2))
    assert first == again
    assert first.parent == run.folder / "evaluations"
    assert first.name.rpartition("-")[0] == name


def test_other_settings_are_refused_with_the_difference(tmp_path):
    run = Run(tmp_path)
    write_whole(run.config_file, b"trainer: {max_epochs: 2, devices: 1}\nseed_everything: 0")
    with pytest.raises(OtherSettingsError) as error:
        run.check_settings({"trainer": {"max_epochs": 3, "devices": 2}, "seed_everything": 1})
    for part in ("trainer.max_epochs: 2 -> 3", "seed_everything: 0 -> 1", "--trainer.default_root_dir"):
        assert part in str(error.value)
    assert "devices" not in str(error.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    main(["fit", *tiny(folder, "--model.conv={name: gaussian, order: 1, num_bases: 2}")])
    return folder


def logits(network):
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.eval()(images)


def test_load_run_gives_the_trained_network(trained):
    network = load_run(trained)
    assert not network.training
    assert torch.equal(logits(network), logits(load_run(trained, "best")))
    assert torch.equal(logits(network), logits(load_run(str(trained), str(trained / "checkpoints/best.ckpt"))))


@pytest.mark.parametrize("task", [BaseTask, ClassificationTask, LightningModule])
def test_lightning_loads_the_same_network_from_any_base(trained, task):
    """The number of classes and channels came from the data, and config.yaml does not name them."""
    loaded = task.load_from_checkpoint(trained / "checkpoints/last.ckpt", weights_only=True)
    assert type(loaded) is ClassificationTask
    assert loaded.hparams["num_classes"] == 10
    torch.testing.assert_close(logits(loaded), logits(load_run(trained, "last")))


@pytest.mark.parametrize("options", [[], ["--model.ema_decay=0.5"]])
def test_load_run_gives_the_generator_that_is_sampled_from(tmp_path, options):
    main(["fit", *tiny_gan(tmp_path / "run", "--trainer.max_epochs=1", *options)])
    task = GANTask.load_from_checkpoint(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    z = task.evaluation_latents(0, 3)
    generator = load_run(tmp_path / "run")
    assert not generator.training
    with torch.no_grad():
        torch.testing.assert_close(generator(z), task.generate(z))


def test_a_foreign_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="not written by this suite"):
        load_run(tmp_path, str(tmp_path / "last.ckpt"))
