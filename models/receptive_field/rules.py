"""What each tensor operation does to the spatial structure of its input.

A rule takes a `Call` and returns the feature map of every output, or a list with one for each (None: not worth a
note); it raises `SpatialPartEnds` where none is left. An operation without a rule that is not elementwise mixes
positions, as far as can be told here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from typing import Any, TypeVar

import torch

from models.receptive_field import axis as windows
from models.receptive_field.axis import Window
from models.receptive_field.feature_map import (
    Dim,
    FeatureMap,
    SpatialPartEnds,
    is_spatial,
    merge,
    plain,
    size_of,
)


class Call:
    """One call of an operation: its arguments by name, its feature maps, and the shapes of its outputs.

    Args:
        arguments: every argument, defaults included.
        feature_maps: those among them that are, or hold, feature maps, by the argument's name.
        shapes: of the outputs.
        strides: strides of the feature maps that the pass has seen with a given (axis, size).
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        feature_maps: dict[str, list[FeatureMap]],
        shapes: list[tuple[int, ...]],
        strides: Callable[[int, int], Sequence[Fraction]],
    ) -> None:
        self.arguments = arguments
        self.shapes = shapes
        self.strides = strides
        self._feature_maps = feature_maps

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    @property
    def feature_maps(self) -> list[FeatureMap]:
        return [feature_map for group in self._feature_maps.values() for feature_map in group]

    def feature_map(self, name: str) -> FeatureMap | None:
        group = self._feature_maps.get(name)
        return group[0] if group else None

    @property
    def source(self) -> FeatureMap:
        """The first argument's feature map, for operations on one tensor."""
        source = self.feature_map(next(iter(self.arguments)))
        if source is None:
            raise SpatialPartEnds
        return source

    def per_axis(self, name: str, count: int) -> list[int]:
        value = self.arguments[name]
        values = list(value) if isinstance(value, Sequence) else [value]
        return values * count if len(values) == 1 else values


Rule = Callable[[Call], FeatureMap | list[FeatureMap | None]]
_RULES: dict[str, Rule] = {}


def find_rule(func: Any) -> Rule | None:
    """The rule for an operator, None where there is none; in-place and plain form have the same."""
    namespace, name = func._schema.name.split("::")
    if namespace != "aten":
        return None
    found = _RULES.get(name) or _RULES.get(name.rstrip("_"))
    if found is None and torch.Tag.pointwise in func.tags:
        return _elementwise
    return found


_R = TypeVar("_R", bound=Rule)


def _rule(*names: str) -> Callable[[_R], _R]:
    def add(function: _R) -> _R:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return add


# Elementwise, and what works along dimensions without moving anything: statistics of normalisations are ignored.


@_rule("_prelu_kernel", "hardswish", "where", "masked_fill", "rrelu_with_noise", "rrelu_with_noise_functional")
def _elementwise(call: Call) -> FeatureMap:
    return merge(call.feature_maps, call.shape)


@_rule(
    "alias",
    "bernoulli",
    "channel_shuffle",
    "clone",
    "contiguous",
    "detach",
    "lift_fresh",
    "native_channel_shuffle",
    "native_dropout",
    "_to_copy",
    "_softmax",
    "_log_softmax",
    "_safe_softmax",
    "_fused_rms_norm",
    "batch_norm_elemt",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "native_batch_norm",
    "native_group_norm",
    "native_layer_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
)
def _unmoved(call: Call) -> list[FeatureMap | None]:
    source = call.source
    # Saved statistics, of another shape, follow the first output.
    return [source if shape == source.shape else None for shape in call.shapes]


@_rule("copy")
def _copy(call: Call) -> FeatureMap:
    written = call.feature_map("src")
    if written is None:
        raise SpatialPartEnds
    return merge([written], call.shape)


# Sliding windows.


@_rule("convolution", "_convolution")
def _convolution(call: Call) -> FeatureMap:
    source = call.source
    kernel = call["weight"].shape[2:]
    if is_spatial(source.dims[1]):
        raise SpatialPartEnds
    window = windows.transposed_convolution if call["transposed"] else windows.convolution
    geometry = zip(
        kernel, *(call.per_axis(name, len(kernel)) for name in ("stride", "padding", "dilation")), strict=True
    )
    slid = source.with_dim(1, plain(call.shape[1])).slide([window(*axis) for axis in geometry], call.shape[2:])
    return replace(slid, before_pooling=source.before_pooling) if max(kernel) == 1 else slid


