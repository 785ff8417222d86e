"""Trainings of a second on the digits, without the command line."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from datamodules import DigitsDataModule
from lightning_modules import ClassificationTask

GAUSSIAN = {"name": "gaussian", "kernel_size": 5, "num_bases": 2, "order": 1}
STEPS_AN_EPOCH = 3


def tiny_data(**options: Any) -> DigitsDataModule:
    return DigitsDataModule(**{"batch_size": 20, "train_size": 20 * STEPS_AN_EPOCH, "val_size": 50, **options})


def tiny_task(**options: Any) -> ClassificationTask:
    torch.manual_seed(0)
    options = {"model_options": {"widths": [4, 4, 4, 4]}, "conv": GAUSSIAN, "in_channels": 1, **options}
    return ClassificationTask("fashion_cnn", optimizer=partial(torch.optim.Adam, lr=0.01), **options)


def tiny_trainer(folder: Path, callbacks: Sequence[Callback] = (), **options: Any) -> Trainer:
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 2, **options}
    return Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )


class SaveAfter(Callback):
    """Writes a checkpoint after a step; at the end of an epoch after the other callbacks."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.step % STEPS_AN_EPOCH:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
