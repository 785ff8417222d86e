"""The confusion matrix, as a picture and as numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.files import write_whole
from lightning_modules.labels import class_names
from lightning_modules.pictures.saving import BLUE, SEQUENTIAL, drawing, is_writing, media_folder, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Up to this many classes the cells carry numbers, and the axes names.
MAX_NUMBERED = 20
MAX_NAMED = 60
_STAGES = {"val": "Validation", "test": "Test"}


class ConfusionMatrix(Callback):
    """Draws which classes a task takes for which, with the accuracy of each class.

    After testing, after the `validate` command, and for the last validation when a fit ends. Writes
    `confusion_<stage>.png`, and `confusion_<stage>.csv` with the counts and the accuracies, a row a true class.
    """

    def __init__(self) -> None:
        self.last_validation: Tensor | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            _save(trainer, "val", _confusion(pl_module, "val"))
        else:
            self.last_validation = _confusion(pl_module, "val")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_validation = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last_validation is not None:
            _save(trainer, "val", self.last_validation)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _save(trainer, "test", _confusion(pl_module, "test"))


def _confusion(task: Any, stage: str) -> Tensor:
    return task.confusion[stage]


def _save(trainer: Trainer, stage: str, counts: Tensor) -> None:
    if not is_writing(trainer):
        return
    names = class_names(trainer, len(counts))
    matrix = counts.numpy()
    with drawing(f"confusion_{stage}"):
        write_whole(media_folder(trainer) / f"confusion_{stage}.csv", _as_csv(matrix, names).encode())
        save_picture(trainer, f"confusion_{stage}", draw_confusion(matrix, names, _STAGES[stage]))


def draw_confusion(counts: np.ndarray, names: Sequence[str], stage: str) -> Figure:
    """A heat map of `counts` (C, C), rows the truth, in percent of the row; beside it the accuracy of each class."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes, totals = len(counts), counts.sum(1)
    shares = 100 * counts / totals.clip(min=1)[:, None]
    side = min(max(0.34 * classes, 1.6), 8.0)
    figure = Figure(figsize=(side + 2.6, side + 1.2))
    cells, bars = figure.subplots(1, 2, sharey=True, width_ratios=(side, 0.9))
    title = f"{stage}: {100 * counts.trace() / counts.sum():.2f} % of {counts.sum():,} right"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")

    # Mistakes are rare: with the root of the share as its strength, a colour still shows them.
    cells.imshow(shares, cmap=SEQUENTIAL, norm=PowerNorm(0.5, 0, 100))
    cells.set(xlabel="predicted class", ylabel="true class")
    if classes <= MAX_NAMED:
        cells.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor")
        cells.set_yticks(range(classes), names)
    if classes <= MAX_NUMBERED:
        for (row, column), share in np.ndenumerate(shares.round().astype(int)):
            if share > 0:
                colour = "white" if share > 40 else "black"
                cells.text(column, row, str(share), color=colour, ha="center", va="center", fontsize=6.5)
    cells.set_title("share of the true class (%)", loc="left")
    for axes in (cells, bars):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    right = shares.diagonal()
    bars.barh(range(classes), right, height=0.7, color=BLUE)
    bars.set(xlim=(0, 100), xticks=[])
    bars.set_title("accuracy (%)", loc="left")
    bars.tick_params(labelleft=False)
    if classes <= MAX_NUMBERED:
        for row, (share, total) in enumerate(zip(right, totals, strict=True)):
            bars.text(103, row, f"{share:.1f}" if total else "none", va="center", fontsize=6.5)
    return figure


def _as_csv(counts: np.ndarray, names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *names, "accuracy"])
    for i, (name, row) in enumerate(zip(names, counts.tolist(), strict=True)):
        accuracy = f"{row[i] / sum(row):.6f}" if sum(row) else ""
        writer.writerow([name, *row, accuracy])
    return text.getvalue()
