"""How far the curve of a metric turns after its best stretch: the stability of a training as numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from lightning_modules.grids.grid import Grid
from lightning_modules.grids.results import Curves, Results, finished_cells

WINDOW = 5
"""Evaluations to a running median. One value alone says little: GANs jump from one epoch to the next."""
TURN = 0.5
"""A training has turned when its last running median is worse than its best one by more than this fraction."""


@dataclass(frozen=True)
class Stability:
    """The best value of a curve, and its running medians, from which jumps of single evaluations drop out.

    Args:
        best: The best single value: what a checkpoint has.
        best_epoch: The number of epochs trained for it.
        best_median: The best median of `WINDOW` successive values; NaN for a curve shorter than two windows, whose
            beginning and end share values.
        last_median: The median of the last `WINDOW` values, or of all where there are fewer.
    """

    best: float
    best_epoch: int
    best_median: float
    last_median: float

    @property
    def worsening(self) -> float:
        """How much worse the last median is than the best one, as a fraction of that; NaN where it is not known."""
        return abs((self.last_median - self.best_median) / self.best_median) if self.best_median else float("nan")


def stability(epochs: np.ndarray, values: np.ndarray, *, lower_is_better: bool) -> Stability:
    """The stability of one curve.

    Args:
        epochs: Numbers of epochs trained (T,), rising.
        values: The metric after each (T,). One that is not finite counts as worse than all others.
        lower_is_better: Which values are good.

    Raises:
        ValueError: No value is finite.
    """
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("a curve without a finite value has no best one")
    sign = 1.0 if lower_is_better else -1.0
    costs = np.where(finite, sign * values, np.inf)
    return Stability(
        best=float(values[costs.argmin()]),
        best_epoch=int(epochs[costs.argmin()]),
        best_median=float(sign * _lowest_median(costs)),
        last_median=float(sign * np.median(costs[-WINDOW:])),
    )


def _lowest_median(costs: np.ndarray) -> float:
    """Of whole windows alone: a shorter one at either end would be as noisy as the values themselves."""
    if len(costs) < 2 * WINDOW:
        return float("nan")
    windows = np.lib.stride_tricks.sliding_window_view(costs, WINDOW)
    return float(np.median(windows, axis=-1).min())


@dataclass(frozen=True)
class Course:
    """A finished cell: the stability of the grid's metric, as it is shown, and the last medians of other metrics."""

    stability: Stability
    last_medians: dict[str, float]


def summarise_courses(grid: Grid, results: Results, curves: Curves) -> dict[tuple[str, str], dict[int, Course]]:
    """All finished cells of today's settings: (row, column) to seed to course."""
    courses: dict[tuple[str, str], dict[int, Course]] = {}
    for row, column in itertools.product(grid.rows, grid.columns):
        for cell in finished_cells(grid, results, row, column):
            epochs, values = curves.course(cell, grid.metric)
            if not len(epochs):
                continue
            own = stability(epochs, grid.scale * values, lower_is_better=grid.better == "lower")
            others = {metric: curves.course(cell, metric)[1] for metric in curves.metrics if metric != grid.metric}
            medians = {metric: float(np.median(other[-WINDOW:])) for metric, other in others.items() if len(other)}
            courses.setdefault((row, column), {})[cell.seed] = Course(own, medians)
    return courses
