"""How far the curve of a metric turns after its best value: the stability of a training as numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from lightning_modules.grid import Grid
from lightning_modules.grid_results import Curves, Results, finished_cells


@dataclass(frozen=True)
class Stability:
    """The best value of a curve, the number of epochs trained for it, the last value, and how much worse that is."""

    best: float
    best_epoch: int
    last: float
    worsening: float

    @property
    def relative_worsening(self) -> float:
        """`worsening` as a fraction of the best value."""
        return self.worsening / abs(self.best) if self.best else float("nan")


def stability(epochs: np.ndarray, values: np.ndarray, *, lower_is_better: bool) -> Stability:
    """The stability of one curve.

    Args:
        epochs: Numbers of epochs trained (T,), rising.
        values: The metric after each (T,). A value that is not finite is never the best, but may be the last.
        lower_is_better: Which values are good.

    Raises:
        ValueError: No value is finite.
    """
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("a curve without a finite value has no best one")
    sign = 1.0 if lower_is_better else -1.0
    best = np.where(finite, sign * values, np.inf).argmin()
    return Stability(
        best=float(values[best]),
        best_epoch=int(epochs[best]),
        last=float(values[-1]),
        worsening=float(sign * (values[-1] - values[best])),
    )


@dataclass(frozen=True)
class Course:
    """A finished cell: the stability of the grid's metric, as it is shown, and the last values of other metrics."""

    stability: Stability
    last: dict[str, float]


def summarise_courses(grid: Grid, results: Results, curves: Curves) -> dict[tuple[str, str], dict[int, Course]]:
    """All finished cells of today's settings: (row, column) to seed to course."""
    courses: dict[tuple[str, str], dict[int, Course]] = {}
    for row, column in itertools.product(grid.rows, grid.columns):
        for cell in finished_cells(grid, results, row, column):
            epochs, values = curves.course(cell, grid.metric)
            if not len(epochs):
                continue
            own = stability(epochs, grid.scale * values, lower_is_better=grid.better == "lower")
            others = {metric: curves.course(cell, metric)[1][-1:] for metric in curves.metrics if metric != grid.metric}
            last = {metric: float(value[0]) for metric, value in others.items() if len(value)}
            courses.setdefault((row, column), {})[cell.seed] = Course(own, last)
    return courses
