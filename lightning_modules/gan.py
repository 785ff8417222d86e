"""Training of generative adversarial networks."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer, do_nothing_closure
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.base import BaseTask, LRSchedulerCallable, OptimizerCallable, run_seed
from lightning_modules.betas import BETA_SCHEDULES, Betas
from lightning_modules.losses.gan import GAN_LOSSES, gradient_penalty
from lightning_modules.metrics import GenerationMetrics, Protocol
from lightning_modules.noise import generator_for, indexed_normal
from lightning_modules.pictures.images import to_uint8
from models import create_model
from models.convs.octave import get_betas, set_betas
from models.names import check_name

Batch = dict[str, Any]
PUBLISHED_BETAS_AT = 0.5
"""Where in its schedule the published code stands whenever it samples."""
NOTHING_MEASURED = "model.extractor is null: nothing is measured. Set it"


class GANTask(BaseTask):
    """A generator and a discriminator, updated in turn: one discriminator step a batch, a generator step every n-th.

    A training step (`global_step`, `max_steps`, checkpoints, the loggers' axis) is a batch, thus a discriminator step;
    generator steps are not counted. Learning-rate schedules step once a batch for both networks. Several processes need
    the strategy `ddp_find_unused_parameters_true` (configs/trainer/ddp_gan.yaml).

    Noise is a function of the seed, the step and the place in the global batch; that of evaluations of the seed and the
    image's index. So neither a resumption nor the number of processes changes what is drawn.

    Logs `train/loss_discriminator`, `train/loss_generator`, `train/logit_real` and `train/logit_fake` (means of the
    discriminator's logits), `train/beta_high` and `train/beta_low` where they are scheduled, and, of
    `num_generated` images against `reference_split`, what `lightning_modules.metrics` measures. Of the Fréchet
    distance also `..._best`, the lowest so far, and `..._rise`, how far the latest value lies above it; the table of a
    grid measures stability on running medians instead (`lightning_modules.grids.stability`).

    Args:
        model: The generator, a name of `models.list_models()`.
        model_options: Options of the generator.
        discriminator: The discriminator, a name as well.
        discriminator_options: Options of the discriminator; default: those of the generator.
        conv: The convolution variant of both networks.
        discriminator_conv: Another one for the discriminator.
        in_channels: Channels of the images; the command line links it from the data.
        image_size: Height and width of the images; the command line links it from the data.
        latent_dim: Size of z ~ N(0, I).
        loss: "dcgan", "lsgan", "wgan" (weights clipped), "wgan_gp" or "hinge".
        weight_clip: wgan: every parameter of the critic is kept within [-weight_clip, weight_clip].
        gradient_penalty: wgan_gp: weight of the penalty.
        n_critic: Discriminator steps to a generator step, counted over the whole training.
        critic_schedule: "constant", or "published" for WGAN as the authors ran it: 20 discriminator steps before each
            of the first 50 generator steps and before every 500th, `n_critic` before the others.
        reuse_fakes: One pass of the generator for both updates of a batch: both see the same z, and the running
            statistics of the generator's batch norm move once a batch in place of twice.
        beta_schedule: Weighting of the octave maps, "constant", "ramp" or "combination"; see `lightning_modules.betas`.
        beta_sampling: The betas of evaluation and samples: those "scheduled" for the epoch, or, as "published", those
            of half the training, whatever the epoch.
        ema_decay: Sample from an exponential moving average of the generator with this decay; null: from itself.
        optimizer: Called with the parameter groups of the generator.
        discriminator_optimizer: Called with those of the discriminator; default: `optimizer`.
        lr_scheduler: Called with each of the two optimisers.
        gradient_clip_norm: Largest norm of each network's gradient; null: not clipped. In float16 mixed precision the
            optimisers must not be fused.
        micro_batches: Parts of a batch that are passed one after the other, their gradients summed up: less memory, the
            same step but for the statistics of batch norm.
        extractor: Features of the metrics, "contrastive" (trained on the reference images) or "inception"; null: no
            metrics, nothing is validated.
        extractor_weights: File of Inception's weights; default: downloaded.
        num_generated: Images that are generated for the metrics.
        reference_split: The real images that they are compared with, "train", "val" or "test".
        num_predicted: Images that `predict` writes.
        geometry_lr_factor: See `BaseTask`.
        compile: Compile both networks with `torch.compile`, in place: checkpoints stay interchangeable.

    Raises:
        ValueError: Options that contradict each other; the message names them.
    """

    mode = "min"
    generator_loss: Tensor
    clipping = "model.gradient_clip_norm"

    def __init__(
        self,
        model: str = "dcgan_generator",
        model_options: dict[str, Any] | None = None,
        discriminator: str = "dcgan_discriminator",
        discriminator_options: dict[str, Any] | None = None,
        conv: str | dict[str, Any] = "standard",
        discriminator_conv: str | dict[str, Any] | None = None,
        in_channels: int = 3,
        image_size: int = 64,
        latent_dim: int = 100,
        loss: Literal["dcgan", "lsgan", "wgan", "wgan_gp", "hinge"] = "dcgan",
        weight_clip: float = 0.01,
        gradient_penalty: float = 10.0,
        n_critic: int = 1,
        critic_schedule: Literal["constant", "published"] = "constant",
        reuse_fakes: bool = False,
        beta_schedule: Literal["constant", "ramp", "combination"] = "constant",
        beta_sampling: Literal["scheduled", "published"] = "scheduled",
        ema_decay: float | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        discriminator_optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip_norm: float | None = None,
        micro_batches: int = 1,
        extractor: Literal["contrastive", "inception"] | None = "contrastive",
        extractor_weights: str | None = None,
        num_generated: int = 2000,
        reference_split: Literal["train", "val", "test"] = "train",
        num_predicted: int = 64,
        geometry_lr_factor: float = 1.0,
        compile: bool = False,
    ) -> None:
        counts = {"n_critic": n_critic, "micro_batches": micro_batches, "num_predicted": num_predicted}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if weight_clip <= 0 or gradient_penalty < 0:
            raise ValueError(
                f"weight_clip ({weight_clip}) must be positive, gradient_penalty ({gradient_penalty}) not negative"
            )
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}")
        if reuse_fakes and micro_batches > 1:
            raise ValueError("reuse_fakes keeps the whole batch in memory, which micro_batches is to avoid: choose one")
        check_name("loss", loss, GAN_LOSSES)
        check_name("beta_schedule", beta_schedule, BETA_SCHEDULES)
        options = dict(model_options or {})
        super().__init__(
            model,
            {**options, "image_size": image_size, "latent_dim": latent_dim},
            conv,
            in_channels,
            None,
            optimizer,
            lr_scheduler,
            geometry_lr_factor,
            compile,
        )
        self.automatic_optimization = False
        self.discriminator: nn.Module = create_model(
            discriminator,
            conv=conv if discriminator_conv is None else discriminator_conv,
            in_channels=in_channels,
            image_size=image_size,
            **(options if discriminator_options is None else discriminator_options),
        ).to(memory_format=torch.channels_last)
        if compile:
            self.discriminator.compile()
        if beta_schedule != "constant" and get_betas(self.network) is None and get_betas(self.discriminator) is None:
            raise ValueError(f"beta_schedule {beta_schedule!r} weights octave maps, but conv {conv!r} makes none")
        self.ema_generator: nn.Module | None = None if ema_decay is None else _moving_average(self.network, ema_decay)
        self.discriminator_optimizer = optimizer if discriminator_optimizer is None else discriminator_optimizer
        self.losses = GAN_LOSSES[loss]
        self.generator_steps = 0
        self.critic_steps = 0  # since the last generator step
        self.best_distance = math.inf
        self._step = 0
        # That of the last generator step, logged at every step: its curve must not depend on which steps are logged.
        self.register_buffer("generator_loss", torch.tensor(math.nan), persistent=False)

    def configure_metrics(self) -> None:
        self.metrics: GenerationMetrics | None = None
        self.monitor = None
        if self.hparams["extractor"] is not None:
            protocol = Protocol(
                extractor=self.hparams["extractor"],
                num_generated=self.hparams["num_generated"],
                split=self.hparams["reference_split"],
            )
            self.metrics = GenerationMetrics(protocol, weights=self.hparams["extractor_weights"])
            self.monitor = f"val/{protocol.metric_name('fid')}"

    @property
    def sampler(self) -> nn.Module:
        """What images are sampled from: the generator, or its moving average."""
        return self.network if self.ema_generator is None else self.ema_generator.get_submodule("module")

    def networks(self, image_shape: tuple[int, ...]) -> list[tuple[nn.Module, tuple[int, ...]]]:
        return [(self.network, (1, self.hparams["latent_dim"])), (self.discriminator, image_shape)]

    # Optimisation

    def configure_callbacks(self) -> list[Any]:
        """No callback; the first hook of a fit, and the only one before Lightning's own checks."""
        trainer = self.trainer
        if trainer.state.fn != "fit":
            return []
        if trainer.gradient_clip_val is not None:
            raise ValueError(
                "trainer.gradient_clip_val does nothing to a GAN: set model.gradient_clip_norm in its place"
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "trainer.accumulate_grad_batches does nothing to a GAN: set model.micro_batches in its place"
            )
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise ValueError(
                "with plain ddp the update of one network would wait for gradients of the other: "
                "use --trainer.strategy ddp_find_unused_parameters_true, or --config trainer/ddp_gan.yaml"
            )
        if self.hparams["beta_schedule"] != "constant" and (trainer.max_epochs or -1) < 1:
            raise ValueError("beta_schedule runs over trainer.max_epochs: set it")
        return []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizers, schedulers = [], []
        for network, make in ((self.discriminator, self.discriminator_optimizer), (self.network, self.optimizer)):
            optimizer, scheduler = self.optimise(network, make)
            optimizers.append(optimizer)
            if isinstance(scheduler, ReduceLROnPlateau):
                raise ValueError(
                    "lr_scheduler ReduceLROnPlateau follows a loss that falls, which those of a GAN do not"
                )
            if scheduler is not None:
                schedulers.append(scheduler)
        return optimizers, schedulers

    def on_train_epoch_start(self) -> None:
        if self.hparams["beta_schedule"] != "constant":
            betas = self._scheduled_betas((self.current_epoch + 1) / self.trainer.max_epochs)  # type: ignore[operator]
            for network in {self.network, self.discriminator, self.sampler}:
                set_betas(network, *betas)

    def on_train_epoch_end(self) -> None:
        # Not when they are set: a run that is resumed within the epoch would not log them.
        if self.hparams["beta_schedule"] != "constant":
            high, low = get_betas(self.network) or get_betas(self.discriminator)  # type: ignore[misc]
            self.log_dict({"train/beta_high": high, "train/beta_low": low})

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        real = batch["image"]
        self._step = self.global_step  # which moves on in the middle of this, with the discriminator
        self.critic_steps += 1
        generator_is_due = self.critic_steps >= self._critic_steps_wanted()
        with torch.set_grad_enabled(generator_is_due and self.hparams["reuse_fakes"]):
            fake = self.network(self._latents(len(real), "discriminator"))
        self._step_discriminator(real, fake.detach())
        if generator_is_due:
            self._step_generator(len(real), fake if self.hparams["reuse_fakes"] else None)
            self.critic_steps = 0
            self.generator_steps += 1
        for scheduler in self._schedulers():
            scheduler.step()
        if self.generator_steps:
            self.log("train/loss_generator", self.generator_loss, prog_bar=True)

    def _step_discriminator(self, real: Tensor, fake: Tensor) -> None:
        optimizer: LightningOptimizer = self.optimizers()[0]  # type: ignore[index]
        mix = self._shared_draw(torch.rand, (len(real), 1, 1, 1), "gradient penalty")
        sums: Counter[str] = Counter()
        optimizer.zero_grad()
        for x, generated, m in zip(self._parts(real), self._parts(fake), self._parts(mix), strict=True):
            share = len(x) / len(real)
            # Two passes, as published: batch norm never sees real and generated images together.
            logit_real, logit_fake = self.discriminator(x).float(), self.discriminator(generated).float()
            loss = self.losses.discriminator(logit_real, logit_fake)
            if self.hparams["loss"] == "wgan_gp":
                loss = loss + self.hparams["gradient_penalty"] * gradient_penalty(self.discriminator, x, generated, m)
            self.manual_backward(share * loss)
            for name, value in (("loss_discriminator", loss), ("logit_real", logit_real), ("logit_fake", logit_fake)):
                sums[name] += share * value.detach().mean()  # type: ignore[assignment]
        self.watch(sums["loss_discriminator"], self._step)  # type: ignore[arg-type]
        optimizer.step()
        if self.hparams["loss"] == "wgan":
            _clip_weights(self.discriminator, self.hparams["weight_clip"])
        self.log_dict({f"train/{name}": value for name, value in sums.items()}, prog_bar=True, sync_dist=True)

    def _step_generator(self, count: int, fake: Tensor | None) -> None:
        """Update the generator by `fake`, whose graph is kept, or by images of its own."""
        optimizer: LightningOptimizer = self.optimizers()[1]  # type: ignore[index]
        # Lightning puts these back before every batch.
        optimizer._on_before_step = optimizer._on_after_step = do_nothing_closure
        batches = self._parts(self._latents(count, "generator")) if fake is None else [fake]
        total = torch.zeros((), device=self.device)
        optimizer.zero_grad()
        with _frozen(self.discriminator):
            for part in batches:
                generated = self.network(part) if fake is None else fake
                loss = self.losses.generator(self.discriminator(generated).float())
                self.manual_backward(loss * len(part) / count)
                total += loss.detach() * len(part) / count
        self.watch(total, self._step)
        optimizer.step()
        if self.ema_generator is not None:
            self.ema_generator.update(self.network)  # type: ignore[operator]
        self.generator_loss.copy_(self.trainer.strategy.reduce(total, reduce_op="mean"))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Comes once the gradients are there and, in float16, no longer scaled (Lightning refuses fused optimisers)."""
        super().on_before_optimizer_step(optimizer)
        norm = self.hparams["gradient_clip_norm"]
        if norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=norm, gradient_clip_algorithm="norm")

    def _critic_steps_wanted(self) -> int:
        """Discriminator steps before the next generator step."""
        published = self.hparams["critic_schedule"] == "published"
        if published and (self.generator_steps < 50 or self.generator_steps % 500 == 0):
            return 20
        return self.hparams["n_critic"]

    def _schedulers(self) -> list[Any]:
        schedulers = self.lr_schedulers() or []
        return schedulers if isinstance(schedulers, list) else [schedulers]

    def _parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        return batch.chunk(self.hparams["micro_batches"])

    # Noise

    def _latents(self, count: int, purpose: str) -> Tensor:
        """This process's share of the latents of the running step, (count, latent_dim)."""
        return self._shared_draw(torch.randn, (count, self.hparams["latent_dim"]), purpose)

    def _shared_draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...], purpose: str) -> Tensor:
        """Item i of process r is item r + world * i of the global batch, as the training sampler has it."""
        world, rank = self.trainer.world_size, self.global_rank
        generator = generator_for(purpose, run_seed(), self._step)
        whole = draw(shape[0] * world, *shape[1:], generator=generator)
        return whole[rank::world].to(self.device)

    def evaluation_latents(self, start: int, stop: int, purpose: str = "evaluation") -> Tensor:
        """Latents (stop - start, latent_dim) of the images `start` to `stop`, each f(seed, purpose, index)."""
        return self._indexed_latents(torch.arange(start, stop), purpose)

    def _indexed_latents(self, indices: Tensor, purpose: str) -> Tensor:
        return indexed_normal(indices.cpu(), self.hparams["latent_dim"], purpose, run_seed()).to(self.device)

    # Sampling and evaluation

    @torch.no_grad()
    def generate(self, latents: Tensor) -> Tensor:
        """Images (n, C, H, W), float32 in [-1, 1], of latents (n, latent_dim), in eval mode; leaves no trace."""
        trainer = self._trainer
        precision = nullcontext() if trainer is None else trainer.precision_plugin.forward_context()
        with _evaluating(self.sampler), self._betas_for_sampling(), precision:
            return self.sampler(latents).float()

    def forward(self, latents: Tensor) -> Tensor:
        return self.generate(latents)

    def setup(self, stage: str) -> None:
        """Prepare the metrics: before the loops, which know no gradients outside of training steps.

        Evaluations run over the indices of generated images, whatever loaders the data have.
        """
        trainer = self.trainer
        limits = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
        for name, limit in limits.items():
            is_whole = isinstance(limit, float) and limit == 1.0  # 1 is one batch
            if self.metrics and limit and not is_whole and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                raise ValueError(
                    f"trainer.limit_{name}_batches ({limit}) would leave out images that the metrics need: "
                    "set model.num_generated, or model.extractor to null"
                )
        if self.metrics is not None and stage != "predict":
            self.metrics.prepare(trainer.datamodule, trainer.strategy.root_device)  # type: ignore[attr-defined]
        for loop, name in (
            (trainer.fit_loop.epoch_loop.val_loop, "val_dataloader"),
            (trainer.validate_loop, "val_dataloader"),
            (trainer.test_loop, "test_dataloader"),
            (trainer.predict_loop, "predict_dataloader"),
        ):
            loop._data_source = _DataLoaderSource(self, name)

    def check_test(self, data: Any) -> None:
        """Raise now, not after a training, what would stop a test. Of the data's own test split none is measured.

        Raises:
            ValueError: Nothing would be measured. Whether there is a `reference_split`, `setup` finds.
            FileNotFoundError, DamagedFileError: The Trainer opens the test split all the same, and cannot.
        """
        if self.metrics is None:
            raise ValueError(f"{NOTHING_MEASURED}, or train without a test: convsuite fit")
        data.setup("test")

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        if self.metrics is None:
            # Lightning then skips validation, and warns of what was asked for.
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
            return []
        return self._indices(self.hparams["num_generated"])

    def test_dataloader(self) -> DataLoader:
        return self._indices(self.hparams["num_generated"])

    def predict_dataloader(self) -> DataLoader:
        return self._indices(self.hparams["num_predicted"])

    def _indices(self, count: int) -> DataLoader:
        indices = GeneratedIndices(count, self.trainer.world_size, self.global_rank)
        return DataLoader(indices, batch_size=None, generator=torch.Generator())

    def on_validation_epoch_start(self) -> None:
        self.check_finite()
        self._metrics.reset()

    def on_test_epoch_start(self) -> None:
        self._metrics.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        return {"image": to_uint8(self.generate(self._indexed_latents(batch["index"], "prediction"))), **batch}

    def on_validation_epoch_end(self) -> None:
        if self._is_trial:
            return
        values = self._report("val")
        distance = float(values[self.monitor])  # type: ignore[index]
        if self.trainer.state.fn == "fit":
            self.best_distance = min(self.best_distance, distance)
            rise = distance - self.best_distance
            self.log_dict({f"{self.monitor}_best": self.best_distance, f"{self.monitor}_rise": rise})

    def on_test_epoch_end(self) -> None:
        if not self._is_trial:
            self._report("test")

    @property
    def _is_trial(self) -> bool:
        """Whether only some of the images are generated, to see that it works."""
        return self.trainer.sanity_checking or bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    @property
    def _metrics(self) -> GenerationMetrics:
        if self.metrics is None:
            raise ValueError(NOTHING_MEASURED)
        return self.metrics

    def _measure(self, batch: Batch) -> None:
        images = self.generate(self._indexed_latents(batch["index"], "evaluation"))
        self._metrics.update(to_uint8(images), batch["index"])

    def _report(self, stage: str) -> dict[str, Tensor]:
        values = {f"{stage}/{name}": value for name, value in self._metrics.compute().items()}
        # Every process has computed the same values, so nothing is left to reduce.
        self.log_dict(values)
        return values

    # Betas

    def _scheduled_betas(self, t: float) -> Betas:
        return BETA_SCHEDULES[self.hparams["beta_schedule"]](t)

    @contextmanager
    def _betas_for_sampling(self) -> Iterator[None]:
        differ = self.hparams["beta_sampling"] == "published" and self.hparams["beta_schedule"] != "constant"
        current = get_betas(self.sampler) if differ else None  # waits for the device
        if current is None:
            yield
            return
        set_betas(self.sampler, *self._scheduled_betas(PUBLISHED_BETAS_AT))
        try:
            yield
        finally:
            set_betas(self.sampler, *current)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["gan"] = {
            "generator_steps": self.generator_steps,
            "critic_steps": self.critic_steps,
            "generator_loss": float(self.generator_loss),
            "best_distance": self.best_distance,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint["gan"]
        self.generator_steps, self.critic_steps = saved["generator_steps"], saved["critic_steps"]
        self.generator_loss.fill_(saved["generator_loss"])
        self.best_distance = saved["best_distance"]


class GeneratedIndices(IterableDataset):
    """Indices of images to generate, in batches {"index": int64 (n,)}: process r of w has r, r + w, r + 2w, ...

    Iterable, so that a Trainer does not share it out between processes once more.
    """

    batch_size = 100

    def __init__(self, count: int, world: int, rank: int) -> None:
        self.batches = torch.arange(count)[rank::world].split(self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return ({"index": indices} for indices in self.batches)


def _moving_average(network: nn.Module, decay: float) -> nn.Module:
    from timm.utils import ModelEmaV3

    # In training mode as all else, or Lightning warns; `generate` sees to the mode.
    return ModelEmaV3(network, decay=decay).train().requires_grad_(False)


@torch.no_grad()
def _clip_weights(critic: nn.Module, limit: float) -> None:
    """WGAN's clipping: every parameter, gains of batch norm too, as published."""
    for parameter in critic.parameters():
        parameter.clamp_(-limit, limit)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Within this block no gradient is computed for the parameters of `network`."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Within this block `network` is in eval mode; then each of its modules has its own mode again."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
