"""Pictures reach the run folder and the loggers, and never end a run."""

from __future__ import annotations

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from lightning_modules.pictures.saving import drawing, is_writing, logged_step, save_picture, show_picture


def fake_trainer(folder, *, loggers=(), steps=0, fn="fit", **options):
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=steps))
    state = SimpleNamespace(fn=fn)
    options = {"is_global_zero": True, "fast_dev_run": False, **options}
    return SimpleNamespace(default_root_dir=str(folder), loggers=loggers, fit_loop=loop, state=state, **options)


def pixels_of(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_an_image_is_written_as_it_is(tmp_path, shape):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    save_picture(fake_trainer(tmp_path), "image", image)
    np.testing.assert_array_equal(pixels_of(tmp_path / "media" / "image.png"), image)


def test_floats_are_shares_of_white(tmp_path):
    save_picture(fake_trainer(tmp_path), "image", np.array([[-1.0, 0.0, 0.5, 1.0, 2.0]], dtype=np.float32))
    assert pixels_of(tmp_path / "media" / "image.png").tolist() == [[0, 0, 128, 255, 255]]


def test_a_figure_has_its_size_and_matplotlib_keeps_its_settings(tmp_path):
    from matplotlib.figure import Figure

    before = dict(matplotlib.rcParams), matplotlib.rcParams._get("backend")
    with drawing("figure"):
        figure = Figure(figsize=(2, 1), dpi=100)
        figure.subplots().plot([1, 2])
        save_picture(fake_trainer(tmp_path), "figure", figure)
    assert pixels_of(tmp_path / "media" / "figure.png").shape[:2] == (100, 200)
    assert (dict(matplotlib.rcParams), matplotlib.rcParams._get("backend")) == before


@pytest.mark.parametrize("option", [{"is_global_zero": False}, {"fast_dev_run": True}])
def test_other_processes_and_fast_dev_runs_write_nothing(tmp_path, option):
    trainer = fake_trainer(tmp_path, **option)
    assert not is_writing(trainer)
    save_picture(trainer, "image", np.zeros((2, 2)))
    assert not list(tmp_path.iterdir())


def test_a_new_picture_replaces_the_old_one_and_leaves_no_draft(tmp_path):
    for value in (0, 200):
        save_picture(fake_trainer(tmp_path), "image", np.full((2, 2), value, np.uint8))
    assert [path.name for path in (tmp_path / "media").iterdir()] == ["image.png"]
    assert pixels_of(tmp_path / "media" / "image.png").max() == 200


def test_tensorboard_gets_the_same_pixels_and_csv_none(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = TensorBoardLogger(tmp_path / "board", name="", version="")
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    save_picture(fake_trainer(tmp_path, loggers=[CSVLogger(tmp_path), board], steps=8), "image", image)
    board.finalize("success")
    events = event_accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    (event,) = events.Images("media/image")
    (tmp_path / "shown.png").write_bytes(event.encoded_image_string)
    assert event.step == 7
    np.testing.assert_array_equal(pixels_of(tmp_path / "shown.png"), image)


def test_a_logger_class_can_be_added(tmp_path):
    class Album(DummyLogger):
        def __init__(self):
            super().__init__()
            self.pictures = []

    @show_picture.register(Album)
    def _(logger: Album, key: str, pixels: np.ndarray, step: int) -> None:
        logger.pictures.append((key, pixels.shape, step))

    album = Album()
    save_picture(fake_trainer(tmp_path, loggers=[album], steps=3), "image", np.zeros((2, 5)))
    assert album.pictures == [("media/image", (2, 5, 3), 2)]


def test_steps_are_those_of_metrics(tmp_path):
    assert logged_step(fake_trainer(tmp_path, steps=0)) == 0
    assert logged_step(fake_trainer(tmp_path, steps=10)) == 9
    assert logged_step(fake_trainer(tmp_path, steps=10, fn="test")) == 10


def test_an_error_while_drawing_warns_with_its_reason():
    with pytest.warns(UserWarning, match=r"'kernels' could not be made.*OSError: disk full"), drawing("kernels"):
        raise OSError("disk full")


def test_ctrl_c_while_drawing_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), drawing("kernels"):
        raise KeyboardInterrupt
