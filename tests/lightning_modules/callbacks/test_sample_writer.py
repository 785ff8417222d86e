"""Generated images as files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules.callbacks import SampleWriter, prediction_callbacks
from tests.helpers.tiny_gans import gan_data, tiny_gan
from tests.helpers.tiny_runs import tiny_trainer


def predict(folder, count, trainer=None, **options):
    task = tiny_gan(num_predicted=count, **options)
    made = tiny_trainer(folder, [SampleWriter()], **(trainer or {}))
    return made.predict(task, datamodule=gan_data(), return_predictions=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_a_file_by_its_index(tmp_path, channels):
    batches = predict(tmp_path, 103, in_channels=channels)  # more than a batch
    assert names(tmp_path) == ["samples"]
    assert names(tmp_path / "samples") == [f"{i:06d}.png" for i in range(103)]
    images = torch.cat([batch["image"] for batch in batches]).permute(0, 2, 3, 1).numpy()
    for i in (0, 57, 102):
        with Image.open(tmp_path / "samples" / f"{i:06d}.png") as file:
            assert file.mode == {1: "L", 3: "RGB"}[channels]
            np.testing.assert_array_equal(np.asarray(file).reshape(images[i].shape), images[i])


def test_fewer_samples_leave_none_of_the_older_ones(tmp_path):
    predict(tmp_path, 5)
    (tmp_path / "samples" / "notes.txt").write_text("kept")
    before = (tmp_path / "samples" / "000001.png").read_bytes()
    predict(tmp_path, 3, latent_dim=7)
    assert names(tmp_path / "samples") == ["000000.png", "000001.png", "000002.png", "notes.txt"]
    assert (tmp_path / "samples" / "000001.png").read_bytes() != before
    assert names(tmp_path) == ["samples"]


def test_a_failure_leaves_the_older_samples(tmp_path, monkeypatch):
    predict(tmp_path, 2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}

    def fail(path, png):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match=r"could not write .*000000\.png: No space left on device\. .* make room"):
        predict(tmp_path, 4)
    assert {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()} == before
    assert names(tmp_path) == ["samples"]


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / ".samples.partial").mkdir()
    (tmp_path / ".samples.partial" / "000009.png").write_bytes(b"half")
    predict(tmp_path, 1)
    assert names(tmp_path) == ["samples"]
    assert names(tmp_path / "samples") == ["000000.png"]


def test_a_fast_dev_run_leaves_nothing(tmp_path):
    predict(tmp_path, 2, trainer={"fast_dev_run": True})
    assert names(tmp_path) == []


def test_a_gan_predicts_files():
    assert [type(callback) for callback in prediction_callbacks(tiny_gan())] == [SampleWriter]
