"""What would stop the test is found before the training, not after it."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class CheckTest(Callback):
    """Asks the task before `fit` begins, after downloads: options may leave the test set empty, or files be missing."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            pl_module.check_test(trainer.datamodule)  # type: ignore[attr-defined, operator]
