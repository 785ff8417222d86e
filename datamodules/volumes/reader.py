"""From a subject's files to its `Volume`: checked, brought to one grid by MONAI, normalised."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from datamodules.images.image_folder import DamagedFileError
from datamodules.volumes.files import (
    Header,
    SubjectFiles,
    check_anisotropy,
    check_compression,
    check_finite,
    check_headers,
    check_labels,
    read_header,
    read_voxels,
)
from datamodules.volumes.geometry import native_transforms
from datamodules.volumes.intensity import Intensity, Window, normalise_intensity
from datamodules.volumes.volume import Volume


@dataclass(frozen=True)
class VolumeReader:
    """How a subject is read.

    Attributes:
        orientation: Axis codes, such as "RAS"; None: as stored.
        spacing: mm between voxels along the axes of the result; None: as stored.
        max_anisotropy: How many times as long as wide a voxel may be where `spacing` does not say; None: any.
        crop_foreground: Crop to the box outside of which all modalities are 0.
        intensity: See `normalise_intensity`, which sees the volume as resampled and cropped.
    """

    orientation: str | None = "RAS"
    spacing: tuple[float, ...] | None = None
    max_anisotropy: float | None = None
    crop_foreground: bool = False
    intensity: Intensity | Window = "zscore_nonzero"

    def read(self, files: SubjectFiles, names_blank: bool = True) -> Volume:
        """A subject's volume.

        Args:
            files: The subject's.
            names_blank: Warn of scans with one value everywhere.

        Raises:
            FileNotFoundError: A file is missing.
            DamagedFileError: A file is truncated, or not what it should be; the message names it and the mend.
        """
        headers = [read_header(path) for path in files.paths]
        check_headers(headers)
        if self.max_anisotropy is not None and self.spacing is None:
            check_anisotropy(headers[0], self.max_anisotropy)
        for path in files.paths:
            check_compression(path)
        if files.mask is not None:
            check_labels(files.mask, files.classes)  # all of them, those too that are cropped or resampled away
        image, mask = self._on_one_grid(files)
        if not image.isfinite().all():
            for path in files.images.values():
                check_finite(path)
        if not image.any():
            raise DamagedFileError(
                f"{headers[0].path} and the other images of {files.subject} are 0 everywhere: fetch them again, or "
                "leave this subject out."
            )
        if names_blank:
            _warn_of_blank(files, image)
        affine = image.affine.double().clone()
        classes = None if mask is None else _classes(mask, files.classes)
        image = normalise_intensity(image.as_tensor().contiguous(), self.intensity)
        return Volume(files.subject, files.site, image, classes, affine)

    def bytes_of(self, files: SubjectFiles, header: Header | None = None) -> int:
        """How much memory a subject takes before it is cropped, from a header alone.

        Args:
            files: The subject's.
            header: That of the first of them; None: it is read.

        Raises:
            FileNotFoundError: The file is missing.
            DamagedFileError: It is no volume.
        """
        header = header or read_header(files.paths[0])
        voxels = prod(header.shape)
        if self.spacing is not None:
            voxels = round(voxels * float(header.spacing.prod()) / prod(self.spacing))
        return voxels * (4 * len(files.images) + (files.mask is not None))

    def _on_one_grid(self, files: SubjectFiles) -> tuple[Any, Tensor | None]:
        """The image, a `MetaTensor` (C, X, Y, Z), and the values of the mask, float32 (X, Y, Z)."""
        # Numbers, because a modality may have any name, "mask" too.
        scans = {f"scan_{number}": path for number, path in enumerate(files.images.values())}
        mask_key, masks = (None, {}) if files.mask is None else ("mask", {"mask": files.mask})
        transforms = native_transforms(list(scans), mask_key, self.orientation, self.spacing, self.crop_foreground)
        try:
            found: Any = transforms({**scans, **masks})
        except Exception:
            for path in files.paths:  # raises for the file that is damaged, by its name
                read_voxels(path)
            raise
        return found["image"], None if mask_key is None else found[mask_key].as_tensor()[0]


def _warn_of_blank(files: SubjectFiles, image: Tensor) -> None:
    """Name images that show nothing. No error: a map of earlier lesions, or a scan that was not made, may be empty."""
    blank = [path for path, scan in zip(files.images.values(), image, strict=True) if scan.amin() == scan.amax()]
    if blank:
        warnings.warn(  # in whichever process reads the subject: one that is kept in files is read once
            f"{', '.join(map(str, blank))}: one value everywhere, in which a network sees nothing. If {files.subject} "
            "should have this scan, fetch it again, or leave the subject out.",
            stacklevel=2,
        )


def _classes(values: Tensor, classes: Mapping[int, int]) -> Tensor:
    """The class of each voxel, uint8, from the values in the mask's file, all of which are known."""
    table = torch.zeros(256, dtype=torch.uint8)
    table[list(classes)] = torch.tensor(list(classes.values()), dtype=torch.uint8)
    return table[values.int()]
