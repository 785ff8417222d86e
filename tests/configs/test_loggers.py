"""The logger overlays."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lightning_modules.commands.training import ConvsuiteCLI
from lightning_modules.loggers import MetricsCSVLogger

LOGGERS = {
    "csv": [],
    "tensorboard": [TensorBoardLogger],
    "wandb": [WandbLogger],
    "wandb_offline": [WandbLogger],
}


def parse(tmp_path, *overlays):
    configs = [argument for name in ("gaussian/digits.yaml", *overlays) for argument in ("--config", name)]
    with ExitStack() as cleanup:
        return ConvsuiteCLI(
            "fit", [*configs, f"--trainer.default_root_dir={tmp_path / 'run'}"], cleanup
        ).trainer.loggers


@pytest.mark.parametrize("name", LOGGERS)
def test_metrics_csv_is_always_on(tmp_path, name):
    if name == "tensorboard":
        pytest.importorskip("tensorboard")
    loggers = parse(tmp_path, f"logger/{name}.yaml")
    assert [type(logger) for logger in loggers] == [MetricsCSVLogger, *LOGGERS[name]]
    assert all(str(tmp_path / "run") in str(logger.save_dir) for logger in loggers)
    assert not (tmp_path / "run").exists()


def test_the_last_overlay_wins(tmp_path):
    assert len(parse(tmp_path, "logger/wandb_offline.yaml", "logger/csv.yaml")) == 1


def test_offline_uploads_nothing(tmp_path):
    _, logger = parse(tmp_path, "logger/wandb_offline.yaml")
    assert logger._offline
    assert not logger._log_model
