"""What a generator makes of the same latents, epoch by epoch."""

from __future__ import annotations

import re
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.callbacks.generated_pictures import generated, picture_latents
from lightning_modules.files import write_whole
from lightning_modules.pictures.animation import write_animation
from lightning_modules.pictures.images import image_grid
from lightning_modules.pictures.saving import dispensable, drawing, is_writing, media_folder, save_picture


class GeneratedSamples(Callback):
    """Draws a grid of samples after each epoch, from the same latents all run.

    - `samples.png`: the newest, also shown to the loggers, as `media/samples`;
    - `samples/epoch_0007.png`: after seven epochs; a resumed run drops those of epochs that it trains again;
    - `samples.webp`: all of them as an animation, made from the files when a fit ends, whatever session drew them.

    Args:
        rows: Rows of the grid.
        columns: Columns of the grid.
        every_n_epochs: Draw every so many epochs.
    """

    def __init__(self, rows: int = 8, columns: int = 8, every_n_epochs: int = 1) -> None:
        for name, value in {"rows": rows, "columns": columns, "every_n_epochs": every_n_epochs}.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.rows = rows
        self.columns = columns
        self.every_n_epochs = every_n_epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with dispensable("samples of this session"):
            for epochs, path in _pictures(trainer).items():
                if epochs > trainer.current_epoch:
                    path.unlink()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs % self.every_n_epochs or not is_writing(trainer):
            return
        with drawing("samples"):
            images = generated(pl_module, picture_latents(pl_module, self.rows * self.columns))
            save_picture(trainer, "samples", image_grid(images, self.columns))
            newest = media_folder(trainer) / "samples.png"
            write_whole(_folder(trainer) / f"epoch_{epochs:04d}.png", newest.read_bytes())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pictures := _pictures(trainer):
            with dispensable("samples.webp"):
                captions = [f"epoch {epochs}" for epochs in pictures]
                write_animation(media_folder(trainer) / "samples.webp", list(pictures.values()), captions)


def _folder(trainer: Trainer) -> Path:
    return media_folder(trainer) / "samples"


def _pictures(trainer: Trainer) -> dict[int, Path]:
    """Number of epochs to picture, in order; nothing where this process writes nothing."""
    if not is_writing(trainer):
        return {}
    found = ((re.fullmatch(r"epoch_(\d+)\.png", path.name), path) for path in _folder(trainer).glob("*.png"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))
