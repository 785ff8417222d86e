"""Kernels and their geometry: what is drawn, what is recorded, and that training does not notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from lightning_modules.callbacks import KernelPictures, default_callbacks
from lightning_modules.callbacks.geometry_history import MAX_UNITS, GeometryHistory, draw_geometry, learnt_geometry
from lightning_modules.callbacks.kernel_pictures import draw_filters, draw_kernels
from lightning_modules.metrics_file import read_metrics
from lightning_modules.pictures.saving import drawing
from models.convs import create_conv
from tests.helpers.tiny_runs import STEPS_AN_EPOCH, SaveAfter, tiny_data, tiny_task, tiny_trainer


def fit(folder, callbacks, ckpt_path=None, task=None, **options):
    trainer = tiny_trainer(folder, callbacks, **options)
    trainer.fit(task or tiny_task(), datamodule=tiny_data(val_size=0), ckpt_path=ckpt_path)
    return trainer


def pictures_in(folder):
    return sorted(path.name for path in (folder / "media").iterdir())


def geometry_of(folder):
    with np.load(folder / "media" / "geometry.npz") as file:
        return {name: file[name] for name in file.files}


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


pytestmark = pytest.mark.filterwarnings("ignore:You defined a .validation_step.")


def test_a_gaussian_network_gives_bases_filters_and_geometry(tmp_path):
    fit(tmp_path, [KernelPictures()])
    bases = [f"kernels_conv{i}.png" for i in (1, 2, 3, 4)]
    assert pictures_in(tmp_path) == ["filters.png", "geometry.npz", "geometry.png", *bases]


def test_a_free_form_network_gives_its_first_filters(tmp_path):
    fit(tmp_path, [KernelPictures()], task=tiny_task(conv="standard"), max_epochs=1)
    assert pictures_in(tmp_path) == ["filters.png"]


def test_fixed_geometry_is_drawn_but_has_no_history(tmp_path):
    fit(tmp_path, [KernelPictures(max_layers=1)], task=tiny_task(conv={"name": "rfnn", "kernel_size": 5}), max_epochs=1)
    assert pictures_in(tmp_path) == ["filters.png", "kernels_conv1.png"]


def test_geometry_is_recorded_before_training_and_after_each_epoch(tmp_path):
    task = tiny_task()
    fit(tmp_path, [KernelPictures(max_layers=1)], task=task)
    geometry = geometry_of(tmp_path)
    assert geometry["step"].tolist() == [0, STEPS_AN_EPOCH, 2 * STEPS_AN_EPOCH]
    assert geometry["epoch"].tolist() == [0, 1, 2]
    assert {name for name in geometry if "/" in name} == {
        f"conv{i}/{quantity}" for i in (1, 2, 3, 4) for quantity in ("sigma", "mu", "theta")
    }
    layer = task.network.conv2
    np.testing.assert_array_equal(geometry["conv2/sigma"][-1], layer.sigma.detach().flatten(0, 1))
    np.testing.assert_array_equal(geometry["conv2/theta"][-1], layer.theta.detach().flatten())
    np.testing.assert_array_equal(geometry["conv2/mu"][0], tiny_task().network.conv2.mu.detach().flatten(0, 1))


@pytest.mark.parametrize("step", [STEPS_AN_EPOCH, STEPS_AN_EPOCH + 1], ids=["epoch end", "mid-epoch"])
def test_a_resumed_run_has_the_history_of_an_uninterrupted_one(tmp_path, step):
    fit(tmp_path / "whole", [KernelPictures(max_layers=1)], max_epochs=3)
    # Killed some time after the checkpoint: the file is ahead of it.
    fit(tmp_path / "cut", [KernelPictures(max_layers=1), SaveAfter(step, tmp_path / "last.ckpt")])
    fit(tmp_path / "cut", [KernelPictures(max_layers=1)], ckpt_path=tmp_path / "last.ckpt", max_epochs=3)
    whole, resumed = geometry_of(tmp_path / "whole"), geometry_of(tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)


def test_a_new_run_starts_a_new_history(tmp_path):
    for _ in range(2):
        fit(tmp_path, [KernelPictures(max_layers=1)], max_epochs=1)
    assert geometry_of(tmp_path)["step"].tolist() == [0, STEPS_AN_EPOCH]


def test_summaries_go_to_the_loggers_once_an_epoch(tmp_path):
    task = tiny_task()
    logger = CSVLogger(tmp_path, name="", version="")
    fit(tmp_path, [KernelPictures(max_layers=1)], task=task, logger=logger)
    rows = [row for row in read_metrics(tmp_path / "metrics.csv") if row["geometry/conv1/sigma_mean"]]
    assert [row["step"] for row in rows] == [str(STEPS_AN_EPOCH - 1), str(2 * STEPS_AN_EPOCH - 1)]
    assert [row["epoch"] for row in rows] == ["0", "1"]
    layer = task.network.conv1
    assert float(rows[-1]["geometry/conv1/sigma_mean"]) == pytest.approx(float(layer.sigma.detach().mean()), rel=1e-6)
    assert float(rows[-1]["geometry/conv1/sigma_min"]) == pytest.approx(float(layer.sigma.detach().min()), rel=1e-6)
    mean_shift = float(layer.mu.detach().norm(dim=-1).mean())
    assert float(rows[-1]["geometry/conv1/shift_mean"]) == pytest.approx(mean_shift, rel=1e-6)


def test_training_does_not_notice_the_callbacks(tmp_path):
    def losses(name, callbacks):
        record = Losses()
        torch.manual_seed(0)
        trainer = tiny_trainer(tmp_path / name, [record, *callbacks], logger=CSVLogger(tmp_path / name))
        task = tiny_task(model_options={"widths": [4, 4, 4, 4], "norm": "batch"})
        trainer.fit(task, datamodule=tiny_data())
        return record.values, torch.get_rng_state(), task.state_dict()

    plain_losses, plain_rng, plain_weights = losses("plain", [])
    callbacks = [KernelPictures(every_n_epochs=1, max_layers=1), *default_callbacks(tiny_task())]
    drawn_losses, drawn_rng, drawn_weights = losses("drawn", callbacks)
    assert drawn_losses == plain_losses
    assert torch.equal(drawn_rng, plain_rng)
    assert all(torch.equal(drawn_weights[name], plain_weights[name]) for name in plain_weights)


def test_pictures_every_n_epochs(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "lightning_modules.callbacks.kernel_pictures.save_picture",
        lambda trainer, name, figure: saved.append((trainer.current_epoch, name)),
    )
    fit(tmp_path, [KernelPictures(every_n_epochs=2, max_layers=1)], max_epochs=3)
    assert sorted({epoch for epoch, _ in saved}) == [1, 3]  # after the second epoch, and at the end
    assert {name for _, name in saved} == {"kernels_conv1", "filters", "geometry"}


def test_a_picture_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_modules.callbacks.kernel_pictures.draw_kernels", lambda *_: (_ for _ in ()).throw(OSError("no"))
    )
    with pytest.warns(UserWarning, match="'kernels_conv1' could not be made"):
        trainer = fit(tmp_path, [KernelPictures(max_layers=1)], max_epochs=1)
    assert trainer.state.finished
    assert pictures_in(tmp_path) == ["filters.png", "geometry.npz", "geometry.png"]


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"max_layers": 0}])
def test_impossible_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be 1 or more"):
        KernelPictures(**options)


def test_only_what_is_learnt_is_geometry():
    assert learnt_geometry(create_conv("gaussian", 2, 4, 5, trainable=["theta"])).keys() == {"theta"}
    assert learnt_geometry(create_conv("rfnn", 2, 4, 5)) == {}
    dau = learnt_geometry(create_conv("dau", 2, 4, 5, num_units=3))
    assert {name: tuple(value.shape) for name, value in dau.items()} == {"sigma": (24,), "mu": (24, 2)}


def test_many_units_are_sampled_evenly():
    layer = create_conv("dau", 16, 16, 5, num_units=3)
    sigma = learnt_geometry(layer)["sigma"]
    assert sigma.shape == (MAX_UNITS,)
    assert learnt_geometry(layer)["mu"].shape == (MAX_UNITS, 2)
    mu = layer.mu.detach().flatten(0, 2)
    assert torch.equal(learnt_geometry(layer)["mu"][[0, -1]], mu[[0, -1]])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_a_damaged_history_is_given_up(tmp_path, content):
    path = tmp_path / "geometry.npz"
    path.write_bytes(content)
    history = GeometryHistory(path)
    history.resume(step=4)
    history.record(5, 1, {"conv1/theta": torch.zeros(3)})
    assert np.load(path)["step"].tolist() == [5]


def test_the_history_of_another_network_is_given_up(tmp_path):
    history = GeometryHistory(tmp_path / "geometry.npz")
    history.record(0, 0, {"conv1/theta": torch.zeros(3)})
    history.record(2, 1, {"conv1/theta": torch.zeros(4)})
    assert history.columns["conv1/theta"].shape == (1, 4)


@pytest.mark.parametrize("conv", ["gaussian", "dau"])
def test_geometry_is_drawn_with_its_units(tmp_path, conv):
    history = GeometryHistory(tmp_path / "geometry.npz")
    layer = create_conv(conv, 4, 8, 5)
    for step in range(3):
        history.record(step, step, {f"a/{k}": v for k, v in learnt_geometry(layer).items()})
    with drawing("geometry"):
        labels = [axes.get_ylabel() for axes in draw_geometry(history.columns).axes]
    assert labels == ["σ (pixels)", "μ (pixels)", "θ (radians)"][: len(labels)]
    assert len(labels) == {"gaussian": 3, "dau": 2}[conv]


@pytest.mark.parametrize("options", [{"order": 0}, {"num_bases": 16}, {"kernel_size": (3, 7)}], ids=str)
def test_kernels_of_any_shape(options):
    options = {"kernel_size": 5, **options}
    layer = create_conv("gaussian", 4, 16, options.pop("kernel_size"), **options)
    with drawing("kernels"):
        figure = draw_kernels("conv", layer)
        figure.draw_without_rendering()
    assert len(figure.axes[0].patches) == min(layer.num_bases, 8) * layer.num_kernels


def test_the_ellipse_lies_on_the_kernel():
    """The centre of mass of an order-0 kernel is the ellipse's centre."""
    layer = create_conv("gaussian", 1, 1, 15, order=0, sigma_init=1.0)
    with torch.no_grad():
        layer.mu.copy_(torch.tensor([2.0, -1.0]))
        layer.theta.fill_(0.7)
        kernel = layer.kernels()[0, 0]
    with drawing("kernels"):
        (ellipse,) = draw_kernels("conv", layer).axes[0].patches
    rows, columns = torch.meshgrid(torch.arange(15.0), torch.arange(15.0), indexing="ij")
    centre = [float((kernel * at).sum() / kernel.sum()) for at in (columns, rows)]
    assert ellipse.get_center() == pytest.approx(centre, abs=1e-3)
    assert ellipse.angle == pytest.approx(np.degrees(0.7))


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (40, 3, 5, 5), (6, 7, 1, 5)])
def test_filters_of_any_shape(shape):
    with drawing("filters"):
        figure = draw_filters({"conv": torch.randn(shape)})
        figure.draw_without_rendering()
    assert f"of {40 if shape[1] == 3 else shape[0] * shape[1]} filters" in figure.axes[0].get_title(loc="left")