@_rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _average_pool(call: Call) -> FeatureMap:
    source = call.source
    pooled = _pool(call)
    kernel = _kernel(call)
    covers = source.shape[-len(kernel) :] == tuple(kernel) and pooled.shape[-len(kernel) :] == (1,) * len(kernel)
    covers &= not any(is_spatial(dim) for dim in source.dims[: -len(kernel)])  # as where planes of a volume are pooled
    return replace(pooled, before_pooling=source.last_maps) if covers else pooled


@_rule(
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_pool1d_with_indices",
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
)
def _pool(call: Call) -> FeatureMap:
    kernel = _kernel(call)
    stride = call.per_axis("stride", len(kernel)) or kernel
    padding = call.per_axis("padding", len(kernel))
    dilation = call.per_axis("dilation", len(kernel)) if "dilation" in call.arguments else [1] * len(kernel)
    slid = [windows.convolution(*axis) for axis in zip(kernel, stride, padding, dilation, strict=True)]
    return call.source.slide(slid, call.shape[-len(kernel) :])


def _kernel(call: Call) -> list[int]:
    images = next(iter(call.arguments.values()))
    return call.per_axis("kernel_size", images.ndim - 2)


@_rule("im2col")
def _im2col(call: Call) -> FeatureMap:
    """(N, C, H, W) to (N, C * kH * kW, positions), the positions row by row."""
    kernel, dilation, padding, stride = (
        call.per_axis(name, 2) for name in ("kernel_size", "dilation", "padding", "stride")
    )
    geometry = list(zip(kernel, stride, padding, dilation, strict=True))
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, (k, s, p, d) in zip(call.source.shape[2:], geometry, strict=True)
    ]
    slid = call.source.slide([windows.convolution(*axis) for axis in geometry], sizes)
    return slid.with_dims((slid.dims[0], plain(call.shape[1]), slid.dims[2] + slid.dims[3]))


@_rule("unfold")
def _unfold(call: Call) -> FeatureMap:
    """`Tensor.unfold`: windows along one dimension, their content in a new last one."""
    dim = call["dimension"] % len(call.source.dims)
    moved = call.source.move(dim, windows.convolution(call["size"], call["step"], 0), call.shape[dim])
    return moved.with_dims((*moved.dims, plain(call["size"])))


