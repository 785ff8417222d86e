"""Predicted volumes in their subjects' own space."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_modules.callbacks.folder_writer import FolderWriter

_COMPRESSION = 1  # nibabel's: more takes several times as long for files a few percent smaller


class NativeData(Protocol):
    """A data module that knows where its subjects' own voxels are."""

    def to_native(self, prediction: Tensor, subject: str) -> tuple[np.ndarray, np.ndarray, Any]:
        """Classes uint8 (X, Y, Z), affine (4, 4) and NIfTI header of `subject` from classes or probabilities."""


class VolumeWriter(FolderWriter):
    """Writes `<run folder>/predictions/<subject>.nii.gz` when `predict` runs, see `FolderWriter`.

    Files lie voxel for voxel over the subject's own: they have its size and its header, with voxels of one byte, the
    number of the class. The data module's `to_native` says which class each voxel has. Reads "file", N names of
    subjects, and "probabilities" float (N, K, *size) or, where there are none, "prediction" uint8 (N, *size) from what
    `predict_step` returns.

    Raises:
        ValueError: While predicting: a subject's name leaves the folder.
    """

    folder = "predictions"
    pattern = r".+\.nii\.gz"
    data: NativeData

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.data = trainer.datamodule  # type: ignore[attr-defined]
        super().on_predict_start(trainer, pl_module)

    def files(self, outputs: Any) -> Iterator[tuple[str, bytes]]:
        predictions = outputs.get("probabilities", outputs["prediction"])
        for subject, prediction in zip(outputs["file"], predictions, strict=True):
            path = PurePosixPath(subject)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"the volume of {subject} would lie outside of {self.folder}: give a relative name")
            yield f"{subject}.nii.gz", nifti(*self.data.to_native(prediction.cpu(), subject))


def nifti(classes: np.ndarray, affine: np.ndarray, header: Any) -> bytes:
    """A compressed NIfTI file of `classes`, uint8 (X, Y, Z), that has all from `header` but the type of its voxels."""
    import nibabel

    image = nibabel.Nifti1Image(classes, affine, header)
    image.set_data_dtype(np.uint8)
    image.header.set_slope_inter(1, 0)  # that of the subject's own grey values is none of classes
    image.header["cal_min"] = image.header["cal_max"] = 0
    return gzip.compress(image.to_bytes(), _COMPRESSION, mtime=0)
