"""GAN training: honest steps, exact ratios, noise that is a function, and options that do what they say."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_modules.base import NonFiniteLossError
from lightning_modules.callbacks.checkpoints import LastCheckpoint
from lightning_modules.files import read_checkpoint
from lightning_modules.losses.gan import GAN_LOSSES
from lightning_modules.schedules import CosineDecay
from models import registry
from models.convs.octave import get_betas, set_betas
from tests.helpers.tiny_gans import BATCHES_AN_EPOCH, OCTAVE, gan_data, tiny_gan
from tests.helpers.tiny_runs import tiny_trainer


class Recorder(Callback):
    """What was logged after each batch, and which networks have changed in it."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.changed: list[tuple[bool, bool]] = []
        self.learning_rates: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self._before = [weights(pl_module.discriminator), weights(pl_module.network)]

    def on_train_batch_end(self, trainer, pl_module, *_):
        after = [weights(pl_module.discriminator), weights(pl_module.network)]
        self.changed.append(tuple(not torch.equal(a, b) for a, b in zip(self._before, after, strict=True)))
        self.metrics.append({name: float(value) for name, value in trainer.logged_metrics.items()})
        self.learning_rates.append(trainer.optimizers[1].param_groups[0]["lr"])


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def train(folder, data=None, trainer=None, callbacks=(), **options):
    """Fit a tiny GAN; returns (task, trainer, recorder)."""
    recorder = Recorder()
    made = tiny_trainer(folder, [recorder, *callbacks], **(trainer or {}))
    task = tiny_gan(**options)
    made.fit(task, datamodule=gan_data(**(data or {})))
    return task, made, recorder


class LinearGenerator(nn.Module):
    """Without batch norm, so that parts of a batch add up to it."""

    def __init__(self, conv, image_size, latent_dim, in_channels):
        super().__init__()
        self.fc = nn.Linear(latent_dim, in_channels * image_size**2)
        self.shape = (in_channels, image_size, image_size)

    def forward(self, z):
        return self.fc(z).tanh().unflatten(1, self.shape)


class LinearDiscriminator(nn.Module):
    def __init__(self, conv, image_size, in_channels):
        super().__init__()
        self.fc = nn.Linear(in_channels * image_size**2, 1)

    def forward(self, x):
        return self.fc(x.flatten(1)).flatten()


@pytest.fixture
def linear(monkeypatch):
    """Options of a GAN of the two, registered for a test."""
    monkeypatch.setitem(registry._BUILDERS, "linear_generator", LinearGenerator)
    monkeypatch.setitem(registry._BUILDERS, "linear_discriminator", LinearDiscriminator)
    return {"model": "linear_generator", "discriminator": "linear_discriminator", "model_options": {}}


# Steps


@pytest.mark.parametrize("n_critic", [1, 2, 5])
def test_a_step_is_a_batch_and_the_ratio_is_exact_over_epochs(tmp_path, n_critic):
    task, trainer, recorder = train(
        tmp_path, trainer={"max_epochs": -1, "max_steps": 11}, n_critic=n_critic, data={"train_size": 24}
    )
    assert trainer.global_step == 11 == len(recorder.changed)
    assert [g for _, g in recorder.changed] == [(i + 1) % n_critic == 0 for i in range(11)]
    assert all(d for d, _ in recorder.changed)
    assert task.generator_steps == 11 // n_critic


def test_the_published_critic_schedule():
    task = tiny_gan(n_critic=5, critic_schedule="published")
    wanted = []
    for task.generator_steps in (0, 49, 50, 51, 499, 500, 501, 1000):
        wanted.append(task._critic_steps_wanted())
    assert wanted == [20, 20, 5, 5, 5, 20, 5, 20]


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
@pytest.mark.parametrize("n_critic", [1, 5])
def test_checkpoints_every_k_batches(tmp_path, n_critic):
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4, save_top_k=-1, filename="{step}")
    trainer = {"max_epochs": -1, "max_steps": 12, "enable_checkpointing": True}
    train(tmp_path, trainer=trainer, callbacks=[saver], n_critic=n_critic)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "step=12.ckpt",
        "step=4.ckpt",
        "step=8.ckpt",
    ]


def test_checkpoints_by_wall_clock_and_after_an_epoch(tmp_path):
    seen = []

    class Watch(LastCheckpoint):
        def _save(self, trainer):
            seen.append(trainer.global_step)
            super()._save(trainer)

    train(tmp_path, callbacks=[Watch(train_time_interval=timedelta(0))], trainer={"enable_checkpointing": True})
    assert seen == list(range(1, 2 * BATCHES_AN_EPOCH + 1))
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2 * BATCHES_AN_EPOCH


def test_a_partial_last_batch_is_trained_on(tmp_path):
    _, trainer, _ = train(tmp_path, data={"train_size": 21}, trainer={"max_epochs": 1})
    assert trainer.global_step == 3


