"""Intensities of a subject's scans, brought to one scale: each by its own voxels, or by a window in the files' unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Intensity = Literal["zscore_nonzero", "zscore", "percentiles_nonzero", "percentiles", "none"]
Window = tuple[float, float]
"""The grey values that become 0 and 1."""

PERCENTILES = (0.5, 99.5)
"""What becomes 0 and 1: a few bright voxels (vessels, artefacts) do not set the scale."""


def check_intensity(intensity: Intensity | Sequence[float]) -> Intensity | Window:
    """`intensity`, which must be a name or a window.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(intensity, str):
        if intensity in get_args(Intensity):
            return intensity
    elif len(intensity) == 2:
        low, high = map(float, intensity)
        if -math.inf < low < high < math.inf:
            return low, high
    raise ValueError(
        f"intensity must be one of {', '.join(get_args(Intensity))}, or a window of two grey values such as "
        f"[-160, 240], the lower one first, got {intensity!r}."
    )


def normalise_intensity(image: Tensor, intensity: Intensity | Window) -> Tensor:
    """Normalise each channel by itself, in place.

    - `zscore`: mean 0 and standard deviation 1;
    - `percentiles`: the 0.5th percentile becomes 0, the 99.5th 1, and what lies outside is clipped;
    - with `_nonzero`: by the voxels that are not 0 alone; the others, which a skull-stripped scan has around the brain,
      stay 0;
    - a window (low, high), in the unit of the files: low becomes 0, high 1, and what lies outside is clipped. In
      computed tomography that is Hounsfield units, in which tissues have values of their own (air -1000, water 0), that
      the other ways lose;
    - `none`: as stored.

    A channel without contrast becomes 0, except with a window and `none`.

    Args:
        image: float32 (C, *size).
        intensity: How.

    Returns:
        `image`.
    """
    if intensity == "none":
        return image
    if not isinstance(intensity, str):
        low, high = intensity
        return image.sub_(low).div_(high - low).clamp_(0, 1)
    method, _, region = intensity.partition("_")
    for channel in image:
        inside = channel != 0 if region == "nonzero" else torch.ones_like(channel, dtype=torch.bool)
        values = channel[inside]
        if len(values):
            channel[inside] = _standardised(values) if method == "zscore" else _between_percentiles(values)
    return image


def _standardised(values: Tensor) -> Tensor:
    # float64: a sum of ten million float32 values loses digits.
    mean, deviation = values.double().mean(), values.double().std(correction=0)
    return ((values - mean) / (deviation if deviation > 0 else 1.0)).to(values.dtype)


def _between_percentiles(values: Tensor) -> Tensor:
    low, high = np.percentile(values.numpy(), PERCENTILES)  # torch.quantile refuses more than 16 million values
    return ((values - low) / (high - low if high > low else 1.0)).clamp_(0, 1).to(values.dtype)
