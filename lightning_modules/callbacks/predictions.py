"""Predictions as a table."""

from __future__ import annotations

import csv
import io
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.files import written_whole
from lightning_modules.labels import class_names
from lightning_modules.pictures.saving import is_writing
from lightning_modules.processes import gather_on_first


class PredictionWriter(Callback):
    """Writes `<run folder>/predictions.csv` when `predict` ends: the file, the class, a probability for each class.

    Rows come in the order of the data, whatever the number of processes: process r of w holds samples r, r + w, ...
    The table appears once it is complete; an older one stays until then. Reads "file" (N names) and "probabilities"
    (N, C) from what `predict_step` returns.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.probabilities: list[Tensor] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.files, self.probabilities = [], []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.files += outputs["file"]
        self.probabilities.append(outputs["probabilities"].float().cpu())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        probabilities = torch.cat(self.probabilities) if self.probabilities else torch.empty(0, 0)
        parts = gather_on_first((self.files, probabilities))
        self.files, self.probabilities = [], []
        if not is_writing(trainer):
            return
        rows = [zip(files, table.tolist(), strict=True) for files, table in parts]
        names = class_names(trainer, max(table.shape[1] for _, table in parts))
        in_order = (row for row in chain.from_iterable(zip_longest(*rows)) if row is not None)
        with (
            written_whole(Path(trainer.default_root_dir) / "predictions.csv") as file,
            io.TextIOWrapper(file, "utf-8", newline="") as text,
        ):
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["file", "class", *names])
            for name, values in in_order:
                best = max(range(len(values)), key=values.__getitem__)
                writer.writerow([name, names[best], *(f"{value:.6g}" for value in values)])
