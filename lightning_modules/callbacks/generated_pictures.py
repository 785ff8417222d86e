"""What the pictures of a generator have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.pictures.images import to_uint8
from lightning_modules.pictures.saving import drawing, is_writing, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class GeneratedPicture(Callback, ABC):
    """Draws one picture of what a `GANTask` generates when training ends, on the first process.

    Training does not notice: latents are a function of the run's seed and their position, and `task.generate` leaves
    modes, batch-norm statistics and random states as they were.

    Args:
        every_n_epochs: Also draw while training, every so many epochs: the file shows the latest, loggers keep all.
    """

    name: ClassVar[str]
    """The picture's file in the run's `media`, without `.png`."""

    def __init__(self, every_n_epochs: int | None = None) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be 1 or more, or null for the end alone; got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._drawn_step: int | None = None

    @abstractmethod
    def draw(self, trainer: Trainer, task: Any) -> Figure | None:
        """The picture of `task` as it is now; None where there is nothing to show."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_step = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, task: LightningModule) -> None:
        if not is_writing(trainer) or self._drawn_step == trainer.global_step:
            return
        self._drawn_step = trainer.global_step
        with drawing(self.name):
            figure = self.draw(trainer, task)
            if figure is not None:
                save_picture(trainer, self.name, figure)


def picture_latents(task: Any, count: int) -> Tensor:
    """The first `count` latents of a run's pictures, (count, latent_dim): the same whenever they are asked for."""
    return task.evaluation_latents(0, count, purpose="pictures")


def generated(task: Any, latents: Tensor) -> Tensor:
    """What `task` makes of `latents`: uint8 (N, C, H, W)."""
    return to_uint8(task.generate(latents))


def when(trainer: Trainer) -> str:
    """How far training has come, for a title."""
    return f"after {trainer.global_step:,} steps"
