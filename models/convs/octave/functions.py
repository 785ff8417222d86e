"""What torch functions, tensor methods and operators do to an `OctavePair`: one rule for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.convs.octave.pair import HIGH, LOW, OctavePair, Size, half_size, pool_down, rule
from models.convs.variant import pair

_ONE_BY_ONE = """
    abs add addcdiv addcmul alpha_dropout bfloat16 celu clamp clamp_max clamp_min clone contiguous cos cpu cuda detach
    div divide double dropout dropout2d elu empty_like exp feature_alpha_dropout feature_dropout float full_like gelu
    half hardshrink hardsigmoid hardswish hardtanh isfinite isnan leaky_relu lerp log log1p log_sigmoid maximum minimum
    mish mul multiply nan_to_num neg negative ones_like pow rand_like randn_like reciprocal relu relu6 requires_grad
    rrelu rsqrt rsub selu sigmoid sign silu sin softplus softshrink softsign sqrt square sub subtract tanh tanhshrink
    threshold to true_divide where zeros_like
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
    if isinstance(value, OctavePair):
        if value.channels != like.channels or value.full_size not in (like.full_size, (1, 1)):
            raise ValueError(f"{value} does not fit to {like}: members must have the same channels and sizes")
        return value[side]
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    channels, *size = ((1,) * 4 + tuple(value.shape))[-3:]
    if value.ndim > 4 or channels not in (1, sum(like.channels)) or tuple(size) not in ((1, 1), like.full_size):
        raise ValueError(
            f"a tensor {tuple(value.shape)} does not fit to an octave pair of shape {tuple(like.shape)}: it must have "
            "one channel or all of them, and be 1x1 or of full size"
        )
    if channels > 1:
        value = value.split(like.channels, value.ndim - 3)[side]
    return pool_down(value) if side == LOW and tuple(size) != (1, 1) else value


@rule("prelu")
def _prelu(func: Callable[..., Tensor], x: OctavePair, weight: Tensor) -> OctavePair:
    return _one_by_one(_prelu_member, func, x, weight[:, None, None])


def _prelu_member(func: Callable[..., Tensor], member: Tensor, weight: Tensor) -> Tensor:
    return func(member, weight.flatten())


@rule("cat", "concat", "concatenate")
def _cat(func: Callable[..., Tensor], tensors: Sequence[Any], dim: int = 0) -> OctavePair | Tensor:
    """The members of pairs, one side and then the other; beside a tensor, pairs become tensors."""
    if dim % 4 > 1:
        raise TypeError(f"octave pairs can be joined along their batch or their channels, not along dimension {dim}")
    if not all(isinstance(joined, OctavePair) for joined in tensors):
        return func([x.to_tensor() if isinstance(x, OctavePair) else x for x in tensors], dim)
    if dim % 4 == 0 and len({x.channels for x in tensors}) > 1:
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
    high = None if x.high is None else func(x.high, size, scale_factor, *args, **kwargs)
    if high is not None:
        full = (high.shape[2], high.shape[3])
    elif size is not None:
        full = (size, size) if isinstance(size, int) else (size[0], size[1])
    else:
        factors = (scale_factor, scale_factor) if isinstance(scale_factor, int | float) else scale_factor
        full = int(x.full_size[0] * factors[0]), int(x.full_size[1] * factors[1])
    if x.low is None:
        return OctavePair(high, None)
    half = half_size(full)
    if scale_factor is not None:
        low = func(x.low, None, scale_factor, *args, **kwargs)
        if low.shape[2] >= half[0] and low.shape[3] >= half[1]:  # beyond an odd border by one
            return OctavePair(high, _cropped(low, half), full)
    return OctavePair(high, func(x.low, half, None, *args, **kwargs), full)


