"""What is measured of each subject, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.files import write_whole
from lightning_modules.metrics.subjects import as_csv
from lightning_modules.pictures.saving import is_writing


class SubjectTable(Callback):
    """Writes `<run folder>/subjects_<stage>.csv` after each validation and test of a task with `subject_measures`.

    The table is that of `lightning_modules.metrics.subjects.as_csv`, in the order of the data; each validation of a fit
    replaces that of the one before.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, task: Any, stage: str) -> None:
        subjects = task.subjects.get(stage)
        if subjects and is_writing(trainer):
            write_whole(Path(trainer.default_root_dir) / f"subjects_{stage}.csv", as_csv(subjects).encode())
