"""`OctavePair`: one feature map at two resolutions, which torch functions and operators treat as one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree

from models.convs.dimensions import average_pool

Size = tuple[int, ...]
"""Of the spatial axes: (height, width), or (depth, height, width) of volumes."""
Split = tuple[int, int]
"""Channels (high, low)."""

HIGH, LOW = 0, 1

Rule = Callable[..., Any]
"""What a function does to pairs: called as the function itself, with `func` in front of its arguments."""

_Rule = TypeVar("_Rule", bound=Rule)
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[_Rule], _Rule]:
    """Decorator: the rule of the torch functions, tensor methods and operators of these names."""

    def register(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def half_size(size: Size) -> Size:
    """The low map's size under a high map of `size`: half of it, rounded up."""
    return tuple((side + 1) // 2 for side in size)


def low_channels(alpha: float | Fraction, channels: int | tuple[int, ...]) -> int:
    """Channels of the low member: floor(alpha C); for the parts of a `torch.cat`, the sum of their floors."""
    parts = (channels,) if isinstance(channels, int) else channels
    return sum(int(alpha * part) for part in parts)


def pool_down(x: Tensor) -> Tensor:
    """Average of each block of two values along each axis, (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2)).

    Blocks that an odd border cuts are the average of what is there.
    """
    return average_pool(x, (2,) * (x.ndim - 2))


def upsample(x: Tensor, size: Size) -> Tensor:
    """Repeats each value of a low map over its block of a map of `size`, two along each axis; a border may cut it."""
    return F.interpolate(x, size=size, mode="nearest")


def cropped(x: Tensor, size: Size) -> Tensor:
    """The first values along each axis, as many as `size` says."""
    if tuple(x.shape[2:]) == size:
        return x
    for dim, length in enumerate(size, start=2):
        x = x.narrow(dim, 0, length)
    return x


def _operator(function: Callable[..., Any]) -> Callable[..., OctavePair]:
    def operate(self: OctavePair, *other: Any) -> OctavePair:
        return function(self, *other)

    return operate


class OctavePair:
    """A feature map in two parts: `high` at full resolution, `low` at half of it (Chen et al., ICCV 2019).

    Torch functions and operators act on both parts, so that a network written for tensors runs on pairs: activations,
    dropout, arithmetic, `torch.cat`, `F.interpolate`, pooling. Global pooling (adaptive pooling, `mean((2, 3))`)
    concatenates the parts to an ordinary tensor, the way out before a dense layer. What has no meaning for two
    resolutions is a `TypeError`. See `models.convs.octave.functions` for each rule.

    A tensor that meets a pair in arithmetic is brought to its form: one value a channel is split like the channels, a
    full-resolution map loses the resolution of its last channels.

    Args:
        high: (N, C_high, H, W), or None; of volumes (N, C_high, D, H, W).
        low: (N, C_low, ceil(H / 2), ceil(W / 2)), or None; of volumes with ceil(D / 2). One of the two must be there.
        size: (H, W) or (D, H, W); needed where `high` is None and a side is odd, twice the low size by default.

    Attributes:
        shape: That of the tensor which the pair stands for, (N, C_high + C_low, H, W), of volumes with D.

    Raises:
        ValueError: No member at all, or sizes that do not belong together.
    """

    high: Tensor | None
    low: Tensor | None
    full_size: Size

    def __init__(self, high: Tensor | None, low: Tensor | None, size: Size | None = None) -> None:
        if high is not None:
            full_size = tuple(high.shape[2:])
        elif low is not None:
            full_size = size or tuple(2 * side for side in low.shape[2:])
        else:
            raise ValueError("an OctavePair needs a high or a low member, got None twice")
        if size is not None and tuple(size) != full_size:
            raise ValueError(f"the high member is {full_size}, which is not the size that was given, {size}")
        if low is not None and tuple(low.shape[2:]) != half_size(full_size):
            raise ValueError(
                f"a pair of full size {full_size} has a low member of {half_size(full_size)}, half of it rounded up; "
                f"got {tuple(low.shape[2:])}"
            )
        self.high = high
        self.low = low
        self.full_size = full_size

    @classmethod
    def from_tensor(cls, x: Tensor, low_channels: int) -> OctavePair:
        """The pair of `x` (N, C, ...): its last `low_channels` channels lose their resolution by average pooling."""
        high_channels = x.shape[1] - low_channels
        high = x[:, :high_channels] if high_channels else None
        low = pool_down(x[:, high_channels:]) if low_channels else None
        return cls(high, low, tuple(x.shape[2:]))

    def to_tensor(self) -> Tensor:
        """The pair as one tensor of `shape`: the low member enlarged to full resolution behind the high one."""
        parts = [] if self.high is None else [self.high]
        if self.low is not None:
            parts.append(upsample(self.low, self.full_size))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    @property
    def members(self) -> list[Tensor]:
        """Those members that are there, the high one first."""
        return [member for member in (self.high, self.low) if member is not None]

    @property
    def channels(self) -> Split:
        return 0 if self.high is None else self.high.shape[1], 0 if self.low is None else self.low.shape[1]

    # What networks ask of a tensor.

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.members[0].shape[0], sum(self.channels), *self.full_size))

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> int:
        return self.members[0].ndim

    def dim(self) -> int:
        return self.ndim

    @property
    def dtype(self) -> torch.dtype:
        return self.members[0].dtype

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    @property
    def requires_grad(self) -> bool:
        return any(member.requires_grad for member in self.members)

    def is_floating_point(self) -> bool:
        return self.members[0].is_floating_point()

    def is_contiguous(self, *, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
        return all(member.is_contiguous(memory_format=memory_format) for member in self.members)

    def new_empty(self, size: Any, **options: Any) -> Tensor:
        return self.members[0].new_empty(size, **options)

    # A tuple of two.

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.high, self.low))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor | None:
        if not isinstance(index, int):
            raise TypeError(f"an octave pair has two members, [0] and [1], and cannot be sliced as a tensor: {index}")
        return (self.high, self.low)[index]

    def __repr__(self) -> str:
        high, low = (None if member is None else tuple(member.shape) for member in self)
        return f"OctavePair(high={high}, low={low})"

    # Torch functions, operators and methods.

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.strip("_")
        if name not in _RULES:
            raise TypeError(
                f"{name} has no meaning for an octave pair, whose two members differ in resolution. Pool the pair "
                "globally, or turn it to a tensor with to_tensor(), or by a convolution at position 'exit', before it."
            )
        return _RULES[name](func, *args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        if name.strip("_") in _RULES and hasattr(Tensor, name):
            return partial(self._call_method, name)
        raise AttributeError(f"an octave pair has no attribute {name!r}; to_tensor() gives an ordinary tensor")

    def _call_method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.__torch_function__(getattr(Tensor, name), (), (self, *args), kwargs)

    __add__ = __radd__ = _operator(torch.add)
    __sub__ = _operator(torch.sub)
    __rsub__ = _operator(torch.rsub)
    __mul__ = __rmul__ = _operator(torch.mul)
    __truediv__ = _operator(torch.div)
    __pow__ = _operator(torch.pow)
    __neg__ = _operator(torch.neg)


def _flatten(pair: OctavePair) -> tuple[list[Any], Any]:
    return pair.members, (pair.high is not None, pair.low is not None, pair.full_size)


def _unflatten(members: Any, context: Any) -> OctavePair:
    """Leaves may be anything here, so nothing is checked."""
    has_high, has_low, size = context
    leaves = iter(members)
    pair = OctavePair.__new__(OctavePair)
    pair.high = next(leaves) if has_high else None
    pair.low = next(leaves) if has_low else None
    pair.full_size = size
    return pair


_pytree.register_pytree_node(OctavePair, _flatten, _unflatten, serialized_type_name="convsuite.OctavePair")
