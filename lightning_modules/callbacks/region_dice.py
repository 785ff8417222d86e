"""How well a class is found in some parts of the images, and how well in others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.labels import class_names
from lightning_modules.metrics.confusion import PixelConfusion, dice


class RegionDice(Callback):
    """Logs Dice of each class within regions of the images, of validation and test.

    For data that mark regions: batches of evaluation hold `region` uint8 (N, *size), numbers of the data module's
    `region_names`, and other values where a pixel is in none. `<stage>/dice_<class>_<region>` is of the whole data set,
    from one confusion matrix of a region's pixels, for any number of processes. A class that neither truth nor
    prediction holds there is left out, and so is one that is called "background".

    Reads "prediction" and "mask", (N, *size), from what `validation_step` and `test_step` return.
    """

    def __init__(self) -> None:
        self.confusions: list[PixelConfusion] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _start(self, trainer: Trainer, task: Any) -> None:
        num_classes, ignore_index = task.hparams["num_classes"], task.hparams["ignore_index"]
        self.confusions = [PixelConfusion(num_classes, ignore_index).to(task.device) for _ in region_names(trainer)]

    def _count(self, outputs: Any, batch: Any) -> None:
        for number, confusion in enumerate(self.confusions):
            truth = outputs["mask"].where(batch["region"] == number, confusion.ignore_index)
            confusion.update(outputs["prediction"].long(), truth.long())

    def _log(self, trainer: Trainer, task: Any, stage: str) -> None:
        classes = class_names(trainer, task.hparams["num_classes"])
        for region, confusion in zip(region_names(trainer), self.confusions, strict=True):
            for name, value in zip(classes, dice(confusion.compute()), strict=True):  # equal on every process
                if name != "background" and not value.isnan():
                    task.log(f"{stage}/dice_{name}_{region}", value.float())


def region_names(trainer: Trainer) -> Sequence[str]:
    """What the data module calls its regions.

    Raises:
        ValueError: It has none.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    names = getattr(data, "region_names", None)
    if names is None:
        raise ValueError(
            f"RegionDice needs data that mark regions, which {type(data).__name__} does not: leave it out."
        )
    return names
