"""The geometry of synthesised filters over a training: recorded once an epoch, drawn at the end."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.files import written_whole
from lightning_modules.pictures.saving import BLUE, GREY, VERMILLION
from models.convs import SynthesisedConv2d

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUANTITIES = {"sigma": "σ (pixels)", "mu": "μ (pixels)", "theta": "θ (radians)"}
# Layers with more units are recorded through an even sample of them: a DAU layer easily has 100,000.
MAX_UNITS = 512
# Of more units than these some are drawn, before a band that holds most of them.
MAX_LINES = 24
_MEDIAN_WIDTH, _UNIT_WIDTH, _BAND_ALPHA = 2.0, 0.5, 0.15


def learnt_geometry(layer: SynthesisedConv2d) -> dict[str, Tensor]:
    """What `layer` learns of sigma, mu and theta, each (units,) or (units, 2), on the CPU in float32.

    The components of sigma and mu are those along u_1 and u_2 for Gaussian derivatives; those of mu along the width and
    the height for DAU. At most `MAX_UNITS` units are taken, evenly spaced.
    """
    names = [name for name in QUANTITIES if name in getattr(layer, "trainable", ())]
    if not names:
        return {}
    unit_dims = layer.mu.ndim - 1  # type: ignore[operator]
    with torch.no_grad():
        values = {name: getattr(layer, name).flatten(0, unit_dims - 1) for name in names}
        return {name: evenly(value, MAX_UNITS).float().cpu() for name, value in values.items()}


def evenly(values: Tensor, count: int) -> Tensor:
    """`count` rows of `values` with even gaps, from the first to the last; all rows where there are no more."""
    rows = torch.linspace(0, len(values) - 1, min(len(values), count), device=values.device)
    return values[rows.round().long()]


def geometry_layers(network: nn.Module) -> dict[str, SynthesisedConv2d]:
    """The layers of `network` that learn a geometry, by their dotted names."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, SynthesisedConv2d) and module.geometry_parameters()
    }


class GeometryHistory:
    """Arrays over time, `<layer>/<quantity>` (T, units[, 2]), beside `step` (T,) and `epoch` (T,); one .npz file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, np.ndarray] = {}

    def resume(self, step: int) -> None:
        """Take up the file where a checkpoint of `step` left it; records of later steps will be made again.

        A file that cannot be read (or is of another network) is given up: it holds pictures' data, not results.
        """
        try:
            with open(self.path, "rb") as file, np.load(file) as arrays:
                columns = dict(arrays)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            return
        if "step" in columns:
            kept = columns["step"] <= step
            self.columns = {name: values[kept] for name, values in columns.items()}

    def record(self, step: int, epoch: int, values: dict[str, Tensor]) -> None:
        """Append one record and write the file. A record of the same step is replaced."""
        row = {"step": np.asarray(step), "epoch": np.asarray(epoch), **{k: v.numpy() for k, v in values.items()}}
        if {k: v.shape for k, v in row.items()} != {k: v.shape[1:] for k, v in self.columns.items()}:
            self.columns = {name: value[None] for name, value in row.items()}
        else:
            older = self.columns["step"] < step
            self.columns = {k: np.concatenate([self.columns[k][older], v[None]]) for k, v in row.items()}
        with written_whole(self.path) as file:
            np.savez(file, **self.columns)  # type: ignore[arg-type]


def draw_geometry(columns: dict[str, np.ndarray], max_layers: int = 8) -> Figure:
    """One row a layer, one column a quantity: some units over the steps, median and range of all of them."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = [name.rpartition("/")[::2] for name in columns if "/" in name]
    layers = list(dict.fromkeys(layer for layer, _ in names))[:max_layers]
    quantities = [quantity for quantity in QUANTITIES if any(quantity == other for _, other in names)]
    figure = Figure(figsize=(0.4 + 2.2 * len(quantities), 0.75 + 1.35 * len(layers)))
    grid = figure.subplots(len(layers), len(quantities), squeeze=False, sharex=True, sharey="col")
    for row, layer in zip(grid, layers, strict=True):
        row[0].set_title(layer, loc="left", fontweight="bold")
        for axes, quantity in zip(row, quantities, strict=True):
            if f"{layer}/{quantity}" in columns:
                _draw_units(axes, columns["step"], columns[f"{layer}/{quantity}"])
            axes.margins(x=0)
    for axes, quantity in zip(grid[0], quantities, strict=True):
        if quantity == "theta":
            _label_in_pi(axes)
    for row in grid:
        for axes, quantity in zip(row, quantities, strict=True):
            axes.set_ylabel(QUANTITIES[quantity])
    for axes in grid[-1]:
        axes.set_xlabel("training step")

    keys = [
        Line2D([], [], color=BLUE, label="1st axis"),
        Line2D([], [], color=VERMILLION, label="2nd axis"),
        Line2D([], [], color=GREY, linewidth=_MEDIAN_WIDTH, label="median of the units"),
        Line2D([], [], color=GREY, linewidth=_UNIT_WIDTH, label="one unit"),
        Patch(color=GREY, alpha=_BAND_ALPHA, linewidth=0, label="90 % of the units"),
    ]
    columns_of_keys = len(keys) if len(quantities) > 1 else 2
    figure.legend(handles=keys, loc="outside upper left", ncols=columns_of_keys, handlelength=1.4, columnspacing=1.2)
    return figure


def _draw_units(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    values = values if values.ndim == 3 else values[..., None]
    colours = (BLUE, VERMILLION) if values.shape[-1] == 2 else (GREY,)
    for component, colour in zip(np.moveaxis(values, -1, 0), colours, strict=True):
        low, middle, high = np.quantile(component, [0.05, 0.5, 0.95], axis=1)
        if component.shape[1] > MAX_LINES:
            axes.fill_between(steps, low, high, color=colour, alpha=_BAND_ALPHA, linewidth=0)
        some = evenly(torch.from_numpy(component.T), MAX_LINES).numpy()
        # All in one line with gaps, which draws many times faster than a line each.
        x = np.tile(np.append(steps, np.nan), len(some))
        y = np.pad(some, ((0, 0), (0, 1)), constant_values=np.nan).ravel()
        axes.plot(x, y, color=colour, alpha=0.5, linewidth=_UNIT_WIDTH)
        axes.plot(steps, middle, color=colour, linewidth=_MEDIAN_WIDTH)


def _label_in_pi(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    axes.yaxis.set_major_locator(MultipleLocator(np.pi))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: {0: "0", 1: "π", -1: "−π"}.get(round(value / np.pi), f"{value / np.pi:.0f}π"))
    )
