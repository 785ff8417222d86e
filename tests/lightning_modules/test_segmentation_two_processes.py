"""Two gloo processes measure a segmentation of an odd number of images as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.inference.inference import Inference
from tests.helpers.tiny_masks import TinyMasks, tiny_segmentation
from tests.helpers.tiny_runs import tiny_trainer

ROOT = Path(__file__).parents[2]
# Forked, which spares an import of everything, but not from pytest, whose threads would not survive it.
TWO = {"devices": 2, "strategy": "ddp_fork"}
OPTIONS = {
    "batches": ({"num_classes": 3, "loss": {"cross_entropy": 1.0, "focal": 0.5}}, {"num_classes": 3, "batch_size": 2}),
    "images": (
        {"binary": True, "loss": "dice", "instances": "watershed", "inference": Inference(tile_size=16, align=4)},
        {"native_size": True, "objects": True, "ignored": True},
    ),
    "components": ({"instances": "components"}, {"ignored": True}),
}


class Record(Callback):
    """Writes what each process has measured to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        seen = {"metrics": metrics, "confusion": pl_module.confusion["val"]}
        torch.save(seen, self.folder / f"{trainer.global_rank}.pt")


def evaluate(folder: Path, **options) -> None:
    """Validate the initial weights on 7 images, which two processes share unevenly."""
    for name, (task, data) in OPTIONS.items():
        trainer = tiny_trainer(folder, [Record(folder / name)], **options)
        trainer.validate(tiny_segmentation(**task), datamodule=TinyMasks(evaluated=7, **data), verbose=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation_two_processes")
    evaluate(folder / "one")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(folder)]
    subprocess.run(command, check=True, env=environment, cwd=folder, timeout=300, capture_output=True)
    return folder


def seen(folder: Path, name: str) -> dict:
    return torch.load(folder / name, weights_only=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_measures_are_those_of_one_process(folder, name):
    one, two = seen(folder / "one", f"{name}/0.pt"), seen(folder / "two", f"{name}/0.pt")
    assert two["metrics"] == seen(folder / "two", f"{name}/1.pt")["metrics"]
    assert torch.equal(two["confusion"], one["confusion"])
    assert two["metrics"].pop("val/loss") == pytest.approx(one["metrics"].pop("val/loss"), rel=1e-6)
    assert two["metrics"] == one["metrics"]
    assert {"val/miou", "val/dice", "val/pixel_accuracy"} <= set(one["metrics"])


def test_objects_are_measured(folder):
    assert "val/aji" in seen(folder / "two", "images/0.pt")["metrics"]
    assert "val/aji_components" in seen(folder / "two", "components/0.pt")["metrics"]


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]) / "two", **TWO)
