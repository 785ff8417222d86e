"""Subjects read through MONAI, against nibabel and by hand."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from datamodules.images.image_folder import DamagedFileError
from datamodules.volumes.files import SubjectFiles
from datamodules.volumes.intensity import normalise_intensity
from datamodules.volumes.reader import VolumeReader
from tests.helpers.volumes import LPS, SIZE, damage_unseen, labels, scan, write_nifti

CLASSES = {0: 0, 1: 1, 2: 2, 4: 3, 9: 255}
AS_STORED = {"orientation": None, "intensity": "none"}


def subject(folder: Path, affine: np.ndarray = LPS, mask: np.ndarray | None = None) -> SubjectFiles:
    """Two scans, and a mask of the labels 1, 2 and 4; one of the modalities has a name that others use."""
    images = {name: write_nifti(folder / f"{name}.nii.gz", scan(name), affine) for name in ("mask", "image")}
    path = write_nifti(folder / "seg.nii.gz", labels("a") if mask is None else mask, affine)
    return SubjectFiles("a", "a", "Rome", images, path, CLASSES)


def test_as_stored(tmp_path):
    mask = labels("a")
    mask[0, 0, 0] = 9
    volume = VolumeReader(**AS_STORED).read(subject(tmp_path, mask=mask))
    assert (volume.subject, volume.site, volume.size) == ("a", "Rome", SIZE)
    assert (volume.image.dtype, volume.mask.dtype, volume.affine.dtype) == (torch.float32, torch.uint8, torch.float64)
    assert type(volume.image) is type(volume.mask) is type(volume.affine) is torch.Tensor
    assert np.array_equal(volume.image, [scan("mask"), scan("image")])
    assert np.array_equal(volume.mask, np.vectorize(CLASSES.get)(mask))
    assert np.array_equal(volume.affine, LPS)


def test_axes_are_brought_to_ras_as_nibabel_does(tmp_path):
    affine = np.array([[0, 0, 1.5, 7], [-1, 0, 0, 3], [0, 2, 0, -5], [0, 0, 0, 1.0]])
    files = subject(tmp_path, affine)
    volume = VolumeReader(intensity="none").read(files)
    expected = nibabel.as_closest_canonical(nibabel.load(files.images["image"]))
    assert np.array_equal(volume.image[1], expected.get_fdata(dtype=np.float32))
    assert np.allclose(volume.affine, expected.affine, atol=1e-6)
    expected = nibabel.as_closest_canonical(nibabel.load(files.mask))
    assert np.array_equal(volume.mask, np.vectorize(CLASSES.get)(np.asarray(expected.dataobj)))


def test_resampling_keeps_classes_and_places(tmp_path):
    volume = VolumeReader(spacing=(2.0, 0.5, 1.0), intensity="none").read(subject(tmp_path))
    assert volume.affine[:3, :3].abs().sum(0).tolist() == [2, 0.5, 1]
    assert volume.size == (6, 19, 8)
    assert set(volume.mask.unique().tolist()) == {0, 1, 2, 3}
    stored = VolumeReader(intensity="none").read(subject(tmp_path))
    assert torch.allclose(volume.image[:, :, ::2], stored.image[:, ::2], atol=1e-3)
    assert torch.equal(volume.mask[:, ::2], stored.mask[::2])


def test_the_foreground_is_what_is_not_0(tmp_path):
    volume = VolumeReader(crop_foreground=True, intensity="none").read(subject(tmp_path))
    stored = VolumeReader(intensity="none").read(subject(tmp_path))
    box = [(side.min().item(), side.max().item() + 1) for side in stored.image.any(0).nonzero().unbind(1)]
    region = [slice(*ends) for ends in box]
    assert torch.equal(volume.image, stored.image[:, *region])
    assert torch.equal(volume.mask, stored.mask[*region])
    first = torch.tensor([*(start for start, _ in box), 1.0], dtype=torch.float64)
    assert torch.allclose(volume.affine[:, 3], stored.affine @ first)


def test_intensities_are_normalised_by_channel(tmp_path):
    found = VolumeReader(orientation=None).read(subject(tmp_path)).image
    stored = torch.from_numpy(np.stack([scan("mask"), scan("image")]))
    assert torch.allclose(found, normalise_intensity(stored, "zscore_nonzero"))


def test_a_subject_without_a_mask(tmp_path):
    files = subject(tmp_path)
    volume = VolumeReader().read(SubjectFiles("a", "a", None, files.images, None, {}))
    assert volume.mask is None


def test_memory_is_known_before_voxels_are_read(tmp_path):
    files = subject(tmp_path, np.diag([1.0, 1, 2, 1]))
    assert VolumeReader().bytes_of(files) == 960 * (2 * 4 + 1)
    assert VolumeReader(spacing=(1, 1, 1)).bytes_of(files) == 2 * 960 * (2 * 4 + 1)


def test_a_truncated_scan_is_named(tmp_path):
    files = subject(tmp_path)
    content = files.images["image"].read_bytes()
    files.images["image"].write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFileError, match=r"image\.nii\.gz is truncated, damaged or no NIfTI file"):
        VolumeReader().read(files)


@pytest.mark.parametrize("name", ["image.nii.gz", "seg.nii.gz"])
def test_damage_that_can_be_decompressed_is_named(tmp_path, name):
    files = subject(tmp_path)
    damage_unseen(tmp_path / name)
    with pytest.raises(DamagedFileError, match=rf"{name} is truncated, damaged or no NIfTI file \(CRC"):
        VolumeReader().read(files)


def test_a_mask_of_another_shape_is_refused(tmp_path):
    files = subject(tmp_path, mask=labels("a", size=(12, 10, 9)))
    with pytest.raises(DamagedFileError, match=r"mask\.nii\.gz has 12x10x8 voxels, .*seg\.nii\.gz 12x10x9"):
        VolumeReader().read(files)


def test_a_label_that_is_no_class_is_refused(tmp_path):
    mask = labels("a")
    mask[2, 3, 4] = 3
    with pytest.raises(DamagedFileError, match=r"seg\.nii\.gz holds the value 3 at voxel \(2, 3, 4\), which is no"):
        VolumeReader().read(subject(tmp_path, mask=mask))
    with pytest.raises(DamagedFileError, match=r"the value nan at voxel \(0, 0, 0\)"):
        VolumeReader().read(subject(tmp_path, mask=np.full(SIZE, np.nan, np.float32)))


@pytest.mark.parametrize("options", [{"crop_foreground": True}, {"spacing": (2.0, 2.0, 2.0)}])
def test_a_label_that_is_no_class_is_refused_wherever_it_is(tmp_path, options):
    mask = labels("a")
    mask[0, 0, 1] = 3  # is cropped, and lies between the voxels of the coarser grid
    with pytest.raises(DamagedFileError, match=r"seg\.nii\.gz holds the value 3 at voxel \(0, 0, 1\)"):
        VolumeReader(**options).read(subject(tmp_path, mask=mask))


@pytest.mark.parametrize("crop", [False, True])
def test_a_scan_with_nan_is_refused(tmp_path, crop):
    files = subject(tmp_path)
    voxels = scan("image")
    voxels[0, 0, 0] = np.nan
    write_nifti(files.images["image"], voxels)
    with pytest.raises(DamagedFileError, match=r"image\.nii\.gz has 1 voxels that are NaN"):
        VolumeReader(crop_foreground=crop, spacing=(0.7, 1, 1)).read(files)


@pytest.mark.parametrize("crop", [False, True])
def test_a_subject_without_foreground_is_refused(tmp_path, crop):
    files = subject(tmp_path)
    for path in files.images.values():
        write_nifti(path, np.zeros(SIZE, np.float32))
    with pytest.raises(DamagedFileError, match=r"mask\.nii\.gz and the other images of a are 0 everywhere"):
        VolumeReader(crop_foreground=crop).read(files)


def test_flat_voxels_need_a_spacing_or_leave(tmp_path):
    files = subject(tmp_path, np.diag([1.0, 1, 4, 1]))
    with pytest.raises(DamagedFileError, match="max_anisotropy allows 3"):
        VolumeReader(max_anisotropy=3).read(files)
    assert VolumeReader(max_anisotropy=4).read(files).size == SIZE
    assert VolumeReader(max_anisotropy=3, spacing=(1, 1, 2)).read(files).size == (12, 10, 15)


def test_a_scan_that_shows_nothing_is_named(tmp_path):
    files = subject(tmp_path)
    write_nifti(files.images["image"], np.full(SIZE, -1024, np.float32))
    with pytest.warns(UserWarning, match=rf"{files.images['image']}: one value everywhere, .* a should have this scan"):
        VolumeReader(intensity="zscore").read(files)


def test_a_window_is_in_the_unit_of_the_files(tmp_path):
    found = VolumeReader(orientation=None, intensity=(100.0, 300.0)).read(subject(tmp_path)).image
    assert np.allclose(found, (np.stack([scan("mask"), scan("image")]) - 100).clip(0, 200) / 200)


def test_settings_that_caches_are_kept_under():
    """`repr` is part of the key: another one for the same settings would read all volumes anew."""
    assert repr(VolumeReader()) == (
        "VolumeReader(orientation='RAS', spacing=None, max_anisotropy=None, crop_foreground=False, "
        "intensity='zscore_nonzero')"
    )
    assert repr(VolumeReader(intensity=(0.0, 1.0))) != repr(VolumeReader(intensity=(0.0, 2.0)))
