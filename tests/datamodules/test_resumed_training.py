"""A Trainer that is interrupted and resumed sees the batches, and computes the losses, of one that ran through."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from datamodules import DigitsDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

BATCHES = 5  # an epoch: 37 samples, 8 a batch
Seen = list[tuple[int, list[int], float]]  # step, indices, loss


class Interrupted(Exception):
    pass


class InterruptBefore(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise Interrupted


class Classifier(LightningModule):
    """Momentum and a schedule, so that a loss shows every batch before it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.seen: Seen = []

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.network(batch["image"]), batch["label"])
        self.seen.append((self.global_step, batch["index"].tolist(), loss.item()))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/mean", self.network(batch["image"]).mean(), batch_size=len(batch["image"]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def train(
    folder: Path,
    workers: int,
    val_size: int,
    options: dict,
    saving: dict,
    stop: int = -1,
    resume: Path | None = None,
    drop_last: bool = False,
) -> Seen:
    """Train from the beginning, or from `resume`; `last.ckpt` appears in `folder`."""
    model = Classifier()
    checkpoint = ModelCheckpoint(folder, "last", enable_version_counter=False, save_top_k=1, **saving)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[InterruptBefore(stop), checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    data = DigitsDataModule(
        batch_size=8, num_workers=workers, train_size=37, val_size=val_size, seed=3, drop_last=drop_last
    )
    try:
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    except Interrupted:
        assert trainer.global_step == stop
    return model.seen


EVERY_STEP = {"every_n_train_steps": 1}
EVERY_EPOCH = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
AFTER_VALIDATION = {"save_on_train_epoch_end": False}


@pytest.mark.parametrize(
    ("options", "val_size", "saving"),
    [
        ({"max_epochs": 3}, 0, EVERY_STEP),
        ({"max_epochs": 3}, 9, EVERY_STEP),
        ({"max_epochs": 3}, 9, EVERY_EPOCH),
        ({"max_epochs": 3}, 9, AFTER_VALIDATION),
        ({"max_epochs": -1, "max_steps": 13}, 0, EVERY_STEP),
        ({"max_epochs": -1, "max_steps": 13}, 9, AFTER_VALIDATION),
        ({"max_epochs": 3, "limit_train_batches": 3}, 0, EVERY_STEP),
        ({"max_epochs": 3, "val_check_interval": 2}, 9, AFTER_VALIDATION),
        ({"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}, 0, EVERY_STEP),
    ],
)
def test_interrupted_before_any_step_it_goes_on_as_if_it_had_not_been(tmp_path, options, val_size, saving):
    complete = train(tmp_path / "complete", 0, val_size, options, saving)
    assert len({tuple(indices) for _, indices, _ in complete}) == len(complete)
    for stop in range(1, len(complete)):
        folder = tmp_path / str(stop)
        begun = train(folder, 0, val_size, options, saving, stop)
        assert begun == complete[:stop]
        if not (folder / "last.ckpt").exists():  # stopped before the first epoch ended
            continue
        step = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
        assert train(folder, 0, val_size, options, saving, resume=folder / "last.ckpt") == complete[step:]


@pytest.mark.parametrize(("workers", "stop"), [(0, 2), (0, BATCHES - 1), (0, BATCHES), (2, 2)])
def test_with_drop_last_an_epoch_is_a_batch_shorter_and_goes_on_as_exactly(tmp_path, workers, stop):
    options = {"max_epochs": 3}
    complete = train(tmp_path / "complete", 0, 9, options, EVERY_STEP, drop_last=True)
    assert [len(indices) for _, indices, _ in complete] == [8] * 3 * (BATCHES - 1)
    assert train(tmp_path, workers, 9, options, EVERY_STEP, stop, drop_last=True) == complete[:stop]
    resumed = train(tmp_path, workers, 9, options, EVERY_STEP, resume=tmp_path / "last.ckpt", drop_last=True)
    assert resumed == complete[stop:]


@pytest.mark.parametrize("stop", [2, BATCHES, BATCHES + 1])
def test_workers_that_have_loaded_ahead_change_nothing(tmp_path, stop):
    options = {"max_epochs": 3}
    complete = train(tmp_path / "complete", 0, 9, options, EVERY_STEP)
    assert train(tmp_path, 2, 9, options, EVERY_STEP, stop) == complete[:stop]
    assert train(tmp_path, 2, 9, options, EVERY_STEP, resume=tmp_path / "last.ckpt") == complete[stop:]


def test_overfitting_on_a_few_batches_works(tmp_path):
    with pytest.warns(UserWarning, match="turning off the train dataloader shuffling"):
        seen = train(tmp_path, 0, 0, {"max_epochs": 2, "overfit_batches": 2}, EVERY_STEP)
    assert [indices for _, indices, _ in seen[:2]] == [indices for _, indices, _ in seen[2:]]
