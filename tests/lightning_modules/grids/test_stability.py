"""The turn of a curve as numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_modules.grids.results import Curves, Results
from lightning_modules.grids.stability import Course, Stability, stability, summarise_courses
from tests.helpers.grids import CURVES, finish, write_grid

EPOCHS = np.arange(1, 13)
TURNS = np.array([90.0, 50, 30, 20, 21, 2, 22, 24, 40, 50, 60, 5])


def test_a_jump_is_the_best_value_but_moves_neither_end_of_the_turn():
    curve = stability(EPOCHS, TURNS, lower_is_better=True)
    # The medians of five are 30, 21, 21, 21, 22, 24, 40 and 40: neither 2 nor the 5 at the end is among them.
    assert curve == Stability(best=2.0, best_epoch=6, best_median=21.0, last_median=40.0)
    assert curve.worsening == pytest.approx(19 / 21)


def test_higher_may_be_better_and_of_equal_values_the_first_is_the_best():
    curve = stability(EPOCHS, np.array([0.1] * 4 + [0.8] * 4 + [0.6] * 4), lower_is_better=False)
    assert curve == Stability(best=0.8, best_epoch=5, best_median=0.8, last_median=0.6)
    assert curve.worsening == pytest.approx(0.25)


def test_a_curve_that_falls_to_its_end_has_not_worsened():
    assert stability(EPOCHS, 1.0 / EPOCHS, lower_is_better=True).worsening == 0


def test_a_curve_shorter_than_two_windows_has_no_turn():
    short = stability(EPOCHS[:9], TURNS[:9], lower_is_better=True)
    assert (short.best, short.last_median) == (2.0, 22.0)
    assert np.isnan([short.best_median, short.worsening]).all()
    assert stability(EPOCHS[:2], TURNS[:2], lower_is_better=True).last_median == 70.0
    assert stability(EPOCHS[:10], TURNS[:10], lower_is_better=True).worsening == pytest.approx(3 / 21)


@pytest.mark.parametrize("lower_is_better", [True, False])
def test_a_divergence_counts_as_the_end_and_never_as_the_best(lower_is_better):
    values = np.array([2.0] * 9 + [np.nan, -np.inf, np.inf])
    curve = stability(EPOCHS, values, lower_is_better=lower_is_better)
    assert (curve.best, curve.best_median) == (2.0, 2.0)
    assert curve.last_median == (np.inf if lower_is_better else -np.inf)
    assert curve.worsening == np.inf
    with pytest.raises(ValueError, match="without a finite value"):
        stability(EPOCHS, np.full(12, np.nan), lower_is_better=lower_is_better)


def test_courses_of_finished_cells_alone(tmp_path):
    grid = write_grid(tmp_path, CURVES.replace("scale: 1", "scale: 10"))
    results = Results(tmp_path / "results.csv")
    curves = Curves(tmp_path / "curves.csv", grid.curves.metrics)
    first, second, third, *_ = grid.cells()
    finish(first, results, curves, [3.0] * 5 + [2.0] * 5, coverage=[0.25] * 7 + [0.5] * 3)
    finish(third, results, curves, [1.0] * 5 + [2.0] * 5)
    curves.add(second, [{"epoch": 1, "val/fid": 2.0}])  # without a row of the results
    assert summarise_courses(grid, results, curves) == {
        ("one", "plain"): {0: Course(Stability(20.0, 6, 20.0, 20.0), {"val/coverage": 0.5})},
        ("one", "wide"): {1: Course(Stability(10.0, 1, 10.0, 20.0), {})},
    }
