"""The figures of a grid: curves, drawn from the tracked file; samples and overlays, from the media of run folders."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_modules.files import write_whole
from lightning_modules.grids.grid import FIGURE_KINDS, Cell, FigureSettings, Grid
from lightning_modules.grids.results import Curves, Results, finished_cells
from lightning_modules.grids.samples import SamplePicture, find_samples
from lightning_modules.grids.stability import stability
from lightning_modules.pictures.panels import draw_panels
from lightning_modules.pictures.saving import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

Place = tuple[str, str]
"""A row and a column of the grid."""

# By the place of a column in the grid, so that it has one colour in all figures. The key is grey: no column is.
_COLOURS = ("black", BLUE, GREEN, ORANGE, VERMILLION, PURPLE)
_SEED_WIDTH, _SEED_ALPHA = 0.6, 0.45
_DOT_SIZE = 3
_WIDTH, _MAX_SIDE = 7.2, 2.0  # inches: a figure with samples beneath its curves, and one picture of samples
_BETWEEN = 14  # pixels between the samples of two epochs


@dataclass(frozen=True)
class Content:
    """What a figure is to show: its settings, with what they leave out filled in, and the finished cells.

    Args:
        grid: The grid.
        settings: Those of this figure.
        cells: Finished cells, seed by seed, for each row and column of the figure.
        curves: Their courses; None where the grid keeps none.
    """

    grid: Grid
    settings: FigureSettings
    cells: dict[Place, list[Cell]]
    curves: Curves | None

    @classmethod
    def of(cls, grid: Grid, settings: FigureSettings, results: Results, curves: Curves | None) -> Content:
        places = itertools.product(settings.rows or grid.rows, settings.columns or grid.columns)
        return cls(grid, settings, {place: finished_cells(grid, results, *place) for place in places}, curves)

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(row for row, _ in self.cells))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for _, column in self.cells))

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.settings.metrics or (self.grid.metric,)

    def courses(self, place: Place, metric: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Epochs and values of each seed that has any, as they are shown."""
        assert self.curves is not None
        scale = self.grid.scale if metric == self.grid.metric else 1
        courses = [self.curves.course(cell, metric) for cell in self.cells[place]]
        return [(epochs, scale * values) for epochs, values in courses if len(epochs)]

    def metric_label(self, metric: str) -> str:
        assert self.grid.curves is not None
        return self.grid.curves.metrics[metric].label

    @cached_property
    def samples(self) -> dict[Place, list[SamplePicture | None]]:
        """For each place with a finished cell the pictures of its first seed, by epoch; None for a missing one."""
        settings = self.settings
        return {
            place: [find_samples(self.grid.run_folder(cells[0]), epoch, settings.crop) for epoch in settings.epochs]
            for place, cells in self.cells.items()
            if cells
        }

    @cached_property
    def overlays(self) -> dict[Place, np.ndarray | None]:
        """For each place with a finished cell the overlays of its first seed's test, uint8 (H, W, 3); None: not there.

        `SegmentationOverlays` draws them.
        """
        places = {place: self.grid.run_folder(cells[0]) for place, cells in self.cells.items() if cells}
        return {place: _read_picture(folder / "media" / "overlays_test.png") for place, folder in places.items()}

    @property
    def lost(self) -> list[str]:
        """The finished cells whose pictures are shown, but not there."""
        return [self.cells[place][0].name for place, is_there in self._pictured.items() if not is_there]

    @property
    def is_empty(self) -> bool:
        if "metrics" in FIGURE_KINDS[self.settings.kind]:
            return not any(self.cells.values())
        return not any(self._pictured.values())

    @property
    def _pictured(self) -> dict[Place, bool]:
        """Places with a finished cell, and whether what the figure takes from its run folder is there."""
        if self.settings.kind == "overlays":
            return {place: picture is not None for place, picture in self.overlays.items()}
        if "epochs" in FIGURE_KINDS[self.settings.kind]:
            return {place: any(pictures) for place, pictures in self.samples.items()}
        return {}


