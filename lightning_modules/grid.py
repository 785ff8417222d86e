"""Grids of experiments: a table of a paper as a YAML file, its finished cells as rows of a CSV file."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.files import written_whole
from models.names import check_name


@dataclass(frozen=True)
class Cell:
    """One experiment of a grid: a row, a column, a seed, and the command-line arguments that they stand for."""

    row: str
    column: str
    seed: int
    configs: tuple[Path, ...]
    overrides: tuple[tuple[str, Any], ...]

    @property
    def settings(self) -> str:
        """Fingerprint of what the configuration files and overrides say, whatever their comments and layout."""
        said = [yaml.safe_load(path.read_text()) for path in self.configs] + [dict(self.overrides)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        return f"{self.row}-{self.column}-seed{self.seed}"

    def arguments(self) -> list[str]:
        """Arguments of `convsuite fit_test` for this cell."""
        configs = [argument for path in self.configs for argument in ("--config", str(path))]
        return [*configs, f"--seed_everything={self.seed}", *(f"--{key}={value}" for key, value in self.overrides)]


@dataclass(frozen=True)
class Axis:
    """A row or a column of the table: its label, and what it adds to the base configuration."""

    label: str
    config: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Grid:
    """The definition of a table, read from YAML.

    Keys: `title`; `config`, the base configuration; `metric`, a column of metrics.csv, a fraction; `rows` and
    `columns`, name to `label`, `config`, `overrides`, and for rows `seeds`; `published`, row to column to percent;
    `orders`, lists of columns that the paper ranks from low to high; `results`, the CSV file, and `page`, a Markdown
    file with a marked place for the table, both optional and relative to the working directory.
    """

    path: Path
    title: str
    config: str
    metric: str
    rows: dict[str, Axis]
    columns: dict[str, Axis]
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    orders: tuple[tuple[str, ...], ...] = ()
    results: str | None = None
    page: str | None = None

    @classmethod
    def read(cls, path: Path) -> Grid:
        """Read a grid.

        Raises:
            ValueError: A missing or unknown key; the message names the file.
        """
        content = yaml.safe_load(path.read_text())
        try:
            for key in content:
                check_name("key", key, set(cls.__dataclass_fields__) - {"path"})
            for axis in ("rows", "columns"):
                content[axis] = {str(name): _axis(value) for name, value in content[axis].items()}
            published = content.pop("published", {})
            orders = content.pop("orders", [])
            return cls(
                path,
                published={str(row): values for row, values in published.items()},
                orders=tuple(tuple(order) for order in orders),
                **content,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a grid: {error}") from error

    @property
    def name(self) -> str:
        return self.path.stem

    def cells(
        self,
        rows: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[Cell]:
        """The cells of the named rows, columns and seeds (all by default), row by row and seed by seed."""
        for kind, names, valid in (("row", rows, self.rows), ("column", columns, self.columns)):
            for name in names or ():
                check_name(kind, name, valid)
        for row in rows or self.rows:
            chosen = self.rows[row].seeds if seeds is None else seeds
            for seed, column in itertools.product(chosen, columns or self.columns):
                yield self._cell(row, column, seed)

    def _cell(self, row: str, column: str, seed: int) -> Cell:
        axes = (self.rows[row], self.columns[column])
        names = [self.config, *(axis.config for axis in axes if axis.config)]
        overrides = {key: value for axis in axes for key, value in axis.overrides.items()}
        return Cell(row, column, seed, tuple(self._resolve(name) for name in names), tuple(overrides.items()))

    def _resolve(self, name: str) -> Path:
        """Configurations are named from the folder `configs`, in which grids have a folder of their own."""
        path = self.path.resolve().parent.parent / name
        if not path.is_file():
            raise ValueError(f"{self.path} names the configuration {name!r}, but there is no file {path}")
        return path


def _axis(content: dict[str, Any]) -> Axis:
    for key in content:
        check_name("key", key, Axis.__dataclass_fields__)
    return Axis(**{**content, "seeds": tuple(content.get("seeds", (0,)))})


COLUMNS = (
    "row",
    "column",
    "seed",
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


class Results:
    """The finished cells of a grid, one CSV row each; a cell of other settings than the row's counts as unfinished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def find(self, cell: Cell) -> dict[str, str] | None:
        """The row of `cell`, or None while it is not finished."""
        for row in self.rows:
            if _key(row) == (cell.row, cell.column, str(cell.seed)) and row["settings"] == cell.settings:
                return row
        return None

    def add(self, row: dict[str, Any]) -> None:
        """Add a finished cell, in place of an older one of other settings, and write the file whole."""
        row = {key: str(row[key]) for key in COLUMNS}
        self.rows = [other for other in self.rows if _key(other) != _key(row)] + [row]
        self.rows.sort(key=lambda r: (r["row"].zfill(12), r["column"], int(r["seed"])))
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        with written_whole(self.path) as file:
            file.write(text.getvalue().encode())


def _key(row: dict[str, str]) -> tuple[str, str, str]:
    return row["row"], row["column"], row["seed"]


@dataclass(frozen=True)
class Summary:
    """The finished seeds of one row and column: values in percent."""

    values: tuple[float, ...]
    parameters: int

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ± {statistics.stdev(self.values):.1f}"


def summarise(grid: Grid, results: Results) -> dict[tuple[str, str], Summary]:
    """Mean and spread over all finished seeds of today's settings, by (row, column)."""
    summaries = {}
    for row, column in itertools.product(grid.rows, grid.columns):
        seeds = {int(r["seed"]) for r in results.rows if (r["row"], r["column"]) == (row, column)}
        found = [results.find(cell) for cell in grid.cells([row], [column], sorted(seeds))]
        finished = [f for f in found if f]
        if finished:
            values = tuple(100 * float(f["value"]) for f in finished)
            summaries[row, column] = Summary(values, int(finished[0]["parameters"]))
    return summaries
