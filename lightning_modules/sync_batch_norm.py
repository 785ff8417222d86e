"""Batch norm over the batches of all processes, on CPUs too: `Trainer(plugins=[SyncBatchNormPlugin()])`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_modules.processes import sum_over_processes

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncBatchNormPlugin(TorchSyncBatchNorm):
    """Synchronises the batch norms of a task while it is fitted by several processes.

    On accelerators the layers act as `torch.nn.SyncBatchNorm`, which refuses CPU tensors, and on CPUs as
    `CPUSyncBatchNorm`. A layer changes its class, not its identity: parameters, buffers, hooks, the names in
    checkpoints and whatever refers to it stay. Afterwards every layer is what it was.

    It may stand beside `Trainer(sync_batchnorm=True)`, whose own plugin it replaces, and works without it.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise the batch norms in `model`, in place, for the device that its Trainer has chosen.

        Raises:
            ValueError: A subclass of torch's batch norms, which may compute something else; the layer is named.
        """
        if not isinstance(model, LightningModule):
            raise TypeError(f"expected a LightningModule that is attached to a Trainer, got {type(model).__name__}")
        return synchronise(model, model.trainer.strategy.root_device)

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo `apply`, in place."""
        for module in model.modules():
            if isinstance(module, CPUSyncBatchNorm | _TorchSyncBatchNorm):
                module.__class__ = module.__dict__.pop("plain_class")
        return model


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Make the batch norms in `model` act over all processes on devices of this kind. See `SyncBatchNormPlugin`."""
    for name, module in model.named_modules():
        if type(module) in _PLAIN:
            module.plain_class = type(module)
            module.__class__ = CPUSyncBatchNorm if device.type == "cpu" else _TorchSyncBatchNorm
        elif isinstance(module, _BatchNorm) and not isinstance(module, CPUSyncBatchNorm | _TorchSyncBatchNorm):
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__}, not one of torch's own batch norms, and cannot be "
                "synchronised between processes: set trainer.sync_batchnorm to false, or choose another network"
            )
    return model


class _TorchSyncBatchNorm(nn.SyncBatchNorm):
    """torch's own, as the class that a batch norm changes to: what its constructor would set is set here."""

    process_group = None  # all processes


class CPUSyncBatchNorm(_BatchNorm):
    r"""Batch norm whose statistics are those of the batches of all processes together.

    Maps (N, C, ...) to the same shape, y = \gamma (x - E[x]) / sqrt(Var[x] + eps) + \beta per channel, in float32 at
    least. Processes may have different batch sizes. Outputs, gradients of every order and running statistics are those
    of `nn.BatchNorm` on the concatenated batch; gradients of gamma and beta are the process's own share of the sum.
    In eval mode, and in one process, it is `nn.BatchNorm`.

    Raises:
        ValueError: Fewer than two dimensions, or one value a channel in all processes together.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions (batch, channels, ...), got a tensor {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
        if alone or not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        dims = [0, *range(2, x.dim())]
        per_channel = (-1, *(1,) * (x.dim() - 2))

        sums = values.sum(dims)
        totals = sum_over_processes(torch.cat([sums, sums.new_tensor([x.numel() / x.shape[1]])]))
        count = totals[-1].detach()
        if count <= 1:
            raise ValueError(f"expected more than 1 value a channel in all processes together, got {tuple(x.shape)}")
        mean = totals[:-1] / count
        # A second exchange, since the variance as a difference of two sums would lose its digits.
        centred = values - mean.view(per_channel)
        variance = sum_over_processes(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))

        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (centred * scale.view(per_channel)).to(x.dtype)
        scale = scale * self.weight
        return torch.addcmul(self.bias.view(per_channel), centred, scale.view(per_channel)).to(x.dtype)

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        if not self.track_running_stats:  # switched off after construction: the buffers are there and stay
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), momentum)
