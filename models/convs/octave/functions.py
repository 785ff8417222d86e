"""What torch functions, tensor methods and operators do to an `OctavePair`: one rule for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.convs.dimensions import per_axis
from models.convs.octave.pair import HIGH, LOW, OctavePair, Size, cropped, half_size, pool_down, rule

_ONE_BY_ONE = """
    abs add addcdiv addcmul alpha_dropout bfloat16 celu clamp clamp_max clamp_min clone contiguous cos cpu cuda
    detach div divide double dropout dropout2d dropout3d elu empty_like exp feature_alpha_dropout feature_dropout
    float full_like gelu half hardshrink hardsigmoid hardswish hardtanh isfinite isnan leaky_relu lerp log log1p
    log_sigmoid maximum minimum mish mul multiply nan_to_num neg negative ones_like pow rand_like randn_like
    reciprocal relu relu6 requires_grad rrelu rsqrt rsub selu sigmoid sign silu sin softplus softshrink softsign
    sqrt square sub subtract tanh tanhshrink threshold to true_divide where zeros_like
"""


@rule(*_ONE_BY_ONE.split())
def _one_by_one(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> OctavePair:
    """Activations, dropout, arithmetic: each member for itself; what stands beside the pair is brought to its form."""
    like = next(value for value in (*args, *kwargs.values()) if isinstance(value, OctavePair))
    if isinstance(args[0], Tensor) and func.__name__.endswith("_"):  # `tensor += pair` makes a pair, not a tensor
        func = getattr(Tensor, func.__name__.strip("_"))

    def act(side: int) -> Tensor | None:
        if like[side] is None:
            return None
        options = {name: _beside(value, like, side) for name, value in kwargs.items()}
        return func(*(_beside(value, like, side) for value in args), **options)

    return OctavePair(act(HIGH), act(LOW), like.full_size)


def _beside(value: Any, like: OctavePair, side: int) -> Any:
    """What of an argument meets the member of `like` on `side`."""
    pixel = (1,) * len(like.full_size)
    if isinstance(value, OctavePair):
        if value.channels != like.channels or value.full_size not in (like.full_size, pixel):
            raise ValueError(f"{value} does not fit to {like}: members must have the same channels and sizes")
        return value[side]
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    leading = (1,) * (like.ndim - value.ndim)
    channels, *size = (*leading, *value.shape)[1:]
    if value.ndim > like.ndim or channels not in (1, sum(like.channels)) or tuple(size) not in (pixel, like.full_size):
        raise ValueError(
            f"a tensor {tuple(value.shape)} does not fit to an octave pair of shape {tuple(like.shape)}: it must have "
            f"one channel or all of them, and be {'x'.join(map(str, pixel))} or of full size"
        )
    value = value.reshape(*leading, *value.shape)
    if channels > 1:
        value = value.split(like.channels, 1)[side]
    return pool_down(value) if side == LOW and tuple(size) != pixel else value


@rule("prelu")
def _prelu(func: Callable[..., Tensor], x: OctavePair, weight: Tensor) -> OctavePair:
    return _one_by_one(_prelu_member, func, x, weight.reshape(-1, *[1] * len(x.full_size)))


def _prelu_member(func: Callable[..., Tensor], member: Tensor, weight: Tensor) -> Tensor:
    return func(member, weight.flatten())


@rule("cat", "concat", "concatenate")
def _cat(func: Callable[..., Tensor], tensors: Sequence[Any], dim: int = 0) -> OctavePair | Tensor:
    """The members of pairs, one side and then the other; beside a tensor, pairs become tensors."""
    ndim = next(joined.ndim for joined in tensors if isinstance(joined, OctavePair))
    if dim % ndim > 1:
        raise TypeError(f"octave pairs can be joined along their batch or their channels, not along dimension {dim}")
    if not all(isinstance(joined, OctavePair) for joined in tensors):
        return func([x.to_tensor() if isinstance(x, OctavePair) else x for x in tensors], dim)
    if dim % ndim == 0 and len({x.channels for x in tensors}) > 1:
        raise ValueError(f"pairs of one batch must have the same channels (high, low), got {[*tensors]}")
    high, low = ([member for member in members if member is not None] for members in zip(*tensors, strict=True))
    return OctavePair(func(high, dim) if high else None, func(low, dim) if low else None, tensors[0].full_size)


@rule("interpolate")
def _interpolate(
    func: Callable[..., Tensor],
    x: OctavePair,
    size: Any = None,
    scale_factor: Any = None,
    *args: Any,
    **kwargs: Any,
) -> OctavePair:
    """Each member by the same factor; the low one ends on half the new size, rounded up."""
    factors = [scale_factor] * len(x.full_size) if isinstance(scale_factor, int | float) else scale_factor
    high = None if x.high is None else func(x.high, size, scale_factor, *args, **kwargs)
    if high is not None:
        full = tuple(high.shape[2:])
    else:
        full = _scaled(x.full_size, factors) if size is None else per_axis(size, len(x.full_size))
    if x.low is None:
        return OctavePair(high, None)
    half = half_size(full)
    if factors is not None:
        reached = _scaled(tuple(x.low.shape[2:]), factors)
        if all(side >= needed for side, needed in zip(reached, half, strict=True)):  # beyond an odd border by one
            return OctavePair(high, cropped(func(x.low, None, scale_factor, *args, **kwargs), half), full)
    return OctavePair(high, func(x.low, half, None, *args, **kwargs), full)


def _scaled(size: Size, factors: Sequence[float]) -> Size:
    return tuple(int(side * factor) for side, factor in zip(size, factors, strict=True))


@rule("narrow")
def _narrow(func: Callable[..., Tensor], x: OctavePair, dim: int, start: int, length: int) -> OctavePair:
    """The first rows or columns: both grids begin there, and the low member keeps half of what the high one keeps."""
    axis = dim % x.ndim - 2
    if axis < 0 or start != 0:
        raise TypeError(
            f"narrow has no meaning for an octave pair along dimension {dim} from {start} on: only along its spatial "
            f"dimensions (2 to {x.ndim - 1}) and from 0 on both of its grids can be cut"
        )
    size = (*x.full_size[:axis], length, *x.full_size[axis + 1 :])
    high = None if x.high is None else func(x.high, dim, 0, length)
    low = None if x.low is None else func(x.low, dim, 0, half_size(size)[axis])
    return OctavePair(high, low, size)


_MAX_POOLING = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_AVERAGE_POOLING = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


@rule("max_pool2d", "max_pool3d", "avg_pool2d", "avg_pool3d")
def _pool(func: Callable[..., Tensor], x: OctavePair, *args: Any, **kwargs: Any) -> OctavePair:
    """Each member with the same window, in pixels of its own."""
    names = _MAX_POOLING if func.__name__.startswith("max") else _AVERAGE_POOLING
    options = dict(zip(names, args, strict=False)) | kwargs
    high = func(x.members[0].new_empty(1, 1, *x.full_size) if x.high is None else x.high, **options)
    full = tuple(high.shape[2:])
    low = None if x.low is None else _pool_low(func, x.low, half_size(full), options)
    return OctavePair(None if x.high is None else high, low, full)


def _pool_low(func: Callable[..., Tensor], low: Tensor, size: Size, options: dict[str, Any]) -> Tensor:
    """The low member, to the size that belongs to the high one: if need be with a last window that the border cuts."""
    if _pooled_size(low, **options) != size:
        options = {**options, "ceil_mode": True}
        if func.__name__ == "avg_pool3d":
            options |= _windows_within(low, **options)
    pooled = func(low, **options)
    if any(reached < side for reached, side in zip(pooled.shape[2:], size, strict=True)):
        raise ValueError(
            f"pooling with {options} brings the low member of an octave pair to {tuple(pooled.shape[2:])}, where half "
            f"of the high one is {size}: pad the window, so that it shrinks maps by its stride alone"
        )
    return cropped(pooled, size)


def _windows_within(x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, **_: Any) -> dict[str, Any]:
    """The same windows, no longer than the map: torch takes longer ones for images, but not for averages of volumes."""
    kernel, pad = per_axis(kernel_size, x.ndim - 2), per_axis(padding, x.ndim - 2)
    within = tuple(min(k, n + 2 * p) for n, k, p in zip(x.shape[2:], kernel, pad, strict=True))
    return {"kernel_size": within, "stride": stride or kernel}


def _pooled_size(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **_: Any
) -> tuple[int, ...]:
    """The size that whole windows give, as if ceil_mode were False."""
    windows = (per_axis(value, x.ndim - 2) for value in (kernel_size, stride or kernel_size, padding, dilation))
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(x.shape[2:], *windows, strict=True))


@rule("adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_pool(func: Callable[..., Tensor], x: OctavePair, *args: Any, **kwargs: Any) -> Tensor:
    """Both members to the same grid, joined to a tensor."""
    return torch.cat([func(member, *args, **kwargs) for member in x.members], 1)


@rule("mean", "amax", "amin")
def _reduce(func: Callable[..., Tensor], x: OctavePair, dim: Any = (), keepdim: bool = False) -> Tensor:
    """Over the whole map, joined to a tensor."""
    dims = [dim] if isinstance(dim, int) else dim
    spatial = tuple(range(2, x.ndim))
    if sorted(d % x.ndim for d in dims) != [*spatial]:
        raise TypeError(
            f"an octave pair can be reduced over height and width together, and depth of volumes, {spatial}, "
            f"not over {dim}"
        )
    return torch.cat([func(member, dim=spatial, keepdim=keepdim) for member in x.members], 1)


@rule("flatten", "view", "reshape", "squeeze", "permute")
def _rearrange(func: Callable[..., Tensor], x: OctavePair, *args: Any, **kwargs: Any) -> Tensor:
    """Where the maps are a single pixel, the pair is a tensor of all channels."""
    if max(x.full_size) > 1:
        raise TypeError(
            f"{func.__name__} has no meaning for an octave pair of {x.full_size} pixels, whose two members differ in "
            "resolution: pool it globally before, or let the convolution before be an 'exit'"
        )
    return func(x.to_tensor(), *args, **kwargs)
