"""What would stop the test is found before the training, not after it."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class CheckTest(Callback):
    """Opens the test set before `fit` begins, after downloads: options may leave it empty, or files be missing."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            trainer.datamodule.check_test()  # type: ignore[attr-defined]
