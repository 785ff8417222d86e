"""Training, testing and predicting from the command line, and what it leaves."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from datamodules import DigitsDataModule
from lightning_modules import ClassificationTask
from lightning_modules.base import NonFiniteLossError
from lightning_modules.cli import main
from lightning_modules.commands import training
from lightning_modules.files import CheckpointError, read_checkpoint
from lightning_modules.metrics_file import read_metrics
from lightning_modules.runs import MissingRunError, OtherSettingsError, Run
from tests.helpers.commands import STEPS_AN_EPOCH, save_every, tiny
from tests.helpers.data import write_image_folder


@pytest.fixture(autouse=True)
def without_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "default_callbacks", lambda task: [])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def evaluated(monkeypatch):
    """The checkpoints that were tested, and with which task."""
    calls = []
    test = Trainer.test

    def spy(self, model, **options):
        calls.append((options["ckpt_path"], model))
        return test(self, model, **options)

    monkeypatch.setattr(Trainer, "test", spy)
    return calls


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run; tests take a copy."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "default_callbacks", lambda task: [])
        main(["fit", *tiny(folder)])
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_folder_holds_everything(run):
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "environment.json",
        "metrics.csv",
    ]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert run.config["model"]["init_args"]["model"] == "fashion_cnn"
    assert run.config["trainer"]["default_root_dir"] is None
    steps = [row["step"] for row in read_metrics(run.metrics_file)]
    assert steps == [str(step) for step in range(2 * STEPS_AN_EPOCH)]
    assert list(read_metrics(run.metrics_file)[0])[:3] == ["epoch", "step", "train/loss"]


def test_a_session_says_what_the_run_ran_with(run):
    (session,) = run.sessions
    assert session["outcome"] == "finished"
    assert (session["stage"], session["seed"], session["precision"]) == ("fit", 0, "32-true")
    assert (session["first_step"], session["step"], session["processes"]) == (0, 2 * STEPS_AN_EPOCH, 1)
    assert session["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert set(session["git"]) == {"commit", "dirty"}
    assert session["command"].startswith("convsuite fit --model=ClassificationTask")
    assert {"python", "platform", "hardware", "started", "minutes"} <= set(session)


def test_checkpoints_hold_plain_data(run):
    checkpoint = torch.load(run.last_checkpoint, weights_only=True)
    assert checkpoint["hyper_parameters"]["num_classes"] == 10
    assert all(name.startswith("network.") for name in checkpoint["state_dict"] if "metrics" not in name)


def test_the_same_command_trains_nothing_again(run, capsys, monkeypatch):
    before = run.last_checkpoint.read_bytes()
    monkeypatch.setattr(Trainer, "fit", None)
    monkeypatch.setattr(training, "read_checkpoint", None)  # it is large, and names nobody who was trained on
    assert main(["fit", *tiny(run.folder, "--data.num_workers=1")]) == 0
    out = capsys.readouterr().out
    assert "is trained already" in out
    assert "val/accuracy" in out
    assert run.last_checkpoint.read_bytes() == before


def test_other_settings_are_refused(run):
    with pytest.raises(OtherSettingsError, match=r"optimizer\.init_args\.lr: 0\.01 -> 0\.02"):
        main(["fit", *tiny(run.folder, "--model.optimizer.lr=0.02")])


def test_two_seeds_are_two_runs(tmp_path):
    for seed in (0, 1):
        main(["fit", *tiny(None, f"--seed_everything={seed}", "--trainer.max_epochs=1")])
    configs = sorted((tmp_path / "runs" / "fashion_cnn").glob("*/config.yaml"))
    assert sorted(yaml.safe_load(path.read_text())["seed_everything"] for path in configs) == [0, 1]
    first, second = (read_metrics(path.parent / "metrics.csv")[0]["train/loss"] for path in configs)
    assert first != second


def test_fit_test_tests_the_best_checkpoint_in_one_run(tmp_path, evaluated):
    main(["fit_test", *tiny("run")])
    assert [path for path, _ in evaluated] == [str(tmp_path / "run/checkpoints/best.ckpt")]
    rows = read_metrics(tmp_path / "run/metrics.csv")
    assert len(rows) == 2 * STEPS_AN_EPOCH
    assert rows[-1]["train/loss"]
    assert rows[-1]["test/accuracy"]
    assert not rows[-2]["test/accuracy"]
    assert rows[-1]["epoch"] == "1"
    assert [session["stage"] for session in Run("run").sessions] == ["fit", "test"]


def test_fit_test_without_validation_tests_the_last_weights(tmp_path, evaluated):
    main(["fit_test", *tiny("run", "--data.val_size=0")])
    assert [path for path, _ in evaluated] == [str(tmp_path / "run/checkpoints/last.ckpt")]
    assert read_checkpoint(evaluated[0][0])["global_step"] == 2 * STEPS_AN_EPOCH
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()


def test_fit_test_without_checkpoints_tests_what_it_has(tmp_path, evaluated):
    main(["fit_test", *tiny("run", "--trainer.enable_checkpointing=false")])
    assert [path for path, _ in evaluated] == [None]
    assert not (tmp_path / "run/checkpoints").exists()


def test_fit_test_of_a_finished_run_tests_again(run, evaluated):
    main(["fit_test", *tiny(run.folder)])
    main(["fit_test", *tiny(run.folder)])
    assert len(evaluated) == 2
    assert len(read_metrics(run.metrics_file)) == 2 * STEPS_AN_EPOCH


def test_max_steps_is_kept(tmp_path):
    main(["fit", *tiny("run", "--trainer.max_epochs=-1", "--trainer.max_steps=5")])
    assert len(read_metrics(tmp_path / "run/metrics.csv")) == 5
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 5


@pytest.mark.parametrize("command", ["fit", "fit_test"])
def test_fast_dev_run_leaves_nothing(tmp_path, command, capsys):
    assert main([command, *tiny(None, "--trainer.fast_dev_run=true")]) == 0
    assert not list(tmp_path.iterdir())
    assert "train/loss" in capsys.readouterr().out


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(tmp_path, monkeypatch):
    def fail(self, batch, batch_idx):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(ClassificationTask, "training_step", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        main(["fit", *tiny()])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_there_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(DigitsDataModule, "setup", lambda self, stage: 1 / 0)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ZeroDivisionError):
        main(["fit", *tiny("mine")])
    assert (tmp_path / "mine").is_dir()


def test_a_run_that_was_started_by_hand_from_a_checkpoint(run, tmp_path):
    """It is a run of its own, because it computes something else."""
    command = ["fit", *tiny(None, f"--ckpt_path={run.last_checkpoint}", "--trainer.max_epochs=3")]
    main(command)
    (folder,) = (tmp_path / "runs" / "fashion_cnn").iterdir()
    steps = [row["step"] for row in read_metrics(folder / "metrics.csv")]
    assert steps == [str(2 * STEPS_AN_EPOCH + step) for step in range(STEPS_AN_EPOCH)]
    main(["fit", *tiny(None, "--trainer.max_epochs=3")])
    assert len(list((tmp_path / "runs" / "fashion_cnn").iterdir())) == 2


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, loss):
    step = ClassificationTask.training_step

    def explode(self, batch, batch_idx):
        value = step(self, batch, batch_idx)
        if self.global_step < 4:
            return value
        bad = value * float(loss)
        self.watch(bad)
        return bad

    monkeypatch.setattr(ClassificationTask, "training_step", explode)
    with pytest.raises(NonFiniteLossError, match="step 4"):
        main(["fit", *tiny("run", *save_every(1))])
    assert read_checkpoint("run/checkpoints/last.ckpt")["global_step"] == 4
    assert Run("run").sessions[-1]["outcome"] == "interrupted by NonFiniteLossError"


# Evaluation


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_starts_from_the_run_of_the_checkpoint(run, command, capsys):
    rows = read_metrics(run.metrics_file)
    assert main([command, f"--ckpt_path={run.last_checkpoint}"]) == 0
    assert f"{command[:3]}" in capsys.readouterr().out
    again = read_metrics(run.metrics_file)
    assert len(again) == len(rows)
    assert all(old[name] == new[name] for old, new in zip(rows, again, strict=True) for name in old)
    assert run.sessions[-1]["stage"] == command


def test_validate_stands_at_the_step_of_its_checkpoint(run):
    """With other settings it goes elsewhere, and stands at that step there."""
    before = run.metrics_file.read_bytes()
    main(["validate", f"--ckpt_path={run.last_checkpoint}", "--data.val_size=40"])
    assert run.metrics_file.read_bytes() == before
    (evaluation,) = map(Run, (run.folder / "evaluations").iterdir())
    assert evaluation.folder.name.startswith("val_size-")
    (row,) = read_metrics(evaluation.metrics_file)
    assert (row["epoch"], row["step"]) == ("1", str(2 * STEPS_AN_EPOCH - 1))
    assert row["val/loss"] != read_metrics(run.metrics_file)[-1]["val/loss"]


def test_a_run_is_found_by_its_settings_or_its_folder(tmp_path, evaluated):
    main(["fit", *tiny()])
    (folder,) = (tmp_path / "runs" / "fashion_cnn").iterdir()
    main(["test", *tiny()])
    main(["test", *tiny(None, "--ckpt_path=last")])
    main(["test", f"--trainer.default_root_dir={folder}"])
    main(["test", f"--trainer.default_root_dir={folder}", "--ckpt_path=last"])
    main(["test", "--config", str(folder / "config.yaml")])
    best, last = str(folder / "checkpoints/best.ckpt"), str(folder / "checkpoints/last.ckpt")
    assert [path for path, _ in evaluated] == [best, last, best, last, best]


def test_flags_win_over_the_checkpoint(run, evaluated):
    main(["test", f"--ckpt_path={run.last_checkpoint}", "--model.geometry_lr_factor=7", "--data.batch_size=9"])
    assert evaluated[0][1].hparams["geometry_lr_factor"] == 7
    assert evaluated[0][1].trainer.datamodule.batch_size == 9


def test_a_moved_run_keeps_its_best_and_takes_results(run, tmp_path):
    moved = Run(shutil.move(run.folder, tmp_path / "moved"))
    main(["test", f"--ckpt_path={moved.best_checkpoint}"])
    assert read_metrics(moved.metrics_file)[-1]["test/accuracy"]
    assert not run.folder.exists()


def test_a_checkpoint_of_another_network_is_refused(run):
    with pytest.raises(ValueError, match="belongs to another network"):
        main(["test", f"--ckpt_path={run.last_checkpoint}", "--model.model_options={widths: [8, 4, 4, 4]}"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--ckpt_path=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["--trainer.default_root_dir=nowhere"], "nowhere holds no run: train it first, with `convsuite fit`"),
        (tiny(), "holds no checkpoint: train first, with `convsuite fit`"),
        (tiny("nowhere"), "nowhere holds no run"),
    ],
)
def test_what_is_not_there_cannot_be_tested(tmp_path, args, said):
    with pytest.raises(MissingRunError) as error:
        main(["test", *args])
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_named(run):
    content = run.last_checkpoint.read_bytes()
    run.last_checkpoint.write_bytes(content[: len(content) // 2])
    for command in (["test", f"--ckpt_path={run.last_checkpoint}"], ["fit", *tiny(run.folder)]):
        if command[0] == "fit":
            run.environment_file.unlink()  # not known to be finished
        with pytest.raises(CheckpointError, match=r"last\.ckpt is truncated"):
            main(command)


def test_predict_writes_a_table_into_the_run_folder(run, tmp_path):
    files = write_image_folder(tmp_path / "photos")
    main(["predict", f"--ckpt_path={run.best_checkpoint}", f"--data.predict_root={tmp_path / 'photos'}"])
    with (run.folder / "predictions.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["file"] for row in rows] == files
    assert list(rows[0])[:3] == ["file", "class", "0"]
    assert sum(float(rows[0][digit]) for digit in "0123456789") == pytest.approx(1, abs=1e-4)


def test_environment_is_one_list_of_sessions(run):
    main(["test", f"--trainer.default_root_dir={run.folder}"])
    sessions = json.loads(run.environment_file.read_text())["sessions"]
    assert [session["stage"] for session in sessions] == ["fit", "test"]
