"""Two gloo processes draw and write what one does, and share one W&B run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_modules.callbacks import ConfusionMatrix, PredictionWriter, WorstMistakes, default_callbacks
from tests.helpers.tiny_runs import tiny_data, tiny_task, tiny_trainer
from tests.helpers.wandb_files import isolate_wandb, offline_runs

ROOT = Path(__file__).parents[3]
# Forked, which spares an import of everything, but not from pytest, whose threads would not survive it.
TWO = {"devices": 2, "strategy": "ddp_fork"}


def evaluate(folder: Path, **options) -> None:
    """Test and predict with the initial weights; 359 images, so that processes have different numbers of them."""
    callbacks = [ConfusionMatrix(), WorstMistakes(count=13), PredictionWriter()]
    trainer = tiny_trainer(folder, callbacks, **options)
    task, data = tiny_task(), tiny_data(batch_size=12)
    data.setup("test")
    data.setup("predict")
    data.test_dataset = data.predict_dataset.dataset = data.test_dataset.subset(torch.arange(359))
    trainer.test(task, datamodule=data, verbose=False)
    trainer.predict(task, datamodule=data, return_predictions=False)


class FinishWandb(Callback):
    """A forked process leaves without the goodbyes of an interpreter."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        import wandb

        wandb.finish()


def train(folder: Path) -> None:
    task = tiny_task()
    callbacks = [*default_callbacks(task), FinishWandb()]
    trainer = tiny_trainer(folder, callbacks, logger=WandbLogger(save_dir=folder, offline=True), max_epochs=1, **TWO)
    trainer.fit(task, datamodule=tiny_data(batch_size=10))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    evaluate(folder / "one")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with pytest.MonkeyPatch.context() as patch:
        isolate_wandb(patch, folder / "kept")
        environment |= {name: value for name, value in os.environ.items() if name.startswith("WANDB")}
    command = [sys.executable, __file__, str(folder)]
    subprocess.run(command, check=True, env=environment, cwd=folder, timeout=300, capture_output=True)
    return folder


@pytest.mark.parametrize("name", ["predictions.csv", "media/confusion_test.csv", "media/worst_mistakes.png"])
def test_two_processes_write_what_one_writes(folder, name):
    assert (folder / "two" / name).read_bytes() == (folder / "one" / name).read_bytes()


def test_a_training_has_one_wandb_run_and_one_set_of_pictures(folder):
    (run,) = offline_runs(folder / "trained")
    names = sorted(path.stem for path in (folder / "trained" / "media").glob("*.png"))
    assert names == ["confusion_val", "filters", "geometry", *(f"kernels_conv{i}" for i in (1, 2, 3, 4))]
    for name in names:
        assert sum(f"media/{name}.count" in row for row in run.history) == 1
    assert not list(folder.glob("wandb"))


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]) / "two", **TWO)
    train(Path(sys.argv[1]) / "trained")
