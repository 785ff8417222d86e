"""Tiny volumes in NIfTI files, in the layouts of BraTS and of nnU-Net: an ellipsoid with a lesion in it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZE = (12, 10, 8)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""How BraTS is stored: indices rise to the left and to the back."""


def write_nifti(path: Path, voxels: NDArray, affine: NDArray[np.float64] = LPS) -> Path:
    """Write a NIfTI file, compressed if its name says so; folders are made."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def damage_unseen(path: Path) -> None:
    """Make the voxels of a compressed file others than its checksum says, so that they can still be read."""
    values = bytearray(gzip.decompress(path.read_bytes()))
    checksum = path.read_bytes()[-8:]
    values[-1] ^= 1
    path.write_bytes(gzip.compress(bytes(values))[:-8] + checksum)


def scan(name: str, size: Sequence[int] = SIZE) -> NDArray[np.float32]:
    """A scan f(name): bright noise in an ellipsoid, 0 around it, like a skull-stripped brain."""
    values = np.random.default_rng([*name.encode()]).uniform(50, 500, tuple(size)).astype(np.float32)
    return values * (_distance(size) <= 0.9)


def labels(name: str, values: Sequence[int] = (1, 2, 4), size: Sequence[int] = SIZE) -> NDArray[np.uint8]:
    """A mask f(name): voxels of all `values` in the middle, background around them."""
    mask = np.random.default_rng([*name.encode()]).choice(values, tuple(size)).astype(np.uint8)
    return mask * (_distance(size) <= 0.4)


def _distance(size: Sequence[int]) -> NDArray[np.float64]:
    """Of each voxel from the centre, where 1 is the border along each axis."""
    axes = [np.linspace(-1, 1, side) for side in size]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))


def brats_names(count: int) -> list[str]:
    """Names as in BraTS 2018, sorted, of three sites."""
    sites = ("2013", "CBICA", "TCIA02")
    return sorted(f"Brats18_{sites[number % 3]}_{number}_1" for number in range(count))


def write_brats(root: Path, count: int = 6, with_masks: bool = True, size: Sequence[int] = SIZE) -> Path:
    """Write `MICCAI_BraTS_2018_Data_Training/{HGG,LGG}/<subject>/<subject>_{t1,t1ce,t2,flair,seg}.nii.gz`.

    Returns:
        The data set's folder.
    """
    home = root / "MICCAI_BraTS_2018_Data_Training"
    for number, subject in enumerate(brats_names(count)):
        folder = home / ("HGG", "LGG")[number % 2] / subject
        for modality in ("t1", "t1ce", "t2", "flair"):
            name = f"{subject}_{modality}"
            write_nifti(folder / f"{name}.nii.gz", scan(name, size))
        if with_masks:
            write_nifti(folder / f"{subject}_seg.nii.gz", labels(subject, size=size))
    return home


def write_brats_2023(root: Path, subjects: Sequence[str]) -> Path:
    """Write `ASNR-MICCAI-BraTS2023/<subject>/<subject>-{t1n,t1c,t2w,t2f,seg}.nii.gz`; returns that folder."""
    home = root / "ASNR-MICCAI-BraTS2023"
    for subject in subjects:
        for modality in ("t1n", "t1c", "t2w", "t2f"):
            name = f"{subject}-{modality}"
            write_nifti(home / subject / f"{name}.nii.gz", scan(name))
        write_nifti(home / subject / f"{subject}-seg.nii.gz", labels(subject, (1, 2, 3)))
    return home


def write_brats_demo(root: Path, cases: Mapping[str, str], size: Sequence[int] = SIZE) -> Path:
    """Write `brats_2018/<case>/{FLAIR,T1,GT_W}.nii.gz` and `subject_id.txt`, as the demo of DeepVoxNet2 has them.

    Args:
        root: What a data module takes as `root`.
        cases: The name in the challenge for each case.
        size: Voxels along each axis.

    Returns:
        The data set's folder.
    """
    home = root / "brats_2018"
    for case, subject in cases.items():
        for modality in ("FLAIR", "T1"):
            write_nifti(home / case / f"{modality}.nii.gz", scan(f"{case}_{modality}", size))
        write_nifti(home / case / "GT_W.nii.gz", labels(case, (1,), size).astype(np.float32))
        (home / case / "subject_id.txt").write_text(f"Case_id: {subject}\nSubject_id: {subject}")
    return home


def write_image_label_folders(
    root: Path,
    train: Sequence[str],
    test: Sequence[str] = (),
    test_labels: bool = False,
    channels: Sequence[str] = ("T1", "FLAIR"),
    described: Mapping[str, object] | None = None,
    size: Sequence[int] = SIZE,
) -> Path:
    """Write `Dataset001_Tiny` as nnU-Net wants it: classes background, oedema (1) and core (2).

    Args:
        root: What a data module takes as `root`.
        train: Names of the cases of imagesTr.
        test: Names of the cases of imagesTs.
        test_labels: Write labelsTs.
        channels: Names of the channels.
        described: Fields of dataset.json that are to be others.
        size: Voxels along each axis.

    Returns:
        The data set's folder.
    """
    home = root / "Dataset001_Tiny"
    for part, cases in (("Tr", train), ("Ts", test)):
        for case in cases:
            for number in range(len(channels)):
                name = f"{case}_{number:04d}"
                write_nifti(home / f"images{part}" / f"{name}.nii.gz", scan(name, size))
            if part == "Tr" or test_labels:
                write_nifti(home / f"labels{part}" / f"{case}.nii.gz", labels(case, (1, 2), size))
    fields = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, "oedema": 1, "core": 2},
        "numTraining": len(train),
        "file_ending": ".nii.gz",
    }
    (home / "dataset.json").write_text(json.dumps({**fields, **(described or {})}))
    return home
