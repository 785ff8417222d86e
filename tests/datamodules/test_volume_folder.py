"""The user's own volumes, in folders that are named as nnU-Net does."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from datamodules.images.image_folder import DamagedFileError
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


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_predicted_leaves_no_cache(tmp_path, workers):
    home = write_image_label_folders(tmp_path, CASES, ["kidney_1", "kidney_2"])
    cache = tmp_path / "cache"
    limits = {"crop_foreground": True, "memory_limit": 0, "cache_root": str(cache), "num_workers": workers}
    data, held = folder(tmp_path, **limits), folder(tmp_path, crop_foreground=True)
    for one in (data, held):
        one.setup("predict")
    for batch, expected in zip(data.predict_dataloader(), held.predict_dataloader(), strict=True):
        assert batch["file"] == expected["file"]
        assert torch.equal(batch["image"], expected["image"])
        prediction = torch.ones(batch["image"].shape[2:], dtype=torch.uint8)
        found, there = (one.to_native(prediction, *batch["file"]) for one in (data, held))
        assert np.array_equal(found[0], there[0])
    assert not cache.exists()
    (home / "imagesTs" / "kidney_2_0001.nii.gz").write_bytes(b"no volume")
    with pytest.raises(DamagedFileError, match=r"kidney_2_0001\.nii\.gz is truncated"):
        folder(tmp_path, **limits).setup("predict")


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


def given(root: Path, modalities: list[str], class_names: list[str]) -> VolumeFolderDataModule:
    return folder(root, modalities=modalities, class_names=class_names)


def test_what_is_left_out_of_the_description_is_named(tmp_path):
    write_image_label_folders(tmp_path, CASES[:1])
    with pytest.warns(
        UserWarning, match=r"dataset\.json describes .*: channel 0001 \(FLAIR\); label 2 \(core\)\. With"
    ):
        assert given(tmp_path, ["0000"], ["Background", "oedema"]).in_channels == 1
    with pytest.warns(UserWarning, match=r"otherwise: label 2 \(core\), here lesion\. With modalities: null"):
        given(tmp_path, ["0001", "0000"], ["background", "oedema", "lesion"])
    given(tmp_path, ["FLAIR"], ["background", "oedema", "core"])  # chosen by name: nothing to say


def test_other_data_may_have_other_names_and_fewer_labels(tmp_path):
    write_image_label_folders(tmp_path, CASES, described={"labels": {"background": 0, "tumour": 1, "oedema": 2}})
    with pytest.warns(UserWarning, match=r"label 1 \(tumour\), here core; no label 3, here necrosis\. With"):
        data = given(tmp_path, ["0000", "0001"], ["background", "core", "oedema", "necrosis"])
    data.setup("test")
    assert data.num_classes == 4


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_folder_to_predict_is_not_compared_with_another_data_set(tmp_path):
    described = {"channel_names": {"3": "CT"}, "labels": {"background": 0, "lung": 1, "lesion": 2}}
    home = write_image_label_folders(tmp_path, CASES, described=described)
    names = {"modalities": ["0000"], "class_names": ["background", "lesion"]}
    data = folder(tmp_path, **names, predict_root=str(home / "imagesTr"))
    data.setup("predict")
    assert len(data.predict_dataset) == 3
    with pytest.raises(ValueError, match="no channel 0000"):
        folder(tmp_path, **names)


@pytest.mark.parametrize(
    ("modalities", "class_names", "message"),
    [
        (["0002"], ["background", "oedema", "core"], r"no channel 0002, but 0000 \(T1\), 0001 \(FLAIR\)"),
        (["0000", "0001"], ["background", "core", "oedema"], "'oedema' is label 2 in them and 1 in .*dataset"),
        (["0000", "0001"], ["background", "Core", "Oedema"], "'oedema' is label 2 in them and 1 in .*dataset"),
    ],
)
def test_what_contradicts_the_description_is_refused(tmp_path, modalities, class_names, message):
    write_image_label_folders(tmp_path, CASES[:1])
    with pytest.raises(ValueError, match=message):
        given(tmp_path, modalities, class_names)


@pytest.mark.parametrize(
    "described", [{"channel_names": {}, "labels": {"background": 0, "whole": [1, 2]}}, {"file_ending": ".png"}]
)
def test_a_description_that_cannot_be_used_is_made_up_for(tmp_path, described):
    write_image_label_folders(tmp_path, CASES[:1], described=described)
    assert given(tmp_path, ["0000"], ["background", "oedema", "core"]).num_classes == 3


def at(stage: str, data: VolumeFolderDataModule) -> VolumeFolderDataModule:
    """`data`, in a trainer's hands."""
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=stage), predicting=False)
    return data


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    """A data set of ten cases, and what a checkpoint keeps of a training on them."""
    root = tmp_path_factory.mktemp("trained")
    write_image_label_folders(root, [f"c{number:02d}" for number in range(10)])
    data = folder(root, test_size=None, val_size=None)
    data.setup("fit")
    torch.save(data.state_dict(), root / "state")
    return root, torch.load(root / "state", weights_only=True)


