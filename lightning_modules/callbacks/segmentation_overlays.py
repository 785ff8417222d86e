"""Images with their true and their predicted masks, and where the two differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.labels import class_names
from lightning_modules.overlays import SegmentedImage, draw_overlays
from lightning_modules.pictures import (
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


class SegmentationOverlays(Callback):
    """Draws `overlays_<stage>.png`: some images beside their true mask, their predicted mask and the mistakes.

    The first images of the data, whatever the number of processes: after testing, after the `validate` command, for the
    last validation of a fit, and while it runs after every so many epochs. The file shows the newest, loggers keep all.
    W&B gets the masks themselves too, as `media/masks_<stage>`, to be switched on and off in the browser.

    Reads "prediction" (N, H, W), "mask" (N, H, W) and "index" (N,) from what `validation_step` and `test_step` return;
    `image` and `file`, if there is one, from the batch; `denormalise` and `class_names` from the data module.

    Args:
        count: How many images to draw.
        every_n_epochs: Also draw while training, after so many epochs; None: for the last validation alone.
        max_side: Pixels of the longer side to which larger images are shrunk.
        crop: Only the central square of so many pixels is shown of larger images; None: all.
    """

    def __init__(
        self, count: int = 4, every_n_epochs: int | None = 10, max_side: int = 512, crop: int | None = None
    ) -> None:
        options = {"count": count, "every_n_epochs": every_n_epochs, "max_side": max_side, "crop": crop}
        for name, value in options.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.count = count
        self.every_n_epochs = every_n_epochs
        self.max_side = max_side
        self.crop = crop
        self.images: list[SegmentedImage] = []
        self._is_due = False

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
            images = trainer.datamodule.denormalise(batch["image"][:missing])  # type: ignore[attr-defined]
            indices = outputs["index"].tolist()
            names = batch.get("file") or [f"#{index}" for index in indices]
            rows = zip(indices, names, images, outputs["mask"], outputs["prediction"], strict=False)
            self.images += [self._as_shown(*row, ignore_index=task.hparams["ignore_index"]) for row in rows]

    def _as_shown(
        self, index: int, name: str, image: Tensor, truth: Tensor, prediction: Tensor, ignore_index: int
    ) -> SegmentedImage:
        asked = truth != ignore_index
        right = (prediction == truth) & asked
        colours = image if len(image) == 3 else image[:1].expand(3, -1, -1)
        return SegmentedImage(
            index=index,
            name=name,
            image=self._fitted((255 * colours.permute(1, 2, 0)).round()),
            truth=self._fitted(truth),
            prediction=self._fitted(prediction),
            accuracy=float(right.sum() / asked.sum()),
        )

    def _fitted(self, values: Tensor) -> np.ndarray:
        """An image (H, W, 3), or a mask (H, W), as it is shown: cropped, and resized; uint8."""
        from PIL import Image

        pixels = values.byte().cpu().numpy()
        if self.crop is not None:
            top, left = (max(side - self.crop, 0) // 2 for side in pixels.shape[:2])
            pixels = pixels[top : top + self.crop, left : left + self.crop]
        longer = max(pixels.shape[:2])
        scale = self.max_side / longer
        if scale >= 1:  # then by a whole factor, so that pixels stay equal
            scale = max(min(self.max_side, _ENLARGED_SIDE) // longer, 1)
        height, width = (max(round(scale * side), 1) for side in pixels.shape[:2])
        # Of enlarged pixels both give the same; classes have no mean.
        resampling = Image.Resampling.BOX if pixels.ndim == 3 else Image.Resampling.NEAREST
        return np.asarray(Image.fromarray(pixels).resize((width, height), resampling))

    def _save(self, trainer: Trainer, task: Any, stage: str) -> None:
        """Draw what was collected. Every process must call this."""
        parts, self.images, self._is_due = gather_on_first(self.images), [], False
        images = sorted((image for part in parts for image in part), key=lambda image: image.index)[: self.count]
        if not images or not is_writing(trainer):
            return
        ignore_index = task.hparams["ignore_index"]
        names = class_names(trainer, task.hparams["num_classes"])
        with drawing(f"overlays_{stage}"):
            save_picture(trainer, f"overlays_{stage}", draw_overlays(images, names, ignore_index))
        with dispensable(f"masks_{stage}"):
            masked = [_masked(image, ignore_index, len(names)) for image in images]
            for logger in trainer.loggers:
                show_masks(logger, f"media/masks_{stage}", masked, [*names, "ignored"], logged_step(trainer))


def _masked(image: SegmentedImage, ignore_index: int, ignored: int) -> MaskedImage:
    """For loggers, whose masks hold classes alone: what is ignored becomes class `ignored`."""
    truth = np.where(image.truth == ignore_index, ignored, image.truth)
    return MaskedImage(image.image, {"prediction": image.prediction, "ground_truth": truth}, image.name)