@rule("narrow")
def _narrow(func: Callable[..., Tensor], x: OctavePair, dim: int, start: int, length: int) -> OctavePair:
    """The first rows or columns: both grids begin there, and the low member keeps half of what the high one keeps."""
    if dim % 4 < 2 or start != 0:
        raise TypeError(
            f"narrow has no meaning for an octave pair along dimension {dim} from {start} on: only its first rows "
            "(dimension 2) or columns (3), from 0 on, lie on both of its grids"
        )
    size = (length, x.full_size[1]) if dim % 4 == 2 else (x.full_size[0], length)
    high = None if x.high is None else func(x.high, dim, 0, length)
    low = None if x.low is None else func(x.low, dim, 0, half_size(size)[dim % 4 - 2])
    return OctavePair(high, low, size)


_POOLING_OPTIONS = {
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}


@rule("max_pool2d", "avg_pool2d")
def _pool(func: Callable[..., Tensor], x: OctavePair, *args: Any, **kwargs: Any) -> OctavePair:
    """Each member with the same window, in pixels of its own."""
    options = dict(zip(_POOLING_OPTIONS[func.__name__], args, strict=False)) | kwargs
    high = func(x.members[0].new_empty(1, 1, *x.full_size) if x.high is None else x.high, **options)
    full = (high.shape[2], high.shape[3])
    low = None if x.low is None else _pool_low(func, x.low, half_size(full), options)
    return OctavePair(None if x.high is None else high, low, full)


def _pool_low(func: Callable[..., Tensor], low: Tensor, size: Size, options: dict[str, Any]) -> Tensor:
    """The low member, to the size that belongs to the high one: if need be with a last window that the border cuts."""
    if _pooled_size(low, **options) != size:
        options = {**options, "ceil_mode": True}
    pooled = func(low, **options)
    if pooled.shape[2] < size[0] or pooled.shape[3] < size[1]:
        raise ValueError(
            f"pooling with {options} brings the low member of an octave pair to {tuple(pooled.shape[2:])}, where half "
            f"of the high one is {size}: pad the window, so that it shrinks maps by its stride alone"
        )
    return _cropped(pooled, size)


def _pooled_size(
    x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **_: Any
) -> tuple[int, ...]:
    """The size that whole windows give, as if ceil_mode were False."""
    windows = pair(kernel_size), pair(stride or kernel_size), pair(padding), pair(dilation)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(x.shape[2:], *windows, strict=True))


def _cropped(x: Tensor, size: Size) -> Tensor:
    return x if tuple(x.shape[2:]) == size else x[:, :, : size[0], : size[1]]


@rule("adaptive_avg_pool2d", "adaptive_max_pool2d")
def _adaptive_pool(func: Callable[..., Tensor], x: OctavePair, *args: Any, **kwargs: Any) -> Tensor:
    """Both members to the same grid, joined to a tensor."""
    return torch.cat([func(member, *args, **kwargs) for member in x.members], 1)


@rule("mean", "amax", "amin")
def _reduce(func: Callable[..., Tensor], x: OctavePair, dim: Any = (), keepdim: bool = False) -> Tensor:
    """Over the whole map, joined to a tensor."""
    dims = [dim] if isinstance(dim, int) else dim
    if sorted(d % 4 for d in dims) != [2, 3]:
        raise TypeError(f"an octave pair can be reduced over height and width together, (2, 3), not over {dim}")
    return torch.cat([func(member, dim=(2, 3), keepdim=keepdim) for member in x.members], 1)


@rule("flatten", "view", "reshape", "squeeze", "permute")
def _rearrange(func: Callable[..., Tensor], x: OctavePair, *args: Any, **kwargs: Any) -> Tensor:
    """Where the maps are a single pixel, the pair is a tensor of all channels."""
    if x.full_size != (1, 1):
        raise TypeError(
            f"{func.__name__} has no meaning for an octave pair of {x.full_size} pixels, whose two members differ in "
            "resolution: pool it globally before, or let the convolution before be an 'exit'"
        )
    return func(x.to_tensor(), *args, **kwargs)
