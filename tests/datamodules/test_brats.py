"""BraTS in its three layouts: subjects, labels, sites, splits, batches, the way back, and bad input."""

import os
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from datamodules.brats import BraTSDataModule
from datamodules.images.image_folder import DamagedFileError
from datamodules.layouts.brats import list_brats
from datamodules.volumes.store import MappedVolumes
from tests.helpers.volumes import (
    SIZE,
    brats_names,
    labels,
    scan,
    write_brats,
    write_brats_2023,
    write_brats_demo,
    write_nifti,
)

REAL_DATA = os.environ.get("CONVSUITE_DATA", "")
DEMO = {"case_1": "Brats18_TCIA02_471_1", "case_5": "Brats18_CBICA_AAB_1"}
TINY = {"patch_size": 4, "patches_per_epoch": 6, "batch_size": 2, "seed": 0}


def brats(root: Path, **options) -> BraTSDataModule:
    return BraTSDataModule(str(root), **{**TINY, **options})


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("official")
    write_brats(root)
    return root


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    write_brats_demo(root, DEMO)
    return root


def stored(home: Path, subject: str, kind: str = "seg") -> nibabel.Nifti1Image:
    return nibabel.load(next(home.rglob(f"{subject}[_-]{kind}.nii.gz")))


def test_the_data_are_described_before_any_file_is_read():
    data = BraTSDataModule("/nowhere")
    assert (data.in_channels, data.num_classes, data.class_names) == (4, 2, ("background", "whole_tumour"))
    assert data.regions == {"whole": [1]}
    data = BraTSDataModule("/nowhere", modalities=("flair",), target="classes", patch_size=[16, 16, 8], context=4)
    assert (data.in_channels, data.num_classes, data.image_size) == (1, 4, (24, 24, 16))
    assert data.class_names == ("background", "necrotic_core", "oedema", "enhancing_tumour")
    assert data.regions == {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}


def test_subjects_of_2018_have_sites_in_their_names(official):
    found = list_brats(official, ("flair", "t1ce"), whole=False, with_masks=True)
    assert [one.subject for one in found] == brats_names(6)
    assert [one.site for one in found] == ["2013", "2013", "CBICA", "CBICA", "TCIA02", "TCIA02"]
    assert [path.name for path in found[0].paths] == [
        f"{found[0].subject}_{kind}.nii.gz" for kind in ("flair", "t1ce", "seg")
    ]
    assert found[0].classes == {0: 0, 1: 1, 2: 2, 4: 3}
    assert list_brats(official, ("t1",), whole=True, with_masks=True)[0].classes == {0: 0, 1: 1, 2: 1, 4: 1}


@pytest.mark.parametrize(
    ("name", "patient", "site"),
    [
        ("Brats18_TCIA02_471_1", "TCIA02_471", "TCIA02"),
        ("Brats17_2013_10_1", "2013_10", "2013"),
        ("BraTS19_CBICA_AAB_1", "CBICA_AAB", "CBICA"),
        ("BraTS20_Training_001", "BraTS20_Training_001", None),
        ("BraTS2021_00000", "BraTS2021_00000", None),
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005", None),
    ],
)
def test_names_tell_patient_and_site(tmp_path, name, patient, site):
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}_t1.nii").touch()
    (found,) = list_brats(tmp_path, ("t1",), whole=True, with_masks=False)
    assert (found.subject, found.patient, found.site) == (name, patient, site)


def test_names_since_2023(tmp_path):
    write_brats_2023(tmp_path, ["BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-GLI-00006-000"])
    data = brats(tmp_path, target="classes", modalities=("t2", "flair"), train_size=1, val_size=0, test_size=1)
    data.setup("fit")
    data.setup("test")
    stores = [data.make_store(split) for split in ("train", "test")]
    assert sorted(len(store) for store in stores) == [1, 2]  # one patient was scanned twice
    for store in stores:
        for volume in (store[i] for i in range(len(store))):
            expected = nibabel.as_closest_canonical(stored(tmp_path, volume.subject))
            assert np.array_equal(volume.mask, expected.dataobj)
            assert set(volume.mask.unique().tolist()) == {0, 1, 2, 3}
    t2, flair = stores[0][0].image
    for channel, kind in ((t2, "t2w"), (flair, "t2f")):
        expected = nibabel.as_closest_canonical(stored(tmp_path, stores[0].subjects[0], kind)).get_fdata()
        assert torch.equal(channel != 0, torch.from_numpy(expected != 0))