def _read_picture(path: Path) -> np.ndarray | None:
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def draw_figures(grid: Grid, results: Results, curves: Curves | None) -> Iterator[str]:
    """Draw the figures of `grid`, one after the other; what became of each, as a line of text.

    A figure whose pictures are lost, because the run folders are not here, is left as it is.
    """
    for name, settings in grid.figures.items():
        path = Path(grid.images or grid.folder) / f"{name}.png"
        yield f"{path}: {_draw(path, Content.of(grid, settings, results, curves))}"


def _draw(path: Path, content: Content) -> str:
    if content.is_empty:
        return "nothing to show yet"
    shown = "overlays" if content.settings.kind == "overlays" else "samples"
    lost = f"; no {shown} in the run folders of {', '.join(content.lost)}" if content.lost else ""
    if lost and path.is_file():
        return f"stays as it is{lost}"
    with drawing(path.stem):
        figure = _KINDS[content.settings.kind](content)
        write_whole(path, _palette_png(figure))
        return f"drawn{lost}"
    return "failed"


def _palette_png(figure: Figure) -> bytes:
    """`figure` in 256 colours, a third of the size: these files are kept with the project's history."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi)
    Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT).save(small, "png", optimize=True)
    return small.getvalue()


def draw_curves(content: Content) -> Figure:
    """A panel for each metric (downwards) and row of the grid (sideways), in it a line for each column.

    The line is the mean over the seeds, of which each is a thin line; of the grid's metric, dots mark the best value of
    each seed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 2.4 * len(content.rows), _curves_height(content)))
    _fill_with_curves(figure, content)
    return figure


def _curves_height(content: Content) -> float:
    return 0.5 + 1.9 * len(content.metrics)


