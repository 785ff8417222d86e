"""Grids of experiments: a table of a paper, and its figures, as a YAML file."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from models.names import check_name

LAST = "last"
"""In place of a number of epochs: the end of the training."""


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
        """What stands behind `convsuite fit` or `fit_test` for this cell."""
        configs = [argument for path in self.configs for argument in ("--config", str(path))]
        overrides = [f"--{key}={argument(value)}" for key, value in self.overrides]
        return [*configs, f"--seed_everything={self.seed}", *overrides]


def argument(value: Any) -> str:
    """A value of YAML as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Axis:
    """A row or a column of the table: its label, and what it adds to the base configuration."""

    label: str
    config: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)


RUN_MEASURES = ("parameters", "steps", "minutes")
"""What the results know of every run, whatever it logs: may stand among the measures of a grid."""


@dataclass(frozen=True)
class Measure:
    """A column of a table of measures.

    Keys: `label`; `scale`, what the value is multiplied by; `digits`, the decimals that are shown. Scale and digits are
    by default those of the grid, but the scale of `RUN_MEASURES` is 1.
    """

    label: str
    scale: float
    digits: int


@dataclass(frozen=True)
class CurveMetric:
    """A metric that is kept for each epoch.

    Keys: `label`; `log`, whether figures show it on a logarithmic axis; `table`, whether the table of stability shows
    the median of its last values.
    """

    label: str
    log: bool = False
    table: bool = False


@dataclass(frozen=True)
class CurveSettings:
    """What a grid keeps of the course of its runs: with it, the table is one of stability.

    Keys: `metrics`, columns of metrics.csv, among them the grid's `metric`, each with the keys of `CurveMetric`;
    `file`, the CSV file, optional and relative to the working directory.
    """

    metrics: dict[str, CurveMetric]
    file: str | None = None


FIGURE_KINDS = {
    "curves": {"metrics", "rows", "columns"},
    "samples": {"epochs", "crop", "rows", "columns"},
    "curves_with_samples": {"metrics", "epochs", "crop", "rows", "columns"},
    "overlays": {"rows", "columns"},
}
"""Kind of a figure to the keys that it takes; see `lightning_modules.grids.figures`."""


@dataclass(frozen=True)
class FigureSettings:
    """A figure of a grid.

    Keys: `kind`, one of `FIGURE_KINDS`; `rows` and `columns`, all by default; `metrics`, the grid's own by default;
    `epochs` of samples: numbers of epochs trained, or `last`, the default; `crop`: so many rows and columns of
    images of each picture of samples, all by default.
    """

    kind: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    epochs: tuple[int | str, ...] = (LAST,)
    crop: int | None = None


