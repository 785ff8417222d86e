"""Loss, metrics and learning rate over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.metrics_file import FIRST_COLUMNS, Row, read_metrics
from lightning_modules.pictures.saving import BLUE, GREEN, ORANGE, drawing, is_writing, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values."""

_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
# Learning rates of parameter groups often coincide: dashes let the one below show.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLUE},
    {"color": ORANGE, "linestyle": "--"},
    {"color": GREEN, "linestyle": ":"},
)
# A curve with more points than this is noise to the eye: a running mean is drawn over it.
MANY_POINTS = 100


class LearningCurves(Callback):
    """Draws `learning_curves.png` from the run's `metrics.csv` when a fit ends, and with its result after a test.

    One panel for each metric that training or validation logs, and one for the learning rate where it is logged.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save_curves(trainer, "learning_curves", lambda curves, rows: draw_curves(curves))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        save_curves(trainer, "learning_curves", lambda curves, rows: draw_curves(curves))


def save_curves(trainer: Trainer, name: str, draw: Callable[[dict[str, Curve], list[Row]], Figure]) -> None:
    """Save the picture `name` that `draw` makes of the run's curves and of the rows that they come from, if any."""
    path = Path(trainer.default_root_dir) / "metrics.csv"
    if not is_writing(trainer) or not path.is_file():
        return
    with drawing(name):
        rows = read_metrics(path)
        curves = curves_of(rows)
        if any(key.startswith(("train/", "val/")) for key in curves):
            save_picture(trainer, name, draw(curves, rows))


def curves_of(rows: list[Row]) -> dict[str, Curve]:
    """The columns of a `metrics.csv`, each with the steps at which it has a finite value."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, text in row.items():
            if text and name not in FIRST_COLUMNS and math.isfinite(float(text)):
                points.setdefault(name, []).append((float(row["step"]), float(text)))
    arrays = {name: np.array(pairs) for name, pairs in points.items()}
    return {name: (array[:, 0], array[:, 1]) for name, array in arrays.items()}


def draw_curves(curves: dict[str, Curve]) -> Figure:
    """One panel a metric, stages together; `curves` are named `<stage>/<metric>`, learning rates `lr-...`."""
    from matplotlib.figure import Figure

    metrics = dict.fromkeys(name.partition("/")[2] for name in curves if name.startswith(("train/", "val/")))
    panels = sorted(metrics, key=lambda metric: (metric != "loss", metric))
    rates = {name.removeprefix("lr-"): curve for name, curve in curves.items() if name.startswith("lr-")}
    count = len(panels) + bool(rates)
    figure = Figure(figsize=(2.4 * count + 0.4, 2.2))
    grid = figure.subplots(1, count, squeeze=False)[0]
    for axes, metric in zip(grid, panels, strict=False):
        for stage, colour in _COLOURS.items():
            if f"{stage}/{metric}" in curves:
                draw_curve(axes, *curves[f"{stage}/{metric}"], stage, colour)
        axes.set_title(metric.replace("_", " "), loc="left", fontweight="bold")
        axes.legend()
    if rates:
        draw_rates(grid[-1], rates)
    for axes in grid:
        axes.set_xlabel("training step")
    return figure


def draw_rates(axes: Axes, rates: dict[str, Curve]) -> None:
    """The learning rates of parameter groups, `<optimiser>/<group>`, in one panel."""
    for (name, (steps, values)), style in zip(rates.items(), cycle(_STYLES), strict=False):
        axes.plot(steps, values, label=name.rpartition("/")[2], **style)
    axes.set_title("learning rate", loc="left", fontweight="bold")
    axes.legend()


def draw_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, colour: str) -> None:
    """A line; a running mean over it where there are many points; one point alone, or a result of a test, a mark."""
    if label == "test" or len(values) == 1:
        axes.plot(steps[-1:], values[-1:], "D", color=colour, markersize=4, label=f"{label} {values[-1]:.4g}")
        return
    if len(values) <= MANY_POINTS:
        axes.plot(steps, values, color=colour, label=label)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.5)
    axes.plot(steps, _running_mean(values, len(values) // 30), color=colour, label=f"{label} (running mean)")


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over `width` points to either side, fewer at the ends."""
    sums = np.concatenate([[0.0], values.cumsum()])
    positions = np.arange(len(values))
    low, high = (positions - width).clip(0), (positions + width + 1).clip(max=len(values))
    return (sums[high] - sums[low]) / (high - low)
