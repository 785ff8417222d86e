"""What every task shares: the network from the registry, its optimiser, and the watch over non-finite losses."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_modules.batch_norm import evaluate_batch_norms, freeze_batch_norms, set_momentum
from lightning_modules.freezing import evaluate_frozen, freeze_all_but
from lightning_modules.last_batch import check_single_sample, has_single_last_batch
from lightning_modules.learning_rates import apply_factors, parameter_groups
from lightning_modules.weights import STARTED_FROM, TASK_PREFIX, load_pretrained, share_weights, starting_point
from models import create_model
from models.names import check_name
from models.registry import network_options

# As in `lightning.pytorch.cli`, which is not imported here because it needs jsonargparse.
OptimizerCallable = Callable[[Iterable], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


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
            A `total_steps` of None is filled in with the number of steps of the whole fit, a `steps_an_epoch` of
            None with that of an epoch.
        geometry_lr_factor: The learning rate of geometry parameters (scales, shifts, angles of synthesised filters) as
            a multiple of the others'. They are a group of their own, without weight decay.
        compile: Compile the network with `torch.compile`, in place: checkpoints stay interchangeable.
        init_from: Start from the weights of this file: a checkpoint of the suite, a run folder (its best one), a state
            dict such as torchvision publishes, or a checkpoint of the network's authors, where the network knows it.
        init_skip: Shell-style patterns of the network's parameters that keep their own initialisation (a new head, a
            replaced layer); what only the file has may be named too. Every other name and shape must agree.
        fit_replaced: Initialise the layers of `init_skip` that synthesise their filters (Gaussian derivatives ...) by
            least squares to the filters that `init_from` has in their place; see `models.convs.fitting`.
        trainable: Shell-style patterns of the network's parameters that are trained. All others are frozen, and all
            modules that are not within what is named are in evaluation mode: no batch norm moves its statistics there,
            no dropout drops. It saves memory, and time where the trained layers are the last ones: the gradient of a
            first layer passes through all others anyway. Default: everything is trained.
        lr_factors: Shell-style patterns of the network's parameters, each with a factor on their learning rate,
            `{"segmentation_head.conv*.bias": 20, "segmentation_head.*": 10}`, which schedules scale with. The first
            pattern that matches counts; geometry has both factors. Parameter groups, and so the learning rates in the
            log, are named by the patterns.
        batch_norm_momentum: The share of a batch in the running statistics of all batch norms (torch's convention: an
            average that decays by 0.99 has momentum 0.01); default: as the network has it.
        freeze_batch_norm: All batch norms use the statistics that they start with and leave them, and their gains and
            shifts are not trained. For fine-tuning from a checkpoint: `init_from`.
        select: Which weights of a training count, in `fit_test` and where another run starts from this one: "best" on
            validation (the default), or "last", for data whose validation images are also the test, and for schedules
            that end at a learning rate of 0. Then there is no best.ckpt.

    `init_from`, and `pretrained: true` among the options of a network, are read when a fit or an evaluation begins that
    has no checkpoint (see `load_initial_weights`): what is resumed or loaded from a checkpoint needs no other file.

    Attributes:
        network_spec: What `models.create_model` builds the network by; checkpoints hold it under "network".
    """

    monitor: str | None
    mode: str
    head: str | None = None  # what backbones end in, where the task asks for it: "classify" or "segment"
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
        init_from: str | None = None,
        init_skip: list[str] | None = None,
        fit_replaced: bool | None = None,
        trainable: list[str] | None = None,
        lr_factors: dict[str, float] | None = None,
        batch_norm_momentum: float | None = None,
        freeze_batch_norm: bool | None = None,
        select: Literal["best", "last"] | None = None,
    ) -> None:
        super().__init__()
        check_name("select", select or "best", ("best", "last"))
        if select == "last":
            self.monitor = None
        self.save_hyperparameters(
            ignore=["optimizer", "discriminator_optimizer", "lr_scheduler", "inference", "subject_measures"]
        )
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.geometry_lr_factor = geometry_lr_factor
        self.is_pretrained = bool((model_options or {}).get("pretrained"))
        self.starting_point = starting_point(init_from, init_skip or (), bool(fit_replaced), self.is_pretrained)
        self.network_spec = self._network_spec(model, conv, in_channels, num_classes, dict(model_options or {}))
        self.network = to_channels_last(create_model(**self.network_spec))
        self.holds_weights = False  # others than the network was built with
        self.started_from: str | None = None  # SHA-256 of the file of init_from
        self.trainable = trainable
        self.lr_factors = lr_factors or {}
        self.freeze_batch_norm = bool(freeze_batch_norm)
        if batch_norm_momentum is not None:
            set_momentum(self.network, batch_norm_momentum)
        if trainable:
            freeze_all_but(self.network, trainable)
        if self.freeze_batch_norm:
            freeze_batch_norms(self.network)
        self._evaluate_frozen()
        self.parameter_groups(self.network)  # raises now what is wrong with lr_factors, not after the data are read
        if self.starting_point is not None:
            self.starting_point.check(self.network)
        if compile:
            self.network.compile()
        # Step of the first non-finite loss, -1 while there is none. It stays on the device until somebody must know.
        self.register_buffer("first_bad_step", torch.tensor(-1), persistent=False)
        self.configure_metrics()

    def _network_spec(
        self,
        model: str,
        conv: str | dict[str, Any],
        in_channels: int,
        num_classes: int | None,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        if linked := {"in_channels", "num_classes", "conv", "head"} & set(options):
            raise ValueError(f"model_options must not hold {sorted(linked)}: the task itself says that")
        if self.head is not None and "head" in network_options(model):
            options["head"] = self.head
        if self.is_pretrained:
            options["pretrained"] = False  # until these weights are wanted: a checkpoint may bring others
        return {"name": model, "conv": conv, "in_channels": in_channels, "num_classes": num_classes, **options}

    def configure_metrics(self) -> None:
        """Create the metrics of the task, as modules, so that they follow it to its device."""

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def load_initial_weights(self) -> None:
        """Give the network the weights of `init_from` or `pretrained`, unless it has loaded weights already.

        Comes by itself when a fit or an evaluation begins; without a Trainer it is to be called.

        Raises:
            CheckpointError: The file of `init_from` is missing or damaged.
            ValueError: It holds weights of another network; the message lists what differs.
            OSError: `pretrained` weights cannot be had.
        """
        if self.holds_weights:
            return
        if self.starting_point is not None:
            self.started_from = self.starting_point.load(self.network)
        elif self.is_pretrained:
            load_pretrained(self.network, self.network_spec, run_seed())
        self.holds_weights = True

    def on_fit_start(self) -> None:
        """Comes, as the hooks of evaluations below, once a checkpoint has been loaded."""
        if self.trainable or self.freeze_batch_norm:
            # Lightning warns of modules in evaluation mode.
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
        if not self.holds_weights and (self.starting_point is not None or self.is_pretrained):
            self.load_initial_weights()
            share_weights(self.network)

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def check_test(self, data: Any) -> None:
        """Raise now, not after a training, what would stop a test.

        Args:
            data: The data module; its test set is opened, which is then kept.

        Raises:
            FileNotFoundError, DamagedFileError, ValueError: As `BaseDataModule.check_test`.
        """
        data.check_test()

    def train(self, mode: bool = True) -> BaseTask:
        super().train(mode)
        self._evaluate_frozen()
        return self

    def _evaluate_frozen(self) -> None:
        if self.trainable:
            evaluate_frozen(self.network, self.trainable)
        if self.freeze_batch_norm:
            evaluate_batch_norms(self.network)

    def networks(self, image_shape: tuple[int, ...]) -> list[tuple[nn.Module, tuple[int, ...]]]:
        """The networks of the task, each with the shape of its input where images have `image_shape`."""
        return [(self.network, image_shape)]

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """The trainable parameters once each, in the groups that `lightning_modules.learning_rates` describes."""
        return parameter_groups(network, self.lr_factors, self.geometry_lr_factor)

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
        apply_factors(made)
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(made)
        if getattr(scheduler, "total_steps", 0) is None:
            scheduler.total_steps = int(self.trainer.estimated_stepping_batches)  # type: ignore[union-attr]
        if getattr(scheduler, "steps_an_epoch", 0) is None:
            scheduler.steps_an_epoch = self._steps_an_epoch()  # type: ignore[union-attr]
        return made, scheduler

    def _steps_an_epoch(self) -> int:
        self.trainer.fit_loop.setup_data()  # before that nobody knows how many batches there are
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    def on_train_start(self) -> None:
        self._is_last_batch_checked = False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Noise drawn while training (dropout, say) is a function of seed, step and rank, and of the place among the
        # batches that are accumulated for the step: a resumed run draws the same.
        part = batch_idx % self.trainer.accumulate_grad_batches
        key = (run_seed(), self.global_step, self.global_rank, *([part] if part else []))
        torch.manual_seed(hash(key) % 2**63)
        if not self._is_last_batch_checked and has_single_last_batch(self.trainer):
            self._check_single_sample(batch["image"])
        self._is_last_batch_checked = True  # all epochs of a fit end alike

    def _check_single_sample(self, images: Tensor) -> None:
        """Raise `ValueError` now, not after the steps of a whole epoch, where its last batch cannot be trained on."""
        loader: Any = self.trainer.train_dataloader
        for network, shape in self.networks((1, *images.shape[1:])):
            check_single_sample(network, images.new_zeros(shape), loader.batch_size)

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
        checkpoint["network"] = self.network_spec
        checkpoint[STARTED_FROM] = self.started_from
        self.check_finite()
        bad = [name for name, value in checkpoint["state_dict"].items() if not _finite(value)]
        if bad:
            raise NonFiniteLossError(
                f"weights are not finite after step {self.global_step - 1} (first: {bad[0]}); "
                "this checkpoint is not written, the last one stays. Lower the learning rate or clip gradients."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.started_from = checkpoint.get(STARTED_FROM)
        self.holds_weights = True

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """As in Lightning; through `BaseTask` it gives the task that the checkpoint names."""
        if cls is BaseTask:
            return LightningModule.load_from_checkpoint(*args, **kwargs)
        return super().load_from_checkpoint(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        try:
            loaded = super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise ValueError(
                self._other_classes(state_dict)
                or f"this checkpoint belongs to another network than model={self.hparams['model']!r} with "
                f"conv={self.hparams['conv']!r}. {error}"
            ) from error
        self.holds_weights = True
        return loaded

    def _other_classes(self, state_dict: Mapping[str, Any]) -> str | None:
        """What to say of weights for another number of classes; None where they differ in more than that."""
        own, here = self.state_dict(), self.network_spec["num_classes"]
        if own.keys() != state_dict.keys():
            return None
        theirs = {name: state_dict[name].shape for name in own if state_dict[name].shape != own[name].shape}
        if not all(shape and own[name].shape == (here, *shape[1:]) for name, shape in theirs.items()):
            return None
        classes = {shape[0] for shape in theirs.values()}
        if len(classes) != 1:
            return None
        layers = dict.fromkeys(f"{name.removeprefix(TASK_PREFIX).rpartition('.')[0]}.*" for name in theirs)
        return (
            f"{self._other_logits(classes.pop())}, or, in place of --ckpt_path, start from it with model.init_from and "
            f"init_skip: [{', '.join(layers)}]"
        )

    def _other_logits(self, theirs: int) -> str:
        """What to say of a checkpoint with another number of logits, `theirs`, and what to do about it."""
        return (
            f"this checkpoint is for {theirs} classes, and here there are {self.hparams['num_classes']}; the rest of "
            "the network is the same. Evaluate it on the classes that it was trained for"
        )


@contextmanager
def naming_files(batch: Mapping[str, Any]) -> Iterator[None]:
    """What the network says against the images of a batch in this block is preceded by their files, if they have any.

    Raises:
        ValueError: As within the block.
    """
    try:
        yield
    except ValueError as error:
        if "file" not in batch:
            raise
        raise ValueError(f"{', '.join(batch['file'])}: {error}") from error


def to_channels_last(network: nn.Module) -> nn.Module:
    """The network, its filters in the memory order that convolutions of images, or of volumes, are fastest with."""
    if getattr(network, "dimensions", 2) == 2:
        return network.to(memory_format=torch.channels_last)
    for tensor in (
        *network.parameters(),
        *network.buffers(),
    ):  # of which `Module.to` would take all for volumes' filters
        if tensor.ndim in _CHANNELS_LAST:
            tensor.data = tensor.data.contiguous(memory_format=_CHANNELS_LAST[tensor.ndim])
    return network


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())
