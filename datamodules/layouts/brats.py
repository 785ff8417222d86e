"""Which files each subject of BraTS has: the layouts of the challenges from 2017 on, told apart by names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.images.image_folder import DamagedFileError
from datamodules.listing import first_ten
from datamodules.volumes.files import SubjectFiles, volumes_in

EXPECTED = (
    "a folder a subject, at any depth, that holds <subject>_{t1,t1ce,t2,flair,seg}.nii.gz, or as published since 2023 "
    "<subject>-{t1n,t1c,t2w,t2f,seg}.nii.gz, or {FLAIR,T1,GT_W}.nii.gz"
)

UNTIL_2021 = {0: 0, 1: 1, 2: 2, 4: 3}
SINCE_2023 = {0: 0, 1: 1, 2: 2, 3: 3}
WHOLE_ONLY = {0: 0, 1: 1}
"""The class for each label: background, core without enhancement, oedema, enhancing tumour; or the whole tumour."""

WHOLE_TUMOUR = "GT_W"
"""The name of a mask of the whole tumour."""

NAMES_UNTIL_2021 = {"t1": "t1", "t1ce": "t1ce", "t2": "t2", "flair": "flair"}
NAMES_SINCE_2023 = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
"""The modality by what a file's name ends in."""

SUBJECT_WITH_SITE = re.compile(r"brats1[789]_((?P<site>[^_]+)_.+)_\d+", re.IGNORECASE)
SUBJECT_WITH_TIME = re.compile(r"(brats-[a-z]+-\d+)-\d+", re.IGNORECASE)
TRUE_NAME = re.compile(r"^Subject_id:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class SubjectFolder:
    """What a subject's folder holds.

    Attributes:
        path: The folder.
        images: The file of each modality that is there.
        mask: The file of the labels, where it is there.
        shows_classes: False where the mask shows the whole tumour only.
        challenge: The class for each label in the challenges whose modalities are named so.
    """

    path: Path
    images: Mapping[str, Path]
    mask: Path | None
    shows_classes: bool
    challenge: Mapping[int, int]

    @classmethod
    def read(cls, path: Path) -> SubjectFolder:
        """By the names of the files.

        Raises:
            DamagedFileError: Two files are of one modality, or both masks.
        """
        images: dict[str, Path] = {}
        mask, shows_classes, challenge = None, True, UNTIL_2021
        for name, file in volumes_in(path).items():
            kind = re.split("[_-]", name)[-1].lower()
            if name == WHOLE_TUMOUR or kind == "seg":
                if mask is not None:
                    raise DamagedFileError(f"{mask} and {file} both are masks: take one of them away.")
                mask, shows_classes = file, name != WHOLE_TUMOUR
            elif modality := NAMES_UNTIL_2021.get(kind) or NAMES_SINCE_2023.get(kind):
                if modality in images:
                    raise DamagedFileError(f"{images[modality]} and {file} both are {modality}: take one of them away.")
                images[modality] = file
                challenge = SINCE_2023 if kind in NAMES_SINCE_2023 else challenge
        return cls(path, images, mask, shows_classes, challenge)

    def identity(self) -> tuple[str, str | None]:
        """The patient and the site, as far as the subject's name in the challenge tells them."""
        note = self.path / "subject_id.txt"
        noted = TRUE_NAME.search(note.read_text(errors="replace")) if note.is_file() else None
        name = noted[1] if noted else self.path.name
        if match := SUBJECT_WITH_SITE.fullmatch(name):
            return match[1], match["site"]
        match = SUBJECT_WITH_TIME.fullmatch(name)
        return match[1] if match else name, None


def list_brats(home: Path, modalities: Sequence[str], whole: bool, with_masks: bool) -> list[SubjectFiles]:
    """All subjects below a folder, sorted by name.

    Args:
        home: The folder.
        modalities: Those that are read, in order.
        whole: All tumour is class 1.
        with_masks: Masks are read, and must be there.

    Raises:
        FileNotFoundError: There is no subject, or one lacks a file.
        DamagedFileError: A folder contradicts itself or another.
        ValueError: Masks show the whole tumour only where classes are asked for.
    """
    folders = [SubjectFolder.read(Path(path)) for path, _, names in sorted(os.walk(home)) if _holds_volumes(names)]
    if not folders:
        raise FileNotFoundError(f"{home} holds no subject of BraTS. Expected: {EXPECTED}.")
    _check_complete(home, folders, modalities, with_masks)
    found: dict[str, SubjectFiles] = {}
    for folder in folders:
        subject = folder.path.name
        if subject in found:
            raise DamagedFileError(
                f"There are two folders of the subject {subject}, {found[subject].paths[0].parent} and {folder.path}: "
                "take one away."
            )
        if with_masks and not whole and not folder.shows_classes:
            raise ValueError(f"{folder.mask} shows the whole tumour only: set target: whole.")
        # A mask that is not read says nothing of the labels that a prediction is to have.
        labels = WHOLE_ONLY if with_masks and not folder.shows_classes else folder.challenge
        classes = {label: min(number, 1) for label, number in labels.items()} if whole else labels
        patient, site = folder.identity()
        images = {modality: folder.images[modality] for modality in modalities}
        found[subject] = SubjectFiles(subject, patient, site, images, folder.mask if with_masks else None, classes)
    return [found[subject] for subject in sorted(found)]


def _holds_volumes(names: Sequence[str]) -> bool:
    return any(name.endswith((".nii", ".nii.gz")) and not name.startswith(".") for name in names)


def _check_complete(home: Path, folders: Sequence[SubjectFolder], modalities: Sequence[str], with_masks: bool) -> None:
    for modality in modalities:
        lacking = [folder.path for folder in folders if modality not in folder.images]
        if lacking:
            raise FileNotFoundError(
                f"{len(lacking):,} of the {len(folders):,} subjects in {home} lack {modality}: {_first(lacking)}. Set "
                "modalities to those that all have, or take these subjects away."
            )
    lacking = [folder.path for folder in folders if folder.mask is None]
    if with_masks and lacking:
        raise FileNotFoundError(
            f"{len(lacking):,} of the {len(folders):,} subjects in {home} lack their mask (..._seg.nii.gz): "
            f"{_first(lacking)}. Complete them, take them away, or predict them (predict_root)."
        )


def _first(folders: Sequence[Path]) -> str:
    """Names for a message, and what the first folder holds: a file may be there under another name."""
    held = ", ".join(path.name for path in volumes_in(folders[0]).values())
    return f"{first_ten([folder.name for folder in folders])} ({folders[0].name} holds {held})"
