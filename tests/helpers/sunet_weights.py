"""Weights under the names of the SUNet authors: names and shapes of their files, filled by rule."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

COLUMNS = {  # of Table 1: N, modules and features of each block
    "sunet_64": (64, (2, 4, 4, 1), (256, 512, 768, 1024)),
    "sunet_128": (128, (2, 4, 4, 1), (512, 1024, 1536, 2048)),
    "sunet_7_128": (128, (2, 7, 7, 1), (512, 1280, 2048, 2304)),
}


def official_shapes(filters: int, depths: Sequence[int], widths: Sequence[int], num_classes: int = 1000) -> Shapes:
    """Names and shapes of a classifier's tensors, without "module." in front."""
    shapes = conv_shapes("features.conv1", 3, 64, 7)
    shapes |= norm_shapes("features.residual1.bn.0", 64) | conv_shapes("features.residual1.conv.0", 64, 128, 3)
    shapes |= norm_shapes("features.residual1.conv.2", 128) | conv_shapes("features.residual1.conv.4", 128, 128, 3)
    shapes |= conv_shapes("features.residual1.shortcut.0", 64, 128, 1)
    before = 128
    for block, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        for index in range(depth):
            levels = 1 if block == 4 else 2
            shapes |= _module_shapes(f"features.unet{block}_{index}", before, filters, width, levels)
            before = width
    shapes |= norm_shapes("features.bn2", before)
    return {**shapes, "linear.weight": (num_classes, before), "linear.bias": (num_classes,)}


def _module_shapes(name: str, before: int, filters: int, width: int, levels: int) -> Shapes:
    shapes = conv_shapes(f"{name}.down.0.conv0", before, filters, 1)
    if before == width:
        shapes |= norm_shapes(f"{name}.down.0.bn0", before)
    else:
        shapes |= norm_shapes(f"{name}.bn.bn0", before) | conv_shapes(f"{name}.upsample.conv0", before, width, 1)
    for level in range(levels):
        taken = filters if level == levels - 1 else 2 * filters
        for layer in (1, 2):
            shapes |= norm_shapes(f"{name}.down.{level}.bn{layer}", filters)
            shapes |= conv_shapes(f"{name}.down.{level}.conv{layer}", filters, filters, 3)
        shapes |= norm_shapes(f"{name}.up.{level}.bn0", taken) | norm_shapes(f"{name}.up.{level}.bn1", filters)
        shapes |= {f"{name}.up.{level}.deconv0.weight": (taken, filters, 3, 3)}
        shapes |= {f"{name}.up.{level}.deconv0.bias": (filters,)}
        shapes |= conv_shapes(f"{name}.up.{level}.deconv1", filters, filters, 3)
    return shapes | norm_shapes(f"{name}.up.0.bn2", filters) | conv_shapes(f"{name}.up.0.conv2", filters, width, 1)


def conv_shapes(name: str, before: int, after: int, size: int) -> Shapes:
    return {f"{name}.weight": (after, before, size, size), f"{name}.bias": (after,)}


def norm_shapes(name: str, channels: int) -> Shapes:
    per_channel = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{kind}": (channels,) for kind in per_channel}, f"{name}.num_batches_tracked": ()}


def fill(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values that follow from each tensor's name, such that a network of them keeps the variance of what it is given.

    The rule by which the authors' outputs were recorded: N(0, 1) from `RandomState(crc32(name) & 0x7fffffff)`; of
    filters scaled by their fan-in, of a variance |a| / 2 + 1 / 2, of a gain 1 + a / 10, of the rest a / 10.
    """
    return {name: _values(name, shape) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    a = normal(zlib.crc32(name.encode()) & 0x7FFFFFFF, shape)
    if name.endswith("running_var"):
        return a.abs() / 2 + 0.5
    if len(shape) > 1:
        return a * math.sqrt(1 / math.prod(shape[1:]))
    return 1 + a / 10 if name.endswith(".weight") else a / 10


def normal(seed: int, shape: Sequence[int]) -> Tensor:
    """N(0, 1) as old versions of NumPy drew it, float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()
