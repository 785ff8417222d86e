"""Seeded subsets of a training set, stratified where it has labels."""

import torch
from torch import Tensor

from datamodules.sampling import generator_for


def check_split(train_size: int | None, val_size: int, available: int | None) -> None:
    """Refuse sizes that `available` training samples (None: not known yet) cannot give.

    Raises:
        ValueError: Names the keys and the largest value.
    """
    if val_size < 0:
        raise ValueError(f"val_size must be 0 (no validation) or more, got {val_size}.")
    if train_size is not None and train_size < 1:
        raise ValueError(f"train_size must be at least 1, or null for everything outside val_size, got {train_size}.")
    wanted = (1 if train_size is None else train_size) + val_size
    if available is not None and wanted > available:
        raise ValueError(
            f"train_size ({train_size}) and val_size ({val_size}) share the {available} training samples: with this "
            f"val_size, train_size is at most {max(available - val_size, 0)}."
        )


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """An order of all samples, f(seed), whose every beginning and every end holds each class in proportion.

    With equally large classes, the class counts of a beginning (or end) differ by at most one.

    Args:
        labels: int64 (N,).
        seed: Seed of the order.

    Returns:
        int64 (N,), a permutation.
    """
    shuffled = torch.randperm(len(labels), generator=generator_for("split", seed))
    classes = labels[shuffled]
    counts = torch.bincount(classes)
    by_class = torch.argsort(classes, stable=True)
    rank_in_class = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    # The k-th of a class of n comes at (k + 1/2) / n of the way; equal places are taken in shuffled order.
    place = torch.empty(len(labels), dtype=torch.float64)
    place[by_class] = (rank_in_class.double() + 0.5) / counts.repeat_interleave(counts)
    return shuffled[torch.argsort(place, stable=True)]


def stratified_split(labels: Tensor, train_size: int | None, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (sorted, int64) of the training and of the validation samples, which share none.

    Training samples are the beginning of `stratified_order`, validation samples its end. So for one seed a smaller
    `train_size` is a subset of a larger one, and neither part depends on the size of the other
    (`train_size=None` takes everything outside validation).

    Raises:
        ValueError: The sizes do not fit, see `check_split`.
    """
    return _two_ends(stratified_order(labels, seed), train_size, val_size)


def random_split(count: int, train_size: int | None, val_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """`stratified_split` of `count` samples without labels: the two ends of a random order, f(seed).

    Raises:
        ValueError: The sizes do not fit, see `check_split`.
    """
    return _two_ends(torch.randperm(count, generator=generator_for("split", seed)), train_size, val_size)


def _two_ends(order: Tensor, train_size: int | None, val_size: int) -> tuple[Tensor, Tensor]:
    check_split(train_size, val_size, len(order))
    end = len(order) - val_size
    return order[:end][:train_size].sort().values, order[end:].sort().values
