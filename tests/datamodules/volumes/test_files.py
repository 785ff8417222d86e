"""What a subject's files must agree on, and the messages that say so."""

import errno
import os
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from datamodules.images.image_folder import DamagedFileError
from datamodules.volumes.files import (
    Header,
    SubjectFiles,
    check_anisotropy,
    check_compression,
    check_finite,
    check_headers,
    check_labels,
    find_home,
    read_header,
    read_voxels,
    volumes_in,
)
from tests.helpers.volumes import LPS, SIZE, damage_unseen, labels, scan, write_nifti

CLASSES = {0: 0, 1: 1, 2: 2, 4: 3}


def header(name: str = "t1", shape: tuple[int, ...] = SIZE, affine: np.ndarray = LPS) -> Header:
    return Header(Path(f"{name}.nii.gz"), shape, affine)


def moved(millimetres: float) -> np.ndarray:
    affine = LPS.copy()
    affine[0, 3] += millimetres
    return affine


def test_a_header_tells_the_grid(tmp_path):
    affine = np.array([[0, -2.0, 0, 7], [0.5, 0, 0, -3], [0, 0, 4, 1], [0, 0, 0, 1]])
    found = read_header(write_nifti(tmp_path / "a.nii", scan("a"), affine))
    assert (found.shape, found.orientation) == (SIZE, "ALS")
    assert found.spacing.tolist() == [0.5, 2, 4]
    assert np.array_equal(found.affine, affine)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*gone\.nii\.gz: put it there"):
        read_header(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize("content", [b"", b"no volume at all", b"\x1f\x8b\x08\x00 nor is this"])
def test_a_file_that_is_no_nifti_file_is_named(tmp_path, content):
    path = tmp_path / "t1.nii.gz"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"{re.escape(str(path))} is truncated, damaged or no NIfTI file"):
        read_header(path)


@pytest.mark.parametrize("name", ["t1.nii.gz", "t1.nii"])
def test_a_truncated_file_is_named(tmp_path, name):
    whole = write_nifti(tmp_path / "whole" / name, scan("t1", (20, 20, 20))).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedFileError, match=rf"{re.escape(str(path))} is truncated, damaged or .*: fetch it again"):
        read_voxels(path)


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EMFILE, r"Too many open files: raise .*ulimit -n"), (errno.EACCES, "denied")]
)
def test_a_file_that_the_system_does_not_open_is_not_called_damaged(tmp_path, monkeypatch, number, words):
    def refused(path):
        raise OSError(number, os.strerror(number))

    path = write_nifti(tmp_path / "t1.nii.gz", scan("t1"))
    monkeypatch.setattr(nibabel, "load", refused)
    for read in (read_header, read_voxels):
        with pytest.raises(OSError, match=rf"{words}.*t1\.nii\.gz") as caught:
            read(path)
        assert caught.value.errno == number
        assert not isinstance(caught.value, DamagedFileError)


def test_damage_that_can_be_decompressed_is_found(tmp_path):
    path = write_nifti(tmp_path / "t1.nii.gz", scan("t1"))
    check_compression(path)
    damage_unseen(path)
    read_voxels(path)
    with pytest.raises(DamagedFileError, match=rf"{re.escape(str(path))} is truncated, damaged or .*CRC.*fetch it"):
        check_compression(path)
    check_compression(write_nifti(tmp_path / "t1.nii", scan("t1")))


def test_a_series_is_no_volume(tmp_path):
    path = write_nifti(tmp_path / "t1.nii.gz", np.zeros((5, 4, 3, 2), np.float32))
    with pytest.raises(DamagedFileError, match=r"has 4 axes \(5x4x3x2\) where a volume has 3: .*four_to_three"):
        read_header(path)


def test_colours_are_no_volume(tmp_path):
    voxels = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DamagedFileError, match="not one real number a voxel"):
        read_header(write_nifti(tmp_path / "t1.nii.gz", voxels))


def test_an_affine_that_places_nothing_is_refused(tmp_path):
    path = write_nifti(tmp_path / "t1.nii", scan("t1"))
    content = bytearray(path.read_bytes())
    content[280:296] = bytes(16)  # srow_x, the first row of the affine
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"affine that places no voxel: \[0 0 0 0; "):
        read_header(path)


def test_files_of_other_shapes_are_refused():
    with pytest.raises(DamagedFileError, match=r"t1\.nii\.gz has 12x10x8 voxels, seg\.nii\.gz 12x10x9: "):
        check_headers([header(), header("seg", (12, 10, 9))])


def test_files_of_other_orientations_are_refused():
    with pytest.raises(DamagedFileError, match=r"LPS \(affine \[-1 0 0 0; 0 -1 0 0; 0 0 1 0\]\), seg\.nii\.gz in RPS"):
        check_headers([header(), header("seg", affine=LPS @ np.diag([-1.0, 1, 1, 1]))])


