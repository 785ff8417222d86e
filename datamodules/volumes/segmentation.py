"""What the data modules for segmenting volumes share: reading, splits by patient, the way back to the files."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from datamodules.base import Split
from datamodules.folders import cache_folder
from datamodules.volumes.files import SubjectFiles
from datamodules.volumes.geometry import NativeSpace, to_native
from datamodules.volumes.intensity import Intensity, check_intensity
from datamodules.volumes.patches import PatchDataModule
from datamodules.volumes.reader import VolumeReader
from datamodules.volumes.store import open_volumes
from datamodules.volumes.subject_records import SubjectRecord, check_same_subjects, check_unseen_subjects
from datamodules.volumes.subject_splits import SubjectSplit, deal_subjects
from datamodules.volumes.volume import VolumeStore

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

KEPT: tuple[Split, ...] = ("train", "val")  # whose subjects a checkpoint names
AXIS_CODES = ("LR", "PA", "IS")  # of the world's axes, and which way they point


class VolumeDataModule(PatchDataModule):
    """Subjects whose scans and masks are NIfTI files: batches as `PatchDataModule` describes them.

    A subject's files are checked, brought to one grid through MONAI, normalised each by itself and kept, as
    `VolumeReader` and `open_volumes` say. Validation and test see whole volumes on that grid; `to_native` leads from it
    back to the files.

    Checkpoints name the subjects of training and validation: a training never goes on with others. Who was trained on
    is never measured, and who was validated on never tested. That says more than the seed, which may then differ.

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
        memory_limit: GiB of volumes that a split may hold in memory, in all processes of a machine together; a larger
            one is kept in files that are mapped, and of a larger folder to predict each volume is read as it is drawn.
            See `open_volumes`.
        cache_root: Where these are kept, uncompressed, in `volumes`; None: $CONVSUITE_CACHE, else ~/.cache/convsuite.
            Nothing removes them: other files and settings write others, and all may be deleted at any time.
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
        intensity: Intensity | Sequence[float],
        memory_limit: float,
        cache_root: str | None,
        **patch_options: Any,
    ) -> None:
        super().__init__(train_size=train_size, val_size=val_size, **patch_options)
        _check_grid(orientation, spacing, max_anisotropy)
        intensity = check_intensity(intensity)
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
        self._listed: list[SubjectFiles] = []
        self._dealt: dict[Split, list[SubjectFiles]] | None = None
        self._records: dict[Split, list[SubjectRecord]] = {}
        self._seen: dict[Split, list[SubjectRecord]] = {}
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
        if stage == "fit":
            self._seen = {split: self.subjects_of(split) for split in KEPT}

    def make_store(self, split: Split) -> VolumeStore | None:
        return self._open(split, self._deal()[split])

    def subjects_of(self, split: Split) -> list[SubjectRecord]:
        """Who is in a split, found without reading volumes.

        Raises:
            FileNotFoundError, DamagedFileError, ValueError: As `list_subjects` and `deal_subjects`.
        """
        if split not in self._records:
            self._records[split] = [SubjectRecord.of(files) for files in self._deal()[split]]
        return self._records[split]

    def check_test(self) -> None:
        # A published test may hold the same patients: that is found before all of it is read.
        seen = [one for split in KEPT for one in self.subjects_of(split)]
        check_unseen_subjects(seen, self.subjects_of("test"), "test", at_hand=seen)
        super().check_test()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the seed, and who was trained and validated on."""
        subjects = {split: [list(one) for one in records] for split, records in self._seen.items()}
        return {**super().state_dict(), "subjects": subjects}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._seen = _subjects_in(state_dict) or self._seen

    def check_training_set(self, state_dict: dict[str, Any]) -> None:
        """Refuse to take a training on other subjects for one on these. Checkpoints of early versions name none.

        Raises:
            ValueError: Subjects of training or validation differ; the message names the first.
        """
        before = _subjects_in(state_dict)
        check_same_subjects(before, {split: self.subjects_of(split) for split in before})

    def check_unseen(self, state_dict: dict[str, Any], split: Split) -> None:
        """Refuse to measure on who was trained on, and to test on who was validated on: see `check_unseen_subjects`.

        Raises:
            ValueError: Subjects were seen; the message names the first. Or, where the checkpoint is of an early version
                and names no subjects, the seeds differ.
        """
        before = _subjects_in(state_dict)
        if not before:
            super().check_unseen(state_dict, split)
            return
        seen = [one for kept, records in before.items() if kept != split for one in records]
        evaluated, names = self.subjects_of(split), {one.subject for one in seen}
        at_hand = [SubjectRecord.of(files) for files in self._listed if files.subject in names]
        check_unseen_subjects(seen, evaluated, split, at_hand)

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
                classes, affine, header = to_native(prediction, store.affine(position), native)
                return np.asarray(files[position].values, np.uint8)[classes], affine, header
        raise ValueError(f"There is no subject {subject!r} among those that were opened.")

    def how_to_fill(self, split: Split) -> str:
        return f"There are no subjects for {split}: set {split}_size or {split}_subjects."

    def _deal(self) -> dict[Split, list[SubjectFiles]]:
        """The subjects of all splits, listed once."""
        if self._dealt is None:
            published = self.list_published_test() if self.splits["test"].is_open else None
            shared = self.splits if published is None else {**self.splits, "test": SubjectSplit("test", size=0)}
            self._listed = self.list_subjects()
            dealt = deal_subjects(self._listed, shared, self.seed)
            self._dealt = dealt if published is None else {**dealt, "test": published}
        return self._dealt

    def _open(self, key: str, files: list[SubjectFiles]) -> VolumeStore | None:
        if key not in self._stores and files:
            cache_root = None if key == "predict" else self.cache_root  # what is predicted is read once
            processes = 1 if self.trainer is None else self.trainer.num_devices  # of this machine
            self._stores[key] = files, open_volumes(files, self.reader, self.memory_limit, cache_root, processes)
        return self._stores[key][1] if files else None


def _subjects_in(state_dict: dict[str, Any]) -> dict[Split, list[SubjectRecord]]:
    """Who the checkpoint with this state was trained and validated on; empty where it does not say."""
    saved = state_dict.get("subjects", {})
    return {split: [SubjectRecord(*fields) for fields in saved[split]] for split in KEPT if split in saved}


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
