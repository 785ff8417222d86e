"""What the pictures of a generator have in common: when they are drawn, and that training does not notice."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback

from lightning_modules.callbacks import (
    GANCurves,
    GeneratedSamples,
    LatentInterpolation,
    OctaveContributions,
    RealAndGenerated,
    default_callbacks,
)
from tests.helpers.tiny_gans import OCTAVE, gan_data, tiny_gan
from tests.helpers.tiny_runs import tiny_trainer

PICTURES = (LatentInterpolation, OctaveContributions, RealAndGenerated)


def eager():
    """Every callback that samples, at every epoch."""
    return [GeneratedSamples(2, 2), *(kind(every_n_epochs=1) for kind in PICTURES)]


def media(folder):
    folder = folder / "media"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) if folder.exists() else []


def test_a_gan_draws_them_where_nothing_else_is_said():
    kinds = [type(callback) for callback in default_callbacks(tiny_gan())]
    assert {GeneratedSamples, GANCurves, *PICTURES} < set(kinds)
    assert len(kinds) == len(set(kinds))


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "reuse_fakes": True}], ids=["plain", "averaged"])
def test_training_does_not_notice(tmp_path, options):
    def train(name, callbacks):
        record = Losses()
        task = tiny_gan(conv=OCTAVE, beta_schedule="combination", beta_sampling="published", **options)
        torch.manual_seed(1)
        tiny_trainer(tmp_path / name, [*callbacks, record]).fit(task, datamodule=gan_data())
        modes = {name: module.training for name, module in task.named_modules()}
        return record.values, task.state_dict(), torch.get_rng_state(), modes

    plain_losses, plain_state, plain_rng, plain_modes = train("plain", [])
    losses, state, rng, modes = train("drawn", eager())
    assert losses == plain_losses
    assert torch.equal(rng, plain_rng)
    assert modes == plain_modes
    assert state.keys() == plain_state.keys()
    assert all(torch.equal(state[name], plain_state[name]) for name in state)
    assert {f"{kind.name}.png" for kind in PICTURES} < set(media(tmp_path / "drawn"))


def test_drawn_at_the_end_and_while_training_if_asked(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "lightning_modules.callbacks.generated_pictures.save_picture",
        lambda trainer, name, figure: saved.append((name, trainer.global_step)),
    )
    callbacks = [RealAndGenerated(1, 1, every_n_epochs=2), LatentInterpolation(1, 2)]
    tiny_trainer(tmp_path, callbacks, max_epochs=4).fit(tiny_gan(), datamodule=gan_data())
    assert saved == [("real_and_generated", 6), ("real_and_generated", 12), ("interpolation", 12)]


def test_a_fast_dev_run_leaves_nothing(tmp_path):
    tiny_trainer(tmp_path, eager(), fast_dev_run=True).fit(tiny_gan(conv=OCTAVE), datamodule=gan_data())
    assert media(tmp_path) == []


def test_a_picture_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_modules.callbacks.latent_interpolation.image_grid", lambda *_: (_ for _ in ()).throw(OSError("no"))
    )
    trainer = tiny_trainer(tmp_path, [LatentInterpolation(), RealAndGenerated()], max_epochs=1)
    with pytest.warns(UserWarning, match="'interpolation' could not be made"):
        trainer.fit(tiny_gan(), datamodule=gan_data())
    assert trainer.state.finished
    assert media(tmp_path) == ["real_and_generated.png"]


@pytest.mark.parametrize("kind", PICTURES)
def test_impossible_intervals(kind):
    with pytest.raises(ValueError, match="every_n_epochs must be 1 or more"):
        kind(every_n_epochs=0)
