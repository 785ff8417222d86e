"""W&B, offline: what a run leaves for its server."""

from __future__ import annotations

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_modules.callbacks import ConfusionMatrix, KernelPictures, WandbSummary
from lightning_modules.cli import main
from lightning_modules.metrics_file import read_metrics
from tests.helpers.tiny_runs import STEPS_AN_EPOCH, SaveAfter, tiny_data, tiny_task, tiny_trainer
from tests.helpers.wandb_files import isolate_wandb, offline_runs


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Nothing but what a test writes itself may be found there afterwards."""
    isolate_wandb(monkeypatch, tmp_path / "kept")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    wandb.finish()
    assert not list(here.iterdir())


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run of two epochs, and what it left when it was resumed from the middle of the second, for a third."""
    folder = tmp_path_factory.mktemp("resumed")
    with pytest.MonkeyPatch.context() as patch:
        isolate_wandb(patch, folder / "kept")
        _fit(folder, SaveAfter(STEPS_AN_EPOCH + 1, folder / "last.ckpt"))
        _fit(folder, ckpt_path=folder / "last.ckpt", max_epochs=3)
    return offline_runs(folder)


def _fit(folder, *callbacks, ckpt_path=None, max_epochs=2):
    logger = WandbLogger(save_dir=folder, id="kept", offline=True)
    callbacks = [WandbSummary(), ConfusionMatrix(), KernelPictures(max_layers=1), *callbacks]
    trainer = tiny_trainer(folder, callbacks, logger=logger, max_epochs=max_epochs)
    trainer.fit(tiny_task(), datamodule=tiny_data(), ckpt_path=ckpt_path)
    wandb.finish()


def test_the_monitored_metric_is_summarised_by_its_best_and_its_last_value(resumed):
    run = resumed[0]
    accuracies = [value for _, value in run.points("val/accuracy")]
    assert len(accuracies) == 2
    assert run.summary["val/accuracy"] == {"max": max(accuracies), "last": accuracies[-1]}
    assert run.summary["val/loss"] == run.points("val/loss")[-1][1]


def test_metrics_and_pictures_share_an_axis_that_never_goes_back(resumed):
    run = resumed[0]
    steps = [row["trainer/global_step"] for row in run.history]
    assert steps == sorted(steps)
    assert [row["_step"] for row in run.history] == list(range(len(run.history)))
    last = 2 * STEPS_AN_EPOCH - 1
    assert run.points("train/loss")[-1][0] == last
    assert [step for step, _ in run.points("media/confusion_val.count")] == [last]
    assert [step for step, _ in run.points("geometry/conv1/sigma_mean")] == [STEPS_AN_EPOCH - 1, last]


def test_the_axis_goes_on_after_a_resume(resumed):
    before, after = resumed
    assert before.id == after.id == "kept"
    assert [step for step, _ in before.points("train/loss")] == list(range(2 * STEPS_AN_EPOCH))
    assert [step for step, _ in after.points("train/loss")] == list(range(STEPS_AN_EPOCH + 1, 3 * STEPS_AN_EPOCH))
    same = STEPS_AN_EPOCH + 1
    assert dict(before.points("train/loss"))[same] == dict(after.points("train/loss"))[same]


def test_the_command_logs_into_the_run_folder(tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        main(
            [
                "fit_test",
                *("--config", "gaussian/digits.yaml", "--config", "logger/wandb_offline.yaml"),
                *("--model.model_options", "{widths: [4, 4, 4, 4]}", "--data.train_size=40", "--data.val_size=40"),
                *("--trainer.max_epochs=1", "--trainer.precision=32-true", "--trainer.accelerator=cpu"),
                *(f"--trainer.default_root_dir={folder}", f"--seed_everything={seed}"),
            ]
        )
    (first,), (second,) = (offline_runs(folder) for folder in folders)
    assert first.id != second.id
    assert first.config["model"]["init_args"]["model_options"] == {"widths": [4, 4, 4, 4]}
    assert first.config["data"]["init_args"]["train_size"] == 40
    row = read_metrics(folders[0] / "metrics.csv")[-1]
    assert first.summary["test/accuracy"] == pytest.approx(float(row["test/accuracy"]))
    pictures = {path.stem for path in (folders[0] / "media").glob("*.png")}
    assert pictures == {"filters", "learning_curves", "confusion_val", "confusion_test", "worst_mistakes"}
    assert all(f"media/{name}.count" in first.summary for name in pictures)
