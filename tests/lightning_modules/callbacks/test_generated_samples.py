"""Grids of the same latents, epoch by epoch, and what a resumed run makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from lightning_modules.callbacks import GeneratedSamples
from lightning_modules.pictures.images import image_grid, to_uint8
from lightning_modules.pictures.saving import show_picture
from tests.helpers.tiny_gans import BATCHES_AN_EPOCH, gan_data, tiny_gan
from tests.helpers.tiny_runs import SaveAfter, tiny_trainer


def fit(folder, *callbacks, samples=None, ckpt_path=None, **options):
    trainer = tiny_trainer(folder, [samples or GeneratedSamples(2, 3), *callbacks], **options)
    task = tiny_gan()
    trainer.fit(task, datamodule=gan_data(), ckpt_path=ckpt_path)
    return task


def grids(folder):
    return {path.name: path.read_bytes() for path in (folder / "media" / "samples").iterdir()}


def frames(folder):
    with Image.open(folder / "media" / "samples.webp") as animation:
        return getattr(animation, "n_frames", 1)


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_grid_an_epoch_the_newest_and_an_animation(tmp_path):
    task = fit(tmp_path)
    media = tmp_path / "media"
    assert sorted(path.name for path in media.iterdir()) == ["samples", "samples.png", "samples.webp"]
    assert grids(tmp_path).keys() == {"epoch_0001.png", "epoch_0002.png"}
    expected = image_grid(to_uint8(task.generate(task.evaluation_latents(0, 6, purpose="pictures"))), 3)
    np.testing.assert_array_equal(pixels(media / "samples.png"), expected)
    np.testing.assert_array_equal(pixels(media / "samples" / "epoch_0002.png"), expected)
    assert (pixels(media / "samples" / "epoch_0001.png") != expected).any()
    assert frames(tmp_path) == 2


def test_every_n_epochs(tmp_path):
    fit(tmp_path, samples=GeneratedSamples(1, 1, every_n_epochs=2), max_epochs=5)
    assert grids(tmp_path).keys() == {"epoch_0002.png", "epoch_0004.png"}


@pytest.mark.parametrize("step", [BATCHES_AN_EPOCH, BATCHES_AN_EPOCH + 1], ids=["epoch end", "mid-epoch"])
def test_a_resumed_run_has_the_grids_of_an_uninterrupted_one(tmp_path, step):
    fit(tmp_path / "whole", max_epochs=3)
    fit(tmp_path / "cut", SaveAfter(step, tmp_path / "last.ckpt"))  # its files are ahead of the checkpoint
    folder = tmp_path / "cut" / "media" / "samples"
    (folder / "epoch_0004.png").write_bytes(b"of an epoch that is not trained any more")
    (folder / "a note.png").write_bytes(b"not ours")
    fit(tmp_path / "cut", ckpt_path=tmp_path / "last.ckpt", max_epochs=3)
    assert grids(tmp_path / "cut") == {**grids(tmp_path / "whole"), "a note.png": b"not ours"}
    assert frames(tmp_path / "cut") == 3


def test_grids_of_epochs_to_be_trained_again_are_gone_from_the_start(tmp_path):
    fit(tmp_path, SaveAfter(BATCHES_AN_EPOCH, tmp_path / "last.ckpt"), max_epochs=3)
    fit(tmp_path, samples=GeneratedSamples(every_n_epochs=9), ckpt_path=tmp_path / "last.ckpt", max_epochs=2)
    assert grids(tmp_path).keys() == {"epoch_0001.png"}


def test_a_new_run_starts_anew(tmp_path):
    for epochs in (2, 1):
        fit(tmp_path, max_epochs=epochs)
    assert grids(tmp_path).keys() == {"epoch_0001.png"}
    assert frames(tmp_path) == 1


def test_a_run_that_was_killed_at_its_end_gets_its_animation(tmp_path):
    """All is trained, so no epoch is left to begin."""
    fit(tmp_path, SaveAfter(2 * BATCHES_AN_EPOCH, tmp_path / "last.ckpt"))
    (tmp_path / "media" / "samples.webp").unlink()
    fit(tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert frames(tmp_path) == 2


class Album(DummyLogger):
    def __init__(self):
        super().__init__()
        self.pictures = []


@show_picture.register(Album)
def _(logger: Album, key: str, pixels: np.ndarray, step: int) -> None:
    logger.pictures.append((key, step))


def test_loggers_get_each_grid_under_one_name(tmp_path):
    album = Album()
    fit(tmp_path, logger=album)
    assert album.pictures == [("media/samples", BATCHES_AN_EPOCH - 1), ("media/samples", 2 * BATCHES_AN_EPOCH - 1)]


@pytest.mark.parametrize("options", [{"rows": 0}, {"columns": 0}, {"every_n_epochs": 0}])
def test_impossible_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be 1 or more, got 0"):
        GeneratedSamples(**options)
