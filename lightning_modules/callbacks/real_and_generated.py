"""Training images and generated ones, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_modules.callbacks.generated_pictures import GeneratedPicture, generated, picture_latents, when
from lightning_modules.pictures.images import image_grid
from lightning_modules.pictures.panels import draw_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RealAndGenerated(GeneratedPicture):
    """Draws `real_and_generated.png`, see `GeneratedPicture`.

    The real images are the first ones of the training set, un-augmented; with several processes the first ones that
    fall to the first process.

    Args:
        rows: Rows of each side.
        columns: Columns of each side.
        every_n_epochs: Also draw while training, every so many epochs.
    """

    name = "real_and_generated"

    def __init__(self, rows: int = 6, columns: int = 6, every_n_epochs: int | None = None) -> None:
        super().__init__(every_n_epochs)
        if rows < 1 or columns < 1:
            raise ValueError(f"rows and columns must be 1 or more, got {rows} and {columns}")
        self.rows = rows
        self.columns = columns

    def draw(self, trainer: Trainer, task: Any) -> Figure:
        count = self.rows * self.columns
        fake = generated(task, picture_latents(task, count))
        panels = {"Training images": _real_images(trainer, count), f"Generated, {when(trainer)}": fake}
        return draw_panels({title: image_grid(images, self.columns) for title, images in panels.items()})


def _real_images(trainer: Trainer, count: int) -> Tensor:
    """The first `count` training images or, where there are fewer, all: uint8 (N, C, H, W)."""
    batches: list[Tensor] = []
    for batch in trainer.datamodule.evaluation_loader("train"):  # type: ignore[attr-defined]
        batches.append(batch["image"])
        if sum(map(len, batches)) >= count:
            break
    return torch.cat(batches)[:count]
