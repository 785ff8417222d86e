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
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from models.names import check_name, option_names

Total = Callable[[Tensor], Tensor]
VolumeWeights = Literal["square", "simple", "uniform"]
_POWERS = {"square": 2, "simple": 1, "uniform": 0}


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
    probabilities, truth = _probabilities_and_truth(logits, target, ignore_index)
    classes = torch.arange(logits.shape[1], device=logits.device)
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


def generalized_dice(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    volume_weights: VolumeWeights = "square",
    per_image: bool = False,
    include_background: bool = True,
    total: Total = own,
) -> Tensor:
    """1 - 2 sum_k w_k |A_k B_k| / sum_k w_k (|A_k| + |B_k|) (Sudre et al. 2017), A and B as in `dice`.

    Weights by volume let a small class count as much as a large one. A class that the truth does not hold has no volume
    to weigh by, and takes the largest weight of the others, as in MONAI: what is wrongly taken for it is a mistake as
    bad as the worst. Nothing is added to numerator and denominator: weights of volumes are so small (1e-10 for 100,000
    voxels) that the constants which MONAI adds by default decide its loss. Where the truth holds none of the classes in
    question, the loss is 0.

    Args:
        logits: (N, K, ...).
        target: int64 (N, ...).
        ignore_index: The target of ignored positions.
        volume_weights: w of a class with |B| positions: "square", 1 / |B|^2, "simple", 1 / |B|, or "uniform", 1.
        per_image: Sum up each image by itself, and take the mean over images; else the sums run over the batch.
        include_background: Whether class 0 is in the sums.
        total: Makes a process's sum that of all processes.

    Raises:
        UnknownNameError: Unknown `volume_weights`.
    """
    check_name("volume_weights", volume_weights, get_args(VolumeWeights))
    first = 0 if include_background else 1
    probabilities, truth = (x[:, first:] for x in _probabilities_and_truth(logits, target, ignore_index))
    axes, of_region, of_mean = ((2,), own, total) if per_image else ((0, 2), total, own)
    intersection = of_region((probabilities * truth).sum(axes))
    sizes = of_region(truth.sum(axes))
    both = of_region(probabilities.sum(axes)) + sizes
    weights = sizes.clamp(min=1).to(both.dtype) ** -_POWERS[volume_weights]
    weights = weights.where(sizes > 0, weights.where(sizes > 0, 0).amax(-1, keepdim=True))
    is_there = (sizes > 0).any(-1)
    fraction = 2 * (weights * intersection).sum(-1) / (weights * both).sum(-1).where(is_there, 1)
    return _mean(1 - fraction, is_there, of_mean)


def focal_tversky(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
    gamma: float = 4 / 3,
    per_image: bool = False,
    include_background: bool = True,
    total: Total = own,
) -> Tensor:
    """(1 - T)^(1 / gamma), the mean over classes, of Tversky's index T = TP / (TP + a FP + b FN).

    The index is that of Salehi et al. 2017, the loss that of Abraham and Khan 2019, who take the sum over classes. TP,
    FP and FN are sums of probabilities. With a = b = 1/2 and gamma 1 it is `dice`. As there, only classes that the
    truth holds are in the mean; MONAI's `TverskyLoss` has all of them in it, and one without truth counts 1 there,
    whatever is predicted.

    Args:
        logits: (N, K, ...).
        target: int64 (N, ...).
        ignore_index: The target of ignored positions.
        false_positive_weight: a, positive: alpha of Salehi and of MONAI, beta of Abraham and Khan.
        false_negative_weight: b, positive.
        gamma: Positive; above 1 the loss falls steeply only where T is near 1: what is hard counts more.
        per_image: As in `dice`.
        include_background: Whether class 0 is in the mean.
        total: Makes a process's sum that of all processes.

    Raises:
        ValueError: An option out of range.
    """
    options = {"false_positive_weight": false_positive_weight, "false_negative_weight": false_negative_weight}
    for name, value in {**options, "gamma": gamma}.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    probabilities, truth = _probabilities_and_truth(logits, target, ignore_index)
    axes, of_region, of_mean = ((2,), own, total) if per_image else ((0, 2), total, own)
    hits = of_region((probabilities * truth).sum(axes))
    sizes = of_region(truth.sum(axes))
    false_positives, false_negatives = of_region(probabilities.sum(axes)) - hits, sizes - hits
    classes = torch.arange(logits.shape[1], device=logits.device)
    is_there = (sizes > 0) & (classes >= (0 if include_background else 1))
    wrong = false_positive_weight * false_positives + false_negative_weight * false_negatives
    share = wrong / (hits + wrong).where(is_there, 1)
    # Away from 0, where powers below 1 have no gradient.
    return _mean(share.clamp(min=torch.finfo(share.dtype).tiny) ** (1 / gamma), is_there, of_mean)


SEGMENTATION_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "focal_tversky": focal_tversky,
    "generalized_dice": generalized_dice,
}


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


def _probabilities_and_truth(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Of each class its probabilities and, bool, where it is true, (N, K, positions); both 0 where ignored."""
    probabilities = _full_precision(logits).flatten(2).softmax(1)
    classes = torch.arange(logits.shape[1], device=logits.device)
    target = target.flatten(1).unsqueeze(1)
    is_known = target != ignore_index
    return probabilities * is_known, (target == classes.unsqueeze(1)) & is_known


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
