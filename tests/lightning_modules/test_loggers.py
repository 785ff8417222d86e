"""The logger of every run, and where the others write."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.loggers import MetricsCSVLogger, place_loggers
from lightning_modules.metrics_file import MetricsFile, read_metrics
from lightning_modules.runs import Run


class Options(SimpleNamespace):
    def __contains__(self, name):
        return name in vars(self)


def configured(class_path, **options):
    return SimpleNamespace(class_path=class_path, init_args=Options(**options))


def test_rows_have_epoch_and_step_first_and_take_tensors(tmp_path):
    logger = MetricsCSVLogger(Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    logger.log_metrics({"train/loss": torch.tensor(0.5), "epoch": 0}, step=3)
    assert (tmp_path / "run" / "metrics.csv").read_text() == "epoch,step,train/loss\n0,3,0.5\n"


def test_a_test_is_merged_into_the_last_row(tmp_path):
    logger = MetricsCSVLogger(Run(tmp_path))
    logger.log_metrics({"train/loss": 0.5, "epoch": 2}, step=9)
    logger.log_metrics({"test/accuracy": 0.75, "epoch": 0}, step=0)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"epoch": "2", "step": "9", "train/loss": "0.5", "test/accuracy": "0.75"}
    ]


def test_without_rows_a_test_makes_one(tmp_path):
    MetricsCSVLogger(Run(tmp_path)).log_metrics({"test/accuracy": 0.75, "epoch": 0}, step=4)
    assert read_metrics(tmp_path / "metrics.csv")[0]["step"] == "4"


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MetricsFile, "add", fail)
    with pytest.raises(OSError, match=r"could not write .*metrics\.csv: No space left"):
        MetricsCSVLogger(Run(tmp_path)).log_metrics({"train/loss": 1.0}, step=0)


def test_a_plain_model_checkpoint_finds_the_run_folder(tmp_path):
    """No slash of a metric's name, no `lightning_logs/version_0` in between."""
    checkpoint = ModelCheckpoint()
    trainer = Trainer(
        logger=MetricsCSVLogger(Run(tmp_path)), callbacks=[checkpoint], accelerator="cpu", enable_progress_bar=False
    )
    checkpoint.setup(trainer, None, "validate")
    assert str(checkpoint.dirpath).rstrip("/") == str(tmp_path / "checkpoints")
    assert trainer.log_dir == str(tmp_path)


@pytest.mark.parametrize("nothing", [None, True, False])
def test_no_logger_is_no_work(tmp_path, nothing):
    place_loggers(nothing, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_loggers_write_into_the_run_folder(tmp_path):
    wandb = configured("lightning.pytorch.loggers.WandbLogger", save_dir=".", id=None)
    board = configured("lightning.pytorch.loggers.TensorBoardLogger", save_dir=".", name="lightning_logs", version=None)
    place_loggers([wandb, board], Run(tmp_path))
    assert wandb.init_args.save_dir == board.init_args.save_dir == str(tmp_path)
    assert (board.init_args.name, board.init_args.version) == ("tensorboard", "")


def test_a_run_keeps_its_wandb_id_and_shares_it_with_no_other(tmp_path):
    ids = []
    for folder in ("a", "a", "b"):
        logger = configured("lightning.pytorch.loggers.WandbLogger", save_dir=".", id=None)
        place_loggers(logger, Run(tmp_path / folder))
        ids.append(logger.init_args.id)
    assert ids[0] == ids[1] != ids[2]
