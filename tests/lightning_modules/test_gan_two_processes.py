"""Two gloo processes train what one trains on the same global batches, and measure the same."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lightning_modules.sync_batch_norm import SyncBatchNormPlugin
from tests.helpers.tiny_gans import OCTAVE, gan_data, tiny_gan
from tests.helpers.tiny_runs import tiny_trainer

ROOT = Path(__file__).parents[2]
# Forked, which spares an import of everything, but not from pytest, whose threads would not survive it.
TWO = {"devices": 2, "strategy": "ddp_fork_find_unused_parameters_true", "plugins": [SyncBatchNormPlugin()]}
BATCH = 8  # of all processes together
OPTIONS = {
    "standard": {},
    "octave": {"conv": OCTAVE},
    "penalty": {"loss": "wgan_gp", "n_critic": 2},
    "reused": {"conv": OCTAVE, "reuse_fakes": True, "ema_decay": 0.9},
}


class Record(Callback):
    """Writes what each process has seen to a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[list[float]] = []
        self.latents: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.latents.append(pl_module._latents(len(batch["image"]), "discriminator"))
        names = ("train/loss_discriminator", "train/loss_generator", "train/logit_real", "train/logit_fake")
        # With n_critic 2 the first step has no loss of the generator yet.
        self.losses.append([float(trainer.callback_metrics.get(name, 0.0)) for name in names])

    def on_fit_end(self, trainer, pl_module):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        seen = {"losses": self.losses, "latents": torch.cat(self.latents), "metrics": metrics}
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({**seen, "weights": pl_module.state_dict()}, self.folder / f"{trainer.global_rank}.pt")


def train(folder: Path, processes: int, **trainer) -> None:
    for name, options in OPTIONS.items():
        task = tiny_gan(
            extractor="contrastive",
            num_generated=31,
            optimizer=partial(torch.optim.SGD, lr=0.02),  # Adam makes much of rounding errors at the start
            **options,
        )
        made = tiny_trainer(folder / name, [Record(folder / name)], **trainer)
        made.fit(task, datamodule=gan_data(batch_size=BATCH // processes, train_size=5 * BATCH))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gan_two_processes")
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "CONVSUITE_CACHE": str(folder / "cache"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVSUITE_CACHE", str(folder / "cache"))
        train(folder / "one", 1)
    command = [sys.executable, __file__, str(folder)]
    subprocess.run(command, check=True, env=os.environ | environment, cwd=folder, timeout=300, capture_output=True)
    return folder


def seen(folder: Path, processes: str, name: str, rank: int) -> dict:
    return torch.load(folder / processes / name / f"{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_losses_are_those_of_one_process(folder, name):
    one, two = seen(folder, "one", name, 0), seen(folder, "two", name, 0)
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPTIONS)
def test_parameters_are_equal_across_processes_and_noise_is_not(folder, name):
    first, second = (seen(folder, "two", name, rank) for rank in (0, 1))
    for key, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][key]), key
    assert torch.cat([first["latents"], second["latents"]]).unique(dim=0).shape[0] == 2 * len(first["latents"])
    one = seen(folder, "one", name, 0)["latents"]
    assert torch.equal(torch.stack([first["latents"], second["latents"]], 1).flatten(0, 1), one)


@pytest.mark.parametrize("name", OPTIONS)
def test_metrics_are_those_of_one_process(folder, name):
    """Of generators that differ by rounding errors; the test of the metrics has equal ones, and 1e-6."""
    one, two = seen(folder, "one", name, 0)["metrics"], seen(folder, "two", name, 0)["metrics"]
    assert two == seen(folder, "two", name, 1)["metrics"]
    assert two == pytest.approx(one, rel=1e-3)
    assert "val/fid_contrastive_31" in one


if __name__ == "__main__":
    train(Path(sys.argv[1]) / "two", 2, **TWO)
