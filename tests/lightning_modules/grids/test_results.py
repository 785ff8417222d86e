"""The tracked files of finished cells."""

from __future__ import annotations

import pytest

from lightning_modules.grids.grid import Grid
from lightning_modules.grids.results import Curves, Results, finished_cells, summarise
from tests.helpers.grids import CURVES, VALUES, finish, result_row, write_grid

METRICS = ("val/fid", "val/coverage")


@pytest.fixture
def grid(tmp_path) -> Grid:
    return write_grid(tmp_path, VALUES)


def test_finished_cells_are_found_until_their_settings_change(grid, tmp_path):
    results = Results(tmp_path / "out/results.csv")
    first, second, *_ = grid.cells()
    results.add(result_row(first, 0.5))
    results.add(result_row(second, 0.9))
    again = Results(tmp_path / "out/results.csv")
    assert again.find(first)["value"] == "0.5"
    first.configs[0].write_text("trainer: {max_epochs: 3}\n")
    assert again.find(first) is None
    again.add(result_row(first, 0.6))
    assert len(again.rows) == 2
    assert again.find(first)["value"] == "0.6"


def test_two_processes_add_to_one_file(grid, tmp_path):
    mine, others = Results(tmp_path / "results.csv"), Results(tmp_path / "results.csv")
    first, second, *_ = grid.cells()
    mine.add(result_row(first, 0.5))
    others.add(result_row(second, 0.9))
    assert len(Results(tmp_path / "results.csv").rows) == 2


@pytest.mark.parametrize("damage", ["<<<<<<< HEAD\n", "100,plain,0\n", "a" + 20 * ",b" + "\n"])
def test_a_damaged_file_is_not_taken_for_a_shorter_one(grid, tmp_path, damage):
    path = tmp_path / "results.csv"
    results = Results(path)
    results.add(result_row(next(grid.cells()), 0.5))
    path.write_text(path.read_text() + damage)
    with pytest.raises(ValueError, match=r"results.csv, line 3: not a row of row, column, .*; restore the file"):
        Results(path)
    with pytest.raises(ValueError, match="line 3"):
        results.add(result_row(next(grid.cells()), 0.6))
    assert path.read_text().endswith(damage)


def test_means_are_of_todays_settings_and_of_any_seed(grid, tmp_path):
    results = Results(tmp_path / "results.csv")
    for seed, value in ((0, 0.5), (9, 0.7)):
        (cell,) = grid.cells(["1000"], ["plain"], [seed])
        results.add(result_row(cell, value))
    (other,) = grid.cells(["1000"], ["plain"], [4])
    results.add({**result_row(other, 0.0), "settings": "older"})
    assert [cell.seed for cell in finished_cells(grid, results, "1000", "plain")] == [0, 9]
    assert {place: str(summary) for place, summary in summarise(grid, results).items()} == {
        ("1000", "plain"): "60.0 ± 14.1"
    }


def test_courses_are_kept_and_replaced_with_their_cell(tmp_path):
    grid = write_grid(tmp_path, CURVES)
    curves, results = Curves(tmp_path / "curves.csv", METRICS), Results(tmp_path / "results.csv")
    first, second, *_ = grid.cells()
    finish(first, results, curves, [9.0, 3.0, 4.0], coverage=[0.1, "", 0.3])
    finish(second, results, curves, [8.0, 7.0])
    assert (tmp_path / "curves.csv").read_text().splitlines()[:3] == [
        "row,column,seed,settings,epoch,val/fid,val/coverage",
        f"one,plain,0,{first.settings},1,9.0,0.1",
        f"one,plain,0,{first.settings},2,3.0,",
    ]
    again = Curves(tmp_path / "curves.csv", METRICS)
    assert [part.tolist() for part in again.course(first, "val/fid")] == [[1, 2, 3], [9.0, 3.0, 4.0]]
    assert [part.tolist() for part in again.course(first, "val/coverage")] == [[1, 3], [0.1, 0.3]]
    assert [part.tolist() for part in again.course(second, "val/coverage")] == [[], []]

    first.configs[0].write_text("trainer: {max_epochs: 3}\n")
    assert not again.has(first)
    again.add(first, [{"epoch": 1, "val/fid": 2.0}])
    assert again.has(first)
    assert len(again.rows) == 3


def test_epochs_are_sorted_as_numbers_and_old_metrics_stay(tmp_path):
    grid = write_grid(tmp_path, CURVES)
    first, second, *_ = grid.cells()
    Curves(tmp_path / "curves.csv", ["old"]).add(first, [{"epoch": e, "old": e} for e in range(1, 12)])
    curves = Curves(tmp_path / "curves.csv", ["new"])
    curves.add(second, [{"epoch": 1, "new": 5}])
    assert [row["epoch"] for row in curves.rows[:11]] == [str(e) for e in range(1, 12)]
    assert Curves(tmp_path / "curves.csv", ["new"]).course(first, "old")[1].tolist() == list(range(1, 12))
