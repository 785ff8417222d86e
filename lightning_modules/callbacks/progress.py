"""Progress where there is no terminal to draw a bar in: a log file, a CI job, a scheduler's output."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

SECONDS_BETWEEN_LINES = 60


class ProgressLines(ProgressBar):
    """A line at the end of each epoch, and in longer epochs one a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._printed = time.monotonic()

    def disable(self) -> None:
        """On processes other than the first."""
        self._is_enabled = False

    def enable(self) -> None:
        self._is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._printed = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._print_line(trainer, f", batch {batch_idx + 1}/{self.total_train_batches}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_line(trainer, "")

    def _print_line(self, trainer: Trainer, place: str) -> None:
        self._printed = time.monotonic()
        metrics = trainer.callback_metrics  # on all processes: the mean over an epoch may be theirs together
        if not self._is_enabled:
            return
        shown = {name: value for name, value in sorted(metrics.items()) if name.startswith(("train/", "val/"))}
        values = [f"{name} {float(value):.4g}" for name, value in shown.items() if not name.endswith("_step")]
        epochs = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        head = f"epoch {trainer.current_epoch + 1}{epochs}{place}, step {trainer.global_step}"
        print(f"{head}: {', '.join(values)}", flush=True)