def test_a_checkpoint_names_who_was_trained_and_validated_on(trained, tmp_path):
    root, state = trained
    assert {split: len(records) for split, records in state["subjects"].items()} == {"train": 6, "val": 1}
    shutil.copytree(root / "Dataset001_Tiny", tmp_path / "moved")  # with other times of change
    again = at("fit", folder(tmp_path, test_size=None, val_size=None))
    again.load_state_dict(state)
    assert again.state_dict() == state
    for stage in ("validate", "test"):
        at(stage, folder(tmp_path, test_size=None, val_size=None)).load_state_dict(state)


def test_with_more_cases_neither_training_nor_test_goes_on(trained, tmp_path):
    _, state = trained
    write_image_label_folders(tmp_path, [f"c{number:02d}" for number in range(14)])
    with pytest.raises(ValueError, match=r"for train, these data are .*with "):
        at("fit", folder(tmp_path, test_size=None, val_size=None)).load_state_dict(state)
    with pytest.raises(ValueError, match="of the 4 subjects for test are among those"):
        at("test", folder(tmp_path, test_size=None, val_size=None)).load_state_dict(state)
    used = {name for records in state["subjects"].values() for name, *_ in records}
    others = [name for name in (f"c{number:02d}" for number in range(14)) if name not in used]
    other_seed = at("test", folder(tmp_path, test_subjects=others, val_size=None, seed=7))
    other_seed.load_state_dict(state)
    assert other_seed.state_dict()["subjects"] == state["subjects"]


def test_who_was_validated_on_may_be_validated_on_but_not_tested(trained):
    root, state = trained
    ((validated, *_),) = state["subjects"]["val"]
    at("validate", folder(root, val_subjects=[validated], test_size=0)).load_state_dict(state)
    with pytest.raises(ValueError, match=f"1 of the 1 subjects for test .*: {validated}"):
        at("test", folder(root, test_subjects=[validated], val_size=0)).load_state_dict(state)


def test_checkpoints_of_early_versions_name_nobody(trained):
    root, _ = trained
    at("fit", folder(root)).load_state_dict({"seed": 5})
    at("test", folder(root)).load_state_dict({"seed": 0})
    with pytest.raises(ValueError, match="subsets of data seed 5"):
        at("test", folder(root)).load_state_dict({"seed": 5})


def test_predicting_a_folder_asks_nothing_of_the_training(trained, tmp_path):
    _, state = trained
    names = {"modalities": ["0000", "0001"], "class_names": ["background", "oedema", "core"]}
    at("predict", VolumeFolderDataModule("/nowhere", **names, predict_root=str(tmp_path))).load_state_dict(state)


def test_published_test_cases_are_not_among_those_trained_on(tmp_path):
    write_image_label_folders(tmp_path, CASES, CASES[:1], test_labels=True)
    with pytest.raises(ValueError, match=r"1 of the 1 subjects for test are among those .*: liver_01"):
        folder(tmp_path, val_size=0).check_test()
    folder(tmp_path, train_subjects=list(CASES[1:]), val_size=0).check_test()


def test_published_test_cases_are_compared_before_they_are_read(tmp_path):
    home = write_image_label_folders(tmp_path, ["p1_a", "p2_a"], ["p1_b"], test_labels=True)
    (home / "imagesTs" / "p1_b_0000.nii.gz").write_bytes(b"no volume")
    with pytest.raises(ValueError, match=r"or of the patients.*: p1_b\. .*change patient_pattern"):
        folder(tmp_path, patient_pattern="^([^_]+)", val_size=0).check_test()


def test_another_scan_of_who_was_trained_on_is_no_test_where_it_is_the_same_data_set(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    write_image_label_folders(own, ["rome_1_a", "rome_1_b", "rome_2_a"])
    write_image_label_folders(other, ["bern_1_b", "bern_2_b"])
    pattern = r"_(\d+)_"
    named = {"patient_pattern": pattern, "val_size": 0}
    data = folder(own, **named, train_subjects=["rome_1_a"], test_size=0)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"are among those .*: rome_1_b\."):
        at("test", folder(own, **named, test_subjects=["rome_1_b"])).load_state_dict(data.state_dict())
    with pytest.warns(UserWarning, match=r"have the names .* other files: bern_1_b"):
        at("test", folder(other, **named, test_subjects=["bern_1_b"])).load_state_dict(data.state_dict())
