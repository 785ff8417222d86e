"""Means over an epoch that was interrupted."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

KEY = "epoch_means"


class EpochMeans(Callback):
    """Keeps what `self.log(..., on_epoch=True)` has summed up in the running epoch in checkpoints.

    Lightning forgets it, so that the mean of a resumed epoch would be that of the batches after the resumption.
    """

    def __init__(self) -> None:
        self._saved: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        sums = {
            name: {"value": metric.value, "count": metric.cumulated_batch_size}
            for name, metric in trainer.fit_loop.epoch_loop._results.items()
            if metric.is_tensor and metric.meta.on_epoch and metric.meta.is_mean_reduction and not metric.has_reset
        }
        checkpoint[KEY] = {"epoch": trainer.current_epoch, "sums": sums}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._saved = checkpoint.get(KEY, {})

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
