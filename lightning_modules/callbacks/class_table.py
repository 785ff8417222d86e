"""How well each class is segmented, as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_modules.files import write_whole
from lightning_modules.labels import class_names
from lightning_modules.metrics.confusion import recall, segmentation_measures
from lightning_modules.pictures.saving import is_writing

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("class", "IoU", "Dice", "accuracy", "pixels of truth")


@dataclass(frozen=True)
class ClassRow:
    """What is measured of a class; a measure that is undefined, or of an ignored class, is NaN.

    Attributes:
        name: The class.
        measures: Intersection over union, Dice's coefficient, and the share of its pixels that are right.
        pixels: How many pixels it has in truth.
    """

    name: str
    measures: tuple[float, float, float]
    pixels: int


class ClassTable(Callback):
    """Prints and writes what a `SegmentationTask` reaches in each class, after testing and after `validate`.

    Writes `<run folder>/per_class_<stage>.csv`: `HEADER`, then a row a class, fractions with six digits, empty where
    they are undefined. The table in the terminal ends with the means over classes, which are the task's metrics.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._show(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module, "test")

    def _show(self, trainer: Trainer, task: Any, stage: str) -> None:
        if not is_writing(trainer):
            return
        from rich.console import Console

        confusion, ignored = task.confusion[stage], task.hparams["ignore_index"]
        rows = class_rows(confusion, class_names(trainer, len(confusion)), ignored)
        write_whole(Path(trainer.default_root_dir) / f"per_class_{stage}.csv", as_csv(rows).encode())
        means, _ = segmentation_measures(confusion, ignored, task.hparams["absent"])
        of_classes = [float(means[name]) for name in ("miou", "dice", "class_accuracy")]
        Console().print(as_table(rows, of_classes, stage))


def class_rows(confusion: Tensor, names: Sequence[str], ignore_index: int) -> list[ClassRow]:
    """A row for each class of a confusion matrix int64 (C, C), rows of which are the truth."""
    _, by_class = segmentation_measures(confusion, ignore_index)
    accuracy = recall(confusion).where(torch.arange(len(confusion)) != ignore_index, torch.nan)
    columns = zip(by_class["iou"].tolist(), by_class["dice"].tolist(), accuracy.tolist(), strict=True)
    return [ClassRow(*row) for row in zip(names, columns, confusion.sum(1).tolist(), strict=True)]


def as_csv(rows: Sequence[ClassRow]) -> str:
    """The rows beneath `HEADER`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for row in rows:
        writer.writerow([row.name, *("" if value != value else f"{value:.6f}" for value in row.measures), row.pixels])
    return text.getvalue()


def as_table(rows: Sequence[ClassRow], means: Sequence[float], stage: str) -> Table:
    """The rows for the terminal, in percent, above their `means`."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{stage}, each class (%)", title_justify="left", show_footer=True)
    pixels = sum(row.pixels for row in rows)
    for heading, footer in zip(HEADER, ("mean", *map(_percent, means), f"{pixels:,}"), strict=True):
        table.add_column(heading, footer, justify="left" if heading == HEADER[0] else "right")
    for row in rows:
        table.add_row(escape(row.name), *map(_percent, row.measures), f"{row.pixels:,}")
    return table


def _percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.2f}"
