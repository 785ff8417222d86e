"""How good a generator's images are, and its losses, in the course of a training, over the schedule of its betas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.callbacks.learning_curves import Curve, draw_curve, draw_rates, save_curves
from lightning_modules.metrics_file import Row
from lightning_modules.pictures.saving import BLUE, GREEN, GREY, ORANGE, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _TALL, _LOW = 6.4, 1.9, 1.15  # inches
_MEASURE = re.compile(r"val/(?P<kind>fid|kid|coverage)_(?P<extractor>.+)_(?P<count>\d+)(?:_(?P<split>train|val|test))?")
_TITLES = {"fid": "FID", "kid": "KID", "coverage": "coverage"}
# Title: the curves of the panel, each with what it is called there.
_PAIRS = {
    "loss": {"train/loss_discriminator": "discriminator", "train/loss_generator": "generator"},
    "logit of the discriminator": {"train/logit_real": "real images", "train/logit_fake": "generated images"},
}
_BETAS = {"train/beta_high": "β high", "train/beta_low": "β low"}


class GANCurves(Callback):
    """Draws `gan_curves.png` from the run's `metrics.csv`, after each epoch and with the result after a test.

    One above the other, along the training steps: each Fréchet distance with its best and its last value, the other
    measures, the losses, the discriminator's logits, learning rates that change, and the betas of octave maps.

    Args:
        every_n_epochs: Draw every so many epochs, and when the fit ends.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be 1 or more, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            _draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _draw(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _draw(trainer)


def _draw(trainer: Trainer) -> None:
    save_curves(trainer, "gan_curves", lambda curves, rows: draw_gan_curves(curves, _epochs(rows)))


def _epochs(rows: list[Row]) -> dict[float, int]:
    """Step to the epoch, counted from 1, that it belongs to."""
    return {float(row["step"]): int(float(row["epoch"])) + 1 for row in rows if row.get("epoch")}


def draw_gan_curves(curves: dict[str, Curve], epochs: dict[float, int]) -> Figure:
    """Panels with one axis of steps; `curves` are named as `GANTask` logs them, learning rates `lr-...`."""
    from matplotlib.figure import Figure

    measures = sorted(
        (match for match in map(_MEASURE.fullmatch, curves) if match),
        key=lambda match: list(_TITLES).index(match["kind"]),
    )
    pairs = {title: names for title, names in _PAIRS.items() if names.keys() & curves.keys()}
    rates = {name.removeprefix("lr-"): curve for name, curve in curves.items() if name.startswith("lr-")}
    rates = rates if any(np.ptp(values) for _, values in rates.values()) else {}
    betas = _BETAS if _BETAS.keys() & curves.keys() else {}

    heights = [_TALL if match["kind"] == "fid" else _LOW for match in measures]
    heights += [_LOW] * (len(pairs) + bool(rates) + bool(betas))
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.3))
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    rest = iter(panels)
    for match in measures:
        _draw_measure(next(rest), match, curves, epochs)
    for title, names in pairs.items():
        axes = next(rest)
        for (name, label), colour in zip(names.items(), (BLUE, ORANGE), strict=True):
            if name in curves:
                draw_curve(axes, *curves[name], label, colour)
        _finish(axes, title)
    if rates:
        draw_rates(next(rest), rates)
    if betas:
        _draw_betas(next(rest), {label: curves[name] for name, label in betas.items() if name in curves})
    panels[-1].set_xlabel("training step")
    return figure


def _draw_measure(axes: Axes, match: re.Match[str], curves: dict[str, Curve], epochs: dict[float, int]) -> None:
    steps, values = curves[match[0]]
    axes.plot(steps, values, color=BLUE, marker="o" if len(steps) < 80 else "", markersize=2)
    compared = f" against {match['split']} images" if match["split"] else ""
    title = f"{_TITLES[match['kind']]}, {match['extractor']}, {int(match['count']):,} images{compared}"
    tested = curves.get(match[0].replace("val/", "test/", 1))
    if match["kind"] == "fid":
        best = int(values.argmin())
        rise = f" (+{values[-1] - values[best]:.3g})" if best < len(values) - 1 else ""
        _mark(axes, steps[best], values[best], GREEN, f"best {values[best]:.4g}{_when(steps[best], epochs)}", size=6)
        _mark(axes, steps[-1], values[-1], VERMILLION, f"last {values[-1]:.4g}{rise}")
    if match["kind"] == "coverage":
        axes.set_ylim(-0.03, 1.03)
    if tested is not None:
        _mark(axes, tested[0][-1], tested[1][-1], GREY, f"test {tested[1][-1]:.4g}")
    _finish(axes, title)


def _mark(axes: Axes, step: float, value: float, colour: str, label: str, size: float = 4) -> None:
    axes.plot([step], [value], "o", color=colour, markersize=size, label=label, clip_on=False, zorder=3)


def _when(step: float, epochs: dict[float, int]) -> str:
    return f" (epoch {epochs[step]})" if step in epochs else ""


def _draw_betas(axes: Axes, betas: dict[str, Curve]) -> None:
    for (label, (steps, values)), colour in zip(betas.items(), (VERMILLION, BLUE), strict=False):
        # Logged at the end of the epoch in which they were in force.
        axes.plot([0, *steps], [values[0], *values], color=colour, drawstyle="steps-pre", label=label)
    axes.set_ylim(-0.05, 1.05)
    _finish(axes, "weights of high and low maps")


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=3)
