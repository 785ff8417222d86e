"""The kernels a network has learnt, and how their geometry got there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_modules.callbacks.geometry_history import (
    GeometryHistory,
    draw_geometry,
    evenly,
    geometry_layers,
    learnt_geometry,
)
from lightning_modules.pictures.saving import (
    DIVERGING,
    dispensable,
    drawing,
    is_writing,
    logged_step,
    media_folder,
    save_picture,
)
from models.convs import GaussianDerivativeConv2d, SynthesisedConv2d
from models.convs.gaussian import basis_orders

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class KernelPictures(Callback):
    """Draws the filters of a network when training ends, and the course of their geometry.

    - `kernels_<layer>.png`: the bases of each Gaussian derivative layer;
    - `filters.png`: dense filters, of every synthesised layer, or of the first layer where all filters are free-form;
    - `geometry.png`: sigma, mu and theta of each layer over the steps. The values behind it are in `geometry.npz`,
      recorded once an epoch, so that kernels of any epoch can be computed again; a resumed run goes on with it.

    Once an epoch `geometry/<layer>/sigma_mean`, `.../sigma_min` and `.../shift_mean` (the mean length of mu) go to the
    loggers, in pixels.

    Args:
        every_n_epochs: Also draw while training, every so many epochs: the files show the latest, loggers keep all.
        max_layers: Draw at most this many layers, from the input on. All are recorded.
    """

    def __init__(self, every_n_epochs: int | None = None, max_layers: int = 8) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be 1 or more, or null for the end alone; got {every_n_epochs}")
        if max_layers < 1:
            raise ValueError(f"max_layers must be 1 or more, got {max_layers}")
        self.every_n_epochs = every_n_epochs
        self.max_layers = max_layers
        self.history: GeometryHistory | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.history = None
        if not geometry_layers(_network(pl_module)):
            return
        self.history = GeometryHistory(media_folder(trainer) / "geometry.npz")
        if not is_writing(trainer):
            return
        if trainer.global_step > 0:
            self.history.resume(trainer.global_step)
        if not self.history.columns:
            self._record(trainer, pl_module, epochs=0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.history is not None:
            self._record(trainer, pl_module, epochs=trainer.current_epoch + 1)
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _record(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        if not is_writing(trainer) or self.history is None:
            return
        layers = geometry_layers(_network(pl_module))
        values = {
            f"{name}/{key}": value for name, layer in layers.items() for key, value in learnt_geometry(layer).items()
        }
        with dispensable("geometry.npz"):
            self.history.record(trainer.global_step, epochs, values)
        # Past `self.log`: the progress bar and checkpoints have no use for these.
        for logger in trainer.loggers if epochs else []:
            logger.log_metrics({"epoch": epochs - 1, **_summary(values)}, logged_step(trainer))

    @torch.no_grad()
    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_writing(trainer):
            return
        network = _network(pl_module)
        layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, SynthesisedConv2d)}
        layers = dict(list(layers.items())[: self.max_layers])
        for name, layer in layers.items():
            if isinstance(layer, GaussianDerivativeConv2d):
                with drawing(f"kernels_{name}"):
                    save_picture(trainer, f"kernels_{name}", draw_kernels(name, layer))
        filters = {name: layer.dense_weight() for name, layer in layers.items()} or _first_filters(network)
        if filters:
            with drawing("filters"):
                save_picture(trainer, "filters", draw_filters(filters))
        if self.history is not None and self.history.columns:
            with drawing("geometry"):
                save_picture(trainer, "geometry", draw_geometry(self.history.columns, self.max_layers))


def draw_kernels(name: str, layer: GaussianDerivativeConv2d, max_bases: int = 8) -> Figure:
    """The bases of one layer, a row each; an ellipse shows each kernel's place, scales and angle."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        shown = (layer.kernels(), layer.sigma, layer.mu, layer.theta)
        kernels, sigma, mu, theta = (value[:max_bases].float().cpu().detach() for value in shown)
    kernels /= kernels.abs().amax((2, 3), keepdim=True).clamp_min(torch.finfo().tiny)
    bases, count, height, width = kernels.shape

    figure = Figure(figsize=(1.1 + 0.62 * count, 0.6 + 0.62 * bases * height / width))
    axes = figure.subplots()
    image = _draw_tiles(axes, kernels.numpy(), limit=1.0)
    for b in range(bases):
        for n in range(count):
            centre = (n * (width + 1) + (width - 1) / 2, b * (height + 1) + (height - 1) / 2)
            _draw_ellipse(axes, centre, (width, height), sigma[b, n], mu[b, n], float(theta[b, n]))
    axes.set_xticks(
        np.arange(count) * (width + 1) + (width - 1) / 2, [f"{p}, {q}" for p, q in basis_orders(layer.order)]
    )
    axes.set_yticks(np.arange(bases) * (height + 1) + (height - 1) / 2, [f"basis {b + 1}" for b in range(bases)])
    number = f"{layer.num_bases} bases" if bases == layer.num_bases else f"{bases} of {layer.num_bases} bases"
    axes.set_title(f"{name}: {number} of {count} kernels, {height} × {width} pixels", loc="left", fontweight="bold")
    axes.set_xlabel("derivative orders p, q along u₁, u₂ (ellipse: one σ around μ, turned by θ)")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1], fraction=0.02, pad=0.01)
    bar.ax.set_yticklabels(["−max", "0", "max"])
    bar.outline.set_visible(False)
    return figure


