"""FID, losses and betas from metrics.csv."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_modules.callbacks import GANCurves
from lightning_modules.callbacks.gan_curves import draw_gan_curves
from lightning_modules.callbacks.learning_curves import curves_of
from lightning_modules.loggers import MetricsCSVLogger
from lightning_modules.metrics_file import read_metrics
from lightning_modules.pictures.saving import drawing
from lightning_modules.runs import Run
from tests.helpers.tiny_gans import BATCHES_AN_EPOCH, OCTAVE, gan_data, tiny_gan
from tests.helpers.tiny_runs import tiny_trainer

FID = "val/fid_contrastive_2000"


def curve(*values):
    return np.arange(1.0, len(values) + 1), np.array(values, dtype=float)


def panels_of(curves, epochs=None):
    with drawing("curves"):
        figure = draw_gan_curves(curves, epochs or {})
        figure.draw_without_rendering()
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_panel_a_quantity_the_betas_at_the_bottom():
    curves = {
        "train/beta_low": curve(0.7, 0.5),
        "train/beta_high": curve(0.3, 0.5),
        "train/loss_generator": curve(2, 3),
        "train/loss_discriminator": curve(1, 1),
        "train/logit_real": curve(1, 2),
        "train/logit_fake": curve(-1, -2),
        "lr-Adam/weights": curve(0.1, 0.1),
        "val/coverage_contrastive_2000": curve(0.1, 0.2),
        "val/kid_inception_50_test": curve(0.1, 0.2),
        FID: curve(30, 20),
        f"{FID}_best": curve(30, 20),
        f"{FID}_rise": curve(0, 0),
    }
    panels = panels_of(curves)
    assert list(panels) == [
        "FID, contrastive, 2,000 images",
        "KID, inception, 50 images against test images",
        "coverage, contrastive, 2,000 images",
        "loss",
        "logit of the discriminator",
        "weights of high and low maps",
    ]
    assert labels(panels["loss"]) == ["discriminator", "generator"]
    assert labels(panels["weights of high and low maps"]) == ["β high", "β low"]
    assert len({axes.get_xlim() for axes in panels.values()}) == 1


def test_the_best_and_the_last_distance_are_marked():
    axes = panels_of({FID: curve(50, 20.5, 30), FID.replace("val", "test"): curve(21)}, epochs={2.0: 7})
    (axes,) = axes.values()
    assert labels(axes) == ["best 20.5 (epoch 7)", "last 30 (+9.5)", "test 21"]
    assert [tuple(line.get_xydata()[0]) for line in axes.lines[1:]] == [(2, 20.5), (3, 30), (1, 21)]


def test_betas_hold_for_the_epoch_at_whose_end_they_are_logged():
    """Epochs of 4 steps, of which the logger keeps the last."""
    (axes,) = panels_of({"train/beta_high": (np.array([3, 7]), np.array([0.25, 0.5]))}).values()
    (line,) = axes.lines
    assert line.get_drawstyle() == "steps-pre"
    assert line.get_xydata().tolist() == [[0, 0.25], [3, 0.25], [7, 0.5]]


def test_learning_rates_that_change_have_a_panel():
    assert list(panels_of({FID: curve(1), "lr-Adam/weights": curve(0.1, 0.05)})) == [
        "FID, contrastive, 2,000 images",
        "learning rate",
    ]


def test_drawn_after_each_epoch_and_at_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "lightning_modules.callbacks.learning_curves.save_picture",
        lambda trainer, name, figure: drawn.append((name, len(figure.axes))),
    )
    logger = MetricsCSVLogger(Run(tmp_path))
    task = tiny_gan(conv=OCTAVE, beta_schedule="ramp")
    tiny_trainer(tmp_path, [GANCurves()], logger=logger).fit(task, datamodule=gan_data())
    assert drawn == [("gan_curves", 2), ("gan_curves", 3), ("gan_curves", 3)]  # betas are logged as an epoch ends
    steps, values = curves_of(read_metrics(tmp_path / "metrics.csv"))["train/beta_high"]
    assert steps.tolist() == [BATCHES_AN_EPOCH - 1, 2 * BATCHES_AN_EPOCH - 1]
    assert values.tolist() == [0.5, 1.0]


def test_impossible_interval():
    with pytest.raises(ValueError, match="every_n_epochs must be 1 or more"):
        GANCurves(every_n_epochs=0)
