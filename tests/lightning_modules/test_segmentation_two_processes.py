"""Two gloo processes train and measure a segmentation as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.inference.inference import Inference
from lightning_modules.metrics.subjects import SubjectMeasures
from lightning_modules.segmentation import SegmentationTask
from lightning_modules.sync_batch_norm import SyncBatchNormPlugin
from tests.helpers.tiny_masks import IGNORED, TinyMasks, tiny_segmentation
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
    "subjects": (
        {"num_classes": 3, "subject_measures": SubjectMeasures(surfaces_in_validation=True)},
        {"num_classes": 3, "native_size": True, "ignored": True},
    ),
}
NOTHING_KNOWN = (2, 5)  # images of which all pixels are ignored; in a step they are all that the second process has
SUNET = "sunet"
LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {"loss": "cross_entropy"},
    "all": {
        "loss": {"cross_entropy": 1.0, "dice": 0.5, "focal": 2.0},
        "loss_options": {"cross_entropy": {"class_weights": [0.2, 1.0, 3.0]}, "dice": {"squared": True}},
    },
    "by volume": {
        "loss": {"generalized_dice": 1.0, "focal_tversky": 0.5},
        "loss_options": {"focal_tversky": {"include_background": False}},
    },
    "dice per image": {"loss": "dice", "loss_options": {"dice": {"per_image": True, "include_background": False}}},
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


class UnevenlyIgnored(TinyMasks):
    """Images of which anything between none and 15 of 16 rows is ignored, and two that are ignored wholly."""

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        for mask, index in zip(batch["mask"], batch["index"].tolist(), strict=True):
            mask[: len(mask) if index in NOTHING_KNOWN else 7 * index % 16 * len(mask) // 16] = IGNORED
        return batch


class RecordTraining(Callback):
    """Writes the loss that each step logs, and what validation and weights come to, to a file of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[float] = []
        self.known: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.known.append(int((batch["mask"] != IGNORED).sum()))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        seen = {"losses": self.losses, "known": self.known, "metrics": metrics, "state": pl_module.state_dict()}
        torch.save(seen, self.folder / f"{trainer.global_rank}.pt")


def tiny_sunet() -> SegmentationTask:
    """Its last block is dilated, and what is inside its modules is computed twice, exchanges of statistics included."""
    torch.manual_seed(0)
    widths = {"filters": 4, "block_depths": [1, 1, 1, 1], "block_widths": [8, 12, 16, 20]}
    options = {**widths, "output_stride": 16, "checkpointing": True}
    return SegmentationTask("sunet_64", options, num_classes=3)


def train(folder: Path, processes: int, **options) -> None:
    """Two epochs of three steps, each with a global batch of four images."""
    tasks = {name: tiny_segmentation(num_classes=3, **loss) for name, loss in LOSSES.items()} | {SUNET: tiny_sunet()}
    for name, task in tasks.items():
        task.optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        # Norms that see as few as four values a channel, and powers below 1, make more of what float32 rounds.
        size, precision = 48 if name == SUNET else 16, "64-true" if name in (SUNET, "by volume") else "32-true"
        data = UnevenlyIgnored(num_classes=3, image_size=size, batch_size=4 // processes, evaluated=7)
        callbacks = [RecordTraining(folder / name)]
        trainer = tiny_trainer(folder, callbacks, plugins=[SyncBatchNormPlugin()], precision=precision, **options)
        trainer.fit(task, datamodule=data)


def evaluate(folder: Path, **options) -> None:
    """Validate the initial weights on 7 images, which two processes share unevenly."""
    for name, (task, data) in OPTIONS.items():
        trainer = tiny_trainer(folder, [Record(folder / name)], **options)
        trainer.validate(tiny_segmentation(**task), datamodule=TinyMasks(evaluated=7, **data), verbose=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation_two_processes")
    evaluate(folder / "one")
    train(folder / "one", 1)
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


def test_subjects_are_measured(folder):
    measures = {"subject_dice", "hd95", "surface_dice", "volume_difference", "subjects"}
    found = seen(folder / "two", "subjects/0.pt")["metrics"]
    assert {f"val/{measure}_disc" for measure in measures} <= set(found)
    assert found["val/subjects_disc"] > 1


@pytest.mark.parametrize("name", [*LOSSES, SUNET])
def test_training_is_that_of_one_process(folder, name):
    """On the same global batches, though the processes ignore different numbers of pixels, one of them all."""
    one, two = seen(folder / "one", f"{name}/0.pt"), seen(folder / "two", f"{name}/0.pt")
    second = seen(folder / "two", f"{name}/1.pt")
    assert two["losses"] == second["losses"]
    assert second["known"][0] == 0 < two["known"][0] == one["known"][0]
    assert len(one["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for measure in ("val/miou", "train/miou", "train/pixel_accuracy"):
        assert two["metrics"][measure] == pytest.approx(one["metrics"][measure], abs=1e-6)
    for weight, value in one["state"].items():
        torch.testing.assert_close(two["state"][weight], value, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    evaluate(Path(sys.argv[1]) / "two", **TWO)
    train(Path(sys.argv[1]) / "two", 2, **TWO)
