"""What the data modules for segmenting volumes share: reading, splits by patient, the way back to the files."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from torch import Tensor

from datamodules.base import Split
from datamodules.folders import cache_folder
from datamodules.geometry import NativeSpace, to_native
from datamodules.patches import PatchDataModule
from datamodules.subject_splits import SubjectSplit, deal_subjects
from datamodules.volume_files import SubjectFiles
from datamodules.volume_intensity import Intensity
from datamodules.volume_reader import VolumeReader
from datamodules.volume_store import open_volumes
from datamodules.volumes import VolumeStore

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

AXIS_CODES = ("LR", "PA", "IS")  # of the world's axes, and which way they point


class VolumeDataModule(PatchDataModule):
    """Subjects whose scans and masks are NIfTI files: batches as `PatchDataModule` describes them.

    A subject's files are checked, brought to one grid through MONAI, normalised each by itself and kept, as
    `VolumeReader` and `open_volumes` say. Validation and test see whole volumes on that grid; `to_native` leads from it
    back to the files.

    A subclass sets `in_channels`, `num_classes` and `class_names` before it calls this constructor, and implements
    `list_subjects` and `list_to_predict`.

    Args:
        train_subjects: Names of the subjects to train on; None: as many patients as the training size says.
        val_subjects: Names of the subjects to validate on; None: as many patients as the validation size says.
        test_subjects: Names of the subjects to test on; None: as many patients as `test_size` says.
        train_size: Number of training patients, a subset f(seed) in which smaller ones are contained; None: all others.
        val_size: Number of validation patients; 0: no validation; None: a tenth of those that are not named.
        test_size: Number of test patients; 0: no test; None: the data set's own test subjects, else a quarter of those
            that are not named.
        orientation: Axis codes that volumes are brought to, such as "RAS"; None: as stored.
        spacing: mm between voxels along the axes of the result, to which volumes are resampled; None: as stored.
        max_anisotropy: How many times as long as wide a voxel may be where `spacing` does not say; None: any.
        crop_foreground: Crop each subject to the box outside of which all its scans are 0.
        intensity: How scans are normalised, see `normalise_intensity`.
        memory_limit: GiB of volumes that a split may hold in memory; a larger one is kept in files that are mapped.
        cache_root: Where these are kept; None: $CONVSUITE_CACHE, else ~/.cache/convsuite.
        patch_options: As in `PatchDataModule`.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    def __init__(
        self,
        train_subjects: Sequence[str] | None,
        val_subjects: Sequence[str] | None,
        test_subjects: Sequence[str] | None,
        train_size: int | None,
        val_size: int | None,
        test_size: int | None,
        orientation: str | None,
        spacing: Sequence[float] | None,
        max_anisotropy: float | None,
        crop_foreground: bool,
        intensity: Intensity,
        memory_limit: float,
        cache_root: str | None,
        **patch_options: Any,
    ) -> None:
        super().__init__(train_size=train_size, val_size=val_size, **patch_options)
        _check_grid(orientation, spacing, max_anisotropy)
        if intensity not in get_args(Intensity):
            raise ValueError(f"intensity must be one of {', '.join(get_args(Intensity))}, got {intensity!r}.")
        if not memory_limit >= 0:
            raise ValueError(f"memory_limit must be 0 GiB (map every split from files) or more, got {memory_limit}.")
        if test_size is not None and test_size < 0:
            raise ValueError(f"test_size must be 0 (no test) or more, got {test_size}.")
        self.splits: dict[Split, SubjectSplit] = {
            "train": SubjectSplit("train", train_subjects, train_size),
            "val": SubjectSplit("val", val_subjects, val_size),
            "test": SubjectSplit("test", test_subjects, test_size),
        }
        self.reader = VolumeReader(
            orientation, None if spacing is None else tuple(spacing), max_anisotropy, crop_foreground, intensity
        )
        self.memory_limit = memory_limit
        self.cache_root = cache_folder(cache_root)
        self._dealt: dict[Split, list[SubjectFiles]] | None = None
        self._stores: dict[str, tuple[list[SubjectFiles], VolumeStore]] = {}

    @abstractmethod
    def list_subjects(self) -> list[SubjectFiles]:
        """All subjects that training, validation and test share, with masks, sorted by name.

        Raises:
            FileNotFoundError: Files are missing; the message says what is expected where.
            DamagedFileError: Files contradict each other.
        """

    def list_published_test(self) -> list[SubjectFiles] | None:
        """The test subjects that the data set has apart from the others, with masks; None: it has none."""
        return None

    @abstractmethod
    def list_to_predict(self, folder: Path) -> list[SubjectFiles]:
        """The subjects in a folder, without masks.

        Raises:
            FileNotFoundError: Files are missing; the message says what is expected where.
        """

    def folder_to_predict(self) -> Path | None:
        """The folder that `list_to_predict` is asked for; None: the test subjects are predicted."""
        return None if self.predict_root is None else Path(self.predict_root).expanduser()

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.predict_dataset is None:
            self.predict_dataset = self.make_predict()
        super().setup(stage)

    def make_store(self, split: Split) -> VolumeStore | None:
        if self._dealt is None:
            self._dealt = self._deal()
        return self._open(split, self._dealt[split])

    def make_predict_store(self) -> VolumeStore | None:
        folder = self.folder_to_predict()
        return super().make_predict_store() if folder is None else self._open("predict", self.list_to_predict(folder))

    def to_native(self, prediction: Tensor, subject: str) -> tuple[np.ndarray, np.ndarray, Nifti1Header | None]:
        """A prediction for a whole volume as (values uint8, affine, header) of the subject's own files.

        Values are those that masks of this layout hold: the enhancing tumour is 4 in BraTS until 2021, 3 since 2023.

        Args:
            prediction: Classes (*size) or probabilities (K, *size), see `geometry.to_native`.
            subject: Name of a subject of a stage that was set up; of two with one name, one that is predicted.

        Raises:
            ValueError: There is no such subject.
        """
        opened = [self._stores[key] for key in ("predict", "test", "val", "train") if key in self._stores]
        for files, store in opened:
            if subject in store.subjects:
                position = list(store.subjects).index(subject)
                native = NativeSpace.of(files[position].paths[0])
                classes, affine, header = to_native(prediction, store[position].affine, native)
                return np.asarray(files[position].values, np.uint8)[classes], affine, header
        raise ValueError(f"There is no subject {subject!r} among those that were opened.")

    def how_to_fill(self, split: Split) -> str:
        return f"There are no subjects for {split}: set {split}_size or {split}_subjects."

    def _deal(self) -> dict[Split, list[SubjectFiles]]:
        published = self.list_published_test() if self.splits["test"].is_open else None
        if published is None:
            return deal_subjects(self.list_subjects(), self.splits, self.seed)
        shared = {**self.splits, "test": SubjectSplit("test", size=0)}
        return {**deal_subjects(self.list_subjects(), shared, self.seed), "test": published}

    def _open(self, key: str, files: list[SubjectFiles]) -> VolumeStore | None:
        if key not in self._stores and files:
            self._stores[key] = files, open_volumes(files, self.reader, self.memory_limit, self.cache_root)
        return self._stores[key][1] if files else None


def _check_grid(orientation: str | None, spacing: Sequence[float] | None, max_anisotropy: float | None) -> None:
    axes = ["".join(sorted(pair)) for pair in AXIS_CODES]
    if orientation is not None and sorted(
        next((axis for axis in axes if code in axis), code) for code in orientation
    ) != sorted(axes):
        raise ValueError(
            "orientation must have one of L and R, of P and A, and of I and S, in any order, such as RAS, or be null: "
            f"as stored. Got {orientation!r}."
        )
    if spacing is not None and not (len(spacing) == 3 and all(0 < step < math.inf for step in spacing)):
        raise ValueError(f"spacing must be three positive numbers of mm, or null: as stored. Got {spacing}.")
    if max_anisotropy is not None and not max_anisotropy >= 1:
        raise ValueError(f"max_anisotropy must be 1 (cubes only) or more, or null: any voxels. Got {max_anisotropy}.")
