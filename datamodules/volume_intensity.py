"""Intensities of one subject's scans, brought to one scale each by its own voxels: scanners have no common unit."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Intensity = Literal["zscore_nonzero", "zscore", "percentiles_nonzero", "percentiles", "none"]

PERCENTILES = (0.5, 99.5)
"""What becomes 0 and 1: a few bright voxels (vessels, artefacts) do not set the scale."""


def normalise_intensity(image: Tensor, intensity: Intensity) -> Tensor:
    """Normalise each channel by itself, in place.

    - `zscore`: mean 0 and standard deviation 1;
    - `percentiles`: the 0.5th percentile becomes 0, the 99.5th 1, and what lies outside is clipped;
    - with `_nonzero`: by the voxels that are not 0 alone; the others, which a skull-stripped scan has around the brain,
      stay 0;
    - `none`: as stored.

    A channel without contrast becomes 0.

    Args:
        image: float32 (C, *size).
        intensity: How.

    Returns:
        `image`.
    """
    if intensity == "none":
        return image
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