@_rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
@_rule("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _pad(call: Call) -> FeatureMap:
    """Padding moves indices; what stands in the border is as good as image."""
    padding = call["pad"] if "pad" in call.arguments else call["padding"]
    before = padding[::2][::-1]  # listed from the last dimension on
    return call.source.slide([windows.crop(-start) for start in before], call.shape[-len(before) :])


# Resampling.


@_rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(call: Call) -> FeatureMap:
    return _interpolate(call, windows.nearest)


@_rule("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")
def _nearest_exact(call: Call) -> FeatureMap:
    return _interpolate(call, lambda factor: windows.nearest(factor, centred=True))


@_rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def _linear(call: Call) -> FeatureMap:
    return _interpolate(call, lambda factor: windows.interpolation(factor, support=1))


@_rule("upsample_bicubic2d")
def _cubic(call: Call) -> FeatureMap:
    return _interpolate(call, lambda factor: windows.interpolation(factor, support=2))


@_rule("_upsample_bilinear2d_aa")
def _linear_antialiased(call: Call) -> FeatureMap:
    return _interpolate(call, lambda factor: windows.interpolation(factor, support=1, antialias=True))


@_rule("_upsample_bicubic2d_aa")
def _cubic_antialiased(call: Call) -> FeatureMap:
    return _interpolate(call, lambda factor: windows.interpolation(factor, support=2, antialias=True))


def _interpolate(call: Call, window: Callable[[Fraction], Window]) -> FeatureMap:
    sizes = call.shape[2:]
    scales = call.arguments.get("scale_factors") or [
        call.arguments.get(name) for name in ("scales_d", "scales_h", "scales_w", "scales")
    ]
    scales = [scale for scale in scales if scale is not None] or [None] * len(sizes)
    dims = zip(call.source.dims[2:], sizes, scales, strict=True)
    return call.source.slide([window(_factor(call, *dim)) for dim in dims], sizes)


def _factor(call: Call, dim: Dim, size: int, scale: float | None) -> Fraction:
    """How many times the size an interpolation makes the axis.

    To an odd size the ratio of sizes is not the factor that is meant (8 to 15 is a factor of 2): where an earlier map
    has that size and fits to a pixel, it is the one that leads onto that map's grid.
    """
    if scale is not None:
        return Fraction(scale).limit_denominator(1000)
    old = size_of(dim)
    ratio = Fraction(size, old)
    factors = [
        factor.reads.stride / stride
        for factor in dim
        if factor.reads is not None
        for stride in call.strides(factor.axis, size)
    ]
    fitting = [factor for factor in factors if factor > 0 and abs(size - old * factor) < max(Fraction(1), factor)]
    if old == size == 1:  # one pixel fits every grid: the next finer one
        return min((factor for factor in fitting if factor > 1), default=ratio)
    return min(fitting, key=lambda factor: abs(factor - ratio), default=ratio)


@_rule("pixel_shuffle")
def _pixel_shuffle(call: Call) -> FeatureMap:
    times = windows.repeat(call["upscale_factor"])
    return _channels(call).slide([times, times], call.shape[-2:])


@_rule("pixel_unshuffle")
def _pixel_unshuffle(call: Call) -> FeatureMap:
    size = windows.blocks(call["downscale_factor"])
    return _channels(call).slide([size, size], call.shape[-2:])


def _channels(call: Call) -> FeatureMap:
    if is_spatial(call.source.dims[-3]):
        raise SpatialPartEnds
    return call.source.with_dim(-3, plain(call.shape[-3]))


# Cutting and joining.


@_rule("slice")
def _slice(call: Call) -> FeatureMap:
    dim = call["dim"]
    start, _, step = slice(call["start"], call["end"], call["step"]).indices(call.source.shape[dim])
    return call.source.move(dim, windows.crop(start, step), call.shape[dim])


@_rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def _split(call: Call) -> list[FeatureMap | None]:
    sizes = [shape[call["dim"]] for shape in call.shapes]
    starts = accumulate(sizes[:-1], initial=0)
    return [call.source.move(call["dim"], windows.crop(start), size) for start, size in zip(starts, sizes, strict=True)]


@_rule("flip")
def _flip(call: Call) -> FeatureMap:
    flipped = call.source
    for dim in call["dims"]:
        size = flipped.shape[dim]
        flipped = flipped.move(dim, windows.flip(size), size)
    return flipped


@_rule("roll")
def _roll(call: Call) -> FeatureMap:
    """A shift; what comes round from the other side is border."""
    rolled = call.source
    for shift, dim in zip(call["shifts"], call["dims"] or (), strict=True):
        rolled = rolled.move(dim, windows.crop(-shift), rolled.shape[dim])
    return rolled


@_rule("select", "unbind")
def _select(call: Call) -> FeatureMap:
    return _without(call.source, call["dim"])


@_rule("index_select")
def _index_select(call: Call) -> FeatureMap:
    return _resized(call.source, call["dim"], call.shape[call["dim"]])


@_rule("index")
def _index(call: Call) -> FeatureMap:
    given = [(dim, index) for dim, index in enumerate(call["indices"]) if index is not None]
    if len(given) > 1 or given[0][1].ndim != 1:
        raise SpatialPartEnds
    return _resized(call.source, given[0][0], call.shape[given[0][0]])


@_rule("glu")
def _glu(call: Call) -> FeatureMap:
    return _resized(call.source, call["dim"], call.shape[call["dim"]])


@_rule("cat")
def _cat(call: Call) -> FeatureMap:
    dim = call["dim"]
    return merge([_resized(joined, dim, call.shape[dim]) for joined in call.feature_maps], call.shape)


@_rule("stack")
def _stack(call: Call) -> FeatureMap:
    dim = call["dim"] % len(call.shape)
    stacked = [
        joined.with_dims((*joined.dims[:dim], plain(call.shape[dim]), *joined.dims[dim:]))
        for joined in call.feature_maps
    ]
    return merge(stacked, call.shape)


def _without(source: FeatureMap, dim: int) -> FeatureMap:
    if is_spatial(source.dims[dim]):
        raise SpatialPartEnds
    return source.without_dim(dim)


def _resized(source: FeatureMap, dim: int, size: int) -> FeatureMap:
    if is_spatial(source.dims[dim]):
        raise SpatialPartEnds
    return source.with_dim(dim, plain(size))


# Dimensions rearranged.


@_rule("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze")
def _regroup(call: Call) -> FeatureMap:
    return call.source.regroup(call.shape)


@_rule("unsqueeze")
def _unsqueeze(call: Call) -> FeatureMap:
    dims = call.source.dims
    index = call["dim"] % (len(dims) + 1)
    return call.source.with_dims((*dims[:index], plain(1), *dims[index:]))


@_rule("permute")
def _permute(call: Call) -> FeatureMap:
    return call.source.with_dims(call.source.dims[dim] for dim in call["dims"])


@_rule("transpose")
def _transpose(call: Call) -> FeatureMap:
    dims = list(call.source.dims)
    first, second = call["dim0"], call["dim1"]
    dims[first], dims[second] = dims[second], dims[first]
    return call.source.with_dims(dims)


@_rule("t")
def _t(call: Call) -> FeatureMap:
    return call.source.with_dims(reversed(call.source.dims))


@_rule("expand", "repeat")
def _expand(call: Call) -> FeatureMap:
    return merge([_as_broadcast(call.source)], call.shape)


def _as_broadcast(source: FeatureMap) -> FeatureMap:
    return source.with_dims(dim if is_spatial(dim) else plain(1) for dim in source.dims)


# Reductions and products.


@_rule("mean", "sum", "nansum", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean")
@_rule("logsumexp", "linalg_vector_norm", "norm", "argmax", "argmin", "any", "all", "count_nonzero", "median")
def _reduce(call: Call) -> FeatureMap:
    if isinstance(call.arguments.get("other"), torch.Tensor):  # max(a, b)
        return _elementwise(call)
    source = call.source
    dims = call.arguments.get("dim")
    reduced = [dims] if isinstance(dims, int) else dims or range(len(source.dims))
    reduced = {dim % len(source.dims) for dim in reduced}
    if any(is_spatial(source.dims[dim]) for dim in reduced):
        raise SpatialPartEnds(pooled=True)
    if call.arguments.get("keepdim"):
        return source.with_dims(plain(1) if i in reduced else dim for i, dim in enumerate(source.dims))
    return source.with_dims(dim for i, dim in enumerate(source.dims) if i not in reduced)


@_rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d")
@_rule("adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_pool(call: Call) -> FeatureMap:
    """Its windows depend on the input's size: to whatever grid, it takes the whole image."""
    raise SpatialPartEnds(pooled=True)


@_rule("linear")
def _dense(call: Call) -> FeatureMap:
    return _resized(call.source, -1, call.shape[-1])


@_rule("mm", "bmm")
def _matmul(call: Call) -> FeatureMap:
    names = iter(call.arguments)
    return _product(call, next(names), next(names))


@_rule("addmm", "baddbmm", "_addmm_activation")
def _add_matmul(call: Call) -> FeatureMap:
    names = list(call.arguments)
    product = _product(call, names[1], names[2])
    added = call.feature_map(names[0])
    return product if added is None else merge([product, added], call.shape)


def _product(call: Call, left_name: str, right_name: str) -> FeatureMap:
    """A matrix product (..., rows, k) x (..., k, columns)."""
    left, right = call.feature_map(left_name), call.feature_map(right_name)
    # A single weighted mean over the image is a pooling; any more mix positions.
    if left is not None and is_spatial(left.dims[-1]):
        raise SpatialPartEnds(pooled=call.shape[-1] == 1)
    if right is not None and is_spatial(right.dims[-2]):
        raise SpatialPartEnds(pooled=call.shape[-2] == 1)
    if left is not None and right is not None:
        return merge([left.with_dim(-1, plain(call.shape[-1])), right.with_dim(-2, plain(call.shape[-2]))], call.shape)
    if left is not None:
        return left.with_dim(-1, plain(call.shape[-1]))
    if right is not None:
        return right.with_dim(-2, plain(call.shape[-2]))
    raise SpatialPartEnds
