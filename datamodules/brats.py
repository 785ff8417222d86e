"""BraTS: brain tumours in magnetic resonance images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from datamodules.layouts.brats import EXPECTED, list_brats
from datamodules.volumes.files import SubjectFiles, find_home
from datamodules.volumes.intensity import Intensity
from datamodules.volumes.patch_sampling import Centres, Padding
from datamodules.volumes.segmentation import VolumeDataModule

Modality = Literal["t1", "t1ce", "t2", "flair"]
Target = Literal["whole", "classes"]

CLASS_NAMES = {
    "whole": ("background", "whole_tumour"),
    "classes": ("background", "necrotic_core", "oedema", "enhancing_tumour"),
}
REGIONS = {
    "whole": {"whole": [1]},
    "classes": {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]},
}


class BraTSDataModule(VolumeDataModule):
    """Gliomas in up to four magnetic resonance scans of each subject, skull-stripped, 240x240x155 voxels of 1 mm.

    Menze et al. (2015), Bakas et al. (2017, 2018), Baid et al. (2021). Each subject has a folder, at any depth below
    that of the data set. Three layouts are told apart by the names of the files:

    - 2017 to 2021: `<subject>_{t1,t1ce,t2,flair,seg}.nii.gz`, such as
      `HGG/Brats18_TCIA02_471_1/Brats18_TCIA02_471_1_flair.nii.gz`. Labels are 1 (core that does not enhance), 2
      (oedema) and 4 (enhancing tumour);
    - since 2023: `<subject>-{t1n,t1c,t2w,t2f,seg}.nii.gz`, such as
      `BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz`. The enhancing tumour is 3;
    - the demo of DeepVoxNet2: `case_1/{FLAIR,T1,GT_W}.nii.gz`. The label 1 is the whole tumour. The subject's name in
      the challenge stands in `subject_id.txt`.

    Classes are 0 (background), 1 (core that does not enhance), 2 (oedema) and 3 (enhancing tumour), whatever the
    labels. BraTS measures unions of them, the attribute `regions`: whole (1, 2, 3), core (1, 3) and enhancing (3).
    With `target: whole` there are two classes and one region.

    The site is in names from 2017 to 2019 (Brats18_TCIA02_471_1: TCIA02), and None elsewhere. Scans of one patient at
    several times (BraTS-GLI-00005-100 and BraTS-GLI-00005-101) never are in two sets.

    See `VolumeDataModule` for how subjects are read, kept and dealt out, and `PatchDataModule` for batches.

    Args:
        root: The folder that holds the data set's folder; default $CONVSUITE_DATA, else ./data.
        folder: The data set's folder, absolute or relative to `root`; default: the one in `root` with "brats"
            in its name.
        modalities: The scans that become channels, in this order, of `t1`, `t1ce` (with contrast agent), `t2`, `flair`.
        target: `whole` (tumour or background), or `classes`.
        train_subjects: Names of the subjects (folders) to train on; default: as many patients as `train_size` says.
        val_subjects: Names of those to validate on; default: as many patients as `val_size` says.
        test_subjects: Names of those to test on; default: as many patients as `test_size` says.
        train_size: Number of training patients, a subset f(seed) in which smaller ones are contained; default: all
            outside of validation and test.
        val_size: Number of validation patients, f(seed); 0: no validation; default: a tenth of those whom no list
            names, rounded up.
        test_size: Number of test patients, f(seed); 0: no test; default: a quarter of those whom no list
            names, rounded up.
        seed: Seed of subsets, order and all draws; default: that of `seed_everything`, else 0.
        predict_root: Folder of subjects to predict, in any of the layouts, without masks; default: those of the test.
        orientation: Axis codes that volumes are brought to; default RAS: indices rise to the right, the front, the top.
            null: as stored.
        spacing: mm between voxels along each axis, to which volumes are resampled, images linearly and masks by the
            nearest voxel; measures are then those of resampled masks. Default (null): as stored.
        max_anisotropy: How many times as long as wide a voxel may be where `spacing` does not say; null: any.
        crop_foreground: Crop each subject to the box outside of which all its scans are 0.
        intensity: How each scan is normalised by its own voxels: `zscore` (mean 0, standard deviation 1) or
            `percentiles` (the 0.5th to 0, the 99.5th to 1), of all voxels or, with `_nonzero`, of those that are not 0.
            Or a window of grey values [low, high], in the unit of the files, which become 0 and 1; what lies outside is
            clipped. `none`: as stored.
        memory_limit: GiB of volumes that a split may hold in memory, in all processes of a machine together; a larger
            one is written below `cache_root` once, and mapped. Of a larger folder to predict, each volume is read as it
            is drawn.
        cache_root: Where that is kept; default $CONVSUITE_CACHE, else ~/.cache/convsuite. May be deleted at any time;
            nothing removes what other data or settings have left there.
        patch_size: Voxels of a training patch, that is of the mask and of what the network gives, along each axis.
        context: Voxels of image beyond the patch at each border.
        patch_padding: What these hold: `image`, `zeros` or `reflect`, see `PatchDataModule`.
        patches_per_epoch: Patches an epoch.
        patch_centres: `uniform`, `grid`, `class_balanced` or `foreground`, see `PatchDataModule`.
        foreground_fraction: Share of the patches that are centred on foreground, with `patch_centres: foreground`.
        subject_weights: Weights of training subjects by name; those that are not named weigh 1.
        balance_sites: All sites give as many patches, however many subjects they have.
        bootstrap: Train on as many subjects drawn with replacement, once, f(seed).
        flips: Axes along which training patches are mirrored at random, 0 for the first.
        rotation: Training patches are turned by up to so many degrees.
        elastic: Standard deviation of their elastic deformation in mm.
        intensity_change: Their grey values are multiplied and shifted by up to so much, see `VolumeAugmentation`.
        noise: Standard deviation of noise that is added to them.
        batch_evaluation: Evaluate `batch_size` volumes at a time, which must then be of one size.
        batch_size: Patches a batch and process; whole volumes come one by one.
        num_workers: Processes that load ahead: patches, or whole volumes, which take two of them at most and wait in
            /dev/shm.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    def __init__(
        self,
        root: str | None = None,
        folder: str | None = None,
        modalities: Sequence[Modality] = ("t1", "t1ce", "t2", "flair"),
        target: Target = "whole",
        train_subjects: list[str] | None = None,
        val_subjects: list[str] | None = None,
        test_subjects: list[str] | None = None,
        train_size: int | None = None,
        val_size: int | None = None,
        test_size: int | None = None,
        seed: int | None = None,
        predict_root: str | None = None,
        orientation: str | None = "RAS",
        spacing: list[float] | None = None,
        max_anisotropy: float | None = 3.0,
        crop_foreground: bool = False,
        intensity: Intensity | list[float] = "zscore_nonzero",
        memory_limit: float = 4.0,
        cache_root: str | None = None,
        patch_size: int | list[int] = 64,
        context: int = 0,
        patch_padding: Padding = "image",
        patches_per_epoch: int = 256,
        patch_centres: Centres = "uniform",
        foreground_fraction: float | None = None,
        subject_weights: dict[str, float] | None = None,
        balance_sites: bool = False,
        bootstrap: bool = False,
        flips: list[int] | None = None,
        rotation: float = 0.0,
        elastic: float = 0.0,
        intensity_change: float = 0.0,
        noise: float = 0.0,
        batch_evaluation: bool = False,
        batch_size: int = 2,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        if not modalities or len(set(modalities)) < len(modalities) or not set(modalities) <= {*get_args(Modality)}:
            raise ValueError(
                f"modalities must be some of {', '.join(get_args(Modality))}, each once, got {modalities}."
            )
        if target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}.")
        self.in_channels = len(modalities)
        self.class_names = CLASS_NAMES[target]
        self.num_classes = len(self.class_names)
        self.regions = REGIONS[target]
        self.folder = folder
        self.modalities = tuple(modalities)
        self.target = target
        super().__init__(
            root=root,
            train_subjects=train_subjects,
            val_subjects=val_subjects,
            test_subjects=test_subjects,
            train_size=train_size,
            val_size=val_size,
            test_size=test_size,
            seed=seed,
            predict_root=predict_root,
            orientation=orientation,
            spacing=spacing,
            max_anisotropy=max_anisotropy,
            crop_foreground=crop_foreground,
            intensity=intensity,
            memory_limit=memory_limit,
            cache_root=cache_root,
            patch_size=patch_size,
            context=context,
            patch_padding=patch_padding,
            patches_per_epoch=patches_per_epoch,
            patch_centres=patch_centres,
            foreground_fraction=foreground_fraction,
            subject_weights=subject_weights,
            balance_sites=balance_sites,
            bootstrap=bootstrap,
            flips=flips,
            rotation=rotation,
            elastic=elastic,
            intensity_change=intensity_change,
            noise=noise,
            batch_evaluation=batch_evaluation,
            batch_size=batch_size,
            num_workers=num_workers,
            drop_last=drop_last,
        )

    def list_subjects(self) -> list[SubjectFiles]:
        home = find_home(Path(self.root), self.folder, _is_brats, EXPECTED)
        return list_brats(home, self.modalities, self.target == "whole", with_masks=True)

    def list_to_predict(self, folder: Path) -> list[SubjectFiles]:
        return list_brats(folder, self.modalities, self.target == "whole", with_masks=False)


def _is_brats(folder: Path) -> bool:
    return "brats" in folder.name.lower()