@pytest.mark.parametrize("loss", GAN_LOSSES)
def test_every_loss_trains_in_bfloat16_with_octave(tmp_path, loss):
    task, _, recorder = train(tmp_path, loss=loss, conv=OCTAVE, trainer={"precision": "bf16-mixed", "max_epochs": 1})
    assert all(d and g for d, g in recorder.changed)
    names = {"train/loss_discriminator", "train/loss_generator", "train/logit_real", "train/logit_fake"}
    assert names <= set(recorder.metrics[-1])
    task.check_finite()


def test_the_generator_meets_the_discriminator_after_its_step_in_bfloat16_too(tmp_path, linear):
    """An autocast that kept its rounded weights, as torch's does by default, would find those of before the step."""
    options = {**linear, "optimizer": partial(torch.optim.SGD, lr=1.0)}
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        _, _, recorder = train(tmp_path, trainer={"precision": precision, "max_steps": 1}, **options)
        losses.append(recorder.metrics[0]["train/loss_generator"])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert abs(losses[0] - 0.69) > 0.1  # which is about what it was before the step


# Optimisers


def test_optimisers_share_out_the_parameters(tmp_path):
    task, trainer, _ = train(tmp_path, ema_decay=0.9, trainer={"max_epochs": 1})
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in trainer.optimizers]
    assert held[0] == {id(p) for p in task.discriminator.parameters()}
    assert held[1] == {id(p) for p in task.network.parameters()}
    assert held[0] | held[1] == {id(p) for p in task.parameters() if p.requires_grad}


def test_learning_rates_follow_the_schedule_step_by_step(tmp_path):
    _, trainer, recorder = train(tmp_path, lr_scheduler=CosineDecay)
    steps = 2 * BATCHES_AN_EPOCH
    schedule = CosineDecay(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3), total_steps=steps)
    assert recorder.learning_rates == pytest.approx([2e-3 * schedule.factor(k) for k in range(1, steps + 1)])
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_a_plateau_schedule_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ReduceLROnPlateau"):
        train(tmp_path, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    norms = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            grads = [p.grad for p in pl_module.network.parameters()]
            norms.append(float(nn.utils.get_total_norm(grads)))

    train(tmp_path, gradient_clip_norm=1e-3, callbacks=[Watch()])
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-3)


@pytest.mark.parametrize("loss", ["dcgan", "wgan_gp"])
def test_micro_batches_add_up_to_the_batch(tmp_path, linear, loss):
    sgd = partial(torch.optim.SGD, lr=0.1)
    runs = [train(tmp_path, **linear, loss=loss, optimizer=sgd, micro_batches=parts) for parts in (1, 3)]
    for name in ("network", "discriminator"):
        one, three = (weights(getattr(task, name)) for task, _, _ in runs)
        torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-6)
    assert runs[0][2].metrics[-1] == pytest.approx(runs[1][2].metrics[-1], rel=1e-4)


@pytest.mark.parametrize(
    ("trainer", "option"),
    [({"gradient_clip_val": 1.0}, "gradient_clip_norm"), ({"accumulate_grad_batches": 2}, "micro_batches")],
)
def test_trainer_options_without_effect_name_ours(tmp_path, trainer, option):
    with pytest.raises(ValueError, match=option):
        train(tmp_path, trainer=trainer)


