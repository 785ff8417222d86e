"""Folders of images and labels as nnU-Net names them, and the `dataset.json` that says what they show."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.images.image_folder import DamagedFileError
from datamodules.images.masks import IGNORE_INDEX
from datamodules.listing import first_ten
from datamodules.volumes.files import EXTENSIONS, SubjectFiles, volumes_in

EXPECTED = "imagesTr/<case>_0000.nii.gz (a file a channel: _0000, _0001 ...) and labelsTr/<case>.nii.gz"
NUMBER = re.compile(r"\d{4}")
IMAGE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")

Identity = Callable[[str], tuple[str, str | None]]
"""The patient and the site by the name of a case."""


@dataclass(frozen=True)
class Labels:
    """What the values in masks mean.

    Attributes:
        names: Of the classes.
        classes: The class for each value, 255 for the one to be ignored.
    """

    names: tuple[str, ...]
    classes: Mapping[int, int]

    @classmethod
    def named(cls, names: Sequence[str]) -> Labels:
        """Those of the values 0, 1, 2 ..., and 255."""
        return cls(tuple(names), {**{value: value for value in range(len(names))}, IGNORE_INDEX: IGNORE_INDEX})


@dataclass(frozen=True)
class Description:
    """A `dataset.json` in the first or the second version of its format.

    Attributes:
        path: The file.
        fields: What it holds.
    """

    path: Path
    fields: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Description:
        """Read the file.

        Raises:
            FileNotFoundError: It is missing.
            DamagedFileError: It is no JSON, or says that files are no NIfTI files.
        """
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"There is no {path}: write one, or set modalities (such as ['0000']) and class_names."
            ) from error
        except (OSError, ValueError) as error:
            raise DamagedFileError(f"{path} cannot be read as JSON ({error}): repair it.") from error
        if not isinstance(fields, dict):
            raise DamagedFileError(f"{path} holds no object with channel_names and labels: repair it.")
        ending = fields.get("file_ending", EXTENSIONS[0])
        if ending not in EXTENSIONS:
            raise DamagedFileError(
                f"{path} says that files end in {ending!r}: only {' and '.join(EXTENSIONS)} are read."
            )
        return cls(path, fields)

    def channels(self) -> list[tuple[str, str]]:
        """(name, number of four digits) of each channel, in order.

        Raises:
            DamagedFileError: It names no channels.
        """
        named = self.fields.get("channel_names", self.fields.get("modality"))  # the first version calls them so
        if not isinstance(named, dict) or not named or not all(str(key).isdigit() for key in named):
            raise DamagedFileError(
                f"{self.path} has no usable channel_names, such as {{'0': 'T1', '1': 'FLAIR'}}: repair it, or set "
                "modalities and class_names."
            )
        return [(str(named[key]), f"{int(key):04d}") for key in sorted(named, key=int)]

    def labels(self) -> Labels:
        """The classes, in the order of their values.

        Raises:
            DamagedFileError: It names none, or overlapping regions in place of them.
        """
        named = self.fields.get("labels")
        if not isinstance(named, dict) or not named:
            raise DamagedFileError(
                f"{self.path} has no labels, such as {{'background': 0}}: repair it, or set class_names."
            )
        if all(str(key).isdigit() for key in named):  # the first version has them the other way round
            named = {str(name): int(value) for value, name in named.items()}
        for name, value in named.items():
            if not isinstance(value, int) or not 0 <= value < IGNORE_INDEX:
                raise DamagedFileError(
                    f"{self.path}: the label {name!r} is {value!r}, not one value from 0 to {IGNORE_INDEX - 1}. For "
                    "regions of several values set class_names to the names of the values 0, 1, 2 ..."
                )
        names = sorted((name for name in named if name != "ignore"), key=lambda name: named[name])
        classes = {named[name]: number for number, name in enumerate(names)}
        return Labels(tuple(names), {**classes, **({named["ignore"]: IGNORE_INDEX} if "ignore" in named else {})})


def choose_channels(modalities: Sequence[str], known: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The number of each modality that is asked for, by its name or number.

    Args:
        modalities: Names or numbers of four digits.
        known: (name, number) of the channels that have names.

    Raises:
        ValueError: One has no such name, or several channels have it, or it is asked for twice.
    """
    chosen: dict[str, str] = {}
    for modality in modalities:
        numbers = [number for name, number in known if name == modality]
        if not numbers and NUMBER.fullmatch(modality):
            numbers = [modality]
        if len(numbers) != 1:
            names = ", ".join(f"{name} ({number})" for name, number in known)
            raise ValueError(
                f"modalities: {'several channels are' if numbers else 'no channel is'} {modality!r}. Use numbers of "
                f"four digits such as '0000'{f', or one of {names}' if known else ''}."
            )
        chosen[modality] = numbers[0]
    if len(set(chosen.values())) < len(modalities) or not chosen:
        raise ValueError(f"modalities must be different channels, at least one, got {list(modalities)}.")
    return chosen


def list_cases(
    images: Path, labels: Path | None, channels: Mapping[str, str], classes: Mapping[int, int], identity: Identity
) -> list[SubjectFiles]:
    """All cases in a folder of images, sorted by name.

    Args:
        images: Their folder.
        labels: The folder of their masks; None: they are not read.
        channels: The number of each modality, in the order of the channels.
        classes: The class for each value of a mask.
        identity: The patient and the site of a case.

    Raises:
        FileNotFoundError: There is no case, or one lacks a channel or its mask.
        DamagedFileError: A file is named otherwise, or a mask belongs to no image.
    """
    cases: dict[str, dict[str, Path]] = {}
    for name, path in _volumes(images).items():
        match = IMAGE.fullmatch(name)
        if match is None:
            raise DamagedFileError(
                f"{path} is not named as a channel of a case, such as {name}_0000.nii.gz: rename it."
            )
        cases.setdefault(match["case"], {})[match["channel"]] = path
    if not cases:
        raise FileNotFoundError(f"{images} holds no images. Expected: {EXPECTED}.")
    for modality, number in channels.items():
        lacking = [case for case, found in cases.items() if number not in found]
        if lacking:
            raise FileNotFoundError(
                f"{len(lacking):,} of the {len(cases):,} cases in {images} lack {modality} (_{number}): "
                f"{first_ten(lacking)}. Set modalities to those that all have, or complete these cases."
            )
    masks = {} if labels is None else _masks(labels, cases)
    return [
        SubjectFiles(
            case, *identity(case), {modality: cases[case][number] for modality, number in channels.items()},
            masks.get(case), classes,
        )
        for case in sorted(cases)
    ]  # fmt: skip


def _volumes(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Expected: {EXPECTED}.")
    return volumes_in(folder)


def _masks(labels: Path, cases: Mapping[str, object]) -> dict[str, Path]:
    masks = _volumes(labels)
    if lacking := [case for case in cases if case not in masks]:
        raise FileNotFoundError(
            f"{len(lacking):,} of the {len(cases):,} cases lack their mask in {labels}: {first_ten(lacking)}. Complete "
            "them, or take their images away."
        )
    if unknown := [name for name in masks if name not in cases]:
        raise DamagedFileError(
            f"{labels} holds {len(unknown):,} masks that belong to no image: {first_ten(unknown)}. Rename them as "
            "their images, without the number of the channel, or take them away."
        )
    return masks