def test_files_in_other_places_are_refused():
    with pytest.raises(DamagedFileError, match=r"up to 3 mm apart: .*\[-1 0 0 0; .* and \[-1 0 0 3; "):
        check_headers([header(), header("flair"), header("seg", affine=moved(3.0))])


def test_files_that_are_turned_a_little_are_refused():
    turned = LPS.copy()
    turned[0, 1] = 0.02  # 0.18 mm at the far end
    with pytest.raises(DamagedFileError, match=r"up to 0\.18 mm apart"):
        check_headers([header(), header("seg", affine=turned)])


def test_rounded_affines_are_the_same():
    check_headers([header(), header("seg", affine=moved(1e-3))])


def test_anisotropy_has_a_limit():
    flat = header(affine=np.diag([0.5, 0.5, 5.0, 1.0]))
    with pytest.raises(DamagedFileError, match=r"voxels of 0\.5x0\.5x5 mm.* 10 times .* allows 3\. Set spacing to"):
        check_anisotropy(flat, 3.0)
    check_anisotropy(flat, 10.0)


def test_voxels_that_are_no_numbers_are_counted(tmp_path):
    voxels = scan("t1").astype(np.float64)
    voxels[3, 4, 5], voxels[4, 0, 0] = np.nan, 1e300
    path = write_nifti(tmp_path / "t1.nii.gz", voxels)
    with pytest.raises(
        DamagedFileError, match=r"t1\.nii\.gz has 2 voxels that are NaN or .* voxel \(3, 4, 5\): replace"
    ):
        check_finite(path)


@pytest.mark.parametrize(("value", "words"), [(3, "the value 3"), (0.5, r"the value 0\.5"), (np.nan, "the value nan")])
def test_a_label_that_is_no_class_is_shown(tmp_path, value, words):
    mask = labels("a").astype(np.float32)
    mask[1, 2, 3], mask[5, 5, 5] = value, 7
    path = write_nifti(tmp_path / "seg.nii.gz", mask)
    expected = (
        rf"{words} at voxel \(1, 2, 3\) \(and 1 more such values\), which is no class: the values are 0, 1, 2, 4\."
    )
    with pytest.raises(DamagedFileError, match=expected):
        check_labels(path, CLASSES)


def test_labels_that_are_scaled_are_rounded(tmp_path):
    image = nibabel.Nifti1Image(np.array([[[0, 255]]], np.uint8), LPS)
    image.header.set_slope_inter(1 / 255, 0)  # which is stored in float32
    nibabel.save(image, tmp_path / "seg.nii")
    assert read_voxels(tmp_path / "seg.nii").max() != 1
    check_labels(tmp_path / "seg.nii", {0: 0, 1: 1})


def test_volumes_in_a_folder(tmp_path):
    for name in ("b.nii.gz", "a.nii", ".a.nii", "._b.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.nii").mkdir()
    assert volumes_in(tmp_path) == {"a": tmp_path / "a.nii", "b": tmp_path / "b.nii.gz"}
    (tmp_path / "b.nii").touch()
    with pytest.raises(DamagedFileError, match=r"holds both b\.nii and b\.nii\.gz"):
        volumes_in(tmp_path)


def test_the_folder_of_a_data_set_is_found_or_named(tmp_path):
    def is_home(path: Path) -> bool:
        return path.name.startswith("set")

    with pytest.raises(FileNotFoundError, match=r"no such data set .* Expected: volumes\."):
        find_home(tmp_path / "nowhere", None, is_home, "volumes")
    (tmp_path / "set_a").mkdir()
    assert find_home(tmp_path, None, is_home, "volumes") == tmp_path / "set_a"
    (tmp_path / "set_b").mkdir()
    with pytest.raises(ValueError, match="several such data sets: set folder to one of set_a, set_b"):
        find_home(tmp_path, None, is_home, "volumes")
    assert find_home(tmp_path, "set_b", is_home, "volumes") == tmp_path / "set_b"
    assert find_home(Path("/nowhere"), str(tmp_path), is_home, "volumes") == tmp_path
    with pytest.raises(FileNotFoundError, match=r"folder is not a folder: .*set_c"):
        find_home(tmp_path, "set_c", is_home, "volumes")


def test_the_digest_of_a_subject_follows_its_files_not_their_folder(tmp_path):
    write_nifti(tmp_path / "one" / "t1.nii.gz", scan("t1"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")  # with times

    def digest(folder: str, classes: dict[int, int] = CLASSES) -> str:
        path = tmp_path / folder / "t1.nii.gz"
        return SubjectFiles("a", "a", None, {"t1": path}, None, classes).digest()

    before = digest("one")
    assert digest("two") == before
    assert digest("one", {0: 0}) != before
    write_nifti(tmp_path / "one" / "t1.nii.gz", scan("other"))
    assert digest("one") != before
