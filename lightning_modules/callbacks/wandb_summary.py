"""What W&B shows of a run in its table of runs."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger


class WandbSummary(Callback):
    """Makes W&B summarise the metric that a task monitors by its best and its last value; without W&B, does nothing.

    They appear as `val/accuracy.max` and `val/accuracy.last`, say. All other metrics keep their last value.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor = getattr(pl_module, "monitor", None)
        if monitor is None or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.define_metric(
                    monitor,
                    step_metric="trainer/global_step",
                    step_sync=True,
                    summary=f"{pl_module.mode},last",
                )
