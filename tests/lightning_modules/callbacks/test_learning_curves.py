"""Curves from metrics.csv."""

from __future__ import annotations

import numpy as np
import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from lightning_modules.callbacks import LearningCurves
from lightning_modules.callbacks.learning_curves import MANY_POINTS, _running_mean, curves_of, draw_curves
from lightning_modules.metrics_file import read_metrics
from lightning_modules.pictures.saving import drawing
from tests.helpers.tiny_runs import tiny_data, tiny_task, tiny_trainer

METRICS = """epoch,step,train/loss,val/accuracy,lr-Adam/weights
0,0,2.0,,0.1
0,1,nan,0.5,
1,2,1.0,,0.05
"""


def curve(count):
    return np.arange(count), np.linspace(1, 0, count)


def test_columns_are_read_with_their_steps(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    curves = curves_of(read_metrics(tmp_path / "metrics.csv"))
    read = {name: (steps.tolist(), values.tolist()) for name, (steps, values) in curves.items()}
    assert read == {
        "train/loss": ([0, 2], [2, 1]),
        "val/accuracy": ([1], [0.5]),
        "lr-Adam/weights": ([0, 2], [0.1, 0.05]),
    }


def test_a_panel_a_metric():
    curves = {
        "val/accuracy": curve(3),
        "train/accuracy": curve(3),
        "train/loss": curve(MANY_POINTS + 1),
        "test/accuracy": (np.array([9]), np.array([0.912])),
        "test/accuracy_cat": (np.array([9]), np.array([0.5])),
        "geometry/conv1/sigma_mean": curve(3),
        "lr-Adam/weights": curve(3),
        "lr-Adam/geometry": curve(3),
    }
    with drawing("curves"):
        loss, accuracy, rate = draw_curves(curves).axes
    assert [axes.get_title(loc="left") for axes in (loss, accuracy, rate)] == ["loss", "accuracy", "learning rate"]
    labels = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in (loss, accuracy, rate)]
    assert labels == [["train (running mean)"], ["train", "val", "test 0.912"], ["weights", "geometry"]]


def test_the_running_mean_is_a_mean_of_neighbours():
    values = np.random.default_rng(0).normal(size=20)
    expected = [values[max(0, i - 3) : i + 4].mean() for i in range(20)]
    np.testing.assert_allclose(_running_mean(values, 3), expected)


def test_drawn_at_the_end_of_a_fit_and_again_after_the_test(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    trainer = tiny_trainer(tmp_path, [LearningCurves(), LearningRateMonitor("step")], logger=logger)
    task, data = tiny_task(), tiny_data()
    trainer.fit(task, datamodule=data)
    picture = tmp_path / "media" / "learning_curves.png"
    before = picture.read_bytes()
    trainer.test(task, datamodule=data, verbose=False)
    assert picture.read_bytes() != before


@pytest.mark.parametrize("metrics", [None, "epoch,step,test/loss\n0,0,1.0\n"])
def test_nothing_is_drawn_without_a_training(tmp_path, metrics):
    if metrics is not None:
        (tmp_path / "metrics.csv").write_text(metrics)
    tiny_trainer(tmp_path, [LearningCurves()]).test(tiny_task(), datamodule=tiny_data(), verbose=False)
    assert not (tmp_path / "media").exists()
