"""Validating, testing and predicting from the command line: what is evaluated, how, and where results go."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from lightning_modules import SegmentationTask
from lightning_modules.callbacks.class_table import ClassTable
from lightning_modules.cli import main
from lightning_modules.commands import training
from lightning_modules.commands.training import ConvsuiteCLI, prepare_arguments
from lightning_modules.files import CheckpointError
from lightning_modules.metrics_file import read_metrics
from lightning_modules.runs import MissingRunError, Run
from tests.helpers.commands import tiny
from tests.helpers.nuclei import write_tnbc
from tests.helpers.photos import write_voc

EXPERIMENT = """
model:
  class_path: SegmentationTask
  init_args:
    model: unet
    model_options: {widths: [4, 8], kernel_size: 3}
    optimizer: {class_path: Adam, init_args: {lr: 0.02}}
data:
  class_path: tests.helpers.tiny_masks.TinyMasks
trainer: {max_epochs: 1, accelerator: cpu, log_every_n_steps: 1}
"""
FLIPS = "model: {init_args: {inference: {class_path: Inference, init_args: {flips: [horizontal]}}}}"
LAST_STEP = 2  # 12 images in batches of 4


def prepare(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(training, "default_callbacks", lambda task: [ClassTable()])
    patch.chdir(folder)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    (folder / "flips.yaml").write_text(FLIPS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder runs/ of a finished run; tests take a copy."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        prepare(folder, patch)
        main(["fit", "--config", "experiment.yaml"])
    return folder / "runs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    prepare(tmp_path, monkeypatch)


@pytest.fixture
def run(trained, tmp_path):
    (folder,) = shutil.copytree(trained, tmp_path / "runs").glob("experiment/*")
    return Run(folder)


def planned(command: str, *args: str) -> ConvsuiteCLI:
    """What `command` would do."""
    with ExitStack() as cleanup:
        return ConvsuiteCLI(command, list(args), cleanup)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_settings_of_an_evaluation_have_a_folder_of_their_own(run, capsys):
    main(["test", "--config", "experiment.yaml"])
    before = files(run.folder)
    assert "per_class_test.csv" in before
    main(["predict", f"--ckpt_path={run.last_checkpoint}", "--config", "flips.yaml"])
    (evaluation,) = map(Run, (run.folder / "evaluations").iterdir())
    assert f"whose results go to {evaluation}" in capsys.readouterr().out
    main(["test", "--config", "experiment.yaml", "--config", "flips.yaml"])
    main(["test", f"--trainer.default_root_dir={run.folder}", "--config=flips.yaml", "--ckpt_path=last"])

    assert list((run.folder / "evaluations").iterdir()) == [evaluation.folder]
    assert {name: content for name, content in files(run.folder).items() if not name.startswith("eval")} == before
    assert sorted(path.name for path in evaluation.folder.iterdir()) == [
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "per_class_test.csv",
        "predictions",
    ]
    assert evaluation.config["model"]["init_args"]["inference"]["init_args"]["flips"] == ["horizontal"]
    assert [Path(session["checkpoint"]).name for session in evaluation.sessions] == [
        "last.ckpt",
        "best.ckpt",
        "last.ckpt",
    ]
    (row,) = read_metrics(evaluation.metrics_file)
    assert row["step"] == str(LAST_STEP)
    assert row["test/loss"] != read_metrics(run.metrics_file)[-1]["test/loss"]


def test_an_evaluation_that_fails_leaves_no_folder(run, monkeypatch):
    monkeypatch.setattr(Trainer, "test", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["test", f"--ckpt_path={run.last_checkpoint}", "--config", "flips.yaml"])
    assert not (run.folder / "evaluations").exists()


def test_results_of_a_named_folder_stay(run, tmp_path):
    main(["test", f"--ckpt_path={run.last_checkpoint}", "--trainer.default_root_dir=results"])
    assert Run("results").config == run.config
    assert read_metrics(tmp_path / "results/metrics.csv")[0]["test/loss"]


def test_which_configuration_an_evaluation_starts_from(run):
    def configs(command: str, *args: str) -> list[str]:
        prepared, _ = prepare_arguments(command, list(args))
        return [value for name, value in pairwise(prepared) if name == "--config"]

    own, checkpoint = str(run.config_file), f"--ckpt_path={run.last_checkpoint}"
    assert configs("test", checkpoint) == [own]
    assert configs("test", checkpoint, "--config", "flips.yaml") == [own, "flips.yaml"]
    assert configs("validate", f"--trainer.default_root_dir={run}", "--config", "flips.yaml") == [own, "flips.yaml"]
    both = ["--config", "experiment.yaml", "--config", "flips.yaml"]
    assert configs("predict", checkpoint, *both) == both[1::2]
    assert configs("fit", checkpoint, "--config", "flips.yaml") == ["flips.yaml"]


def test_a_run_is_found_whatever_the_inference(run, tmp_path):
    both = ["--config", "experiment.yaml", "--config", "flips.yaml"]
    assert planned("test", *both).checkpoint == str(run.best_checkpoint)
    assert planned("fit", *both).run.folder != run.folder
    with pytest.raises(MissingRunError, match="holds no checkpoint: train first"):
        planned("test", *both, "--trainer.max_epochs=3")
    other = Run(shutil.copytree(run.folder, run.folder.parent / "other"))
    config = yaml.safe_load(run.config_file.read_text())
    config["model"]["init_args"]["inference"] = {"class_path": "Inference", "init_args": {"flips": ["vertical"]}}
    other.config_file.write_text(yaml.safe_dump(config))
    assert planned("test", "--config", "experiment.yaml").run.folder == run.folder
    with pytest.raises(MissingRunError, match=r"(?s)those of several runs, .*other.*, which differ only in model"):
        planned("test", *both)


def test_weights_are_evaluated_without_any_training(run, tmp_path, capsys, caplog):
    main(["test", f"--ckpt_path={run.best_checkpoint}"])
    expected = run.metrics()["test/loss"]
    weights = shutil.copy(run.best_checkpoint, tmp_path / "weights.ckpt")
    shutil.rmtree(tmp_path / "runs")
    capsys.readouterr()
    with caplog.at_level("INFO"):
        for command in ("test", "predict"):
            main([command, "--config", "experiment.yaml", f"--model.init_from={weights}"])
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    out, err = capsys.readouterr()
    assert "holds no checkpoint: what is evaluated are the weights that a training would start from" in out
    assert f"weights of {weights} (sha256 {sha256[:12]})" in caplog.text + out + err
    (evaluated,) = map(Run, (tmp_path / "runs" / "experiment").iterdir())
    assert [(session["checkpoint"], session["init_from_sha256"]) for session in evaluated.sessions] == [
        (None, sha256),
        (None, sha256),
    ]
    assert evaluated.config["model"]["init_args"]["init_from"] == str(weights)
    assert evaluated.metrics()["test/loss"] == expected
    assert (evaluated.folder / "predictions").is_dir()


def test_a_training_that_lost_its_checkpoints_is_not_what_it_started_from(run):
    config = run.config
    config["model"]["init_args"]["init_from"] = shutil.copy(run.best_checkpoint, "weights.ckpt")
    run.config_file.write_text(yaml.safe_dump(config))
    shutil.rmtree(run.checkpoints)
    with pytest.raises(MissingRunError, match="holds no checkpoint: train first"):
        planned("test", f"--trainer.default_root_dir={run.folder}")


def test_pretrained_weights_are_evaluated_without_any_training():
    network = ["--model.model=vgg16", "--model.model_options={head_width: 4, pool_size: 1, pretrained: true}"]
    assert planned("validate", *tiny(None, *network, "--data.image_size=32")).checkpoint is None


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (["--model.init_from=nowhere.pth"], CheckpointError, "init_from: there is no file or run nowhere.pth"),
        (["--model.init_from=runs"], CheckpointError, "init_from: runs is no finished run"),
        (["--model.init_from=flips.yaml"], CheckpointError, "init_from: "),
        (
            ["--model.init_from=flips.yaml", "--model.init_skip=['*']"],
            MissingRunError,
            "or set init_skip to null if the file holds them",
        ),
        (["--model.init_from=flips.yaml", "--ckpt_path=last"], MissingRunError, "holds no checkpoint: train first"),
    ],
)
def test_weights_that_are_no_result_leave_no_folder(tmp_path, options, error, said):
    (tmp_path / "runs").mkdir()
    with pytest.raises(error) as raised:
        main(["test", "--config", "experiment.yaml", *options])
    assert said in str(raised.value)
    assert not list((tmp_path / "runs").iterdir())


def test_fit_test_without_a_test_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(SegmentationTask, "training_step", lambda *_: pytest.fail("it trains"))
    write_voc(tmp_path)
    write_tnbc(tmp_path)
    voc, nuclei = "train_split: trainval, crop_size: 16", "test_size: 0, tile_size: 16"
    for data, options, said in (
        ("PascalVOCDataModule", voc, r"trainval leaves no photos to test on.* Use fit, then predict"),
        ("NucleiDataModule", nuclei, "test_size is 0: there is nothing to test"),
    ):
        options = f"{{{options}, val_size: 0, root: ., batch_size: 2}}"
        (tmp_path / "data.yaml").write_text(f"data: {{class_path: {data}, init_args: {options}}}")
        with pytest.raises(ValueError, match=said):
            main(["fit_test", "--config", "experiment.yaml", "--config", "data.yaml"])
        assert not (tmp_path / "runs").exists()
