"""The turn of a curve as numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_modules.grid_results import Curves, Results
from lightning_modules.stability import Course, Stability, stability, summarise_courses
from tests.helpers.grids import CURVES, finish, write_grid

EPOCHS = np.array([1, 2, 3, 4])


def test_a_curve_that_turns():
    curve = stability(EPOCHS, np.array([9.0, 2.0, 5.0, 3.0]), lower_is_better=True)
    assert curve == Stability(best=2.0, best_epoch=2, last=3.0, worsening=1.0)
    assert curve.relative_worsening == 0.5


def test_of_equal_values_the_first_is_the_best_and_higher_may_be_better():
    curve = stability(EPOCHS, np.array([0.5, 0.8, 0.8, 0.6]), lower_is_better=False)
    assert (curve.best_epoch, curve.last) == (2, 0.6)
    assert curve.worsening == pytest.approx(0.2)
    assert curve.relative_worsening == pytest.approx(0.25)


def test_a_divergence_counts_as_the_end_and_never_as_the_best():
    curve = stability(EPOCHS, np.array([np.nan, 2.0, -np.inf, np.inf]), lower_is_better=True)
    assert curve == Stability(best=2.0, best_epoch=2, last=np.inf, worsening=np.inf)
    with pytest.raises(ValueError, match="without a finite value"):
        stability(EPOCHS, np.full(4, np.nan), lower_is_better=True)


def test_courses_of_finished_cells_alone(tmp_path):
    grid = write_grid(tmp_path, CURVES.replace("scale: 1", "scale: 10"))
    results = Results(tmp_path / "results.csv")
    curves = Curves(tmp_path / "curves.csv", grid.curves.metrics)
    first, second, third, *_ = grid.cells()
    finish(first, results, curves, [3.0, 2.0], coverage=[0.25, 0.5])
    finish(third, results, curves, [1.0, 2.0])
    curves.add(second, [{"epoch": 1, "val/fid": 2.0}])  # without a row of the results
    assert summarise_courses(grid, results, curves) == {
        ("one", "plain"): {0: Course(Stability(20.0, 2, 20.0, 0.0), {"val/coverage": 0.5})},
        ("one", "wide"): {1: Course(Stability(10.0, 1, 20.0, 10.0), {})},
    }
