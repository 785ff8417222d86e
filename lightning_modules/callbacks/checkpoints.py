"""`checkpoints/last.ckpt` and `checkpoints/best.ckpt`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.callbacks.step_boundary import StepBoundary
from lightning_modules.runs import Run


class LastCheckpoint(StepBoundary):
    """Writes `checkpoints/last.ckpt` of the run folder, from which the same command goes on, and at the end of a fit.

    Unlike `ModelCheckpoint` it never saves between a step and the validation that belongs to it, several intervals may
    be given together, and they count in manual optimisation too.

    Args:
        every_n_epochs: Save at the end of each n-th epoch; 0: never.
        every_n_train_steps: Save after each n-th optimiser step as well.
        train_time_interval: Save after this time as well, at the next step (`minutes: 30`).
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
    ) -> None:
        self.every_n_epochs = every_n_epochs
        self.every_n_train_steps = every_n_train_steps
        self.train_time_interval = train_time_interval
        self._saved_step = 0
        self._saved_time = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def at_boundary(self, trainer: Trainer, epoch_ends: bool) -> None:
        if epoch_ends and self._is_epoch_due(trainer):
            self._save(trainer)  # again, where training stops within an epoch: now the epoch's means are known
        elif trainer.global_step != self._saved_step and (self._is_step_due(trainer) or self._is_time_due(trainer)):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run and trainer.global_step != self._saved_step:  # type: ignore[attr-defined]
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        save_last(trainer)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def _is_epoch_due(self, trainer: Trainer) -> bool:
        return self.every_n_epochs > 0 and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _is_step_due(self, trainer: Trainer) -> bool:
        return self.every_n_train_steps is not None and trainer.global_step % self.every_n_train_steps == 0

    def _is_time_due(self, trainer: Trainer) -> bool:
        if self.train_time_interval is None:
            return False
        is_due = time.monotonic() - self._saved_time >= self.train_time_interval.total_seconds()
        return trainer.strategy.reduce_boolean_decision(is_due, all=False)  # clocks of processes differ


def save_last(trainer: Trainer) -> None:
    trainer.save_checkpoint(Run(trainer.default_root_dir).last_checkpoint, weights_only=False)


class BestCheckpoint(ModelCheckpoint):
    """Writes `checkpoints/best.ckpt` of the run folder after each validation that is the best so far.

    Args:
        monitor: The metric.
        mode: "max" if more of it is better, "min" if less.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        # After the validation itself, so that a last.ckpt that is saved next knows of it.
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=False, enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run folder may have been moved since: the score counts, the path is where the folder is now."""
        path = str(Path(str(self.dirpath)) / "best.ckpt")
        score = state_dict["best_model_score"]
        super().load_state_dict(
            {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": path if score is not None else "",
                "kth_best_model_path": path if score is not None else "",
                "best_k_models": {path: score} if score is not None else {},
                "last_model_path": "",
            }
        )


def with_checkpoints(given: Iterable[Callback], monitor: str | None, mode: str) -> list[Callback]:
    """The callbacks, with those that `best.ckpt` and `last.ckpt` need where none of `given` writes them.

    `best.ckpt` follows the metric of the first `ModelCheckpoint` that names one, else `monitor`. What writes
    `last.ckpt` comes last, so that it holds what the others have learnt.
    """
    others = [callback for callback in given if not isinstance(callback, LastCheckpoint)]
    last = [callback for callback in given if isinstance(callback, LastCheckpoint)]
    own = [callback for callback in others if isinstance(callback, ModelCheckpoint)]
    for callback in own:
        keep_slashes_out(callback)
    monitored = next((callback for callback in own if callback.monitor is not None), None)
    if monitored is not None:
        monitor, mode = monitored.monitor, monitored.mode
    if monitor is not None and not any(isinstance(callback, BestCheckpoint) for callback in own):
        others.append(BestCheckpoint(monitor, mode))
    if not last and not any(callback.save_last or callback.filename == "last" for callback in own):
        last.append(LastCheckpoint())
    return [*others, *last]


def keep_slashes_out(callback: ModelCheckpoint) -> None:
    """Keep the slash of a metric's name out of file names: `{val/accuracy:.2f}` is written `val_accuracy=0.93`."""
    if callback.filename is None or not callback.auto_insert_metric_name:
        return
    callback.filename = re.sub(
        r"\{([^}:]*)(:[^}]*)?\}",
        lambda match: f"{match[1].replace('/', '_')}={match[0]}",
        callback.filename,
    )
    callback.auto_insert_metric_name = False
