"""The user's own volumes, in folders that are named as nnU-Net does."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from datamodules.image_folder import DamagedFileError
from datamodules.volume_folder import VolumeFolderDataModule
from tests.helpers.volumes import SIZE, labels, scan, write_image_label_folders, write_nifti

CASES = ("liver_01", "liver_02", "liver_03")


def folder(root: Path, **options) -> VolumeFolderDataModule:
    sizes = {"val_size": 1, "test_size": 1} if not options.keys() & {"val_size", "test_size"} else {}
    return VolumeFolderDataModule(str(root), **{"patch_size": 4, "seed": 0, "patches_per_epoch": 2, **sizes, **options})


def test_channels_and_classes_stand_in_the_description(tmp_path):
    write_image_label_folders(tmp_path, CASES)
    data = folder(tmp_path)
    assert (data.in_channels, data.num_classes) == (2, 3)
    assert data.class_names == ("background", "oedema", "core")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch["image"].shape, batch["mask"].shape) == ((2, 2, 4, 4, 4), (2, 4, 4, 4))
    subjects = [data.make_store(split).subjects[0] for split in ("train", "val", "test")]
    assert sorted(subjects) == sorted(CASES)
    volume = data.make_store("train")[0]
    expected = nibabel.Nifti1Image(labels(volume.subject, (1, 2)), np.diag([-1.0, -1, 1, 1]))
    assert np.array_equal(volume.mask, nibabel.as_closest_canonical(expected).dataobj)


def test_the_first_version_of_the_description(tmp_path):
    home = write_image_label_folders(tmp_path, CASES)
    fields = {"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "background", "2": "core", "1": "oedema"}}
    (home / "dataset.json").write_text(json.dumps(fields))
    data = folder(tmp_path)
    assert (data.channels, data.class_names) == ({"T1": "0000", "FLAIR": "0001"}, ("background", "oedema", "core"))


def test_channels_can_be_chosen_by_name_or_number(tmp_path):
    write_image_label_folders(tmp_path, CASES)
    data = folder(tmp_path, modalities=["FLAIR", "0000"], intensity="none", orientation=None)
    assert data.channels == {"FLAIR": "0001", "0000": "0000"}
    volume = data.make_store("train")[0]
    expected = [scan(f"{volume.subject}_{number}") for number in ("0001", "0000")]
    assert np.array_equal(volume.image, expected)


def test_the_label_ignore_is_left_out(tmp_path):
    write_image_label_folders(tmp_path, CASES, described={"labels": {"background": 0, "oedema": 1, "ignore": 2}})
    data = folder(tmp_path)
    assert data.class_names == ("background", "oedema")
    assert set(data.make_store("train")[0].mask.unique().tolist()) == {0, 1, 255}


def test_a_description_is_not_needed(tmp_path):
    home = write_image_label_folders(tmp_path, CASES)
    (home / "dataset.json").unlink()
    data = folder(tmp_path, modalities=["0001"], class_names=["background", "oedema", "core"])
    data.setup("fit")
    assert data.in_channels == 1
    assert VolumeFolderDataModule("/nowhere", modalities=["0000"], class_names=["a", "b"]).num_classes == 2
    with pytest.raises(FileNotFoundError, match=r"no .*dataset\.json: write one, or set modalities"):
        folder(tmp_path, class_names=["a", "b"])


def test_test_cases_with_labels_are_the_test(tmp_path):
    write_image_label_folders(tmp_path, CASES, ["kidney_1"], test_labels=True)
    data = folder(tmp_path, val_size=1)
    data.setup("test")
    assert [batch["file"] for batch in data.test_dataloader()] == [["kidney_1"]]
    assert sorted([*data.make_store("train").subjects, *data.make_store("val").subjects]) == sorted(CASES)
    chosen = folder(tmp_path, test_subjects=["liver_02"], val_size=0)
    assert list(chosen.make_store("test").subjects) == ["liver_02"]


def test_test_cases_without_labels_are_predicted(tmp_path):
    home = write_image_label_folders(tmp_path, CASES, ["kidney_1"])
    data = folder(tmp_path, crop_foreground=True)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert (batch["file"], "mask" in batch) == (["kidney_1"], False)
    classes, _, _ = data.to_native(torch.ones(batch["image"].shape[2:], dtype=torch.uint8), "kidney_1")
    assert classes.shape == SIZE
    assert 0 < classes.mean() < 1
    other = folder(tmp_path, predict_root=str(home / "imagesTr"))
    other.setup("predict")
    assert [batch["file"] for batch in other.predict_dataloader()] == [[case] for case in CASES]


def test_patterns_find_patients_and_sites(tmp_path):
    cases = ["rome_01_a", "rome_01_b", "bern_02_a"]
    write_image_label_folders(tmp_path, cases)
    data = folder(tmp_path, patient_pattern=r"(\w+_\d+)_", site_pattern="^([a-z]+)", val_size=0, test_size=1)
    splits = [data.make_store(split) for split in ("train", "test")]
    assert sorted(sorted(store.subjects) for store in splits) == [["bern_02_a"], ["rome_01_a", "rome_01_b"]]
    assert {site for store in splits for site in store.sites} == {"rome", "bern"}
    with pytest.raises(ValueError, match="finds no patient in the name of the case 'bern_02_a'"):
        folder(tmp_path, patient_pattern="(rome)").make_store("train")
    with pytest.raises(ValueError, match="site_pattern has no group"):
        folder(tmp_path, site_pattern="rome")
    with pytest.raises(ValueError, match="patient_pattern is no regular expression"):
        folder(tmp_path, patient_pattern="(")


def test_files_that_are_missing_or_misnamed(tmp_path):
    home = write_image_label_folders(tmp_path, CASES)
    (home / "imagesTr" / "liver_02_0001.nii.gz").rename(home / "kept")
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 cases in .* lack FLAIR \(_0001\): liver_02"):
        folder(tmp_path).setup("fit")
    (home / "kept").rename(home / "imagesTr" / "liver_02_0001.nii.gz")
    (home / "labelsTr" / "liver_03.nii.gz").rename(home / "labelsTr" / "liver_03_seg.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 cases lack their mask in .*labelsTr: liver_03"):
        folder(tmp_path).setup("fit")
    write_nifti(home / "labelsTr" / "liver_03.nii.gz", labels("liver_03", (1, 2)))
    with pytest.raises(DamagedFileError, match="1 masks that belong to no image: liver_03_seg"):
        folder(tmp_path).setup("fit")
    write_nifti(home / "imagesTr" / "scan.nii.gz", scan("scan"))
    with pytest.raises(DamagedFileError, match=r"scan\.nii\.gz is not named as a channel of a case"):
        folder(tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"file_ending": ".png"}, "says that files end in '.png': only .nii.gz and .nii are read"),
        ({"channel_names": {}}, "has no usable channel_names"),
        ({"labels": None}, "has no labels"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, r"the label 'whole' is \[1, 2\].* regions .* class_names"),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path, described, message):
    write_image_label_folders(tmp_path, CASES[:1], described=described)
    with pytest.raises(DamagedFileError, match=message):
        folder(tmp_path)


def test_a_description_that_is_no_json(tmp_path):
    home = write_image_label_folders(tmp_path, CASES[:1])
    for content in ('{"labels": ', "[]"):
        (home / "dataset.json").write_text(content)
        with pytest.raises(DamagedFileError, match=r"dataset\.json .*: repair it"):
            folder(tmp_path)


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        (["T2"], r"no channel is 'T2'\. .* one of T1 \(0000\), FLAIR \(0001\)"),
        (["T1", "0000"], "must be different channels"),
        ([], "must be different channels, at least one"),
    ],
)
def test_channels_that_are_not_there(tmp_path, modalities, message):
    write_image_label_folders(tmp_path, CASES[:1])
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, modalities=modalities)


def test_channels_of_one_name_need_their_numbers(tmp_path):
    write_image_label_folders(tmp_path, CASES[:1], channels=("CT", "CT"))
    with pytest.raises(ValueError, match="several channels are 'CT'"):
        folder(tmp_path)
    assert folder(tmp_path, modalities=["0000", "0001"]).in_channels == 2
