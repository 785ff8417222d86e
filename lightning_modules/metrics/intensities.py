"""What images hold, as counts: grey values of each channel and classes of voxels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 4097
"""Of a channel's histogram; odd, so that 0 is the middle of one."""
LARGEST = 1e4
"""Grey values beyond are counted as this."""
VOXELS = 2**16
"""Of each image whose grey values are counted, at most."""

_SCALE = (BINS - 1) / (2 * math.asinh(LARGEST))
GREY_VALUES = torch.sinh((torch.arange(BINS, dtype=torch.float64) - BINS // 2) / _SCALE)
"""The grey value in the middle of each bin: bins are 0.005 wide about 0, and half a percent of large values."""


class SampleStatistics:
    """The distribution of grey values, for each channel, and of classes over all voxels of some images.

    Only counts are kept: those of parts of the data add up to those of all of it, in whatever order and process they
    were counted. Grey values are counted in bins (`GREY_VALUES`), those of every k-th voxel of an image, so that there
    are `VOXELS` of them or fewer; classes in all voxels.

    Args:
        num_classes: Number of classes.
        counts: As `counts` of others, in the same process or not; None: nothing is counted yet.

    Attributes:
        counts: int64 (num_classes + channels * BINS,): the voxels of each class, then the histogram of each channel;
            on the device of the images.
    """

    def __init__(self, num_classes: int, counts: Tensor | None = None) -> None:
        self.num_classes = num_classes
        self.counts = counts

    def update(self, images: Tensor, masks: Tensor) -> None:
        """Count images (N, C, *size) and the classes in masks (N, *other size); other values than classes are not."""
        channels = images.shape[1]
        if self.counts is None:
            self.counts = torch.zeros(self.num_classes + channels * BINS, dtype=torch.int64, device=images.device)
        voxels = images.flatten(2)
        values = voxels[..., :: _stride(voxels.shape[-1])].float().nan_to_num(nan=0.0)
        bins = (values.asinh() * _SCALE).round().long().clamp(-(BINS // 2), BINS // 2) + BINS // 2
        bins += self.num_classes + BINS * torch.arange(channels, device=bins.device)[:, None]
        # Not bincount, for whose result a GPU would have to be waited for.
        self.counts.index_add_(0, bins.flatten(), torch.ones_like(bins).flatten())
        for number in range(self.num_classes):
            self.counts[number] += (masks == number).sum()

    def frequencies(self) -> Tensor:
        """The share of each class among the voxels that are of any, float64 (num_classes,)."""
        assert self.counts is not None
        classes = self.counts[: self.num_classes].cpu().double()
        return classes / classes.sum()

    def distributions(self) -> Tensor:
        """The share of each bin in each channel, float64 (C, BINS)."""
        assert self.counts is not None
        histograms = self.counts[self.num_classes :].view(-1, BINS).cpu().double()
        return histograms / histograms.sum(1, keepdim=True)

    def mean(self) -> Tensor:
        """Of each channel, float64 (C,)."""
        return self.distributions() @ GREY_VALUES

    def std(self) -> Tensor:
        """The standard deviation of each channel, float64 (C,)."""
        return (self.distributions() @ GREY_VALUES**2 - self.mean() ** 2).clamp(min=0).sqrt()

    def quantile(self, level: float) -> Tensor:
        """The smallest grey value with `level` of all at or below it, in each channel, float64 (C,)."""
        reached = self.distributions().cumsum(1) >= level * (1 - 1e-12)
        return GREY_VALUES[reached.int().argmax(1)]


def grey_value_distance(one: SampleStatistics, other: SampleStatistics) -> Tensor:
    """How far grey values have to be moved from one distribution to the other on average, for each channel.

    The Wasserstein distance of order 1, in standard deviations of `other`: float64 (C,). 0 between equal constants.
    """
    differences = (one.distributions() - other.distributions()).cumsum(1)[:, :-1].abs()
    return (differences @ GREY_VALUES.diff() / other.std()).nan_to_num(nan=0.0, posinf=math.inf)


def class_distance(one: SampleStatistics, other: SampleStatistics) -> Tensor:
    """The share of voxels whose class would have to change: total variation, 0 to 1."""
    return (one.frequencies() - other.frequencies()).abs().sum() / 2


def _stride(voxels: int) -> int:
    """The least step that takes `VOXELS` or fewer; coprime, so that those taken do not all lie in a few planes."""
    step = -(-voxels // VOXELS)
    while math.gcd(step, voxels) > 1:
        step += 1
    return step
