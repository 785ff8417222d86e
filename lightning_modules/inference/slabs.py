"""What becomes of the logits of a whole image, slab by slab: a volume's take gigabytes, and each copy as many again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[..., Tensor]

SLAB_VALUES = 2**24  # 64 MiB of float32; most images are one slab


def slabs(logits: Tensor, *masks: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of logits (N, K, *size), and of masks (N, *size), cut across the first spatial axis."""
    thickness = max(1, SLAB_VALUES // logits[:, :, 0].numel())
    cut = (logits.split(thickness, 2), *(mask.split(thickness, 1) for mask in masks))
    return list(zip(*cut, strict=True))


def likeliest(logits: Tensor) -> Tensor:
    """The class of the greatest logit, uint8 (N, *size), of logits (N, K, *size) of 256 classes or fewer."""
    return torch.cat([slab.argmax(1).to(torch.uint8) for (slab,) in slabs(logits)], 1)


@torch.no_grad()
def softmax_(logits: Tensor) -> Tensor:
    """`logits` (N, K, *size), turned into probabilities in place."""
    for (slab,) in slabs(logits):
        slab.copy_(slab.softmax(1))
    return logits


@torch.no_grad()
def loss_in_slabs(loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
    """`loss(logits, target)` of one image, without its gradient.

    Slabs are to the loss what processes are that share a batch: `total` tells it the sums over all of them.

    Args:
        loss: One of `lightning_modules.losses.segmentation`, or a sum of them, that adds up positions alone, not images
            (`per_image`: of one image it is the same). What it hands to `total` must not depend on what comes back.
        logits: (1, K, *size).
        target: int64 (1, *size).
    """
    parts = slabs(logits, target)
    if len(parts) == 1:
        return loss(logits, target)
    sums = zip(*(_sums(loss, *part) for part in parts), strict=True)
    totals = iter([torch.stack(of_slabs).sum(0) for of_slabs in sums])
    return loss(*parts[-1], total=lambda _: next(totals))


def _sums(loss: Loss, logits: Tensor, target: Tensor) -> list[Tensor]:
    """What the loss hands to `total`, in order."""
    handed: list[Tensor] = []

    def total(part: Tensor) -> Tensor:
        handed.append(part)
        return part

    loss(logits, target, total=total)
    return handed
