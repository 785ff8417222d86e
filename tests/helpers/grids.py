"""Grids of experiments and their finished cells, without any experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_modules.grids.grid import Cell, Grid
from lightning_modules.grids.results import COLUMNS, Curves, Results

VALUES = """
title: A table
config: base.yaml
metric: test/accuracy
rows:
  100: {label: few, overrides: {data.train_size: 100}, seeds: [0, 1]}
  1000: {label: many, overrides: {data.train_size: 1000}}
columns:
  plain: {label: Plain}
  wide: {label: Wide, config: wide.yaml}
published:
  100: {plain: 70.0, wide: 90.0}
orders:
  - [plain, wide]
"""

MEASURES = """
title: Measures
config: base.yaml
metric: test/accuracy
rows:
  one: {label: One}
columns:
  plain: {label: Plain}
  wide: {label: Wide, config: wide.yaml}
seeds:
  one: {plain: [0, 1], wide: [0, 1]}
published:
  one: {plain: 90.0}
measures:
  test/accuracy: accuracy
  test/iou: IoU
reference: plain
"""

CURVES = """
title: Curves
config: base.yaml
command: fit
metric: val/fid
better: lower
scale: 1
rows:
  one: {label: One}
  two: {label: Two, overrides: {model.loss: two}}
columns:
  plain: {label: Plain}
  wide: {label: Wide, config: wide.yaml}
seeds:
  one: {wide: [0, 1]}
orders:
  - [wide, plain]
curves:
  metrics:
    val/fid: {label: FID, log: true}
    val/coverage: {label: coverage, table: true}
figures:
  curves: {kind: curves}
  both: {kind: curves, rows: [one], metrics: [val/fid, val/coverage]}
  samples: {kind: samples, columns: [plain], epochs: [1, last], crop: 2}
  together: {kind: curves_with_samples, rows: [one], epochs: [1, last]}
  overlays: {kind: overlays}
"""


def write_grid(folder: Path, content: str) -> Grid:
    """A grid `configs/grids/table.yaml` in `folder`, with the configurations that it names."""
    (folder / "configs/grids").mkdir(parents=True)
    (folder / "configs/base.yaml").write_text("trainer: {max_epochs: 2}\n")
    (folder / "configs/wide.yaml").write_text("model: {init_args: {conv: standard}}\n")
    path = folder / "configs/grids/table.yaml"
    path.write_text(content)
    return Grid.read(path)


def result_row(cell: Cell, value: float) -> dict[str, object]:
    """A row of the results file."""
    return {
        **dict.fromkeys(COLUMNS, "x"),
        "row": cell.row,
        "column": cell.column,
        "seed": cell.seed,
        "settings": cell.settings,
        "value": value,
        "parameters": 1234,
    }


def finish(cell: Cell, results: Results, curves: Curves, fid: Sequence[float], **others: Sequence[float]) -> None:
    """Make `cell` a finished one, with `val/fid` and other metrics of validation for epoch after epoch."""
    metrics = {"val/fid": fid, **{f"val/{name}": values for name, values in others.items()}}
    epochs = [dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)]
    curves.add(cell, [{"epoch": epoch, **values} for epoch, values in enumerate(epochs, start=1)])
    results.add(result_row(cell, fid[-1]))


def write_samples(run_folder: Path, epochs: Sequence[int], size: int = 64, side: int = 3) -> None:
    """Pictures of side x side samples, two white pixels apart, whose grey is their place."""
    folder = run_folder / "media" / "samples"
    folder.mkdir(parents=True)
    period = size + 2
    picture = np.full((side * period - 2, side * period - 2, 3), 255, np.uint8)
    for row, column in np.ndindex(side, side):
        top, left = row * period, column * period
        picture[top : top + size, left : left + size] = 10 * row + column
    for epoch in epochs:
        Image.fromarray(picture).save(folder / f"epoch_{epoch:04d}.png")


def write_overlays(run_folder: Path, size: tuple[int, int], grey: int) -> None:
    """A picture of a test, height times width, of one grey."""
    (run_folder / "media").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(run_folder / "media" / "overlays_test.png")
