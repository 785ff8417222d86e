"""The finished cells of a grid: what came out of each, and its course, in two tracked CSV files."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_modules.files import write_whole
from lightning_modules.grids.grid import Cell, Grid

Row = dict[str, str]
KEY = ("row", "column", "seed")
COLUMNS = (
    *KEY,
    "value",
    "parameters",
    "steps",
    "minutes",
    "precision",
    "settings",
    "overrides",
    "torch",
    "lightning",
    "commit",
)
CURVE_COLUMNS = (*KEY, "settings", "epoch")


class Results:
    """The finished cells of a grid, one CSV row each; a cell of other settings than the row's counts as unfinished.

    Args:
        path: The CSV file.
        measures: Metrics that have a column of their own. Those that the grid no longer names stay in the file.

    Raises:
        ValueError: The file is damaged; the message names the line.
    """

    def __init__(self, path: Path, measures: Iterable[str] = ()) -> None:
        self.path = path
        self.measures = tuple(measures)
        self.rows = _read(path, COLUMNS)

    def find(self, cell: Cell) -> Row | None:
        """The row of `cell`, or None while it is not finished, or lacks a measure."""
        found = next(iter(_of_cell(self.rows, cell)), None)
        return found if found and all(name in found for name in self.measures) else None

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a finished cell, in place of an older one of other settings, and write the file whole."""
        new = {key: str(row[key]) for key in (*COLUMNS, *self.measures)}
        # Read anew: another process may have added cells of its own.
        self.rows = [*(other for other in _read(self.path, COLUMNS) if _key(other) != _key(new)), new]
        self.rows.sort(key=_order)
        _write(self.path, dict.fromkeys([*COLUMNS, *self.measures, *itertools.chain(*self.rows)]), self.rows)


class Curves:
    """The course of the finished cells: one CSV row for a cell and an epoch, a column for a metric.

    `epoch` is the number of epochs trained, from 1. What was not measured is empty. Metrics that the grid no longer
    names stay in the file.

    Raises:
        ValueError: The file is damaged; the message names the line.
    """

    def __init__(self, path: Path, metrics: Iterable[str]) -> None:
        self.path = path
        self.metrics = tuple(metrics)
        self.rows = _read(path, CURVE_COLUMNS)

    def has(self, cell: Cell) -> bool:
        return bool(_of_cell(self.rows, cell))

    def course(self, cell: Cell, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Epochs (T,) and values (T,) of `metric`; nothing where it was not measured."""
        measured = [(int(row["epoch"]), float(row[metric])) for row in _of_cell(self.rows, cell) if row.get(metric)]
        epochs, values = zip(*measured, strict=True) if measured else ((), ())
        return np.array(epochs, dtype=int), np.array(values, dtype=float)

    def add(self, cell: Cell, epochs: Iterable[Mapping[str, Any]]) -> None:
        """Add a finished cell, `epoch` and metrics of each epoch, in place of an older one; write the file whole."""
        key = {"row": cell.row, "column": cell.column, "seed": str(cell.seed), "settings": cell.settings}
        new = [{**key, **{name: str(value) for name, value in epoch.items()}} for epoch in epochs]
        self.rows = [*(row for row in _read(self.path, CURVE_COLUMNS) if _key(row) != _key(key)), *new]
        self.rows.sort(key=lambda row: (*_order(row), int(row["epoch"])))
        _write(self.path, dict.fromkeys([*CURVE_COLUMNS, *self.metrics, *itertools.chain(*self.rows)]), self.rows)


def _of_cell(rows: Iterable[Row], cell: Cell) -> list[Row]:
    found = [row for row in rows if _key(row) == (cell.row, cell.column, str(cell.seed))]
    return found if found and found[0]["settings"] == cell.settings else []


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def _order(row: Row) -> tuple[str, str, int]:
    return row["row"].zfill(12), row["column"], int(row["seed"])


def _read(path: Path, columns: Sequence[str]) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = []
        for row in reader:
            # Too few cells are None, too many stand under the key None.
            if None in row or None in row.values() or not row.keys() >= set(columns):
                raise ValueError(f"{path}, line {reader.line_num}: not a row of {', '.join(columns)}; restore the file")
            rows.append(row)
    return rows


def _write(path: Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def finished_cells(grid: Grid, results: Results, row: str, column: str) -> list[Cell]:
    """The finished cells of today's settings, seed by seed, whether or not the grid asks for these seeds."""
    seeds = {int(r["seed"]) for r in results.rows if (r["row"], r["column"]) == (row, column)}
    return [cell for cell in grid.cells([row], [column], sorted(seeds)) if results.find(cell)]


@dataclass(frozen=True)
class Summary:
    """The finished seeds of one row and column: values as the grid shows them."""

    values: tuple[float, ...]
    parameters: int
    digits: int = 1

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    def __str__(self) -> str:
        return spread(self.values, self.digits)


def spread(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """The mean, with the standard deviation where there are several values; `signed` shows a plus too."""
    mean = f"{statistics.mean(values):{'+' if signed else ''}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


Measures = dict[tuple[str, str], dict[int, dict[str, float]]]
"""(row, column) to seed to measure to its value, as the grid shows it."""


def measured(grid: Grid, results: Results) -> Measures:
    """The grid's measures of the finished cells of today's settings; those that a run did not log are left out."""
    values: Measures = {}
    for row, column in itertools.product(grid.rows, grid.columns):
        for cell in finished_cells(grid, results, row, column):
            found = results.find(cell) or {}
            shown = {name: measure.scale for name, measure in grid.measures.items() if found.get(name)}
            of_seed = {name: scale * float(found[name]) for name, scale in shown.items()}
            values.setdefault((row, column), {})[cell.seed] = of_seed
    return values


def summarise(grid: Grid, results: Results) -> dict[tuple[str, str], Summary]:
    """Mean and spread over all finished seeds of today's settings, by (row, column)."""
    summaries = {}
    for row, column in itertools.product(grid.rows, grid.columns):
        found = [results.find(cell) or {} for cell in finished_cells(grid, results, row, column)]
        if found:
            values = tuple(grid.scale * float(f["value"]) for f in found)
            summaries[row, column] = Summary(values, int(found[0]["parameters"]), grid.digits)
    return summaries
