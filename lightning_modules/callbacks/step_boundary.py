"""The points of a training at which a checkpoint resumes exactly."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


class StepBoundary(Checkpoint):
    """Calls `at_boundary` after each optimiser step, once all that belongs to the step is over.

    That is, after the validation that follows the step, and at the end of an epoch after the other callbacks. From a
    checkpoint that is written before them, Lightning goes on without that validation, and without what they learn.
    """

    @abstractmethod
    def at_boundary(self, trainer: Trainer, epoch_ends: bool) -> None:
        """A step is over: save, or leave."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate() and not _epoch_ends(trainer) and not _validation_follows(trainer):
            self._reach_boundary(trainer, epoch_ends=False)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not _epoch_ends(trainer):
            self._reach_boundary(trainer, epoch_ends=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reach_boundary(trainer, epoch_ends=True)

    def _reach_boundary(self, trainer: Trainer, epoch_ends: bool) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # which leaves nothing
            self.at_boundary(trainer, epoch_ends)


def _epoch_ends(trainer: Trainer) -> bool:
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _validation_follows(trainer: Trainer) -> bool:
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