def test_plain_ddp_is_refused_before_the_first_batch():
    task = tiny_gan()
    state = SimpleNamespace(fn="fit")
    task._trainer = SimpleNamespace(
        state=state, gradient_clip_val=None, accumulate_grad_batches=1, strategy=DDPStrategy(), max_epochs=1
    )
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
        task.configure_callbacks()
    task._trainer.strategy = DDPStrategy(find_unused_parameters=True)
    assert task.configure_callbacks() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_critic": 0}, "n_critic"),
        ({"micro_batches": 0}, "micro_batches"),
        ({"num_predicted": 0}, "num_predicted"),
        ({"weight_clip": 0.0}, "weight_clip"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"micro_batches": 2, "reuse_fakes": True}, "reuse_fakes"),
        ({"loss": "dcgam"}, "Did you mean 'dcgan'"),
        ({"beta_schedule": "ramp"}, "beta_schedule"),
        ({"image_size": 20}, "20"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_gan(**options)


def test_weights_of_a_wgan_critic_are_clipped(tmp_path):
    task, _, _ = train(tmp_path, loss="wgan", weight_clip=0.02)
    assert max(p.abs().max().item() for p in task.discriminator.parameters()) == pytest.approx(0.02)
    assert max(p.abs().max().item() for p in task.network.parameters()) > 0.02


@pytest.mark.parametrize("reuse", [True, False])
def test_reused_fakes_are_one_pass_of_the_generator(tmp_path, reuse):
    task, _, _ = train(tmp_path, reuse_fakes=reuse)
    passes = [m.num_batches_tracked.item() for m in task.network.modules() if isinstance(m, nn.BatchNorm1d)]
    assert passes == [2 * BATCHES_AN_EPOCH * (1 if reuse else 2)]


def test_images_come_from_the_moving_average(tmp_path):
    task, _, _ = train(tmp_path, ema_decay=0.5, trainer={"max_epochs": 1})
    assert task.ema_generator is not None
    assert task.sampler is task.ema_generator.module
    start = weights(tiny_gan().network)
    ema = weights(task.sampler)
    assert not torch.equal(ema, start)
    assert not torch.equal(ema, weights(task.network))
    z = task.evaluation_latents(0, 3)
    task.eval()
    torch.testing.assert_close(task.generate(z), task.sampler(z).detach())


def test_networks_may_be_of_different_convolutions():
    task = tiny_gan(conv=OCTAVE, discriminator_conv="standard")
    assert get_betas(task.network) is not None
    assert get_betas(task.discriminator) is None


# Betas


def test_betas_follow_the_epochs_and_are_saved(tmp_path):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append((get_betas(pl_module.network), get_betas(pl_module.discriminator)))

    options = {"conv": OCTAVE, "beta_schedule": "combination"}
    trainer = {"max_epochs": 4, "enable_checkpointing": True}
    train(tmp_path, data={"train_size": 8}, trainer=trainer, callbacks=[Watch(), LastCheckpoint()], **options)
    assert [g for g, _ in seen] == [pytest.approx(b) for b in [(0.45, 0.55), (0.7, 0.3), (0.7, 0.3), (0.7, 0.3)]]
    assert [g for g, _ in seen] == [d for _, d in seen]
    restored = tiny_gan(**options)
    restored.load_state_dict(read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"])
    assert get_betas(restored.network) == pytest.approx((0.7, 0.3))


def test_published_sampling_uses_the_betas_of_half_the_training():
    task = tiny_gan(conv=OCTAVE, beta_schedule="ramp", beta_sampling="published")
    z = task.evaluation_latents(0, 2)
    set_betas(task.network, 0.9, 0.1)
    published = task.generate(z)
    assert get_betas(task.network) == pytest.approx((0.9, 0.1))
    set_betas(task.network, 0.5, 0.5)
    assert torch.equal(published, task.generate(z))


# Noise and sampling


def test_generating_leaves_no_trace():
    task = tiny_gan(conv=OCTAVE)
    task.network.eval()
    some = next(m for m in task.network.modules() if isinstance(m, nn.BatchNorm2d))
    some.train()
    modes = [m.training for m in task.modules()]
    state = {name: value.clone() for name, value in task.state_dict().items()}
    random_state = torch.get_rng_state()
    images = task.generate(task.evaluation_latents(0, 70))
    assert images.shape == (70, 1, 16, 16)
    assert images.dtype == torch.float32
    assert -1 <= images.min() < images.max() <= 1
    assert [m.training for m in task.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[name]) for name, value in task.state_dict().items())


def test_latents_are_new_every_step_and_the_same_every_run(tmp_path):
    drawn = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            drawn.append(pl_module._latents(8, "discriminator"))

    for _ in range(2):
        train(tmp_path, callbacks=[Watch()], trainer={"max_epochs": 1})
    assert torch.equal(torch.stack(drawn[:3]), torch.stack(drawn[3:]))
    assert torch.cat(drawn[:3]).unique().numel() == 3 * 8 * 5


def test_latents_of_processes_interleave_to_those_of_one():
    task = tiny_gan()

    def latents(world, rank):
        task._trainer = SimpleNamespace(world_size=world, global_rank=rank)
        return task._latents(6 // world, "discriminator")

    whole = latents(1, 0)
    for rank in range(3):
        assert torch.equal(latents(3, rank), whole[rank::3])


def test_metrics_want_all_images_but_in_a_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVSUITE_CACHE", str(tmp_path / "cache"))
    measured = {"extractor": "contrastive", "num_generated": 150}
    train(tmp_path, trainer={"fast_dev_run": True}, **measured)
    with pytest.raises(ValueError, match="num_generated"):
        train(tmp_path, trainer={"limit_val_batches": 1}, **measured)


# Failures


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            if trainer.global_step == 2:
                with torch.no_grad():
                    next(pl_module.discriminator.parameters()).fill_(torch.nan)

    with pytest.raises(NonFiniteLossError, match="step 2"):
        train(tmp_path, callbacks=[Poison()])


@pytest.mark.parametrize("compiled", [True, False])
def test_compiled_and_eager_checkpoints_interchange(compiled):
    task = tiny_gan(compile=compiled)
    other = tiny_gan(compile=not compiled)
    assert not any("_orig_mod" in name for name in task.state_dict())
    other.load_state_dict(task.state_dict())
