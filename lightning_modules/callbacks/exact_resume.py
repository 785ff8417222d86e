"""What Lightning forgets, or takes for something else, when it resumes from a checkpoint."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

KEY = "exact_resume"


class ExactResume(Callback):
    """Makes a resumed training do and log what an uninterrupted one does.

    - What `self.log(..., on_epoch=True)` has summed up in the running epoch goes into checkpoints. Lightning forgets
      it: the mean of a resumed epoch would be that of the batches after the resumption.
    - `ReduceLROnPlateau` steps after the checkpoint that is written at the end of an epoch: it does so here. Likewise a
      decision to stop there (early stopping, a time limit) holds.
    - With `max_steps`, Lightning takes a checkpoint from the end of an epoch for one from its middle: it would end the
      epoch once more, and count it twice.
    - A schedule that asks for `estimated_stepping_batches` makes Lightning open the data before it knows their state,
      which it then never restores: the epoch would begin anew.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] = {}
        self._was_saved_at_epoch_end = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        sums = {
            name: {"value": metric.value, "count": metric.cumulated_batch_size}
            for name, metric in trainer.fit_loop.epoch_loop._results.items()
            if metric.is_tensor and metric.meta.on_epoch and metric.meta.is_mean_reduction and not metric.has_reset
        }
        monitors = [config.monitor for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
        metrics = {name: float(trainer.callback_metrics[name]) for name in monitors if name in trainer.callback_metrics}
        checkpoint[KEY] = {
            "epoch": trainer.current_epoch,
            "sums": sums,
            "monitored": metrics,
            "should_stop": trainer.should_stop,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Comes before the loops read their state."""
        self._saved = checkpoint.get(KEY, {})
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        self._was_saved_at_epoch_end = epochs["ready"] == epochs["processed"] != epochs["completed"]
        if self._was_saved_at_epoch_end:
            trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(trainer.fit_loop).pop("_iteration_based_training", None)
        trainer.fit_loop._load_combined_loader_states()  # does nothing the second time
        if self._was_saved_at_epoch_end:
            self._step_plateaus(trainer)
            trainer.should_stop = self._saved.get("should_stop", False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first batch, when the sums exist again."""
        saved, self._saved = self._saved, {}
        if saved.get("epoch") != trainer.current_epoch:
            return
        for name, metric in trainer.fit_loop.epoch_loop._results.items():
            if name in saved["sums"]:
                sums = saved["sums"][name]
                metric.value = metric.value + sums["value"].to(metric.value.device)
                metric.cumulated_batch_size = metric.cumulated_batch_size + sums["count"].to(metric.value.device)
                metric._computed = None

    def _step_plateaus(self, trainer: Trainer) -> None:
        for config in trainer.lr_scheduler_configs:
            is_due = config.interval == "epoch" and trainer.current_epoch % config.frequency == 0
            if config.reduce_on_plateau and is_due and config.monitor in self._saved.get("monitored", {}):
                config.scheduler.step(self._saved["monitored"][config.monitor])
