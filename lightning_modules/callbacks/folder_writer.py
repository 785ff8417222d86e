"""Predictions as a folder of files, which appears as a whole."""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.pictures.saving import is_writing


class FolderWriter(Callback, ABC):
    """Writes `<run folder>/<folder>` when `predict` runs; each process writes files of its own.

    The folder appears when all files are there, and takes the place of an older one as a whole, so that predictions of
    two checkpoints never mix. What else lies in the older one, in sub-folders too, is kept.
    """

    folder: ClassVar[str]
    """Its name, which is also what messages call the files."""
    pattern: ClassVar[str]
    """Regular expression of the names of the files that are written here: older ones are replaced."""

    @abstractmethod
    def files(self, outputs: Any) -> Iterator[tuple[str, bytes]]:
        """Names, relative to the folder, and contents of the files for what `predict_step` returned."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if is_writing(trainer):
            self._restore(trainer)
            shutil.rmtree(self._partial(trainer), ignore_errors=True)
            self._partial(trainer).mkdir(parents=True)
        trainer.strategy.barrier(f"folder of {self.folder}")

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
        for name, content in self.files(outputs):
            self._write(self._partial(trainer), name, content)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if hasattr(os, "sync"):
            os.sync()  # once for all files: to force each one to the disk takes a hundred times as long as to write it
        trainer.strategy.barrier(self.folder)
        if is_writing(trainer):
            self._replace(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.predicting and is_writing(trainer):
            shutil.rmtree(self._partial(trainer), ignore_errors=True)

    def _path(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / self.folder

    def _partial(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / f".{self.folder}.partial"

    def _old(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / f".{self.folder}.old"

    def _write(self, folder: Path, name: str, content: bytes) -> None:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
            path.write_bytes(content)
        except FileExistsError as error:
            raise FileExistsError(
                f"{self.folder}/{name} would be written twice, for two inputs whose paths differ in no more than the "
                f"ending: rename one, or predict them one after the other. The {self.folder} before are untouched."
            ) from error
        except OSError as error:
            raise OSError(
                f"could not write {path}: {error.strerror or error}. The {self.folder} before are untouched: make "
                "room, then run the same command again."
            ) from error

    def _replace(self, trainer: Trainer) -> None:
        """Put the new folder in the place of the older one. `_restore` makes up for a kill in between."""
        path = self._path(trainer)
        if path.is_dir():
            path.rename(self._old(trainer))
        self._partial(trainer).rename(path)
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        """Finish a replacement: nothing is removed that was not written here, nor what nothing has replaced."""
        path, old = self._path(trainer), self._old(trainer)
        if not old.is_dir():
            return
        if not path.is_dir():
            old.rename(path)
            return
        for file in old.rglob("*"):
            if not file.is_dir() and not re.fullmatch(self.pattern, file.name):
                kept = path / file.relative_to(old)
                kept.parent.mkdir(parents=True, exist_ok=True)
                file.rename(kept)
        shutil.rmtree(old, ignore_errors=True)