@dataclass(frozen=True)
class Grid:
    """The definition of a table and of figures, read from YAML.

    Keys:
        title: Stands above the table.
        config: The base configuration, named from the folder `configs`.
        command: What runs a cell, `fit_test` (the default) or `fit`.
        metric: A column of metrics.csv; its last value is the cell's.
        better: `higher` (the default) or `lower`.
        scale: What the metric is multiplied by where it is shown; 100 by default: a fraction becomes percent.
        digits: Decimals that are shown, 1 by default.
        rows, columns: Name to `label`, `config`, `overrides`, and for rows `seeds` ([0] by default).
        seeds: Row to column to seeds, in place of the row's.
        published: Row to column to the published value, as it is shown.
        orders: Lists of columns that the paper ranks from low to high.
        measures: Columns of metrics.csv, `metric` among them, and any of `RUN_MEASURES`, each with its label or with
            the keys of `Measure`: the table then has a line for each cell and a column for each measure.
        reference: The column from which the measures of the others are subtracted, seed by seed.
        curves: What is kept of every epoch, see `CurveSettings`.
        figures: Name to `FigureSettings`.
        images: The folder of the figures.
        results: The CSV file of finished cells.
        page: A Markdown file with a marked place for the table.

    All but `title`, `config`, `metric`, `rows` and `columns` may be left out. Files and folders are relative to the
    working directory; by default they lie in `runs/<name of the grid>`.
    """

    path: Path
    title: str
    config: str
    metric: str
    rows: dict[str, Axis]
    columns: dict[str, Axis]
    command: str = "fit_test"
    better: str = "higher"
    scale: float = 100
    digits: int = 1
    seeds: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)
    orders: tuple[tuple[str, ...], ...] = ()
    measures: dict[str, Measure] = field(default_factory=dict)
    reference: str | None = None
    curves: CurveSettings | None = None
    figures: dict[str, FigureSettings] = field(default_factory=dict)
    images: str | None = None
    results: str | None = None
    page: str | None = None

    @classmethod
    def read(cls, path: Path) -> Grid:
        """Read a grid.

        Raises:
            ValueError: A missing or unknown key, or a value that it cannot have; the message names file and key.
        """
        try:
            return _read(path)
        except (TypeError, AttributeError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{path} is not a grid: {error}") from error

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def folder(self) -> Path:
        """Where the runs lie, and what has no place of its own."""
        return Path("runs") / self.name

    def run_folder(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}-{cell.settings}"

    def cells(
        self,
        rows: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[Cell]:
        """The cells of the named rows, columns and seeds (all by default), row by row and seed by seed."""
        _check_names("row", rows or (), self.rows)
        _check_names("column", columns or (), self.columns)
        for row in rows or self.rows:
            own = {column: self.seeds.get(row, {}).get(column, self.rows[row].seeds) for column in self.columns}
            chosen = {column: own[column] if seeds is None else tuple(seeds) for column in columns or self.columns}
            for seed in dict.fromkeys(itertools.chain.from_iterable(chosen.values())):
                yield from (self._cell(row, column, seed) for column in chosen if seed in chosen[column])

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


Settings = TypeVar("Settings")


def _read(path: Path) -> Grid:
    content = dict(_mapping("the grid", yaml.safe_load(path.read_text())))
    _check_names("key of the grid:", content, set(Grid.__dataclass_fields__) - {"path"})
    for axis in {"rows", "columns"} & set(content):
        content[axis] = {name: _axis(axis, name, value) for name, value in _items(axis, content[axis])}
    for key, read in (("seeds", _seeds), ("published", _number)):
        content[key] = {
            row: {column: read(f"{key}.{row}.{column}", value) for column, value in _items(f"{key}.{row}", of_row)}
            for row, of_row in _items(key, content.get(key, {}))
        }
    content["orders"] = tuple(_names(order) for order in content.get("orders", ()))
    shown = {"scale": content.get("scale", Grid.scale), "digits": content.get("digits", Grid.digits)}
    measures = _items("measures", content.get("measures", {}))
    content["measures"] = {name: _measure(name, value, shown) for name, value in measures}
    if "curves" in content:
        content["curves"] = _curves(content["curves"])
    content["figures"] = {name: _figure(name, value) for name, value in _items("figures", content.get("figures", {}))}
    grid = _made(Grid, "the grid", {**content, "path": path})
    _check(grid)
    return grid


def _axis(kind: str, name: str, content: Any) -> Axis:
    content = dict(_mapping(f"{kind}.{name}", content))
    if kind == "columns" and "seeds" in content:
        raise ValueError(f"columns.{name} has seeds, which belong to a row, or to `seeds: {{row: {{column: [...]}}}}`")
    if "seeds" in content:
        content["seeds"] = _seeds(f"rows.{name}.seeds", content["seeds"])
    return _made(Axis, f"{kind}.{name}", content)


def _measure(name: str, content: Any, of_grid: Mapping[str, Any]) -> Measure:
    """A measure from its label, or from keys; what they leave out is as `of_grid`."""
    said = content if isinstance(content, Mapping) else {"label": str(content)}
    default = {**of_grid, "scale": 1} if name in RUN_MEASURES else of_grid
    return _made(Measure, f"measures.{name}", {**default, **said})


def _curves(content: Any) -> CurveSettings:
    content = dict(_mapping("curves", content))
    metrics = _items("curves.metrics", content.get("metrics", {}))
    content["metrics"] = {name: _made(CurveMetric, f"curves.metrics.{name}", value) for name, value in metrics}
    return _made(CurveSettings, "curves", content)


def _figure(name: str, content: Any) -> FigureSettings:
    content = dict(_mapping(f"figures.{name}", content))
    if "kind" in content:
        check_name(f"kind of figures.{name}:", content["kind"], FIGURE_KINDS)
        _check_names(f"key of figures.{name}:", content, {"kind", *FIGURE_KINDS[content["kind"]]})
    for key in {"rows", "columns", "metrics"} & set(content):
        content[key] = _names(content[key])
    for epoch in content.get("epochs", ()):
        if epoch != LAST and not (isinstance(epoch, int) and epoch > 0):
            raise ValueError(f"figures.{name}.epochs are numbers from 1, or '{LAST}', not {epoch!r}")
    if "epochs" in content:
        content["epochs"] = tuple(content["epochs"])
    if not isinstance(crop := content.get("crop", 1), int) or crop < 1:
        raise ValueError(f"figures.{name}.crop must be 1 or more, got {crop!r}")
    return _made(FigureSettings, f"figures.{name}", content)


def _check(grid: Grid) -> None:
    """Raise `ValueError` where the parts of a grid do not fit together."""
    check_name("command", grid.command, ("fit", "fit_test"))
    check_name("value of better:", grid.better, ("higher", "lower"))
    _check_shown("", grid)
    for name, measure in grid.measures.items():
        _check_shown(f"measures.{name}.", measure)
    for key, table in (("seeds", grid.seeds), ("published", grid.published)):
        _check_names(f"row in {key}:", table, grid.rows)
        for row, of_row in table.items():
            _check_names(f"column in {key}.{row}:", of_row, grid.columns)
    for order in grid.orders:
        _check_names("column in orders:", order, grid.columns)
    if grid.measures and grid.metric not in grid.measures:
        raise ValueError(f"measures lack {grid.metric!r}, the metric of the grid")
    if grid.measures and grid.measures[grid.metric].scale != grid.scale:
        raise ValueError(f"measures.{grid.metric} is the metric of the grid: give its scale as that of the grid")
    if grid.measures and grid.curves is not None:
        raise ValueError("a grid shows either measures or the stability of its curves, not both")
    if grid.reference is not None:
        _check_names("column in reference:", [grid.reference], grid.columns)
        if not grid.measures:
            raise ValueError("reference is for measures, and the grid has none")
    if grid.measures and grid.orders:
        raise ValueError("orders rank the values of a table without measures: leave one of the two out")
    if grid.curves is not None and grid.metric not in grid.curves.metrics:
        raise ValueError(f"curves.metrics lacks {grid.metric!r}, the metric of the grid")
    for name, figure in grid.figures.items():
        _check_names(f"row in figures.{name}:", figure.rows, grid.rows)
        _check_names(f"column in figures.{name}:", figure.columns, grid.columns)
        if "metrics" not in FIGURE_KINDS[figure.kind]:
            continue
        if grid.curves is None:
            raise ValueError(f"figures.{name} shows curves, but the grid has no key 'curves' that says what is kept")
        _check_names(f"metric in figures.{name}:", figure.metrics, grid.curves.metrics)


def _check_shown(where: str, shown: Grid | Measure) -> None:
    if _number(f"{where}scale", shown.scale) <= 0:
        raise ValueError(f"{where}scale must be above 0, got {shown.scale}")
    if not isinstance(shown.digits, int) or shown.digits < 0:
        raise ValueError(f"{where}digits must be 0 or more, got {shown.digits!r}")


def _made(kind: type[Settings], where: str, content: Any) -> Settings:
    """An instance of a dataclass from keys and values of YAML; one that is unknown or missing is an error."""
    content = _mapping(where, content)
    keys = dataclasses.fields(kind)  # type: ignore[arg-type]
    _check_names(f"key of {where}:", content, {key.name for key in keys})
    required = [key.name for key in keys if key.default is dataclasses.MISSING is key.default_factory]
    missing = [name for name in required if name not in content]
    if missing:
        raise ValueError(f"{where} lacks {' and '.join(map(repr, missing))}")
    return kind(**content)


def _mapping(where: str, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be keys with values, got {content!r}")
    return content


def _items(where: str, content: Any) -> Iterator[tuple[str, Any]]:
    """Names, which YAML may take for numbers, with their values."""
    return ((str(name), value) for name, value in _mapping(where, content).items())


def _seeds(where: str, content: Any) -> tuple[int, ...]:
    if not isinstance(content, list) or not all(isinstance(seed, int) for seed in content):
        raise ValueError(f"{where} must be a list of whole numbers, got {content!r}")
    return tuple(content)


def _number(where: str, content: Any) -> float:
    if not isinstance(content, int | float):
        raise ValueError(f"{where} must be a number, got {content!r}")
    return content


def _names(content: Iterable[Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in content)


def _check_names(kind: str, names: Iterable[str], valid: Iterable[str]) -> None:
    for name in names:
        check_name(kind, name, valid)
