"""`convsuite doctor`."""

from __future__ import annotations

from importlib import metadata

import pytest

import datamodules
from datamodules import cats_dogs, cityscapes, coco
from datamodules.layouts import imagenet as imagenet_layouts
from lightning_modules.cli import main
from lightning_modules.commands import doctor


@pytest.fixture
def versions(monkeypatch):
    """Pretended versions, by package."""
    pretended = {}
    real = metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: pretended.get(name) or real(name))
    return pretended


def problems(check):
    return [(finding.what, finding.mend) for finding in check() if finding.state == "problem"]


def test_this_installation_is_well(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert "All well." in out


def test_a_problem_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", [lambda: [doctor.Finding("problem", "it is broken", "mend it")]])
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[:2] == ["problem  it is broken", "           -> mend it"]


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_uploads_are_named(versions, version):
    versions["lightning"] = version
    assert "malicious" in problems(doctor.check_compromised)[0][0]
    assert problems(doctor.check_requirements)[0][0] == f"lightning: {version}"


def test_an_old_package_comes_with_its_mend(versions):
    versions["timm"] = "0.1"
    ((what, mend),) = problems(doctor.check_requirements)
    assert what == "timm: 0.1"
    assert mend.startswith("pip install 'timm>=")


@pytest.mark.parametrize(
    ("torch", "vision", "said"),
    [
        ("2.15.0+cpu", "0.29.2+cu130", "different builds"),
        ("1.0", "0.29.2", "torchvision 0.29.2 needs torch"),
    ],
)
def test_a_torch_of_another_build_than_torchvision(monkeypatch, torch, vision, said):
    monkeypatch.setattr(doctor, "_built_version", {"torch": torch, "torchvision": vision}.get)
    ((what, mend),) = problems(doctor.check_torch_pair)
    assert said in what
    assert "install the two together" in mend


def found_data():
    """Data module to what is said of its folders."""
    _, *findings = doctor.check_data()
    return {data.strip(): folders for data, _, folders in (finding.what.partition(": ") for finding in findings)}


def test_every_data_module_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSUITE_DATA", str(tmp_path / "none"))
    (about, *_) = doctor.check_data()
    assert about.state == "note"
    assert "set CONVSUITE_DATA" in about.mend
    found = found_data()
    assert set(found) == set(datamodules.__all__) - {"BaseDataModule"}
    assert found.pop("DigitsDataModule") == found.pop("ToyLesionDataModule") == "needs no files"
    assert all(folders.startswith("not there (") for folders in found.values())


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        *(("CatsDogsDataModule", folder) for folder in (*cats_dogs.FOLDERS, *cats_dogs.ARCHIVE_FOLDERS, "PetImages")),
        *(("ImageNetDataModule", folder) for folder in imagenet_layouts.FOLDERS),
        *(("CityscapesDataModule", folder) for folder in cityscapes.FOLDERS),
        *(("COCODataModule", folder) for folder in coco.FOLDERS),
        *(("NucleiDataModule", folder) for folder in ("monuseg", "TNBC_NucleiSegmentation/Slide_01", "dsb2018")),
        ("BraTSDataModule", "MICCAI_BraTS2020_TrainingData"),
        ("CelebADataModule", "celeba"),
        ("FashionMNISTDataModule", "FashionMNIST"),
        ("PascalVOCDataModule", "VOCdevkit/VOC2012"),
        ("VolumeFolderDataModule", "Dataset001_Name/imagesTr"),
    ],
)
def test_data_sets_are_found(tmp_path, monkeypatch, data, folder):
    monkeypatch.setenv("CONVSUITE_DATA", str(tmp_path))
    inside = {"CityscapesDataModule": "leftImg8bit", "COCODataModule": "annotations"}.get(data, "")
    (tmp_path / folder / inside).mkdir(parents=True)
    assert next(iter(doctor.check_data())).state == "ok"
    present = [name for name, said in found_data().items() if not said.startswith(("not there", "needs no"))]
    assert present == [data]


def test_archives_and_other_files_are_no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSUITE_DATA", str(tmp_path))
    for name in ("dogs-vs-cats.zip", "MoNuSeg_Training.zip", "imagenet-1k.txt", "brats.tar", "coco"):
        (tmp_path / name).write_bytes(b"")
    assert next(iter(doctor.check_data())).state == "note"


def test_a_folder_that_cannot_be_written(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert "cannot be written" in problems(doctor.check_disk)[0][0]


@pytest.mark.parametrize(
    ("variables", "state"),
    [({"WANDB_MODE": "offline"}, "ok"), ({"WANDB_API_KEY": "key"}, "ok"), ({}, "note")],
)
def test_wandb(tmp_path, monkeypatch, variables, state):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [finding.state for finding in doctor.check_wandb()] == [state]
    if state == "note":
        (tmp_path / ".netrc").write_text("machine api.wandb.test login user password key\n")
        (tmp_path / ".netrc").chmod(0o600)
        assert [finding.state for finding in doctor.check_wandb()] == ["ok"]
