"""Keeps the run folder: its settings, its sessions, and a metrics.csv that fits the checkpoints."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import yaml
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.environment import append_session, describe_environment
from lightning_modules.files import write_whole
from lightning_modules.loggers import MetricsCSVLogger
from lightning_modules.pictures.saving import is_writing
from lightning_modules.runs import Config, Run
from lightning_modules.weights import STARTED_FROM


class RunFolder(Callback):
    """Writes config.yaml and environment.json once the first step is done: a run that fails before it leaves nothing.

    An evaluation writes its config.yaml where there is none, at its end, and its session names the checkpoint.

    Args:
        run: The run folder.
        config: All settings, resolved, as plain data; loggers get them too.
        command: The command line.
    """

    def __init__(self, run: Run, config: Config, command: str) -> None:
        self.run = run
        self.config = config
        self.command = command
        self._session: dict[str, Any] = {}
        self._start = 0.0
        self._is_recorded = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._start, self._is_recorded = time.monotonic(), False
        if not trainer.is_global_zero:
            return
        self._session = {"stage": stage, "command": self.command, **describe_environment(), **self._how(trainer)}
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._session["first_step"] = trainer.global_step
        for logger in _metrics_loggers(trainer):
            logger.drop_from(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._is_recorded:
            self._is_recorded = True
            self._record(trainer, "interrupted")  # unless it is told otherwise in the end
            if is_writing(trainer):
                self._write_config()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the row of the step that has just ended before the checkpoint: Lightning logs it after."""
        connector = trainer._logger_connector
        at_epoch_end = connector._first_loop_iter is None
        if not trainer.training or not (at_epoch_end or connector.should_update_logs):
            return
        metrics = convert_tensors_to_scalars(connector.metrics["log"])
        step = trainer.fit_loop.epoch_loop._batches_that_stepped - at_epoch_end
        for logger in _metrics_loggers(trainer) if metrics else []:
            logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """In a process that never trained, log the results of an evaluation at the last step of its checkpoint."""
        loop = trainer.fit_loop
        if trainer.state.fn != "fit" and loop.epoch_loop._batches_that_stepped == 0:
            loop.epoch_loop._batches_that_stepped = max(checkpoint["global_step"] - 1, 0)
            loop.epoch_progress.current.completed = checkpoint["epoch"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record(trainer, "finished")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._record_evaluation(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_evaluation(trainer, pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_evaluation(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # a full disk, say, is what the exception is about
            if self._is_recorded:
                self._record(trainer, f"interrupted by {type(exception).__name__}")

    def _how(self, trainer: Trainer) -> dict[str, Any]:
        return {
            "seed": self.config.get("seed_everything"),
            "precision": trainer.precision,
            "accelerator": type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
            "processes": trainer.world_size,
        }

    def _record_evaluation(self, trainer: Trainer, task: LightningModule) -> None:
        self._session["checkpoint"] = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        self._session[STARTED_FROM] = getattr(task, "started_from", None)
        self._record(trainer, "finished")
        if is_writing(trainer) and not self.run.config_file.is_file():
            self._write_config()

    def _write_config(self) -> None:
        write_whole(self.run.config_file, yaml.safe_dump(self.config, sort_keys=False).encode())

    def _record(self, trainer: Trainer, outcome: str) -> None:
        if not is_writing(trainer):
            return
        minutes = round((time.monotonic() - self._start) / 60, 2)
        self._session |= {"outcome": outcome, "step": trainer.global_step, "minutes": minutes}
        append_session(self.run, self._session)


def _metrics_loggers(trainer: Trainer) -> list[MetricsCSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsCSVLogger)]