def test_batches(official):
    data = brats(official, target="classes", context=2, test_size=1, val_size=1)
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    batch = next(iter(data.train_dataloader()))
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "image": (2, 4, 8, 8, 8),
        "mask": (2, 4, 4, 4),
        "index": (2,),
        "start": (2, 3),
        "size": (2, 3),
        "affine": (2, 4, 4),
    }
    (val,), (test,), (predict,) = (
        list(loader()) for loader in (data.val_dataloader, data.test_dataloader, data.predict_dataloader)
    )
    assert (val["image"].shape, val["mask"].shape) == ((1, 4, *SIZE), (1, *SIZE))
    assert "mask" not in predict
    assert predict["file"] == test["file"] != val["file"]
    subjects = [*data.make_store("train").subjects, *val["file"], *test["file"]]
    assert sorted(subjects) == brats_names(6)
    # LPS in the file, RAS here: the last voxel of the file along two axes comes first
    assert test["affine"][0].tolist() == [[1, 0, 0, -11], [0, 1, 0, -9], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert all(isinstance(value, int | float | str | list | tuple | None) for value in data.hparams.values())


def test_workers_share_what_is_held_in_memory(official):
    batches = []
    for workers in (0, 2):
        data = brats(official, num_workers=workers, test_size=1, val_size=1)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    for single, parallel in zip(*batches, strict=True):
        assert all(torch.equal(single[name], parallel[name]) for name in single)


def test_larger_splits_are_mapped_and_give_the_same(official, tmp_path):
    held, mapped = (
        brats(official, memory_limit=limit, cache_root=str(tmp_path), test_size=1, val_size=1) for limit in (1.0, 0.0)
    )
    assert isinstance(mapped.make_store("train"), MappedVolumes)
    assert mapped.fingerprint("train") == held.fingerprint("train")
    held.setup("fit")
    for one, other in zip(held.train_dataloader(), mapped.train_dataloader(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("options", [{}, {"crop_foreground": True}, {"orientation": "PIR"}])
def test_a_prediction_comes_back_voxel_for_voxel(official, options):
    data = brats(official, test_size=1, val_size=0, **options)
    data.setup("test")
    (batch,) = data.test_dataloader()
    (subject,) = batch["file"]
    classes, affine, header = data.to_native(batch["mask"][0], subject)
    original = stored(official, subject)
    assert np.array_equal(classes, np.asarray(original.dataobj) > 0)
    assert np.allclose(affine, original.affine, atol=1e-6)
    assert header.get_zooms() == original.header.get_zooms()
    with pytest.raises(ValueError, match="no subject 'nobody' among"):
        data.to_native(batch["mask"][0], "nobody")


def test_a_prediction_of_classes_has_the_labels_of_the_challenge(official):
    data = brats(official, target="classes", test_size=1, val_size=0)
    data.setup("test")
    (batch,) = data.test_dataloader()
    (subject,) = batch["file"]
    labels, _, _ = data.to_native(batch["mask"][0], subject)
    assert np.array_equal(labels, np.asarray(stored(official, subject).dataobj))
    assert 4 in labels


def test_the_demo_has_sites_in_its_notes(demo):
    data = brats(demo, modalities=("flair", "t1"), train_subjects=["case_1"], test_subjects=["case_5"])
    data.setup("fit")
    data.setup("test")
    train, test = data.make_store("train"), data.make_store("test")
    assert (list(train.subjects), list(train.sites)) == (["case_1"], ["TCIA02"])
    assert (list(test.subjects), list(test.sites)) == (["case_5"], ["CBICA"])
    assert data.val_dataloader() == []  # nobody is left for it
    expected = nibabel.as_closest_canonical(nibabel.load(demo / "brats_2018" / "case_1" / "GT_W.nii.gz"))
    assert np.array_equal(train[0].mask, expected.get_fdata())


def test_subjects_without_masks_can_be_predicted(demo, tmp_path):
    home = write_brats(tmp_path, 2, with_masks=False)
    data = brats(demo, modalities=("t1",), predict_root=str(home))
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch["file"] for batch in batches] == [[name] for name in brats_names(2)]
    classes, _, _ = data.to_native(torch.ones(SIZE, dtype=torch.uint8), brats_names(2)[0])
    assert classes.all()
    with pytest.raises(FileNotFoundError, match=r"2 of the 2 subjects .* lack their mask .*predict_root"):
        brats(tmp_path).setup("fit")


def test_classes_can_be_predicted_where_the_mask_shows_the_whole_tumour(demo):
    data = brats(demo, modalities=("flair",), target="classes", predict_root=str(demo / "brats_2018"))
    data.setup("predict")
    classes = torch.full(SIZE, 3, dtype=torch.uint8)
    labels, _, _ = data.to_native(classes, "case_1")
    assert (labels == 4).all()  # as in the challenge whose modalities are named so
    (found, _) = list_brats(demo, ("t1",), whole=True, with_masks=False)
    assert found.values == [0, 1]


def test_a_damaged_test_subject_is_found_before_training(tmp_path):
    write_brats(tmp_path, 3)
    data = brats(tmp_path, test_size=1, val_size=1)
    data.check_test()
    store = data.make_store("test")
    data.setup("test")
    assert data.test_dataset.store is store
    path = next(tmp_path.rglob(f"{store.subjects[0]}_t2.nii.gz"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedFileError, match=re.escape(str(path))):
        brats(tmp_path, test_size=1, val_size=1).check_test()
    with pytest.raises(ValueError, match="no subjects for test: set test_size"):
        brats(tmp_path, test_size=0, val_size=1).check_test()


def test_nothing_there_is_an_error_that_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such data set .*GT_W"):
        brats(tmp_path).setup("fit")
    (tmp_path / "brats").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no subject of BraTS\. Expected: "):
        brats(tmp_path).setup("fit")


def test_a_missing_modality_is_named_with_what_is_there(demo):
    with pytest.raises(
        FileNotFoundError,
        match=r"2 of the 2 subjects in .* lack t1ce: case_1, case_5 \(case_1 holds FLAIR\.nii\.gz, GT_W\.nii\.gz, T1",
    ):
        brats(demo).setup("fit")


def test_a_mask_under_another_name_is_shown(tmp_path):
    home = write_brats(tmp_path, 2)
    path = next(home.rglob("*_seg.nii.gz"))
    path.rename(path.with_name("W39_1998.09.19_Segm.nii.gz"))  # as in BraTS 2020
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 subjects .* holds .*W39_1998\.09\.19_Segm\.nii\.gz"):
        brats(tmp_path).setup("fit")


def test_a_mask_of_the_whole_tumour_has_no_classes(demo):
    with pytest.raises(ValueError, match=r"GT_W\.nii\.gz shows the whole tumour only: set target: whole"):
        brats(demo, modalities=("t1",), target="classes").setup("fit")


def test_folders_that_contradict_each_other_are_refused(tmp_path):
    home = write_brats(tmp_path, 1)
    (subject,) = brats_names(1)
    shutil.copytree(home / "HGG" / subject, home / "again" / subject)
    with pytest.raises(DamagedFileError, match=f"two folders of the subject {subject}"):
        brats(tmp_path).setup("fit")
    write_nifti(home / "again" / subject / f"{subject}-t1n.nii.gz", scan("t1"))
    with pytest.raises(DamagedFileError, match=r"both are t1: take one of them away"):
        brats(tmp_path).setup("fit")


@pytest.mark.parametrize("name", ["GT_W.nii.gz", "other-seg.nii"])
def test_two_masks_in_a_folder_are_refused(tmp_path, name):
    home = write_brats(tmp_path, 1)
    path = next(home.rglob("*_seg.nii.gz"))
    write_nifti(path.with_name(name), labels("a"))
    with pytest.raises(DamagedFileError, match=r"both are masks: take one of them away"):
        brats(tmp_path).setup("fit")


def test_a_label_that_is_no_class_is_an_error(tmp_path):
    home = write_brats(tmp_path, 1)
    mask = labels("a")
    mask[6, 5, 4] = 3
    path = write_nifti(next(home.rglob("*_seg.nii.gz")), mask)
    with pytest.raises(DamagedFileError, match=rf"{re.escape(str(path))} holds the value 3 .* values are 0, 1, 2, 4\."):
        brats(tmp_path, val_size=0, test_size=0).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("t1", "t1")}, "modalities must be some of t1, t1ce, t2, flair, each once"),
        ({"modalities": ("ct",)}, "modalities must be some of"),
        ({"modalities": ()}, "modalities must be some of"),
        ({"target": "core"}, "target must be one of whole, classes, got 'core'"),
        ({"orientation": "RAR"}, "orientation must have one of L and R"),
        ({"spacing": [1.0, 1.0]}, "spacing must be three positive numbers of mm"),
        ({"spacing": [1.0, 1.0, 0.0]}, "spacing must be three positive numbers of mm"),
        ({"max_anisotropy": 0.5}, "max_anisotropy must be 1"),
        ({"intensity": "minmax"}, "intensity must be one of zscore_nonzero, "),
        ({"memory_limit": -1.0}, "memory_limit must be 0 GiB"),
        ({"test_size": -1}, "test_size must be 0"),
        ({"train_subjects": ["a"], "train_size": 1}, "train_subjects and train_size both say"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        brats(Path("/nowhere"), **options)


def test_an_empty_test_says_how_to_fill_it(demo):
    data = brats(demo, modalities=("t1",), train_size=1, val_size=1, test_size=0)
    with pytest.raises(ValueError, match="no subjects for test: set test_size or test_subjects"):
        data.setup("test")


@pytest.mark.real_data("brats_2018")
def test_two_real_cases():
    data = BraTSDataModule(
        REAL_DATA,
        modalities=("flair", "t1"),
        train_subjects=["case_1"],
        test_subjects=["case_5"],
        crop_foreground=True,
        seed=0,
        patch_size=32,
        patches_per_epoch=2,
    )
    data.setup("fit")
    data.setup("test")
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 2, 32, 32, 32)
    (batch,) = data.test_dataloader()
    brain = batch["image"][0] != 0
    for channel, inside in zip(batch["image"][0], brain, strict=True):
        assert (channel[inside].mean().item(), channel[inside].std().item()) == pytest.approx((0, 1), abs=1e-3)
    original = nibabel.load(Path(REAL_DATA) / "brats_2018" / "case_5" / "GT_W.nii.gz")
    classes, affine, _ = data.to_native(batch["mask"][0], "case_5")
    assert np.array_equal(classes, np.asarray(original.dataobj))
    assert np.allclose(affine, original.affine, atol=1e-6)
