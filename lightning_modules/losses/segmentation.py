"""Losses of semantic segmentation, as functions of logits and class numbers.

Logits are (N, K, ...), targets int64 (N, ...) with values below K, for any number of spatial dimensions. Positions
whose target is `ignore_index` add nothing to value and gradient; where no other are left, a loss is 0 and its gradient
zeros. Losses are computed in float32, under autocast too (in float64 of float64 logits).

Where several processes share a batch, `total` makes a sum over a process's positions that over the positions of all, as
`lightning_modules.processes.sum_over_processes` does. The mean of the processes' own losses would be another one than
that of the whole batch wherever their positions are ignored, or of a class, in different numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.names import check_name, option_names

Total = Callable[[Tensor], Tensor]


def own(part: Tensor) -> Tensor:
    """The sum over all processes, where there is one."""
    return part


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    total: Total = own,
) -> Tensor:
    """-w_y log p_y of the true class y, summed over all positions, over the sum of their w_y.

    Args:
        logits: (N, K, ...).
        target: int64 (N, ...).
        ignore_index: The target of ignored positions.
        class_weights: w, one positive number a class; default: all equal, which makes the loss the mean.
        label_smoothing: The share of the target, in [0, 1), that is spread over all classes, as in `F.cross_entropy`.
        total: Makes a process's sum that of all processes.

    Raises:
        ValueError: An option out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    weights = None if class_weights is None else _weights("class_weights", class_weights, logits)
    # Not reduced there: on CUDA that is refused where deterministic algorithms are asked for.
    losses = F.cross_entropy(
        _full_precision(logits),
        target,
        weights,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    is_known = target != ignore_index
    shares = is_known if weights is None else weights[target.where(is_known, 0)] * is_known
    denominator = total(shares.sum())
    return total(losses.sum()) / denominator.where(denominator > 0, 1)


def dice(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    per_image: bool = False,
    squared: bool = False,
    include_background: bool = True,
    total: Total = own,
) -> Tensor:
    """1 - 2 |A B| / (|A| + |B|), the mean over classes; A are the probabilities of a class, B is 1 where it is true.

    Only classes that the truth holds are in the mean: of any other the fraction is 0, whatever is predicted, and so is
    its gradient. What is wrongly taken for such a class lowers the probabilities of those that are there.

    Args:
        logits: (N, K, ...).
        target: int64 (N, ...).
        ignore_index: The target of ignored positions.
        per_image: Sum up each image by itself, and take the mean over all classes of all images; else the sums run
            over the batch.
        squared: |A| is the sum of squares, as in V-Net, in place of the sum.
        include_background: Whether class 0 is in the mean. Without it, images of nothing but background teach nothing.
        total: Makes a process's sum that of all processes.
    """
    probabilities = _full_precision(logits).flatten(2).softmax(1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    target = target.flatten(1).unsqueeze(1)
    is_known = target != ignore_index
    truth = (target == classes.unsqueeze(1)) & is_known
    probabilities = probabilities * is_known
    axes, of_region, of_mean = ((2,), own, total) if per_image else ((0, 2), total, own)
    intersection = of_region((probabilities * truth).sum(axes))
    sizes = of_region(truth.sum(axes))
    is_there = (sizes > 0) & (classes >= (0 if include_background else 1))
    both = of_region((probabilities.square() if squared else probabilities).sum(axes)) + sizes
    return _mean(1 - 2 * intersection / both.where(is_there, 1), is_there, of_mean)


def focal(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = None,
    total: Total = own,
) -> Tensor:
    """-alpha_y (1 - p_y)^gamma log p_y of the true class y, the mean over positions (Lin et al. 2017, eq. 5).

    The paper divides by the number of objects instead, which pixels do not have.

    Args:
        logits: (N, K, ...).
        target: int64 (N, ...).
        ignore_index: The target of ignored positions.
        gamma: 0 or more; 0 is cross-entropy.
        alpha: Of each class; or, of two classes, of class 1, where class 0 has 1 - alpha; default: 1.
        total: Makes a process's sum that of all processes.

    Raises:
        ValueError: An option out of range.
    """
    if gamma < 0:
        raise ValueError(f"gamma must be 0 or more, got {gamma}")
    is_known = target != ignore_index
    target = target.where(is_known, 0)
    log_p = _full_precision(logits).log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    # Away from 0, where powers below 1 have no gradient.
    missing = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny)
    losses = -(missing**gamma) * log_p
    if alpha is not None:
        alphas = [1 - alpha, alpha] if isinstance(alpha, int | float) else alpha
        losses = losses * _weights("alpha", alphas, logits)[target]
    return _mean(losses, is_known, total)


SEGMENTATION_LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "dice": dice, "focal": focal}


@dataclass(frozen=True)
class WeightedSum:
    """A sum of losses, called with (logits, target), and `total` where several processes share the batch.

    Attributes:
        terms: The weight and the loss of each.
    """

    terms: Sequence[tuple[float, Callable[..., Tensor]]]

    def __call__(self, logits: Tensor, target: Tensor, total: Total = own) -> Tensor:
        return torch.stack([weight * loss(logits, target, total=total) for weight, loss in self.terms]).sum()


def segmentation_loss(
    loss: str | Mapping[str, float], options: Mapping[str, Mapping[str, Any]] | None, ignore_index: int
) -> WeightedSum:
    """The loss of a configuration.

    Args:
        loss: A name of `SEGMENTATION_LOSSES`, or names with their weights.
        options: Names of losses with the options of each.
        ignore_index: The target of ignored positions.

    Raises:
        UnknownNameError: An unknown loss, an unknown option, or options of a loss that is not in `loss`.
        ValueError: A weight that is not positive, or no loss at all.
    """
    weights = {loss: 1.0} if isinstance(loss, str) else loss
    options = options or {}
    for name in options:
        check_name("key of loss_options (the losses in use have options)", name, weights)
    for name, weight in weights.items():
        check_name("loss", name, SEGMENTATION_LOSSES)
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(
                f"the weight of loss {name!r} must be a positive number, got {weight}: leave out what is 0"
            )
        valid = option_names(SEGMENTATION_LOSSES[name], besides=["logits", "target", "ignore_index", "total"])
        for option in options.get(name, {}):
            check_name(f"option of loss {name!r}", option, valid)
    if not weights:
        raise ValueError(f"loss is empty: name one of {', '.join(sorted(SEGMENTATION_LOSSES))}")
    functions = {
        name: functools.partial(SEGMENTATION_LOSSES[name], ignore_index=ignore_index, **options.get(name, {}))
        for name in weights
    }
    return WeightedSum([(weight, functions[name]) for name, weight in weights.items()])


def _full_precision(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _mean(values: Tensor, counts: Tensor, total: Total) -> Tensor:
    """The mean of those `values` that count (bool), 0 where none does."""
    return total(values.where(counts, 0).sum()) / total(counts.sum()).clamp(min=1)


def _weights(name: str, values: Sequence[float], logits: Tensor) -> Tensor:
    """`values`, one of each class, as a tensor for a loss of `logits`."""
    if len(values) != logits.shape[1] or not all(value > 0 for value in values):
        raise ValueError(f"{name} must be {logits.shape[1]} positive numbers, one a class, got {list(values)}")
    return _on_device(tuple(values), logits.device, torch.promote_types(logits.dtype, torch.float32))


@functools.lru_cache
def _on_device(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Kept, because copying to a GPU waits; made as any other tensor, for the first use may be a validation."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)
