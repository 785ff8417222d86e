"""Volumes of the user's own, in folders of images and labels as nnU-Net names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.folders import data_folder
from datamodules.images.image_folder import DamagedFileError
from datamodules.images.masks import IGNORE_INDEX
from datamodules.layouts.image_label_folders import EXPECTED, NUMBER, Description, Labels, choose_channels, list_cases
from datamodules.volumes.files import SubjectFiles, find_home
from datamodules.volumes.intensity import Intensity
from datamodules.volumes.patch_sampling import Centres, Padding
from datamodules.volumes.segmentation import VolumeDataModule


class VolumeFolderDataModule(VolumeDataModule):
    """Volumes and masks in NIfTI files that are named as nnU-Net does (Isensee et al., 2021).

        Dataset001_Name/
            dataset.json                 names of channels and labels; may be missing
            imagesTr/<case>_0000.nii.gz  a file a channel: _0000, _0001 ...
            labelsTr/<case>.nii.gz
            imagesTs/<case>_0000.nii.gz  may be missing
            labelsTs/<case>.nii.gz       may be missing

    The cases of imagesTr are dealt out to training, validation and test. Where there is labelsTs, the cases of imagesTs
    are the test, unless `test_subjects` or `test_size` says otherwise; without it they are what `predict` takes.

    Channels and classes stand in dataset.json, in either version of its format, or are said by `modalities` and
    `class_names`. The file is read when this is made. It need not be there where `class_names` and the numbers of
    channels are given; where it is, a warning names what they leave out of it, call otherwise or have besides. A name
    with another label is refused. With `predict_root` nothing is compared: those images are not of the data set.
    A label `ignore` becomes 255, which is left out of losses and measures. Overlapping regions in place of labels are
    no classes: name the labels in `class_names`, and the regions where they are measured.

    See `VolumeDataModule` for how subjects are read, kept and dealt out, and `PatchDataModule` for batches.

    Args:
        root: The folder that holds the data set's folder; default $CONVSUITE_DATA, else ./data.
        folder: The data set's folder, absolute or relative to `root`; default: the one in `root` that holds imagesTr.
        modalities: The channels to read, in this order: names in dataset.json, or numbers of four digits ("0000");
            default: all in dataset.json.
        class_names: Names of the labels 0, 1, 2 ...; default: those in dataset.json.
        patient_pattern: Regular expression whose first group is the patient in a case's name. Cases of one patient are
            never in two sets. Default: each case is a patient of its own.
        site_pattern: Regular expression whose first group is the site in a case's name; default: it is not known.
        train_subjects: Names of the cases to train on; default: as many patients as `train_size` says.
        val_subjects: Names of those to validate on; default: as many patients as `val_size` says.
        test_subjects: Names of those to test on; default: as many patients as `test_size` says.
        train_size: Number of training patients, a subset f(seed) in which smaller ones are contained; default: all
            outside of validation and test.
        val_size: Number of validation patients, f(seed); 0: no validation; default: a tenth of those whom no list
            names, rounded up.
        test_size: Number of test patients, f(seed); 0: no test; default: the cases of imagesTs where they have labels,
            else a quarter of those whom no list names, rounded up.
        seed: Seed of subsets, order and all draws; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict, named as in imagesTs; default: imagesTs, else the cases of the test.
        orientation: Axis codes that volumes are brought to; default RAS: indices rise to the right, the front, the top.
            null: as stored.
        spacing: mm between voxels along each axis, to which volumes are resampled, images linearly and masks by the
            nearest voxel; measures are then those of resampled masks. Default (null): as stored.
        max_anisotropy: How many times as long as wide a voxel may be where `spacing` does not say; null: any.
        crop_foreground: Crop each subject to the box outside of which all its scans are 0.
        intensity: How each scan is normalised by its own voxels: `zscore` (mean 0, standard deviation 1) or
            `percentiles` (the 0.5th to 0, the 99.5th to 1), of all voxels or, with `_nonzero`, of those that are not 0.
            Or a window of grey values [low, high], in the unit of the files, which become 0 and 1; what lies outside is
            clipped. For computed tomography, in Hounsfield units: [-160, 240] for soft tissue, [-1000, 400] for the
            lung. `none`: as stored.
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
        ValueError: A value is out of range, or two do not go together; or a channel is not in dataset.json, or a name
            has another label there.
        FileNotFoundError: dataset.json is missing, and `class_names` or the numbers of channels too.
        DamagedFileError: dataset.json says nothing of channels or labels that can be used, where it is needed.
    """

    def __init__(
        self,
        root: str | None = None,
        folder: str | None = None,
        modalities: list[str] | None = None,
        class_names: list[str] | None = None,
        patient_pattern: str | None = None,
        site_pattern: str | None = None,
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
        intensity: Intensity | list[float] = "zscore",
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
        self.folder = folder
        self._patient_pattern = _compiled("patient_pattern", patient_pattern)
        self._site_pattern = _compiled("site_pattern", site_pattern)
        self._root = Path(data_folder(root))
        self.channels, labels = self._describe(modalities, class_names, is_compared=predict_root is None)
        self.in_channels = len(self.channels)
        self.class_names = labels.names
        self.num_classes = len(labels.names)
        self._classes = labels.classes
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
        return self._cases(self._home() / "imagesTr", self._home() / "labelsTr")

    def list_published_test(self) -> list[SubjectFiles] | None:
        labels = self._home() / "labelsTs"
        return self._cases(self._home() / "imagesTs", labels) if labels.is_dir() else None

    def list_to_predict(self, folder: Path) -> list[SubjectFiles]:
        return self._cases(folder, None)

    def folder_to_predict(self) -> Path | None:
        folder = super().folder_to_predict()
        if folder is None and (self._home() / "imagesTs").is_dir():
            return self._home() / "imagesTs"
        return folder

    def _home(self) -> Path:
        return find_home(self._root, self.folder, _is_home, EXPECTED)

    def _cases(self, images: Path, labels: Path | None) -> list[SubjectFiles]:
        return list_cases(images, labels, self.channels, self._classes, self._identity)

    def _describe(
        self, modalities: list[str] | None, class_names: list[str] | None, is_compared: bool
    ) -> tuple[dict[str, str], Labels]:
        """The number of each channel by its name, and the labels; compared with a description that is at hand."""
        if modalities is not None and class_names is not None and all(map(NUMBER.fullmatch, modalities)):
            channels, labels = choose_channels(modalities, ()), Labels.named(class_names)
            description = self._find_description() if is_compared else None
        else:
            description = Description.read(self._home() / "dataset.json")
            known = description.channels()
            channels = choose_channels([name for name, _ in known] if modalities is None else modalities, known)
            labels = description.labels() if class_names is None else Labels.named(class_names)
        if is_compared and description is not None:
            differ = _channels_left_out(description, channels)
            differ += [] if class_names is None else _labels_that_differ(description, class_names)
            if differ:
                rank_zero_warn(
                    f"{description.path} describes more or less than is read, or calls it otherwise: "
                    f"{'; '.join(differ)}. With modalities: null and class_names: null all of it is read, by its names."
                )
        return channels, labels

    def _find_description(self) -> Description | None:
        """The description, where it is there and can be read."""
        try:
            return Description.read(self._home() / "dataset.json")
        except (OSError, ValueError):  # not needed
            return None

    def _identity(self, case: str) -> tuple[str, str | None]:
        """The patient and the site of a case."""
        site = self._site_pattern.search(case) if self._site_pattern else None
        patient = self._patient_pattern.search(case) if self._patient_pattern else None
        if self._patient_pattern and patient is None:
            raise ValueError(
                f"patient_pattern {self._patient_pattern.pattern!r} finds no patient in the name of the case {case!r}."
            )
        return patient[1] if patient else case, site[1] if site else None


def _is_home(folder: Path) -> bool:
    return (folder / "imagesTr").is_dir()


def _channels_left_out(description: Description, channels: Mapping[str, str]) -> list[str]:
    """Channels that were not chosen, for a message; none where they were chosen by name, with the file at hand.

    Raises:
        ValueError: A number is that of no channel.
    """
    try:
        known = {number: name for name, number in description.channels()}
    except DamagedFileError:  # which is why they are given
        return []
    unknown = [number for number in channels.values() if number not in known]
    if unknown:
        raise ValueError(
            f"modalities: {description.path} has no channel {unknown[0]}, but "
            f"{', '.join(f'{number} ({name})' for number, name in known.items())}. Set modalities to some of these."
        )
    if not all(map(NUMBER.fullmatch, channels)):
        return []
    return [f"channel {number} ({name})" for number, name in known.items() if number not in channels.values()]


def _labels_that_differ(description: Description, names: Sequence[str]) -> list[str]:
    """Labels that have no name, or another one, in `names`, and names without a label, for a message.

    Other names of a label are no contradiction: a test on another hospital's data finds the same under its own names,
    or fewer classes. A name that stands for another label there is one: the two would be measured as each other.

    Raises:
        ValueError: A name is that of another label.
    """
    try:
        labels = description.labels()
    except DamagedFileError:  # regions, say, which is why names are given
        return []
    known = {
        value: "ignore" if place == IGNORE_INDEX else labels.names[place] for value, place in labels.classes.items()
    }
    here = [name.lower() for name in names]
    for value, name in known.items():
        if name.lower() in here and here.index(name.lower()) != value:
            raise ValueError(
                f"class_names: {name!r} is label {here.index(name.lower())} in them and {value} in {description.path}. "
                "Put them in the order of their labels."
            )
    return [
        *(f"label {value} ({name})" for value, name in known.items() if value >= len(names)),
        *(
            f"label {value} ({name}), here {names[value]}"
            for value, name in known.items()
            if value < len(names) and here[value] != name.lower()
        ),
        *(f"no label {value}, here {name}" for value, name in enumerate(names) if value not in known),
    ]


def _compiled(key: str, pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key} is no regular expression ({error}): {pattern!r}.") from error
    if compiled.groups < 1:
        raise ValueError(f"{key} has no group: put what it is to find in brackets. Got {pattern!r}.")
    return compiled
