"""Grids: their cells, the results file, the table, and what `convsuite reproduce` skips."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules.commands import reproduce
from lightning_modules.grid import COLUMNS, Grid, Results, summarise
from lightning_modules.tables import table_rows, verdicts, write_table

CONFIGS = Path(__file__).parents[2] / "configs"
GRID = """
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


@pytest.fixture
def grid(tmp_path) -> Grid:
    (tmp_path / "configs/grids").mkdir(parents=True)
    (tmp_path / "configs/base.yaml").write_text("trainer: {max_epochs: 2}\n")
    (tmp_path / "configs/wide.yaml").write_text("model: {init_args: {conv: standard}}\n")
    path = tmp_path / "configs/grids/table.yaml"
    path.write_text(GRID)
    return Grid.read(path)


def row(cell, value: float) -> dict[str, object]:
    return {
        **dict.fromkeys(COLUMNS, "x"),
        "row": cell.row,
        "column": cell.column,
        "seed": cell.seed,
        "settings": cell.settings,
        "value": value,
        "parameters": 1234,
    }


def test_cells_and_their_arguments(grid):
    names = [cell.name for cell in grid.cells()]
    assert names == [
        "100-plain-seed0",
        "100-wide-seed0",
        "100-plain-seed1",
        "100-wide-seed1",
        "1000-plain-seed0",
        "1000-wide-seed0",
    ]
    (cell,) = grid.cells(["100"], ["wide"], [7])
    base, wide = (str(grid.path.resolve().parents[1] / name) for name in ("base.yaml", "wide.yaml"))
    assert cell.arguments() == ["--config", base, "--config", wide, "--seed_everything=7", "--data.train_size=100"]


def test_settings_follow_content_not_comments(grid):
    (cell,) = grid.cells(["100"], ["plain"], [0])
    before = cell.settings
    cell.configs[0].write_text("# a comment\ntrainer:\n  max_epochs: 2\n")
    assert cell.settings == before
    cell.configs[0].write_text("trainer: {max_epochs: 3}\n")
    assert cell.settings != before


def test_finished_cells_are_found_until_their_settings_change(grid, tmp_path):
    results = Results(tmp_path / "out/results.csv")
    first, second, *_ = grid.cells()
    results.add(row(first, 0.5))
    results.add(row(second, 0.9))
    again = Results(tmp_path / "out/results.csv")
    assert again.find(first)["value"] == "0.5"
    first.configs[0].write_text("trainer: {max_epochs: 3}\n")
    assert again.find(first) is None
    again.add(row(first, 0.6))
    assert len(again.rows) == 2
    assert again.find(first)["value"] == "0.6"


def test_table_shows_mean_spread_published_and_what_fell_below(grid, tmp_path):
    results = Results(tmp_path / "results.csv")
    values = {"100-plain-seed0": 0.70, "100-plain-seed1": 0.72, "100-wide-seed0": 0.8, "1000-plain-seed0": 0.9}
    for cell in grid.cells():
        if cell.name in values:
            results.add(row(cell, values[cell.name]))
    lines = table_rows(grid, summarise(grid, results))
    assert lines == [
        ["", "Plain", "Wide"],
        ["parameters", "1,234", "1,234"],
        ["few", "71.0 ± 1.4 (2 seeds)", "80.0 (1 seed) ▼"],
        ["published", "70.0", "90.0"],
        ["many, 1 seed", "90.0", "–"],
    ]
    assert verdicts(grid, summarise(grid, results)) == ["few: Plain < Wide holds."]


def test_page_keeps_what_surrounds_the_table(grid, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: table -->\nold\n<!-- end table -->\nafter\n")
    write_table(grid, {}, page)
    write_table(grid, {}, page)
    text = page.read_text()
    assert text.startswith("before\n<!-- table: table -->\n|  | Plain | Wide |\n")
    assert text.endswith("<!-- end table -->\nafter\n")
    assert "old" not in text
    page.write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no place for the table"):
        write_table(grid, {}, page)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric:", "metrik:", "Did you mean 'metric'"),
        ("overrides: {data", "overides: {data", "Did you mean 'overrides'"),
        ("title: A table\n", "", "title"),
    ],
)
def test_a_wrong_grid_names_the_file_and_the_key(grid, old, new, message):
    grid.path.write_text(GRID.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"table.yaml is not a grid: .*{message}"):
        Grid.read(grid.path)


def test_unknown_rows_columns_and_grids(grid):
    with pytest.raises(ValueError, match="Did you mean 'wide'"):
        list(grid.cells(columns=["wid"]))
    with pytest.raises(ValueError, match="unknown row '10'"):
        list(grid.cells(rows=["10"]))
    with pytest.raises(ValueError, match="there is no config file 'nothing'"):
        reproduce.run(["nothing"])


def test_reproduce_runs_what_is_missing_and_skips_the_rest(grid, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = []

    def run_cell(grid, cell, threads):
        if cell.column == "wide" and cell.seed == 1:
            raise reproduce.CellError("broken")
        ran.append(cell.name)
        return {**row(cell, 0.8), "minutes": "0.1"}

    monkeypatch.setattr(reproduce, "_run_cell", run_cell)
    assert reproduce.run([str(grid.path), "--rows", "100"]) == 1
    assert ran == ["100-plain-seed0", "100-wide-seed0", "100-plain-seed1"]
    assert "broken" in capsys.readouterr().err
    assert reproduce.run([str(grid.path), "--rows", "100", "--columns", "plain"]) == 0
    assert len(ran) == 3
    assert reproduce.run([str(grid.path), "--table-only"]) == 0
    assert len(ran) == 3


@pytest.mark.parametrize("path", sorted((CONFIGS / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_grid_of_the_suite_names_files_that_exist(path):
    cells = list(Grid.read(path).cells())
    assert cells
    assert len({(cell.name, cell.settings) for cell in cells}) == len(cells)
