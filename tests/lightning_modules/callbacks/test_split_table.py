"""A run and its subjects: the table in the run folder, and what is not done with other data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import VolumeFolderDataModule
from lightning_modules.callbacks.split_table import SplitTable
from lightning_modules.cli import main
from lightning_modules.runs import Run
from tests.helpers.volumes import labels, scan, write_nifti

SUBJECTS = {"train": ["a", "b"], "val": [], "test": ["c"]}


def trainer(folder: Path, subjects: dict[str, list[str]] = SUBJECTS, content: str = "0f", stage: str = "fit") -> object:
    """What the callback asks of a trainer."""

    def subjects_of(split: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(subject=name, patient=name, site=None, content=content) for name in subjects[split]]

    return SimpleNamespace(
        default_root_dir=str(folder),
        datamodule=SimpleNamespace(subjects_of=subjects_of),
        is_global_zero=True,
        fast_dev_run=False,
        state=SimpleNamespace(fn=stage),
    )


def test_a_fit_writes_who_is_where(tmp_path):
    SplitTable().on_train_start(trainer(tmp_path), None)
    lines = ["split,subject,patient,site,content", "train,a,a,,0f", "train,b,b,,0f", "test,c,c,,0f"]
    assert (tmp_path / "splits.csv").read_text().splitlines() == lines
    SplitTable().on_test_start(trainer(tmp_path), None)


def test_a_training_does_not_need_the_files_of_its_test(tmp_path):
    fitted = trainer(tmp_path)
    subjects_of = fitted.datamodule.subjects_of

    def unreadable(split: str) -> list[SimpleNamespace]:
        if split == "test":
            raise PermissionError(13, "Permission denied", "c.nii")
        return subjects_of(split)

    fitted.datamodule.subjects_of = unreadable
    with pytest.warns(UserWarning, match=r"does not name the subjects for test.*Permission denied: 'c\.nii'"):
        SplitTable().on_train_start(fitted, None)
    assert (tmp_path / "splits.csv").read_text().splitlines()[1:] == ["train,a,a,,0f", "train,b,b,,0f"]
    SplitTable().on_test_start(trainer(tmp_path), None)
    assert (tmp_path / "splits.csv").read_text().splitlines()[-1] == "test,c,c,,0f"


def test_an_error_comes_in_all_processes(tmp_path):
    second = trainer(tmp_path, {"train": []})
    second.is_global_zero = False
    with pytest.raises(KeyError):
        SplitTable().on_train_start(second, None)
    second.datamodule = trainer(tmp_path).datamodule
    SplitTable().on_train_start(second, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("subject", "content", "shown"), [("d", "0f", "d"), ("c", "1f", "other files of these names")])
def test_results_on_others_do_not_take_the_place_of_a_runs_own(tmp_path, subject, content, shown):
    SplitTable().on_train_start(trainer(tmp_path), None)
    with pytest.raises(ValueError, match=rf"results on c \(test\), .* is of {shown}\. .*--ckpt_path"):
        SplitTable().on_test_start(trainer(tmp_path, {"test": [subject]}, content), None)


def test_a_folder_of_an_evaluation_keeps_to_its_first_subjects(tmp_path):
    SplitTable().on_validation_start(trainer(tmp_path, {"val": ["d"]}), None)  # of a fit
    assert not (tmp_path / "splits.csv").exists()
    for _ in range(2):
        SplitTable().on_validation_start(trainer(tmp_path, {"val": ["d"]}, stage="validate"), None)
        SplitTable().on_test_start(trainer(tmp_path), None)
    assert (tmp_path / "splits.csv").read_text().splitlines()[1:] == ["val,d,d,,0f", "test,c,c,,0f"]
    with pytest.raises(ValueError, match=r"results on d \(val\)"):
        SplitTable().on_validation_start(trainer(tmp_path, stage="validate"), None)


def test_data_that_name_no_subjects_leave_no_table(tmp_path):
    of_images = trainer(tmp_path)
    of_images.datamodule = SimpleNamespace()
    SplitTable().on_train_start(of_images, None)
    SplitTable().on_test_start(of_images, None)
    assert not list(tmp_path.iterdir())


def write_cases(root: Path, hospital: str) -> Path:
    for number in range(4):
        case = f"{hospital}{number}"
        write_nifti(root / "Dataset001_Own" / "imagesTr" / f"{case}_0000.nii.gz", scan(case))
        write_nifti(root / "Dataset001_Own" / "labelsTr" / f"{case}.nii.gz", labels(case, (1,)))
    return root


def tiny(root: Path) -> list[str]:
    """What stands behind `fit`: two steps on patches of 6x6x6 voxels."""
    return [
        "--model=SegmentationTask",
        "--model.model=unet",
        "--model.model_options={dimensions: 3, widths: [2, 2], kernel_size: 3, norm: instance}",
        "--model.optimizer=Adam",
        "--model.optimizer.lr=0.01",
        "--data=VolumeFolderDataModule",
        f"--data.root={root}",
        "--data.modalities=['0000']",
        "--data.class_names=[background, lesion]",
        "--data.patch_size=6",
        "--data.patches_per_epoch=4",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
    ]


def test_a_run_does_not_take_another_data_set_for_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own, other = (write_cases(tmp_path / name, name) for name in ("rome", "bern"))
    main(["fit", *tiny(own)])
    run = Run(next(tmp_path.glob("runs/*/*")))
    assert len((run.folder / "splits.csv").read_text().splitlines()) == 1 + 4
    for state in ("finished", "interrupted"):
        run.environment_file.write_text(run.environment_file.read_text().replace("finished", state))
        with pytest.raises(ValueError, match=r"for train, these data are without rome\d.*; with bern\d"):
            main(["fit_test", *tiny(other)])
    run.environment_file.write_text(run.environment_file.read_text().replace("interrupted", "finished"))
    own = own.rename(tmp_path / "moved")
    main(["fit_test", *tiny(own)])
    assert "is trained already" in capsys.readouterr().out
    main(["fit", *tiny(tmp_path / "nowhere")])
    assert "is trained already" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(VolumeFolderDataModule, "setup", None)  # it is refused before volumes are read
        with pytest.raises(ValueError, match=r"without rome\d.*leave --ckpt_path out .*model\.init_from"):
            main(["fit", *tiny(other), f"--ckpt_path={run.last_checkpoint}", "--trainer.default_root_dir=further"])
    results = run.metrics_file.read_bytes()
    with pytest.raises(
        ValueError, match=r"splits\.csv says that this folder is for results on rome\d \(test\), .* is of bern\d"
    ):
        main(["test", *tiny(other)])
    assert run.metrics_file.read_bytes() == results
    main(["test", f"--ckpt_path={run.checkpoint()}", f"--data.root={other}", "--trainer.default_root_dir=apart"])
    assert np.isfinite(Run("apart").metrics()["test/dice"])
    assert run.metrics_file.read_bytes() == results
