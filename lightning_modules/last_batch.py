"""The last batch of an epoch, where it holds one sample: batch norm cannot be trained on one value a channel."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, IterableDataset

from lightning_modules.sync_batch_norm import CPUSyncBatchNorm


def has_single_last_batch(trainer: Trainer) -> bool:
    """Whether this fit comes to the end of an epoch whose last batch has one sample, in this process.

    False where nobody knows: data that are streamed, or drawn by a sampler without a length.
    """
    loader: Any = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return False
    if isinstance(loader.dataset, IterableDataset) or not isinstance(loader.sampler, Sized):
        return False
    batches = len(loader)
    is_reached = trainer.num_training_batches >= batches and not (
        0 <= trainer.max_steps * trainer.accumulate_grad_batches < batches
    )
    samples = len(loader.sampler)
    return is_reached and min(samples - (batches - 1) * loader.batch_size, loader.batch_size) == 1


def check_single_sample(network: nn.Module, sample: Tensor, batch_size: int) -> None:
    """Refuse to train `network` on a batch of one sample, where a batch norm would see one value a channel.

    The network computes once, without a trace: nothing in it changes, and random numbers go on as if nothing was drawn.
    What would move or drop something in training is in evaluation mode meanwhile. What only holds other modules is not:
    networks that pass volumes slice by slice may pass fewer at once in evaluation.

    Args:
        network: As it is when it is trained.
        sample: What the network takes, (1, ...).
        batch_size: Of the other batches.

    Raises:
        ValueError: There is such a batch norm; the message names it and the mend.
    """
    names = {module: name for name, module in network.named_modules()}
    modes = {module: module.training for module in names}
    norms = [module for module in names if isinstance(module, _BatchNorm) and _is_alone(module)]
    hooks = [norm.register_forward_pre_hook(_stop_at_single_value) for norm in norms]
    for module in names:
        if not _only_holds_others(module):
            module.training = False  # its children are looked at one by one
    try:
        with torch.no_grad(), isolate_rng():
            network.forward(sample)  # as it is written, where it is compiled
    except _SingleValue as stopped:
        mend = (
            "set data.batch_size to 2 or more"
            if batch_size == 1
            else "set data.drop_last to true, or data.batch_size to another number"
        )
        raise ValueError(
            f"an epoch ends with a batch of one sample{_a_process()}, where data.batch_size is {batch_size}, and of an "
            f"input {tuple(sample.shape)} {names[stopped.norm]!r} sees one value a channel: batch norm cannot be "
            f"trained on that. To avoid it, {mend}; or use larger images"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode


class _SingleValue(Exception):
    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm


def _stop_at_single_value(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if inputs[0].numel() == inputs[0].shape[1]:
        raise _SingleValue(norm)


def _only_holds_others(module: nn.Module) -> bool:
    has_buffers = any(True for _ in module.buffers(recurse=False))
    return any(True for _ in module.children()) and not has_buffers and not isinstance(module, _BatchNorm)


def _is_alone(norm: _BatchNorm) -> bool:
    """Whether it is trained, on the values of this process alone."""
    return norm.training and not (isinstance(norm, nn.SyncBatchNorm | CPUSyncBatchNorm) and _processes() > 1)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _a_process() -> str:
    return " a process" if _processes() > 1 else ""
