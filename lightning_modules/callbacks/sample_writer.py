"""Generated images as files."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.pictures import is_writing


class SampleWriter(Callback):
    """Writes `<run folder>/samples/000000.png`, `000001.png` ... when `predict` runs: an image a file, by its index.

    Each process writes its own. The folder appears when all images are there, and takes the place of an older one as a
    whole, so that samples of two checkpoints never mix; what else lies in it is kept. Reads "image", uint8
    (N, C, H, W) with one or three channels, and "index" (N,) from what `predict_step` returns.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if is_writing(trainer):
            _restore(_folder(trainer))
            shutil.rmtree(_partial(trainer), ignore_errors=True)
            _partial(trainer).mkdir(parents=True)
        trainer.strategy.barrier("folder of samples")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        pixels = outputs["image"].cpu().permute(0, 2, 3, 1).numpy()
        for index, image in zip(outputs["index"].tolist(), pixels, strict=True):
            _write(_partial(trainer) / f"{index:06d}.png", image)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if hasattr(os, "sync"):
            os.sync()  # once for all files: to force each one to the disk takes a hundred times as long as to write it
        trainer.strategy.barrier("samples")
        if is_writing(trainer):
            _replace(_folder(trainer), _partial(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.predicting and is_writing(trainer):
            shutil.rmtree(_partial(trainer), ignore_errors=True)


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "samples"


def _partial(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / ".samples.partial"


def _write(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(png, format="png")
    try:
        path.write_bytes(png.getbuffer())
    except OSError as error:
        raise OSError(
            f"could not write {path}: {error.strerror or error}. The samples before are untouched: make room, then run "
            "the same command again."
        ) from error


def _replace(folder: Path, by: Path) -> None:
    """Put `by` in the place of `folder`; what is no sample moves over. `_restore` makes up for a kill in between."""
    old = _old(folder)
    if folder.is_dir():
        folder.rename(old)
    by.rename(folder)
    _restore(folder)


def _restore(folder: Path) -> None:
    """Finish a replacement: nothing is removed that is not a sample, nor samples that nothing has replaced."""
    old = _old(folder)
    if not old.is_dir():
        return
    if not folder.is_dir():
        old.rename(folder)
        return
    for path in old.iterdir():
        if not re.fullmatch(r"\d{6,}\.png", path.name):
            path.rename(folder / path.name)
    shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(".samples.old")