def _fill_with_curves(figure: FigureBase, content: Content) -> list[Axes]:
    from matplotlib.ticker import MaxNLocator

    rows, metrics = content.rows, content.metrics
    panels = figure.subplots(len(metrics), len(rows), squeeze=False, sharex=True, sharey="row")
    for line, metric in zip(panels, metrics, strict=True):
        for axes, row in zip(line, rows, strict=True):
            _draw_panel(axes, content, row, metric)
        line[0].set_ylabel(content.metric_label(metric))
    for axes, row in zip(panels[0], rows, strict=True):
        axes.set_title(content.grid.rows[row].label, loc="left", fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    _draw_key(figure, content)
    return list(panels.flat)


def _draw_panel(axes: Axes, content: Content, row: str, metric: str) -> None:
    grid = content.grid
    for column in content.columns:
        courses = content.courses((row, column), metric)
        if not courses:
            continue
        colour = _colour(grid, column)
        for course in courses if len(courses) > 1 else []:
            axes.plot(*course, color=colour, linewidth=_SEED_WIDTH, alpha=_SEED_ALPHA)
        axes.plot(*_mean(courses), color=colour)
        for epochs, values in courses if metric == grid.metric else []:
            curve = stability(epochs, values, lower_is_better=grid.better == "lower")
            axes.plot(curve.best_epoch, curve.best, "o", color=colour, markersize=_DOT_SIZE)
    if grid.curves is not None and grid.curves.metrics[metric].log:
        _make_logarithmic(axes)


def _mean(courses: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the seeds, at the epochs that all have."""
    epochs = sorted(set.intersection(*(set(epochs.tolist()) for epochs, _ in courses)))
    values = [value[np.isin(own, epochs)] for own, value in courses]
    return np.array(epochs), np.mean(values, axis=0)


def _make_logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.minorticks_off()


def _colour(grid: Grid, column: str) -> str:
    return _COLOURS[list(grid.columns).index(column) % len(_COLOURS)]


def _draw_key(figure: FigureBase, content: Content) -> None:
    from matplotlib.lines import Line2D

    finished = [column for column in content.columns if any(content.cells[row, column] for row in content.rows)]
    keys = [Line2D([], [], color=_colour(content.grid, c), label=content.grid.columns[c].label) for c in finished]
    if any(len(cells) > 1 for cells in content.cells.values()):
        keys.append(Line2D([], [], color=GREY, linewidth=_SEED_WIDTH, alpha=_SEED_ALPHA, label="one seed"))
    if content.grid.metric in content.metrics:
        keys.append(Line2D([], [], color=GREY, marker="o", markersize=_DOT_SIZE, linestyle="", label="best"))
    figure.legend(handles=keys, loc="outside upper left", ncols=len(keys), handlelength=1.4, columnspacing=1.2)


def draw_samples(content: Content) -> Figure:
    """A panel for each row and column of the grid, in it the samples of the epochs, one above the other."""
    found = [picture for pictures in content.samples.values() for picture in pictures if picture]
    blank = np.full_like(found[0].pixels, 255)
    between = np.full((_BETWEEN, *blank.shape[1:]), 255, np.uint8)
    panels = {}
    for (row, column), pictures in content.samples.items():
        parts = [part for picture in pictures for part in (between, picture.pixels if picture else blank)]
        panels[_name(content, row, column)] = np.concatenate(parts[1:])
    return draw_panels(panels, _epoch_names(content))


def _name(content: Content, row: str, column: str) -> str:
    labels = {content.grid.rows[row].label: content.rows, content.grid.columns[column].label: content.columns}
    return ", ".join(label for label, others in labels.items() if len(others) > 1) or content.grid.columns[column].label


def _epoch_names(content: Content) -> list[str]:
    """What the lines of samples are called; "last" becomes a number where all runs end with the same."""
    names = []
    for i, wanted in enumerate(content.settings.epochs):
        epochs = {picture.epoch for pictures in content.samples.values() if (picture := pictures[i])}
        names.append(f"epoch {epochs.pop() if len(epochs) == 1 else wanted}")
    return names


def draw_curves_with_samples(content: Content) -> Figure:
    """Curves as in `draw_curves`, and beneath them samples: a line of pictures for each row and column."""
    from matplotlib.figure import Figure

    samples = {place: pictures for place, pictures in content.samples.items() if any(pictures)}
    if not samples:
        return draw_curves(content)
    count = len(content.settings.epochs)
    side = min(_WIDTH / count, _MAX_SIDE)
    heights = (_curves_height(content), (side + 0.05) * len(samples) + 0.2)
    figure = Figure(figsize=(_WIDTH, sum(heights)))
    above, beneath = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    panels = _fill_with_curves(above, content)
    lines = beneath.subplots(len(samples), count, squeeze=False)
    for ((row, column), pictures), line in zip(samples.items(), lines, strict=True):
        line[0].set_ylabel(_name(content, row, column), color=_colour(content.grid, column), fontweight="bold")
        for axes, picture in zip(line, pictures, strict=True):
            _show(axes, picture)
    for axes, name in zip(lines[0], _epoch_names(content), strict=True):
        axes.set_title(name)
    for axes, picture in itertools.product(panels, next(iter(samples.values()))):
        if picture:
            axes.axvline(picture.epoch, color=GREY, linewidth=0.5, linestyle=":", zorder=0)
    return figure


def _show(axes: Axes, picture: SamplePicture | None) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if picture:
        axes.imshow(picture.pixels, interpolation="antialiased")


def draw_overlays(content: Content) -> Figure:
    """A panel for each column of the grid, in it the overlays of the rows, one above the other."""
    found = [picture for picture in content.overlays.values() if picture is not None]
    height, width = (max(picture.shape[axis] for picture in found) for axis in (0, 1))
    panels = {}
    for column in content.columns:
        panel = np.full((len(content.rows), height, width, 3), 255, np.uint8)
        for place, row in enumerate(content.rows):
            picture = content.overlays.get((row, column))
            if picture is not None:
                panel[place, : len(picture), : picture.shape[1]] = picture
        panels[content.grid.columns[column].label] = panel.reshape(-1, width, 3)
    return draw_panels(panels, [content.grid.rows[row].label for row in content.rows])


_KINDS: dict[str, Callable[[Content], Figure]] = {
    "curves": draw_curves,
    "samples": draw_samples,
    "curves_with_samples": draw_curves_with_samples,
    "overlays": draw_overlays,
}
