"""What every task shares: the network from the registry, its optimiser, and the watch over non-finite losses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from models import create_model
from models.convs import geometry_parameters

# As in `lightning.pytorch.cli`, which is not imported here because it needs jsonargparse.
OptimizerCallable = Callable[[Iterable], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]


class NonFiniteLossError(RuntimeError):
    """The loss, or the weights after an update, were not finite; the message names the step."""


def run_seed() -> int:
    """The run's seed, as `seed_everything` left it; 0 where nothing was seeded."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class BaseTask(LightningModule):
    """A network of the registry and its optimiser; subclasses add the loss and the metrics.

    Args:
        model: A name of `models.list_models()`, or `timm/<name>`.
        model_options: Options of that network.
        conv: The convolution variant, a name or `{name: ..., **options}`, replaced as a whole by an override.
        in_channels: Channels of the images; the command line links it from the data.
        num_classes: Number of classes; the command line links it from the data.
        optimizer: Called with the parameter groups.
        lr_scheduler: Called with the optimiser; stepped once per optimiser step (`ReduceLROnPlateau` once per epoch).
            A `total_steps` of None is filled in with the number of steps of the whole fit.
        geometry_lr_factor: The learning rate of geometry parameters (scales, shifts, angles of synthesised filters) as
            a multiple of the others'. They are a group of their own, without weight decay.
        compile: Compile the network with `torch.compile`, in place: checkpoints stay interchangeable.
    """

    monitor: str | None
    mode: str
    clipping = "trainer.gradient_clip_val"  # the option that clips gradients
    first_bad_step: Tensor

    def __init__(
        self,
        model: str,
        model_options: dict[str, Any] | None = None,
        conv: str | dict[str, Any] = "standard",
        in_channels: int = 3,
        num_classes: int | None = 10,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        geometry_lr_factor: float = 1.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "discriminator_optimizer", "lr_scheduler"])
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.geometry_lr_factor = geometry_lr_factor
        if linked := {"in_channels", "num_classes", "conv"} & set(model_options or {}):
            raise ValueError(f"model_options must not hold {sorted(linked)}: they are arguments of the task itself")
        self.network: nn.Module = create_model(
            model, conv=conv, in_channels=in_channels, num_classes=num_classes, **(model_options or {})
        ).to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()
        # Step of the first non-finite loss, -1 while there is none. It stays on the device until somebody must know.
        self.register_buffer("first_bad_step", torch.tensor(-1), persistent=False)
        self.configure_metrics()

    def configure_metrics(self) -> None:
        """Create the metrics of the task, as modules, so that they follow it to its device."""

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def networks(self, image_shape: tuple[int, ...]) -> list[tuple[nn.Module, tuple[int, ...]]]:
        """The networks of the task, each with the shape of its input where images have `image_shape`."""
        return [(self.network, image_shape)]

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """The trainable parameters once each: the weights, and the geometry (if any) without weight decay."""
        geometry = [p for p in geometry_parameters(network) if p.requires_grad]
        known = {id(p) for p in geometry}
        weights = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
        groups: list[dict[str, Any]] = [{"params": weights, "name": "weights"}]
        if geometry:
            groups.append({"params": geometry, "name": "geometry", "weight_decay": 0.0})
        return groups

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = self.optimise(self.network, self.optimizer)
        if scheduler is None:
            return optimizer
        if isinstance(scheduler, ReduceLROnPlateau):
            monitor = getattr(scheduler, "monitor", self.monitor)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimise(self, network: nn.Module, optimizer: OptimizerCallable) -> tuple[Optimizer, LRScheduler | None]:
        """The optimiser of `network`, its learning rates set, and the schedule of them, if there is one."""
        made = optimizer(self.parameter_groups(network))
        for group in made.param_groups:
            if group["name"] == "geometry":
                group["lr"] *= self.geometry_lr_factor
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(made)
        if getattr(scheduler, "total_steps", 0) is None:
            scheduler.total_steps = int(self.trainer.estimated_stepping_batches)  # type: ignore[union-attr]
        return made, scheduler

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Noise drawn while training (dropout, say) is a function of seed, step and rank: a resumed run draws the same.
        torch.manual_seed(hash((run_seed(), self.global_step, self.global_rank)) % 2**63)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.check_finite()

    def watch(self, loss: Tensor, step: int | None = None) -> None:
        """Remember, on the device, the first step whose loss is not finite; `step` is the running one by default."""
        bad = ~torch.isfinite(loss.detach()) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, self.global_step if step is None else step, self.first_bad_step)

    def check_finite(self) -> None:
        """Raise `NonFiniteLossError` if a loss was not finite so far. Reads from the device."""
        step = int(self.first_bad_step)
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss of step {step} is not finite; the last checkpoint is from before that step. "
                f"Lower the learning rate, clip gradients ({self.clipping}), or train in full precision."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        bad = [name for name, value in checkpoint["state_dict"].items() if not _finite(value)]
        if bad:
            raise NonFiniteLossError(
                f"weights are not finite after step {self.global_step - 1} (first: {bad[0]}); "
                "this checkpoint is not written, the last one stays. Lower the learning rate or clip gradients."
            )

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """As in Lightning; through `BaseTask` it gives the task that the checkpoint names."""
        if cls is BaseTask:
            return LightningModule.load_from_checkpoint(*args, **kwargs)
        return super().load_from_checkpoint(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise ValueError(
                f"this checkpoint belongs to another network than model={self.hparams['model']!r} with "
                f"conv={self.hparams['conv']!r}. {error}"
            ) from error


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
