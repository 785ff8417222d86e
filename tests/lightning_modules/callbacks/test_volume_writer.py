"""Predicted volumes as NIfTI files over their subjects' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules.volumes.geometry import NativeSpace, native_transforms, to_native
from lightning_modules.callbacks import prediction_callbacks
from lightning_modules.callbacks.mask_writer import MaskWriter
from lightning_modules.callbacks.volume_writer import VolumeWriter
from tests.helpers.tiny_masks import tiny_segmentation
from tests.helpers.tiny_runs import tiny_trainer


class Predictor(LightningModule):
    """Predicts what it is given."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch


class Subjects(LightningDataModule):
    """Batches of one subject's mask, brought to working space, as if it were predicted."""

    def __init__(self, paths: dict[str, Path], *, probabilities: bool = False) -> None:
        super().__init__()
        self.paths = paths
        self.read = {
            name: native_transforms(["image"], "mask", "PSR", crop_foreground=True)({"image": path, "mask": path})
            for name, path in paths.items()
        }
        self.probabilities = probabilities

    def predict_dataloader(self) -> DataLoader:
        return DataLoader([self._outputs(name) for name in self.paths], batch_size=None)

    def _outputs(self, name: str) -> dict[str, Any]:
        classes = self.read[name]["mask"].as_tensor().to(torch.uint8)
        outputs = {"file": [name], "prediction": classes}
        if self.probabilities:
            outputs["prediction"] = torch.zeros_like(classes)  # which nobody is to look at
            outputs["probabilities"] = F.one_hot(classes.long(), 4).movedim(-1, 1).float()
        return outputs

    def to_native(self, prediction: Tensor, subject: str) -> Any:
        return to_native(prediction, self.read[subject]["mask"].affine, NativeSpace.of(self.paths[subject]))


def write_mask(path: Path, seed: int = 0) -> Path:
    """A mask in a file of its own orientation, whose header scales values and knows much besides."""
    classes = np.random.default_rng(seed).integers(0, 2, (5, 7, 6))
    affine = np.array([[0, -1.5, 0, 20], [0.9, 0, 0.1, -30], [0, 0, 2, 7], [0, 0, 0, 1]], np.float64)
    image = nibabel.Nifti1Image(classes.astype(np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2, 0)
    image.header["descrip"] = b"a scanner's"
    image.header["cal_max"] = 900
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def predict(folder: Path, data: LightningDataModule) -> None:
    trainer = tiny_trainer(folder, [VolumeWriter()])
    trainer.predict(Predictor(), datamodule=data, return_predictions=False)


@pytest.mark.parametrize("probabilities", [False, True])
def test_files_lie_over_the_subjects(tmp_path, probabilities):
    paths = {name: write_mask(tmp_path / f"{name}.nii.gz", i) for i, name in enumerate(("a", "site/b"))}
    predict(tmp_path / "run", Subjects(paths, probabilities=probabilities))
    for name, path in paths.items():
        native = nibabel.load(path)
        found = nibabel.load(tmp_path / "run" / "predictions" / f"{name}.nii.gz")
        assert found.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(native.dataobj))
        np.testing.assert_allclose(found.affine, native.affine, rtol=0, atol=1e-6)
        for form in ("get_sform", "get_qform"):
            (affine, code), (expected, expected_code) = (getattr(i, form)(coded=True) for i in (found, native))
            np.testing.assert_allclose(affine, expected, rtol=0, atol=1e-6)
            assert code == expected_code
        assert found.header.get_xyzt_units() == ("mm", "sec")
        assert found.header.get_zooms() == native.header.get_zooms()
        assert found.header["descrip"] == native.header["descrip"]
        assert found.header["cal_max"] == 0


def test_the_same_prediction_is_the_same_file(tmp_path):
    data = Subjects({"a": write_mask(tmp_path / "a.nii.gz")})
    contents = []
    for _ in range(2):
        predict(tmp_path / "run", data)
        contents.append((tmp_path / "run" / "predictions" / "a.nii.gz").read_bytes())
    assert contents[0] == contents[1]


def test_names_that_leave_the_folder_are_refused_and_older_predictions_stay(tmp_path):
    path = write_mask(tmp_path / "a.nii.gz")
    predict(tmp_path / "run", Subjects({"a": path}))
    with pytest.raises(ValueError, match=r"the volume of \.\./b would lie outside of predictions"):
        predict(tmp_path / "run", Subjects({"../b": path}))
    assert [file.name for file in (tmp_path / "run").rglob("*.nii.gz")] == ["a.nii.gz"]


def test_it_is_chosen_where_the_data_know_their_native_space(tmp_path):
    task = tiny_segmentation()
    subjects = Subjects({"a": write_mask(tmp_path / "a.nii.gz")})
    assert [type(callback) for callback in prediction_callbacks(task, subjects)] == [VolumeWriter]
    assert [type(callback) for callback in prediction_callbacks(task, LightningDataModule())] == [MaskWriter]
    assert [type(callback) for callback in prediction_callbacks(task)] == [MaskWriter]
