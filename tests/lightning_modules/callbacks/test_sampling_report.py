"""What training has sampled, as metrics and as a table; the same of two processes, and of a resumed epoch."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_modules.callbacks.sampling_report import SamplingReport
from tests.helpers.patches import TinyPatches
from tests.helpers.tiny_runs import SaveAfter, tiny_data, tiny_trainer

ROOT = Path(__file__).parents[3]
# Forked, which spares an import of everything, but not from pytest, whose threads would not survive it.
TWO = {"devices": 2, "strategy": "ddp_fork"}


class Recorder(LightningModule):
    """Keeps what it has seen, and the metrics of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)
        self.batches: list[dict] = []
        self.evaluated: list[dict] = []
        self.metrics: list[dict[str, float]] = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.network(batch["image"].mean().view(1, 1)).mean()

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(batch)

    def test_step(self, batch, batch_idx):
        pass

    def on_train_epoch_end(self):
        self.metrics.append({k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith("sampling")})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def data(**options) -> TinyPatches:
    options = {"batch_size": 4, "patch_centres": "class_balanced", "context": 1, **options}
    data = TinyPatches(**options)
    data.modalities = ("t1", "flair")
    return data


def read(folder: Path) -> dict[str, dict[str, str]]:
    lines = (folder / "media" / "sampling.csv").read_text().splitlines()
    return {row.pop("statistic"): row for row in csv.DictReader(lines)}


def seen_share(batches: list[dict], volumes: list) -> float:
    seen = [torch.zeros(volume.size, dtype=torch.bool) for volume in volumes]
    for batch in batches:
        for index, start in zip(batch["index"].tolist(), batch["start"].tolist(), strict=True):
            seen[index][tuple(slice(first, first + 4) for first in start)] = True
    return float(np.mean([whole.float().mean() for whole in seen]))


def test_it_reports_what_was_sampled(tmp_path):
    task, patches = Recorder(), data()
    trainer = tiny_trainer(tmp_path, [SamplingReport()])
    trainer.fit(task, datamodule=patches)
    first, last = task.metrics
    assert first["sampling/coverage"] == pytest.approx(seen_share(task.batches[:3], patches.volumes))
    assert last["sampling/coverage"] == pytest.approx(seen_share(task.batches[3:], patches.volumes))
    assert last["sampling/coverage_so_far"] == pytest.approx(seen_share(task.batches, patches.volumes))
    assert last["sampling/subjects"] == 3
    masks = torch.cat([batch["mask"] for batch in task.batches[3:]])
    for number, name in enumerate(patches.class_names):
        assert last[f"sampling/frequency_{name}"] == pytest.approx((masks == number).double().mean().item())
    images = torch.cat([batch["image"] for batch in task.batches[3:]])
    for channel, name in enumerate(patches.modalities):
        values = images[:, channel]
        assert last[f"sampling/mean_{name}"] == pytest.approx(values.mean().item(), abs=0.005)
        assert last[f"sampling/std_{name}"] == pytest.approx(values.std().item(), abs=0.005)
        assert last[f"sampling/q95_{name}"] == pytest.approx(values.quantile(0.95).item(), abs=0.05)
    # The training subjects lie about 0, 1 and 2, those of the validation about 100.
    whole = torch.cat([batch["image"] for batch in task.evaluated[-2:]])[:, 1]
    expected = (whole.mean() - images[:, 1].mean()) / whole.std()
    assert last["sampling/val_distance_flair"] == pytest.approx(expected.item(), rel=0.02)
    of_whole = torch.cat([batch["mask"] for batch in task.evaluated[-2:]])
    shares = [torch.bincount(values.flatten(), minlength=3) / values.numel() for values in (masks, of_whole)]
    assert last["sampling/val_distance_classes"] == pytest.approx(float((shares[0] - shares[1]).abs().sum() / 2))


def test_the_table_has_training_validation_and_test_side_by_side(tmp_path):
    task, patches = Recorder(), data()
    trainer = tiny_trainer(tmp_path, [SamplingReport()], max_epochs=1)
    trainer.fit(task, datamodule=patches)
    trained = read(tmp_path)
    assert trained["coverage"].keys() == {"train", "val", "test"}
    assert float(trained["mean_t1"]["train"]) == pytest.approx(task.metrics[0]["sampling/mean_t1"], rel=1e-5)
    assert float(trained["mean_t1"]["val"]) == pytest.approx(100.5, abs=0.3)
    assert trained["mean_t1"]["test"] == trained["coverage"]["val"] == ""
    (result,) = trainer.test(task, datamodule=patches, verbose=False)
    tested = read(tmp_path)
    assert {name: {**row, "test": ""} for name, row in tested.items()} == trained
    assert float(tested["mean_t1"]["test"]) == pytest.approx(102.5, abs=0.3)
    assert float(tested["distance_t1"]["test"]) == pytest.approx(result["sampling/test_distance_t1"], rel=1e-5)


def test_a_test_in_another_process_knows_what_training_sampled(tmp_path):
    path = tmp_path / "last.ckpt"
    task = Recorder()
    tiny_trainer(tmp_path, [SamplingReport(), SaveAfter(3, path)], max_epochs=1).fit(task, datamodule=data())
    later = tiny_trainer(tmp_path, [SamplingReport()])
    (result,) = later.test(Recorder(), datamodule=data(), ckpt_path=path, verbose=False, weights_only=True)
    assert result["sampling/test_distance_t1"] > 10
    (without,) = tiny_trainer(tmp_path / "other", [SamplingReport()]).validate(task, datamodule=data(), verbose=False)
    assert not without
    assert read(tmp_path / "other")["mean_t1"]["val"]


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_resumed_epoch_is_reported_whole(tmp_path, step):
    complete, resumed = Recorder(), Recorder()
    tiny_trainer(tmp_path / "complete", [SamplingReport()], max_epochs=3).fit(complete, datamodule=data())
    path = tmp_path / "saved.ckpt"
    tiny_trainer(tmp_path / "begun", [SamplingReport(), SaveAfter(step, path)]).fit(Recorder(), datamodule=data())
    trainer = tiny_trainer(tmp_path, [SamplingReport()], max_epochs=3)
    trainer.fit(resumed, datamodule=data(), ckpt_path=path, weights_only=True)
    assert resumed.metrics == complete.metrics[-len(resumed.metrics) :]
    assert len(resumed.metrics) >= 2
    assert read(tmp_path) == read(tmp_path / "complete")


def test_it_says_nothing_of_other_data(tmp_path):
    trainer = tiny_trainer(tmp_path, [SamplingReport()], max_epochs=1)
    trainer.fit(Recorder(), datamodule=tiny_data())
    assert not any(name.startswith("sampling") for name in trainer.callback_metrics)
    assert not (tmp_path / "media").exists()


def train(folder: Path, **options) -> None:
    """Volumes are evaluated by one process each, patches of 4 a step shared."""
    trainer = tiny_trainer(folder, [SamplingReport()], **options)
    trainer.fit(Recorder(), datamodule=data(batch_size=4 // trainer.world_size, evaluated=3))


def test_two_processes_report_what_one_does(tmp_path):
    train(tmp_path / "one")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=300, capture_output=True)
    assert read(tmp_path / "two") == read(tmp_path / "one")


if __name__ == "__main__":
    train(Path(sys.argv[1]) / "two", **TWO)
