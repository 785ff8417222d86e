"""What a network costs and sees before it is trained: parameters, MACs, receptive field, output stride, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.receptive_field import Ended, FeatureMap, SpatialTracer
from models.receptive_field.feature_map import AxisMaps

Stride = int | float | tuple[int | float, ...]


@dataclass(frozen=True)
class Layer:
    """One layer of a network, as it ran. What is counted is the layer's own: layers sum up to the network.

    Args:
        name: as in `named_modules()`.
        module: the layer itself.
        output_shapes: of every tensor that it returned, in its last call.
        parameters: those that no earlier layer has.
        macs: multiply-adds of all its calls.
        receptive_field: of its output; None where that is no feature map (behind the global pooling, in gates).
        output_stride: of its output; None as above.
    """

    name: str
    module: nn.Module
    output_shapes: tuple[tuple[int, ...], ...]
    parameters: int
    macs: int
    receptive_field: tuple[int, ...] | None
    output_stride: Stride | None


@dataclass(frozen=True)
class Analysis:
    """What `analyse` found.

    Args:
        input_size: (N, C, H, W) or (N, C, D, H, W) that was analysed.
        parameters: all parameters, shared ones once.
        trainable_parameters: those that require a gradient.
        macs: multiply-adds of one forward pass of `input_size` in eval mode, as `torch.utils.flop_counter` counts
            them (two of its operations to a multiply-add).
        receptive_field: theoretical receptive field of one value of the last feature map, (h, w) pixels, not clipped
            to the input; None where no feature map could be followed to the output.
        output_stride: input pixels between neighbours of the last feature map: a number where all axes agree, below 1
            where the network enlarges; None as above.
        last_map: what ended the spatial part behind the last feature map ("mean", "addmm", ...); "output" where the
            network returns the map itself.
        layers: in the order in which they first ran.
    """

    input_size: tuple[int, ...]
    parameters: int
    trainable_parameters: int
    macs: int
    receptive_field: tuple[int, ...] | None
    output_stride: Stride | None
    last_map: str
    layers: tuple[Layer, ...] = field(repr=False)


def analyse(module: nn.Module, input_size: Sequence[int] = (1, 3, 224, 224)) -> Analysis:
    """Counts a network's parameters and multiply-adds and finds its receptive field, in one forward pass of zeros.

    The receptive field is exact, not a bound: the widest interval of input positions, over all values of the last
    feature map, that any of its values depends on through convolutions, pooling and interpolation, on an image without
    borders. The last feature map is the input of the global pooling (or of the first dense layer over positions), or
    the output where there is none. By convention gates computed from globally pooled values (squeeze-and-excitation)
    and normalisation statistics do not count, since through them every value sees the whole image; attention between
    positions ends the spatial part. Several outputs count with the largest of their receptive fields.

    The pass runs on the module's own device and dtype, in eval mode and without gradients; module and random state are
    left as they were.

    Args:
        module: network that takes one image tensor.
        input_size: (N, C, H, W), or (N, C, D, H, W) for volumes; receptive field and stride then have three entries.

    Raises:
        ValueError: `input_size` is no such size, or the network cannot take it (too small, other channels).
    """
    size = _check_size(input_size)
    counter, tracer = FlopCounterMode(display=False), SpatialTracer()
    recorder = _Recorder(counter, tracer)
    with _evaluating(module), recorder.recording(module), counter, tracer:
        images = _images(module, size)
        tracer.watch(images)
        output = _run(module, images)
        seen = [_see(tracer, tree_leaves(part)) for part in _outputs(output)]
    last = max(filter(None, seen), key=lambda view: view.receptive_field, default=_View(None, None, "unknown"))
    return Analysis(
        input_size=size,
        parameters=sum(p.numel() for p in module.parameters()),
        trainable_parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        macs=counter.get_total_flops() // 2,
        receptive_field=last.receptive_field,
        output_stride=last.output_stride,
        last_map=last.last_map,
        layers=recorder.layers(),
    )