def draw_filters(weights: dict[str, Tensor], columns: int = 16, rows: int = 2) -> Figure:
    """Some filters of each layer's dense weight (out, in, kH, kW), evenly chosen; three input channels as colours.

    Titles name the layer's strongest colours: the value that 1 % of the weights shown lie beyond.
    """
    from matplotlib.figure import Figure

    all_filters = {name: _as_filters(weight.detach().float().cpu()) for name, weight in weights.items()}
    heights = [min(rows, -(-len(filters) // columns)) for filters in all_filters.values()]
    figure = Figure(figsize=(6.6, 0.1 + sum(0.27 + 0.4 * height for height in heights)))
    grid = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, lines, (name, filters) in zip(grid, heights, all_filters.items(), strict=True):
        chosen = evenly(filters, lines * columns)
        # A few strong weights would leave all others pale.
        limit = float(np.quantile(chosen.abs(), 0.99))
        tiles = np.full((lines * columns, *filters.shape[1:]), np.nan)
        tiles[: len(chosen)] = chosen.numpy()
        _draw_tiles(axes, tiles.reshape(lines, columns, *filters.shape[1:]), limit)
        height, width = filters.shape[1:3]
        text = f"{len(chosen)} of {len(filters)} filters, {height} × {width} pixels, colours to ±{limit:.2g}"
        axes.set_title(f"{name}: {text}", loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _as_filters(weight: Tensor) -> Tensor:
    """(out, 3, kH, kW) as (out, kH, kW, 3), all else as (out * in, kH, kW)."""
    return weight.permute(0, 2, 3, 1) if weight.shape[1] == 3 else weight.flatten(0, 1)


def _draw_tiles(axes: Axes, tiles: np.ndarray, limit: float) -> Any:
    """Lay out (rows, columns, kH, kW[, 3]) with white gaps of a pixel; values at +-limit get the strongest colours."""
    rows, columns, height, width = tiles.shape[:4]
    mosaic = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *tiles.shape[4:]), np.nan)
    for row, column in np.ndindex(rows, columns):
        top, left = row * (height + 1), column * (width + 1)
        mosaic[top : top + height, left : left + width] = tiles[row, column]
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if mosaic.ndim == 3:
        return axes.imshow(np.nan_to_num(0.5 + 0.5 * mosaic / limit, nan=1.0).clip(0, 1))
    return axes.imshow(mosaic, cmap=DIVERGING, vmin=-limit, vmax=limit)


def _draw_ellipse(
    axes: Axes, centre: tuple[float, float], size: tuple[int, int], sigma: Tensor, mu: Tensor, theta: float
) -> None:
    """The contour one sigma away from a kernel's centre, cut at the border of its tile."""
    from matplotlib.patches import Ellipse, Rectangle

    cos, sin = np.cos(theta), np.sin(theta)
    first, second = (float(value) for value in mu)
    # u = R x, so the Gaussian's centre u = mu lies at x = R^T mu.
    at = (centre[0] + cos * first - sin * second, centre[1] + sin * first + cos * second)
    ellipse = Ellipse(
        at, 2 * float(sigma[0]), 2 * float(sigma[1]), angle=np.degrees(theta), fill=False, linewidth=0.5, alpha=0.7
    )
    axes.add_patch(ellipse)
    corner = (centre[0] - size[0] / 2, centre[1] - size[1] / 2)
    ellipse.set_clip_path(Rectangle(corner, *size, transform=axes.transData))


def _network(task: LightningModule) -> nn.Module:
    return getattr(task, "network", task)  # so that layers go by their names in the network


def _first_filters(network: nn.Module) -> dict[str, Tensor]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            return {name: module.weight}
    return {}


def _summary(values: dict[str, Tensor]) -> dict[str, float]:
    summary = {}
    for name, value in values.items():
        layer, _, quantity = name.rpartition("/")
        if quantity == "sigma":
            summary[f"geometry/{layer}/sigma_mean"] = float(value.mean())
            summary[f"geometry/{layer}/sigma_min"] = float(value.min())
        if quantity == "mu":
            summary[f"geometry/{layer}/shift_mean"] = float(value.norm(dim=-1).mean())
    return summary
