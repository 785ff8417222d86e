"""Two gloo processes under a plain Trainer read what one reads: nothing twice, nothing left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = '''
import json, sys
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from datamodules import DigitsDataModule


class Recorder(LightningModule):
    """Batch norm has buffers, which DDP synchronises in training and in validation."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
        self.seen = {"train": [], "val": [], "test": [], "file": [], "measured": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch["index"].tolist())
        return self.network(batch["image"]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch["index"].tolist())
        self.network(batch["image"])

    def on_test_start(self):
        for batch in self.trainer.datamodule.evaluation_loader("train"):
            self.seen["measured"].append(batch["index"].tolist())

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch["index"].tolist())

    def predict_step(self, batch, batch_idx):
        self.seen["file"].append(batch["file"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


processes, folder = int(sys.argv[1]), sys.argv[2]
data = DigitsDataModule(batch_size=16 // processes, train_size=64, val_size=17, seed=1)
model = Recorder()
trainer = Trainer(
    accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", max_epochs=2, logger=False,
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
)
trainer.fit(model, data)
trainer.test(model, data, verbose=False)
trainer.predict(model, data, return_predictions=False)
with open(f"{folder}/{processes}-{trainer.global_rank}.json", "w") as file:
    json.dump(model.seen, file)
'''


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[list[dict]]:
    """What each rank of one and of two processes has read."""
    folder = tmp_path_factory.mktemp("two_processes")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for processes in ("1", "2"):
        command = [sys.executable, str(script), processes, str(folder)]
        subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True)
    return [[json.loads((folder / f"{count}-{rank}.json").read_text()) for rank in range(count)] for count in (1, 2)]


def test_training_batches_are_those_of_one_process(seen):
    (single,), (first, second) = seen
    assert len(single["train"]) == len(first["train"]) == 8  # two epochs of 64 samples, 16 together
    for batch, part_0, part_1 in zip(single["train"], first["train"], second["train"], strict=True):
        assert part_0 == batch[0::2]
        assert part_1 == batch[1::2]


@pytest.mark.parametrize("stage", ["val", "test", "measured"])
def test_evaluation_reads_every_sample_once(seen, stage):
    (single,), ranks = seen
    expected = [index for batch in single[stage] for index in batch]
    parts = [[index for batch in rank[stage] for index in batch] for rank in ranks]
    assert sorted(parts[0] + parts[1]) == sorted(expected)


def test_one_rank_may_validate_a_batch_more(seen):
    _, ranks = seen
    assert [[len(batch) for batch in rank["val"]] for rank in ranks] == [[8, 1] * 2, [8] * 2]  # two epochs


def test_prediction_names_every_sample_once(seen):
    (single,), ranks = seen
    expected = [name for batch in single["file"] for name in batch]
    assert sorted(name for rank in ranks for batch in rank["file"] for name in batch) == expected
