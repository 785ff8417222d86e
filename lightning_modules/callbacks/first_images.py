"""What draws the first images of an evaluation beside their masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.labels import class_names
from lightning_modules.pictures.overlays import SegmentedImage, draw_overlays
from lightning_modules.pictures.saving import (
    MaskedImage,
    dispensable,
    drawing,
    is_writing,
    logged_step,
    save_picture,
    show_masks,
)
from lightning_modules.processes import gather_on_first

_ENLARGED_SIDE = 256  # pixels, to which small images are enlarged for the eye


class FirstImages(Callback, ABC):
    """Draws `<picture>_<stage>.png`: the first images of the data, each as one row or more of `draw_overlays`.

    The first ones whatever the number of processes: after testing, after the `validate` command, for the last
    validation of a fit, and while it runs after every so many epochs. The file shows the newest, loggers keep all. W&B
    gets the masks themselves too, as `media/<masks>_<stage>`, to be switched on and off in the browser.

    Args:
        count: How many images to draw.
        every_n_epochs: Also draw while training, after so many epochs; None: for the last validation alone.
        **others: Further options that must be 1 or more, where they are not None.

    Raises:
        ValueError: An option is below 1.
    """

    picture: ClassVar[str]
    masks: ClassVar[str]

    def __init__(self, count: int, every_n_epochs: int | None, **others: int | None) -> None:
        for name, value in {"count": count, "every_n_epochs": every_n_epochs, **others}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.count = count
        self.every_n_epochs = every_n_epochs
        self.images: list[list[SegmentedImage]] = []
        self._is_due = False

    @abstractmethod
    def rows(self, data: Any, ignore_index: int, outputs: Any, batch: Any, count: int) -> list[list[SegmentedImage]]:
        """The rows of each of the first `count` images of a batch; an empty list where it holds none of this kind.

        Args:
            data: The data module.
            ignore_index: The value of ignored pixels in masks.
            outputs: What the task's step has returned: "prediction" and "mask" (N, *size), "index" (N,).
            batch: With `image` (N, C, *size).
            count: 1 or more.
        """

    def titles(self, data: Any) -> tuple[str, ...]:
        """Of the columns of images."""
        return ("Image",)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_due = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._collect(trainer, pl_module, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._collect(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._save(trainer, pl_module, "val")
        elif not trainer.sanity_checking:
            self._is_due = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if self._is_due and self.every_n_epochs is not None and epochs % self.every_n_epochs == 0:
            self._save(trainer, pl_module, "val")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_due:
            self._save(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, pl_module, "test")

    def _collect(self, trainer: Trainer, task: Any, outputs: Any, batch: Any) -> None:
        """Keep the first images of this process. Evaluation is in order, so the first of all are among them."""
        missing = self.count - len(self.images)
        if missing < 1 or trainer.sanity_checking:
            return
        with dispensable("a picture of segmented images"):
            data = trainer.datamodule  # type: ignore[attr-defined]
            self.images += self.rows(data, task.hparams["ignore_index"], outputs, batch, missing)

    def _save(self, trainer: Trainer, task: Any, stage: str) -> None:
        """Draw what was collected. Every process must call this."""
        parts, self.images, self._is_due = gather_on_first(self.images), [], False
        images = sorted((image for part in parts for image in part), key=lambda rows: rows[0].index)[: self.count]
        if not images or not is_writing(trainer):
            return
        rows = [row for image in images for row in image]
        ignore_index = task.hparams["ignore_index"]
        names = class_names(trainer, task.hparams["num_classes"])
        with drawing(f"{self.picture}_{stage}"):
            titles = self.titles(trainer.datamodule)  # type: ignore[attr-defined]
            save_picture(trainer, f"{self.picture}_{stage}", draw_overlays(rows, names, ignore_index, titles))
        with dispensable(f"{self.masks}_{stage}"):
            masked = [_masked(row, ignore_index, len(names)) for row in rows]
            for logger in trainer.loggers:
                show_masks(logger, f"media/{self.masks}_{stage}", masked, [*names, "ignored"], logged_step(trainer))


def shown_scale(longer: float, max_side: int) -> float:
    """By what an image is resized whose longer side has so many pixels, for it to have `max_side` or fewer."""
    scale = max_side / longer
    if scale < 1:
        return scale
    return max(min(max_side, _ENLARGED_SIDE) // longer, 1)  # a whole factor, so that pixels stay equal


def resampled(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """An image (H, W, 3) or a mask (H, W), uint8, at another size."""
    from PIL import Image

    # Of pixels that are enlarged by a whole factor both give the same; classes have no mean.
    resampling = Image.Resampling.BOX if pixels.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, height), resampling))


def _masked(image: SegmentedImage, ignore_index: int, ignored: int) -> MaskedImage:
    """For loggers, whose masks hold classes alone: what is ignored becomes class `ignored`."""
    truth = np.where(image.truth == ignore_index, ignored, image.truth)
    return MaskedImage(image.image, {"prediction": image.prediction, "ground_truth": truth}, image.name)
