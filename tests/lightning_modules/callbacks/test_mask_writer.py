"""Predicted masks as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from PIL import Image
from torch.utils.data import DataLoader

from lightning_modules.callbacks.mask_writer import MaskWriter, palette_png
from lightning_modules.pictures.overlays import voc_colour_map
from tests.helpers.tiny_masks import TinyMasks, tiny_segmentation
from tests.helpers.tiny_runs import tiny_trainer


class Predictor(LightningModule):
    """Predicts what it is given."""

    def predict_step(self, batch, batch_idx):
        return batch


class Masks(LightningDataModule):
    """Batches of a mask each, and how a server wants them."""

    def __init__(self, masks: dict[str, np.ndarray], submission: object) -> None:
        super().__init__()
        self.batches = [{"file": [file], "prediction": torch.from_numpy(mask)[None]} for file, mask in masks.items()]
        self.submission = submission

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


class Server:
    """Wants files in a folder of its own."""

    def __init__(self, values: tuple[int, ...] | None = None, folder: str = "results/city") -> None:
        self.values = values
        self.folder = folder

    def path(self, file: str) -> str:
        return f"{self.folder}/{Path(file).stem}_pred.png"


def predict(folder, masks, submission=None, **options):
    """Predict `masks`, file names to arrays, one a batch."""
    trainer = tiny_trainer(folder, [MaskWriter()], **options)
    trainer.predict(Predictor(), datamodule=Masks(masks, submission), return_predictions=False)


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def mask(value=1, shape=(3, 5)):
    return np.full(shape, value, np.uint8)


def test_pixels_are_the_classes_in_their_colours(tmp_path):
    classes = np.arange(256, dtype=np.uint8).reshape(8, 32)
    predict(tmp_path, {"images/first.x.tif": classes, "second": mask(7, (1, 2))})
    assert list(files(tmp_path)) == ["predictions/images/first.x.png", "predictions/second.png"]
    with Image.open(tmp_path / "predictions/images/first.x.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), classes)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), voc_colour_map()[classes])
    with Image.open(tmp_path / "predictions/second.png") as image:
        assert np.asarray(image).tolist() == [[7, 7]]


def test_a_server_says_names_and_values(tmp_path):
    masks = {"a/1.jpg": mask(0), "b/2.jpg": mask(2)}
    predict(tmp_path / "palette", masks, Server())
    assert files(tmp_path / "palette") == {
        "predictions/results/city/1_pred.png": palette_png(mask(0)),
        "predictions/results/city/2_pred.png": palette_png(mask(2)),
    }
    predict(tmp_path / "values", masks, Server(values=(7, 8, 255)))
    with Image.open(tmp_path / "values/predictions/results/city/2_pred.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), mask(255))
    with pytest.raises(ValueError, match=r"the mask of a/1\.jpg would lie outside of predictions"):
        predict(tmp_path / "values", masks, Server(folder="../results"))


def test_a_task_predicts_files_of_native_size(tmp_path):
    trainer = tiny_trainer(tmp_path, [MaskWriter()])
    batches = trainer.predict(tiny_segmentation(), datamodule=TinyMasks(evaluated=3, native_size=True))
    for batch in batches:
        (name,) = batch["file"]
        with Image.open(tmp_path / "predictions" / name) as image:
            np.testing.assert_array_equal(np.asarray(image), batch["prediction"][0].numpy())
    assert len({batch["prediction"].shape for batch in batches}) == 3


def test_older_predictions_go_as_a_whole_and_what_else_lies_there_stays(tmp_path):
    predict(tmp_path, {"a/1.tif": mask(1), "2.tif": mask(1)})
    (tmp_path / "predictions" / "a" / "notes.txt").write_text("kept")
    (tmp_path / "predictions" / "b").mkdir()
    (tmp_path / "predictions" / "b" / "table.csv").write_text("kept")
    predict(tmp_path, {"2.tif": mask(2)})
    assert files(tmp_path / "predictions") == {
        "2.png": palette_png(mask(2)),
        "a/notes.txt": b"kept",
        "b/table.csv": b"kept",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (("a/1.tif", "a/1.jpg"), FileExistsError, r"predictions/a/1\.png would be written twice.*rename one"),
        (("1.tif", "../1.tif"), ValueError, r"the mask of \.\./1\.tif would lie outside of predictions"),
        (("1.tif", "/x/1.tif"), ValueError, r"the mask of /x/1\.tif would lie outside of predictions"),
    ],
)
def test_names_that_would_do_harm_leave_the_older_predictions(tmp_path, names, error, message):
    predict(tmp_path, {"1.tif": mask(3)})
    before = files(tmp_path)
    with pytest.raises(error, match=message):
        predict(tmp_path, dict.fromkeys(names, mask()))
    assert files(tmp_path) == before
    predict(tmp_path, {"a/1.tif": mask(), "b/1.jpg": mask()})
    assert list(files(tmp_path)) == ["predictions/a/1.png", "predictions/b/1.png"]


def test_a_full_disk_leaves_the_older_predictions(tmp_path, monkeypatch):
    predict(tmp_path, {"1.tif": mask(3)})
    before = files(tmp_path)

    def fail(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(OSError, match=r"could not write .*2\.png: No space left on device\. .* make room"):
        predict(tmp_path, {"2.tif": mask()})
    assert files(tmp_path) == before


@pytest.mark.parametrize("was_complete", [True, False])
def test_a_kill_between_two_renames_is_made_up_for(tmp_path, was_complete):
    predict(tmp_path, {"1.tif": mask(3)})
    (tmp_path / "predictions" / "notes.txt").write_text("kept")
    (tmp_path / "predictions").rename(tmp_path / ".predictions.old")
    if was_complete:
        (tmp_path / "predictions").mkdir()
    (tmp_path / ".predictions.partial").mkdir()
    (tmp_path / ".predictions.partial" / "9.png").write_bytes(b"half")
    with pytest.raises(FileExistsError):  # so that only the beginning is seen
        predict(tmp_path, {"1.tif": mask(), "1.jpg": mask()})
    expected = {"predictions/notes.txt": b"kept"} | (
        {} if was_complete else {"predictions/1.png": palette_png(mask(3))}
    )
    assert files(tmp_path) == expected


def test_a_fast_dev_run_leaves_nothing(tmp_path):
    predict(tmp_path, {"1.tif": mask()}, fast_dev_run=True)
    assert not files(tmp_path)
