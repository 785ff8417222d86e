"""The definition of a grid: its cells, and what is wrong with a file that is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_modules.grids.grid import Cell, Grid
from tests.helpers.grids import CURVES, VALUES, write_grid

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture
def grid(tmp_path) -> Grid:
    return write_grid(tmp_path, VALUES)


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


def test_a_cell_may_have_seeds_of_its_own(tmp_path):
    grid = write_grid(tmp_path, CURVES)
    names = [cell.name for cell in grid.cells()]
    assert names == ["one-plain-seed0", "one-wide-seed0", "one-wide-seed1", "two-plain-seed0", "two-wide-seed0"]
    assert [cell.name for cell in grid.cells(["one"], seeds=[3])] == ["one-plain-seed3", "one-wide-seed3"]


def test_settings_follow_content_not_comments(grid):
    (cell,) = grid.cells(["100"], ["plain"], [0])
    before = cell.settings
    cell.configs[0].write_text("# a comment\ntrainer:\n  max_epochs: 2\n")
    assert cell.settings == before
    cell.configs[0].write_text("trainer: {max_epochs: 3}\n")
    assert cell.settings != before


def test_settings_of_finished_experiments_stay_what_they_are(grid):
    assert [cell.settings for cell in grid.cells(["100"], seeds=[0])] == ["cdff7066cf", "c79634540e"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric:", "metrik:", "Did you mean 'metric'"),
        ("overrides: {data", "overides: {data", r"unknown key of rows.100: 'overides'. Did you mean 'overrides'"),
        ("title: A table\n", "", "the grid lacks 'title'"),
        ("{label: Plain}", "{}", "columns.plain lacks 'label'"),
        ("{label: Plain}", "Plain", "columns.plain must be keys with values, got 'Plain'"),
        ("{label: Plain}", "{label: Plain, seeds: [1]}", "columns.plain has seeds"),
        ("title:", "command: train\ntitle:", "unknown command 'train'"),
        ("title:", "better: less\ntitle:", "unknown value of better: 'less'"),
        ("title:", "scale: 0\ntitle:", "scale must be above 0, got 0"),
        ("title:", "scale: percent\ntitle:", "scale must be a number, got 'percent'"),
        ("title:", "digits: 1.5\ntitle:", "digits must be 0 or more, got 1.5"),
        ("title:", "path: here\ntitle:", "unknown key of the grid: 'path'"),
        ("title:", "seeds: {10: {plain: [0]}}\ntitle:", "unknown row in seeds: '10'. Did you mean '100'"),
        ("title:", "figures: {curve: {kind: curves}}\ntitle:", "figures.curve shows curves, but the grid has no key"),
        ("wide: 90.0", "wid: 90.0", "unknown column in published.100: 'wid'. Did you mean 'wide'"),
        ("wide: 90.0", "wide: high", "published.100.wide must be a number, got 'high'"),
        ("seeds: [0, 1]", "seeds: 3", "rows.100.seeds must be a list of whole numbers, got 3"),
        ("[plain, wide]", "[plane, wide]", "unknown column in orders: 'plane'"),
        ("title:", "measures: {test/loss: loss}\ntitle:", "measures lack 'test/accuracy', the metric"),
        ("title:", "measures: {test/accuracy: {scale: 1}}\ntitle:", "measures.test/accuracy lacks 'label'"),
        ("title:", "measures: {a: {label: b, scal: 1}}\ntitle:", "unknown key of measures.a: 'scal'. Did you mean"),
        ("title:", "measures: {a: {label: b, scale: 0}}\ntitle:", "measures.a.scale must be above 0, got 0"),
        ("title:", "measures: {a: {label: b, digits: -1}}\ntitle:", "measures.a.digits must be 0 or more, got -1"),
        ("title:", "measures: {test/accuracy: {label: b, scale: 1}}\ntitle:", "give its scale as that of the grid"),
        ("title:", "reference: wid\ntitle:", "unknown column in reference: 'wid'. Did you mean 'wide'"),
        ("title:", "reference: wide\ntitle:", "reference is for measures, and the grid has none"),
        ("title:", "measures: {test/accuracy: accuracy}\ntitle:", "orders rank the values of a table without"),
        ("rows:", "rows: [", "while parsing"),
    ],
)
def test_a_wrong_grid_names_the_file_and_the_key(grid, old, new, message):
    grid.path.write_text(VALUES.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"table.yaml is not a grid: .*{message}"):
        Grid.read(grid.path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("val/fid: {label: FID, log: true}", "val/kid: {label: KID}", "curves.metrics lacks 'val/fid', the metric"),
        ("log: true", "logarithmic: true", "unknown key of curves.metrics.val/fid: 'logarithmic'"),
        ("kind: curves}", "kind: curve}", "unknown kind of figures.curves: 'curve'. Did you mean 'curves'"),
        ("kind: curves}", "rows: [one]}", "figures.curves lacks 'kind'"),
        ("kind: curves}", "kind: curves, epochs: [1]}", "unknown key of figures.curves: 'epochs'"),
        ("[1, last], crop", "[0, last], crop", "figures.samples.epochs are numbers from 1, or 'last', not 0"),
        ("crop: 2", "crop: 0", "figures.samples.crop must be 1 or more, got 0"),
        ("columns: [plain], epochs", "columns: [plane], epochs", "unknown column in figures.samples: 'plane'"),
        ("metrics: [val/fid, val/coverage]", "metrics: [val/kid]", "unknown metric in figures.both: 'val/kid'"),
    ],
)
def test_wrong_curves_and_figures(tmp_path, old, new, message):
    grid = write_grid(tmp_path, CURVES)
    assert old in CURVES
    grid.path.write_text(CURVES.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"table.yaml is not a grid: .*{message}"):
        Grid.read(grid.path)


def test_unknown_rows_and_columns(grid):
    with pytest.raises(ValueError, match="Did you mean 'wide'"):
        list(grid.cells(columns=["wid"]))
    with pytest.raises(ValueError, match="unknown row '10'"):
        list(grid.cells(rows=["10"]))


@pytest.mark.parametrize("path", sorted((CONFIGS / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_grid_of_the_suite_names_files_that_exist(path):
    grid = Grid.read(path)
    cells = list(grid.cells())
    assert cells
    assert len({(cell.name, cell.settings) for cell in cells}) == len(cells)
    # A complete experiment as a column would undo what the row says.
    overlays = [axis.config for axis in (*grid.rows.values(), *grid.columns.values()) if axis.config]
    for overlay in (yaml.safe_load((CONFIGS / name).read_text()) for name in overlays):
        assert not any("class_path" in overlay.get(part, {}) for part in ("model", "data"))


def test_overrides_are_written_as_the_command_line_takes_them():
    overrides = (("model.conv", {"name": "octave", "alpha": 0.5}), ("model.init_skip", None), ("data.root", "here"))
    assert Cell("row", "column", 1, (), overrides).arguments() == [
        "--seed_everything=1",
        '--model.conv={"name": "octave", "alpha": 0.5}',
        "--model.init_skip=null",
        "--data.root=here",
    ]
